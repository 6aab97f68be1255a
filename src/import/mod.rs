//! Files to [`Adapter`]s. Whatever the layout, the result is in canonical shapes and Hugging Face component order.

mod assemble;
mod axes;
mod base_weights;
mod candidates;
mod draft;
pub(crate) mod foreign;
mod gate_map;
mod gguf;
pub mod ledger;
mod lora;
pub mod mapping;
mod model_config;
mod patterns;
mod prefix;
mod rules;
pub mod source;
pub mod stated;
mod statements;
mod suggest;

use std::path::{Path, PathBuf};

use crate::adapter::Adapter;
use crate::base::{BaseModel, RowOrder};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::bundle::Bundle;
use crate::format::gguf::Metadata;
pub use candidates::{Candidate, Candidates, Unknown};
pub use draft::{Draft, HeadOrder, Orientation};
pub(crate) use draft::{has_parts, is_part};
pub(crate) use gguf::unlisted as unlisted_architecture;
use ledger::Ledger;
use source::{Source, TensorSource};
pub(crate) use statements::flag_usage;
pub use statements::{RECORD_KEY, flag_of};
pub use suggest::suggest_layout;

/// An adapter as its files have it: not yet validated, with everything that is wrong about its *set* of tensors.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The adapter, in Hugging Face component order.
    pub adapter: Adapter,
    /// What became of every tensor.
    pub ledger: Ledger,
    /// Missing and left-over tensors.
    pub findings: Vec<Finding>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
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
    pub layout: String,
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

/// What the caller states beyond the files.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Statements by their key of `adapter_config.json`.
    pub stated: serde_json::Map<String, serde_json::Value>,
    /// Whether memories are stored with each head transposed, `[.., D_v, F]`.
    pub transpose_memory: Option<bool>,
    /// A layout file.
    pub layout: Option<PathBuf>,
    /// Which form of the adapter in a bundle; see [`source::of_bundle`].
    pub form: Option<String>,
}

impl Options {
    /// Whether nothing is stated of a checkpoint.
    pub fn is_empty(&self) -> bool {
        self.stated.is_empty() && self.transpose_memory.is_none() && self.layout.is_none()
    }
}

/// What a path was opened as.
pub enum Opened {
    /// Ready.
    Adapter(Box<Imported>),
    /// Named tensors whose conventions may be open.
    Draft(Box<Draft>),
}

/// Opens the adapter at `path` without deciding anything.
///
/// `base` supplies sizes that the source does not state.
///
/// # Errors
///
/// Those of the formats; [`Code::AdapterKind`] for
/// something that is no Prefix-Tuning+ adapter; [`Code::ConventionContradiction`] where statements disagree.
///
/// [`Code::AdapterKind`]: crate::error::Code::AdapterKind
/// [`Code::ConventionContradiction`]: crate::error::Code::ConventionContradiction
pub fn open(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Opened> {
    open_source(path, source::open_form(path, options.form.as_deref())?, options, base)
}

/// [`open`], of a source that is open.
pub(crate) fn open_source(path: &Path, source: Source, options: &Options, base: Option<&BaseModel>) -> Result<Opened> {
    match source {
        Source::Gguf(file) if lora::is_gguf_lora(&file.metadata) => {
            refuse_options(options, "a LoRA")?;
            lora::import_gguf(path, &file, base).map(|i| Opened::Adapter(Box::new(i)))
        }
        Source::Gguf(file) if prefix::is_gguf_prefix(&file.metadata) => {
            refuse_options(options, "virtual tokens")?;
            prefix::import_gguf(path, &file).map(|i| Opened::Adapter(Box::new(i)))
        }
        Source::Gguf(file) => gguf::import(path, &file, options, base).map(|i| Opened::Adapter(Box::new(i))),
        Source::Tensors(tensors) if options.layout.is_none() && is_lora(&tensors) => {
            refuse_options(options, "a LoRA")?;
            lora::read(path, tensors, base).map(|i| Opened::Adapter(Box::new(i)))
        }
        Source::Tensors(tensors) if options.layout.is_none() && is_prefix(&tensors) => {
            refuse_options(options, "virtual tokens")?;
            prefix::read(path, tensors, base).map(|i| Opened::Adapter(Box::new(i)))
        }
        Source::Tensors(tensors) => draft::read(path, tensors, options, base).map(|d| Opened::Draft(Box::new(d))),
    }
}

/// Whether a GGUF file says that it is an adapter of a kind that is read here.
pub(crate) fn is_gguf_adapter(metadata: &Metadata) -> Result<bool> {
    Ok(gguf::is_adapter(metadata)? || lora::is_gguf_lora(metadata) || prefix::is_gguf_prefix(metadata))
}

/// Conventions and layouts are those of Prefix-Tuning+.
fn refuse_options(options: &Options, what: &str) -> Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    let message = format!("expected no conventions of Prefix-Tuning+ and no layout, since the adapter is {what}");
    let flag = options.stated.keys().next().map_or("--layout", |key| flag_of(key).unwrap_or(key));
    Err(Error::new(Code::Usage, message).field(flag))
}

/// Whether tensors are those of an adapter that PEFT itself has.
pub(crate) fn is_of_peft(source: &TensorSource) -> bool {
    is_lora(source) || is_prefix(source)
}

/// Whether tensors are virtual tokens, and no part of a Prefix-Tuning+ adapter is among them.
fn is_prefix(source: &TensorSource) -> bool {
    !draft::has_parts(&source.tensors) && prefix::is_prefix(source)
}

/// Whether tensors are a LoRA's: by PEFT's names, and no part of a Prefix-Tuning+ adapter is among them.
fn is_lora(source: &TensorSource) -> bool {
    !draft::has_parts(&source.tensors) && lora::is_lora(source)
}

/// Whether the adapter at `path` is virtual tokens; what cannot be opened is told when it is read.
#[cfg(feature = "cli")]
pub(crate) fn is_virtual_tokens(path: &Path) -> bool {
    match source::open(path) {
        Ok(Source::Gguf(file)) => prefix::is_gguf_prefix(&file.metadata),
        Ok(Source::Tensors(source)) => is_prefix(&source),
        Err(_) => false,
    }
}

/// Whether the adapter at `path` is a LoRA, or a bundle, which may hold one; what cannot be opened is told when it is read.
#[cfg(feature = "cli")]
pub(crate) fn may_be_lora(path: &Path) -> bool {
    match source::open(path) {
        Ok(Source::Gguf(file)) => lora::is_gguf_lora(&file.metadata),
        Ok(Source::Tensors(source)) => is_lora(&source),
        Err(_) => crate::format::bundle::container::is_bundle(path),
    }
}

/// Reads the adapter at `path`: a folder, safetensors (one file or an index), a PyTorch checkpoint, or GGUF.
///
/// ```
/// use ptplus::import::{Options, read};
///
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/llama-mha/adapter");
/// let imported = read(folder.as_ref(), &Options::default(), None)?;
/// let plus = imported.adapter.as_plus().unwrap();
/// let memory = &plus.layers[&0].memory; // [H', F, D_v]
/// assert_eq!(memory.shape(), plus.expected_shape(ptplus::adapter::Part::Memory));
/// assert_eq!(imported.ledger.left_over().count(), 0);
/// # Ok::<(), ptplus::error::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`open`]; [`Code::ConventionOpen`] where a convention is stated nowhere, listing all that are.
///
/// [`Code::ConventionOpen`]: crate::error::Code::ConventionOpen
pub fn read(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Imported> {
    settled(open(path, options, base)?, base)
}

/// [`read`], of a source that is open.
///
/// # Errors
///
/// As there.
pub fn read_source(path: &Path, source: Source) -> Result<Imported> {
    settled(open_source(path, source, &Options::default(), None)?, None)
}

/// The adapter in a bundle that was checked, in the form that is asked for or else the first.
///
/// # Errors
///
/// As [`read`].
pub fn read_bundle(bundle: &Bundle, form: Option<&str>) -> Result<Imported> {
    read_source(&bundle.path, source::of_bundle(bundle, form)?)
}

fn settled(opened: Opened, base: Option<&BaseModel>) -> Result<Imported> {
    match opened {
        Opened::Adapter(imported) => Ok(*imported),
        Opened::Draft(draft) => draft.into_imported(base),
    }
}
