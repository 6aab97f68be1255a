//! Files to [`Adapter`]s. Whatever the layout, the result is in canonical shapes and Hugging Face component order.

mod assemble;
mod canonical;
mod gguf;
pub mod ledger;
pub mod source;
pub mod stated;

use std::path::{Path, PathBuf};

use crate::adapter::{Adapter, RowOrder};
use crate::base::BaseModel;
use crate::error::Result;
use crate::finding::Finding;
pub(crate) use gguf::{is_adapter as is_gguf_adapter, unlisted as unlisted_architecture};
use ledger::Ledger;
use source::Source;

/// An adapter as its files have it: not yet validated, with everything that is wrong about its *set* of tensors.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The adapter, in Hugging Face component order.
    pub adapter: Adapter,
    /// What became of every tensor.
    pub ledger: Ledger,
    /// Missing and left-over tensors.
    pub findings: Vec<Finding>,
    /// Where it came from.
    pub origin: Origin,
}

/// Where an adapter came from, and what only that place knows.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The path that was given.
    pub path: PathBuf,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// For people: `canonical safetensors`, `GGUF`.
    pub layout: &'static str,
    /// The GGUF architecture that the file states.
    pub gguf_architecture: Option<String>,
    /// The row order that the file's tensors were in.
    pub row_order: RowOrder,
    /// Types of an earlier source, by canonical tensor name, recorded when the file was converted from it.
    pub recorded_dtypes: std::collections::BTreeMap<String, crate::tensor::DType>,
    /// Digest of an earlier source, recorded likewise.
    pub recorded_source_sha256: Option<String>,
    /// The configuration's own text form for the digest: compact JSON with sorted keys.
    pub config_digest_text: String,
}

/// Reads the adapter at `path`: a canonical folder, its safetensors file, or GGUF.
///
/// `base` supplies sizes that the source does not state. Errors: those of the formats; [`Code::ConventionOpen`]
/// where a convention is stated nowhere; [`Code::AdapterKind`] for something that is no Prefix-Tuning+ adapter.
///
/// [`Code::ConventionOpen`]: crate::error::Code::ConventionOpen
/// [`Code::AdapterKind`]: crate::error::Code::AdapterKind
pub fn read(path: &Path, base: Option<&BaseModel>) -> Result<Imported> {
    match source::open(path)? {
        Source::Gguf(file) => gguf::import(path, &file, base),
        Source::Tensors(tensors) => canonical::import(path, tensors, base),
    }
}
