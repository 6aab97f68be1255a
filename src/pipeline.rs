//! The data flow, in the order a newcomer reads it: open, import, validate, plan, write, prove, rename into place.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{BaseModel, gguf_architecture_of};
use crate::digest::source_sha256;
use crate::error::{Code, Error, Result};
pub use crate::export::types::{Format, OutType};
use crate::export::{self, Plan, Written};
use crate::format::output::{OutputFile, OutputFolder, Overwrite};
use crate::import::source::{CONFIG_FILE, WEIGHTS_FILE};
use crate::import::{self, Opened, Options};
use crate::search::{self, Settlement};
use crate::transform::cast::Overflow;
use crate::validate::{self, Validated};
use crate::verify::probe::Probe;
use crate::verify::{self, Reference};

/// Opens, imports and validates the adapter at `path`.
///
/// Errors: those of [`import::read`]; the deciding finding of [`validate::check`].
pub fn read_adapter(path: &Path, base: Option<&BaseModel>) -> Result<Validated> {
    read_adapter_with(path, &Options::default(), base)
}

/// [`read_adapter`], with what the caller states about a checkpoint of another training code.
pub fn read_adapter_with(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Validated> {
    let imported = import::read(path, options, base)?;
    validate::check(imported, base).map_err(|rejected| rejected.into_error().file(path))
}

/// [`read_adapter_with`]; what nobody states, `proof` settles, if there is a base to run it on.
///
/// Errors: as there, but for open conventions those of [`search::settle`].
pub fn read_adapter_settling(
    path: &Path,
    options: &Options,
    base: Option<&BaseModel>,
    proof: Option<&Proof<'_>>,
) -> Result<(Validated, Option<Settlement>)> {
    let (imported, settlement) = match (import::open(path, options, base)?, base, proof) {
        (Opened::Adapter(imported), ..) => (*imported, None),
        (Opened::Draft(draft), Some(base), Some(proof)) if !draft.open(Some(base)).is_empty() => {
            let (imported, settlement) = search::settle(*draft, base, proof.probe, &proof.options)?;
            (imported, Some(settlement))
        }
        (Opened::Draft(draft), ..) => (draft.into_imported(base)?, None),
    };
    let validated = validate::check(imported, base).map_err(|rejected| rejected.into_error().file(path))?;
    Ok((validated, settlement))
}

/// What to convert and how.
pub struct Convert<'a> {
    /// The adapter: canonical folder, GGUF, or a checkpoint of another training code.
    pub adapter: &'a Path,
    /// What the caller states about it.
    pub reading: &'a Options,
    /// The base, which decides the row order.
    pub base: Option<&'a BaseModel>,
    /// Without a base: the GGUF architecture.
    pub architecture: Option<&'a str>,
    /// Where to write.
    pub output: &'a Path,
    /// Which format.
    pub format: Format,
    /// Which element type.
    pub out_type: OutType,
    /// What to do with values beyond F16 or BF16.
    pub overflow: Overflow,
    /// Whether an existing output is replaced.
    pub overwrite: Overwrite,
    /// Plan only.
    pub dry_run: bool,
    /// Verify against this before the output is renamed into place.
    pub prove: Option<Proof<'a>>,
    /// Called with bytes written and bytes in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// A verification of the output, before anyone can see it.
pub struct Proof<'a> {
    /// PyTorch's answer.
    pub probe: &'a Probe,
    /// How to verify.
    pub options: verify::Options<'a>,
}

/// What a conversion did, or with `dry_run` would do.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    /// The output.
    pub output: PathBuf,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Bytes of the weights file.
    pub len_bytes: u64,
    /// Every tensor written.
    pub tensors: Vec<ConvertedTensor>,
    /// Row order of the output.
    pub row_order: String,
    /// Canonical digest of the source; absent in a dry run.
    pub source_sha256: Option<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// How the probe settled what nothing states, if there was anything.
    pub conventions: Option<Settlement>,
    /// The proof, if asked for.
    pub verification: Option<verify::Report>,
}

/// One tensor of the output.
#[derive(Debug, Clone, Serialize)]
pub struct ConvertedTensor {
    /// Name in the output.
    pub name: String,
    /// Type in the source.
    pub source_dtype: String,
    /// Type in the output.
    pub dtype: String,
    /// Shape in the output, outermost first.
    pub shape: Vec<usize>,
    /// Offset of its bytes in the file.
    pub file_offset: u64,
    /// Bytes.
    pub len_bytes: u64,
}

/// Converts an adapter.
///
/// Errors: [`Code::RowOrderUnknown`] for GGUF output without base or architecture; those of reading, validating and
/// writing; [`Code::NumbersDiffer`] and [`Code::NoEffect`] where the proof fails, with nothing left behind.
pub fn convert(job: &Convert<'_>) -> Result<Converted> {
    let (source, conventions) = read_adapter_settling(job.adapter, job.reading, job.base, job.prove.as_ref())?;
    let architecture = target_architecture(job, &source)?;
    let model_type = job.base.and_then(|b| b.config.model_type.as_deref());
    let plan = match job.format {
        Format::Gguf => {
            let architecture = architecture.as_deref().ok_or_else(|| {
                Error::new(Code::RowOrderUnknown, "expected --base (or --arch): the order of the query's components in GGUF depends on the architecture").file(job.adapter)
            })?;
            export::gguf::plan(&source, architecture, model_type, job.out_type)
        }
        Format::Safetensors => export::canonical::plan(&source, job.out_type),
    }
    .map_err(|e| e.file(job.output))?;

    let mut report = Converted { conventions, ..describe(job, &source, &plan, architecture.as_deref()) };
    let inputs: Vec<&Path> =
        source.origin.files.iter().map(PathBuf::as_path).chain(job.base.iter().flat_map(|b| b.files())).collect();
    if job.dry_run {
        return Ok(report);
    }
    let total = plan.file.len_bytes;
    let done = std::sync::atomic::AtomicU64::new(0);
    let step = |n: u64| (job.progress)(done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n, total);
    let written = match job.format {
        Format::Gguf => {
            let out = OutputFile::create(job.output, job.overwrite, &inputs)?;
            let written = export::write_tensors(&plan, &source.ledger, &out, job.overflow, &step)?;
            export::gguf::patch_source_digest(&plan, &source, &written, &out)?;
            report.verification = prove(job, &source, out.staged_path())?;
            out.commit()?;
            written
        }
        Format::Safetensors => {
            let folder = OutputFolder::create(job.output, job.overwrite, &inputs)?;
            let weights = folder.file(WEIGHTS_FILE)?;
            let written = export::write_tensors(&plan, &source.ledger, &weights, job.overflow, &step)?;
            let config = folder.file(CONFIG_FILE)?;
            config.write_all_at(0, export::canonical::config_json(source.adapter(), model_type).as_bytes())?;
            report.verification = prove(job, &source, folder.staged_path())?;
            folder.commit()?;
            written
        }
    };
    finish(&mut report, &source, written);
    Ok(report)
}

/// The architecture whose row order the output gets: the base's, else `--arch`, else what a GGUF source states.
fn target_architecture(job: &Convert<'_>, source: &Validated) -> Result<Option<String>> {
    let stated = source.origin.gguf_architecture.as_deref();
    let by_base = job.base.map(|b| b.gguf_architecture());
    if let (Some(a), Some(b)) = (job.architecture, by_base.or(stated))
        && a != b
    {
        return Err(Error::new(Code::Usage, format!("expected {b:?}, as the base or the adapter has, found {a:?}"))
            .field("--arch"));
    }
    let by_model_type = source.adapter().config.base_model_type.as_deref().and_then(gguf_architecture_of);
    if let (Some(a), Some(b)) = (job.architecture, by_model_type)
        && a != b
    {
        return Err(Error::new(
            Code::AdapterMismatch,
            format!("expected {b:?}, which the adapter's base_model_type implies, found {a:?}"),
        )
        .field("--arch"));
    }
    Ok(by_base.or(job.architecture).or(stated).map(str::to_owned))
}

fn describe(job: &Convert<'_>, source: &Validated, plan: &Plan, architecture: Option<&str>) -> Converted {
    let tensors: Vec<ConvertedTensor> = plan
        .tensors
        .iter()
        .zip(&plan.file.tensors)
        .map(|(t, p)| ConvertedTensor {
            name: p.name.clone(),
            source_dtype: t.source.stored_dtype().name().into(),
            dtype: t.dtype.name().into(),
            shape: p.shape.clone(),
            file_offset: p.file_offset,
            len_bytes: p.len_bytes,
        })
        .collect();
    let mut notes = source.notes.clone();
    if let Some(b) = job.base
        && job.format == Format::Gguf
        && b.config.sliding_windows.iter().any(Option::is_some)
        && b.gguf_architecture() == "llama"
    {
        notes.push("the base has a sliding window, which llama.cpp ignores for architecture llama: beyond the window llama.cpp computes something else than PyTorch".into());
    }
    let row_order = match job.format {
        Format::Gguf => architecture.and_then(crate::adapter::RowOrder::of_gguf_architecture).map_or("", |o| o.name()),
        Format::Safetensors => crate::adapter::RowOrder::Neox.name(),
    };
    Converted {
        output: job.output.to_owned(),
        format: match job.format {
            Format::Gguf => "gguf",
            Format::Safetensors => "safetensors",
        },
        dry_run: job.dry_run,
        len_bytes: plan.file.len_bytes,
        tensors,
        row_order: row_order.into(),
        source_sha256: None,
        notes,
        conventions: None,
        verification: None,
    }
}

/// Reads the staged output as anybody would and holds it against the probe.
fn prove(job: &Convert<'_>, source: &Validated, staged: &Path) -> Result<Option<verify::Report>> {
    let Some(proof) = &job.prove else { return Ok(None) };
    let base = job.base.ok_or_else(|| Error::new(Code::Usage, "expected --base beside --probe").field("--probe"))?;
    let adapter = read_adapter(staged, Some(base))?;
    // What the source's type has lost, writing a finer one does not bring back.
    let tolerance = Some(verify::tolerance(&proof.options, &[&adapter, source])?);
    let options = verify::Options { tolerance, ..proof.options.clone() };
    let report = verify::verify(&adapter, base, Reference::Probe(proof.probe), &options)?;
    match report.failures.first() {
        None => Ok(Some(report)),
        Some(failure) => {
            let code = if failure.code == Code::NoEffect.slug() { Code::NoEffect } else { Code::NumbersDiffer };
            Err(Error::new(code, format!("{}; nothing was written", failure.message)).file(job.adapter))
        }
    }
}

fn finish(report: &mut Converted, source: &Validated, written: Written) {
    report.source_sha256 = Some(source_sha256(&source.origin.config_digest_text, written.sources));
    for (name, n) in written.saturated {
        report.notes.push(format!("{name}: {n} elements were beyond the output type and became its largest value"));
    }
}
