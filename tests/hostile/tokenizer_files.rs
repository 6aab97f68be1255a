//! The files of a Hugging Face tokenizer: three tokens, one merge, byte-level.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::vocab::hf;

use crate::case::{Case, accepted, large, refused};

/// Rows of the embedding: one more than there are tokens.
const N_TOKENS: usize = 4;

const TOKENIZER: &str = r#"{
    "version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
    "post_processor":null,"decoder":null,
    "model":{"type":"BPE","dropout":null,"unk_token":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
        "vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;

/// A folder with a right `tokenizer.json`.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.json"), TOKENIZER).expect("a file");
    dir
}

fn read_as(name: &str, file: Vec<u8>) -> Result<()> {
    let dir = folder();
    std::fs::write(dir.path().join(name), file).expect("a file");
    checked(dir.path())
}

/// What is accepted makes a tokenizer.
fn checked(dir: &Path) -> Result<()> {
    let found = hf::read(dir, N_TOKENS, None)?.expect("a tokenizer is there");
    assert_eq!(found.vocabulary.tokens.len(), N_TOKENS);
    #[cfg(feature = "generate")]
    ptplus::vocab::tokenizer::Tokenizer::new(found.vocabulary).map_err(|e| e.file(dir))?;
    Ok(())
}

pub fn read(file: Vec<u8>) -> Result<()> {
    read_as("tokenizer.json", file)
}

pub fn read_config(file: Vec<u8>) -> Result<()> {
    read_as("tokenizer_config.json", file)
}

pub fn read_added(file: Vec<u8>) -> Result<()> {
    read_as("added_tokens.json", file)
}

pub fn read_template(file: Vec<u8>) -> Result<()> {
    read_as("chat_template.json", file)
}

pub fn read_jinja(file: Vec<u8>) -> Result<()> {
    read_as("chat_template.jinja", file)
}

pub fn read_model(file: Vec<u8>) -> Result<()> {
    read_as("config.json", file)
}

/// The right file with the first `from` as `to`.
fn with(from: &str, to: &str) -> String {
    assert!(TOKENIZER.contains(from), "{from}");
    TOKENIZER.replacen(from, to, 1)
}

fn with_added(tokens: &str) -> String {
    with(r#""added_tokens":[]"#, &format!(r#""added_tokens":{tokens}"#))
}

pub fn cases() -> Vec<Case> {
    [documents(), model(), vocabulary(), added_tokens(), memory()].into_iter().flatten().collect()
}

fn documents() -> Vec<Case> {
    use Code::*;
    vec![
        accepted("a right tokenizer", TOKENIZER),
        accepted("unknown keys", TOKENIZER.replacen('{', r#"{"x":[{}],"#, 1)),
        accepted("no added tokens", with(r#""added_tokens":[]"#, r#""added_tokens":null"#)),
        refused("a list", "[]", TokenizerInvalid),
        refused("null", "null", TokenizerInvalid),
        refused("no model", "{}", TokenizerInvalid),
        refused("cut short", &TOKENIZER[..TOKENIZER.len() - 1], JsonSyntax),
        refused("added tokens as an object", with_added("{}"), TokenizerInvalid),
        refused("added tokens as a number", with_added("5"), TokenizerInvalid),
        refused(
            "a pre-tokenizer as text",
            with(r#""pre_tokenizer":{"#, r#""pre_tokenizer":"x","y":{"#),
            TokenizerUnsupported,
        ),
        refused("use_regex as text", with(r#""use_regex":true"#, r#""use_regex":"false""#), TokenizerUnsupported),
        refused("a normalizer as a list", with(r#""normalizer":null"#, r#""normalizer":[]"#), TokenizerUnsupported),
        refused(
            "a post-processor as text",
            with(r#""post_processor":null"#, r#""post_processor":"x""#),
            TokenizerUnsupported,
        ),
    ]
}

fn model() -> Vec<Case> {
    use Code::*;
    let model = |field: &str, from: &str, to: &str| with(&format!("\"{field}\":{from}"), &format!("\"{field}\":{to}"));
    let mut cases = vec![
        refused("a model of another type", model("type", "\"BPE\"", "\"WordPiece\""), TokenizerUnsupported),
        refused("a type as number", model("type", "\"BPE\"", "1"), TokenizerInvalid),
        refused("no type", model("type", "\"BPE\"", "null"), TokenizerUnsupported),
        refused("dropout", model("dropout", "null", "0.5"), TokenizerUnsupported),
        refused("dropout as text", model("dropout", "null", "\"0.5\""), TokenizerInvalid),
        accepted("dropout of 0", model("dropout", "null", "0.0")),
        accepted("no unknown token, as GPT-2 has it", model("unk_token", "null", "\"\"")),
        accepted("an unknown token", model("unk_token", "null", "\"a\"")),
        accepted("an unknown token that is not there", model("unk_token", "null", "\"<unk>\"")),
        refused("an unknown token as number", model("unk_token", "null", "0"), TokenizerInvalid),
    ];
    for field in ["byte_fallback", "ignore_merges", "fuse_unk"] {
        cases.push(accepted(format!("{field} null"), model(field, "false", "null")));
        for wrong in ["\"true\"", "\"false\"", "1", "0", "[]", "{}"] {
            cases.push(refused(format!("{field} as {wrong}"), model(field, "false", wrong), TokenizerInvalid));
        }
    }
    for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let stated = |value: &str| with("\"fuse_unk\":false", &format!("\"{field}\":{value}"));
        cases.push(accepted(format!("{field} null"), stated("null")));
        cases.push(accepted(format!("{field} empty"), stated("\"\"")));
        cases.push(refused(format!("{field} stated"), stated("\"##\""), TokenizerUnsupported));
        cases.push(refused(format!("{field} as number"), stated("5"), TokenizerInvalid));
        cases.push(refused(format!("{field} as list"), stated("[\"x\"]"), TokenizerInvalid));
    }
    cases
}

fn vocabulary() -> Vec<Case> {
    use Code::*;
    let vocab = |v: &str| with(r#"{"a":0,"b":1,"ab":2}"#, v);
    let merges = |m: &str| with(r#""merges":["a b"]"#, m);
    vec![
        accepted("merges as pairs", merges(r#""merges":[["a","b"]]"#)),
        accepted("no pair", merges(r#""merges":[]"#)),
        accepted("a pair twice", merges(r#""merges":["a b","a b"]"#)),
        refused("no merges", with(r#","merges":["a b"]"#, ""), TokenizerInvalid),
        refused("merges null", merges(r#""merges":null"#), TokenizerInvalid),
        refused("merges as an object", merges(r#""merges":{}"#), TokenizerInvalid),
        refused("merges as text", merges(r#""merges":"a b""#), TokenizerInvalid),
        refused("a merge of one token", merges(r#""merges":["ab"]"#), TokenizerInvalid),
        refused("a merge of three tokens", merges(r#""merges":[["a","b","a"]]"#), TokenizerInvalid),
        refused("a merge of numbers", merges(r#""merges":[[0,1]]"#), TokenizerInvalid),
        refused("a merge of what is no token", merges(r#""merges":["a c"]"#), TokenizerInvalid),
        refused("a merge into what is no token", merges(r#""merges":["b a"]"#), TokenizerInvalid),
        refused("merges without tokens", vocab("{}"), TokenizerInvalid),
        refused("no vocabulary", vocab("null"), TokenizerInvalid),
        refused("a vocabulary as list", vocab(r#"["a","b","ab"]"#), TokenizerInvalid),
        refused("a number twice", vocab(r#"{"a":0,"b":1,"ab":2,"c":2}"#), TokenizerInvalid),
        refused("a number beyond the embedding", vocab(r#"{"a":0,"b":1,"ab":4}"#), TokenizerInvalid),
        refused("a negative number", vocab(r#"{"a":0,"b":1,"ab":-1}"#), TokenizerInvalid),
        refused("a number as text", vocab(r#"{"a":0,"b":1,"ab":"2"}"#), TokenizerInvalid),
        refused("NUL in a token", vocab(r#"{"a":0,"b":1,"ab":2,"c\u0000":3}"#), TokenizerInvalid),
        refused("a token twice", vocab(r#"{"a":0,"b":1,"ab":2,"a":3}"#), JsonDuplicateKey),
    ]
}

fn added_tokens() -> Vec<Case> {
    use Code::*;
    let token = |fields: &str| with_added(&format!("[{{{fields}}}]"));
    let mut cases = vec![
        accepted("an added token", token(r#""id":3,"content":"<s>","special":true,"lstrip":false,"normalized":null"#)),
        accepted("an added token of the vocabulary", token(r#""id":0,"content":"a""#)),
        accepted(
            "an added token twice",
            with_added(r#"[{"id":3,"content":"c"},{"id":3,"content":"c","special":true}]"#),
        ),
        refused(
            "two added tokens of one number",
            with_added(r#"[{"id":3,"content":"c"},{"id":3,"content":"d"}]"#),
            TokenizerInvalid,
        ),
        refused(
            "one added token of two numbers",
            with_added(r#"[{"id":2,"content":"c"},{"id":3,"content":"c"}]"#),
            TokenizerInvalid,
        ),
        refused("an added token with the number of another", token(r#""id":0,"content":"c""#), TokenizerInvalid),
        refused("an added token as text", with_added(r#"["c"]"#), TokenizerInvalid),
        refused("no number", token(r#""content":"c""#), TokenizerInvalid),
        refused("a number with a point", token(r#""id":3.0,"content":"c""#), TokenizerInvalid),
        refused("no content", token(r#""id":3"#), TokenizerInvalid),
        refused("content as number", token(r#""id":3,"content":5"#), TokenizerInvalid),
        refused("NUL in an added token", token(r#""id":3,"content":"\u0000""#), TokenizerInvalid),
    ];
    for field in ["special", "lstrip", "rstrip", "normalized", "single_word"] {
        for wrong in ["1", "\"false\"", "[]"] {
            let file = token(&format!(r#""id":3,"content":"c","{field}":{wrong}"#));
            cases.push(refused(format!("{field} as {wrong}"), file, TokenizerInvalid));
        }
    }
    cases
}

/// Values of few bytes that cost many.
fn memory() -> Vec<Case> {
    use Code::*;
    fn chains(open: &str, close: &str, n: usize) -> Vec<u8> {
        let chain = format!("{}0{}", open.repeat(120), close.repeat(120));
        format!("{{\"x\":[{}]}}", vec![chain; n].join(",")).into_bytes()
    }
    vec![
        large("objects in objects", || chains("{\"\":", "}", 16_000), Some(JsonTooLarge)),
        large("lists in lists", || chains("[", "]", 16_000), Some(TokenizerInvalid)),
        large(
            "objects in a list",
            || format!("[{}{{}}]", "{\"\":0},".repeat(1_500_000)).into_bytes(),
            Some(JsonTooLarge),
        ),
        large(
            "keys in an object",
            || {
                format!("{{{}\"\":0}}", (0..1_900_000).map(|i| format!("\"{i:x}\":0,")).collect::<String>())
                    .into_bytes()
            },
            Some(TokenizerInvalid),
        ),
        large("texts in a list", || format!("[{}0]", "\"a\",".repeat(1_900_000)).into_bytes(), Some(TokenizerInvalid)),
    ]
}

pub fn config_cases() -> Vec<Case> {
    use Code::*;
    let decoder = |tokens: &str| format!(r#"{{"added_tokens_decoder":{tokens}}}"#);
    let mut cases = vec![
        accepted("nothing stated", "{}"),
        accepted("a byte order mark", "\u{feff}{}"),
        accepted(
            "null throughout",
            r#"{"add_bos_token":null,"add_prefix_space":null,"bos_token":null,"added_tokens_decoder":null,"chat_template":null}"#,
        ),
        accepted("unknown keys", r#"{"x":[1],"tokenizer_class":5,"auto_map":{}}"#),
        accepted(
            "ends stated",
            r#"{"add_bos_token":true,"bos_token":"a","add_eos_token":false,"eos_token":{"content":"b","lstrip":false}}"#,
        ),
        accepted("an added token", decoder(r#"{"3":{"content":"<s>","special":true,"lstrip":false}}"#)),
        accepted("no added token", decoder("{}")),
        accepted(
            "named templates",
            r#"{"chat_template":[{"name":"default","template":"a"},{"name":"rag","template":"b"}]}"#,
        ),
        accepted("a template", r#"{"chat_template":"a"}"#),
        refused("a decoder as list", decoder("[]"), TokenizerInvalid),
        refused("a decoder as number", decoder("5"), TokenizerInvalid),
        refused("a token as text", decoder(r#"{"3":"c"}"#), TokenizerInvalid),
        refused("a token without text", decoder(r#"{"3":{}}"#), TokenizerInvalid),
        refused("special as text", decoder(r#"{"3":{"content":"c","special":"false"}}"#), TokenizerInvalid),
        refused("special as number", decoder(r#"{"3":{"content":"c","special":1}}"#), TokenizerInvalid),
        refused("a number with a sign", decoder(r#"{"+3":{"content":"c"}}"#), TokenizerInvalid),
        refused("a number with a zero", decoder(r#"{"03":{"content":"c"}}"#), TokenizerInvalid),
        refused("one number twice", decoder(r#"{"03":{"content":"c"},"3":{"content":"d"}}"#), TokenizerInvalid),
        refused(
            "a number beyond the embedding",
            decoder(r#"{"18446744073709551615":{"content":"c"}}"#),
            TokenizerInvalid,
        ),
        refused("another token of a number", decoder(r#"{"0":{"content":"c"}}"#), TokenizerInvalid),
        refused("named templates without a name", r#"{"chat_template":[{"template":"a"}]}"#, TokenizerInvalid),
        refused(
            "named templates without text",
            r#"{"chat_template":[{"name":"default","template":1}]}"#,
            TokenizerInvalid,
        ),
        refused(
            "two templates of one name",
            r#"{"chat_template":[{"name":"default","template":"a"},{"name":"default","template":"b"}]}"#,
            TokenizerInvalid,
        ),
        refused("templates as text", r#"{"chat_template":["a"]}"#, TokenizerInvalid),
        refused("a template as object", r#"{"chat_template":{}}"#, TokenizerInvalid),
        refused("a template as number", r#"{"chat_template":5}"#, TokenizerInvalid),
        refused("NUL in a template", r#"{"chat_template":"a\u0000"}"#, TokenizerInvalid),
        large(
            "objects in objects",
            || format!("[{}0]", "{\"\":0},".repeat(1_000_000)).into_bytes(),
            Some(JsonTooLarge),
        ),
    ];
    for document in ["[]", "\"x\"", "5", "null", "true"] {
        cases.push(refused(format!("a document {document}"), document, TokenizerInvalid));
    }
    for field in ["add_bos_token", "add_eos_token", "add_prefix_space"] {
        for wrong in ["\"true\"", "\"no\"", "1", "0", "[]", "{}"] {
            let file = format!("{{\"{field}\":{wrong}}}");
            cases.push(refused(format!("{field} as {wrong}"), file, TokenizerInvalid));
        }
    }
    for field in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        for wrong in ["5", "{}", "[\"a\"]", "true", "{\"content\":5}"] {
            let file = format!("{{\"{field}\":{wrong}}}");
            cases.push(refused(format!("{field} as {wrong}"), file, TokenizerInvalid));
        }
        // What no answer needs may be missing.
        let (name, file) = (format!("{field} that is not there"), format!("{{\"{field}\":\"nowhere\"}}"));
        cases.push(match field {
            "bos_token" | "eos_token" => refused(name, file, TokenizerInvalid),
            _ => accepted(name, file),
        });
    }
    cases
}

pub fn added_cases() -> Vec<Case> {
    let mut cases = vec![accepted("a token", r#"{"c":3}"#), accepted("no token", "{}")];
    for (name, file) in [
        ("a list", "[1,2]"),
        ("text", "\"x\""),
        ("null", "null"),
        ("two tokens of one number", r#"{"c":3,"d":3}"#),
        ("another token of a number", r#"{"c":0}"#),
        ("a negative number", r#"{"c":-1}"#),
        ("a number as text", r#"{"c":"3"}"#),
        ("a number beyond the embedding", r#"{"c":4}"#),
        ("NUL", r#"{"\u0000":3}"#),
    ] {
        cases.push(refused(name, file, Code::TokenizerInvalid));
    }
    cases
}

pub fn template_cases() -> Vec<Case> {
    let mut cases = vec![accepted("a template", r#"{"chat_template":"a"}"#), accepted("none", "{}")];
    for file in ["[]", "\"x\"", "null", r#"{"chat_template":5}"#, r#"{"chat_template":"\u0000"}"#] {
        cases.push(refused(file, file, Code::TokenizerInvalid));
    }
    cases
}

pub fn jinja_cases() -> Vec<Case> {
    vec![
        accepted("a template", "{{ messages }}"),
        accepted("what is no template", "{% for %}"),
        refused("NUL", "a\0b", Code::TokenizerInvalid),
        refused("a byte that is not UTF-8", b"\xff", Code::TokenizerInvalid),
    ]
}

/// `config.json`, which states tokens by number.
pub fn model_cases() -> Vec<Case> {
    let mut cases = vec![accepted("none", "{}")];
    for field in ["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"] {
        for right in ["0", "3", "null", "[0,1]", "[]", "-1"] {
            cases.push(accepted(format!("{field} as {right}"), format!("{{\"{field}\":{right}}}")));
        }
        for wrong in ["\"1\"", "true", "1.5", "[\"1\"]", "{}", "[[0]]", "NaN"] {
            let file = format!("{{\"{field}\":{wrong}}}");
            cases.push(refused(format!("{field} as {wrong}"), file, Code::TokenizerInvalid));
        }
        for beyond in ["4", "[1000000000]"] {
            let (name, file) = (format!("{field} as {beyond}"), format!("{{\"{field}\":{beyond}}}"));
            cases.push(match field {
                "bos_token_id" | "eos_token_id" => refused(name, file, Code::TokenizerInvalid),
                _ => accepted(name, file),
            });
        }
    }
    cases
}

#[test]
fn links_that_lead_nowhere_are_not_absent_files() {
    for name in [
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    ] {
        let dir = folder();
        std::os::unix::fs::symlink("nowhere", dir.path().join(name)).expect("a link");
        let e = checked(dir.path()).expect_err(name);
        assert_eq!((e.code(), e.path()), (Code::NotFound, Some(&*dir.path().join(name))), "{e}");
    }
}
