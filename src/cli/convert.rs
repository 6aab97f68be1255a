use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::base_check::{self, BaseCheck};
use super::command::Recorded;
use super::progress::Unit;
use super::reading::Reading;
#[cfg(feature = "report")]
use super::report::{Pending, write_failure};
use super::table;
use super::types::{self, TypeArguments};
use super::ui::Ui;
use super::usage;
use crate::base::BaseModel;
#[cfg(feature = "report")]
use crate::error::Error;
use crate::error::{Result, escape};
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::inspect;
use crate::pipeline::{
    self, Convert, ConvertBase, Converted, ConvertedTensor, Format, Measure, Proof, Tokenizer, TypeRules,
};
#[cfg(feature = "report")]
use crate::report;
use crate::runner::{Device, DeviceChoice};
use crate::transform::cast::Overflow;
use crate::transform::loss::{Bound, Loss, Metric};
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, LayerReport, Prompts};

#[derive(clap::Args)]
#[command(
    override_usage = "ptplus convert [OPTIONS] -o OUT <ADAPTER | BASE>\n       ptplus convert [OPTIONS] --to FORMAT -o FOLDER <ADAPTER | FOLDER>...\n       ptplus convert --list-types",
    after_help = "GGUF output needs --base (or --arch): the order of the query's components depends on the architecture.\n\nMany adapters: a line for each (with --json one document a line), the others go on when one fails, and the exit code is that of the worst failure in the order 2, 3, 7, 4, 6, 5, 1.\n\nExamples:\n  ptplus convert adapter/ -o adapter.gguf --base model/ \\\n      --probe probe.safetensors\n  ptplus convert adapter.gguf -o adapter/ --to safetensors\n  ptplus convert adapter/ -o adapter-f16.gguf --arch llama --outtype f16 \\\n      --dry-run\n  ptplus convert model/ -o model.gguf\n  ptplus convert --jobs 4 adapters/ -o gguf/ --to gguf --base model/"
)]
pub struct Arguments {
    /// Output format; by default gguf when OUT ends in .gguf, else safetensors
    #[arg(long, value_enum, ignore_case = true)]
    to: Option<To>,
    /// Element type of the memories and feature maps (of a base model: of the matrices), by name or by ggml's number;
    /// keep: as the source has it
    #[arg(long, value_name = "TYPE", default_value = "keep", conflicts_with = "auto", value_parser = types::names())]
    outtype: String,
    /// More adapters, or folders of adapters; OUT is then a folder, and the base is read once
    #[arg(value_name = "ADAPTER", index = 2)]
    more: Vec<PathBuf>,
    /// Convert every adapter in the folders given, this many at a time; OUT is then a folder
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    #[command(flatten)]
    job: Job,
}

/// What `convert` and `quantize` have in common.
#[derive(clap::Args)]
pub struct Job {
    /// Adapter (canonical folder, safetensors file, GGUF, bundle, checkpoint) or base model (Hugging Face folder, GGUF)
    #[arg(required_unless_present = "list_types", index = 1)]
    pub adapter: Option<PathBuf>,
    /// Where to write: a file that ends in .gguf, or (convert alone) a folder for safetensors
    #[arg(short, long, visible_alias = "outfile", value_name = "OUT", required_unless_present = "list_types")]
    pub output: Option<PathBuf>,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// GGUF architecture of the base, where the base is not at hand
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Verify the output against PyTorch's answer before it is renamed into place
    #[arg(long, requires = "base")]
    probe: Option<PathBuf>,
    /// Device for the verification: cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Limits for the verification: a type (f32, bf16, q8_0, ...) or max_abs=X,mean_kl=Y
    #[arg(long, requires = "probe")]
    tolerance: Option<String>,
    /// Replace values beyond F16 or BF16 by the type's largest value instead of refusing
    #[arg(long)]
    allow_overflow: bool,
    /// Replace an existing output; of a folder the adapter that ptplus wrote there, unless anything else lies there
    #[arg(short, long)]
    force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write what was found as one HTML page with plots
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html", conflicts_with = "dry_run")]
    report: Option<PathBuf>,
    #[command(flatten)]
    base_check: BaseCheck,
    // Each of these begins a heading of its own in the help, so nothing follows them.
    #[command(flatten)]
    pub types: TypeArguments,
    #[command(flatten)]
    tokenizer: TokenizerArguments,
    #[command(flatten)]
    reading: Reading,
}

/// What is asked of a base model alone.
#[derive(clap::Args)]
#[command(next_help_heading = "Base models")]
struct TokenizerArguments {
    /// Write the folder's tokenizer with this as tokenizer.ggml.pre, without asking whether llama.cpp follows it
    #[arg(long, value_name = "NAME", conflicts_with = "no_tokenizer")]
    tokenizer_pre: Option<String>,
    /// Leave the folder's tokenizer out
    #[arg(long)]
    no_tokenizer: bool,
}

impl TokenizerArguments {
    fn choice(&self) -> Tokenizer<'_> {
        match &self.tokenizer_pre {
            Some(pre) => Tokenizer::Stated(pre),
            None if self.no_tokenizer => Tokenizer::None,
            None => Tokenizer::Known,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    Gguf,
    Safetensors,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let Some(output) = a.job.output.as_deref().filter(|_| !a.job.types.list_types) else { return types::list(ui) };
    let is_batch = a.jobs.is_some() || !a.more.is_empty();
    let format = match a.to {
        None if is_batch => {
            return Err(usage("--to", "expected gguf or safetensors: the names of many outputs do not say which"));
        }
        Some(To::Gguf) => Format::Gguf,
        Some(To::Safetensors) => Format::Safetensors,
        None if output.extension().is_some_and(|e| e == "gguf") => Format::Gguf,
        None => {
            folder_name(output)?;
            Format::Safetensors
        }
    };
    if format == Format::Safetensors && output.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
        return Err(usage(
            "--output",
            format!(
                "expected a folder for safetensors output, found {output:?}: the adapter is two files, weights and configuration"
            ),
        ));
    }
    let types = a.job.types.rules("--outtype", &a.outtype)?;
    if is_batch {
        #[cfg(feature = "report")]
        if a.job.report.is_some() {
            return Err(usage("--report", "expected one adapter, found several: a report is about one"));
        }
        let paths: Vec<&Path> = a.job.adapter.iter().chain(&a.more).map(PathBuf::as_path).collect();
        let jobs = a.jobs.map_or(1, usize::from);
        return super::batch::run(&paths, output, jobs, &Prepared::new(&a.job, types, format, ui)?, ui);
    }
    run_job(&a.job, types, format, ui)
}

/// A name that nearly ends in .gguf, or as other files of models do, would silently become a folder.
fn folder_name(output: &Path) -> Result<()> {
    const OF_FILES: [&str; 8] = ["bin", "ckpt", "ggml", "json", "pt", "pth", "tar", "zip"];
    let Some(ending) = output.extension().and_then(|e| e.to_str()).map(str::to_lowercase) else { return Ok(()) };
    let is_near = ending.len() > 2 && strsim::damerau_levenshtein(&ending, "gguf") <= 2;
    if !is_near && !OF_FILES.contains(&&*ending) {
        return Ok(());
    }
    let message = format!(
        "expected a name that ends in .gguf, or that of a folder for safetensors, found {output:?}: --to says which is meant"
    );
    Err(usage("--output", message))
}

pub fn run_job(a: &Job, types: TypeRules, format: Format, ui: &Ui) -> Result<u8> {
    let (Some(adapter), Some(output)) = (a.adapter.as_deref(), a.output.as_deref()) else {
        return Err(usage("convert", "expected an adapter and --output"));
    };
    if inspect::is_base(adapter)? {
        return run_base(a, adapter, output, &types, format, ui);
    }
    if a.tokenizer.choice() != Tokenizer::Known {
        return Err(usage("--tokenizer-pre, --no-tokenizer", "expected no such flag: the input is an adapter"));
    }
    let prepared = Prepared::new(a, types, format, ui)?;
    #[cfg(feature = "report")]
    let report_file = super::report::create(
        a.report.as_deref(),
        a.force,
        &super::report::Others {
            inputs: &[Some(adapter), a.base.as_deref(), a.probe.as_deref(), prepared.reading.layout.as_deref()],
            bases: &[prepared.base.as_ref()],
            output: Some(output),
        },
    )?;
    let outcome = prepared.convert(adapter, output, ui, Effort::Alone);
    #[cfg(feature = "report")]
    let reported = prepared.report(report_file, adapter, &outcome, ui);
    let done = outcome?;
    ui.made(document(&done, ui), text(&done, adapter));
    done.notes.iter().for_each(|n| ui.note(n));
    base_check::note(ui, done.base_identity.as_ref());
    if a.base.is_some() && done.verification.is_none() && !done.dry_run {
        ui.note(base_check::NOT_PROVED);
    }
    #[cfg(feature = "report")]
    reported?;
    Ok(0)
}

/// The input is a base model: what is about adapters has no place.
fn run_base(a: &Job, base: &Path, output: &Path, types: &TypeRules, format: Format, ui: &Ui) -> Result<u8> {
    let adapter_flags = [
        ("--base", a.base.is_some()),
        ("--arch", a.arch.is_some()),
        ("--probe", a.probe.is_some()),
        ("--auto", a.types.auto_kl()?.is_some()),
        ("how to read a checkpoint", !a.reading.options()?.is_empty()),
        #[cfg(feature = "report")]
        ("--report", a.report.is_some()),
    ];
    if let Some((flag, _)) = adapter_flags.iter().find(|(_, given)| *given) {
        return Err(usage(flag, "expected no such flag: the input is a base model, not an adapter"));
    }
    if format != Format::Gguf {
        return Err(usage(
            "--output",
            format!("expected a name that ends in .gguf for a base model, found {output:?}"),
        ));
    }
    let max_error = a.types.bounds()?;
    a.types.set_threads()?;
    let done = pipeline::convert_base(&ConvertBase {
        base,
        output,
        tokenizer: a.tokenizer.choice(),
        types,
        max_error: &max_error,
        overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
        overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
        dry_run: a.dry_run,
        progress: &|done, total| ui.progress(done, total, Unit::Bytes),
    })?;
    ui.made(json!(done), text(&done, base));
    done.notes.iter().for_each(|n| ui.note(n));
    Ok(0)
}

/// What a command line asks for, read once for any number of adapters.
pub struct Prepared<'a> {
    job: &'a Job,
    types: TypeRules,
    pub format: Format,
    tolerance: Option<Tolerance>,
    device: Device,
    max_error: Vec<Bound>,
    auto_kl: Option<f64>,
    reading: Options,
    base: Option<BaseModel>,
    probe: Option<Probe>,
}

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A quantized output is run beside its source.
    Alone,
    /// It is run only where a bound or `--auto` asks for it.
    OfMany,
}

impl<'a> Prepared<'a> {
    pub fn new(a: &'a Job, types: TypeRules, format: Format, ui: &Ui) -> Result<Self> {
        let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
        let device = a.device.parse::<DeviceChoice>()?;
        let (max_error, auto_kl, reading) = (a.types.bounds()?, a.types.auto_kl()?, a.reading.options()?);
        a.types.set_threads()?;
        Ok(Prepared {
            job: a,
            types,
            format,
            tolerance,
            device: device.open()?,
            max_error,
            auto_kl,
            reading,
            base: a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?,
            probe: a.probe.as_deref().map(Probe::open).transpose()?,
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.job.dry_run
    }

    /// Whether an architecture stands in for the base.
    pub fn is_unchecked(&self) -> bool {
        self.base.is_none() && self.job.arch.is_some()
    }

    // The prompts of `verify --against`, so that both print the same figures; a probe's tokens are real ones.
    fn prompts(&self) -> Prompts {
        self.probe.as_ref().map_or(Prompts::DEFAULT, |probe| Prompts::Tokens(probe.input_ids.clone()))
    }

    /// What outputs record. Every option has its place here: one that is not recorded decides nothing that an output holds,
    /// or is seen in the output itself, as its format is.
    fn command(&self, adapter: &Path, name: &str) -> Recorded {
        // What is parsed already is taken from there.
        let Job {
            adapter: _,
            output: _,
            base,
            arch,
            probe,
            device: _,
            tolerance: _,
            allow_overflow,
            force: _,
            dry_run: _,
            #[cfg(feature = "report")]
                report: _,
            base_check,
            types: _,
            reading: _,
            // Of base models, whose files record no command.
            tokenizer: _,
        } = self.job;
        let mut command = Recorded::new(name, adapter);
        let type_flag = (name != "quantize").then_some("--outtype");
        if type_flag.is_none() {
            command.types(type_flag, &self.types, &self.max_error, self.auto_kl);
        }
        command.file("--base", base.as_deref());
        command.value("--arch", arch.as_ref());
        command.file("--probe", probe.as_deref());
        command.value("--tolerance", self.tolerance.as_ref());
        command.flag("--allow-overflow", *allow_overflow);
        base_check.record(&mut command);
        if type_flag.is_some() {
            command.types(type_flag, &self.types, &self.max_error, self.auto_kl);
        }
        command.reading(&self.reading);
        command
    }

    pub fn convert(&self, adapter: &Path, output: &Path, ui: &Ui, effort: Effort) -> Result<Converted> {
        let a = self.job;
        let steps = |done: usize, total: usize| {
            if effort == Effort::Alone {
                ui.progress(done as u64, total as u64, Unit::Steps);
            }
        };
        let prove = self.probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof {
            probe,
            path,
            options: verify::Options { device: &self.device, tolerance: self.tolerance.clone(), progress: &steps },
        });
        let is_needed =
            effort == Effort::Alone || self.auto_kl.is_some() || self.max_error.iter().any(|b| b.metric == Metric::Kl);
        let measure = (is_needed && self.base.is_some()).then(|| Measure {
            prompts: self.prompts(),
            device: &self.device,
            progress: &steps,
        });
        let command = self.command(adapter, ui.command()).line();
        pipeline::convert(&Convert {
            adapter,
            reading: &self.reading,
            base: self.base.as_ref(),
            architecture: a.arch.as_deref(),
            output,
            format: self.format,
            types: &self.types,
            max_error: &self.max_error,
            auto_kl: self.auto_kl,
            measure,
            overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
            base_mismatch: a.base_check.mismatch(),
            command: Some(&command),
            overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
            dry_run: a.dry_run,
            prove,
            progress: &|done, total| {
                if effort == Effort::Alone {
                    ui.progress(done, total, Unit::Bytes);
                }
            },
        })
    }

    /// Writes the report, if one is asked for, on what was converted or on why it was not.
    #[cfg(feature = "report")]
    fn report(&self, file: Option<Pending>, adapter: &Path, outcome: &Result<Converted>, ui: &Ui) -> Result<()> {
        match (file, outcome) {
            (Some(file), Ok(done)) => file.write(&self.page(adapter, done, ui)?, ui),
            (None, Ok(_)) => Ok(()),
            (file, Err(e)) => {
                write_failure(file, e, || self.failure_page(adapter, e), ui);
                Ok(())
            }
        }
    }

    #[cfg(feature = "report")]
    fn failure_page(&self, adapter: &Path, error: &Error) -> Result<String> {
        Ok(report::failure(&report::Failure {
            what: "Conversion",
            source: adapter,
            error,
            adapter: pipeline::read_adapter_with(adapter, &self.reading, self.base.as_ref()).ok().as_ref(),
            base: self.base.as_ref(),
            probe: self.probe.as_ref(),
            input_ids: &self.input_ids()?,
            device: self.device.name(),
        }))
    }

    /// What was run, if anything was: `[B][T]`.
    #[cfg(feature = "report")]
    fn input_ids(&self) -> Result<Vec<Vec<u32>>> {
        self.base.as_ref().map_or(Ok(Vec::new()), |base| self.prompts().ids(base.config.vocab_size))
    }

    #[cfg(feature = "report")]
    fn page(&self, adapter: &Path, done: &Converted, ui: &Ui) -> Result<String> {
        let output = pipeline::read_adapter(&done.output, self.base.as_ref())?;
        let is_quantized = done.tensors.iter().any(|t| t.loss.is_some_and(|l| l != Loss::NONE));
        let (candidates, not_measured) = match is_quantized && self.format == Format::Gguf {
            true => {
                let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
                let measure = Measure { prompts: self.prompts(), device: &self.device, progress: &steps };
                let architecture = self.job.arch.as_deref();
                report::candidates(adapter, &self.reading, self.base.as_ref(), architecture, &measure)?
            }
            false => Default::default(),
        };
        not_measured.iter().for_each(|n| ui.note(n));
        Ok(report::conversion(&report::Conversion {
            source: adapter,
            output: &output,
            base: self.base.as_ref(),
            converted: done,
            probe: self.probe.as_ref(),
            input_ids: &self.input_ids()?,
            max_error: &self.max_error,
            candidates: &candidates,
            device: self.device.name(),
        }))
    }
}

/// The result with `--json`; the positions are many, and shown with `-v` only, as by `verify`.
pub fn document(done: &Converted, ui: &Ui) -> Value {
    let mut document = json!(done);
    if !ui.is_verbose() {
        document["output_error"].as_object_mut().map(|e| e.shift_remove("positions"));
    }
    document
}

fn text(c: &Converted, adapter: &Path) -> String {
    let mut out = String::new();
    let is_lossy = c.tensors.iter().any(|t| t.loss.is_some_and(|l| l != Loss::NONE));
    if c.dry_run {
        let rows: Vec<Vec<String>> = c
            .tensors
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    types_text(t),
                    format!("{:?}", t.shape),
                    t.file_offset.to_string(),
                    t.len_bytes.to_string(),
                ]
            })
            .collect();
        out.push_str(&table::table(&["tensor", "type", "shape", "offset", "bytes"], &rows));
    } else if is_lossy {
        out.push_str(&losses(c));
    }
    if let Some(d) = &c.auto {
        let _ = writeln!(
            out,
            "auto: each tensor was run alone in its smallest type; of {} steps to smaller types, those first that cost least KL\n  for their bytes, {} keep the mean KL within {:e}: measured {:.3e}; {} adapters were run",
            d.n_steps_possible, d.n_steps, d.kl_bound, d.kl, d.n_trials
        );
    }
    if let Some(e) = &c.output_error {
        let m = &e.metrics;
        let _ = writeln!(
            out,
            "run beside the source: max |dlogit| {:.2e} ({:.1e} of its effect), mean KL {:.2e}, max KL {:.2e}, top-1 {:.1} % of {} positions",
            m.max_abs,
            m.max_abs / e.effect,
            m.mean_kl,
            m.max_kl,
            m.top1_agreement * 100.0,
            m.n_positions
        );
        let share = |l: &LayerReport| l.term_max_abs.unwrap_or(0.0) / l.term_size.unwrap_or(0.0);
        if let Some(l) = e.layers.iter().max_by(|x, y| share(x).total_cmp(&share(y))) {
            let _ = writeln!(
                out,
                "terms: largest relative difference in layer {}: {:.2e} of {:.2e}",
                l.layer,
                l.term_max_abs.unwrap_or(f64::NAN),
                l.term_size.unwrap_or(f64::NAN)
            );
        }
    }
    if let Some(s) = &c.conventions {
        let _ = writeln!(out, "{}", s.line());
    }
    if let Some(v) = &c.verification {
        let _ = writeln!(
            out,
            "verified against the probe: max |dlogit| {:.2e} (limit {:.2e}), mean KL {:.1e}, top-1 {:.1} % of {} positions",
            v.metrics.max_abs,
            v.limits.max_abs.unwrap_or(f64::NAN),
            v.metrics.mean_kl,
            v.metrics.top1_agreement * 100.0,
            v.metrics.n_positions
        );
    }
    let _ = writeln!(
        out,
        "{} {} -> {}: {}, {} tensors, {} bytes, row order {}",
        if c.dry_run { "would convert" } else { "converted" },
        escape(&adapter.to_string_lossy()),
        escape(&c.output.to_string_lossy()),
        c.format,
        c.tensors.len(),
        c.len_bytes,
        c.row_order
    );
    out
}

fn types_text(t: &ConvertedTensor) -> String {
    let unfit = t.unfit.as_ref().map_or(String::new(), |d| format!(" (not {d})"));
    format!("{} -> {}{unfit}", t.source_dtype, t.dtype)
}

/// What each tensor's type cost.
fn losses(c: &Converted) -> String {
    let rows: Vec<Vec<String>> = c
        .tensors
        .iter()
        .filter_map(|t| {
            let l = t.loss?;
            Some(vec![
                t.name.clone(),
                types_text(t),
                format!("{} -> {}", t.source_len_bytes, t.len_bytes),
                format!("{:.2e}", l.rmse),
                format!("{:.2e}", l.max_abs),
                format!("{:.2e}", l.relative),
                format!("{:.7}", l.cosine),
            ])
        })
        .collect();
    table::table(&["tensor", "type", "bytes", "RMSE", "max |d|", "relative", "cosine"], &rows)
}
