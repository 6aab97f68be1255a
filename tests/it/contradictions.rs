//! Files that are well formed and contradict themselves or each other: each used to be taken at its word somewhere.

use std::path::{Path, PathBuf};

use crate::common::{exit, json, model, ptplus, stderr};
use ptplus::format::TensorSpec;
use ptplus::format::gguf::{self, Metadata};
use ptplus::tensor::DType;
use serde_json::{Value, json as object};

const MODEL: &str = "llama-gqa"; // adapts layers 0 and 2 of 3

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The fixture's adapter as GGUF.
    fn adapter(&self, more: &[&str]) -> String {
        let out = self.path("adapter.gguf");
        ok(&[&["convert", &of("adapter"), "-o", &out, "--base", &of("base"), "--force"], more].concat());
        out
    }

    /// A copy with other metadata, and other tensors' types where `dtype` says so.
    fn changed(&self, from: &str, change: impl FnOnce(&mut Metadata)) -> String {
        let file = gguf::open(Path::new(from)).unwrap();
        let mut metadata = file.metadata.clone();
        change(&mut metadata);
        let spec = |t: &ptplus::format::StoredTensor| TensorSpec {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
        };
        let plan = gguf::plan(&metadata, &file.tensors.iter().map(spec).collect::<Vec<_>>()).unwrap();
        let mut bytes = plan.header.clone();
        bytes.resize(plan.len_bytes as usize, 0);
        for (p, t) in plan.tensors.iter().zip(&file.tensors) {
            bytes[p.file_offset as usize..][..t.bytes.len()].copy_from_slice(&t.bytes);
        }
        let out = self.path("changed.gguf");
        std::fs::write(&out, bytes).unwrap();
        out
    }
}

fn of(part: &str) -> String {
    crate::common::base_as(part, MODEL).to_str().unwrap().to_owned()
}

fn ok(args: &[&str]) {
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{args:?}: {}", stderr(&out));
}

/// `validate` refuses it with this code.
fn refused(adapter: &str, code: &str) {
    let (exit, report) = json(["validate", adapter, "--base", &of("base")]);
    let text = report.to_string();
    assert!(exit != 0 && text.contains(&format!("\"{code}\"")), "{code}: exit {exit}, {text}");
}

fn source_config(m: &mut Metadata, field: &str, value: Value) {
    let key = "ptplus.source_config";
    let mut config: Value = serde_json::from_str(m.str(key).unwrap().unwrap()).unwrap();
    config[field] = value;
    m.insert(key, config.to_string().as_str());
}

#[test]
fn what_a_gguf_adapter_records_must_be_about_it() {
    let s = Scratch::new();
    let adapter = s.adapter(&[]);
    let with = |change: &dyn Fn(&mut Metadata)| s.changed(&adapter, |m| change(m));
    ok(&["validate", &with(&|_| {}), "--base", &of("base")]);
    // Recorded types loosen the limits of `verify`.
    refused(&with(&|m| m.insert("ptplus.source_dtypes", r#"{"nonsense":"BF16"}"#)), "config-field");
    refused(&with(&|m| source_config(m, "ptplus_widened_from", "banana".into())), "config-field");
    for (layers, code) in
        [(object!([0, 1]), "adapter-missing"), (object!([0]), "adapter-left-over"), (Value::Null, "adapter-missing")]
    {
        refused(&with(&|m| source_config(m, "layers_to_transform", layers.clone())), code);
    }
    refused(&with(&|m| source_config(m, "base_model_type", "qwen2".into())), "adapter-mismatch");
    // A fingerprint that cannot be read must not switch the check of the base off; one of another version may.
    let print =
        gguf::open(Path::new(&adapter)).unwrap().metadata.str("ptplus.base_fingerprint").unwrap().unwrap().to_owned();
    for bad in ["", &print[..print.len() - 5], &print[1..]] {
        refused(&with(&|m| m.insert("ptplus.base_fingerprint", bad)), "config-field");
    }
    ok(&["validate", &with(&|m| m.insert("ptplus.base_fingerprint", "ptplus-base/9 x=1")), "--base", &of("base")]);

    let quantized = s.adapter(&["--outtype", "q8_0"]);
    let key = "general.quantization_version";
    refused(&s.changed(&quantized, |m| m.insert(key, gguf::Value::U32(1))), "config-unsupported");
    refused(&s.changed(&quantized, |m| drop(m.remove(key))), "config-unsupported");
}

#[test]
fn a_base_type_that_nobody_knows_fits_no_base() {
    let s = Scratch::new();
    let folder = PathBuf::from(s.path("a"));
    let mut adapter = crate::common::RawAdapter::fixture(MODEL);
    adapter.config["base_model_type"] = "banana".into();
    adapter.write(&folder);
    for base in ["base", "base.gguf"] {
        let (code, report) = json(["validate", folder.to_str().unwrap(), "--base", &of(base)]);
        assert_eq!(code, 4, "{base}: {report}");
    }
}

#[test]
fn values_beyond_f32_are_refused_before_anything_else_reads_them() {
    let s = Scratch::new();
    let file = model(MODEL).join("adapter/adapter_model.safetensors");
    let from = std::fs::read(file).unwrap();
    let st = ptplus::format::safetensors::parse(Path::new("x"), &from.into()).unwrap();
    let folder = s.path("wide");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(of("adapter/adapter_config.json"), format!("{folder}/adapter_config.json")).unwrap();
    let specs: Vec<TensorSpec> = st
        .tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), dtype: DType::F64, shape: t.shape.clone() })
        .collect();
    let plan = ptplus::format::safetensors::plan(&st.metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    bytes[plan.tensors[0].file_offset as usize..][..8].copy_from_slice(&1e300f64.to_le_bytes());
    std::fs::write(format!("{folder}/adapter_model.safetensors"), bytes).unwrap();
    for args in [
        vec!["validate", &folder],
        vec!["hash", &folder],
        vec!["verify", &folder, "--base", &of("base"), "--against", &of("adapter")],
    ] {
        let out = ptplus(&args);
        let said = crate::common::stdout(&out) + &stderr(&out);
        assert_eq!(exit(&out), 3, "{args:?}: {said}");
        assert!(said.contains("cast-overflow") && said.contains("layers.0.memory"), "{said}");
    }
}

#[test]
fn biases_and_normalisers_of_a_gguf_file_are_f32() {
    let s = Scratch::new();
    let m = model("mistral-swa");
    let (adapter, base) = (m.join("adapter"), m.join("base"));
    let out = s.path("n.gguf");
    ok(&["convert", adapter.to_str().unwrap(), "-o", &out, "--base", base.to_str().unwrap()]);
    let file = gguf::open(Path::new(&out)).unwrap();
    let is_normalizer = |name: &str| name.contains("normalizer");
    assert!(file.tensors.iter().any(|t| is_normalizer(&t.name)));
    let halved = |t: &ptplus::format::StoredTensor| if is_normalizer(&t.name) { DType::F16 } else { t.dtype };
    let specs: Vec<TensorSpec> = file
        .tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), dtype: halved(t), shape: t.shape.clone() })
        .collect();
    let plan = gguf::plan(&file.metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    let changed = s.path("h.gguf");
    std::fs::write(&changed, bytes).unwrap();
    let (code, report) = json(["validate", &changed, "--base", base.to_str().unwrap()]);
    assert!(code != 0 && report.to_string().contains("adapter-shape"), "{report}");
}

#[test]
fn the_whole_file_comes_before_an_index_that_was_left_beside_it() {
    let s = Scratch::new();
    let adapter = s.adapter(&[]);
    let folder = s.path("old");
    std::fs::create_dir(&folder).unwrap();
    let mut other = crate::common::RawAdapter::fixture(MODEL);
    other.change("memory", |t| crate::common::Tensor {
        shape: t.shape.clone(),
        values: t.values.iter().map(|v| v * 2.0).collect(),
    });
    other.write(Path::new(&folder));
    std::fs::rename(format!("{folder}/adapter_model.safetensors"), format!("{folder}/s.safetensors")).unwrap();
    let map = object!({ "weight_map": other.tensors.keys().map(|k| (k.clone(), object!("s.safetensors"))).collect::<serde_json::Map<_, _>>() });
    std::fs::write(format!("{folder}/adapter_model.safetensors.index.json"), map.to_string()).unwrap();
    // Into such a folder nothing is converted: as when somebody copies the whole file there.
    ok(&["convert", &adapter, "-o", &s.path("whole"), "--base", &of("base")]);
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        std::fs::copy(s.path("whole") + "/" + file, format!("{folder}/{file}")).unwrap();
    }
    ok(&["verify", &folder, "--base", &of("base"), "--probe", &of("probe.safetensors")]);
}

#[test]
fn bases_that_compute_something_else_are_refused() {
    let s = Scratch::new();
    let bidirectional = s.changed(&of("base.gguf"), |m| m.insert("llama.attention.causal", gguf::Value::Bool(false)));
    let validated = ptplus(["validate", &of("adapter"), "--base", &bidirectional]);
    assert_eq!(exit(&validated), 7, "{}", stderr(&validated));
    // It can be looked at all the same.
    let (code, shown) = json(["inspect", &bidirectional]);
    assert_eq!(code, 0, "{shown}");
    assert!(shown["notes"].to_string().contains("attention.causal"), "{}", shown["notes"]);
}

#[test]
fn a_head_that_is_tied_and_another_is_found_without_running_it() {
    let s = Scratch::new();
    let model = model("mistral-swa");
    let folder = s.path("base");
    std::fs::create_dir(&folder).unwrap();
    let config = std::fs::read_to_string(model.join("base/config.json")).unwrap();
    let tied = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(config, tied);
    std::fs::write(format!("{folder}/config.json"), tied).unwrap();
    std::fs::copy(model.join("base/model.safetensors"), format!("{folder}/model.safetensors")).unwrap();
    let (code, found) = json(["validate", model.join("adapter").to_str().unwrap(), "--base", &folder, "--deep"]);
    assert_eq!(code, 3, "{found}");
    assert!(found["findings"].to_string().contains("lm_head.weight"), "{found}");
}

#[test]
fn a_tokenizer_that_is_broken_is_not_carried_into_another_base() {
    let s = Scratch::new();
    let wrong = s.changed(&of("base.gguf"), |m| {
        m.insert("tokenizer.ggml.model", "gpt2");
        m.insert("tokenizer.ggml.bos_token_id", gguf::Value::U32(160));
    });
    let out = ptplus(["convert", &wrong, "-o", &s.path("out.gguf")]);
    assert_eq!(exit(&out), 3, "{}", stderr(&out));
    assert!(stderr(&out).contains("tokenizer.ggml.tokens"), "{}", stderr(&out));
    // llama.cpp can do without scores, and takes the largest number for "none".
    let rows = gguf::open(Path::new(&of("base.gguf"))).unwrap();
    let rows = rows.tensors.iter().find(|t| t.name == "token_embd.weight").unwrap().shape[0];
    let tokens: Vec<String> = (0..rows).map(|i| i.to_string()).collect();
    for (padding, model) in [(u32::MAX, "llama"), (rows as u32, "gpt2")] {
        let bare = s.changed(&of("base.gguf"), |m| {
            m.insert("tokenizer.ggml.model", model);
            m.insert("tokenizer.ggml.tokens", gguf::Value::Array(gguf::Array::from_strs(&tokens)));
            m.insert("tokenizer.ggml.merges", gguf::Value::Array(gguf::Array::from_strs::<&str>(&[])));
            m.insert("tokenizer.ggml.padding_token_id", gguf::Value::U32(padding));
        });
        let out = ptplus(["convert", &bare, "-o", &s.path("bare.gguf"), "--force"]);
        assert_eq!(exit(&out), 0, "{padding}: {}", stderr(&out));
        // Padding that is no token is told, unless it is the number that means none.
        assert_eq!(stderr(&out).contains("padding_token_id"), padding != u32::MAX, "{padding}: {}", stderr(&out));
    }
}

#[test]
fn a_broken_base_is_not_shown_as_one_that_is_not_supported() {
    let s = Scratch::new();
    let infinite = s.changed(&of("base.gguf"), |m| m.insert("llama.rope.freq_base", gguf::Value::F32(f32::NAN)));
    let folder = s.path("base");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(of("base/config.json"), format!("{folder}/config.json")).unwrap();
    std::fs::write(format!("{folder}/model.safetensors"), b"\x10").unwrap();
    for (broken, named) in [(infinite, "llama.rope.freq_base"), (folder, "model.safetensors: offset 0")] {
        let out = ptplus(["inspect", &broken]);
        assert_eq!(exit(&out), 3, "{}", stderr(&out));
        assert!(stderr(&out).contains(named), "{}", stderr(&out));
    }
}

/// What a flag states is held against what the file says by its meaning, not by its words.
#[test]
fn a_true_statement_about_what_is_stated_already_is_accepted() {
    let s = Scratch::new();
    let all = model("llama-mha");
    let (adapter, base) = (all.join("adapter").display().to_string(), all.join("base").display().to_string());
    let some = of("adapter");
    let (gguf_all, gguf_some) = (s.path("all.gguf"), s.path("some.gguf"));
    ok(&["convert", &adapter, "-o", &gguf_all, "--base", &base]);
    ok(&["convert", &some, "-o", &gguf_some, "--base", &of("base")]);
    let config = std::fs::read_to_string(all.join("adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let n_layers = config["num_layers"].as_u64().unwrap();
    let forward: Vec<String> = (0..n_layers).map(|i| i.to_string()).collect();
    let backward: Vec<String> = forward.iter().rev().cloned().collect();
    let (forward, backward, range) = (forward.join(","), backward.join(","), format!("0-{}", n_layers - 1));
    let query_scale = config["query_scale"].as_f64().unwrap();
    let (short, long) = ((query_scale as f32).to_string(), format!("{query_scale:e}"));
    let true_of_all: Vec<[&str; 2]> = vec![
        ["--layers", "all"],
        ["--layers", &forward],
        ["--layers", &backward],
        ["--layers", &range],
        ["--memory-sharing", "per_head"],
        // As many heads as key/value heads.
        ["--memory-sharing", "per_kv_head"],
        ["--query-scale", &short],
        ["--query-scale", &long],
    ];
    let true_of_some = vec![["--layers", "0,2"], ["--layers", "2,0"]];
    let false_of_all: Vec<[&str; 2]> =
        vec![["--layers", "0"], ["--layers", "0,1,2,3,4,5"], ["--memory-sharing", "shared"]];
    let false_of_some = vec![["--layers", "all"], ["--layers", "0-2"], ["--layers", "0"], ["--layers", "0,0,2"]];
    for (paths, statements, expected) in [
        ([&gguf_all, &adapter], true_of_all, 0),
        ([&gguf_some, &some], true_of_some, 0),
        ([&gguf_all, &adapter], false_of_all, 2),
        ([&gguf_some, &some], false_of_some, 2),
    ] {
        for path in paths {
            for [flag, value] in &statements {
                for command in [&["convert", "-f", "-o", &s.path("out")][..], &["validate"], &["inspect"]] {
                    let out = ptplus([command, &[path, flag, value]].concat());
                    let found = exit(&out);
                    // `inspect` shows what there is of an adapter that it cannot read.
                    let is_shown = command == ["inspect"] && found == 0;
                    assert!(
                        found == expected || is_shown,
                        "{command:?} {path} {flag} {value}: {found} {}",
                        stderr(&out)
                    );
                    if expected == 2 && !is_shown {
                        assert!(stderr(&out).contains("[convention-contradiction]"), "{}", stderr(&out));
                    }
                }
            }
        }
    }
}

#[test]
fn a_true_statement_about_the_tokenizer_of_a_gguf_base_is_accepted() {
    let s = Scratch::new();
    let base = of("base.gguf");
    // Without one there is none to leave out.
    ok(&["convert", &base, "-o", &s.path("a.gguf"), "--no-tokenizer"]);
    let said = s.changed(&base, |m| m.insert("tokenizer.ggml.pre", "llama-bpe"));
    ok(&["convert", &said, "-o", &s.path("b.gguf"), "--tokenizer-pre", "llama-bpe"]);
    for more in [["--tokenizer-pre", "qwen2"], ["--tokenizer-pre", ""]] {
        let out = ptplus([&["convert", &said, "-o", &s.path("c.gguf")], &more[..]].concat());
        assert_eq!(exit(&out), 2, "{more:?}: {}", stderr(&out));
    }
}
