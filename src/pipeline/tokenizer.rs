//! Which tokenizer the GGUF file of a base gets: the base's, or the one that was trained and saved with an adapter that is merged
//! into it.

use std::path::Path;

use super::ConvertBase;
use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::format::links::is_present;
use crate::import::source::CONFIG_FILE;
use crate::validate::Validated;
use crate::vocab::{hf, to_gguf};

/// What becomes of a folder's tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokenizer<'a> {
    /// It is written, if llama.cpp is known to tokenize as it does.
    Known,
    /// It is written, with this as `tokenizer.ggml.pre`.
    Stated(&'a str),
    /// It is left out.
    None,
}

/// The tokenizer to write for `merged`, which `base` and the adapters make. A GGUF file's is in its metadata, which is carried over.
///
/// # Errors
///
/// Those of [`hf::read`]; [`Code::TokenizerUnsupported`] where adapters have other tokens each; [`Code::Usage`].
pub(super) fn read(
    job: &ConvertBase<'_>,
    base: &BaseModel,
    merged: &BaseModel,
    adapters: &[(Validated, f64)],
) -> Result<Option<hf::Found>> {
    let pre = match (base.dialect, job.tokenizer) {
        (Dialect::HuggingFace, Tokenizer::None) | (Dialect::Gguf, Tokenizer::Known) => return Ok(None),
        (Dialect::HuggingFace, Tokenizer::Known) => None,
        (Dialect::HuggingFace, Tokenizer::Stated(pre)) => Some(pre),
        // What is said of a file's own can only be true already.
        (Dialect::Gguf, stated) => {
            let says = |key: &str| base.metadata.as_ref().map_or(Ok(None), |m| m.str(key));
            let is_true = match stated {
                Tokenizer::Stated(pre) => says(to_gguf::PRE)? == Some(pre),
                _ => says("tokenizer.ggml.model")?.is_none_or(|model| matches!(model, "none" | "no_vocab")),
            };
            if is_true {
                return Ok(None);
            }
            let message = "expected no other statement about the tokenizer than the file's own, which is carried over";
            return Err(Error::new(Code::Usage, message).field("--tokenizer-pre, --no-tokenizer"));
        }
    };
    let n_tokens = merged.config.vocab_size;
    let has_new_rows = n_tokens != base.config.vocab_size;
    let own = hf::read(job.base, n_tokens, pre);
    let (mut trained, mut notes) = (None::<(&Path, hf::Found)>, Vec::new());
    for folder in adapters.iter().filter_map(|(a, _)| folder_of(&a.origin.path)).filter(|folder| *folder != job.base) {
        let shown = folder.display();
        let beside = match hf::read_for(folder, job.base, n_tokens, pre) {
            Ok(None) => continue,
            Ok(Some(beside)) => beside,
            Err(e) if has_new_rows || own.is_err() => return Err(e),
            Err(e) => {
                notes.push(format!("the tokenizer in {shown} is not used: {e}"));
                continue;
            }
        };
        let has_tokens_of = |other: &hf::Found| other.vocabulary.tokens == beside.vocabulary.tokens;
        match (&own, &trained) {
            (Ok(Some(own)), _) if has_tokens_of(own) => {
                let template = &beside.vocabulary.chat_template;
                let is_decided = job.about.is_some_and(|a| a.chat_template.is_some());
                if template.is_some() && !is_decided && *template != own.vocabulary.chat_template {
                    notes.push(format!("the chat template in {shown} is another one; the output has the base's"));
                }
            }
            (_, Some((_, other))) if has_tokens_of(other) => {}
            (_, Some((other, _))) => {
                let other = other.display();
                let message =
                    format!("expected one tokenizer, found other tokens in {other}: --no-tokenizer writes none");
                return Err(Error::new(Code::TokenizerUnsupported, message).file(folder));
            }
            (_, None) => trained = Some((folder, beside)),
        }
    }
    let found = match trained {
        None => own?,
        Some((folder, found)) => {
            notes.push(format!("the tokenizer is the one in {}, whose tokens are not the base's", folder.display()));
            Some(found)
        }
    };
    Ok(found.map(|f| hf::Found { notes: [notes, f.notes].concat(), ..f }))
}

/// The folder in which an adapter was saved, whatever was saved with it: not that of a file which lies anywhere.
fn folder_of(adapter: &Path) -> Option<&Path> {
    let folder = if adapter.is_dir() { adapter } else { adapter.parent()? };
    is_present(&folder.join(CONFIG_FILE)).then_some(folder)
}
