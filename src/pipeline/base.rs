//! The flow for a base model: open, merge adapters into it, plan, write, prove, rename into place.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::tokenizer::{self, Tokenizer};
use super::{Converted, Proof, read_adapter, unfit_notes};
use crate::about::About;
use crate::adapter::Adapter;
use crate::adapter::lora::Lora;
use crate::base::fingerprint::Depth;
use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::export::base::{BasePlan, Merged};
use crate::export::types::TypeRules;
use crate::export::{self, Values};
use crate::format::bundle::place;
use crate::format::output::{OutputFile, Overwrite};
use crate::transform::cast::Overflow;
use crate::transform::loss::{Bound, Metric};
use crate::validate::{BaseMismatch, Validated};
use crate::verify::{Report, verify_merged};
use crate::vocab::{self, to_gguf};

/// A base model to convert to GGUF, and how.
#[derive(Clone)]
pub struct ConvertBase<'a> {
    /// The base: a Hugging Face folder or GGUF.
    pub base: &'a Path,
    /// The file to write.
    pub output: &'a Path,
    /// Adapters to merge into it, each with a factor on what it adds.
    pub merge: &'a [(PathBuf, f64)],
    /// Whether a base that an adapter was not made for is refused.
    pub base_mismatch: BaseMismatch,
    /// With adapters: verify the output against this before it is renamed into place.
    pub prove: Option<Proof<'a>>,
    /// What the merged model is to say of itself, instead of what the base says.
    pub about: Option<&'a About>,
    /// The tokenizer of a Hugging Face folder.
    pub tokenizer: Tokenizer<'a>,
    /// Which element types.
    pub types: &'a TypeRules,
    /// What the types may cost each tensor; beyond it nothing is written.
    pub max_error: &'a [Bound],
    /// What to do with values beyond F16 or BF16.
    pub overflow: Overflow,
    /// Whether an existing output is replaced.
    pub overwrite: Overwrite,
    /// Plan only.
    pub dry_run: bool,
    /// Called with bytes written and bytes in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Converts a base model to one GGUF file.
///
/// # Errors
///
/// [`Code::OutputPlace`]; those of [`BaseModel::open`], [`export::base::plan`] and of writing; [`Code::NonFinite`] for NaN and infinity
/// anywhere in the weights; [`Code::ErrorBound`]. Of adapters: those of reading and of [`export::base::merge`],
/// [`Code::ConfigUnsupported`] for one that cannot be merged, [`Code::BaseDiffers`]; [`Code::NumbersDiffer`] and
/// [`Code::NoEffect`] where the proof fails. Nothing is left behind.
pub fn convert_base(job: &ConvertBase<'_>) -> Result<Converted> {
    place::refuse_inside_bundle(job.output)?;
    place::refuse_name_of_gguf(job.output)?;
    convert_base_into(job)
}

/// [`convert_base`], wherever the output lies: in the working folder of a bundle, which may lie in the old one.
pub(crate) fn convert_base_into(job: &ConvertBase<'_>) -> Result<Converted> {
    if job.max_error.iter().any(|b| b.metric == Metric::Kl) {
        let message = "expected bounds on rmse, max_abs, relative or cosine for a base model, found kl";
        return Err(Error::new(Code::Usage, message).field("--max-error"));
    }
    let mut base = BaseModel::open(job.base)?;
    if let (Some(metadata), Tokenizer::Stated(pre)) = (&mut base.metadata, job.tokenizer)
        && vocab::gguf::lacks_pre(metadata).map_err(|e| e.file(job.base))?
    {
        metadata.insert(to_gguf::PRE, pre);
    }
    let adapters = read_adapters(job.merge, &base, job.base_mismatch)?;
    let merged = merge(&base, &adapters)?;
    let tokenizer = tokenizer::read(job, &base, merged.as_ref().map_or(&base, |m| &m.base), &adapters)?;
    let vocabulary = tokenizer.as_ref().map(|t| &t.vocabulary);
    let planned = match &merged {
        Some(merged) => merged.plan(vocabulary, job.types, job.about),
        None => export::base::plan(&base, vocabulary, job.types, job.about),
    };
    let BasePlan { plan, mut notes } = planned.map_err(|e| e.file(job.output))?;
    notes.extend(adapters.iter().flat_map(|(a, _)| a.notes.iter().cloned()));
    notes.extend(vocabulary.and_then(|v| v.chat_template.as_deref()).and_then(template_note));
    notes.extend(unfit_notes(&plan));
    match &tokenizer {
        Some(found) => notes.extend(found.notes.iter().cloned()),
        None if base.dialect == Dialect::HuggingFace => {
            notes.push("the output has no tokenizer, and runs on token ids alone".into());
        }
        None => {}
    }
    let row_order = base.row_order().name();
    let mut report = Converted::planned(job.output, "gguf", job.dry_run, &plan, row_order, notes);
    if job.dry_run {
        return Ok(report);
    }
    let of_adapters = adapters.iter().flat_map(|(a, _)| a.origin.files.iter().cloned()).collect();
    let files = [base.files(), tokenizer.map(|t| t.files).unwrap_or_default(), of_adapters].concat();
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).chain(job.prove.as_ref().map(|p| p.path)).collect();
    let out = OutputFile::create(job.output, job.overwrite, &inputs)?;
    let done = AtomicU64::new(0);
    let step = |n: u64| (job.progress)(done.fetch_add(n, Ordering::Relaxed) + n, plan.file.len_bytes);
    let written =
        export::write_tensors(&plan, Values::Unchecked, &out, job.overflow, &step).map_err(|e| e.file(job.base))?;
    report.add_losses(&written, job.max_error)?;
    report.add_saturated(&written);
    if merged.is_some() {
        report.verification = prove(job, &base, out.staged_path())?;
    }
    out.commit()?;
    Ok(report)
}

/// A template in a dialect that another program reads is worth keeping, and worth knowing about.
#[cfg(feature = "generate")]
fn template_note(template: &str) -> Option<String> {
    let e = crate::generate::Template::new(template).err()?;
    Some(format!("the chat template is written as it is, but `ptplus run` cannot read it: {}", e.message()))
}

#[cfg(not(feature = "generate"))]
fn template_note(_: &str) -> Option<String> {
    None
}

/// Reads adapters that are to be merged, each with its factor.
///
/// # Errors
///
/// Those of reading; [`Code::BaseDiffers`]; [`Code::ConfigUnsupported`] for a kind that no weight can hold.
pub(crate) fn read_adapters(
    merge: &[(PathBuf, f64)],
    base: &BaseModel,
    mismatch: BaseMismatch,
) -> Result<Vec<(Validated, f64)>> {
    merge
        .iter()
        .map(|(path, strength)| {
            let adapter = read_adapter(path, Some(base))?;
            adapter.confirm_base(base, Depth::Weights, mismatch)?;
            mergeable(adapter.adapter()).map_err(|e| e.file(&adapter.origin.path))?;
            Ok((adapter, *strength))
        })
        .collect()
}

/// The base with the adapters in it; `None` without any.
fn merge(base: &BaseModel, adapters: &[(Validated, f64)]) -> Result<Option<Merged>> {
    if adapters.is_empty() {
        return Ok(None);
    }
    let loras: Vec<(&Lora, f64)> = adapters
        .iter()
        .map(|(a, strength)| Ok((mergeable(a.adapter()).map_err(|e| e.file(&a.origin.path))?, *strength)))
        .collect::<Result<_>>()?;
    export::base::merge(base, &loras).map(Some)
}

/// What can be put into weights.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for a kind that computes what no weight can.
fn mergeable(adapter: &Adapter) -> Result<&Lora> {
    let message = match adapter {
        Adapter::Lora(lora) => return Ok(lora),
        Adapter::Plus(_) => {
            "expected a LoRA, found Prefix-Tuning+, which cannot be merged: its term is phi(q) M, a function of the query after RoPE \
             that is not linear in it, so no weight can hold it; run it beside the base"
        }
        Adapter::Prefix(_) => {
            "expected a LoRA, found virtual tokens, which cannot be merged: they are part of every sequence, and no weight"
        }
    };
    Err(Error::new(Code::ConfigUnsupported, message))
}

/// Reads the staged file as anybody would, and holds it against the probe if there is one.
fn prove(job: &ConvertBase<'_>, base: &BaseModel, staged: &Path) -> Result<Option<Report>> {
    let merged = BaseModel::from_gguf(staged)?;
    let Some(proof) = &job.prove else { return Ok(None) };
    verify_merged(&merged, Some(base), proof.probe, &proof.options)?.passed("nothing was written", job.base).map(Some)
}
