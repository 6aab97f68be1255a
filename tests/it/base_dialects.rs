//! Folders of base models as other programs leave them: names with their wrappers, words of Python in JSON, files that
//! begin with a dot, settings that change nothing. All of them are the same model as without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{Tensor, exit, json, model, ptplus, read_safetensors, stderr, write_safetensors};
use serde_json::{Value, json as value};

/// A copy of a fixture's base folder.
fn copy(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model(name).join("base").join(file), folder.join(file)).unwrap();
    }
    folder
}

fn edit_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(file, config.to_string()).unwrap();
}

fn edit_tensors(folder: &Path, change: impl FnOnce(BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor>) {
    let file = folder.join("model.safetensors");
    write_safetensors(&file, &change(read_safetensors(&file)));
}

/// Renames every tensor.
fn rename(folder: &Path, new: impl Fn(&str) -> String) {
    edit_tensors(folder, |tensors| tensors.into_iter().map(|(name, t)| (new(&name), t)).collect());
}

/// Exit code and error of proving an adapter of `name` against the base in `folder`, and of converting that base.
fn outcomes(name: &str, folder: &Path) -> [(i32, Value); 2] {
    let out = folder.parent().unwrap().join("out");
    let (adapter, probe) = (model(name).join("adapter"), model(name).join("probe.safetensors"));
    let adapter_file = out.with_extension("adapter.gguf");
    let base_file = out.with_extension("base.gguf");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let prove = ["convert", "-f", &text(&adapter), "-o", &text(&adapter_file), "--base", &text(folder)];
    let prove: Vec<String> = prove.iter().map(|s| (*s).to_owned()).chain(["--probe".into(), text(&probe)]).collect();
    let convert = ["convert", "-f", &text(folder), "-o", &text(&base_file)].map(str::to_owned);
    let run = |args: Vec<String>| {
        let (code, document) = json(args);
        (code, document["error"].clone())
    };
    [run(prove), run(convert.to_vec())]
}

fn assert_same_model(what: &str, name: &str, folder: &Path) {
    for (code, error) in outcomes(name, folder) {
        assert_eq!(code, 0, "{what}: {error}");
    }
    let plain = folder.parent().unwrap().join("plain.gguf");
    let out = ptplus(["convert".as_ref(), "-f".as_ref(), copy_of(name).as_os_str(), "-o".as_ref(), plain.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let tensors = |file: &Path| {
        let file = ptplus::format::gguf::open(file).unwrap();
        file.tensors.iter().map(|t| (t.name.clone(), t.bytes.to_vec())).collect::<Vec<_>>()
    };
    assert!(tensors(&plain) == tensors(&folder.parent().unwrap().join("out.base.gguf")), "{what}");
}

fn copy_of(name: &str) -> PathBuf {
    model(name).join("base")
}

#[test]
fn wrappers_in_names_do_not_matter() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-gqa";
    type Rename = fn(&str) -> String;
    let cases: [(&str, Rename); 11] = [
        ("the model without its head", |n| n.trim_start_matches("model.").into()),
        ("torch.compile", |n| format!("_orig_mod.{n}")),
        ("DataParallel", |n| format!("module.{n}")),
        ("PEFT", |n| format!("base_model.model.{n}")),
        ("PEFT around the model without its head", |n| format!("base_model.model.{}", n.trim_start_matches("model."))),
        ("all of them", |n| format!("module._orig_mod.base_model.model.{n}")),
        ("FSDP", |n| format!("_fsdp_wrapped_module.{n}")),
        ("layers in FSDP", |n| n.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")),
        ("layers that are computed twice", |n| n.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")),
        ("compiled layers", |n| n.replace(".mlp.", "._orig_mod.mlp.")),
        ("layers that PEFT wraps", |n| n.replace("_proj.weight", "_proj.base_layer.weight")),
    ];
    for (what, new) in cases {
        let folder = copy(name, temp.path());
        rename(&folder, new);
        assert_same_model(what, name, &folder);
    }
}

#[test]
fn two_tensors_for_one_weight_and_layers_of_lora_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("llama-gqa", temp.path());
    edit_tensors(&folder, |mut tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("_orig_mod.model.norm.weight".into(), norm);
        tensors
    });
    for (code, error) in outcomes("llama-gqa", &folder) {
        assert_eq!((code, error["code"].as_str()), (3, Some("base-tensor")), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("expected one tensor for model.norm.weight, found"), "{message}");
    }
    let folder = copy("llama-gqa", temp.path());
    rename(&folder, |n| format!("base_model.model.{}", n.replace("q_proj.weight", "q_proj.base_layer.weight")));
    edit_tensors(&folder, |mut tensors| {
        let norm = tensors["base_model.model.model.norm.weight"].clone();
        tensors.insert("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight".into(), norm);
        tensors
    });
    for (code, error) in outcomes("llama-gqa", &folder) {
        assert_eq!((code, error["code"].as_str()), (7, Some("config-unsupported")), "{error}");
    }
}

#[test]
fn what_python_writes_for_numbers_without_a_word_in_json_is_read_where_nothing_asks_for_it() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("llama-gqa", temp.path());
    let file = folder.join("config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let with = |entries: &str| text.replacen('{', &format!("{{{entries},"), 1);
    std::fs::write(&file, with(r#""time_step_limit":[0.0,Infinity],"x":{"y":NaN,"z":-Infinity}"#)).unwrap();
    assert_same_model("not read", "llama-gqa", &folder);
    for (field, word) in
        [("rms_norm_eps", "NaN"), ("hidden_act", "NaN"), ("auto_map", "Infinity"), ("vocab_size", "-Infinity")]
    {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().remove(field);
        let rest = config.to_string();
        std::fs::write(&file, rest.replacen('{', &format!("{{\"{field}\":{word},"), 1)).unwrap();
        for (code, error) in outcomes("llama-gqa", &folder) {
            assert_eq!((code, error["code"].as_str()), (3, Some("config-field")), "{field}: {error}");
            assert_eq!(error["field"], field);
            assert!(error["message"].as_str().unwrap().ends_with(&format!("found {word}")), "{error}");
        }
    }
    std::fs::write(&file, with(r#""x":NaN,"x":NaN"#)).unwrap();
    for (code, error) in outcomes("llama-gqa", &folder) {
        assert_eq!((code, error["code"].as_str()), (3, Some("json-duplicate-key")), "{error}");
    }
}

#[test]
fn an_adapters_configuration_keeps_them_on_the_way_to_gguf_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("adapter");
    crate::common::RawAdapter::fixture("llama-gqa").write(&folder);
    let file = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen('{', r#"{"best_loss":NaN,"more":[1,Infinity],"#, 1)).unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    for args in [
        ["convert", &path("adapter"), "-o", &path("a.gguf"), "--arch", "llama"],
        ["convert", &path("a.gguf"), "-o", &path("back"), "--to", "safetensors"],
    ] {
        let out = ptplus(args);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    }
    let back = std::fs::read_to_string(temp.path().join("back/adapter_config.json")).unwrap();
    assert!(back.contains("\"best_loss\": NaN,") && back.contains("Infinity") && !back.contains('$'), "{back}");
    std::fs::write(&file, text.replacen("\"memory_scale\"", "\"memory_scale\": NaN, \"was\"", 1)).unwrap();
    let (code, document) = json(["validate", &path("adapter"), "--base", copy_of("llama-gqa").to_str().unwrap()]);
    let error = &document["error"];
    assert_eq!((code, error["field"].as_str()), (3, Some("memory_scale")), "{document}");
}

#[test]
fn names_that_begin_with_a_dot_are_not_looked_at() {
    const APPLE_DOUBLE: &[u8] = &[0, 5, 22, 7];
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("llama-gqa", temp.path());
    std::fs::rename(folder.join("model.safetensors"), folder.join("weights.safetensors")).unwrap();
    for name in ["._weights.safetensors", "._config.json", ".DS_Store", ".other.safetensors"] {
        std::fs::write(folder.join(name), APPLE_DOUBLE).unwrap();
    }
    assert_same_model("a base", "llama-gqa", &folder);

    let adapter = temp.path().join("adapters/one");
    crate::common::RawAdapter::fixture("llama-gqa").write(&adapter);
    std::fs::rename(adapter.join("adapter_model.safetensors"), adapter.join("final.safetensors")).unwrap();
    for name in ["._final.safetensors", ".final.pt"] {
        std::fs::write(adapter.join(name), APPLE_DOUBLE).unwrap();
    }
    let base = copy_of("llama-gqa");
    let (code, document) = json(["validate".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()]);
    assert_eq!(code, 0, "{document}");

    let adapters = temp.path().join("adapters");
    std::fs::create_dir(adapters.join(".hidden")).unwrap();
    std::fs::write(adapters.join(".hidden/x.safetensors"), APPLE_DOUBLE).unwrap();
    std::fs::write(adapters.join("._one.gguf"), APPLE_DOUBLE).unwrap();
    // Notes beside adapters, which macOS copied with what it keeps of a file.
    std::fs::create_dir(adapters.join("notes")).unwrap();
    std::fs::write(adapters.join("notes/._one.gguf"), APPLE_DOUBLE).unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let out = temp.path().join("batch");
    let out =
        ptplus(["convert", "--jobs", "1", &path(&adapters), "-o", &path(&out), "--to", "gguf", "--base", &path(&base)]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let shown = crate::common::stdout(&out);
    assert!(shown.contains("converted 1 of 1 adapters") && shown.contains("skipped: notes\n"), "{shown}");
}

#[test]
fn how_the_training_split_its_products_does_not_matter() {
    let temp = tempfile::tempdir().unwrap();
    for parts in [2, 8] {
        let folder = copy("llama-gqa", temp.path());
        edit_config(&folder, |c| c["pretraining_tp"] = parts.into());
        assert_same_model("pretraining_tp", "llama-gqa", &folder);
    }
}

/// llama.cpp loads a bias of `o_proj` for llama alone, and takes a head's length in qwen2 for granted.
#[test]
fn a_base_that_llama_cpp_would_not_load_is_not_converted() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("qwen3", temp.path());
    edit_config(&folder, |c| c["attention_bias"] = true.into());
    edit_tensors(&folder, |mut tensors| {
        let weights: Vec<(String, usize)> = tensors
            .iter()
            .filter(|(name, _)| name.contains("self_attn.") && name.ends_with("_proj.weight"))
            .map(|(name, t)| (name.clone(), t.shape[0]))
            .collect();
        for (name, rows) in weights {
            let bias = Tensor { shape: vec![rows], values: vec![0.25; rows] };
            tensors.insert(name.replace(".weight", ".bias"), bias);
        }
        tensors
    });
    let [_, (code, error)] = outcomes("qwen3", &folder);
    assert_eq!((code, error["field"].as_str()), (7, Some("attention_bias")), "{error}");
    assert_eq!(error["code"], "config-unsupported");

    let folder = copy("qwen2", temp.path());
    edit_config(&folder, |c| c["num_attention_heads"] = value!(c["num_attention_heads"].as_u64().unwrap() / 2));
    edit_config(&folder, |c| {
        let kv = c["num_key_value_heads"].as_u64().unwrap();
        c["num_key_value_heads"] = value!(kv.min(c["num_attention_heads"].as_u64().unwrap()));
        c["head_dim"] = value!(c["hidden_size"].as_u64().unwrap() / c["num_attention_heads"].as_u64().unwrap() / 2);
    });
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (queries, keys) =
        (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
    edit_tensors(&folder, |tensors| {
        let resized = |(name, t): (String, Tensor)| {
            let shape = match name.rsplit("self_attn.").next().filter(|_| name.contains("self_attn.")) {
                Some("q_proj.weight") => vec![queries, t.shape[1]],
                Some("q_proj.bias") => vec![queries],
                Some("k_proj.weight" | "v_proj.weight") => vec![keys, t.shape[1]],
                Some("k_proj.bias" | "v_proj.bias") => vec![keys],
                Some("o_proj.weight") => vec![t.shape[0], queries],
                _ => t.shape.clone(),
            };
            let values = vec![0.5; shape.iter().product()];
            (name, Tensor { shape, values })
        };
        tensors.into_iter().map(resized).collect()
    });
    let [_, (code, error)] = outcomes("qwen2", &folder);
    assert_eq!((code, error["field"].as_str()), (7, Some("head_dim")), "{error}");
}

/// A base in two shards with an index, as `save_pretrained` writes it.
fn shard(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    for (i, (name, t)) in read_safetensors(&whole).into_iter().enumerate() {
        if i % 2 == 0 {
            first.insert(name, t)
        } else {
            second.insert(name, t)
        };
    }
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        map.extend(part.keys().map(|name| (name.clone(), file.into())));
        write_safetensors(&folder.join(file), &part);
    }
    std::fs::remove_file(whole).unwrap();
    std::fs::write(folder.join("model.safetensors.index.json"), value!({"weight_map": map}).to_string()).unwrap();
}

#[test]
fn a_folder_of_links_is_the_model_that_they_lead_to() {
    use std::os::unix::fs::symlink;
    let temp = tempfile::tempdir().unwrap();
    let real = copy("llama-gqa", &temp.path().join("elsewhere"));
    shard(&real);
    // All of them links, or the weights alone.
    for links_all in [true, false] {
        let folder = temp.path().join(format!("links-{links_all}"));
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(&real).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), folder.join(entry.unwrap().file_name()));
            if links_all || from.extension().is_some_and(|e| e == "safetensors") {
                symlink(&from, &to).unwrap();
            } else {
                std::fs::copy(&from, &to).unwrap();
            }
        }
        assert_same_model(&format!("links, all {links_all}"), "llama-gqa", &folder);
        // A link under another name reads what the index does not name.
        let shard = folder.join("model-00001-of-00002.safetensors");
        std::fs::remove_file(&shard).unwrap();
        std::fs::copy(real.join("model-00001-of-00002.safetensors"), temp.path().join("other.safetensors")).unwrap();
        symlink(temp.path().join("other.safetensors"), &shard).unwrap();
        for (code, document) in outcomes("llama-gqa", &folder) {
            assert_eq!((code, document["code"].as_str()), (3, Some("safetensors-index")), "{document}");
        }
    }
}

#[test]
fn weights_in_8_bit_floats_are_told_what_to_become() {
    let temp = tempfile::tempdir().unwrap();
    let stated = copy("llama-gqa", &temp.path().join("stated"));
    edit_config(&stated, |c| {
        c["quantization_config"] = value!({"quant_method": "fp8", "weight_block_size": [128, 128]})
    });
    let compressed = copy("llama-gqa", &temp.path().join("compressed"));
    edit_config(&compressed, |c| {
        let weights = value!({"num_bits": 8, "type": "float"});
        c["quantization_config"] =
            value!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}});
    });
    let silent = copy("llama-gqa", &temp.path().join("silent"));
    let file = silent.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views = parsed.tensors().into_iter().map(|(name, t)| {
        let is_matrix = name.ends_with("q_proj.weight");
        let n: usize = t.shape().iter().product();
        let view = if is_matrix {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F8_E4M3, t.shape().to_vec(), &bytes[..n]).unwrap()
        } else {
            t
        };
        (name, view)
    });
    let changed = safetensors::serialize(views, None).unwrap();
    std::fs::write(&file, changed).unwrap();
    let gptq = copy("llama-gqa", &temp.path().join("gptq"));
    edit_config(&gptq, |c| c["quantization_config"] = value!({"quant_method": "gptq", "bits": 4}));
    for (folder, hint) in [
        (stated, "convert to BF16 first"),
        (compressed, "convert to BF16 first"),
        (silent, "convert to BF16 first"),
        (gptq, "take the model that it was quantized from"),
    ] {
        for (code, document) in outcomes("llama-gqa", &folder) {
            let hints = document["hints"].to_string();
            assert!(code == 7 && hints.contains(hint), "{}: {code} {document}", folder.display());
        }
    }
}
