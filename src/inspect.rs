//! What a file or folder is and what it holds. Reads headers and configuration only.

mod content;
mod summary;

use std::path::{Path, PathBuf};

use indexmap::IndexSet;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::adapter::Adapter;
use crate::base::BaseModel;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::finding::Finding;
use crate::format::gguf::{self, Gguf};
use crate::format::links::{self, is_present};
use crate::format::names::shorten;
use crate::format::pickle::Objects;
use crate::format::{StoredTensor, safetensors};
use crate::import::ledger::Ledger;
use crate::import::source::{self, Source, TensorSource, is_adapter_folder, weights_of_folder};
use crate::import::{self, Draft, Imported, Opened, Options};
pub use content::{Content, content_of, is_base};
use content::{is_probe, says_model};
pub use summary::{AdapterSummary, BaseSummary, LoraSummary, LoraTarget};
use summary::{adapter_summary, base_summary, lora_summary};

/// Array elements shown of a metadata value; tokenizers have a hundred thousand.
const SHOWN_ELEMENTS: usize = 8;

/// What lies at a path.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The path given.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// `adapter`, `base`, `gguf` or `safetensors`.
    pub kind: &'static str,
    /// `GGUF v3`, `safetensors`, ...
    pub format: String,
    /// Bytes of all files.
    pub len_bytes: u64,
    /// The files.
    #[serde(serialize_with = "crate::lossy::paths")]
    pub files: Vec<PathBuf>,
    /// Metadata of the container, or the configuration of a folder.
    pub metadata: Map<String, Json>,
    /// What the adapter is, if it is one.
    pub adapter: Option<AdapterSummary>,
    /// What the LoRA is, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSummary>,
    /// What the base is, if it is one.
    pub base: Option<BaseSummary>,
    /// Every tensor.
    pub tensors: Vec<TensorLine>,
    /// Elements of all tensors.
    pub n_parameters: u64,
    /// What does not hold.
    pub findings: Vec<Finding>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorLine {
    /// Name in the file.
    pub name: String,
    /// Type in the file.
    pub dtype: &'static str,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub len_bytes: u64,
    /// `memory of layer 3`, `left over`, ... for adapters.
    pub role: Option<String>,
}

/// Looks at `path`.
///
/// # Errors
///
/// Those of the formats; [`Code::UnknownFormat`].
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_with(path, &Options::default(), None)
}

/// [`inspect`], with what the caller states about a checkpoint of another training code.
///
/// # Errors
///
/// Those of [`inspect`]; [`Code::ConventionContradiction`].
pub fn inspect_with(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Inspection> {
    let meta = std::fs::metadata(path).map_err(|e| links::not_opened(path, "cannot open", e))?;
    if crate::format::bundle::container::is_bundle(path) {
        let mut out = match crate::format::bundle::container::holds_model(path) {
            true => model_of_bundle(path)?,
            false => adapter(path, options, base)?,
        };
        out.format = format!("{} in a bundle whose hashes hold", out.format);
        return Ok(out);
    }
    if !meta.is_dir() {
        return file(path, options, base);
    }
    if is_adapter_folder(path) {
        let mut out = adapter(path, options, base)?;
        if source::holds_model_with_parts(path) {
            out.notes.push("a model with the adapter's tensors among its weights, as a trainer saves it: read as the adapter; as --base its other weights are read".into());
        }
        return Ok(out);
    }
    if is_present(&path.join("config.json")) {
        return base_folder(path);
    }
    match weights_of_folder(path) {
        Ok(weights) => file(&weights, options, base),
        Err(e) if e.code() == Code::AdapterKind => {
            let message = format!("{}, and no config.json", e.message());
            Err(Error::new(Code::UnknownFormat, message).file(path).hints(e.hint_lines().to_vec()))
        }
        Err(e) => Err(e),
    }
}

/// Opens a base model. Tensors of an adapter among its weights, as a trainer saves them, are left out, and told in a note.
///
/// # Errors
///
/// Those of [`BaseModel::open`].
pub fn open_base(path: &Path) -> Result<(BaseModel, Option<String>)> {
    let (base, parts) = BaseModel::open_without(path, &import::is_part)?;
    let note = parts.first().map(|first| {
        format!(
            "{} has {} tensors of an adapter among its weights, such as {first}: as a base it is read without them",
            path.display(),
            parts.len()
        )
    });
    Ok((base, note))
}

fn file(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Inspection> {
    match source::open_form(path, options.form.as_deref())? {
        Source::Gguf(file) => {
            if import::gguf_kind(&file.metadata).map_err(|e| e.file(path))?.is_none() {
                return plain_gguf(path, file);
            }
            let (format, metadata) = gguf_description(&file);
            let inspection = of_source(path, Source::Gguf(file), options, base)?;
            Ok(Inspection { format, metadata, ..inspection })
        }
        // No part of an adapter by its name, and nobody says otherwise.
        Source::Tensors(tensors) if options.layout.is_none() && import::kind_of_tensors(&tensors).is_none() => {
            plain_tensors(path, tensors)
        }
        tensors => match of_source(path, tensors, options, base) {
            Err(e) if e.code() == Code::AdapterKind => match source::open_form(path, options.form.as_deref())? {
                Source::Tensors(tensors) => plain_tensors(path, tensors),
                Source::Gguf(_) => Err(e),
            },
            other => other,
        },
    }
}

/// Tensors that are no adapter's.
fn plain_tensors(path: &Path, source: TensorSource) -> Result<Inspection> {
    let kind = if source.format.contains("safetensors") { "safetensors" } else { "checkpoint" };
    let mut out = empty(path, kind, source.format.into());
    if source.format == "safetensors" {
        let metadata = safetensors::open(path)?.metadata;
        out.metadata = metadata.into_iter().map(|(k, v)| (k, v.into())).collect();
    }
    out.tensors = source
        .tensors
        .into_iter()
        .map(|t| TensorLine {
            dtype: t.dtype().name(),
            shape: t.shape().to_vec(),
            len_bytes: crate::tensor::shape::len_bytes(t.shape(), t.dtype()).unwrap_or(0) as u64,
            role: None,
            name: t.name,
        })
        .collect();
    out.notes = object_notes(&source.objects);
    if is_probe(out.tensors.iter().map(|t| t.name.as_str())) {
        out.notes.push("a probe: what PyTorch computed, for --probe of convert, verify and pack".into());
    }
    finish(&mut out, source.files);
    Ok(out)
}

fn adapter(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Inspection> {
    of_source(path, source::open_form(path, options.form.as_deref())?, options, base)
}

fn of_source(path: &Path, source: Source, options: &Options, base: Option<&BaseModel>) -> Result<Inspection> {
    let mut draft = match import::open_source(path, source, options, base)? {
        Opened::Adapter(imported) => return Ok(adapter_inspection(path, *imported)),
        Opened::Draft(draft) => *draft,
    };
    // Either way the same, and large: not to be copied.
    let ledger = std::mem::take(&mut draft.ledger);
    match draft.clone().into_imported(base) {
        Ok(imported) => Ok(adapter_inspection(path, Imported { ledger, ..imported })),
        // What is not settled is worth showing, not refusing: this is the command that people turn to.
        Err(e) if e.code() == Code::ConventionOpen => {
            draft.ledger = ledger;
            Ok(draft_inspection(path, draft, &e))
        }
        Err(e) => Err(e),
    }
}

fn draft_inspection(path: &Path, draft: Draft, open: &Error) -> Inspection {
    let mut out = empty(path, "adapter", draft.layout.clone());
    out.metadata = draft.config;
    out.tensors = ledger_lines(&draft.ledger);
    out.findings = draft.findings;
    out.notes.push(open.message().to_owned());
    out.notes.extend(open.detail_lines().iter().map(|line| format!("  {line}")));
    out.notes.extend(object_notes(&draft.ledger.objects));
    finish(&mut out, draft.files);
    out
}

/// What a checkpoint holds beside tensors and is not read.
fn object_notes(objects: &Objects) -> Vec<String> {
    /// Lines about objects with tensors in them.
    const SHOWN: usize = 4;
    let mut notes = Vec::new();
    if objects.n > 0 {
        let classes: Vec<String> = objects.classes.iter().take(SHOWN).map(|c| shorten(c)).collect();
        let more = if objects.classes.len() > SHOWN { ", ..." } else { "" };
        let verb = if objects.n == 1 { "object is" } else { "objects are" };
        notes.push(format!("{} {verb} not read, of {}{more}", objects.n, classes.join(", ")));
    }
    for object in objects.listed.iter().filter(|o| !o.tensors.is_empty()).take(SHOWN) {
        let name = if object.name.is_empty() { "the whole file".into() } else { shorten(&object.name) };
        let (n, class) = (object.tensors.len(), shorten(&object.class));
        notes.push(format!(
            "{name} is an object of {class} with {n} tensors in it, such as {}",
            shorten(&object.tensors[0])
        ));
    }
    notes
}

fn ledger_lines(ledger: &Ledger) -> Vec<TensorLine> {
    let line = |e: &import::ledger::Entry| TensorLine {
        name: e.name.clone(),
        dtype: e.dtype.name(),
        shape: e.shape.clone(),
        len_bytes: e.len_bytes(),
        role: Some(e.fate_text()),
    };
    ledger.entries.iter().map(line).collect()
}

fn adapter_inspection(path: &Path, imported: Imported) -> Inspection {
    let mut out = empty(path, "adapter", imported.origin.layout.clone());
    match &imported.adapter {
        Adapter::Lora(lora) => out.lora = Some(lora_summary(lora, &imported)),
        Adapter::Plus(_) | Adapter::Prefix(_) => out.adapter = Some(adapter_summary(&imported)),
    }
    out.metadata = imported.adapter.extra().clone();
    out.tensors = ledger_lines(&imported.ledger);
    out.findings = imported.findings;
    out.notes = [imported.notes, object_notes(&imported.ledger.objects)].concat();
    finish(&mut out, imported.origin.files);
    out
}

fn plain_gguf(path: &Path, file: Gguf) -> Result<Inspection> {
    let (format, metadata) = gguf_description(&file);
    let mut out = Inspection { metadata, ..empty(path, "gguf", format) };
    // A vocabulary alone is a GGUF file, and so is what is no model; neither is a broken base.
    let is_model = !file.tensors.is_empty() && says_model(&file).map_err(|e| e.file(path))?;
    // One at a time: a table of many tensors is large.
    drop(file.tensors);
    match BaseModel::from_gguf(path) {
        Err(e) if !is_model => note_base(&mut out, &e),
        base => summarise_base(&mut out, base)?,
    }
    list(&mut out, gguf::open(path)?.tensors);
    Ok(out)
}

fn model_of_bundle(path: &Path) -> Result<Inspection> {
    let model = BaseModel::open(path)?;
    let metadata = model.metadata.iter().flat_map(|m| m.iter());
    let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_json(Some(SHOWN_ELEMENTS)))).collect();
    let mut out = Inspection { metadata, ..empty(path, "base", "GGUF".into()) };
    list(&mut out, model.tensors_in_file_order().cloned().collect());
    summarise_base(&mut out, Ok(model))?;
    Ok(out)
}

/// Format and metadata.
fn gguf_description(file: &Gguf) -> (String, Map<String, Json>) {
    let metadata = file.metadata.iter().map(|(k, v)| (k.to_owned(), v.to_json(Some(SHOWN_ELEMENTS)))).collect();
    (format!("GGUF v{}, alignment {}", file.version, file.alignment), metadata)
}

fn base_folder(path: &Path) -> Result<Inspection> {
    let mut out = empty(path, "base", "Hugging Face folder".into());
    if let Json::Object(map) = crate::format::json::read_config(&path.join("config.json"))? {
        out.metadata = map;
    }
    let base = BaseModel::from_hf_folder(path);
    if let Ok(b) = &base {
        list(&mut out, b.tensors().cloned().collect());
    }
    summarise_base(&mut out, base)?;
    Ok(out)
}

/// A model that ptplus does not support is still shown, with the reason; a corrupt one is refused.
fn summarise_base(out: &mut Inspection, base: Result<BaseModel>) -> Result<()> {
    match base {
        Ok(b) => {
            out.kind = "base";
            out.base = Some(base_summary(&b));
        }
        Err(e) if e.kind() == ErrorKind::Corrupt => return Err(e),
        Err(e) => note_base(out, &e),
    }
    Ok(())
}

fn note_base(out: &mut Inspection, e: &Error) {
    let field = e.field_name().map(|f| format!("{f}: ")).unwrap_or_default();
    out.notes.push(format!("not usable as a base: {field}{}", e.message()));
}

fn empty(path: &Path, kind: &'static str, format: String) -> Inspection {
    Inspection {
        path: path.to_owned(),
        kind,
        format,
        len_bytes: 0,
        files: Vec::new(),
        metadata: Map::new(),
        adapter: None,
        lora: None,
        base: None,
        tensors: Vec::new(),
        n_parameters: 0,
        findings: Vec::new(),
        notes: Vec::new(),
    }
}

fn list(out: &mut Inspection, tensors: Vec<StoredTensor>) {
    let files: IndexSet<&Path> = tensors.iter().map(|t| &*t.file).collect();
    let mut files: Vec<PathBuf> = files.into_iter().map(Path::to_owned).collect();
    if files.is_empty() {
        files.push(out.path.clone());
    }
    out.tensors = tensors
        .into_iter()
        .map(|t| TensorLine {
            name: t.name,
            dtype: t.dtype.name(),
            shape: t.shape,
            len_bytes: t.bytes.len() as u64,
            role: None,
        })
        .collect();
    finish(out, files);
}

fn finish(out: &mut Inspection, files: Vec<PathBuf>) {
    out.n_parameters = out.tensors.iter().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum();
    out.len_bytes = files
        .iter()
        .filter_map(|f| std::fs::metadata(f).ok())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum();
    out.files = files;
}
