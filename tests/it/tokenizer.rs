//! Texts become the tokens that llama.cpp makes of them (`fixtures/vocab/goldens.json`, made by `make.py` there), and
//! tokens the bytes.
#![cfg(feature = "generate")]

use std::path::{Path, PathBuf};

use ptplus::error::Code;
use ptplus::format::gguf::{self, Metadata};
use ptplus::vocab::tokenizer::{Specials, TextStream, Tokenizer};
use ptplus::vocab::{Algorithm, Vocabulary};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    crate::common::fixtures().join("vocab").join(name)
}

fn metadata(path: &Path) -> Metadata {
    gguf::open(path).unwrap().metadata
}

fn vocabulary(path: &Path) -> Vocabulary {
    Vocabulary::from_gguf(&metadata(path)).unwrap()
}

fn goldens() -> Value {
    serde_json::from_slice(&std::fs::read(file("goldens.json")).unwrap()).unwrap()
}

/// Every difference from llama.cpp, one line each.
fn differences(tokenizer: &Tokenizer, texts: &Value, rows: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for (text, row) in texts.as_array().unwrap().iter().zip(rows.as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let parsed = ids(&row["parsed"]);
        let plain = if row["text"].is_null() { parsed.clone() } else { ids(&row["text"]) };
        for (specials, expected) in [(Specials::Parsed, &parsed), (Specials::Text, &plain)] {
            let found = tokenizer.sequence(text, specials).unwrap();
            if found != *expected {
                wrong.push(format!("{text:?} {specials:?}: expected {expected:?}, found {found:?}"));
            }
        }
        let bytes: Vec<u8> = parsed.iter().flat_map(|t| tokenizer.bytes(*t)).collect();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        if hex != row["bytes"].as_str().unwrap() {
            wrong.push(format!("{text:?}: expected bytes {}, found {hex}", row["bytes"]));
        }
    }
    wrong
}

#[test]
fn every_pattern_splits_as_llama_cpp_does() {
    let goldens = goldens();
    let base = vocabulary(&file("bpe.gguf"));
    let mut n = 0;
    let mut wrong = Vec::new();
    for (name, rows) in goldens.as_object().unwrap() {
        let Some(pre) = name.strip_prefix("bpe ") else { continue };
        n += 1;
        let mut vocabulary = base.clone();
        let Algorithm::Bpe { pre: stated, .. } = &mut vocabulary.algorithm else { panic!("BPE") };
        *stated = pre.to_owned();
        let tokenizer = Tokenizer::new(vocabulary).unwrap();
        wrong.extend(differences(&tokenizer, &goldens["texts"], rows).iter().map(|w| format!("{pre}: {w}")));
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(n, 8);
}

#[test]
fn sentence_piece_splits_as_llama_cpp_does() {
    let goldens = goldens();
    for prefix in [true, false] {
        let mut vocabulary = vocabulary(&file("spm.gguf"));
        let Algorithm::SentencePiece { add_space_prefix, .. } = &mut vocabulary.algorithm else { panic!("SPM") };
        *add_space_prefix = prefix;
        let rows = &goldens[format!("spm {}", if prefix { "True" } else { "False" })];
        let wrong = differences(&Tokenizer::new(vocabulary).unwrap(), &goldens["texts"], rows);
        assert!(wrong.is_empty(), "{prefix}: {} differences\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn a_real_vocabulary_splits_as_llama_cpp_does_on_the_real_base() {
    let base = crate::common::smollm2();
    let goldens = goldens();
    let tokenizer = Tokenizer::new(vocabulary(&base)).unwrap();
    let wrong = differences(&tokenizer, &goldens["texts"], &goldens["smollm2"]);
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
    let end = tokenizer.encode("<|im_end|>", Specials::Parsed).unwrap();
    assert!(end.len() == 1 && tokenizer.is_end(end[0]));
}

#[test]
fn characters_come_out_whole_and_once() {
    let tokenizer = Tokenizer::new(vocabulary(&file("bpe.gguf"))).unwrap();
    let text = "na\u{ef}ve \u{4e2d}\u{6587} \u{2764}\u{fe0f} caf\u{e9}";
    let mut stream = TextStream::default();
    let parts: Vec<String> =
        (tokenizer.encode(text, Specials::Text).unwrap().iter()).map(|t| stream.push(&tokenizer.bytes(*t))).collect();
    assert!(parts.iter().any(String::is_empty), "no character was split: this tests nothing");
    assert_eq!(parts.concat() + &stream.finish(), text);

    let mut stream = TextStream::default();
    assert_eq!(stream.push(b"a\xffb\xe4\xb8"), "a\u{fffd}b");
    assert_eq!(stream.push(b"\xadc\xe4"), "\u{4e2d}c");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn bytes_without_a_token_are_counted() {
    let tokenizer = Tokenizer::new(vocabulary(&file("bpe.gguf"))).unwrap();
    assert_eq!(tokenizer.n_lost_bytes("plain"), 0);
    assert_eq!(tokenizer.n_lost_bytes("\u{1}x\u{1}"), 2);
    assert!(tokenizer.encode("\u{1}", Specials::Text).unwrap().is_empty());
}

#[test]
fn contradictory_keys_are_refused() {
    use gguf::{Array, Value as V};
    type Change = fn(&mut Metadata);
    let cases: &[(&str, &str, Change, Code)] = &[
        ("no model", "bpe.gguf", |m| drop(m.remove("tokenizer.ggml.model")), Code::GgufKey),
        (
            "other model",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.model", V::String("t5".into())),
            Code::TokenizerUnsupported,
        ),
        (
            "other pre",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.pre", V::String("kimi-k2".into())),
            Code::TokenizerUnsupported,
        ),
        ("no tokens", "bpe.gguf", |m| drop(m.remove("tokenizer.ggml.tokens")), Code::GgufKey),
        ("no merges", "bpe.gguf", |m| drop(m.remove("tokenizer.ggml.merges")), Code::GgufKey),
        ("no scores", "spm.gguf", |m| drop(m.remove("tokenizer.ggml.scores")), Code::GgufKey),
        (
            "few types",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.token_type", V::Array(Array::from_u32(&[1]))),
            Code::TokenizerInvalid,
        ),
        (
            "few scores",
            "spm.gguf",
            |m| m.insert("tokenizer.ggml.scores", V::Array(Array::from_u32(&[1]))),
            Code::TokenizerInvalid,
        ),
        (
            "type 7",
            "bpe.gguf",
            |m| {
                let n = m.array("tokenizer.ggml.tokens").unwrap().unwrap().len();
                m.insert("tokenizer.ggml.token_type", V::Array(Array::from_u32(&vec![7; n])));
            },
            Code::TokenizerInvalid,
        ),
        (
            "scores of another type",
            "spm.gguf",
            |m| {
                let n = m.array("tokenizer.ggml.tokens").unwrap().unwrap().len();
                m.insert("tokenizer.ggml.scores", V::Array(Array::from_u32(&vec![7; n])));
            },
            Code::TokenizerInvalid,
        ),
        (
            "bos beyond",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.bos_token_id", V::U32(1 << 20)),
            Code::TokenizerInvalid,
        ),
        (
            "bos wanted",
            "bpe.gguf",
            |m| {
                m.remove("tokenizer.ggml.bos_token_id");
                m.insert("tokenizer.ggml.add_bos_token", V::Bool(true));
            },
            Code::TokenizerInvalid,
        ),
        (
            "merge of no tokens",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.merges", V::Array(Array::from_strs(&["a \u{fffd}"]))),
            Code::TokenizerInvalid,
        ),
        (
            "merge into no token",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.merges", V::Array(Array::from_strs(&["] ]", "]] ]]"]))),
            Code::TokenizerInvalid,
        ),
        (
            "merge of one",
            "bpe.gguf",
            |m| m.insert("tokenizer.ggml.merges", V::Array(Array::from_strs(&[" "]))),
            Code::TokenizerInvalid,
        ),
        (
            "repeated token",
            "spm.gguf",
            |m| {
                let mut tokens: Vec<String> =
                    m.str_array("tokenizer.ggml.tokens").unwrap().unwrap().map(str::to_owned).collect();
                tokens[300] = tokens[301].clone();
                m.insert("tokenizer.ggml.tokens", V::Array(Array::from_strs(&tokens)));
            },
            Code::TokenizerInvalid,
        ),
    ];
    let mut wrong = String::new();
    for (what, name, change, code) in cases {
        let mut metadata = metadata(&file(name));
        change(&mut metadata);
        match Vocabulary::from_gguf(&metadata).and_then(Tokenizer::new) {
            Err(e) if e.code() == *code => {}
            Err(e) => wrong += &format!("{what}: {e}\n"),
            Ok(_) => wrong += &format!("{what}: accepted\n"),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
