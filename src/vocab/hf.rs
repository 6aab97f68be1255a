//! The vocabulary of a Hugging Face folder: `tokenizer.model` (SentencePiece) or `tokenizer.json` (byte pair encoding),
//! with `tokenizer_config.json`, `config.json` and the chat template beside them.
//!
//! What llama.cpp would tokenize differently than the folder's own tokenizer is refused, unless the caller states the
//! pre-tokenizer. Source: `get_vocab_base` and `_create_vocab_sentencepiece` of llama.cpp's converter, gguf-py's
//! `SpecialVocab`, and `llama_vocab::impl::load`.

mod bpe;
mod fields;
mod merges;
mod pre_tokenizer;
mod sentence_piece;
mod special;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Spaces, TextRules, TokenKind, Vocabulary};
use crate::error::{Code, Error, Result};
use crate::format::json;
use crate::format::limits::VOCABULARY_TOKENS;
use crate::format::links::is_present;
use special::Settings;

/// Values in a `tokenizer.json`. The largest vocabularies in use (262,144 tokens and 514,906 merges, each two strings)
/// have 1.9 million, with 6,000 added tokens as objects.
pub(crate) const MAX_TOKENIZER_VALUES: usize = 1_950_000;

/// Bytes of the files beside it; chat templates have some 10 kB, lists of added tokens some 100 kB.
const MAX_SETTINGS_BYTES: u64 = 8 << 20;

/// A vocabulary, and where it came from.
#[derive(Debug, Clone)]
pub struct Found {
    /// The vocabulary.
    pub vocabulary: Vocabulary,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Reads the vocabulary of `folder`, with exactly `n_tokens` tokens, the rows of the model's embedding: holes become
/// unused tokens. `None` where the folder has no tokenizer. `pre` states `tokenizer.ggml.pre`, and that the caller knows
/// how llama.cpp will split text.
///
/// # Errors
///
/// [`Code::TokenizerInvalid`] for files that contradict themselves or the model,
/// [`Code::TokenizerUnsupported`] for tokenizers that llama.cpp would not follow; those of JSON.
pub fn read(folder: &Path, n_tokens: usize, pre: Option<&str>) -> Result<Option<Found>> {
    read_for(folder, folder, n_tokens, pre)
}

/// [`read`] of a tokenizer for the model in another folder, which has `config.json` and `generation_config.json`.
///
/// # Errors
///
/// As [`read`].
pub fn read_for(folder: &Path, model_folder: &Path, n_tokens: usize, pre: Option<&str>) -> Result<Option<Found>> {
    if n_tokens > VOCABULARY_TOKENS {
        let message =
            format!("expected a tokenizer of at most {VOCABULARY_TOKENS} tokens, found {n_tokens} rows for them");
        return Err(unsupported(message).file(&model_folder.join("config.json")).field("vocab_size"));
    }
    let model = folder.join("tokenizer.model");
    let json_file = folder.join("tokenizer.json");
    let mut settings = Settings::read(folder, model_folder)?;
    let is_json_present = is_present(&json_file);
    let mut tokenizer = is_json_present.then(|| json::read_large_file(&json_file, MAX_TOKENIZER_VALUES)).transpose()?;
    if let Some(json) = &tokenizer {
        settings.add_tokenizer_json(&json_file, json)?;
    }
    settings.leave_out_what_is_no_text(n_tokens)?;
    let mut draft = match (sentence_piece::bytes(&model)?, &mut tokenizer) {
        (Some(bytes), _) => {
            settings.files.push(model.clone());
            sentence_piece::read(&model, &bytes, n_tokens, &settings, pre)?
        }
        (None, Some(json)) => bpe::read(&json_file, json, n_tokens, &mut settings, pre)?,
        (None, None) if is_present(&model) => {
            let message = "expected a SentencePiece model, found something else, and no tokenizer.json beside it";
            return Err(Error::new(Code::TokenizerUnsupported, message).file(&model));
        }
        (None, None) => return Ok(None),
    };
    if tokenizer.is_some() {
        settings.files.push(json_file.clone());
    }
    // transformers asks this file first where there are both.
    let mut spaces = Spaces::default();
    if let Some(json) = &tokenizer
        && bpe::space_prefix(json, &mut spaces).is_ok()
    {
        draft.rules.spaces = spaces;
    }
    let file = if matches!(draft.algorithm, super::Algorithm::SentencePiece { .. }) && model.is_file() {
        &model
    } else {
        &json_file
    };
    check_unique(&draft.tokens).map_err(|e| e.file(file))?;
    let special = settings.special_tokens(&draft)?;
    let (special, more_ends) = settings.ends(&draft, special)?;
    settings.note_normalized_tokens(&draft);
    let (add_bos, add_eos) = settings.added_at_the_ends(&draft, &special)?;
    let vocabulary = Vocabulary {
        algorithm: draft.algorithm,
        tokens: draft.tokens,
        kinds: draft.kinds,
        special,
        more_ends,
        rules: TextRules { added: settings.flags(), ..draft.rules },
        add_bos,
        add_eos,
        chat_template: settings.chat_template,
    };
    Ok(Some(Found { vocabulary, files: settings.files, notes: settings.notes }))
}

/// Tokens without what the other files say about them.
struct Draft {
    algorithm: super::Algorithm,
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
    /// What the tokenizer's own file says about special tokens, where nothing else does.
    special: super::SpecialTokens,
    /// What it does to text besides splitting it.
    rules: TextRules,
}

/// The steps of what `tokenizer.json` has alone or in a `Sequence`, nested or not, under `list`; none for null.
fn steps<'a>(value: &'a Value, list: &str) -> Result<Vec<&'a Value>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    if value["type"] != "Sequence" {
        return Ok(vec![value]);
    }
    let inside = value[list].as_array().ok_or_else(|| invalid(format!("expected a list as {list} of a Sequence")))?;
    Ok(inside.iter().map(|step| steps(step, list)).collect::<Result<Vec<_>>>()?.concat())
}

/// llama.cpp stops the program where two tokens have one text.
fn check_unique(tokens: &[String]) -> Result<()> {
    let mut seen = HashSet::with_capacity(tokens.len());
    match tokens.iter().position(|t| !seen.insert(t.as_str())) {
        Some(i) => Err(invalid(format!("expected each token once, found {:?} again as number {i}", tokens[i]))),
        None => Ok(()),
    }
}

/// The text of a number that no token has. Source: llama.cpp's converter.
fn hole(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Whether llama.cpp's converter takes an added token for a control token although it is not marked as one.
fn looks_special(token: &str) -> bool {
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<｜") && token.ends_with("｜>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}

/// An added token's kind and its text as llama.cpp wants it: user-defined tokens with plain spaces.
fn added(content: &str, is_special: bool) -> (TokenKind, String) {
    match is_special || looks_special(content) {
        true => (TokenKind::Control, content.to_owned()),
        false => (TokenKind::UserDefined, content.replace('▁', " ")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::TokenizerInvalid, message)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Code::TokenizerUnsupported, message)
}

/// A token's number in a JSON file, which has to be one of the model's.
fn token_id(value: &Value, n_tokens: usize) -> Result<usize> {
    let id = value.as_u64().and_then(|n| usize::try_from(n).ok());
    id.filter(|id| *id < n_tokens)
        .ok_or_else(|| invalid(format!("expected a number below {n_tokens}, the rows of the embedding, found {value}")))
}
