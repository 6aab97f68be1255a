//! The vocabulary that a GGUF file states, up to the tokenizer.

use ptplus::error::{Code, Result};
use ptplus::format::gguf;
use ptplus::format::limits::{VOCABULARY_BYTES, VOCABULARY_MERGES, VOCABULARY_SEARCHED, VOCABULARY_TOKENS};
use ptplus::vocab::Vocabulary;
use ptplus::vocab::tokenizer::Tokenizer;

use crate::case::{Case, accepted, large, refused};
use crate::gguf_file::{Raw, array, string};

pub fn read(file: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("base.gguf");
    std::fs::write(&path, file).expect("a file");
    let vocabulary = Vocabulary::from_gguf(&gguf::open(&path)?.metadata).map_err(|e| e.file(&path))?;
    Tokenizer::new(vocabulary).map(drop).map_err(|e| e.file(&path))
}

fn texts(raw: Raw, key: &str, texts: impl Iterator<Item = String>) -> Raw {
    let (mut n, mut bytes) = (0, Vec::new());
    for text in texts {
        n += 1;
        bytes.extend(string(text.as_bytes()));
    }
    raw.key(key.as_bytes(), 9, &array(8, n, &bytes))
}

fn of(tokens: impl Iterator<Item = String>, merges: impl Iterator<Item = String>) -> Vec<u8> {
    let raw = Raw::empty().str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2");
    texts(texts(raw, "tokenizer.ggml.tokens", tokens), "tokenizer.ggml.merges", merges).build()
}

/// Tokens that are all control tokens.
fn controls(n: usize) -> Vec<u8> {
    let raw = Raw::empty().str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2");
    let raw = texts(texts(raw, "tokenizer.ggml.tokens", numbered(n)), "tokenizer.ggml.merges", empty(0));
    let types = 3_i32.to_le_bytes().repeat(n);
    raw.key(b"tokenizer.ggml.token_type", 9, &array(5, n as u64, &types)).build()
}

fn numbered(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| format!("{i:x}"))
}

/// A merge for most of them: the first digit and the rest.
fn splits(n: usize) -> impl Iterator<Item = String> {
    let is_token = |rest: &str| rest == "0" || !rest.starts_with('0');
    numbered(n).skip(16).filter(move |t| is_token(&t[1..])).map(|t| format!("{} {}", &t[..1], &t[1..]))
}

/// 64 tokens of so many bytes together.
fn long(n_bytes: usize) -> impl Iterator<Item = String> {
    (0..64).map(move |i| format!("{i:02}{}", "x".repeat(n_bytes / 64 - 2)))
}

fn empty(n: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n(String::new(), n)
}

pub fn cases() -> Vec<Case> {
    let ab = || ["a", "b", "ab"].into_iter().map(str::to_owned);
    let merge = |text: &str| of(ab(), std::iter::once(text.to_owned()));
    vec![
        accepted("a merge", merge("a b")),
        refused("a merge of what is no token", merge("a c"), Code::TokenizerInvalid),
        refused("a merge into what is no token", merge("b a"), Code::TokenizerInvalid),
        refused("a merge without a space", merge("ab"), Code::TokenizerInvalid),
        large("most tokens", || of(numbered(VOCABULARY_TOKENS), empty(0)), None),
        large("most control tokens", || controls(VOCABULARY_SEARCHED), None),
        large("a control token too many", || controls(VOCABULARY_SEARCHED + 1), Some(Code::TokenizerInvalid)),
        large("a token too many", || of(numbered(VOCABULARY_TOKENS + 1), empty(0)), Some(Code::TokenizerInvalid)),
        large("twelve million empty tokens", || of(empty(12_000_000), empty(0)), Some(Code::TokenizerInvalid)),
        large("ten million empty merges", || of(empty(3), empty(10_000_000)), Some(Code::TokenizerInvalid)),
        large("most tokens, with merges", || of(numbered(VOCABULARY_TOKENS), splits(VOCABULARY_TOKENS / 2)), None),
        large("most bytes of tokens", || of(long(VOCABULARY_BYTES), empty(0)), None),
        large("a byte of tokens too many", || of(long(VOCABULARY_BYTES + 64), empty(0)), Some(Code::TokenizerInvalid)),
        large("many tokens of 31 bytes", || of((0..VOCABULARY_TOKENS).map(|i| format!("{i:x>31}")), empty(0)), None),
        large("most merges, all empty", || of(empty(3), empty(VOCABULARY_MERGES)), Some(Code::TokenizerInvalid)),
        large("most merges, all one", || of(numbered(256), (0..VOCABULARY_MERGES).map(|_| "a b".to_owned())), None),
    ]
}
