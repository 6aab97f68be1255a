//! GGUF keys to a [`Vocabulary`]. Names and defaults: llama.cpp's `llama-vocab.cpp`; stricter where it only warns.

use super::to_gguf::{MODEL, NO_MODEL, PRE};
use super::{Algorithm, SpecialTokens, TextRules, TokenKind, Vocabulary};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{Array, Metadata, Value};
use crate::format::limits::{VOCABULARY_BYTES, VOCABULARY_MERGES, VOCABULARY_TOKENS};
use crate::format::names::shorten;

impl Vocabulary {
    /// Reads the keys `tokenizer.*`.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for a key that is missing or of the wrong type; [`Code::TokenizerInvalid`] for lists
    /// of different lengths or above [`VOCABULARY_TOKENS`], unknown token types, scores that are no numbers and ids beyond the vocabulary;
    /// [`Code::TokenizerUnsupported`] for a file without a tokenizer, and for an algorithm that is neither byte-level BPE nor
    /// SentencePiece.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        // A list of tokens without the name of its algorithm is damage, not a file without a tokenizer.
        let absent = match metadata.str(MODEL)? {
            None => metadata.get("tokenizer.ggml.tokens").is_none(),
            Some(model) => matches!(model, NO_MODEL | "no_vocab"),
        };
        if absent {
            let message = "expected a base with a tokenizer, found one without: it runs on token ids alone";
            return Err(Error::new(Code::TokenizerUnsupported, message).field(MODEL));
        }
        let tokens = texts(metadata, "tokenizer.ggml.tokens", VOCABULARY_TOKENS)?;
        let n = tokens.len();
        let kinds = match metadata.array("tokenizer.ggml.token_type")? {
            Some(array) => list(array, n, "tokenizer.ggml.token_type", "a token type from 1 to 6", kind)?,
            None => vec![TokenKind::Normal; n],
        };
        let algorithm = algorithm(metadata, n)?;
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.u32(&key)? {
                Some(u32::MAX) => Ok(None), // some converters' -1
                // Batches are not padded here.
                Some(id) if name == "padding" && id as usize >= n => Ok(None),
                Some(id) if id as usize >= n => {
                    Err(invalid(&key, format!("expected an id below the vocabulary's {n}, found {id}")))
                }
                id => Ok(id),
            }
        };
        // llama.cpp's defaults for SentencePiece; for BPE it takes 11 for both ends, which fits no family read here.
        let defaults = match algorithm {
            Algorithm::SentencePiece { .. } => [Some(1), Some(2), Some(0)],
            Algorithm::Bpe { .. } => [None; 3],
        }
        .map(|id: Option<u32>| id.filter(|id| (*id as usize) < n));
        let special = SpecialTokens {
            bos: id("bos")?.or(defaults[0]),
            eos: id("eos")?.or(defaults[1]),
            unknown: id("unknown")?.or(defaults[2]),
            padding: id("padding")?,
            end_of_turn: id("eot")?,
            end_of_message: id("eom")?,
        };
        let name = metadata.str("general.name")?.unwrap_or_default();
        Ok(Vocabulary {
            algorithm,
            tokens,
            kinds,
            special,
            more_ends: more_ends(metadata, n)?,
            rules: TextRules { phi3: TextRules::is_phi3(name), ..TextRules::default() },
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
        })
    }
}

fn algorithm(metadata: &Metadata, n_tokens: usize) -> Result<Algorithm> {
    match metadata.str(MODEL)?.ok_or_else(|| metadata.missing(MODEL))? {
        "gpt2" => Ok(Algorithm::Bpe {
            // llama.cpp's name where a file says nothing
            pre: metadata.str(PRE)?.filter(|pre| !pre.is_empty()).unwrap_or("default").to_owned(),
            merges: texts(metadata, "tokenizer.ggml.merges", VOCABULARY_MERGES)?,
        }),
        "llama" => {
            let key = "tokenizer.ggml.scores";
            let array = metadata.array(key)?.ok_or_else(|| metadata.missing(key))?;
            Ok(Algorithm::SentencePiece {
                scores: list(array, n_tokens, key, "a finite f32", |v| match v {
                    Value::F32(x) if x.is_finite() => Some(*x),
                    _ => None,
                })?,
                add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
            })
        }
        other => {
            let message = format!(
                "expected gpt2 (byte-level BPE) or llama (SentencePiece), found {:?}, which ptplus does not tokenize",
                shorten(other)
            );
            Err(Error::new(Code::TokenizerUnsupported, message).field(MODEL))
        }
    }
}

/// What a reader of a file should know whose keys say less or more than they should.
///
/// # Errors
///
/// [`Code::GgufKey`] for a key of the wrong type.
pub fn notes(metadata: &Metadata) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if lacks_pre(metadata)? {
        notes.push(format!(
            "{PRE} is missing, as early converters left it: text is split by llama.cpp's \"default\" pattern, which is hardly this model's, and its tokens are then others than in training; `convert --tokenizer-pre NAME` writes a file that names the pattern"
        ));
    }
    let n = metadata.array("tokenizer.ggml.tokens")?.map_or(0, Array::len);
    let key = "tokenizer.ggml.padding_token_id";
    if let Some(id) = metadata.u32(key)?.filter(|id| *id != u32::MAX && *id as usize >= n && n > 0) {
        notes.push(format!("{key}: {id} is none of the {n} tokens, and is not used"));
    }
    Ok(notes)
}

/// Whether it is byte-level BPE without the name of its pattern, which was once not written.
///
/// # Errors
///
/// As [`notes`].
pub fn lacks_pre(metadata: &Metadata) -> Result<bool> {
    Ok(metadata.str(MODEL)? == Some("gpt2") && metadata.str(PRE)?.is_none_or(str::is_empty))
}

/// Ollama's list of ends, which llama.cpp does not read.
fn more_ends(metadata: &Metadata, n_tokens: usize) -> Result<Vec<u32>> {
    let key = "tokenizer.ggml.eos_token_ids";
    let Some(array) = metadata.array(key)? else { return Ok(Vec::new()) };
    if array.len() > n_tokens {
        return Err(invalid(key, format!("expected at most {n_tokens} elements, found {}", array.len())));
    }
    let id = |v: &Value| v.as_u64().filter(|id| *id < n_tokens as u64).map(|id| id as u32);
    list(array, array.len(), key, "a token of the vocabulary", id)
}

/// A list of at most `most`, which is looked at before anything is copied.
fn texts(metadata: &Metadata, key: &str, most: usize) -> Result<Vec<String>> {
    if let Some(n) = metadata.array(key)?.map(Array::len).filter(|n| *n > most) {
        return Err(invalid(key, format!("expected at most {most} elements, found {n}")));
    }
    // Each text has its length before it.
    if metadata.array(key)?.is_some_and(|a| a.len_bytes().saturating_sub(8 * a.len()) > VOCABULARY_BYTES) {
        return Err(invalid(key, format!("expected at most {VOCABULARY_BYTES} bytes of text, found more")));
    }
    let texts = metadata.str_array(key)?.ok_or_else(|| metadata.missing(key))?;
    Ok(texts.map(str::to_owned).collect())
}

/// Every element of an array that has to have `n`.
fn list<T>(array: &Array, n: usize, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
    if array.len() != n {
        return Err(invalid(key, format!("expected one element for each of {n} tokens, found {}", array.len())));
    }
    let element = |(i, v): (usize, Value)| {
        read(&v).ok_or_else(|| invalid(key, format!("token {i}: expected {expected}, found {v}")))
    };
    array.iter().enumerate().map(element).collect()
}

fn kind(value: &Value) -> Option<TokenKind> {
    Some(match value.as_u64()? {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => return None,
    })
}

fn invalid(key: &str, message: String) -> Error {
    Error::new(Code::TokenizerInvalid, message).field(key)
}
