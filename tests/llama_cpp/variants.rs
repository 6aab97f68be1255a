//! Adapters of every kind, in llama.cpp beside candle.

use std::path::Path;

use ptplus::adapter::plus::FeatureMap;
use ptplus::base::BaseModel;
use ptplus::pipeline::read_adapter;
use ptplus::runner::DeviceChoice;
use ptplus::verify::engines::{Engines, verify_in_llama_cpp};
use ptplus::verify::tolerance::Tolerance;
use ptplus::verify::{Options, Prompts, Reference, Report};

use crate::common::{RawAdapter, Tensor, base_gguf, exit, model, ptplus, stderr};

/// Runs the adapter in llama.cpp and on candle.
fn side_by_side(adapter: &Path, base: &BaseModel) -> (Report, Engines) {
    let adapter = read_adapter(adapter, Some(base)).unwrap();
    let device = "cpu".parse::<DeviceChoice>().unwrap().open().unwrap();
    let options = Options { device: &device, tolerance: Some(Tolerance::none()), progress: &|_, _| () };
    let prompts = Prompts::Seeded { seed: 7, rows: 2, length: 24 };
    let reference = Reference::Adapter { adapter: &adapter, base: None, prompts: &prompts };
    verify_in_llama_cpp(&adapter, base, reference, &options).unwrap()
}

fn assert_same(what: &str, (report, engines): (Report, Engines)) {
    let m = engines.metrics.beside;
    assert!(m.max_abs <= 5e-4 && m.top1_agreement == 1.0, "{what}: {m:?}");
    assert!(report.found_effect > 0.02, "{what}: {}", report.found_effect);
    assert!(m.n_positions >= 48, "{what}: {m:?}");
}

/// Uniform in -size .. size, from SplitMix64.
fn noise(seed: u64, shape: &[usize], size: f32) -> Tensor {
    let mut state = seed;
    let values = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            size * (((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect();
    Tensor { shape: shape.to_vec(), values }
}

/// A fixture's adapter with other tensors: F features, H' memories, and what else there is.
struct Parts {
    sharing: &'static str,
    n_memories: usize,
    n_features: usize,
    weight: bool,
    bias: bool,
    normalizer: bool,
}

fn variant(fixture: &str, map: &str, parts: &Parts, folder: &Path) {
    let mut raw = RawAdapter::fixture(fixture);
    let d = raw.config["head_dim"].as_u64().unwrap() as usize;
    let layers: Vec<usize> = (0..raw.config["num_layers"].as_u64().unwrap() as usize).collect();
    let (h, f) = (parts.n_memories, parts.n_features);
    raw.tensors.clear();
    for i in &layers {
        let seed = 1000 * *i as u64;
        raw.tensors.insert(format!("layers.{i}.memory"), noise(seed, &[h, f, d], 0.2));
        if parts.weight {
            raw.tensors.insert(format!("layers.{i}.feature.weight"), noise(seed + 1, &[h, f, d], 0.3));
        }
        if parts.bias {
            raw.tensors.insert(format!("layers.{i}.feature.bias"), noise(seed + 2, &[h, f], 0.3));
        }
        if parts.normalizer {
            let mut n = noise(seed + 3, &[h, f], 0.5);
            n.values.iter_mut().for_each(|x| *x += 1.0);
            raw.tensors.insert(format!("layers.{i}.normalizer"), n);
        }
    }
    for (key, value) in [
        ("feature_map", serde_json::json!(map)),
        ("memory_sharing", parts.sharing.into()),
        ("num_features", f.into()),
        ("layers_to_transform", layers.into()),
        ("query_scale", 0.5.into()),
        ("memory_scale", 1.25.into()),
    ] {
        raw.config[key] = value;
    }
    raw.write(folder);
}

#[test]
fn every_feature_map_computes_what_candle_computes() {
    let base = BaseModel::open(&base_gguf("llama-gqa")).unwrap();
    for map in FeatureMap::ALL {
        let temp = tempfile::tempdir().unwrap();
        let positive = matches!(map.name(), "elu_plus_one" | "softplus" | "sigmoid" | "exp");
        let parts = Parts {
            sharing: "per_head",
            n_memories: 4,
            n_features: 64,
            weight: false,
            bias: false,
            normalizer: positive,
        };
        variant("llama-gqa", map.name(), &parts, temp.path());
        assert_same(map.name(), side_by_side(temp.path(), &base));
    }
}

#[test]
fn every_sharing_and_every_part_computes_what_candle_computes() {
    let parts = |sharing, n_memories, n_features, weight, bias, normalizer| Parts {
        sharing,
        n_memories,
        n_features,
        weight,
        bias,
        normalizer,
    };
    for (fixture, parts) in [
        ("llama-gqa", parts("per_head", 4, 48, true, true, false)),
        ("llama-gqa", parts("per_kv_head", 2, 64, true, false, false)),
        ("llama-gqa", parts("shared", 1, 64, false, false, true)),
        ("qwen2", parts("per_kv_head", 2, 32, false, false, true)),
        ("qwen2", parts("shared", 1, 96, true, true, true)),
        ("qwen3", parts("per_head", 4, 24, true, false, true)),
        ("qwen3-pre-rope", parts("shared", 1, 40, true, true, true)),
        ("llama-pre-rope", parts("per_kv_head", 1, 24, true, true, true)),
    ] {
        let temp = tempfile::tempdir().unwrap();
        variant(fixture, "elu_plus_one", &parts, temp.path());
        let base = BaseModel::open(&base_gguf(fixture)).unwrap();
        assert_same(&format!("{fixture} {}", parts.sharing), side_by_side(temp.path(), &base));
    }
}

#[test]
fn memories_of_every_type_compute_what_candle_computes_of_them() {
    // Memories are decoded to F32: ggml's products would round phi to what goes with their type.
    let dir = model("qwen3");
    let base = BaseModel::open(&base_gguf("qwen3")).unwrap();
    for outtype in ["f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"] {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("a.gguf");
        let adapter = dir.join("adapter");
        let args = ["convert".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.path.as_os_str()];
        let out =
            ptplus(args.into_iter().chain(["--outtype".as_ref(), outtype.as_ref(), "-o".as_ref(), file.as_os_str()]));
        assert_eq!(exit(&out), 0, "{outtype}: {}", stderr(&out));
        let stored = ptplus::format::gguf::open(&file).unwrap();
        let memory = stored.tensors.iter().find(|t| t.name.ends_with("attn_prefix_memory.weight")).unwrap();
        assert_eq!(memory.dtype.name().to_lowercase(), outtype);
        let outcome = side_by_side(&file, &base);
        assert_same(outtype, outcome);
    }
}

/// The whole of this module once more, by ggml's operations instead of our own.
#[test]
fn ggml_s_operations_compute_the_same() {
    if std::env::var_os("PTPLUS_GRAFT_OPS").is_some() {
        return;
    }
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    let out = tests.args(["variants::", "refusals::a_denominator"]).env("PTPLUS_GRAFT_OPS", "ggml").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("5 passed"), "{text}");
}
