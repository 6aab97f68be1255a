//! What goes wrong in other people's converters must make `verify` fail here: exit 5 where every shape still fits,
//! 4 where not. A test of the tests: the unchanged adapter passes.

use std::path::Path;

use crate::common::{MODELS, RawAdapter, json, model};
use serde_json::json as value;

fn verify(adapter: &RawAdapter, name: &str, temp: &Path) -> (i32, serde_json::Value) {
    let folder = temp.join("mutant");
    let _ = std::fs::remove_dir_all(&folder);
    adapter.write(&folder);
    let dir = model(name);
    json([
        "verify".as_ref(),
        folder.as_path(),
        "--base".as_ref(),
        dir.join("base").as_path(),
        "--probe".as_ref(),
        dir.join("probe.safetensors").as_path(),
    ])
}

/// NORM order of `d` components: where GGUF row `r` lies in Hugging Face order.
fn norm_order(d: usize) -> Vec<usize> {
    (0..d).map(|r| (r % 2) * d / 2 + r / 2).collect()
}

fn has(a: &RawAdapter, suffix: &str) -> bool {
    a.tensors.keys().any(|k| k.ends_with(suffix))
}

#[test]
fn the_unchanged_adapter_passes() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        assert_eq!(verify(&RawAdapter::fixture(name), name, temp.path()).0, 0, "{name}");
    }
}

#[test]
fn every_silent_mistake_is_exit_5() {
    let temp = tempfile::tempdir().unwrap();
    type Mutation = (&'static str, fn(&mut RawAdapter));
    let mutations: [Mutation; 9] = [
        ("row order", |a| {
            let d = a.config["head_dim"].as_u64().unwrap() as usize;
            match has(a, "feature.weight") {
                true => a.change("feature.weight", |t| t.permuted(2, &norm_order(d))),
                false => {
                    a.change("memory", |t| t.permuted(1, &norm_order(d)));
                    a.change("normalizer", |t| t.permuted(1, &norm_order(d)));
                }
            }
        }),
        ("transposed memory", |a| {
            // Only where it is square: elsewhere the shape gives it away.
            if a.config["num_features"] == a.config["head_dim"] {
                a.change("memory", |t| t.transposed());
            } else {
                a.change("feature.weight", |t| t.permuted(1, &(0..t.shape[1]).rev().collect::<Vec<_>>()));
            }
        }),
        ("activation", |a| {
            let wrong = if a.config["feature_map"] == "elu" { "relu" } else { "elu" };
            a.config["feature_map"] = wrong.into();
        }),
        ("tap", |a| {
            let wrong = if a.config["query_tap"] == "post_rope" { "pre_rope" } else { "post_rope" };
            a.config["query_tap"] = wrong.into();
        }),
        ("query scale", |a| a.config["query_scale"] = value!(a.config["query_scale"].as_f64().unwrap() * 0.9)),
        ("memory scale", |a| a.config["memory_scale"] = value!(a.config["memory_scale"].as_f64().unwrap() * 0.9)),
        ("swapped heads", |a| {
            let n = a.tensors["layers.0.memory"].shape[0];
            let order: Vec<usize> = (0..n).rev().collect();
            for suffix in ["memory", "feature.weight", "feature.bias", "normalizer"] {
                a.change(suffix, |t| t.permuted(0, &order));
            }
        }),
        ("one value in one tensor", |a| {
            let t = a.tensors.get_mut("layers.0.memory").unwrap();
            let largest = (0..t.values.len()).max_by(|&i, &j| t.values[i].abs().total_cmp(&t.values[j].abs())).unwrap();
            t.values[largest] = -t.values[largest];
        }),
        ("layers exchanged", |a| {
            let last = if a.tensors.contains_key("layers.1.memory") { 1 } else { 2 };
            let (x, y) = (a.tensors["layers.0.memory"].clone(), a.tensors[&format!("layers.{last}.memory")].clone());
            a.tensors.insert("layers.0.memory".into(), y);
            a.tensors.insert(format!("layers.{last}.memory"), x);
        }),
    ];
    let mut unexpected = Vec::new();
    for name in MODELS {
        for (what, mutate) in &mutations {
            let mut a = RawAdapter::fixture(name);
            mutate(&mut a);
            let (code, report) = verify(&a, name, temp.path());
            if code != 5 || report["pass"] != false || report["status"] != "failed" {
                unexpected.push(format!("{name}: {what}: exit {code}, {}", report["metrics"]));
            }
        }
    }
    assert!(unexpected.is_empty(), "passed or failed otherwise:\n{}", unexpected.join("\n"));
}

#[test]
fn a_layer_off_by_one_fails() {
    let temp = tempfile::tempdir().unwrap();
    // llama-gqa adapts layers 0 and 2 of 3: moved to 1 and 3 one is out of range, moved to 0 and 1 every shape fits.
    let original = RawAdapter::fixture("llama-gqa");
    for (layers, expected) in [([1, 3], 4), ([0, 1], 5)] {
        let mut a = original.clone();
        a.tensors = original
            .tensors
            .iter()
            .map(|(k, t)| {
                (
                    k.replace("layers.2.", &format!("layers.{}.", layers[1]))
                        .replace("layers.0.", &format!("layers.{}.", layers[0])),
                    t.clone(),
                )
            })
            .collect();
        a.config["layers_to_transform"] = value!(layers);
        let (code, report) = verify(&a, "llama-gqa", temp.path());
        assert_eq!(code, expected, "{layers:?}: {report}");
    }
}

#[test]
fn an_adapter_that_does_nothing_is_a_failure() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let mut a = RawAdapter::fixture(name);
        a.change("memory", |t| crate::common::Tensor { values: vec![0.0; t.values.len()], ..t.clone() });
        let folder = temp.path().join(name);
        a.write(&folder);
        let dir = model(name);
        let (code, report) = json([
            "verify".as_ref(),
            folder.as_path(),
            "--base".as_ref(),
            dir.join("base").as_path(),
            "--against".as_ref(),
            folder.as_path(),
        ]);
        assert_eq!(code, 5, "{name}");
        assert_eq!(report["metrics"]["max_abs"], 0.0, "{name}: it agrees with itself, and fails all the same");
        assert_eq!(report["failures"][0]["code"], "no-effect", "{name}");
    }
}

#[test]
fn a_shape_that_does_not_fit_is_exit_4() {
    let temp = tempfile::tempdir().unwrap();
    let mut a = RawAdapter::fixture("qwen3");
    a.change("memory", |t| t.transposed());
    let (code, report) = verify(&a, "qwen3", temp.path());
    assert_eq!(code, 4, "{report}");
    assert_eq!(report["error"]["code"], "adapter-shape");
}

/// A probe with some tensors changed.
fn changed_probe(
    name: &str,
    file: &Path,
    change: impl Fn(&mut std::collections::BTreeMap<String, crate::common::Tensor>),
) {
    let bytes = std::fs::read(model(name).join("probe.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut floats = crate::common::read_safetensors(&model(name).join("probe.safetensors"));
    change(&mut floats);
    let ids = parsed.tensor("input_ids").unwrap();
    // `positions` travels as floats here, since the tests' tensors are F32; it is written as the integers that it is.
    let positions: Option<Vec<u8>> =
        floats.remove("positions").map(|t| t.values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect());
    let data: Vec<(String, Vec<usize>, Vec<u8>)> =
        floats.iter().map(|(n, t)| (n.clone(), t.shape.clone(), t.bytes())).collect();
    let view = |dtype, shape: &[usize], b| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), b).unwrap();
    let mut views = vec![("input_ids".to_owned(), view(safetensors::Dtype::I64, ids.shape(), ids.data()))];
    views.extend(data.iter().map(|(n, s, b)| (n.clone(), view(safetensors::Dtype::F32, s, b))));
    if let Some(p) = &positions {
        views.push(("positions".into(), view(safetensors::Dtype::I64, &[p.len() / 8], p)));
    }
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn verify_with(adapter: &Path, name: &str, probe: &Path) -> (i32, serde_json::Value) {
    json(["verify".as_ref(), adapter, "--base".as_ref(), model(name).join("base").as_path(), "--probe".as_ref(), probe])
}

#[test]
fn layers_count_where_the_logits_cannot_tell() {
    // At position 0 the rotation is the identity, so its logits are the same from either tap.
    let temp = tempfile::tempdir().unwrap();
    let probe = temp.path().join("probe.safetensors");
    changed_probe("llama-mha", &probe, |p| {
        for name in ["logits", "base_logits"] {
            let t = p.get_mut(name).unwrap();
            let [b, n, v] = t.shape[..] else { unreachable!() };
            t.values = (0..b).flat_map(|i| t.values[i * n * v..][..v].to_vec()).collect();
            t.shape = vec![b, 1, v];
        }
        p.insert("positions".into(), crate::common::Tensor { shape: vec![1], values: vec![0.0] });
    });
    let mut a = RawAdapter::fixture("llama-mha");
    let folder = temp.path().join("a");
    a.write(&folder);
    assert_eq!(verify_with(&folder, "llama-mha", &probe).0, 0, "the right tap passes");
    a.config["query_tap"] = "pre_rope".into();
    a.write(&folder);
    let (code, report) = verify_with(&folder, "llama-mha", &probe);
    assert_eq!(code, 5, "{report}");
}

#[test]
fn a_reference_that_is_off_cannot_widen_its_own_limits() {
    let temp = tempfile::tempdir().unwrap();
    let probe = temp.path().join("probe.safetensors");
    let adapter = model("llama-mha").join("adapter");
    changed_probe("llama-mha", &probe, |p| {
        p.get_mut("base_logits").unwrap().values.iter_mut().for_each(|v| *v += 500.0)
    });
    let (code, report) = verify_with(&adapter, "llama-mha", &probe);
    assert_eq!(code, 5, "the base alone is not the reference's: {report}");
    for (tensor, what) in [("term.0", "term"), ("q.1", "query")] {
        changed_probe("llama-mha", &probe, |p| p.get_mut(tensor).unwrap().values[5] += 1.0);
        assert_eq!(verify_with(&adapter, "llama-mha", &probe).0, 5, "{what}");
    }
}
