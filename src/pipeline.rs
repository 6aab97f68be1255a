//! The data flow, in the order a newcomer reads it: open, import, validate, plan, write, prove, rename into place.

mod base;
mod combine;
mod converted;
mod proof;
mod state;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::auto::{self, Decision, Trials};
use crate::base::{BaseModel, Family, RowOrder, gguf_architecture_of};
use crate::digest::source_sha256;
use crate::error::{Code, Error, Result};
pub use crate::export::types::{Format, OutType, Override, TypeRules};
use crate::export::{self, Plan, Values, Written};
use crate::format::bundle::{container, place};
use crate::format::names::shorten;
use crate::format::output::{OutputFile, OutputFolder, Overwrite, Replace};
use crate::format::{json, safetensors};
use crate::import::source::{CONFIG_FILE, WEIGHTS_FILE};
use crate::import::stated::{PEFT_TYPE, TOOL_VERSION};
use crate::import::{self, Opened, Options};
use crate::search::{self, Settlement};
use crate::transform::cast::Overflow;
use crate::transform::loss::{Bound, Metric};
use crate::validate::{self, BaseMismatch, Validated};
pub use base::{ConvertBase, convert_base};
pub(crate) use base::{convert_base_into, read_adapters};
pub use combine::{Combine, Combined, combine_adapters};
use converted::unfit_notes;
pub use converted::{Converted, ConvertedTensor, OutputError};
pub(crate) use converted::{NOTHING_CHECKED, window_note};
pub(crate) use proof::prove_file;
pub use proof::{Measure, Proof};
use proof::{hold_to_bounds, prove};
pub use state::{MadeState, MakeState, make_state};
pub use tokenizer::Tokenizer;

/// Opens, imports and validates the adapter at `path`.
///
/// # Errors
///
/// Those of [`import::read`]; the deciding finding of [`validate::check`].
pub fn read_adapter(path: &Path, base: Option<&BaseModel>) -> Result<Validated> {
    read_adapter_with(path, &Options::default(), base)
}

/// [`read_adapter`], with what the caller states about a checkpoint of another training code.
///
/// # Errors
///
/// Those of [`read_adapter`]; [`Code::ConventionContradiction`].
pub fn read_adapter_with(path: &Path, options: &Options, base: Option<&BaseModel>) -> Result<Validated> {
    let opened = import::open(path, options, base)?;
    validate::check_opened(opened, base)?.map_err(|rejected| rejected.into_error().file(path))
}

/// [`read_adapter_with`]; what nobody states, `proof` settles, if there is a base to run it on.
///
/// # Errors
///
/// As there, but for open conventions those of [`search::settle`].
pub fn read_adapter_settling(
    path: &Path,
    options: &Options,
    base: Option<&BaseModel>,
    proof: Option<&Proof<'_>>,
) -> Result<(Validated, Option<Settlement>)> {
    let opened = import::open(path, options, base)?;
    let (opened, settlement) = match (opened, base, proof) {
        (Opened::Draft(draft), Some(base), Some(proof)) if !draft.open_to_probe(Some(base)).is_empty() => {
            validate::check_before_settling(&draft, Some(base)).map_err(|e| e.file(path))?;
            let (imported, settlement) = search::settle(*draft, base, proof.probe, &proof.options)?;
            (Opened::Adapter(Box::new(imported)), Some(settlement))
        }
        (opened, ..) => (opened, None),
    };
    let validated = validate::check_opened(opened, base)?.map_err(|rejected| rejected.into_error().file(path))?;
    Ok((validated, settlement))
}

/// What to convert and how; [`Convert::new`] has the defaults.
#[derive(Clone)]
#[non_exhaustive]
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
    /// Which element types.
    pub types: &'a TypeRules,
    /// What the types may cost; beyond it nothing is written.
    pub max_error: &'a [Bound],
    /// Instead of `types`, the smallest ones whose mean KL divergence stays within this; wants `measure`.
    pub auto_kl: Option<f64>,
    /// With a base: how to run the output beside the source, for the error of terms and logits.
    pub measure: Option<Measure<'a>>,
    /// What to do with values beyond F16 or BF16.
    pub overflow: Overflow,
    /// Whether an existing output is replaced.
    pub overwrite: Overwrite,
    /// Whether a base that the adapter was not made for is refused.
    pub base_mismatch: BaseMismatch,
    /// The command in its normal form, for the output's provenance.
    pub command: Option<&'a str>,
    /// Plan only.
    pub dry_run: bool,
    /// Verify against this before the output is renamed into place.
    pub prove: Option<Proof<'a>>,
    /// Called with bytes written and bytes in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Convert<'a> {
    /// Converts every tensor in the type that it has; states nothing about the source, compares nothing, and replaces
    /// nothing. Other wishes go into the fields.
    pub fn new(adapter: &'a Path, output: &'a Path, format: Format) -> Self {
        static NOTHING_STATED: LazyLock<Options> = LazyLock::new(Options::default);
        static KEEP: LazyLock<TypeRules> = LazyLock::new(|| TypeRules::from(OutType::Keep));
        Convert {
            adapter,
            reading: &NOTHING_STATED,
            base: None,
            architecture: None,
            output,
            format,
            types: &KEEP,
            max_error: &[],
            auto_kl: None,
            measure: None,
            overflow: Overflow::Error,
            overwrite: Overwrite::Never,
            base_mismatch: BaseMismatch::Refuse,
            command: None,
            dry_run: false,
            prove: None,
            progress: &|_, _| {},
        }
    }
}

/// Converts an adapter.
///
/// ```
/// use ptplus::{BaseModel, Convert, Format, OutType, TypeRules, convert, tensor::DType};
///
/// let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-mha");
/// let base = BaseModel::open(&model.join("base"))?;
/// let folder = tempfile::tempdir().unwrap();
/// let (adapter, output) = (model.join("adapter"), folder.path().join("adapter.gguf"));
/// let mut job = Convert::new(&adapter, &output, Format::Gguf);
/// job.base = Some(&base);
/// let types = TypeRules::from(OutType::As(DType::Q8_0));
/// job.types = &types;
/// let done = convert(&job)?;
/// assert_eq!((done.row_order.as_str(), done.tensors[0].dtype.as_str()), ("norm", "Q8_0"));
/// # Ok::<(), ptplus::Error>(())
/// ```
///
/// # Errors
///
/// [`Code::OutputPlace`]; [`Code::RowOrderUnknown`] for GGUF output without base or architecture; those of reading, validating and
/// writing; [`Code::ErrorBound`], [`Code::NumbersDiffer`] and [`Code::NoEffect`] where a bound or the
/// proof fails, with nothing left behind.
pub fn convert(job: &Convert<'_>) -> Result<Converted> {
    check_place(job)?;
    let (source, conventions) = read_adapter_settling(job.adapter, job.reading, job.base, job.prove.as_ref())?;
    convert_read(job, source, conventions)
}

/// That the output would lie where it can be found again.
fn check_place(job: &Convert<'_>) -> Result<()> {
    place::refuse_inside_bundle(job.output)?;
    match job.format {
        Format::Gguf => {
            place::refuse_name_of_gguf(job.output)?;
            if job.adapter.is_dir() && import::source::would_be_ambiguous_with(job.adapter, job.output) {
                let message = "the folder that is read would then hold two files with weights, and say no more which is \
                               meant: name the file, or write elsewhere";
                return Err(Error::new(Code::OutputPlace, message).file(job.output));
            }
        }
        // Below its files would be called strangers, which is less to the point.
        Format::Safetensors if container::is_bundle(job.output) => {
            let message = "the output is a bundle, which would not be whole any more; `ptplus pack` makes a new one";
            return Err(Error::new(Code::OutputExists, message).file(job.output));
        }
        Format::Safetensors => {}
    }
    Ok(())
}

/// [`convert`] of a source that was read and settled, wherever the output lies: in the working folder of a bundle, which may
/// lie in the old one.
pub(crate) fn convert_read(
    job: &Convert<'_>,
    mut source: Validated,
    conventions: Option<Settlement>,
) -> Result<Converted> {
    let base_identity = job.base.map(|base| source.record_base(base, job.base_mismatch)).transpose()?.flatten();
    source.command = job.command.map(str::to_owned);
    let architecture = target_architecture(job, &source)?;
    let model_type = job.base.and_then(|b| b.config.model_type.as_deref());
    let automatic = job.auto_kl.map(|bound| decide_types(job, &source, architecture.as_deref(), bound)).transpose()?;
    let (automatic, decision) = automatic.unzip();
    let types = automatic.as_ref().unwrap_or(job.types);
    let plan = match job.format {
        Format::Gguf => {
            let architecture = architecture.as_deref().ok_or_else(|| {
                Error::new(Code::RowOrderUnknown, "expected --base (or --arch): the order of the query's components in GGUF depends on the architecture").file(job.adapter)
            })?;
            export::gguf::plan(&source, architecture, job.base, types)
        }
        Format::Safetensors => export::canonical::plan(&source, types),
    }
    .map_err(|e| e.file(job.output))?;

    if job.measure.is_none() && job.max_error.iter().any(|b| b.metric == Metric::Kl) {
        let message = "expected --base beside a bound on kl, found none: the logits are the base's";
        return Err(Error::new(Code::Usage, message).field("--max-error"));
    }
    let mut report = Converted {
        conventions,
        base_identity,
        auto: decision,
        ..describe(job, &source, &plan, architecture.as_deref())
    };
    let base_files = job.base.map(BaseModel::files).unwrap_or_default();
    let inputs: Vec<&Path> = (source.origin.files.iter().chain(&base_files).map(PathBuf::as_path))
        .chain(job.prove.as_ref().map(|p| p.path))
        .collect();
    if job.dry_run {
        return Ok(report);
    }
    let total = plan.file.len_bytes;
    let done = std::sync::atomic::AtomicU64::new(0);
    let step = |n: u64| (job.progress)(done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n, total);
    let written = match job.format {
        Format::Gguf => {
            let out = OutputFile::create(job.output, job.overwrite, &inputs)?;
            let written = export::write_tensors(&plan, Values::Validated(&source), &out, job.overflow, &step)?;
            export::gguf::patch_source_digest(&plan, &source, &written, &out)?;
            hold_to_bounds(job, &mut report, &source, &plan, &written, out.staged_path())?;
            report.verification = prove(job, &source, out.staged_path())?;
            out.commit()?;
            written
        }
        Format::Safetensors => {
            let config_text = export::canonical::config_json(&source, &plan, model_type)?;
            let replace = match job.overwrite {
                Overwrite::Never => Replace::Nothing,
                Overwrite::Force => Replace::Files(files_of_adapter(job.output)),
            };
            let folder = OutputFolder::create(job.output, replace, &inputs)?;
            let weights = folder.file(WEIGHTS_FILE)?;
            let written = export::write_tensors(&plan, Values::Validated(&source), &weights, job.overflow, &step)?;
            let config = folder.file(CONFIG_FILE)?;
            config.write_all_at(0, config_text.as_bytes())?;
            hold_to_bounds(job, &mut report, &source, &plan, &written, folder.staged_path())?;
            report.verification = prove(job, &source, folder.staged_path())?;
            folder.commit()?;
            written
        }
    };
    finish(&mut report, &source, written);
    Ok(report)
}

/// The files of the adapter folder `folder`, if it is one that ptplus writes; else none. PEFT's own kinds are what PEFT saves as well:
/// of those the weights say who wrote them.
fn files_of_adapter(folder: &Path) -> BTreeSet<String> {
    let config = json::read_config(&folder.join(CONFIG_FILE)).unwrap_or_default();
    let is_canonical = config.get("peft_type").and_then(serde_json::Value::as_str) == Some(PEFT_TYPE);
    let says_so = || safetensors::open(&folder.join(WEIGHTS_FILE)).is_ok_and(|f| f.metadata.contains_key(TOOL_VERSION));
    match is_canonical || says_so() {
        true => [CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned).into(),
        false => BTreeSet::new(),
    }
}

/// `--auto`: exact rules for every tensor, and how they were found.
fn decide_types(
    job: &Convert<'_>,
    source: &Validated,
    architecture: Option<&str>,
    kl_bound: f64,
) -> Result<(TypeRules, Decision)> {
    let usage = |message: &str| Error::new(Code::Usage, message).field("--auto");
    let (Some(measure), Some(base), Some(architecture)) = (&job.measure, job.base, architecture) else {
        return Err(usage("expected --base beside it, found none: the logits are the base's"));
    };
    if job.format != Format::Gguf {
        return Err(usage("expected GGUF output, found safetensors, which has no block formats"));
    }
    let mut rules = TypeRules::from(OutType::Keep);
    let kept = export::gguf::plan(source, architecture, Some(base), &rules)?;
    let tensors: Vec<_> = kept.tensors.into_iter().zip(kept.file.tensors.into_iter().map(|t| t.name)).collect();
    let order =
        RowOrder::of_gguf_architecture(architecture).ok_or_else(|| import::unlisted_architecture(architecture))?;
    let input_ids = measure.prompts.ids(base.config.vocab_size)?;
    let trials = Trials {
        source: source.adapter(),
        base,
        input_ids: &input_ids,
        device: measure.device,
        progress: measure.progress,
    };
    let (types, decision) = auto::decide(&trials, order, &tensors, kl_bound)?;
    rules.overrides = types.iter().map(|(name, dtype)| Override::exact(name, *dtype)).collect();
    Ok((rules, decision))
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
    let by_model_type = source.adapter().base_model_type().and_then(gguf_architecture_of);
    if let (Some(a), Some(b)) = (job.architecture, by_model_type)
        && a != b
    {
        return Err(Error::new(
            Code::AdapterMismatch,
            format!("expected {b:?}, which the adapter's base_model_type implies, found {a:?}"),
        )
        .field("--arch"));
    }
    // A base of another architecture is refused, so that its name alone is too.
    if let Some(a) = job.architecture.filter(|a| Family::from_gguf_architecture(a).is_none()) {
        let known: BTreeSet<&str> = Family::ALL.iter().map(|f| f.gguf_architecture()).collect();
        let list = known.into_iter().collect::<Vec<_>>().join(", ");
        let of_family = Family::from_model_type(a).map(|f| format!("{a} is called {} in GGUF", f.gguf_architecture()));
        return Err(Error::new(Code::BaseArchitecture, format!("expected one of {list}, found {:?}", shorten(a)))
            .field("--arch")
            .hints(of_family));
    }
    Ok(by_base.or(job.architecture).or(stated).map(str::to_owned))
}

fn describe(job: &Convert<'_>, source: &Validated, plan: &Plan, architecture: Option<&str>) -> Converted {
    let mut notes = source.notes.clone();
    notes.extend(unfit_notes(plan));
    if job.format == Format::Gguf {
        notes.extend(job.base.and_then(window_note));
    }
    if job.base.is_none() && job.architecture.is_some() {
        notes.push(NOTHING_CHECKED.into());
    }
    let row_order = match job.format {
        Format::Gguf => architecture.and_then(RowOrder::of_gguf_architecture).map_or("", |o| o.name()),
        Format::Safetensors => RowOrder::Neox.name(),
    };
    let format = match job.format {
        Format::Gguf => "gguf",
        Format::Safetensors => "safetensors",
    };
    Converted::planned(job.output, format, job.dry_run, plan, row_order, notes)
}

fn finish(report: &mut Converted, source: &Validated, written: Written) {
    report.add_saturated(&written);
    report.source_sha256 = Some(source_sha256(&source.origin.config_digest_text, written.sources));
}
