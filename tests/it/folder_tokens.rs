//! The tokens of a Hugging Face folder are those of its own tokenizer, whatever it does to text besides splitting it: held
//! against the `tokenizers` library, which reads the same `tokenizer.json`.
#![cfg(feature = "generate")]

use std::path::{Path, PathBuf};

use crate::common::{exit, fixtures, json, ptplus, stderr};
use ptplus::vocab::hf;
use ptplus::vocab::tokenizer::{Specials, Tokenizer};
use serde_json::{Value, json as value};

/// A copy of a folder of `fixtures/tokenizers`, with its `tokenizer.json` changed.
fn copy(name: &str, to: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = to.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(fixtures().join("tokenizers").join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    edit(&folder.join("tokenizer.json"), change);
    folder
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).unwrap(),
        Err(_) => value!({}),
    };
    change(&mut json);
    std::fs::write(file, json.to_string()).unwrap();
}

/// Sets flags of the added token `content`.
fn flag(tokenizer: &mut Value, content: &str, flags: &[&str]) {
    let token = tokenizer["added_tokens"].as_array_mut().unwrap().iter_mut().find(|t| t["content"] == content).unwrap();
    flags.iter().for_each(|name| token[*name] = true.into());
}

fn ours(folder: &Path) -> Tokenizer {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let n_tokens = config["vocab_size"].as_u64().unwrap() as usize;
    Tokenizer::new(hf::read(folder, n_tokens, None).unwrap().unwrap().vocabulary).unwrap()
}

/// Every text in which the two disagree.
fn differences(folder: &Path, end: &str) -> Vec<String> {
    let theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let ours = ours(folder);
    let texts = [
        "",
        " ",
        "a",
        " a",
        "  a",
        "a b",
        "once upon a time",
        "X",
        "aX",
        "Xa",
        "a X b",
        "a  X \n b",
        " X ",
        "X X",
        "XX",
        "a X",
        "X a",
        " X a",
        "\n\tX\u{a0}b",
        "aX b",
        "a Xb",
        "a_X",
        "-X-",
        "é X",
        "éX é",
        "e\u{301} X e\u{301}",
        "a\u{30a}",
        "\u{1112}\u{1161}\u{11ab}",
        "\u{212b}X\u{3000}ﬁ",
        "a\u{301}\u{327}X",
        "▁a",
        "a ▁X ▁b",
        "X▁",
        "  X  a  X  ",
    ];
    let wrong = |text: &str| {
        let text = text.replace('X', end);
        let expected = theirs.encode(text.as_str(), false).unwrap().get_ids().to_vec();
        let found = ours.encode(&text, Specials::Parsed).unwrap();
        (found != expected).then(|| format!("{text:?}: expected {expected:?}, found {found:?}"))
    };
    texts.into_iter().filter_map(wrong).collect()
}

#[test]
fn added_tokens_are_found_as_the_folders_tokenizer_finds_them() {
    let temp = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, end) in
        [("smollm", "<|im_end|>"), ("llama3", "<|im_end|>"), ("qwen2", "<|im_end|>"), ("sentencepiece-json", "</s>")]
    {
        for flags in [
            &[][..],
            &["lstrip"],
            &["rstrip"],
            &["lstrip", "rstrip"],
            &["single_word"],
            &["single_word", "rstrip"],
            &["normalized"],
            &["normalized", "lstrip"],
        ] {
            let folder = copy(name, temp.path(), |t| flag(t, end, flags));
            wrong.extend(differences(&folder, end).iter().map(|w| format!("{name} {flags:?} {w}")));
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn normal_forms_and_spaces_are_the_folders() {
    let temp = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let nfc = || value!({"type": "NFC"});
    let sequence = |steps: &[Value]| value!({"type": "Sequence", "normalizers": steps});
    for (name, normalizer) in [
        ("qwen2", Value::Null),
        ("qwen2", nfc()),
        ("llama3", sequence(&[])),
        ("llama3", sequence(&[nfc()])),
        ("smollm", sequence(&[sequence(&[]), sequence(&[nfc(), nfc()])])),
    ] {
        let folder = copy(name, temp.path(), |t| t["normalizer"] = normalizer.clone());
        wrong.extend(differences(&folder, "<|im_end|>").iter().map(|w| format!("{name} {normalizer} {w}")));
    }
    for (name, wrapped) in [("qwen2", 1), ("llama3", 2)] {
        let folder = copy(name, temp.path(), |t| {
            for _ in 0..wrapped {
                t["pre_tokenizer"] = value!({"type": "Sequence", "pretokenizers": [t["pre_tokenizer"]]});
                t["post_processor"] = value!({"type": "Sequence", "processors": [t["post_processor"]]});
            }
        });
        wrong.extend(differences(&folder, "<|im_end|>").iter().map(|w| format!("{name} nested {wrapped} {w}")));
    }
    let metaspace =
        |scheme: &str| value!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let replace = value!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = value!({"type": "Prepend", "prepend": "▁"});
    for (normalizer, pre) in [
        (Value::Null, metaspace("first")),
        (Value::Null, metaspace("always")),
        (Value::Null, metaspace("never")),
        (Value::Null, value!({"type": "Sequence", "pretokenizers": [metaspace("first")]})),
        (sequence(&[prepend, replace.clone()]), Value::Null),
        (sequence(std::slice::from_ref(&replace)), Value::Null),
        // Gemma's: nothing is left to split at.
        (
            replace,
            value!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        ),
    ] {
        let folder = copy("sentencepiece-json", temp.path(), |t| {
            t["normalizer"] = normalizer.clone();
            t["pre_tokenizer"] = pre.clone();
        });
        wrong.extend(differences(&folder, "</s>").iter().map(|w| format!("{normalizer} {pre} {w}")));
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// What `run` and `convert` say of a folder on stderr.
fn told(folder: &Path, of: &str) -> String {
    let out = folder.parent().unwrap().join("told.gguf");
    let args: Vec<&std::ffi::OsStr> = match of {
        "convert" => vec!["convert".as_ref(), "-f".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str()],
        _ => vec![
            "run".as_ref(),
            "--base".as_ref(),
            folder.as_os_str(),
            "-n1".as_ref(),
            "-pa".as_ref(),
            "--no-conversation".as_ref(),
        ],
    };
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{of}: {}", stderr(&out));
    stderr(&out)
}

/// `run` makes the folder's tokens; a GGUF file has no place for what they hang on.
#[test]
fn what_gguf_loses_is_told_by_convert() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&mut Value);
    for (name, change, note) in [
        ("smollm", (|_| ()) as Change, None),
        ("smollm", |t| flag(t, "<|im_end|>", &["rstrip", "single_word"]), Some("<|im_end|> (rstrip, single_word)")),
        ("qwen2", |_| (), Some("NFC")),
        ("sentencepiece-json", |_| (), Some("puts no space before text that begins with one, nor behind control")),
        (
            "sentencepiece-json",
            |t| t["pre_tokenizer"]["prepend_scheme"] = "always".into(),
            Some("puts no space before text that begins with one; llama.cpp does"),
        ),
        ("smollm", |t| t["normalizer"] = value!({"type": "Sequence", "normalizers": []}), None),
    ] {
        let folder = copy(name, temp.path(), change);
        let (by_convert, by_run) = (told(&folder, "convert"), told(&folder, "run"));
        match note {
            Some(note) => assert!(by_convert.contains(note), "{by_convert}"),
            None => assert!(!by_convert.contains("the folder's tokenizer"), "{by_convert}"),
        }
        assert!(!by_run.contains("the folder's tokenizer"), "{by_run}");
    }
    // What neither follows, both say.
    let folder = copy("sentencepiece-json", temp.path(), |t| {
        t["normalizer"] = value!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        t["pre_tokenizer"] = Value::Null;
        flag(t, "</s>", &["normalized"]);
    });
    for of in ["convert", "run"] {
        assert!(told(&folder, of).contains("looks for </s> in text with spaces put in"), "{of}");
    }
}

/// A folder's flags in tokenizer_config.json count where tokenizer.json does not know the token.
#[test]
fn flags_of_the_file_beside_count_for_tokens_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("smollm", temp.path(), |t| {
        t["added_tokens"].as_array_mut().unwrap().retain(|t| t["content"] != "<|im_end|>");
    });
    let tokens = |folder: &Path| ours(folder).encode("a <|im_end|>  b", Specials::Parsed).unwrap();
    edit(&folder.join("tokenizer_config.json"), |c| {
        c["added_tokens_decoder"] = value!({"2": {"content": "<|im_end|>", "special": true, "rstrip": false}});
    });
    let kept = tokens(&folder);
    edit(&folder.join("tokenizer_config.json"), |c| c["added_tokens_decoder"]["2"]["rstrip"] = true.into());
    let stripped = tokens(&folder);
    assert!(stripped.len() < kept.len() && stripped.contains(&2), "{kept:?} {stripped:?}");
}

#[test]
fn templates_in_any_file_have_one_kind_of_line_ends() {
    let temp = tempfile::tempdir().unwrap();
    let plain =
        "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n{% if add_generation_prompt %}\n>\n{% endif %}\n";
    let mut counts = std::collections::BTreeSet::new();
    for newline in ["\n", "\r\n", "\r"] {
        let text = plain.replace('\n', newline);
        for place in ["jinja", "config", "list", "json"] {
            let folder = copy("smollm", temp.path(), |_| ());
            let jinja = folder.join("chat_template.jinja");
            let _ = std::fs::remove_file(&jinja);
            let _ = std::fs::remove_file(folder.join("chat_template.json"));
            match place {
                "jinja" => std::fs::write(&jinja, &text).unwrap(),
                "config" => edit(&folder.join("tokenizer_config.json"), |c| c["chat_template"] = text.as_str().into()),
                "list" => edit(&folder.join("tokenizer_config.json"), |c| {
                    c["chat_template"] =
                        value!([{"name": "x", "template": "x"}, {"name": "default", "template": text}]);
                }),
                _ => edit(&folder.join("chat_template.json"), |c| c["chat_template"] = text.as_str().into()),
            }
            let gguf = temp.path().join("out.gguf");
            let out = ptplus(["convert".as_ref(), "-f".as_ref(), folder.as_os_str(), "-o".as_ref(), gguf.as_os_str()]);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
            let written = ptplus::format::gguf::open(&gguf).unwrap().metadata;
            assert_eq!(written.str("tokenizer.chat_template").unwrap(), Some(plain), "{place} {newline:?}");
            for base in [&folder, &gguf] {
                let base = base.to_str().unwrap();
                let (code, document) = json(["run", "--base", base, "-p", "Hi", "-n", "1", "--temp", "0"]);
                assert_eq!(code, 0, "{document}");
                counts.insert(document["answers"][0]["prompt_tokens"].as_u64());
            }
        }
    }
    assert_eq!(counts.len(), 1, "{counts:?}");
}
