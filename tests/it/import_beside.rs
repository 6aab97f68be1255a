//! What lies beside an adapter's tensors or inside of them without being said: weights of the base, and what broadcasting
//! makes of shapes.

use crate::common::{RawAdapter, distance, exit, import, model, read_safetensors, stderr};

/// A checkpoint with the weights of the base is one of the adapter alone only where those are the base's.
#[test]
fn weights_of_the_base_beside_an_adapter_must_be_the_base_s() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("llama-mha").join("base");
    let folder = temp.path().join("checkpoint");
    let reference = RawAdapter::fixture("llama-mha");
    let mut tensors: std::collections::BTreeMap<String, crate::common::Tensor> =
        read_safetensors(&base.join("model.safetensors"))
            .into_iter()
            .map(|(name, t)| (format!("module.base_model.model.{}", name.replace("q_proj.", "q_proj.base_layer.")), t))
            .collect();
    tensors.extend(reference.tensors.iter().map(|(name, t)| (format!("module.model.{name}"), t.clone())));
    let source = RawAdapter { config: reference.config.clone(), tensors };
    let refused = |change: &dyn Fn(&mut RawAdapter)| {
        let mut source = source.clone();
        change(&mut source);
        source.write(&folder);
        let done = import(&folder, &temp.path().join("out"), Some(&base), &["--force"]);
        (exit(&done), stderr(&done))
    };
    assert_eq!(refused(&|_| {}).0, 0);
    // In modules of trainers, and spelled with slashes.
    for prefix in ["policy.", "_forward_module.", "net/"] {
        let moved = |source: &mut RawAdapter| {
            let rename = |name: String| match name.strip_prefix("module.base_model.model.") {
                Some(rest) => format!("{prefix}{rest}"),
                None => name,
            };
            source.tensors = std::mem::take(&mut source.tensors).into_iter().map(|(n, t)| (rename(n), t)).collect();
        };
        assert_eq!(refused(&moved).0, 0, "{prefix}");
        let trained = |source: &mut RawAdapter| {
            moved(source);
            source.change("o_proj.weight", |t| t.permuted(0, &(0..t.shape[0]).rev().collect::<Vec<_>>()));
        };
        assert_eq!(refused(&trained).0, 4, "{prefix}");
    }
    // Averages are not compared; a word that only holds those letters says nothing of the kind.
    for (prefix, code) in [("ema.", 0), ("model_ema.", 0), ("schema.", 4)] {
        let average = |source: &mut RawAdapter| {
            let o_proj = "model.layers.0.self_attn.o_proj.weight";
            let mut t = source.tensors[&format!("module.base_model.model.{o_proj}")].clone();
            t.values.iter_mut().for_each(|v| *v *= 0.999);
            source.tensors.insert(format!("{prefix}{o_proj}"), t);
        };
        assert_eq!(refused(&average).0, code, "{prefix}");
    }
    let more = |source: &mut RawAdapter| {
        let bias = crate::common::Tensor { shape: vec![96], values: vec![1.0; 96] };
        source.tensors.insert("module.model.layers.0.self_attn.o_proj.bias".to_owned(), bias);
    };
    let (code, message) = refused(&more);
    assert!(code == 4 && message.contains("one that it has not"), "{message}");
    // As a LoRA merged into it, one row alone trained, and rows that were added.
    type Train = fn(&crate::common::Tensor) -> crate::common::Tensor;
    let trained: [(&str, Train); 3] = [
        ("layers.1.self_attn.q_proj.base_layer.weight", |t| crate::common::Tensor {
            values: t.values.iter().map(|v| v * 1.0001).collect(),
            ..t.clone()
        }),
        ("norm.weight", |t| {
            let mut t = t.clone();
            *t.values.last_mut().unwrap() += 0.01;
            t
        }),
        ("embed_tokens.weight", |t| t.permuted(0, &(0..=t.shape[0]).map(|i| i % t.shape[0]).collect::<Vec<_>>())),
    ];
    for (name, change) in trained {
        let (code, message) = refused(&|source| source.change(name, change));
        assert_eq!(code, 4, "{name}: {message}");
        assert!(message.contains(name) && message.contains("adapter-mismatch"), "{message}");
    }
}

#[test]
fn a_head_beside_an_adapter_is_the_embedding_to_which_the_base_ties_it() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("llama-gqa").join("base");
    let embedding = read_safetensors(&base.join("model.safetensors"))["model.embed_tokens.weight"].clone();
    let mut source = RawAdapter::fixture("llama-gqa");
    source.tensors = source.tensors.into_iter().map(|(n, t)| (format!("model.{n}"), t)).collect();
    let trained: Vec<f32> = embedding.values.iter().map(|v| v * 1.01).collect();
    for (values, code) in [(embedding.values.clone(), 0), (trained, 4)] {
        let head = crate::common::Tensor { values, ..embedding.clone() };
        source.tensors.insert("model.lm_head.weight".into(), head);
        let folder = temp.path().join("checkpoint");
        source.write(&folder);
        let done = import(&folder, &temp.path().join("out"), Some(&base), &["--force"]);
        assert_eq!(exit(&done), code, "{}", stderr(&done));
    }
}

/// One linear layer for all heads (qwen3's feature map of layer heads made equal), and dimensions of length 1 everywhere.
#[test]
fn parts_are_broadcast_as_pytorch_does() {
    let temp = tempfile::tempdir().unwrap();
    let mut reference = RawAdapter::fixture("qwen3");
    let first_head = |t: &crate::common::Tensor| t.permuted(0, &[0]);
    reference.change("feature.weight", |t| first_head(t).permuted(0, &[0; 4]));
    reference.change("feature.bias", |t| first_head(t).permuted(0, &[0; 4]));
    let foreign = |name: &str| name.replace("layers.", "model.layers.").replace("feature.", "feature_proj.");
    let of_shape = |t: &crate::common::Tensor, shape: Vec<usize>| crate::common::Tensor { shape, ..t.clone() };
    let folder = temp.path().join("foreign");
    let mut n = 0;
    for (weight, bias, memory) in [
        (vec![96, 64], vec![96], vec![4, 96, 64]),
        (vec![1, 96, 64], vec![1, 96], vec![1, 4, 96, 64]),
        (vec![1, 1, 96, 64], vec![1, 1, 96], vec![4, 1, 96, 64]),
        (vec![96, 64], vec![1, 1, 96], vec![4, 96, 1, 64]),
    ] {
        let tensors = reference.tensors.iter().map(|(name, t)| {
            let t = match name.rsplit_once("feature.").map(|(_, part)| part) {
                Some("weight") => of_shape(&first_head(t), weight.clone()),
                Some("bias") => of_shape(&first_head(t), bias.clone()),
                _ => of_shape(t, memory.clone()),
            };
            (foreign(name), t)
        });
        let source = RawAdapter { config: reference.config.clone(), tensors: tensors.collect() };
        source.write(&folder);
        n += 1;
        let out = temp.path().join(n.to_string());
        let done = import(&folder, &out, None, &[]);
        assert_eq!(exit(&done), 0, "{weight:?}: {}", stderr(&done));
        assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0, "{weight:?}");

        // The canonical layout has one shape for each tensor.
        let canonical = source
            .tensors
            .into_iter()
            .map(|(name, t)| (name.replace("model.layers.", "layers.").replace("feature_proj.", "feature."), t));
        RawAdapter { config: reference.config.clone(), tensors: canonical.collect() }.write(&folder);
        let done = import(&folder, &temp.path().join("none"), None, &[]);
        assert_eq!(exit(&done), 4, "{weight:?}: {}", stderr(&done));
    }
}

/// What broadcasting would make of it must be what was meant: never of layers, of heads that are lost, or without a bound.
#[test]
fn nothing_else_is_broadcast() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture("llama-mha"); // 3 layers, 3 heads
    let folder = temp.path().join("foreign");
    let refused = |what: &str, more: &[(&str, Vec<usize>)], per_head: bool| {
        let mut tensors = std::collections::BTreeMap::new();
        for (name, t) in &reference.tensors {
            let name = name.replace("memory", "prefix_memory");
            if per_head {
                for (h, values) in t.values.chunks(32 * 32).enumerate() {
                    let head = crate::common::Tensor { shape: vec![32, 32], values: values.to_vec() };
                    tensors.insert(name.replace("prefix_memory", &format!("heads.{h}.M")), head);
                }
            } else {
                tensors.insert(name, t.clone());
            }
        }
        for (name, shape) in more {
            let values = vec![0.5; shape.iter().product()];
            tensors.insert((*name).to_owned(), crate::common::Tensor { shape: shape.clone(), values });
        }
        RawAdapter { config: reference.config.clone(), tensors }.write(&folder);
        let done = import(&folder, &temp.path().join("out"), None, &[]);
        assert_eq!(exit(&done), 4, "{what}: {}", stderr(&done));
    };
    // As many layers as heads: of which a tensor without a number has one each, nothing says.
    refused("one map for all layers", &[("feature.weight", vec![3, 32, 32])], false);
    refused("one bias for all layers", &[("feature.weight", vec![3, 3, 32, 32]), ("feature.bias", vec![3, 32])], false);
    refused("one normaliser for all layers", &[("normalizer", vec![3, 32])], false);
    let of_head_0: Vec<String> = (0..3).map(|i| format!("layers.{i}.heads.0.phi.weight")).collect();
    let lost: Vec<(&str, Vec<usize>)> = of_head_0.iter().map(|n| (n.as_str(), vec![32, 32])).collect();
    refused("heads 1 and 2 lost their map", &lost, true);
}

/// The fixture's adapter in one file with all weights of its base.
fn beside_everything(name: &str) -> RawAdapter {
    let mut source = RawAdapter::fixture(name);
    source.tensors = source.tensors.into_iter().map(|(n, t)| (format!("model.{n}"), t)).collect();
    source.tensors.extend(read_safetensors(&model(name).join("base/model.safetensors")));
    source
}

/// One value of one weight trained is one too many, whatever the base's format, type and row order.
#[test]
fn every_value_beside_an_adapter_is_compared_with_every_kind_of_base() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama-mha", "qwen2", "qwen3"] {
        let folder = temp.path().join("checkpoint");
        let gguf = |outtype: &str| {
            let out = temp.path().join(format!("{name}-{outtype}.gguf"));
            let base = model(name).join("base");
            let args = ["convert".as_ref(), base.as_os_str(), "-o".as_ref(), out.as_ref(), "--outtype".as_ref()];
            let done = crate::common::ptplus(args.into_iter().chain([outtype.as_ref(), "--no-tokenizer".as_ref()]));
            assert_eq!(exit(&done), 0, "{}", stderr(&done));
            out
        };
        let bases = [model(name).join("base"), gguf("f32"), gguf("f16"), gguf("bf16")];
        let opened = |base: &std::path::Path| {
            let base = ptplus::base::BaseModel::open(base).unwrap();
            match ptplus::import::open(&folder, &Default::default(), Some(&base)).unwrap() {
                ptplus::import::Opened::Draft(draft) => (draft.findings, draft.notes),
                ptplus::import::Opened::Adapter(_) => panic!("a folder"),
            }
        };
        let untrained = beside_everything(name);
        untrained.write(&folder);
        for base in &bases {
            let (findings, notes) = opened(base);
            assert!(findings.is_empty() && notes.is_empty(), "{name} {base:?}: {findings:?} {notes:?}");
        }
        let (findings, notes) = opened(&gguf("q8_0"));
        assert!(findings.is_empty() && notes.len() == 1, "{name}: {findings:?} {notes:?}");
        assert!(notes[0].contains("not compared with it since the base has them quantized"), "{notes:?}");

        let weights = untrained.tensors.iter().filter(|(n, _)| !n.ends_with("memory") && !n.contains("feature"));
        for (tensor, t) in weights {
            // In a row that is neither the first, the middle nor the last.
            let at = if t.shape.len() > 1 { 3 * t.shape[1] + 1 } else { 3 };
            let mut source = untrained.clone();
            source.tensors.get_mut(tensor).unwrap().values[at] += 0.5;
            source.write(&folder);
            for base in &bases {
                let (findings, _) = opened(base);
                assert!(findings.len() == 1 && findings[0].place == *tensor, "{name} {tensor} {base:?}: {findings:?}");
                let what = if t.shape.len() > 1 { "rows" } else { "elements" };
                let expected = format!("others in 1 of {} {what}, the first of them 3:", t.shape[0]);
                assert!(findings[0].found.starts_with(&expected), "{tensor}: {}", findings[0].found);
            }
        }
    }
}

#[test]
fn every_command_that_reads_a_checkpoint_refuses_a_base_that_was_trained() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("checkpoint");
    let mut source = beside_everything("llama-mha");
    source.change("embed_tokens.weight", |t| {
        let mut t = t.clone();
        t.values[3 * 96] += 1.0;
        t
    });
    source.write(&folder);
    let (out, bundle, probe) =
        (temp.path().join("out.gguf"), temp.path().join("bundle"), model("llama-mha").join("probe.safetensors"));
    let text = |p: &std::path::Path| p.to_str().unwrap().to_owned();
    for base in [model("llama-mha").join("base"), crate::common::base_gguf("llama-mha")] {
        for args in [
            vec!["validate", &text(&folder)],
            vec!["convert", &text(&folder), "-o", &text(&out)],
            vec!["quantize", &text(&folder), "-o", &text(&out), "Q8_0"],
            vec!["pack", &text(&folder), "-o", &text(&bundle)],
            vec!["verify", &text(&folder), "--probe", &text(&probe)],
        ] {
            let done = crate::common::ptplus(args.iter().copied().chain(["--base", &text(&base)]));
            assert_eq!(exit(&done), 4, "{args:?}: {}", stderr(&done));
            assert!(!out.exists() && !bundle.exists(), "{args:?}");
        }
    }
    // Without a base nothing can be told, and that is said.
    let done = crate::common::ptplus(["convert", &text(&folder), "-o", &text(&out), "--arch", "llama"]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    let n = source.tensors.len() - 3;
    let note = format!(
        "note: {n} weights of the base model that lie beside the adapter were not compared with it since there is no base"
    );
    assert!(stderr(&done).contains(&note), "{}", stderr(&done));
}
