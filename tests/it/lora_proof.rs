//! LoRA held against PyTorch's answers: what is right passes, what is wrong in one way does not; merged bases too.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, fixtures, json, ptplus, read_safetensors, stderr, write_safetensors};
use serde_json::{Value, json as value};

/// Cases with base and probe.
const CASES: [&str; 7] = [
    "llama-rslora-patterns",
    "llama-head-embed",
    "llama-dora",
    "qwen3-all-linear",
    "phi3-fused",
    "qwen2-moe-shared",
    "gemma2-keys",
];
const MAX_ABS: f64 = 2e-4;

fn case(name: &str) -> PathBuf {
    fixtures().join("lora").join(name)
}

/// Its own, or one of those beside Prefix-Tuning+ adapters.
fn base(name: &str) -> PathBuf {
    match name {
        "phi3-fused" => crate::common::model("phi3").join("base"),
        "gemma2-keys" => crate::common::model("gemma2").join("base"),
        "qwen2-moe-shared" => crate::common::model("qwen2-moe").join("base"),
        _ => case(name).join("base"),
    }
}

fn verify(name: &str, adapter: &Path) -> (i32, Value) {
    let (base, probe) = (base(name), case(name).join("probe.safetensors"));
    json([
        "verify".as_ref(),
        adapter.as_os_str(),
        "--base".as_ref(),
        base.as_os_str(),
        "--probe".as_ref(),
        probe.as_os_str(),
    ])
}

fn merge(base: &Path, adapter: &str, output: &Path, more: &[&Path]) -> std::process::Output {
    let args = ["convert".as_ref(), base.as_os_str(), "--merge".as_ref(), adapter.as_ref(), "-o".as_ref()];
    let probe = more.iter().flat_map(|p| ["--probe".as_ref(), p.as_os_str()]);
    ptplus(args.into_iter().chain([output.as_os_str()]).chain(probe))
}

#[test]
fn every_case_computes_what_pytorch_computes_beside_the_base() {
    for name in CASES {
        let (code, report) = verify(name, &case(name).join("adapter"));
        assert_eq!(code, 0, "{name}: {report}");
        assert!(report["metrics"]["max_abs"].as_f64().unwrap() <= MAX_ABS, "{name}: {report}");
    }
}

#[test]
fn every_case_computes_the_same_merged_into_a_folder_or_a_gguf_file() {
    let temp = tempfile::tempdir().unwrap();
    for name in CASES {
        let (base, adapter, probe) = (base(name), case(name).join("adapter"), case(name).join("probe.safetensors"));
        let gguf = temp.path().join(format!("{name}.gguf"));
        let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), gguf.as_os_str()]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        for (i, base) in [&base, &gguf].into_iter().enumerate() {
            let output = temp.path().join(format!("{name}-{i}.gguf"));
            let (code, done) = json([
                "convert".as_ref(),
                base.as_os_str(),
                "--merge".as_ref(),
                adapter.as_os_str(),
                "-o".as_ref(),
                output.as_os_str(),
                "--probe".as_ref(),
                probe.as_os_str(),
            ]);
            assert_eq!(code, 0, "{name}: {done}");
            let found = done["verification"]["metrics"]["max_abs"].as_f64().unwrap();
            assert!(found <= MAX_ABS, "{name}, {}: {found}", base.display());
            // Anybody can ask again, with the base and without; the base by itself is not the merged model.
            let model = |model: &Path, base: Option<&Path>| {
                let beside = base.iter().flat_map(|base| ["--base".as_ref(), base.as_os_str()]);
                let args = ["verify".as_ref(), model.as_os_str(), "--probe".as_ref(), probe.as_os_str()];
                json(args.into_iter().chain(beside))
            };
            for (base, has_figures) in [(Some(base.as_path()), true), (None, false)] {
                let (code, report) = model(&output, base);
                assert_eq!((code, report["metrics"]["max_abs"].as_f64()), (0, Some(found)), "{name}: {report}");
                assert_eq!(report["base_metrics"].is_object(), has_figures, "{report}");
            }
            let (code, report) = model(base, None);
            assert_eq!(code, 5, "{name}: {report}");
        }
    }
}

#[test]
fn a_merge_that_the_probe_does_not_confirm_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-rslora-patterns";
    let (base, adapter, probe) = (base(name), case(name).join("adapter"), case(name).join("probe.safetensors"));
    let output = temp.path().join("merged.gguf");
    for scale in ["0.5", "0", "-1"] {
        let out = merge(&base, &format!("{}:{scale}", adapter.display()), &output, &[&probe]);
        assert_eq!(exit(&out), 5, "{scale}: {}", stderr(&out));
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "{scale}");
    }
    // A factor twice a half is the whole.
    let half = format!("{}:0.5", adapter.display());
    let args =
        ["convert".as_ref(), base.as_os_str(), "--merge".as_ref(), half.as_ref(), "--merge".as_ref(), half.as_ref()];
    let rest = ["-o".as_ref(), output.as_os_str(), "--probe".as_ref(), probe.as_os_str()];
    let out = ptplus(args.into_iter().chain(rest));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

/// A copy of a case's adapter, changed.
fn changed(name: &str, folder: &Path, change: impl FnOnce(&mut RawAdapter)) -> PathBuf {
    let _ = fs::remove_dir_all(folder);
    let mut raw = RawAdapter::read(&case(name).join("adapter"));
    change(&mut raw);
    raw.write(folder);
    folder.to_owned()
}

fn transposed(t: &Tensor) -> Tensor {
    let [rows, columns] = t.shape[..] else { panic!("two dimensions") };
    let values = (0..columns).flat_map(|c| (0..rows).map(move |r| t.values[r * columns + c])).collect();
    Tensor { shape: vec![columns, rows], values }
}

#[test]
fn every_way_to_be_wrong_fails() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("adapter");
    let rslora = "llama-rslora-patterns";
    let qwen3 = "qwen3-all-linear";
    type Change = fn(&mut RawAdapter);
    let mutations: [(&str, &str, Change); 6] = [
        ("scale off by sqrt(r)", rslora, |a| a.config["use_rslora"] = value!(false)),
        ("alpha ignored", qwen3, |a| a.config["lora_alpha"] = a.config["r"].clone()),
        ("patterns ignored", rslora, |a| a.config["alpha_pattern"] = value!({})),
        ("A and B swapped", qwen3, |a| {
            for layer in 0..2 {
                let name =
                    |half: &str| format!("base_model.model.model.layers.{layer}.self_attn.k_proj.lora_{half}.weight");
                let (old_a, old_b) = (a.tensors[&name("A")].clone(), a.tensors[&name("B")].clone());
                a.tensors.insert(name("A"), transposed(&old_b));
                a.tensors.insert(name("B"), transposed(&old_a));
            }
        }),
        ("B's rows in the order of GGUF", rslora, |a| {
            // Two halves to pairs, in every head of 32.
            let order = |n: usize| -> Vec<usize> {
                (0..n).map(|row| row / 32 * 32 + row % 32 % 2 * 16 + row % 32 / 2).collect()
            };
            for suffix in ["q_proj.lora_B.weight", "k_proj.lora_B.weight"] {
                a.change(suffix, |t| t.permuted(0, &order(t.shape[0])));
            }
        }),
        ("one module missing", rslora, |a| {
            a.tensors.retain(|name, _| !name.contains("layers.1.self_attn.v_proj"));
            // Which would tell before anything is run.
            a.config["target_modules"] = value!(null);
        }),
    ];
    for (what, name, change) in mutations {
        let adapter = changed(name, &folder, change);
        let (code, report) = verify(name, &adapter);
        assert_eq!(code, 5, "{what}: {report}");
    }
    let adapter = changed(rslora, &folder, |_| {});
    assert_eq!(verify(rslora, &adapter).0, 0, "unchanged");
}

/// The factors of a LoRA are both rounded: limits have room for that, and for nothing else.
#[test]
fn rounded_types_pass_and_mistakes_in_them_do_not() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, output) = (temp.path().join("adapter"), temp.path().join("out.gguf"));
    for name in CASES.into_iter().filter(|name| *name != "llama-dora") {
        let wrong = changed(name, &folder, |a| {
            let b: Vec<_> =
                a.tensors.iter_mut().filter(|(n, _)| n.contains("lora_B") || n.contains("embedding_B")).collect();
            b.into_iter().for_each(|(_, t)| t.values.iter_mut().for_each(|v| *v *= 0.9));
        });
        for outtype in ["f16", "bf16", "q8_0", "q4_0"] {
            for (adapter, code) in [(&case(name).join("adapter"), 0), (&wrong, 5)] {
                if code == 5 && outtype == "q4_0" {
                    continue; // smaller than what the type does: docs/VERIFY.md
                }
                let (base, probe) = (base(name), case(name).join("probe.safetensors"));
                let paths = [adapter, &output, &base, &probe].map(|p| p.to_str().unwrap().to_owned());
                let [adapter, output, base, probe] = paths.each_ref().map(String::as_str);
                let out = ptplus([
                    "convert",
                    adapter,
                    "-o",
                    output,
                    "--base",
                    base,
                    "--probe",
                    probe,
                    "--outtype",
                    outtype,
                    "--force",
                ]);
                assert_eq!(exit(&out), code, "{name} {outtype}: {}", stderr(&out));
            }
        }
    }
}

/// Also where the query projections are the same.
#[test]
fn a_lora_notices_another_base() {
    let temp = tempfile::tempdir().unwrap();
    let name = "qwen3-all-linear";
    let (base, adapter) = (base(name), case(name).join("adapter"));
    let gguf = temp.path().join("adapter.gguf");
    let out = ptplus([
        "convert".as_ref(),
        adapter.as_os_str(),
        "--base".as_ref(),
        base.as_os_str(),
        "-o".as_ref(),
        gguf.as_os_str(),
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    for (part, expected) in [("self_attn.v_proj", 4), ("mlp.down_proj", 4), ("input_layernorm", 0), ("", 0)] {
        let other = temp.path().join("base");
        let _ = fs::remove_dir_all(&other);
        fs::create_dir(&other).unwrap();
        fs::copy(base.join("config.json"), other.join("config.json")).unwrap();
        let mut tensors = read_safetensors(&base.join("model.safetensors"));
        if !part.is_empty() {
            let t = tensors.get_mut(&format!("model.layers.1.{part}.weight")).unwrap();
            *t.values.last_mut().unwrap() += 0.01;
        }
        write_safetensors(&other.join("model.safetensors"), &tensors);
        let output = temp.path().join("merged.gguf");
        let out = merge(&other, &gguf.display().to_string(), &output, &[]);
        assert_eq!(exit(&out), expected, "{part}: {}", stderr(&out));
        let _ = fs::remove_file(output);
    }
}

/// Experts were linear layers before transformers 5. What a position adds to depends on what it is routed to.
#[test]
fn additions_to_experts_and_routers_are_unsupported() {
    let name = "qwen2-moe-shared";
    for (from, to) in [("shared_expert.down_proj", "experts.1.down_proj"), ("shared_expert_gate", "gate")] {
        let temp = tempfile::tempdir().unwrap();
        let folder = case(name).join("adapter");
        fs::copy(folder.join("adapter_config.json"), temp.path().join("adapter_config.json")).unwrap();
        let tensors = read_safetensors(&folder.join("adapter_model.safetensors"));
        let renamed = tensors.into_iter().map(|(name, t)| (name.replace(from, to), t)).collect();
        write_safetensors(&temp.path().join("adapter_model.safetensors"), &renamed);
        let (code, report) = verify(name, temp.path());
        assert_eq!(code, 7, "{to}: {report}");
    }
}

fn keys(file: &Path) -> Vec<f32> {
    let file = ptplus::format::gguf::open(file).unwrap();
    let t = file.tensors.iter().find(|t| t.name == "blk.1.attn_k.weight.lora_b").unwrap();
    t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn key_factor(file: &Path) -> Option<f32> {
    ptplus::format::gguf::open(file).unwrap().metadata.f32("ptplus.lora.key_factor").unwrap()
}

/// A GGUF base with multiplied keys needs additions to keys multiplied alike; in memory they are those to the model's own.
#[test]
fn additions_to_keys_that_a_gguf_base_has_multiplied_are_multiplied_too() {
    let temp = tempfile::tempdir().unwrap();
    let name = "gemma2-keys";
    let (base, probe) = (base(name), case(name).join("probe.safetensors"));
    let run = |args: &[&dyn AsRef<Path>]| ptplus(args.iter().map(|a| a.as_ref().as_os_str()));
    let gguf = temp.path().join("base.gguf");
    assert_eq!(exit(&run(&[&"convert", &base, &"-o", &gguf])), 0);
    let only_keys = changed(name, &temp.path().join("keys"), |raw| {
        raw.tensors.retain(|tensor, _| tensor.contains("k_proj"));
        raw.config["target_modules"] = value!(["k_proj"]);
        raw.config["rank_pattern"] = value!({});
    });
    for (i, source) in [case(name).join("adapter"), only_keys].into_iter().enumerate() {
        let raw = RawAdapter::read(&source);
        let b = &raw.tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"];
        let factor = (16f64 / 12.0).sqrt();
        for (j, beside) in [&base, &gguf].into_iter().enumerate() {
            let at = |what: &str| temp.path().join(format!("{i}{j}{what}"));
            let (file, again, back) = (at(".gguf"), at("-again.gguf"), at("-back"));
            // Which keys llama.cpp will add to, the adapter does not say.
            let without = run(&[&"convert", &source, &"-o", &file, &"--arch", &"gemma2"]);
            assert_eq!(exit(&without), 7, "{}", stderr(&without));
            let mut args: Vec<&dyn AsRef<Path>> = vec![&"convert", &source, &"-o", &file, &"--base", beside];
            if i == 0 {
                args.extend([&"--probe" as &dyn AsRef<Path>, &probe]);
            }
            let out = run(&args);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
            assert_eq!(key_factor(&file), Some(factor as f32));
            for (x, found) in b.values.iter().zip(keys(&file)) {
                assert!((f64::from(*x) * factor - f64::from(found)).abs() < 1e-6, "{x} and {found}");
            }
            // A file stays one for the keys that it was for, and comes back as what it was.
            assert_eq!(exit(&run(&[&"convert", &file, &"-o", &again])), 0);
            assert_eq!((key_factor(&again), keys(&again)), (key_factor(&file), keys(&file)));
            assert_eq!(exit(&run(&[&"convert", &again, &"-o", &back])), 0);
            let after = RawAdapter::read(&back);
            let scale = |raw: &RawAdapter| {
                let rules = ptplus::adapter::lora::Rules::of(raw.config.as_object().unwrap()).unwrap();
                rules.scale("model.layers.1.self_attn.k_proj", b.shape[1]).factor
            };
            let found = &after.tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"];
            assert_eq!(scale(&raw) as f32, scale(&after) as f32);
            assert!(b.values.iter().zip(&found.values).all(|(x, y)| (x - y).abs() < 1e-6));
            for adapter in [&file, &again, &back] {
                for beside in [&base, &gguf] {
                    let mut args: Vec<&dyn AsRef<Path>> =
                        vec![&"verify", adapter, &"--base", beside, &"--against", &source];
                    let (code, report) = json(args.iter().map(|a| a.as_ref().as_os_str()));
                    assert_eq!(code, 0, "{}: {report}", adapter.display());
                    if i == 0 {
                        args.splice(4.., [&"--probe" as &dyn AsRef<Path>, &probe]);
                        let (code, report) = json(args.iter().map(|a| a.as_ref().as_os_str()));
                        assert!(code == 0 && report["metrics"]["max_abs"].as_f64().unwrap() <= MAX_ABS, "{report}");
                    }
                }
            }
        }
    }
}

/// Other converters look at no factor: what they write is about the model's own keys, and is read as that.
#[test]
fn a_file_that_says_nothing_of_keys_is_about_the_models_own() {
    let temp = tempfile::tempdir().unwrap();
    let name = "gemma2-keys";
    let (source, base, probe) = (case(name).join("adapter"), base(name), case(name).join("probe.safetensors"));
    let run = |args: &[&dyn AsRef<Path>]| ptplus(args.iter().map(|a| a.as_ref().as_os_str()));
    // A base by whose configuration nothing is multiplied.
    let plain = temp.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::copy(base.join("model.safetensors"), plain.join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    config["query_pre_attn_scalar"] = value!(16);
    fs::write(plain.join("config.json"), config.to_string()).unwrap();
    let (file, anew, gguf) = (temp.path().join("a.gguf"), temp.path().join("anew.gguf"), temp.path().join("base.gguf"));
    assert_eq!(exit(&run(&[&"convert", &source, &"-o", &file, &"--base", &plain])), 0);
    assert_eq!(key_factor(&file), None);
    assert_eq!(exit(&run(&[&"convert", &base, &"-o", &gguf])), 0);
    for beside in [&base, &gguf] {
        let args: [&dyn AsRef<Path>; 7] =
            [&"verify", &file, &"--base", beside, &"--probe", &probe, &"--ignore-base-mismatch"];
        let (code, report) = json(args.iter().map(|a| a.as_ref().as_os_str()));
        assert!(code == 0 && report["metrics"]["max_abs"].as_f64().unwrap() <= MAX_ABS, "{report}");
        let out = run(&[
            &"convert",
            &file,
            &"-o",
            &anew,
            &"--base",
            beside,
            &"--probe",
            &probe,
            &"--force",
            &"--ignore-base-mismatch",
        ]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert!(key_factor(&anew).is_some() && keys(&anew) != keys(&file));
    }
    // As it is, llama.cpp would add it to keys that are multiplied.
    let opened = |path: &Path| ptplus::base::BaseModel::open(path).unwrap();
    for (adapter, fits) in [(&file, [true, false, false]), (&anew, [false, true, true])] {
        let read = ptplus::pipeline::read_adapter(adapter, Some(&opened(&base))).unwrap();
        let lora = read.adapter().as_lora().unwrap();
        assert_eq!([&plain, &base, &gguf].map(|base| lora.has_keys_of(&opened(base).config)), fits);
    }
}
