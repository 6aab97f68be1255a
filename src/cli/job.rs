//! What `convert` and `quantize` do, for one adapter or for each of many.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::base_check::{self, BaseCheck};
use super::command::Recorded;
use super::progress::Unit;
use super::reading::Reading;
#[cfg(feature = "report")]
use super::report::{Pending, write_failure};
use super::types::TypeArguments;
use super::ui::Ui;
use super::usage;
use crate::base::BaseModel;
#[cfg(feature = "report")]
use crate::error::Error;
use crate::error::Result;
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::pipeline::{self, Convert, Converted, Format, Measure, Proof, Tokenizer, TypeRules};
#[cfg(feature = "report")]
use crate::report;
use crate::runner::{Device, DeviceChoice};
use crate::transform::cast::Overflow;
#[cfg(feature = "report")]
use crate::transform::loss::Loss;
use crate::transform::loss::{Bound, Metric};
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, Prompts};

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
    pub base: Option<PathBuf>,
    /// GGUF architecture of the base, where the base is not at hand
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Verify the output against PyTorch's answer before it is renamed into place
    #[arg(long)]
    pub probe: Option<PathBuf>,
    /// Device for the verification: cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Limits for the verification: a type (f32, bf16, q8_0, ...) or max_abs=X,mean_kl=Y
    #[arg(long, requires = "probe")]
    pub tolerance: Option<String>,
    /// Replace values beyond F16 or BF16 by the type's largest value instead of refusing
    #[arg(long)]
    pub allow_overflow: bool,
    /// Replace an existing output; of a folder the adapter that ptplus wrote there, unless anything else lies there
    #[arg(short, long)]
    pub force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write what was found as one HTML page with plots
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html", conflicts_with = "dry_run")]
    pub report: Option<PathBuf>,
    #[command(flatten)]
    pub base_check: BaseCheck,
    // Each of these begins a heading of its own in the help, so nothing follows them.
    #[command(flatten)]
    pub types: TypeArguments,
    #[command(flatten)]
    pub tokenizer: TokenizerArguments,
    #[command(flatten)]
    pub reading: Reading,
}

/// What is asked of a base model alone.
#[derive(clap::Args)]
#[command(next_help_heading = "Base models")]
pub struct TokenizerArguments {
    /// Write the folder's tokenizer with this as tokenizer.ggml.pre, without asking whether llama.cpp follows it
    #[arg(long, value_name = "NAME", conflicts_with = "no_tokenizer")]
    tokenizer_pre: Option<String>,
    /// Leave the folder's tokenizer out
    #[arg(long)]
    no_tokenizer: bool,
}

impl TokenizerArguments {
    pub fn record(&self, command: &mut Recorded) {
        let TokenizerArguments { tokenizer_pre, no_tokenizer } = self;
        command.value("--tokenizer-pre", tokenizer_pre.as_ref());
        command.flag("--no-tokenizer", *no_tokenizer);
    }

    pub fn choice(&self) -> Tokenizer<'_> {
        match &self.tokenizer_pre {
            Some(pre) => Tokenizer::Stated(pre),
            None if self.no_tokenizer => Tokenizer::None,
            None => Tokenizer::Known,
        }
    }
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
    pub reading: Options,
    pub base: Option<BaseModel>,
    probe: Option<Probe>,
}

/// One adapter or many: how much is measured and shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A quantized output is run beside its source.
    Single,
    /// It is run only where a bound or `--auto` asks for it.
    Batch,
}

impl<'a> Prepared<'a> {
    pub fn new(a: &'a Job, types: TypeRules, format: Format, ui: &Ui) -> Result<Self> {
        let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
        let device = a.device.parse::<DeviceChoice>()?;
        let (max_error, auto_kl, reading) = (a.types.bounds()?, a.types.auto_kl()?, a.reading.options()?);
        if a.probe.is_some() && a.base.is_none() {
            return Err(usage("--probe", "expected --base beside it, found none"));
        }
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

    pub fn convert(&self, adapter: &Path, output: &Path, ui: &Ui, mode: Mode) -> Result<Converted> {
        let a = self.job;
        let steps = |done: usize, total: usize| {
            if mode == Mode::Single {
                ui.progress(done as u64, total as u64, Unit::Steps);
            }
        };
        let prove = self.probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof {
            probe,
            path,
            options: verify::Options { device: &self.device, tolerance: self.tolerance.clone(), progress: &steps },
        });
        let is_needed =
            mode == Mode::Single || self.auto_kl.is_some() || self.max_error.iter().any(|b| b.metric == Metric::Kl);
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
                if mode == Mode::Single {
                    ui.progress(done, total, Unit::Bytes);
                }
            },
        })
    }

    /// Writes the report, if one is asked for, on what was converted or on why it was not.
    #[cfg(feature = "report")]
    pub fn report(&self, file: Option<Pending>, adapter: &Path, outcome: &Result<Converted>, ui: &Ui) -> Result<()> {
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
        let (alternatives, not_measured) = match is_quantized && self.format == Format::Gguf {
            true => {
                let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
                let measure = Measure { prompts: self.prompts(), device: &self.device, progress: &steps };
                let architecture = self.job.arch.as_deref();
                report::alternatives(adapter, &self.reading, self.base.as_ref(), architecture, &measure)?
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
            alternatives: &alternatives,
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
