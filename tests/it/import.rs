//! Checkpoints of other training codes come out equal to the canonical adapter, or are refused by name.

use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, distance, exit, import, json, model, ptplus, read_safetensors, stderr, stdout};
use serde_json::Value;

/// Every foreign fixture, by model.
const FOREIGN: [(&str, &str); 12] = [
    ("llama-mha", "flat"),
    ("llama-mha", "linear-transposed"),
    ("llama-mha", "peft"),
    ("llama-mha", "per-head"),
    ("llama-mha", "pytorch-bin"),
    ("llama-mha", "stacked"),
    ("llama-mha", "training-checkpoint"),
    ("llama-mha", "wrapped-prefixes"),
    ("llama-gqa", "peft"),
    ("mistral-swa", "peft"),
    ("qwen2", "peft"),
    ("qwen3", "peft"),
];

/// What `llama-mha`'s checkpoints without a configuration leave open.
const LLAMA_MHA: [&str; 5] =
    ["--feature-map=elu", "--query-tap=post_rope", "--query-scale=1", "--memory-scale=1", "--memory-sharing=per_head"];

fn foreign(model_name: &str, layout: &str) -> PathBuf {
    model(model_name).join("foreign").join(layout)
}

#[test]
fn every_foreign_fixture_is_the_canonical_adapter_beside_it() {
    let temp = tempfile::tempdir().unwrap();
    for (name, layout) in FOREIGN {
        let out = temp.path().join(format!("{name}-{layout}"));
        let open: &[&str] = match layout {
            "training-checkpoint" => &LLAMA_MHA,
            "linear-transposed" => {
                &[LLAMA_MHA[0], LLAMA_MHA[1], LLAMA_MHA[2], LLAMA_MHA[3], LLAMA_MHA[4], "--transpose-memory"]
            }
            _ => &[],
        };
        let done = import(&foreign(name, layout), &out, Some(&model(name).join("base")), open);
        assert_eq!(exit(&done), 0, "{name}/{layout}: {}", stderr(&done));
        let (found, reference) = (RawAdapter::read(&out), RawAdapter::fixture(name));
        // Half a unit in the last place of the type that the checkpoint has.
        let limit = match layout {
            "linear-transposed" | "pytorch-bin" => 1.0 / 256.0,
            "per-head" => 1.0 / 2048.0,
            _ => 0.0,
        };
        assert!(distance(&found, &reference) <= limit, "{name}/{layout}: {}", distance(&found, &reference));
        for (key, value) in reference.config.as_object().unwrap() {
            if key == "layers_to_transform" && found.config[key].is_array() != value.is_array() {
                continue;
            }
            if found.config.get(key).is_none() {
                assert!(open.len() >= 5, "{name}/{layout}: {key} got lost");
            } else {
                assert_eq!(&found.config[key], value, "{name}/{layout}: {key}");
            }
        }
    }
}

#[test]
fn what_nothing_states_is_open_and_each_flag_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let done = import(&foreign("llama-mha", "linear-transposed"), &out, Some(&model("llama-mha").join("base")), &[]);
    assert_eq!(exit(&done), 7, "{}", stderr(&done));
    for flag in ["--feature-map", "--query-tap", "--query-scale", "--memory-scale", "--transpose-memory"] {
        assert!(stderr(&done).contains(flag), "{flag}: {}", stderr(&done));
    }
    // Three memories for three heads.
    assert!(!stderr(&done).contains("--memory-sharing"), "{}", stderr(&done));
    let done = import(&foreign("llama-mha", "linear-transposed"), &out, None, &[]);
    assert!(exit(&done) == 7 && stderr(&done).contains("--memory-sharing"), "{}", stderr(&done));
    assert!(!out.exists());
    // Five of six: the sixth is named alone.
    let done =
        import(&foreign("llama-mha", "linear-transposed"), &out, Some(&model("llama-mha").join("base")), &LLAMA_MHA);
    assert_eq!(exit(&done), 7);
    assert!(
        stderr(&done).contains("--transpose-memory") && !stderr(&done).contains("--feature-map"),
        "{}",
        stderr(&done)
    );
}

#[test]
fn a_flag_that_contradicts_the_configuration_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let base = model("llama-mha").join("base");
    let done = import(&foreign("llama-mha", "peft"), &out, Some(&base), &["--feature-map=relu"]);
    assert_eq!(exit(&done), 2, "{}", stderr(&done));
    assert!(stderr(&done).contains("convention-contradiction"), "{}", stderr(&done));
    let done = import(&foreign("llama-mha", "peft"), &out, Some(&base), &["--feature-map=elu", "--layers=all"]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
}

#[test]
fn the_ledger_lists_every_tensor_of_a_training_checkpoint() {
    let (code, found) = json(["inspect".as_ref(), foreign("llama-mha", "training-checkpoint").as_path()]);
    assert_eq!(code, 0);
    let fate = |name: &str| -> String {
        let line = found["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name);
        line.unwrap_or_else(|| panic!("{name} is not listed"))["role"].as_str().unwrap().to_owned()
    };
    assert_eq!(fate("model_state_dict.model.layers.1.self_attn.prefix_memory"), "memory of layer 1");
    assert_eq!(fate("model_state_dict.model.layers.0.self_attn.q_proj.weight"), "ignored: weights of the base model");
    assert_eq!(fate("optimizer.state.0.exp_avg"), "ignored: state of the optimizer or trainer");
    assert!(found["notes"].to_string().contains("--feature-map"), "{}", found["notes"]);
}

/// Writes a changed copy of a fixture's tensors with the full configuration.
fn rewritten(temp: &Path, name: &str, change: impl Fn(&str) -> Vec<String>) -> PathBuf {
    let source = RawAdapter::fixture(name);
    let mut tensors = std::collections::BTreeMap::new();
    for (n, t) in &source.tensors {
        for renamed in change(n) {
            tensors.insert(renamed, t.clone());
        }
    }
    let folder = temp.join("rewritten");
    let _ = std::fs::remove_dir_all(&folder);
    RawAdapter { config: source.config, tensors }.write(&folder);
    folder
}

#[test]
fn left_over_and_doubly_claimed_tensors_are_errors() {
    let temp = tempfile::tempdir().unwrap();
    type Case = (&'static str, fn(&str) -> Vec<String>, &'static str);
    let cases: [Case; 4] = [
        ("a second copy", |n| vec![n.into(), format!("ema.{n}")], "adapter-duplicate"),
        ("an unknown part", |n| vec![n.into(), format!("{n}_gate")], "adapter-left-over"),
        ("a second adapter", |n| vec![n.into(), format!("{n}.other")], "adapter-left-over"),
        ("a missing head", |n| vec![n.replace("layers.0.memory", "layers.0.heads.1.memory")], "adapter-"),
    ];
    for (what, change, code) in cases {
        let folder = rewritten(temp.path(), "llama-mha", change);
        let out = temp.path().join("out");
        let done = import(&folder, &out, None, &[]);
        assert_eq!(exit(&done), 4, "{what}: {}", stderr(&done));
        assert!(stderr(&done).contains(code), "{what}: {}", stderr(&done));
        assert!(!out.exists(), "{what}");
    }
}

#[test]
fn names_of_many_trainers_are_understood() {
    let temp = tempfile::tempdir().unwrap();
    let layer = |n: &str| n.split('.').nth(1).unwrap().to_owned();
    type Rename = Box<dyn Fn(&str) -> String>;
    let cases: Vec<(&str, Rename)> = vec![
        ("gpt", Box::new(move |n| format!("transformer.h.{}.attn.prefix_memory", layer(n)))),
        ("encoder", Box::new(move |n| format!("encoder.layers.{}.self_attn.memory", layer(n)))),
        ("peft default", Box::new(move |n| format!("layers.{}.prefix.M.default.weight", layer(n)))),
        ("peft named", Box::new(move |n| format!("base_model.model.layers.{}.memory.pirate", layer(n)))),
        ("list", Box::new(move |n| format!("prefix_M.{}", layer(n)))),
        ("parameter dictionary", Box::new(move |n| format!("tensors.{}|memory", layer(n)))),
    ];
    let reference = RawAdapter::fixture("llama-mha");
    for (what, rename) in cases {
        let folder = rewritten(temp.path(), "llama-mha", |n| vec![rename(n)]);
        let out = temp.path().join(what);
        let done = import(&folder, &out, None, &[]);
        assert_eq!(exit(&done), 0, "{what}: {}", stderr(&done));
        assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0, "{what}");
    }
}

#[test]
fn flattened_feature_maps_and_memories_are_split_into_heads() {
    // qwen3 has W [4, 96, 64], b [4, 96] and M [4, 96, 64]: as one linear layer each, [4 * 96, 64].
    let temp = tempfile::tempdir().unwrap();
    let mut source = RawAdapter::fixture("qwen3");
    let reference = source.clone();
    for t in source.tensors.values_mut() {
        let rest = t.shape.split_off(2);
        t.shape = std::iter::once(t.shape[0] * t.shape[1]).chain(rest).collect();
    }
    source.tensors = source
        .tensors
        .into_iter()
        .map(|(n, t)| (n.replace("layers.", "model.layers.").replace(".feature.", ".attn.prefix_feature."), t))
        .collect();
    for key in ["num_features", "num_attention_heads", "num_layers"] {
        source.config.as_object_mut().unwrap().remove(key);
    }
    let folder = temp.path().join("flat");
    source.write(&folder);
    let out = temp.path().join("out");
    let done = import(&folder, &out, Some(&model("qwen3").join("base")), &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
}

#[test]
fn layers_stacked_in_flattened_rows_need_their_numbers() {
    let temp = tempfile::tempdir().unwrap();
    let source = RawAdapter::fixture("llama-gqa"); // layers 0 and 2 of 3
    let stacked = crate::common::Tensor {
        shape: vec![2, 4 * 64, 64],
        values: source.tensors.values().flat_map(|t| t.values.clone()).collect(),
    };
    let mut config = source.config.clone();
    config.as_object_mut().unwrap().remove("layers_to_transform");
    let folder = temp.path().join("stacked");
    let tensors = [("prefix_memory".to_owned(), stacked)].into_iter().collect();
    RawAdapter { config, tensors }.write(&folder);
    let out = temp.path().join("out");
    let done = import(&folder, &out, None, &[]);
    assert_eq!(exit(&done), 7, "{}", stderr(&done));
    assert!(stderr(&done).contains("--layers"), "{}", stderr(&done));
    let done = import(&folder, &out, None, &["--layers=0,2"]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &source), 0.0);

    // Layers and heads in one dimension, whose length says neither.
    let mut source = RawAdapter::read(&folder);
    for (shape, axes) in [(vec![2 * 4, 64, 64], "(L H) F V"), (vec![2 * 4 * 64, 64], "(L H F) V")] {
        source.change("prefix_memory", |t| crate::common::Tensor { shape: shape.clone(), ..t.clone() });
        source.write(&folder);
        let layout = temp.path().join("layout.toml");
        std::fs::write(&layout, format!("[[tensor]]\nname='prefix_memory'\nrole='memory'\naxes='{axes}'\n")).unwrap();
        let out = temp.path().join(axes);
        let with_layers = |layers| import(&folder, &out, None, &["--layout", layout.to_str().unwrap(), layers]);
        let done = with_layers("--layers=0-2");
        assert_eq!(exit(&done), 4, "{axes}: {}", stderr(&done));
        let done = with_layers("--layers=0,2");
        assert_eq!(exit(&done), 0, "{axes}: {}", stderr(&done));
        assert_eq!(distance(&RawAdapter::read(&out), &RawAdapter::fixture("llama-gqa")), 0.0, "{axes}");
    }
}

#[test]
fn all_layers_of_a_model_share_a_dimension_with_its_heads() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture("llama-mha"); // every layer, as the configuration says
    let values = reference.tensors.values().flat_map(|t| t.values.clone()).collect();
    let stacked = crate::common::Tensor { shape: vec![3 * 3, 32, 32], values };
    let folder = temp.path().join("stacked");
    RawAdapter { config: reference.config.clone(), tensors: [("prefix_memory".to_owned(), stacked)].into() }
        .write(&folder);
    let layout = temp.path().join("layout.toml");
    std::fs::write(&layout, "[[tensor]]\nname='prefix_memory'\nrole='memory'\naxes='(L H) F V'\n").unwrap();
    let out = temp.path().join("out");
    let done = import(&folder, &out, None, &["--layout", layout.to_str().unwrap()]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
}

#[test]
fn a_layout_file_reads_what_no_rule_knows() {
    let temp = tempfile::tempdir().unwrap();
    // Names of nobody, heads in the name, each head transposed.
    let source = RawAdapter::fixture("llama-mha");
    let mut tensors = std::collections::BTreeMap::new();
    for (name, t) in &source.tensors {
        let layer = name.split('.').nth(1).unwrap();
        let t = t.transposed();
        for (h, values) in t.values.chunks(32 * 32).enumerate() {
            let head = crate::common::Tensor { shape: vec![32, 32], values: values.to_vec() };
            tensors.insert(format!("blocks_{layer}_ctrl{h}"), head);
        }
    }
    let folder = temp.path().join("odd");
    std::fs::create_dir_all(&folder).unwrap();
    crate::common::write_safetensors(&folder.join("weights.safetensors"), &tensors);
    let base = model("llama-mha").join("base");
    let out = temp.path().join("out");

    let done = import(&folder, &out, Some(&base), &LLAMA_MHA);
    assert_eq!(exit(&done), 7, "{}", stderr(&done));
    assert!(stderr(&done).contains("--suggest-layout"), "{}", stderr(&done));

    // The first draft parses as it is, and filled in it works.
    let draft = stdout(&ptplus(["inspect".as_ref(), folder.as_os_str(), "--suggest-layout".as_ref()]));
    assert!(draft.contains("ctrl"), "{draft}");
    let layout = temp.path().join("layout.toml");
    let constants = "feature_map = \"elu\"\nquery_tap = \"post_rope\"\nquery_scale = 1\nmemory_scale = 1\nmemory_sharing = \"per_head\"\n";
    let filled = draft
        .replace("axes = \"F V\"", "axes = \"V F\"")
        .replace("[constants]\n", &format!("[constants]\n{constants}"));
    assert_ne!(draft, filled);
    std::fs::write(&layout, &filled).unwrap();
    let done = import(&folder, &out, Some(&base), &["--layout", layout.to_str().unwrap()]);
    assert_eq!(exit(&done), 0, "{}\n{filled}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &source), 0.0);
    assert_eq!(RawAdapter::read(&out).config["ptplus_conventions"]["feature_map"], "layout file");

    // A flag may say the same as the axes, and nothing else.
    let transposed = |flag: &str| {
        import(
            &folder,
            &temp.path().join("flag"),
            Some(&base),
            &["--layout", layout.to_str().unwrap(), flag, "--force"],
        )
    };
    let done = transposed("--transpose-memory");
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    std::fs::write(&layout, filled.replace("V F", "F V")).unwrap();
    let done = transposed("--transpose-memory");
    assert_eq!(exit(&done), 2, "{}", stderr(&done));
    assert!(stderr(&done).contains("transpose_memory: expected false"), "{}", stderr(&done));
    let stated = filled.replace("[constants]\n", "[constants]\ntranspose_memory = \"x\"\n");
    std::fs::write(&layout, stated).unwrap();
    let done = transposed("--quiet");
    assert!(stderr(&done).contains("layout.toml: transpose_memory"), "{}", stderr(&done));

    std::fs::write(&layout, filled.replace("axes", "axis")).unwrap();
    let done = import(&folder, &temp.path().join("no"), Some(&base), &["--layout", layout.to_str().unwrap()]);
    assert_eq!(exit(&done), 2, "{}", stderr(&done));
}

#[test]
fn shards_are_one_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let source = RawAdapter::fixture("llama-mha");
    let mut map = serde_json::Map::new();
    for (i, (name, t)) in source.tensors.iter().enumerate() {
        let shard = format!("adapter_model-{}-of-3.safetensors", i + 1);
        crate::common::write_safetensors(
            &folder.join(&shard),
            &[(format!("model.{name}"), t.clone())].into_iter().collect(),
        );
        map.insert(format!("model.{name}"), shard.into());
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(folder.join("adapter_model.safetensors.index.json"), index).unwrap();
    std::fs::write(folder.join("adapter_config.json"), source.config.to_string()).unwrap();
    let out = temp.path().join("out");
    let done = import(folder, &out, None, &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(read_safetensors(&out.join("adapter_model.safetensors")), source.tensors);
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config.get("ptplus_conventions"), None, "nothing had to be settled");
}

/// `--transpose-memory` in `adapter_config.json`: heeded, held against the flag, and not carried into an output whose
/// memories lie otherwise.
#[test]
fn a_configuration_says_that_memories_are_transposed() {
    let temp = tempfile::tempdir().unwrap();
    let source = foreign("llama-mha", "linear-transposed");
    let config: serde_json::Value = {
        let canonical = model("llama-mha").join("adapter/adapter_config.json");
        let mut all: serde_json::Value = serde_json::from_slice(&std::fs::read(canonical).unwrap()).unwrap();
        all["transpose_memory"] = true.into();
        all
    };
    let folder = temp.path().join("source");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(source.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
    let write =
        |config: &serde_json::Value| std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    write(&config);
    let out = temp.path().join("out");
    let done = import(&folder, &out, None, &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    // The fixture is stored in BF16.
    assert!(distance(&RawAdapter::read(&out), &RawAdapter::fixture("llama-mha")) < 1.0 / 256.0);
    assert!(RawAdapter::read(&out).config.get("transpose_memory").is_none());
    assert_eq!(exit(&import(&folder, &temp.path().join("b"), None, &["--transpose-memory=false"])), 2);
    assert_eq!(exit(&import(&folder, &temp.path().join("c"), None, &["--transpose-memory"])), 0);
    for wrong in [serde_json::json!(1), serde_json::json!("yes")] {
        let mut other = config.clone();
        other["transpose_memory"] = wrong;
        write(&other);
        assert_eq!(exit(&import(&folder, &temp.path().join("d"), None, &[])), 3);
    }
}

/// `layers.0.gate` beside a whole model may be the model's, or change what the adapter computes: it is named.
#[test]
fn what_no_rule_knows_beside_a_whole_model_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let mut adapter = RawAdapter::fixture("llama-mha");
    let any = adapter.tensors.values().next().unwrap().clone();
    for name in ["lm_head.weight", "layers.0.gate"] {
        adapter.tensors.insert(name.into(), any.clone());
    }
    adapter.write(temp.path());
    let done = import(temp.path(), &temp.path().join("out"), None, &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert!(
        stderr(&done)
            .contains("note: 1 tensors beside the model's are known by no rule and were not read: layers.0.gate"),
        "{}",
        stderr(&done)
    );
}
