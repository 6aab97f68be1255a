//! Weighted sums of adapters: one adapter that computes what its parts do side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, fixtures, json, model, ptplus, stderr};
use ptplus::base::BaseModel;
use ptplus::error::Result;
use ptplus::pipeline::read_adapter;
use ptplus::runner::{Device, Lane, Sink, StreamOptions, stream};
use serde_json::json as value;

#[derive(Default)]
struct Collect(Vec<Vec<f32>>);

impl Sink for Collect {
    fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
        self.0.resize(lanes.len(), Vec::new());
        self.0.iter_mut().zip(lanes).for_each(|(all, lane)| all.extend_from_slice(lane));
        Ok(())
    }
}

/// The largest differences of the sum from its parts side by side, and from the plain base.
fn differences(base: &Path, parts: &[(&Path, f64)], sum: &Path) -> (f32, f32) {
    let base = BaseModel::open(base).unwrap();
    let read: Vec<_> = parts.iter().map(|(path, s)| (read_adapter(path, Some(&base)).unwrap(), *s)).collect();
    let sum = read_adapter(sum, Some(&base)).unwrap();
    let beside = Lane { adapters: read.iter().map(|(a, s)| (a.adapter().into(), *s)).collect() };
    let lanes = [Lane::default(), beside, Lane::of(sum.adapter())];
    let options = StreamOptions { positions: None, device: Device::cpu() };
    let mut sink = Collect::default();
    stream(&base, &[(1..20).collect()], &lanes, &options, &mut sink).unwrap();
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, |m, d| if d > m || d.is_nan() { d } else { m })
    };
    (distance(&sink.0[2], &sink.0[1]), distance(&sink.0[2], &sink.0[0]))
}

fn combine(parts: &[&str], output: &Path, base: &Path) -> std::process::Output {
    let args = ["combine"].into_iter().chain(parts.iter().copied()).map(std::ffi::OsStr::new);
    ptplus(args.chain(["-o".as_ref(), output.as_os_str(), "--force".as_ref(), "--base".as_ref(), base.as_os_str()]))
}

/// An adapter with other values, whose memories alone differ.
fn other(raw: &RawAdapter, folder: &Path) -> PathBuf {
    let mut raw = raw.clone();
    raw.change("memory", |t| Tensor {
        shape: t.shape.clone(),
        values: t.values.iter().enumerate().map(|(i, v)| v * 0.5 + (i as f32 * 0.3).sin() * 0.2).collect(),
    });
    let scale = raw.config["memory_scale"].as_f64().unwrap();
    raw.config["memory_scale"] = value!(scale * 1.5);
    raw.write(folder);
    folder.to_owned()
}

#[test]
fn memories_below_one_phi_add_up() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama-mha", "llama-gqa", "mistral-swa", "qwen2", "qwen3"] {
        let (base, one) = (model(name).join("base"), model(name).join("adapter"));
        let two = other(&RawAdapter::read(&one), &temp.path().join(name));
        for output in ["sum.gguf", "sum"] {
            let output = temp.path().join(output);
            let parts = [format!("{}:0.7", one.display()), format!("{}:-0.3", two.display())];
            let out = combine(&[&parts[0], &parts[1]], &output, &base);
            assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
            let (d, effect) = differences(&base, &[(&one, f64::from(0.7f32)), (&two, f64::from(-0.3f32))], &output);
            assert!(d < 1e-4 && effect > 0.05, "{name}: {d:.1e} of {effect:.1e}");
            let _ = fs::remove_dir_all(&output);
        }
    }
}

#[test]
fn memories_below_other_functions_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (base, one) = (model("llama-mha").join("base"), model("llama-mha").join("adapter"));
    let output = temp.path().join("sum.gguf");
    let raw = RawAdapter::read(&one);
    let phi = if raw.config["feature_map"] == "elu" { "relu" } else { "elu" };
    for (what, code, change) in [
        (
            "phi",
            7,
            Box::new(|a: &mut RawAdapter| a.config["feature_map"] = value!(phi)) as Box<dyn Fn(&mut RawAdapter)>,
        ),
        ("query_scale", 7, Box::new(|a: &mut RawAdapter| a.config["query_scale"] = value!(0.123))),
        ("query_tap", 7, Box::new(|a: &mut RawAdapter| a.config["query_tap"] = value!("pre_rope"))),
    ] {
        let mut other = raw.clone();
        change(&mut other);
        let folder = temp.path().join("other");
        other.write(&folder);
        let out = combine(&[one.to_str().unwrap(), folder.to_str().unwrap()], &output, &base);
        assert_eq!(exit(&out), code, "{what}: {}", stderr(&out));
        assert!(!output.exists());
    }
    // A learned feature map with other values.
    let learned = ["llama-mha", "llama-gqa", "qwen2", "qwen3", "mistral-swa"]
        .into_iter()
        .find(|n| RawAdapter::fixture(n).tensors.keys().any(|k| k.ends_with("feature.weight")))
        .expect("a fixture with a learned feature map");
    let mut other = RawAdapter::fixture(learned);
    other.change("feature.weight", |t| Tensor { values: t.values.iter().map(|v| v + 0.1).collect(), ..t.clone() });
    let folder = temp.path().join("learned");
    other.write(&folder);
    let parts = [model(learned).join("adapter").display().to_string(), folder.display().to_string()];
    let out = combine(&[&parts[0], &parts[1]], &output, &model(learned).join("base"));
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    // Another base, and another kind.
    let out = combine(&[one.to_str().unwrap(), model("qwen3").join("adapter").to_str().unwrap()], &output, &base);
    assert_eq!(exit(&out), 4, "{}", stderr(&out));
    let lora = fixtures().join("lora/llama-plain/adapter").display().to_string();
    let args = ["combine", one.to_str().unwrap(), &lora, "--arch", "llama", "-o"].map(std::ffi::OsStr::new);
    let out = ptplus(args.into_iter().chain([output.as_os_str()]));
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
}

/// Other modules, ranks, scales and layers than the case's own.
fn other_lora(case: &Path, folder: &Path) -> PathBuf {
    let own = RawAdapter::read(&case.join("adapter"));
    let mut tensors = BTreeMap::new();
    for (name, t) in own.tensors.iter().filter(|(n, _)| n.contains("layers.1.") && n.contains("_proj.lora_A")) {
        let b = &own.tensors[&name.replace("lora_A", "lora_B")];
        let values = |n: usize, s: f32| (0..n).map(|i| ((i as f32 + s) * 0.7).sin() * 0.2).collect();
        tensors.insert(name.clone(), Tensor { shape: vec![3, t.shape[1]], values: values(3 * t.shape[1], 1.0) });
        let shape = vec![b.shape[0], 3];
        tensors.insert(name.replace("lora_A", "lora_B"), Tensor { values: values(b.shape[0] * 3, 2.0), shape });
    }
    let config = value!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 3, "lora_alpha": 5,
        "use_rslora": true, "target_modules": null});
    RawAdapter { config, tensors }.write(folder);
    folder.to_owned()
}

#[test]
fn ranks_of_loras_add_up() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama-rslora-patterns", "llama-head-embed", "qwen3-all-linear"] {
        let case = fixtures().join("lora").join(name);
        let (base, one) = (case.join("base"), case.join("adapter"));
        let two = other_lora(&case, &temp.path().join(name));
        for output in ["sum.gguf", "sum"] {
            let output = temp.path().join(output);
            let parts = [format!("{}:0.5", one.display()), format!("{}:-2", two.display())];
            let out = combine(&[&parts[0], &parts[1]], &output, &base);
            assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
            let (d, effect) = differences(&base, &[(&one, 0.5), (&two, -2.0)], &output);
            assert!(d < 1e-4 && effect > 0.05, "{name}: {d:.1e} of {effect:.1e}");
            let _ = fs::remove_dir_all(&output);
        }
    }
}

/// Halves of an adapter are the adapter, by PyTorch's own answer.
#[test]
fn two_halves_of_a_lora_are_what_pytorch_computed_of_the_whole() {
    let temp = tempfile::tempdir().unwrap();
    let case = fixtures().join("lora/llama-rslora-patterns");
    let (base, probe) = (case.join("base"), case.join("probe.safetensors"));
    let half = format!("{}:0.5", case.join("adapter").display());
    let sum = temp.path().join("sum.gguf");
    let out = combine(&[&half, &half], &sum, &base);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let args = ["verify".as_ref(), sum.as_os_str(), "--base".as_ref(), base.as_os_str()];
    let (code, report) = json(args.into_iter().chain(["--probe".as_ref(), probe.as_os_str()]));
    assert_eq!(code, 0, "{report}");
}

/// An adapter without effect is a failure, with a base and without.
#[test]
fn a_sum_of_nothing_is_refused_and_one_a_counts_once() {
    let temp = tempfile::tempdir().unwrap();
    let lora = fixtures().join("lora/llama-rslora-patterns");
    let output = temp.path().join("sum.gguf");
    for (case, is_lora) in [(model("llama-gqa"), false), (lora.clone(), true)] {
        let weighted = |weight: &str| format!("{}:{weight}", case.join("adapter").display());
        for parts in [vec![weighted("1"), weighted("-1")], vec![weighted("0")], vec![weighted("0"), weighted("0")]] {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let out = combine(&parts, &output, &case.join("base"));
            assert_eq!(exit(&out), 5, "{parts:?}: {}", stderr(&out));
            let args = ["combine"].into_iter().chain(parts).chain(["--arch", "llama"]).map(std::ffi::OsStr::new);
            let out = ptplus(args.chain(["-o".as_ref(), output.as_os_str()]));
            // Without a base llama.cpp's order of a LoRA's rows is not known.
            assert!(exit(&out) == 5 || is_lora && exit(&out) == 7, "{}", stderr(&out));
            assert!(!output.exists());
        }
    }
    // The second and third part are one.
    let other = other_lora(&lora, &temp.path().join("other"));
    let (one, two) = (lora.join("adapter").display().to_string(), other.display().to_string());
    let parts = [format!("{one}:0.5"), format!("{two}:2"), format!("{one}:0.25")];
    let out = combine(&[&parts[0], &parts[1], &parts[2]], &output, &lora.join("base"));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let (d, effect) = differences(&lora.join("base"), &[(&lora.join("adapter"), 0.75), (&other, 2.0)], &output);
    assert!(d < 1e-4 && effect > 0.05, "{d:.1e} of {effect:.1e}");
    let sum = read_adapter(&output, None).unwrap();
    let ranks = |a: &ptplus::adapter::Adapter| a.as_lora().unwrap().modules.values().map(|m| m.rank()).sum::<usize>();
    let of =
        |path: &Path| ranks(read_adapter(path, Some(&BaseModel::open(&lora.join("base")).unwrap())).unwrap().adapter());
    assert_eq!(ranks(sum.adapter()), of(&lora.join("adapter")) + of(&other));
}

#[test]
fn what_no_sum_of_additions_says_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let case = fixtures().join("lora/llama-dora");
    let output = temp.path().join("sum.gguf");
    let adapter = case.join("adapter").display().to_string();
    let out = combine(&[&adapter, &adapter], &output, &case.join("base"));
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    assert!(stderr(&out).contains("--merge"), "{}", stderr(&out));
    assert!(!output.exists());
}
