//! What a path looks like, from names and headers.

use std::path::Path;

use crate::adapter::Kind;
use crate::error::Result;
use crate::format::bundle::container;
use crate::format::gguf::{self, Gguf};
use crate::format::links::{self, is_present};
use crate::import;
use crate::import::source::{self, Source, is_adapter_folder};

/// Whether a base model lies at `path`, of whatever family: a folder with `config.json` and nothing of an adapter, or
/// GGUF that says it is a model, or nothing.
///
/// # Errors
///
/// Those of opening.
pub fn is_base(path: &Path) -> Result<bool> {
    let meta = std::fs::metadata(path).map_err(|e| links::not_opened(path, "cannot open", e))?;
    if container::is_bundle(path) {
        return Ok(container::holds_model(path));
    }
    if meta.is_dir() {
        return Ok(is_present(&path.join("config.json")) && !is_adapter_folder(path));
    }
    if !gguf::is_gguf(&crate::format::mmap::map_file(path)?) {
        return Ok(false);
    }
    says_model(&gguf::open(path)?).map_err(|e| e.file(path))
}

pub(super) fn says_model(file: &Gguf) -> Result<bool> {
    Ok(file.metadata.str("general.type")?.is_none_or(|kind| kind == "model"))
}

/// What a path looks like, told from names and headers alone: enough for a hint, never for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// An adapter, or a bundle of one.
    Adapter,
    /// A base model.
    Base,
    /// PyTorch's answer: see [`crate::verify::probe`].
    Probe,
}

/// What seems to lie at `path`; `None` for anything else, a broken file included.
pub fn content_of(path: &Path) -> Option<Content> {
    if container::is_bundle(path) {
        return Some(if container::holds_model(path) { Content::Base } else { Content::Adapter });
    }
    if path.is_dir() {
        if is_adapter_folder(path) {
            return Some(Content::Adapter);
        }
        return is_base(path).unwrap_or(false).then_some(Content::Base);
    }
    match source::open(path).ok()? {
        Source::Gguf(file) => match import::gguf_kind(&file.metadata).ok()? {
            Some(_) => Some(Content::Adapter),
            None => says_model(&file).unwrap_or(false).then_some(Content::Base),
        },
        Source::Tensors(source) => match import::kind_of_tensors(&source) {
            Some(Kind::Lora | Kind::Prefix) => Some(Content::Adapter),
            _ if is_probe(source.tensors.iter().map(|t| t.name.as_str())) => Some(Content::Probe),
            kind => kind.map(|_| Content::Adapter),
        },
    }
}

pub(super) fn is_probe<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    names.filter(|name| matches!(*name, "input_ids" | "logits")).count() == 2
}
