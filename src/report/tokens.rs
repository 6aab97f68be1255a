//! The text of tokens, for people: from a GGUF file's vocabulary or a folder's `tokenizer.json`, as their files spell it.

use serde_json::Value;

use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::format::limits::VOCABULARY_TOKENS;
use crate::format::{gguf, json};
use crate::vocab::byte_level::byte_of;
use crate::vocab::hf::MAX_TOKENIZER_VALUES;

/// The bytes of each token; empty where the base has no vocabulary.
#[derive(Default)]
pub struct Tokens(Vec<Vec<u8>>);

impl Tokens {
    /// The vocabulary beside or in the base's files; none is no error.
    ///
    /// # Errors
    ///
    /// Those of the formats; [`Code::ConfigField`] for a `tokenizer.json` without a vocabulary.
    pub fn of(base: &BaseModel) -> Result<Tokens> {
        let spelled: Vec<String> = match base.dialect {
            Dialect::Gguf => {
                let file = gguf::open(&base.path)?;
                let tokens = file.metadata.str_array("tokenizer.ggml.tokens")?.into_iter().flatten();
                tokens.take(base.config.vocab_size.min(VOCABULARY_TOKENS)).map(str::to_owned).collect()
            }
            Dialect::HuggingFace => {
                let path = base.path.join("tokenizer.json");
                if !path.is_file() {
                    return Ok(Tokens::default());
                }
                listed(json::read_large_file(&path, MAX_TOKENIZER_VALUES)?).ok_or_else(|| {
                    Error::new(Code::ConfigField, "expected a vocabulary, found none").file(&path).field("model.vocab")
                })?
            }
        };
        // Byte-level vocabularies spell a space as this letter, SentencePiece as U+2581.
        let byte_level = spelled.iter().any(|t| t.starts_with('\u{120}'));
        Ok(Tokens(spelled.into_iter().map(|t| bytes(&t, byte_level)).collect()))
    }

    /// `" pirate"`, or `#123` where there is no text.
    pub fn one(&self, id: u32) -> String {
        match self.0.get(id as usize) {
            Some(bytes) if !bytes.is_empty() => format!("\"{}\"", String::from_utf8_lossy(bytes)),
            _ => format!("#{id}"),
        }
    }

    /// The text that `ids` make, or their numbers.
    pub fn text(&self, ids: &[u32]) -> String {
        let known: Option<Vec<&[u8]>> = ids.iter().map(|id| self.0.get(*id as usize).map(Vec::as_slice)).collect();
        match known {
            Some(parts) => String::from_utf8_lossy(&parts.concat()).into_owned(),
            None => ids.iter().map(|id| format!("#{id}")).collect::<Vec<_>>().join(" "),
        }
    }

    /// Whether there is no vocabulary.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The tokens of a `tokenizer.json` by id: `model.vocab` is a map (BPE) or a list of pairs (Unigram).
fn listed(mut root: Value) -> Option<Vec<String>> {
    let vocab = root.pointer_mut("/model/vocab").map(Value::take)?;
    // What is left are pairs, most of it.
    let added = root.get_mut("added_tokens").map(Value::take).unwrap_or_default();
    drop(root);
    let mut out = Vec::new();
    let mut put = |id: usize, text: String| {
        if id < VOCABULARY_TOKENS {
            out.resize(out.len().max(id + 1), String::new());
            out[id] = text;
        }
    };
    match vocab {
        Value::Object(map) => map.into_iter().for_each(|(text, id)| {
            if let Some(id) = id.as_u64() {
                put(id as usize, text);
            }
        }),
        Value::Array(list) => list.into_iter().enumerate().for_each(|(id, pair)| {
            if let Some(text) = pair.get(0).and_then(Value::as_str) {
                put(id, text.to_owned());
            }
        }),
        _ => return None,
    }
    for token in added.as_array().into_iter().flatten() {
        if let (Some(id), Some(text)) =
            (token.get("id").and_then(Value::as_u64), token.get("content").and_then(Value::as_str))
        {
            put(id as usize, text.to_owned());
        }
    }
    Some(out)
}

fn bytes(spelled: &str, byte_level: bool) -> Vec<u8> {
    if !byte_level {
        return spelled.replace('\u{2581}', " ").into_bytes();
    }
    // A token with a character outside the table is one that was added: plain text.
    spelled.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| spelled.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_spelling_is_undone() {
        assert_eq!(bytes("\u{120}caf\u{c3}\u{a9}\u{10a}", true), " caf\u{e9}\n".as_bytes());
        assert_eq!(bytes("\u{2581}a", false), b" a");
        assert_eq!(bytes("<|im_start|>", true), b"<|im_start|>");
    }

    #[test]
    fn both_shapes_of_a_vocabulary_are_read() {
        let map =
            serde_json::json!({"model": {"vocab": {"b": 1, "a": 0}}, "added_tokens": [{"id": 3, "content": "<s>"}]});
        assert_eq!(listed(map).unwrap(), ["a", "b", "", "<s>"]);
        let list = serde_json::json!({"model": {"vocab": [["x", -1.5], ["y", 0]]}});
        assert_eq!(listed(list).unwrap(), ["x", "y"]);
        assert!(listed(serde_json::json!({"model": {}})).is_none());
        let huge = serde_json::json!({"model": {"vocab": {"a": u64::MAX, "b": 0}}});
        assert_eq!(listed(huge).unwrap(), ["b"]);
    }

    #[test]
    fn without_a_vocabulary_ids_are_shown() {
        assert_eq!(Tokens::default().one(7), "#7");
        assert_eq!(Tokens::default().text(&[7, 8]), "#7 #8");
        assert_eq!(Tokens(vec![b" caf\xc3".to_vec(), b"\xa9".to_vec()]).text(&[0, 1]), " caf\u{e9}");
    }
}
