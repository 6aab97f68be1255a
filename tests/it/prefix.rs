//! Virtual tokens: what PEFT saves of Prefix-Tuning, prompt tuning and P-Tuning, read, checked, converted both ways, and held
//! against PyTorch's answers.

use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, fixtures, json, ptplus, stderr, write_safetensors};
use ptplus::format::gguf;
use serde_json::{Value, json as value};

/// Every case with its base.
const CASES: [(&str, &str); 10] = [
    ("llama-prefix", "lora/llama-dora"),
    ("llama-prompt", "lora/llama-dora"),
    ("mistral-prefix", "models/mistral-swa"),
    ("mistral-prompt", "models/mistral-swa"),
    ("qwen2-prefix-projected", "models/qwen2"),
    ("qwen3-ptuning", "lora/qwen3-all-linear"),
    ("granite-prompt", "models/granite"),
    ("gemma3-prompt", "models/gemma3"),
    ("gemma2-prefix", "models/gemma2"),
    ("gemma3-prefix", "models/gemma3"),
];

fn case(name: &str) -> PathBuf {
    fixtures().join("prefix").join(name)
}

fn adapter(name: &str) -> PathBuf {
    case(name).join("adapter")
}

fn probe(name: &str) -> PathBuf {
    case(name).join("probe.safetensors")
}

fn base(name: &str) -> PathBuf {
    let (_, base) = CASES.iter().find(|(n, _)| *n == name).unwrap();
    fixtures().join(base).join("base")
}

fn run(args: &[&dyn AsRef<Path>]) -> std::process::Output {
    ptplus(args.iter().map(|a| a.as_ref().as_os_str()))
}

fn document(args: &[&dyn AsRef<Path>]) -> (i32, Value) {
    json(args.iter().map(|a| a.as_ref().as_os_str()))
}

/// A case, changed and written to `folder`.
fn variant(name: &str, folder: &Path, change: impl FnOnce(&mut RawAdapter)) -> PathBuf {
    let mut raw = RawAdapter::read(&adapter(name));
    change(&mut raw);
    raw.write(folder);
    folder.to_owned()
}

fn max_abs(path: &Path, name: &str) -> (i32, f64) {
    let (code, report) = document(&[&"verify", &path, &"--base", &base(name), &"--probe", &probe(name)]);
    (code, report["metrics"]["max_abs"].as_f64().unwrap_or(f64::NAN))
}

#[test]
fn both_forms_compute_what_pytorch_computes() {
    let temp = tempfile::tempdir().unwrap();
    for (name, _) in CASES {
        let (file, back) = (temp.path().join(format!("{name}.gguf")), temp.path().join(name));
        let out = run(&[&"convert", &adapter(name), &"-o", &file, &"--base", &base(name), &"--probe", &probe(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        let out = run(&[&"convert", &file, &"-o", &back]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        for path in [&adapter(name), &file, &back] {
            let (code, max) = max_abs(path, name);
            assert!(code == 0 && max <= 2e-4, "{name}: {}: {max}", path.display());
        }
        // What PEFT reads is what it was.
        let (before, after) = (RawAdapter::read(&adapter(name)), RawAdapter::read(&back));
        assert_eq!((before.config, before.tensors), (after.config, after.tensors), "{name}");
        let out = run(&[&"diff", &file, &adapter(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
    }
}

#[test]
fn keys_are_in_the_order_of_the_architecture_and_values_are_not() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-prefix";
    let file = temp.path().join("a.gguf");
    assert_eq!(exit(&run(&[&"convert", &adapter(name), &"-o", &file, &"--base", &base(name)])), 0);
    let found = gguf::open(&file).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let t = found.tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!(*t.shape, [2, 5, 32]);
        t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let raw = RawAdapter::read(&adapter(name));
    let embeddings = &raw.tensors["prompt_embeddings"].values;
    // [P, L, 2, H_kv, D]
    let at = |token: usize, layer: usize, half: usize, head: usize, i: usize| {
        embeddings[((((token * 3) + layer) * 2 + half) * 2 + head) * 32 + i]
    };
    for (half, tensor) in [(0, "blk.1.attn_prefix_key.weight"), (1, "blk.1.attn_prefix_value.weight")] {
        let found = values(tensor);
        for (head, token, i) in (0..2).flat_map(|h| (0..5).flat_map(move |t| (0..32).map(move |i| (h, t, i)))) {
            let from = if half == 0 { (i % 2) * 16 + i / 2 } else { i };
            assert_eq!(
                found[(head * 5 + token) * 32 + i],
                at(token, 1, half, head, from),
                "{tensor} {head} {token} {i}"
            );
        }
    }
}

/// Each is what a converter could get wrong.
#[test]
fn wrong_readings_do_not_pass() {
    let temp = tempfile::tempdir().unwrap();
    for (name, half) in [("llama-prefix", 0), ("qwen2-prefix-projected", 0), ("llama-prefix", 1)] {
        let raw = RawAdapter::read(&adapter(name));
        let t = &raw.tensors["prompt_embeddings"];
        let (n_layers, n_heads) = (raw.config["num_layers"].as_u64().unwrap() as usize, 2);
        let d = t.shape[1] / n_layers / 2 / n_heads;
        let permuted = |order: &dyn Fn(usize, usize, usize, usize) -> usize| {
            let order: Vec<usize> = (0..t.shape[1])
                .map(|x| {
                    let (layer, of_half, head, i) = (x / d / n_heads / 2, x / d / n_heads % 2, x / d % n_heads, x % d);
                    order(layer, of_half, head, i)
                })
                .collect();
            let mut changed = raw.clone();
            changed.tensors.insert("prompt_embeddings".into(), t.permuted(1, &order));
            changed
        };
        let at = |layer: usize, of_half: usize, head: usize, i: usize| ((layer * 2 + of_half) * n_heads + head) * d + i;
        let wrong = [
            (
                "components reordered",
                permuted(&|l, h, n, i| at(l, h, n, if h == half { i % 2 * (d / 2) + i / 2 } else { i })),
            ),
            ("heads exchanged", permuted(&|l, h, n, i| at(l, h, if h == half { 1 - n } else { n }, i))),
            ("keys and values exchanged", permuted(&|l, h, n, i| at(l, 1 - h, n, i))),
            ("layers exchanged", permuted(&|l, h, n, i| at(n_layers - 1 - l, h, n, i))),
        ];
        for (what, raw) in wrong {
            let folder = temp.path().join(what);
            raw.write(&folder);
            let (code, max) = max_abs(&folder, name);
            assert!(code == 5 && max > 0.01, "{name}: {what}: {code}, {max}");
        }
    }
    // One token less: everything behind is a position off.
    for name in ["llama-prefix", "llama-prompt"] {
        let folder = temp.path().join(format!("{name}-short"));
        variant(name, &folder, |raw| {
            let t = raw.tensors.get_mut("prompt_embeddings").unwrap();
            let n = t.shape[0] - 1;
            *t = t.permuted(0, &(0..n).collect::<Vec<_>>());
            raw.config["num_virtual_tokens"] = n.into();
        });
        assert_eq!(max_abs(&folder, name).0, 5, "{name}");
    }
}

#[test]
fn sizes_of_another_base_or_of_an_older_peft_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-prefix"; // 4 heads, 2 for keys, of 32; hidden size 64
    let sized = |folder: &str, n_layers: usize, n_heads: usize, width: usize| {
        variant(name, &temp.path().join(folder), |raw| {
            let t = raw.tensors.get_mut("prompt_embeddings").unwrap();
            t.shape = vec![5, n_layers * 2 * width];
            t.values = vec![0.5; 5 * n_layers * 2 * width];
            raw.config["num_layers"] = n_layers.into();
            raw.config["num_attention_heads"] = n_heads.into();
            raw.config["token_dim"] = width.into();
        })
    };
    for (path, place, text) in [
        (sized("layers", 2, 2, 64), "num_layers", "2"),
        (sized("before 0.12", 3, 4, 64), "num_attention_heads", "PEFT before 0.12"),
        (sized("before 0.18", 3, 2, 32), "head_dim", "PEFT before 0.18"),
        (adapter("qwen3-ptuning"), "", ""),
    ] {
        let (code, found) = document(&[&"validate", &path, &"--base", &base(name)]);
        if place.is_empty() {
            // Embeddings fit any base of the same hidden size.
            assert_eq!(code, 0, "{found}");
            continue;
        }
        assert_eq!(code, 4, "{}: {found}", path.display());
        let findings = found["findings"].as_array().unwrap();
        let of_place = findings.iter().find(|f| f["place"] == place).unwrap_or_else(|| panic!("{place}: {found}"));
        assert!(of_place["found"].as_str().unwrap().contains(text), "{of_place}");
    }
    // The same heads and elements for one of all heads, so that only the configuration tells.
    let (code, _) = document(&[&"validate", &sized("the same", 3, 2, 64), &"--base", &base(name)]);
    assert_eq!(code, 0);
    let (code, _) = document(&[&"validate", &adapter("mistral-prompt"), &"--base", &base("qwen2-prefix-projected")]);
    assert_eq!(code, if hidden("mistral-prompt") == hidden("qwen2-prefix-projected") { 0 } else { 4 });
}

fn hidden(name: &str) -> u64 {
    let text = std::fs::read(base(name).join("config.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["hidden_size"].as_u64().unwrap()
}

#[test]
fn quantized_tokens_are_held_to_the_bounds_of_their_type() {
    let temp = tempfile::tempdir().unwrap();
    for (name, _) in CASES {
        for (dtype, limit) in [("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.2)] {
            let file = temp.path().join(format!("{name}-{dtype}.gguf"));
            let out = run(&[&"quantize", &adapter(name), &"-o", &file, &dtype, &"--base", &base(name)]);
            assert_eq!(exit(&out), 0, "{name} {dtype}: {}", stderr(&out));
            let (code, max) = max_abs(&file, name);
            assert!(code == 0 && max <= limit, "{name} {dtype}: {code}, {max}");
            let back = temp.path().join(format!("{name}-{dtype}"));
            let out = run(&[&"convert", &file, &"-o", &back]);
            assert_eq!(exit(&out), 0, "{name} {dtype}: {}", stderr(&out));
            let (_, again) = max_abs(&back, name);
            assert!((max - again).abs() <= 1e-5, "{name} {dtype}: {max} and {again}");
        }
    }
}

#[test]
fn a_bundle_of_virtual_tokens_is_checked_and_hashed_like_any() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama-prefix", "qwen3-ptuning"] {
        let bundle = temp.path().join(name);
        let out = run(&[&"pack", &adapter(name), &"-o", &bundle, &"--base", &base(name), &"--probe", &probe(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        let out = run(&[&"check", &bundle, &"--base", &base(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        let manifest: Value = serde_json::from_slice(&std::fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["adapter"]["type"], "virtual_tokens");
        let card = std::fs::read_to_string(bundle.join("README.md")).unwrap();
        assert!(
            card.contains("virtual tokens in front of every sequence") && !card.contains("Prefix-Tuning+"),
            "{card}"
        );
        assert_eq!(max_abs(&bundle, name).0, 0);
        let digest = |path: &Path| document(&[&"hash", &path]).1["digests"][0]["adapter"]["canonical"].clone();
        assert_eq!(digest(&bundle), digest(&adapter(name)), "{name}");
        assert!(digest(&bundle).is_string());
    }
}

#[test]
fn what_virtual_tokens_cannot_do_is_refused_with_the_reason() {
    let temp = tempfile::tempdir().unwrap();
    let (name, out) = ("llama-prefix", temp.path().join("out.gguf"));
    let (a, base) = (adapter(name), base(name));
    let lora = fixtures().join("lora/llama-plain/adapter");
    for (code, text, args) in [
        (7, "attention is not linear", vec![&"combine" as &dyn AsRef<Path>, &a, &a, &"-o", &out]),
        (7, "cannot be merged", vec![&"convert", &base, &"--merge", &a, &"-o", &out]),
        (7, "--auto", vec![&"quantize", &a, &"-o", &out, &"--auto", &"KL=1e-3", &"--base", &base]),
        (2, "no conventions", vec![&"convert", &a, &"-o", &out, &"--base", &base, &"--query-tap", &"post_rope"]),
        (7, "--base", vec![&"convert", &a, &"-o", &out]),
        (7, "one kind", vec![&"combine", &a, &lora, &"-o", &out]),
    ] {
        let found = run(&args);
        assert_eq!(exit(&found), code, "{}", stderr(&found));
        assert!(stderr(&found).contains(text), "{text}: {}", stderr(&found));
        assert!(!out.exists());
    }
}

/// `Trainer` leaves its state beside what `save_pretrained` writes, and older PEFT a `.bin`; a model's own state has its weights.
#[test]
fn checkpoints_are_read_like_folders() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-prefix";
    let checkpoint = variant(name, &temp.path().join("checkpoint-10"), |_| {});
    for file in ["optimizer.pt", "trainer_state.json", "training_args.bin"] {
        std::fs::write(checkpoint.join(file), "x").unwrap();
    }
    assert_eq!(max_abs(&checkpoint, name).0, 0);
    let state = variant(name, &temp.path().join("state"), |raw| {
        let t = raw.tensors.remove("prompt_embeddings").unwrap();
        raw.tensors.insert("prompt_encoder.default.embedding.weight".into(), t);
        let weights = crate::common::read_safetensors(&base(name).join("model.safetensors"));
        for (name, t) in weights.into_iter().filter(|(name, _)| name.contains("norm")) {
            raw.tensors.insert(format!("base_model.model.{name}"), t);
        }
    });
    assert_eq!(max_abs(&state, name).0, 0);
    // A base that was trained, too.
    let trained = temp.path().join("trained");
    let mut raw = RawAdapter::read(&state);
    raw.tensors.get_mut("base_model.model.model.norm.weight").unwrap().values[0] += 1.0;
    raw.write(&trained);
    let (code, found) = document(&[&"validate", &trained, &"--base", &base(name)]);
    assert_eq!(code, 4, "{found}");
    // What a network turns into virtual tokens is none.
    let projected = variant("qwen2-prefix-projected", &temp.path().join("projected"), |raw| {
        let t = raw.tensors.remove("prompt_embeddings").unwrap();
        raw.tensors.insert("prompt_encoder.default.embedding.weight".into(), t);
    });
    let (code, found) = document(&[&"validate", &projected]);
    assert_eq!((code, &found["findings"][0]["code"]), (7, &value!("config-unsupported")), "{found}");
}

/// A base of one layer with a window, whose family multiplies its embeddings.
fn small_gemma(kind: &str, folder: &Path) -> PathBuf {
    let (hidden, heads, kv, d, inner, vocab) = (8, 2, 1, 4, 8, 16);
    let config = value!({
        "model_type": kind, "architectures": [if kind == "gemma2" { "Gemma2ForCausalLM" } else { "Gemma3ForCausalLM" }],
        "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": d, "intermediate_size": inner,
        "vocab_size": vocab, "num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": 4, "dtype": "float32",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "max_position_embeddings": 64, "attention_bias": false,
        "rope_theta": 10000.0,
    });
    let mut tensors = std::collections::BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i + name.len()) as f32 * 0.7).sin() * 0.3).collect();
        tensors.insert(format!("model.{name}.weight"), Tensor { shape: shape.to_vec(), values });
    };
    add("embed_tokens", &[vocab, hidden]);
    add("norm", &[hidden]);
    for norm in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
        add(&format!("layers.0.{norm}_layernorm"), &[hidden]);
    }
    for (name, rows, columns) in [
        ("self_attn.q_proj", heads * d, hidden),
        ("self_attn.k_proj", kv * d, hidden),
        ("self_attn.v_proj", kv * d, hidden),
        ("self_attn.o_proj", hidden, heads * d),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    ] {
        add(&format!("layers.0.{name}"), &[rows, columns]);
    }
    if kind != "gemma2" {
        ["q", "k"].iter().for_each(|part| add(&format!("layers.0.self_attn.{part}_norm"), &[d]));
    }
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_safetensors(&folder.join("model.safetensors"), &tensors);
    folder.to_owned()
}

#[test]
fn bases_that_treat_virtual_tokens_in_ways_of_their_own_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let made = |method: &str, row_len: usize, more: Value| {
        let folder = temp.path().join(method);
        let mut config = value!({"peft_type": method, "task_type": "CAUSAL_LM", "num_virtual_tokens": 2});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let values = (0..2 * row_len).map(|i| (i as f32).cos()).collect();
        let tensors = [("prompt_embeddings".to_owned(), Tensor { shape: vec![2, row_len], values })];
        RawAdapter { config, tensors: tensors.into_iter().collect() }.write(&folder);
        folder
    };
    let prefix = made("PREFIX_TUNING", 8, value!({"num_layers": 1, "num_attention_heads": 1, "token_dim": 4}));
    let prompt = made("PROMPT_TUNING", 8, value!({"token_dim": 8}));
    let state = temp.path().join("a.bin");
    for (kind, adapter, code) in [
        // Which of the two a file was trained with, nothing says.
        ("gemma2", &prompt, 7),
        ("gemma3_text", &prompt, 0),
        ("gemma2", &prefix, 0),
        ("gemma3_text", &prefix, 0),
    ] {
        let base = small_gemma(kind, &temp.path().join(kind));
        let valid = run(&[&"validate", adapter, &"--base", &base]);
        assert_eq!(exit(&valid), 0, "{kind}: {}", stderr(&valid));
        let beside = run(&[&"verify", adapter, &"--base", &base, &"--against", adapter]);
        let out = run(&[&"convert", adapter, &"--base", &base, &"-o", &state, &"--to", &"llama-state"]);
        for out in [beside, out] {
            assert_eq!(exit(&out), code, "{kind}: {}", stderr(&out));
            assert_eq!(stderr(&out).contains("version 4 multiplies"), code == 7, "{kind}: {}", stderr(&out));
        }
        assert_eq!(state.exists(), code == 0);
        let _ = std::fs::remove_file(&state);
    }
}
