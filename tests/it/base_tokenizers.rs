//! The tokenizer of a Hugging Face folder in the GGUF: key by key what gguf-py makes of the same folder
//! (`fixtures/tokenizers/make.py`), and a refusal where llama.cpp would split text otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, fixtures, json, ptplus, stderr};
use ptplus::format::gguf::{self, Value};
use serde_json::json as value;

fn converted(folder: &Path, to: &Path, extra: &[&str]) -> BTreeMap<String, Value> {
    let mut args = vec!["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), to.as_os_str(), "-f".as_ref()];
    args.extend(extra.iter().map(std::ffi::OsStr::new));
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    keys(to)
}

fn keys(file: &Path) -> BTreeMap<String, Value> {
    let file = gguf::open(file).unwrap();
    let tokenizer = file.metadata.iter().filter(|(k, _)| k.starts_with("tokenizer."));
    tokenizer.map(|(k, v)| (k.to_owned(), v.clone())).collect()
}

fn tokenizers() -> PathBuf {
    fixtures().join("tokenizers")
}

/// A copy of a fixture's folder, to be changed.
fn copy(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(tokenizers().join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(file: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(file, json.to_string()).unwrap();
}

#[test]
fn the_keys_are_those_that_gguf_py_writes() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["smollm", "llama3", "qwen2", "sentencepiece"] {
        let ours = converted(&tokenizers().join(name), &temp.path().join("out.gguf"), &[]);
        let mut expected = keys(&tokenizers().join(name).join("expected.gguf"));
        // For encoders alone.
        expected.remove("tokenizer.ggml.add_sep_token");
        for (key, found) in &ours {
            // What gguf-py leaves to llama.cpp's defaults is stated all the same.
            let by_default = match (name, key.strip_prefix("tokenizer.ggml.").unwrap_or_default()) {
                (_, "add_bos_token" | "add_eos_token") => Some(Value::Bool(false)),
                ("sentencepiece", "add_space_prefix") => Some(Value::Bool(true)),
                ("sentencepiece", "unknown_token_id") => Some(Value::U32(0)),
                ("sentencepiece", "bos_token_id") => Some(Value::U32(1)),
                ("sentencepiece", "eos_token_id") => Some(Value::U32(2)),
                _ => None,
            };
            assert_eq!(Some(found), expected.get(key).or(by_default.as_ref()), "{name} {key}");
        }
        assert!(expected.keys().all(|k| ours.contains_key(k)), "{name}: {:?} {:?}", expected.keys(), ours.keys());
    }
}

#[test]
fn scores_from_merges_order_the_tokens_as_sentence_piece_does() {
    let temp = tempfile::tempdir().unwrap();
    let original = converted(&tokenizers().join("sentencepiece"), &temp.path().join("a.gguf"), &[]);
    let from_json = converted(&tokenizers().join("sentencepiece-json"), &temp.path().join("b.gguf"), &[]);
    let list = |keys: &BTreeMap<String, Value>, name: &str| match &keys[&format!("tokenizer.ggml.{name}")] {
        Value::Array(a) => a.iter().collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(list(&original, "tokens"), list(&from_json, "tokens"));
    let (a, b) = (list(&original, "scores"), list(&from_json, "scores"));
    let tokens = list(&original, "tokens");
    let merged: Vec<usize> = (0..a.len())
        .filter(|i| {
            matches!(&tokens[*i], Value::String(t) if t.chars().count() > 1)
                && matches!(b[*i], Value::F32(s) if s < 0.0)
        })
        .collect();
    assert!(merged.len() > 50, "{}", merged.len());
    let by = |scores: &[Value]| {
        let mut order = merged.clone();
        order.sort_by(|i, j| match (&scores[*j], &scores[*i]) {
            (Value::F32(x), Value::F32(y)) => x.total_cmp(y),
            _ => unreachable!(),
        });
        order
    };
    assert_eq!(by(&a), by(&b));
}

/// A `tokenizer.json` from what a GGUF file has, as the model's authors have it, and back.
#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn smollm2s_vocabulary_comes_back_from_a_tokenizer_json_on_the_real_base() {
    let fetched = crate::common::smollm2();
    let temp = tempfile::tempdir().unwrap();
    let original = keys(&fetched);
    let strings = |name: &str| match &original[&format!("tokenizer.ggml.{name}")] {
        Value::Array(a) => a.strs().unwrap().map(str::to_owned).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    let kinds = match &original["tokenizer.ggml.token_type"] {
        Value::Array(a) => a.iter().collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    let tokens = strings("tokens");
    let added: Vec<_> = (tokens.iter().zip(&kinds).enumerate())
        .filter(|(_, (_, kind))| **kind == Value::I32(3))
        .map(|(id, (t, _))| value!({"id": id, "content": t, "special": true, "normalized": false}))
        .collect();
    let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
    let merges: Vec<_> = strings("merges").iter().map(|m| value!(m.split_once(' ').unwrap())).collect();
    let tokenizer = value!({
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    let folder = copy("smollm", temp.path());
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::remove_file(folder.join("chat_template.jinja")).unwrap();
    let template = match &original["tokenizer.chat_template"] {
        Value::String(text) => text.clone(),
        other => panic!("{other}"),
    };
    let config = value!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>", "chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    edit(&folder.join("config.json"), |c| c["vocab_size"] = tokens.len().into());
    let weights = ptplus::format::safetensors::open(&folder.join("model.safetensors")).unwrap();
    grow_embedding(&weights, tokens.len(), &folder.join("grown.safetensors"));
    std::fs::rename(folder.join("grown.safetensors"), folder.join("model.safetensors")).unwrap();

    let mut ours = converted(&folder, &temp.path().join("out.gguf"), &[]);
    // Not in this file; no end token is added either way.
    assert_eq!(ours.remove("tokenizer.ggml.add_eos_token"), Some(Value::Bool(false)));
    let mut original = original.clone();
    // Meant for SentencePiece; llama.cpp has it so for byte-level encoding without being told.
    assert_eq!(original.remove("tokenizer.ggml.add_space_prefix"), Some(Value::Bool(false)));
    assert_eq!(ours, original);
}

fn grow_embedding(weights: &ptplus::format::safetensors::Safetensors, rows: usize, to: &Path) {
    use ptplus::format::TensorSpec;
    let spec = |t: &ptplus::format::StoredTensor| {
        let mut shape = t.shape.clone();
        if t.name.contains("embed") {
            shape[0] = rows;
        }
        TensorSpec { name: t.name.clone(), dtype: t.dtype, shape }
    };
    let specs: Vec<TensorSpec> = weights.tensors.iter().map(spec).collect();
    let plan = ptplus::format::safetensors::plan(&BTreeMap::new(), &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    std::fs::write(to, bytes).unwrap();
}

#[test]
fn what_llama_cpp_would_split_otherwise_is_refused_unless_stated_or_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out.gguf");
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, &str, Change, &str); 12] = [
        (
            "qwen2",
            "pre_tokenizer",
            |t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+".into(),
            "tokenizer-unsupported",
        ),
        ("smollm", "pre_tokenizer", |t| t["pre_tokenizer"] = serde_json::Value::Null, "tokenizer-unsupported"),
        ("qwen2", "normalizer", |t| t["normalizer"]["type"] = "NFKC".into(), "tokenizer-unsupported"),
        ("llama3", "model.type", |t| t["model"]["type"] = "Unigram".into(), "tokenizer-unsupported"),
        ("llama3", "model.dropout", |t| t["model"]["dropout"] = 0.1.into(), "tokenizer-unsupported"),
        (
            "llama3",
            "post_processor",
            |t| t["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"] = "<|im_start|>".into(),
            "tokenizer-unsupported",
        ),
        (
            "sentencepiece-json",
            "normalizer",
            |t| t["normalizer"] = value!({"type": "Lowercase"}),
            "tokenizer-unsupported",
        ),
        (
            "sentencepiece-json",
            "model.merges",
            |t| drop(t["model"]["merges"].as_array_mut().unwrap().remove(3)),
            "tokenizer-unsupported",
        ),
        ("smollm", "model.vocab", |t| t["model"]["vocab"]["x1"] = 7.into(), "tokenizer-invalid"),
        ("smollm", "model.vocab", |t| t["model"]["vocab"]["x1"] = 7_000_000.into(), "tokenizer-invalid"),
        ("smollm", "model.vocab", |t| t["added_tokens"][0]["content"] = "other".into(), "tokenizer-invalid"),
        ("smollm", "model.merges", |t| t["model"]["merges"][5] = value!(["a"]), "tokenizer-invalid"),
    ];
    for (name, field, change, code) in changes {
        let folder = copy(name, temp.path());
        edit(&folder.join("tokenizer.json"), change);
        let (status, report) = json(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()]);
        assert_eq!(report["error"]["code"].as_str(), Some(code), "{name} {field}: {report}");
        assert_eq!(report["error"]["field"].as_str(), Some(field), "{report}");
        assert_eq!(status, if code == "tokenizer-invalid" { 3 } else { 7 });
        assert!(!out.exists());
        let keys = converted(&folder, &temp.path().join("without.gguf"), &["--no-tokenizer"]);
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), [("tokenizer.ggml.model".to_owned(), "none".into())]);
    }
    let folder = copy("qwen2", temp.path());
    edit(&folder.join("tokenizer.json"), changes[0].2);
    let keys = converted(&folder, &out, &["--tokenizer-pre", "qwen2"]);
    assert_eq!(keys["tokenizer.ggml.pre"], "qwen2".into());
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("sentencepiece", temp.path());
    let out = temp.path().join("out.gguf");
    for (file, bytes) in [
        ("tokenizer.model", std::fs::read(folder.join("tokenizer.model")).unwrap()[..100].to_vec()),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f".to_vec()),
        ("tokenizer_config.json", value!({"eos_token": "<|nowhere|>"}).to_string().into_bytes()),
        ("tokenizer_config.json", value!({"added_tokens_decoder": {"484": {"content": "x"}}}).to_string().into_bytes()),
        (
            "tokenizer_config.json",
            value!({"added_tokens_decoder": {"3": {"content": "</s>"}}}).to_string().into_bytes(),
        ),
        ("added_tokens.json", value!({"x": -1}).to_string().into_bytes()),
    ] {
        let before = std::fs::read(folder.join(file)).ok();
        std::fs::write(folder.join(file), &bytes).unwrap();
        let (status, report) = json(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()]);
        assert_eq!((status, report["error"]["code"].as_str()), (3, Some("tokenizer-invalid")), "{file}: {report}");
        match before {
            Some(before) => std::fs::write(folder.join(file), before).unwrap(),
            None => std::fs::remove_file(folder.join(file)).unwrap(),
        }
    }
    let out = ptplus(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

#[test]
fn a_chat_template_that_run_could_not_read_is_written_with_a_note() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("smollm", temp.path());
    std::fs::write(folder.join("chat_template.jinja"), "{% for %}").unwrap();
    let path = temp.path().join("out.gguf");
    let out = ptplus(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), path.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stderr(&out).contains("`ptplus run` cannot read it"), "{}", stderr(&out));
    assert_eq!(keys(&path)["tokenizer.chat_template"], "{% for %}".into());
}

#[test]
fn all_places_of_a_chat_template_are_read_by_type() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("smollm", temp.path());
    let out = temp.path().join("out.gguf");
    for (file, text) in [("chat_template.json", "[]"), ("tokenizer_config.json", r#"{"chat_template":5}"#)] {
        std::fs::write(folder.join(file), text).unwrap();
        let (status, report) = json(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()]);
        assert_eq!((status, report["error"]["code"].as_str()), (3, Some("tokenizer-invalid")), "{file}: {report}");
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}

/// Keys, and what is told, of the GGUF of a fixture whose files were changed.
fn keys_and_notes(folder: &Path) -> (BTreeMap<String, Value>, String) {
    let file = folder.parent().unwrap().join("changed.gguf");
    let out = ptplus(["convert".as_ref(), "-f".as_ref(), folder.as_os_str(), "-o".as_ref(), file.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    (keys(&file), stderr(&out))
}

fn ids(keys: &BTreeMap<String, Value>) -> [Option<u32>; 4] {
    ["eos", "eot", "eom", "padding"].map(|name| match keys.get(&format!("tokenizer.ggml.{name}_token_id")) {
        Some(Value::U32(id)) => Some(*id),
        other => other.map(|v| panic!("{v}")),
    })
}

fn state(file: &Path, entries: serde_json::Value) {
    if !file.exists() {
        std::fs::write(file, "{}").unwrap();
    }
    edit(file, |json| {
        for (key, v) in entries.as_object().unwrap() {
            json[key] = v.clone();
        }
    });
}

#[test]
fn every_end_of_an_answer_has_its_place() {
    let temp = tempfile::tempdir().unwrap();
    // 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, and words.
    for (config, generation, text, expected) in [
        (value!(null), value!(null), Some("<|im_end|>"), [Some(2), None, None]),
        (value!(20), value!(null), None, [Some(20), None, None]),
        (value!([20, 21, 22]), value!(null), None, [Some(20), Some(21), Some(22)]),
        (value!([20, 21]), value!(22), Some("<|im_end|>"), [Some(2), Some(20), Some(21)]),
        (value!(null), value!([0, 20]), None, [Some(0), Some(20), None]),
        (value!(2), value!([2, 0, 20]), None, [Some(2), Some(20), None]),
        (value!(-1), value!([20]), None, [Some(20), None, None]),
    ] {
        let folder = copy("smollm", temp.path());
        let _ = std::fs::remove_file(folder.join("generation_config.json"));
        state(&folder.join("config.json"), value!({"eos_token_id": config}));
        state(&folder.join("generation_config.json"), value!({"eos_token_id": generation, "temperature": 0.6}));
        state(&folder.join("tokenizer_config.json"), value!({"eos_token": text, "pad_token": null}));
        let (keys, notes) = keys_and_notes(&folder);
        assert_eq!(ids(&keys)[..3], expected, "{config} {generation} {text:?}");
        assert_eq!(notes.contains("answers end at"), generation == value!(22), "{notes}");
        assert_eq!(notes.contains("no answer ends at eos_token_id -1"), config == value!(-1), "{notes}");
        #[cfg(feature = "generate")]
        {
            let found = ptplus::vocab::hf::read(&folder, 421, None).unwrap().unwrap();
            let tokenizer = ptplus::vocab::tokenizer::Tokenizer::new(found.vocabulary).unwrap();
            for stated in [&config, &generation] {
                let stated = stated.as_array().cloned().unwrap_or_else(|| vec![stated.clone()]);
                for id in stated.iter().filter_map(|id| id.as_u64()) {
                    assert!(tokenizer.is_end(id as u32), "{config} {generation}: {id}");
                }
            }
        }
    }
}

#[test]
fn an_older_file_of_special_tokens_counts_where_the_newer_one_is_silent() {
    let temp = tempfile::tempdir().unwrap();
    // 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, and words.
    for (own, map, expected) in [
        (value!({}), value!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}), [Some(2), Some(1)]),
        (
            value!({"eos_token": null, "bos_token": null}),
            value!({"eos_token": {"content": "<|im_end|>", "lstrip": false}, "bos_token": "<|im_start|>"}),
            [Some(2), Some(1)],
        ),
        (
            value!({"eos_token": "<|endoftext|>"}),
            value!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}),
            [Some(0), Some(1)],
        ),
    ] {
        let folder = copy("smollm", temp.path());
        let _ = std::fs::remove_file(folder.join("generation_config.json"));
        state(&folder.join("config.json"), value!({"eos_token_id": null, "bos_token_id": null}));
        edit(&folder.join("tokenizer_config.json"), |config| {
            for name in ["eos_token", "bos_token"] {
                config.as_object_mut().unwrap().remove(name);
                if let Some(stated) = own.get(name) {
                    config[name] = stated.clone();
                }
            }
        });
        std::fs::write(folder.join("special_tokens_map.json"), map.to_string()).unwrap();
        let (keys, _) = keys_and_notes(&folder);
        let id = |name: &str| match keys.get(&format!("tokenizer.ggml.{name}_token_id")) {
            Some(Value::U32(id)) => Some(*id),
            _ => None,
        };
        assert_eq!([id("eos"), id("bos")], expected, "{own} {map}");
    }
    let folder = copy("smollm", temp.path());
    std::fs::write(folder.join("special_tokens_map.json"), "{").unwrap();
    let out = ptplus(["convert", folder.to_str().unwrap(), "-o", temp.path().join("x.gguf").to_str().unwrap()]);
    assert_eq!(exit(&out), 3, "{}", stderr(&out));
}

#[test]
fn tokens_that_only_fill_batches_or_stand_for_the_unknown_may_be_missing() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&Path);
    let cases: [(&str, Change, &str); 9] = [
        (
            "sentencepiece",
            |f| state(&f.join("config.json"), value!({"pad_token_id": -1})),
            "pad_token_id is left out: -1",
        ),
        (
            "sentencepiece",
            |f| state(&f.join("config.json"), value!({"pad_token_id": 484})),
            "pad_token_id is left out: 484",
        ),
        (
            "sentencepiece",
            |f| state(&f.join("added_tokens.json"), value!({"[PAD]": 484})),
            "\"[PAD]\" is left out: it is number 484",
        ),
        (
            "llama3",
            |f| {
                let token = value!({"421": {"content": "<|finetune_right_pad_id|>", "special": true}});
                let config = value!({"added_tokens_decoder": token, "pad_token": "<|finetune_right_pad_id|>"});
                state(&f.join("tokenizer_config.json"), config);
            },
            "\"<|finetune_right_pad_id|>\" is left out: it is number 421",
        ),
        (
            "qwen2",
            |f| {
                edit(&f.join("tokenizer.json"), |t| {
                    let token = value!({"id": 500, "content": "<filler>", "special": true});
                    t["added_tokens"].as_array_mut().unwrap().push(token);
                });
                state(&f.join("config.json"), value!({"pad_token_id": 500}));
                state(&f.join("tokenizer_config.json"), value!({"pad_token": null}));
            },
            "\"<filler>\" is left out: it is number 500",
        ),
        (
            "llama3",
            |f| state(&f.join("tokenizer_config.json"), value!({"pad_token": "[PAD]"})),
            "pad_token is left out: no token is \"[PAD]\"",
        ),
        (
            "llama3",
            |f| state(&f.join("tokenizer_config.json"), value!({"unk_token": "<unk>"})),
            "unk_token is left out",
        ),
        (
            "llama3",
            |f| edit(&f.join("tokenizer.json"), |t| t["model"]["unk_token"] = "<unk>".into()),
            "model.unk_token is left out",
        ),
        (
            "smollm",
            |f| {
                state(&f.join("tokenizer_config.json"), value!({"pad_token": null}));
                state(&f.join("config.json"), value!({"pad_token_id": 99999}));
            },
            "pad_token_id is left out: 99999",
        ),
    ];
    for (name, change, note) in cases {
        let folder = copy(name, temp.path());
        change(&folder);
        let (keys, notes) = keys_and_notes(&folder);
        assert_eq!(notes.matches("left out").count(), 1, "{name}: {notes}");
        assert!(notes.contains(note), "{name}: {note}: {notes}");
        let keeps_its_own = note.contains("unk_token");
        assert_eq!(ids(&keys)[3].is_some(), keeps_its_own, "{name}: {note}");
        #[cfg(feature = "generate")]
        {
            let base = folder.to_str().unwrap();
            let out = ptplus(["run", "--base", base, "--no-conversation", "-n", "1", "-p", "a"]);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
            assert!(stderr(&out).contains(note), "{name}: {}", stderr(&out));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    // Nor has a model of text alone rows for what stands for an image (Gemma 3).
    let image = value!({"484": {"content": "<image_soft_token>", "special": true}});
    for config in [
        value!({"added_tokens_decoder": image, "image_token": "<image_soft_token>"}),
        value!({"added_tokens_decoder": image, "extra_special_tokens": {"image_token": "<image_soft_token>"}}),
    ] {
        let folder = copy("sentencepiece", temp.path());
        state(&folder.join("tokenizer_config.json"), config);
        let (_, notes) = keys_and_notes(&folder);
        assert!(notes.contains("\"<image_soft_token>\" is left out: it is number 484"), "{notes}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    // Other tokens beyond the embedding say that the tokenizer is another model's.
    let folder = copy("sentencepiece", temp.path());
    state(&folder.join("added_tokens.json"), value!({"<|im_start|>": 484}));
    let out = temp.path().join("out.gguf");
    let (status, report) = json(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()]);
    assert_eq!((status, report["error"]["code"].as_str()), (3, Some("tokenizer-invalid")), "{report}");
}

/// Early converters did not name the pattern; llama.cpp takes `default` then, and warns.
#[test]
fn a_file_that_names_no_pattern_is_told_of_and_can_be_given_one() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole.gguf");
    let folder = tokenizers().join("llama3");
    assert!(!converted(&folder, &whole, &[]).is_empty());
    let whole = gguf::open(&whole).unwrap();
    for missing in [true, false] {
        let mut metadata = whole.metadata.clone();
        match missing {
            true => drop(metadata.remove("tokenizer.ggml.pre")),
            false => metadata.insert("tokenizer.ggml.pre", ""),
        }
        let file = temp.path().join("without.gguf");
        write_gguf(&whole, &metadata, &file);
        let note = "tokenizer.ggml.pre is missing";
        let out_file = temp.path().join("out.gguf");
        let convert = |extra: &[&str]| {
            let mut args =
                vec!["convert".as_ref(), "-f".as_ref(), file.as_os_str(), "-o".as_ref(), out_file.as_os_str()];
            args.extend(extra.iter().map(std::ffi::OsStr::new));
            ptplus(args)
        };
        let out = convert(&[]);
        assert!(exit(&out) == 0 && stderr(&out).contains(note), "{}", stderr(&out));
        #[cfg(feature = "generate")]
        {
            let base = file.to_str().unwrap();
            let out = ptplus(["run", "--base", base, "--no-conversation", "-n", "1", "-p", "a"]);
            assert!(exit(&out) == 0 && stderr(&out).contains(note), "{}", stderr(&out));
        }
        let out = convert(&["--tokenizer-pre", "llama-bpe"]);
        assert!(exit(&out) == 0 && !stderr(&out).contains(note), "{}", stderr(&out));
        let given = keys(&out_file);
        assert_eq!(given["tokenizer.ggml.pre"], "llama-bpe".into());
    }
    // A file that names one keeps it.
    let named = temp.path().join("whole.gguf");
    let out = temp.path().join("out.gguf");
    let args = ["convert".as_ref(), "-f".as_ref(), named.as_os_str(), "-o".as_ref(), out.as_os_str()];
    let (status, report) = json(args.into_iter().chain(["--tokenizer-pre".as_ref(), "qwen2".as_ref()]));
    assert_eq!((status, report["error"]["code"].as_str()), (2, Some("usage")), "{report}");
}

/// The file with other metadata.
fn write_gguf(source: &gguf::Gguf, metadata: &gguf::Metadata, to: &Path) {
    let spec = |t: &ptplus::format::StoredTensor| ptplus::format::TensorSpec {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
    };
    let specs: Vec<_> = source.tensors.iter().map(spec).collect();
    let plan = gguf::plan(metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for (t, place) in source.tensors.iter().zip(&plan.tensors) {
        let at = place.file_offset as usize;
        bytes[at..at + t.bytes.len()].copy_from_slice(&t.bytes);
    }
    std::fs::write(to, bytes).unwrap();
}

/// Ollama's key for models with several ends.
#[test]
#[cfg(feature = "generate")]
fn a_file_can_state_several_ends() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole.gguf");
    converted(&tokenizers().join("smollm"), &whole, &[]);
    let whole = gguf::open(&whole).unwrap();
    for (ids, ends) in [(vec![], [false, false]), (vec![20], [true, false]), (vec![20, 21], [true, true])] {
        for as_i32 in [false, true] {
            let mut metadata = whole.metadata.clone();
            let list = match as_i32 {
                true => gguf::Array::from_i32(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>()),
                false => gguf::Array::from_u32(&ids),
            };
            metadata.insert("tokenizer.ggml.eos_token_ids", Value::Array(list));
            let vocabulary = ptplus::vocab::Vocabulary::from_gguf(&metadata).unwrap();
            let tokenizer = ptplus::vocab::tokenizer::Tokenizer::new(vocabulary).unwrap();
            assert_eq!([20, 21].map(|id| tokenizer.is_end(id)), ends, "{ids:?}");
        }
    }
}

/// PEFT's folder of a LoRA with a tokenizer beside it, as a trainer saves them; `n_rows` of an embedding of its own.
fn lora_with_tokenizer(folder: &Path, n_rows: Option<usize>, change: impl FnOnce(&Path)) {
    std::fs::create_dir_all(folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tokenizers().join("qwen2").join(file), folder.join(file)).unwrap();
    }
    change(folder);
    let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight");
    let tensor = |shape: [usize; 2]| Tensor { shape: shape.into(), values: vec![0.5; shape[0] * shape[1]] };
    let mut tensors = BTreeMap::from([(name("A"), tensor([1, 8])), (name("B"), tensor([8, 1]))]);
    for module in ["model.embed_tokens", "lm_head"] {
        tensors.extend(n_rows.map(|n| (format!("base_model.model.{module}.weight"), tensor([n, 8]))));
    }
    let saved = n_rows.map(|_| ["embed_tokens", "lm_head"]);
    let config =
        value!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "modules_to_save": saved});
    RawAdapter { config, tensors }.write(folder);
}

#[test]
fn tokens_that_an_adapter_was_trained_with_are_those_of_the_merged_model() {
    let temp = tempfile::tempdir().unwrap();
    let (base, output) = (tokenizers().join("qwen2"), temp.path().join("merged.gguf"));
    let merge = |folders: &[&Path]| {
        let args = ["convert".as_ref(), base.as_os_str(), "-o".as_ref(), output.as_os_str(), "--force".as_ref()];
        ptplus(args.into_iter().chain(folders.iter().flat_map(|f| ["--merge".as_ref(), f.as_os_str()])))
    };
    let add = |id: usize, token: &'static str| {
        move |folder: &Path| {
            edit(&folder.join("tokenizer.json"), |json| {
                json["added_tokens"]
                    .as_array_mut()
                    .unwrap()
                    .push(value!({"id": id, "content": token, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
            });
        }
    };
    let tokens = || match &keys(&output)["tokenizer.ggml.tokens"] {
        Value::Array(a) => a.strs().unwrap().map(str::to_owned).collect::<Vec<_>>(),
        _ => panic!("no list"),
    };
    let [same, template, new, larger, other] =
        ["same", "template", "new", "larger", "other"].map(|f| temp.path().join(f));
    lora_with_tokenizer(&same, None, |_| {});
    lora_with_tokenizer(&template, None, |f| {
        edit(&f.join("tokenizer_config.json"), |c| c["chat_template"] = value!("{{ 1 }}"))
    });
    // In a row that the base has to spare, and in rows of its own.
    lora_with_tokenizer(&new, None, add(421, "<new>"));
    lora_with_tokenizer(&larger, Some(435), add(434, "<larger>"));
    lora_with_tokenizer(&other, None, add(421, "<other>"));
    for (folders, n_tokens, token, note) in [
        (vec![&same], 433, None, None),
        (vec![&template], 433, None, Some("chat template")),
        (vec![&new], 433, Some((421, "<new>")), Some("whose tokens are not the base's")),
        (vec![&new, &same], 433, Some((421, "<new>")), Some("whose tokens are not the base's")),
        (vec![&larger], 435, Some((434, "<larger>")), Some("whose tokens are not the base's")),
    ] {
        let folders: Vec<&Path> = folders.into_iter().map(PathBuf::as_path).collect();
        let out = merge(&folders);
        assert_eq!(exit(&out), 0, "{folders:?}: {}", stderr(&out));
        let found = tokens();
        assert_eq!(found.len(), n_tokens, "{folders:?}");
        assert!(token.is_none_or(|(id, text)| found[id] == text), "{folders:?}: {:?}", &found[419..]);
        let told = ["chat template", "whose tokens are not the base's"].map(|t| stderr(&out).contains(t));
        assert_eq!(
            told,
            ["chat template", "whose tokens are not the base's"].map(|t| note == Some(t)),
            "{}",
            stderr(&out)
        );
    }
    let out = merge(&[&new, &other]);
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    // A tokenizer that does not fit the rows that were trained is no base's either.
    std::fs::write(larger.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(exit(&merge(&[&larger])), 3);
    std::fs::write(new.join("tokenizer.json"), "{}").unwrap();
    let out = merge(&[&new]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stderr(&out).contains("is not used"), "{}", stderr(&out));
}
