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

use crate::adapter::{Adapter, Kind, gguf_names as names};
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

impl Origin {
    /// Of tensors in Hugging Face order: nothing but GGUF files records an earlier source.
    pub(crate) fn of_tensors(path: PathBuf, files: Vec<PathBuf>, layout: String, config_digest_text: String) -> Origin {
        Origin {
            path,
            files,
            layout,
            gguf_architecture: None,
            row_order: RowOrder::Neox,
            recorded_dtypes: Default::default(),
            recorded_source_sha256: None,
            config_digest_text,
        }
    }
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
    // A layout file says of any tensors that they are a Prefix-Tuning+ adapter's.
    let kind = match &source {
        Source::Tensors(_) if options.layout.is_some() => Kind::Plus,
        source => kind_of(source).unwrap_or(Kind::Plus),
    };
    match kind {
        Kind::Plus => {}
        Kind::Lora => refuse_options(options, "a LoRA")?,
        Kind::Prefix => refuse_options(options, "virtual tokens")?,
    }
    let imported = match (source, kind) {
        (Source::Gguf(file), Kind::Plus) => gguf::import(path, &file, options, base),
        (Source::Gguf(file), Kind::Lora) => lora::import_gguf(path, &file, base),
        (Source::Gguf(file), Kind::Prefix) => prefix::import_gguf(path, &file),
        (Source::Tensors(tensors), Kind::Plus) => {
            return draft::read(path, tensors, options, base).map(|d| Opened::Draft(Box::new(d)));
        }
        (Source::Tensors(tensors), Kind::Lora) => lora::read(path, tensors, base),
        (Source::Tensors(tensors), Kind::Prefix) => prefix::read(path, tensors, base),
    };
    imported.map(|i| Opened::Adapter(Box::new(i)))
}

/// The kind of adapter that a GGUF file says it is, if it is one that is read here.
///
/// # Errors
///
/// [`Code::GgufKey`] for keys of another type.
pub(crate) fn gguf_kind(metadata: &Metadata) -> Result<Option<Kind>> {
    match metadata.str("general.type")? {
        Some(names::GENERAL_TYPE) => Ok(metadata.str("adapter.type")?.and_then(Kind::parse)),
        _ => Ok(None),
    }
}

/// The kind of adapter that a source is: by what a GGUF file says, else by PEFT's configuration and names. What nothing shows to be
/// of another kind may still be a checkpoint with memories.
pub(crate) fn kind_of(source: &Source) -> Option<Kind> {
    match source {
        Source::Gguf(file) => gguf_kind(&file.metadata).unwrap_or_default(),
        Source::Tensors(source) => kind_of_tensors(source),
    }
}

/// [`kind_of`], of named tensors.
pub(crate) fn kind_of_tensors(source: &TensorSource) -> Option<Kind> {
    match source {
        _ if draft::has_parts(&source.tensors) => Some(Kind::Plus),
        _ if lora::is_lora(source) => Some(Kind::Lora),
        _ if prefix::is_prefix(source) => Some(Kind::Prefix),
        _ => None,
    }
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
