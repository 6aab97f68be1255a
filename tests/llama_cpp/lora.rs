//! LoRA, which llama.cpp adds itself: beside candle, PyTorch and Prefix-Tuning+.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ptplus::base::BaseModel;
use ptplus::generate::{Candle, Engine};
use ptplus::llama_cpp::engine::LlamaCpp;
use ptplus::llama_cpp::{Adapter, Context, Model};
use ptplus::pipeline::read_adapter;
use ptplus::runner::Device;

use crate::common::{base_gguf, exit, fixtures, json, model, ptplus, stderr};
use crate::contexts::{PLAIN, converted, difference, ids, logits};

const CASES: [&str; 3] = ["llama-rslora-patterns", "llama-head-embed", "qwen3-all-linear"];
const MAX_ABS: f64 = 5e-4;

fn case(name: &str) -> PathBuf {
    fixtures().join("lora").join(name)
}

fn gguf(base: &Path, output: &Path) {
    let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), output.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

#[test]
fn every_case_agrees_with_pytorch_and_candle() {
    let temp = tempfile::tempdir().unwrap();
    for name in CASES {
        let (base, probe) = (case(name).join("base"), case(name).join("probe.safetensors"));
        let file = converted(&case(name).join("adapter"), &base, temp.path());
        for adapter in [case(name).join("adapter"), file] {
            let args = [OsStr::new("verify"), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()];
            let rest = ["--probe".as_ref(), probe.as_os_str(), "--engine".as_ref(), "llama.cpp".as_ref()];
            let (code, report) = json(args.into_iter().chain(rest));
            assert_eq!(code, 0, "{name}: {report}");
            for engine in ["candle", "llama.cpp", "llama.cpp_beside_candle"] {
                let found = report["engines"]["metrics"][engine]["max_abs"].as_f64().unwrap();
                assert!(found <= MAX_ABS, "{name}, {engine}: {found}");
            }
        }
    }
}

/// What llama.cpp cannot add has to be merged; the file is then a model like any other.
#[test]
fn a_dora_is_refused_and_its_merged_base_runs() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-dora";
    let (base, adapter, probe) =
        (case(name).join("base"), case(name).join("adapter"), case(name).join("probe.safetensors"));
    let args = [OsStr::new("verify"), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()];
    let rest = ["--probe".as_ref(), probe.as_os_str(), "--engine".as_ref(), "llama.cpp".as_ref()];
    assert_eq!(json(args.into_iter().chain(rest)).0, 7);
    let merged = temp.path().join("merged.gguf");
    let out = ptplus([
        "convert".as_ref(),
        base.as_os_str(),
        "--merge".as_ref(),
        adapter.as_os_str(),
        "-o".as_ref(),
        merged.as_os_str(),
        "--probe".as_ref(),
        probe.as_os_str(),
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let base = BaseModel::open(&base).unwrap();
    let read = read_adapter(&adapter, Some(&base)).unwrap();
    let mut candle = Candle::new(&base, vec![read], &Device::cpu(), 64).unwrap();
    candle.switch_adapters(&[(0, 1.0)]).unwrap();
    let tokens = ids(3, 12, base.config.vocab_size);
    let expected = candle.append(&tokens).unwrap();
    let loaded = Rc::new(Model::load(&merged).unwrap());
    let found = logits(&mut Context::new(&loaded, &[], &PLAIN).unwrap(), &tokens, 12);
    assert!(difference(&found[11..], &[expected]) < 5e-4);
}

#[test]
fn scales_of_loras_and_memories_are_switched_side_by_side() {
    let temp = tempfile::tempdir().unwrap();
    let base = base_gguf("llama-gqa");
    let plus = converted(&model("llama-gqa").join("adapter"), &model("llama-gqa").join("base"), temp.path());
    // A LoRA on o_proj and v_proj of this base: o_proj shares its input with the term.
    let c = BaseModel::open(&base).unwrap().config;
    let folder = temp.path().join("lora");
    let mut tensors = std::collections::BTreeMap::new();
    let mut add = |module: &str, rows: usize, columns: usize| {
        let values = |n: usize, s: f32| (0..n).map(|i| ((i as f32 + s) * 0.7).sin() * 0.3).collect();
        let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.{module}.lora_{half}.weight");
        tensors.insert(name("A"), crate::common::Tensor { shape: vec![2, columns], values: values(2 * columns, 1.0) });
        tensors.insert(name("B"), crate::common::Tensor { shape: vec![rows, 2], values: values(rows * 2, 2.0) });
    };
    add("o_proj", c.hidden_size, c.n_heads * c.head_dim);
    add("v_proj", c.n_kv_heads * c.head_dim, c.hidden_size);
    let config = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "layers_to_transform": [0], "target_modules": ["o_proj", "v_proj"],
        "base_model_name_or_path": "x", "task_type": "CAUSAL_LM"});
    crate::common::RawAdapter { config, tensors }.write(&folder);
    let opened = BaseModel::open(&base).unwrap();
    let adapters = [read_adapter(&folder, Some(&opened)).unwrap(), read_adapter(&plus, Some(&opened)).unwrap()];
    let mut llama = LlamaCpp::open(&opened, &[&adapters[0], &adapters[1]], 64, 1).unwrap();
    let mut candle = Candle::new(&opened, adapters.to_vec(), &Device::cpu(), 64).unwrap();
    let tokens = ids(5, 20, c.vocab_size);
    let mut all = Vec::new();
    for on in [vec![], vec![(0, 1.0)], vec![(1, 1.0)], vec![(0, 0.5), (1, -2.0)], vec![(0, 1.0), (1, 1.0)], vec![]] {
        llama.switch_adapters(&on).unwrap();
        candle.switch_adapters(&on).unwrap();
        let (found, expected) = (llama.append(&tokens).unwrap(), candle.append(&tokens).unwrap());
        // The engine's cache is F16.
        assert!(difference(std::slice::from_ref(&found), &[expected]) < 2e-2, "{on:?}");
        all.push(found);
    }
    assert!(difference(&all[..1], &all[5..]) < 1e-6, "off is off");
    for (i, a) in all[..5].iter().enumerate() {
        for b in &all[i + 1..5] {
            assert!(difference(std::slice::from_ref(a), std::slice::from_ref(b)) > 5e-2);
        }
    }
}

#[test]
fn a_lora_of_another_model_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (one, other) = (temp.path().join("one.gguf"), temp.path().join("other.gguf"));
    gguf(&case("llama-rslora-patterns").join("base"), &one);
    gguf(&case("qwen3-all-linear").join("base"), &other);
    let lora = converted(
        &case("llama-rslora-patterns").join("adapter"),
        &case("llama-rslora-patterns").join("base"),
        temp.path(),
    );
    let (one, other) = (Rc::new(Model::load(&one).unwrap()), Rc::new(Model::load(&other).unwrap()));
    assert!(Adapter::load_lora(&lora, &other).is_err());
    let loaded = Rc::new(Adapter::load_lora(&lora, &one).unwrap());
    assert!(Context::new(&other, std::slice::from_ref(&loaded), &PLAIN).is_err());
    let mut context = Context::new(&one, &[loaded], &PLAIN).unwrap();
    assert!(context.set_scale(0, f32::NAN).is_err() && context.set_scale(1, 1.0).is_err());
}
