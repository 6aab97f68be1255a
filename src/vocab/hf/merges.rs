//! The pairs of byte pair encoding, and what they say about SentencePiece's scores.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{invalid, unsupported};
use crate::error::Result;
use crate::format::names::shorten;
use crate::vocab::TokenKind;

/// Longest token whose splits are looked at, in bytes: trying all of them costs the square of it. Real ones have at most
/// some 100.
const MAX_TOKEN_BYTES: usize = 256;

/// Two tokens that are one together.
pub(super) struct Merge {
    /// `a b`
    text: String,
    /// Bytes of `a`.
    at: usize,
}

impl Merge {
    fn tokens(&self) -> (&str, &str) {
        (&self.text[..self.at], &self.text[self.at + 1..])
    }

    /// As GGUF has it.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// `["a b", ...]` or `[["a", "b"], ...]`. A space inside a token, which the strings of GGUF have no place for, becomes the
/// character that stands for a space among the byte-level ones, as in llama.cpp's converter.
pub(super) fn read(list: Vec<Value>) -> Result<Vec<Merge>> {
    let merge = |pair: &Value| {
        let (a, b) = match pair {
            Value::String(text) => text.split_once(' ')?,
            Value::Array(two) => match &two[..] {
                [Value::String(a), Value::String(b)] => (a.as_str(), b.as_str()),
                _ => return None,
            },
            _ => return None,
        };
        let whole = |s: &str| s.replace(' ', "Ġ");
        let a = whole(a);
        (!a.is_empty() && !b.is_empty()).then(|| Merge { at: a.len(), text: format!("{a} {}", whole(b)) })
    };
    list.into_iter()
        .enumerate()
        .map(|(i, pair)| {
            merge(&pair).ok_or_else(|| {
                invalid(format!("expected two tokens in pair {i}, found {}", shorten(&pair.to_string())))
            })
        })
        .collect()
}

/// Every pair is two tokens that are a third one together, as Hugging Face's library and llama.cpp want it.
pub(super) fn check(vocab: &Map<String, Value>, merges: &[Merge]) -> Result<()> {
    // As the pairs are read.
    fn as_read(t: &str) -> Cow<'_, str> {
        if t.contains(' ') { Cow::Owned(t.replace(' ', "Ġ")) } else { Cow::Borrowed(t) }
    }
    let tokens: HashSet<Cow<str>> = vocab.keys().map(|t| as_read(t)).collect();
    let mut made = String::new();
    for (i, merge) in merges.iter().enumerate() {
        let (a, b) = merge.tokens();
        made.clear();
        made.extend([a, b]);
        if let Some(missing) = [a, b, &made].into_iter().find(|t| !tokens.contains(*t)) {
            return Err(invalid(format!(
                "expected two tokens that are a third one together in pair {i}, found no token {:?}",
                shorten(missing)
            )));
        }
    }
    Ok(())
}

/// Scores by which SentencePiece merges as `merges` says: minus the place in the list at which a token is made.
///
/// That is the same tokenizer if all pairs that make one token are neighbours in the list, and if the list has every
/// pair of tokens that make a token; converters of SentencePiece models write such lists. Errors:
/// [`Code::TokenizerUnsupported`](crate::error::Code::TokenizerUnsupported) for others.
pub(super) fn scores(tokens: &[String], kinds: &[TokenKind], merges: &[Merge]) -> Result<Vec<f32>> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (i, merge) in merges.iter().enumerate() {
        let (a, b) = merge.tokens();
        let made = format!("{a}{b}");
        if made != last && places.insert(made.clone(), i).is_some() {
            return Err(unsupported(format!("expected all pairs that make {made:?} side by side, found them apart")));
        }
        last = made;
    }
    let merged: HashSet<(&str, &str)> = merges.iter().map(Merge::tokens).collect();
    let mergeable = || tokens.iter().zip(kinds).filter(|(_, k)| **k == TokenKind::Normal).map(|(t, _)| t.as_str());
    let normal: HashSet<&str> = mergeable().collect();
    for token in mergeable() {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(unsupported(format!(
                "expected tokens of at most {MAX_TOKEN_BYTES} bytes, found {}",
                token.len()
            )));
        }
        for (at, _) in token.char_indices().skip(1) {
            let pair = token.split_at(at);
            if normal.contains(pair.0) && normal.contains(pair.1) && !merged.contains(&pair) {
                let message = format!(
                    "expected every pair of tokens that make a token, as in SentencePiece, found none of {pair:?}"
                );
                return Err(unsupported(message));
            }
        }
    }
    Ok(tokens.iter().map(|t| places.get(t).map_or(0.0, |i| -(*i as f32))).collect())
}
