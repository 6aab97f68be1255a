//! LoRA: PEFT's own files of several kinds, read, checked, converted both ways, and held against PyTorch's answers.

use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, fixtures, json, ptplus, stderr, stdout};
use ptplus::adapter::lora::runtime_factor;
use ptplus::format::gguf;
use serde_json::{Value, json as value};

/// Cases with base and probe.
const PROVED: [&str; 3] = ["llama-rslora-patterns", "llama-head-embed", "qwen3-all-linear"];

fn case(name: &str) -> PathBuf {
    fixtures().join("lora").join(name)
}

fn adapter(name: &str) -> PathBuf {
    case(name).join("adapter")
}

/// The base of a case, or one of the same shape.
fn base(name: &str) -> PathBuf {
    let own = case(name).join("base");
    if own.is_dir() { own } else { case("llama-rslora-patterns").join("base") }
}

fn run(args: &[&dyn AsRef<Path>]) -> std::process::Output {
    ptplus(args.iter().map(|a| a.as_ref().as_os_str()))
}

fn document(args: &[&dyn AsRef<Path>]) -> (i32, Value) {
    json(args.iter().map(|a| a.as_ref().as_os_str()))
}

/// A variant of a case, written to `folder`.
fn variant(name: &str, folder: &Path, change: impl FnOnce(&mut RawAdapter)) -> PathBuf {
    let _ = std::fs::remove_dir_all(folder);
    let mut raw = RawAdapter::read(&adapter(name));
    change(&mut raw);
    raw.write(folder);
    folder.to_owned()
}

fn codes(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().map(|f| f["code"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_kind_of_file_is_read_and_fits_its_base() {
    for (name, weights, layers, scales) in [
        ("llama-plain", 21, 3, vec![2.0]),
        ("llama-some-layers", 2, 1, vec![1.5]),
        ("llama-alpha-pattern", 21, 3, vec![0.25, 2.0, 5.0]),
        ("llama-rslora-patterns", 21, 3, vec![3.0 / 8f64.sqrt(), 16.0 / 12f64.sqrt(), 16.0 / 8f64.sqrt(), 8.0]),
        ("llama-head-embed", 5, 3, vec![2.0]),
        ("llama-dora", 6, 3, vec![2.0]),
        ("llama-bias", 6, 3, vec![2.0]),
        ("llama-saved-head", 3, 3, vec![2.0]),
        ("qwen3-all-linear", 14, 2, vec![2.0]),
    ] {
        let (code, found) = document(&[&"inspect", &adapter(name)]);
        assert_eq!(code, 0, "{name}");
        let lora = &found["lora"];
        assert_eq!(lora["num_modules"], weights, "{name}");
        assert_eq!(lora["adapted_layers"].as_array().map(Vec::len), Some(layers), "{name}");
        let mut found: Vec<f64> =
            lora["targets"].as_array().unwrap().iter().map(|t| t["scale"].as_f64().unwrap()).collect();
        found.sort_by(f64::total_cmp);
        found.dedup();
        assert_eq!(found, scales, "{name}");
        assert_eq!((lora["dora"] == true, lora["lora_bias"] == true), (name == "llama-dora", name == "llama-bias"));
        let (code, found) = document(&[&"validate", &adapter(name), &"--base", &base(name)]);
        assert_eq!(code, 0, "{name}: {found}");
    }
}

#[test]
fn both_forms_compute_what_pytorch_computes() {
    let temp = tempfile::tempdir().unwrap();
    for name in PROVED {
        let probe = case(name).join("probe.safetensors");
        let (file, back) = (temp.path().join(format!("{name}.gguf")), temp.path().join(name));
        let out = run(&[&"convert", &adapter(name), &"-o", &file, &"--base", &base(name), &"--probe", &probe]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        let out = run(&[&"convert", &file, &"-o", &back]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        for path in [&adapter(name), &file, &back] {
            let (code, report) = document(&[&"verify", path, &"--base", &base(name), &"--probe", &probe]);
            let max = report["metrics"]["max_abs"].as_f64().unwrap();
            assert!(code == 0 && max <= 2e-4, "{name}: {}: {max}", path.display());
        }
    }
}

#[test]
fn what_needs_no_folding_comes_back_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama-plain", "llama-some-layers", "qwen3-all-linear"] {
        let (file, back) = (temp.path().join(format!("{name}.gguf")), temp.path().join(name));
        assert_eq!(exit(&run(&[&"convert", &adapter(name), &"-o", &file, &"--base", &base(name)])), 0, "{name}");
        assert!(gguf::open(&file).unwrap().metadata.get("ptplus.lora.folded").is_none(), "{name}");
        assert_eq!(exit(&run(&[&"convert", &file, &"-o", &back])), 0, "{name}");
        let (before, after) = (RawAdapter::read(&adapter(name)), RawAdapter::read(&back));
        assert_eq!(before.config, after.config, "{name}");
        assert_eq!(before.tensors, after.tensors, "{name}");
    }
}

/// The rows of B of q and k in the order of the architecture, and nothing else, as llama.cpp's own converter does it.
#[test]
fn rows_are_reordered_where_llama_cpp_does_it() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("plain.gguf");
    assert_eq!(exit(&run(&[&"convert", &adapter("llama-plain"), &"-o", &file, &"--base", &base("llama-plain")])), 0);
    let (raw, found) = (RawAdapter::read(&adapter("llama-plain")), gguf::open(&file).unwrap());
    assert_eq!(found.metadata.f32("adapter.lora.alpha").unwrap(), Some(16.0));
    let values = |name: &str| -> Vec<f32> {
        let t = found.tensors.iter().find(|t| t.name == name).unwrap();
        t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let d = 32;
    for (module, gguf_name, is_reordered) in [
        ("self_attn.q_proj", "attn_q", true),
        ("self_attn.k_proj", "attn_k", true),
        ("self_attn.v_proj", "attn_v", false),
        ("self_attn.o_proj", "attn_output", false),
        ("mlp.down_proj", "ffn_down", false),
    ] {
        let hf = |half: &str| &raw.tensors[&format!("base_model.model.model.layers.1.{module}.{half}.weight")];
        assert_eq!(values(&format!("blk.1.{gguf_name}.weight.lora_a")), hf("lora_A").values, "{module}");
        let (b, found) = (hf("lora_B"), values(&format!("blk.1.{gguf_name}.weight.lora_b")));
        let r = b.shape[1];
        for row in 0..b.shape[0] {
            // GGUF row 2j+t of a head is row t*D/2 + j.
            let (head, i) = (row / d, row % d);
            let from = if is_reordered { head * d + (i % 2) * d / 2 + i / 2 } else { row };
            assert_eq!(found[row * r..][..r], b.values[from * r..][..r], "{module}, row {row}");
        }
    }
}

/// What a runtime computes from the file is what the configuration says, module by module.
/// They loosen the limits of a verification, so they must be about the adapter's own tensors.
#[test]
fn types_that_are_recorded_of_other_tensors_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("a.gguf");
    let done = run(&[&"convert", &adapter("llama-plain"), &"-o", &file, &"--base", &base("llama-plain")]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"layers.0.self_attn.q_proj.lora_A.weight\":";
    let at = bytes.windows(name.len()).rposition(|w| w == name).expect("the types are recorded");
    bytes[at + "layers.".len()] = b'9';
    std::fs::write(&file, bytes).unwrap();
    let out = run(&[&"validate", &file, &"--base", &base("llama-plain")]);
    assert_eq!(exit(&out), 3, "{}", stderr(&out));
    assert!(stderr(&out).contains("ptplus.source_dtypes"), "{}", stderr(&out));
}

#[test]
fn factors_come_out_in_every_file() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&mut RawAdapter);
    let changes: [(&str, Change, usize); 7] = [
        ("llama-alpha-pattern", |_| {}, 4),
        ("llama-rslora-patterns", |_| {}, 7),
        ("llama-plain", |a| a.config["lora_alpha"] = value!(0.3), 0),
        ("llama-plain", |a| a.config["use_rslora"] = value!(true), 0),
        ("llama-plain", |a| a.config["alpha_pattern"] = value!({"v_proj": 0}), 3),
        ("llama-plain", |a| a.config["lora_alpha"] = value!(-4), 0),
        ("llama-plain", |a| drop(a.config.as_object_mut().unwrap().remove("lora_alpha")), 0),
    ];
    for (i, (name, change, n_folded)) in changes.into_iter().enumerate() {
        let folder = variant(name, &temp.path().join(format!("{i}")), change);
        let file = temp.path().join(format!("{i}.gguf"));
        let out = run(&[&"convert", &folder, &"-o", &file, &"--base", &base(name)]);
        assert_eq!(exit(&out), 0, "{i}: {}", stderr(&out));
        let raw = RawAdapter::read(&folder);
        let found = gguf::open(&file).unwrap();
        let folded: Value = match found.metadata.str("ptplus.lora.folded").unwrap() {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => value!({}),
        };
        assert_eq!(folded.as_object().unwrap().len(), n_folded, "{i}: {folded}");
        let alpha = found.metadata.f32("adapter.lora.alpha").unwrap().unwrap();
        let rules = ptplus::adapter::lora::Rules::of(raw.config.as_object().unwrap()).unwrap();
        // v_proj is not reordered, so its values compare one by one.
        for layer in 0..3 {
            let module = format!("model.layers.{layer}.self_attn.v_proj");
            let b = &raw.tensors[&format!("base_model.model.{module}.lora_B.weight")];
            let t = found.tensors.iter().find(|t| t.name == format!("blk.{layer}.attn_v.weight.lora_b")).unwrap();
            let rank = b.shape[1];
            let (stated, runtime) = (rules.scale(&module, rank).factor, runtime_factor(alpha, rank));
            for (x, bytes) in b.values.iter().zip(t.bytes.as_chunks::<4>().0) {
                let (expected, found) = (stated * f64::from(*x), f64::from(runtime * f32::from_le_bytes(*bytes)));
                assert!((expected - found).abs() <= 3e-7 * expected.abs(), "{i}: {expected} and {found}");
            }
        }
        // And back, whether or not the products can be taken apart.
        let back = temp.path().join(format!("{i}-back"));
        assert_eq!(exit(&run(&[&"convert", &file, &"-o", &back])), 0, "{i}");
        let after = RawAdapter::read(&back);
        let after_rules = ptplus::adapter::lora::Rules::of(after.config.as_object().unwrap()).unwrap();
        for (name, b) in raw.tensors.iter().filter(|(name, _)| name.contains("lora_B")) {
            let module = name.trim_start_matches("base_model.model.").trim_end_matches(".lora_B.weight");
            let factor = |rules: &ptplus::adapter::lora::Rules| rules.scale(module, b.shape[1]).factor;
            for (x, y) in b.values.iter().zip(&after.tensors[name].values) {
                let (x, y) = (factor(&rules) * f64::from(*x), factor(&after_rules) * f64::from(*y));
                assert!((x - y).abs() <= 3e-7 * x.abs(), "{i}: {name}: {x} and {y}");
            }
        }
    }
}

#[test]
fn what_no_lora_file_says_is_refused_with_the_way_out() {
    let temp = tempfile::tempdir().unwrap();
    for (name, place) in
        [("llama-dora", "lora_magnitude_vector"), ("llama-bias", "lora_B.bias"), ("llama-saved-head", "lm_head.weight")]
    {
        let file = temp.path().join("out.gguf");
        let out = run(&[&"convert", &adapter(name), &"-o", &file, &"--base", &base(name)]);
        let said = stderr(&out);
        assert_eq!(exit(&out), 7, "{name}: {said}");
        assert!(said.contains(place) && said.contains("convert BASE --merge ADAPTER"), "{name}: {said}");
        assert!(!file.exists(), "{name}");
    }
    // Copies of the base's embedding beside a LoRA of it: whether they were trained, the base tells.
    let out = run(&[&"convert", &adapter("llama-head-embed"), &"-o", &temp.path().join("x.gguf"), &"--arch", &"llama"]);
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    assert!(stderr(&out).contains("--base"), "{}", stderr(&out));
}

#[test]
fn options_of_peft_that_change_the_computation_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    for (key, on) in [
        ("target_parameters", value!(["mlp.experts.down_proj"])),
        ("alora_invocation_tokens", value!([1, 2])),
        ("trainable_token_indices", value!([5])),
        ("layer_replication", value!([[0, 2], [1, 3]])),
        ("megatron_config", value!({"hidden_size": 64})),
        ("use_qalora", value!(true)),
        ("init_lora_weights", value!("pissa")),
        ("init_lora_weights", value!("pissa_niter_4")),
        ("init_lora_weights", value!("olora")),
        ("init_lora_weights", value!("loftq")),
        ("init_lora_weights", value!("corda")),
        ("init_lora_weights", value!("eva")),
    ] {
        let folder = variant("llama-plain", &temp.path().join("a"), |a| a.config[key] = on.clone());
        let (code, found) = document(&[&"validate", &folder, &"--base", &base("llama-plain")]);
        assert_eq!((code, codes(&found)), (7, vec!["config-unsupported".to_owned()]), "{key}: {on}: {found}");
        assert_eq!(found["findings"][0]["place"], key, "{on}");
        let out = run(&[&"convert", &folder, &"-o", &temp.path().join("a.gguf"), &"--base", &base("llama-plain")]);
        assert!(exit(&out) == 7 && stderr(&out).contains(key), "{key}: {}", stderr(&out));
    }
    // What changes nothing in linear layers, or only how training began.
    for (key, value) in [
        ("fan_in_fan_out", value!(true)),
        ("init_lora_weights", value!("gaussian")),
        ("init_lora_weights", value!(false)),
        ("bias", value!("lora_only")),
        ("lora_dropout", value!(0.1)),
        ("exclude_modules", value!(["lm_head"])),
        ("layers_to_transform", value!([0, 1, 2])),
    ] {
        let folder = variant("llama-plain", &temp.path().join("a"), |a| a.config[key] = value.clone());
        let (code, found) = document(&[&"validate", &folder, &"--base", &base("llama-plain")]);
        assert_eq!(code, 0, "{key}: {value}: {found}");
    }
}

const Q: &str = "base_model.model.model.layers.1.self_attn.q_proj";

#[test]
fn what_is_wrong_with_a_lora_has_its_code() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&mut RawAdapter);
    fn tensor(shape: &[usize]) -> Tensor {
        Tensor { shape: shape.to_vec(), values: vec![0.5; shape.iter().product()] }
    }
    let cases: [(&str, Change, i32, &str); 20] = [
        ("alpha NaN", |a| a.config["lora_alpha"] = value!("NaN"), 3, "config-field"),
        ("alpha text", |a| a.config["lora_alpha"] = value!("16"), 3, "config-field"),
        ("alpha beyond F32", |a| a.config["lora_alpha"] = value!(1e300), 3, "config-field"),
        ("alpha 0", |a| a.config["lora_alpha"] = value!(0), 5, "no-effect"),
        ("rank 0", |a| a.config["r"] = value!(0), 3, "config-field"),
        ("huge rank", |a| a.config["r"] = value!(1u64 << 60), 3, "config-field"),
        ("another rank", |a| a.config["r"] = value!(4), 4, "adapter-shape"),
        ("rank pattern of another rank", |a| a.config["rank_pattern"] = value!({"q_proj": 4}), 4, "adapter-shape"),
        ("look-around", |a| a.config["alpha_pattern"] = value!({"(?<=q)_proj": 4}), 7, "config-unsupported"),
        ("no B", |a| drop(a.tensors.remove(&format!("{Q}.lora_B.weight"))), 4, "adapter-missing"),
        ("no A", |a| drop(a.tensors.remove(&format!("{Q}.lora_A.weight"))), 4, "adapter-missing"),
        ("one module missing", |a| a.tensors.retain(|name, _| !name.starts_with(Q)), 4, "adapter-missing"),
        (
            "A and B swapped",
            |a| {
                let (x, y) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
                let (p, q) = (a.tensors.remove(&x).unwrap(), a.tensors.remove(&y).unwrap());
                a.tensors.insert(x, q);
                a.tensors.insert(y, p);
            },
            4,
            "adapter-shape",
        ),
        (
            "ranks differ",
            |a| drop(a.tensors.insert(format!("{Q}.lora_B.weight"), tensor(&[128, 7]))),
            4,
            "adapter-shape",
        ),
        (
            "rows of another base",
            |a| drop(a.tensors.insert(format!("{Q}.lora_B.weight"), tensor(&[96, 8]))),
            4,
            "adapter-shape",
        ),
        (
            "a layer that the base has not",
            |a| {
                for half in ["lora_A", "lora_B"] {
                    let t = a.tensors[&format!("{Q}.{half}.weight")].clone();
                    a.tensors.insert(format!("base_model.model.model.layers.7.self_attn.q_proj.{half}.weight"), t);
                }
            },
            4,
            "adapter-mismatch",
        ),
        (
            "a module that the base has not",
            |a| {
                for half in ["lora_A", "lora_B"] {
                    let t = a.tensors[&format!("{Q}.{half}.weight")].clone();
                    a.tensors.insert(format!("base_model.model.model.layers.1.self_attn.qkv_proj.{half}.weight"), t);
                }
            },
            4,
            "adapter-mismatch",
        ),
        (
            "NaN",
            |a| {
                a.change("layers.1.self_attn.q_proj.lora_B.weight", |t| {
                    let mut t = t.clone();
                    t.values[5] = f32::NAN;
                    t
                })
            },
            3,
            "non-finite",
        ),
        (
            "a word of another method",
            |a| drop(a.tensors.insert(format!("{Q}.lora_E"), tensor(&[8, 1]))),
            4,
            "adapter-left-over",
        ),
        ("DoRA without magnitudes", |a| a.config["use_dora"] = value!(true), 4, "adapter-missing"),
    ];
    for (what, change, expected, code) in cases {
        let folder = variant("llama-plain", &temp.path().join("a"), change);
        let out = run(&[&"validate", &folder, &"--base", &base("llama-plain")]);
        let said = format!("{}{}", stdout(&out), stderr(&out));
        assert_eq!(exit(&out), expected, "{what}: {said}");
        assert!(said.contains(&format!("[{code}]")), "{what}: {said}");
        let file = temp.path().join("a.gguf");
        let out = run(&[&"convert", &folder, &"-o", &file, &"--base", &base("llama-plain")]);
        assert!(exit(&out) == expected && !file.exists(), "{what}: {}", stderr(&out));
    }
    // All at once.
    let folder = variant("llama-plain", &temp.path().join("a"), |a| {
        a.config["use_qalora"] = value!(true);
        a.tensors.remove(&format!("{Q}.lora_B.weight"));
        a.tensors.insert("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight".into(), tensor(&[64, 8]));
    });
    let (code, found) = document(&[&"validate", &folder, &"--base", &base("llama-plain")]);
    let mut found = codes(&found);
    found.sort();
    found.dedup();
    assert_eq!(
        (code, found),
        (7, ["adapter-missing", "adapter-shape", "config-unsupported"].map(str::to_owned).into())
    );
}

/// The same LoRA as a checkpoint of `torch.save`, in shards, in a Trainer's folder and beside what a trainer keeps.
#[test]
fn every_container_holds_the_same_adapter() {
    let temp = tempfile::tempdir().unwrap();
    let raw = RawAdapter::read(&adapter("llama-plain"));
    let digest = |path: &Path| document(&[&"hash", &path]).1["digests"][0]["adapter"].clone();
    let expected = digest(&adapter("llama-plain"));
    let config = serde_json::to_vec(&raw.config).unwrap();
    let folder = |name: &str| {
        let folder = temp.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), &config).unwrap();
        folder
    };
    let bin = folder("bin");
    crate::common::write_checkpoint(&bin.join("adapter_model.bin"), &raw.tensors);
    assert_eq!(digest(&bin), expected);
    // A state dict that another program saved, under a key of the checkpoint.
    let nested = folder("nested");
    let named: std::collections::BTreeMap<String, Tensor> =
        raw.tensors.iter().map(|(name, t)| (format!("state_dict.{name}"), t.clone())).collect();
    crate::common::write_checkpoint(&nested.join("weights.pt"), &named);
    assert_eq!(digest(&nested), expected);
    let shards = folder("shards");
    let mut weight_map = serde_json::Map::new();
    for (i, part) in ["q_proj", "_proj"].into_iter().enumerate() {
        let name = format!("adapter_model-0000{}-of-00002.safetensors", i + 1);
        let is_here = |tensor: &str| tensor.contains("q_proj") == (part == "q_proj");
        let tensors = raw.tensors.iter().filter(|(n, _)| is_here(n)).map(|(n, t)| (n.clone(), t.clone())).collect();
        crate::common::write_safetensors(&shards.join(&name), &tensors);
        weight_map.extend(tensors.keys().map(|n| (n.clone(), value!(name))));
    }
    let index = value!({"metadata": {}, "weight_map": weight_map});
    std::fs::write(shards.join("adapter_model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(digest(&shards), expected);
    let checkpoint = folder("run/checkpoint-500");
    raw.write(&checkpoint);
    for name in ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"] {
        std::fs::write(checkpoint.join(name), b"?").unwrap();
    }
    std::fs::write(checkpoint.join("trainer_state.json"), b"{}").unwrap();
    assert_eq!(digest(&checkpoint), expected);
    // Beside the base's weights, as FSDP leaves them: those of the base are no part of it, others are.
    let whole = folder("whole");
    let mut tensors = raw.tensors.clone();
    let base_file = base("llama-plain").join("model.safetensors");
    for (name, t) in crate::common::read_safetensors(&base_file) {
        let wrapped = name.contains("_proj").then(|| name.replace(".weight", ".base_layer.weight"));
        tensors.insert(format!("base_model.model.{}", wrapped.unwrap_or(name)), t);
    }
    crate::common::write_safetensors(&whole.join("adapter_model.safetensors"), &tensors);
    let (file, base) = (temp.path().join("w.gguf"), base("llama-plain"));
    let out = run(&[&"convert", &whole, &"-o", &file, &"--base", &base]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(digest(&file)["values"], expected["values"]);
    tensors.get_mut("base_model.model.model.norm.weight").unwrap().values[3] += 0.5;
    crate::common::write_safetensors(&whole.join("adapter_model.safetensors"), &tensors);
    let out = run(&[&"convert", &whole, &"-o", &file, &"--base", &base, &"--force"]);
    assert!(exit(&out) == 7 && stderr(&out).contains("model.norm.weight"), "{}", stderr(&out));
}

/// What other converters get wrong: the shapes fit, the numbers do not.
#[test]
fn every_silent_mistake_is_exit_5() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-rslora-patterns";
    type Change = fn(&mut RawAdapter);
    let mutations: [(&str, Change); 5] = [
        ("nothing", |_| {}),
        ("alpha / r", |a| a.config["use_rslora"] = value!(false)),
        ("patterns ignored", |a| a.config["alpha_pattern"] = value!({})),
        ("rows of q in the file's order", |a| {
            let order: Vec<usize> = (0..128).map(|row| row / 32 * 32 + row % 2 * 16 + row % 32 / 2).collect();
            a.change("q_proj.lora_B.weight", |t| t.permuted(0, &order));
        }),
        ("alpha of the first module for all", |a| {
            a.config["use_rslora"] = value!(false);
            a.config["alpha_pattern"] = value!({});
            a.config["lora_alpha"] = value!(45);
        }),
    ];
    for (what, change) in mutations {
        let folder = variant(name, &temp.path().join("a"), change);
        let probe = case(name).join("probe.safetensors");
        let out = run(&[&"verify", &folder, &"--base", &base(name), &"--probe", &probe]);
        assert_eq!(exit(&out), if what == "nothing" { 0 } else { 5 }, "{what}: {}{}", stdout(&out), stderr(&out));
    }
}

/// A file of llama.cpp's converter says neither configuration nor the length of a head.
#[test]
fn a_file_of_another_converter_is_read_with_its_base() {
    let temp = tempfile::tempdir().unwrap();
    let (ours, theirs, back) = (temp.path().join("a.gguf"), temp.path().join("b.gguf"), temp.path().join("back"));
    let base = base("llama-plain");
    assert_eq!(exit(&run(&[&"convert", &adapter("llama-plain"), &"-o", &ours, &"--base", &base])), 0);
    let found = gguf::open(&ours).unwrap();
    let mut metadata = gguf::Metadata::default();
    for key in ["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"] {
        metadata.insert(key, found.metadata.get(key).unwrap().clone());
    }
    let specs: Vec<_> = (found.tensors.iter())
        .map(|t| ptplus::format::TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
        .collect();
    let plan = gguf::plan(&metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for (planned, t) in plan.tensors.iter().zip(&found.tensors) {
        bytes[planned.file_offset as usize..][..t.bytes.len()].copy_from_slice(&t.bytes);
    }
    std::fs::write(&theirs, bytes).unwrap();
    let (code, said) = document(&[&"validate", &theirs]);
    assert_eq!((code, codes(&said)), (7, vec!["row-order-unknown".to_owned()]));
    assert_eq!(document(&[&"validate", &theirs, &"--base", &base]).0, 0);
    let (code, said) = document(&[&"diff", &ours, &theirs]);
    assert_eq!(code, 7, "{said}");
    assert!(said["error"]["message"].as_str().unwrap_or_default().contains("--base"), "{said}");
    assert_eq!(document(&[&"diff", &ours, &theirs, &"--base", &base]).0, 0);
    let hash = document(&[&"hash", &ours, &theirs, &"--base", &base]).1;
    assert_eq!(hash["digests"][0]["adapter"], hash["digests"][1]["adapter"]);
    let without = &document(&[&"hash", &theirs]).1["digests"][0];
    assert!(without["adapter"].is_null() && without["note"].as_str().unwrap().contains("--base"), "{without}");
    let out = run(&[&"convert", &theirs, &"-o", &back, &"--base", &base]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let (before, after) = (RawAdapter::read(&adapter("llama-plain")), RawAdapter::read(&back));
    assert_eq!(before.tensors, after.tensors);
    assert_eq!((&after.config["r"], &after.config["lora_alpha"]), (&value!(8), &value!(16)));
    // What PEFT would add to, and so what a reader of the folder expects.
    assert_eq!(document(&[&"validate", &back, &"--base", &base]).0, 0);
}

/// What a file is quantized from, hashed, packed: the same adapter all along.
#[test]
fn the_other_commands_know_a_lora() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-rslora-patterns";
    let (probe, base) = (case(name).join("probe.safetensors"), base(name));
    let (file, quantized) = (temp.path().join("a.gguf"), temp.path().join("q.gguf"));
    assert_eq!(exit(&run(&[&"convert", &adapter("llama-plain"), &"-o", &file, &"--base", &base])), 0);
    // No base: the file knows how long a head is.
    let out = run(&[&"quantize", &file, &"q8_0", &"-o", &quantized]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let found = gguf::open(&quantized).unwrap();
    for t in &found.tensors {
        // Rows of B are r = 8 long, which is no block.
        let expected = if t.name.ends_with("lora_a") { "Q8_0" } else { "F16" };
        assert_eq!(t.dtype.name(), expected, "{}", t.name);
    }
    assert!(stderr(&out).contains("F16") || stdout(&out).contains("F16"), "{}{}", stdout(&out), stderr(&out));
    let digest = |path: &Path| document(&[&"hash", &path]).1["digests"][0]["adapter"]["values"].clone();
    assert!(digest(&file).is_string());
    assert_eq!(digest(&file), digest(&adapter("llama-plain")));
    assert_ne!(digest(&file), digest(&adapter("llama-alpha-pattern")));
    assert_eq!(document(&[&"diff", &file, &adapter("llama-plain")]).0, 0);
    assert_ne!(document(&[&"diff", &adapter("llama-alpha-pattern"), &adapter("llama-plain")]).0, 0);
    // With factors folded into B it is the same adapter still, and one of another factor is not.
    let folded = temp.path().join("folded.gguf");
    assert_eq!(exit(&run(&[&"convert", &adapter("llama-alpha-pattern"), &"-o", &folded, &"--base", &base])), 0);
    for (other, expected) in [
        (adapter("llama-alpha-pattern"), 0),
        (
            variant("llama-alpha-pattern", &temp.path().join("v"), |a| {
                a.config["alpha_pattern"]["o_proj"] = value!(21)
            }),
            5,
        ),
    ] {
        assert_eq!(document(&[&"diff", &folded, &other]).0, expected, "{}", other.display());
        assert_eq!(document(&[&"verify", &other, &"--against", &folded]).0, expected, "{}", other.display());
    }
    let (bundle, unpacked) = (temp.path().join("b.tar"), temp.path().join("b"));
    let out = run(&[&"pack", &adapter(name), &"--base", &base, &"--probe", &probe, &"-o", &bundle]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(exit(&run(&[&"check", &bundle, &"--base", &base])), 0);
    assert_eq!(exit(&run(&[&"unpack", &bundle, &"-o", &unpacked])), 0);
    let manifest: Value = serde_json::from_slice(&std::fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["adapter"]["type"], &manifest["adapter"]["num_modules"]), (&value!("lora"), &value!(21)));
    assert_eq!(manifest["adapter"]["ranks"], value!([4, 8, 12]));
    let card = std::fs::read_to_string(unpacked.join("README.md")).unwrap();
    assert!(card.contains("# LoRA for") && card.contains("--lora adapter.gguf"), "{card}");
    assert_eq!(exit(&run(&[&"verify", &unpacked, &"--base", &base, &"--probe", &probe])), 0);
}

#[test]
fn a_lora_without_its_configuration_is_undecided() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("adapter_model.safetensors");
    std::fs::copy(adapter("llama-plain").join("adapter_model.safetensors"), &file).unwrap();
    for path in [temp.path(), &file] {
        let out = run(&[&"validate", &path]);
        assert!(exit(&out) == 7 && stderr(&out).contains("adapter_config.json"), "{}", stderr(&out));
    }
}

#[test]
fn names_of_wrappers_and_adapters_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let renamed = |rename: &dyn Fn(&str) -> String| {
        variant("llama-plain", &temp.path().join("a"), |a| {
            a.tensors = a.tensors.iter().map(|(name, t)| (rename(name), t.clone())).collect();
        })
    };
    let expected = document(&[&"hash", &adapter("llama-plain")]).1["digests"][0]["adapter"].clone();
    assert!(expected["canonical"].is_string(), "{expected}");
    for rename in [
        &(|n: &str| n.replace(".weight", ".default.weight")) as &dyn Fn(&str) -> String,
        &|n: &str| n.replace(".weight", ".pirate.weight"),
        &|n: &str| format!("_orig_mod.{n}"),
        &|n: &str| format!("module.{n}"),
        &|n: &str| n.replace("base_model.model.", ""),
        &|n: &str| n.replace("base_model.model.model.", "base_model.model."),
        &|n: &str| n.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    ] {
        let folder = renamed(rename);
        let (code, found) = document(&[&"hash", &folder]);
        assert_eq!((code, &found["digests"][0]["adapter"]), (0, &expected), "{}", rename("base_model.model.x.weight"));
    }
    // Of two adapters nobody says which.
    let folder = renamed(&|n| n.replace(".weight", if n.contains("q_proj") { ".a.weight" } else { ".b.weight" }));
    let out = run(&[&"validate", &folder]);
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
}
