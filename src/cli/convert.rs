use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::types::{self, TypeArguments};
use super::ui::{self, Status, Ui};
use super::usage;
use crate::base::BaseModel;
use crate::error::{Result, escape};
use crate::format::output::Overwrite;
use crate::pipeline::{self, Convert, Converted, ConvertedTensor, Format, Measure, Proof, TypeRules};
use crate::runner::DeviceChoice;
use crate::transform::cast::Overflow;
use crate::transform::loss::Loss;
use crate::verify::probe::Probe;
use crate::verify::{self, LayerReport, Prompts};

#[derive(clap::Args)]
#[command(
    after_help = "GGUF output needs --base (or --arch): the order of the query's components depends on the architecture.\n\nExamples:\n  ptplus convert adapter/ -o adapter.gguf --base model/ --probe probe.safetensors\n  ptplus convert adapter.gguf -o adapter/ --to safetensors\n  ptplus convert adapter/ -o adapter-f16.gguf --arch llama --outtype f16 --dry-run"
)]
pub struct Arguments {
    /// Output format; by default gguf when OUT ends in .gguf, else safetensors
    #[arg(long, value_enum, ignore_case = true)]
    to: Option<To>,
    /// Element type of the memories and feature maps, by name or by ggml's number; keep: as the source has it
    #[arg(long, value_name = "TYPE", default_value = "keep", conflicts_with = "auto")]
    outtype: String,
    #[command(flatten)]
    job: Job,
}

/// What `convert` and `quantize` have in common.
#[derive(clap::Args)]
pub struct Job {
    /// Adapter: canonical folder, safetensors file or GGUF
    #[arg(required_unless_present = "list_types")]
    adapter: Option<PathBuf>,
    /// Where to write: a GGUF file or a folder
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
    /// Replace an existing output
    #[arg(short, long)]
    force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub types: TypeArguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    Gguf,
    Safetensors,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let Some(output) = a.job.output.as_deref().filter(|_| !a.job.types.list_types) else { return Ok(types::list(ui)) };
    let format = match a.to {
        Some(To::Gguf) => Format::Gguf,
        Some(To::Safetensors) => Format::Safetensors,
        None if output.extension().is_some_and(|e| e == "gguf") => Format::Gguf,
        None => Format::Safetensors,
    };
    if format == Format::Safetensors && output.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
        return Err(usage(
            "--output",
            format!(
                "expected a folder for safetensors output, found {output:?}: the adapter is two files, weights and configuration"
            ),
        ));
    }
    run_job(&a.job, a.job.types.rules("--outtype", &a.outtype)?, format, ui)
}

pub fn run_job(a: &Job, types: TypeRules, format: Format, ui: &Ui) -> Result<u8> {
    let (Some(adapter), Some(output)) = (a.adapter.as_deref(), a.output.as_deref()) else {
        return Err(usage("convert", "expected an adapter and --output"));
    };
    let max_error = a.types.bounds()?;
    a.types.set_threads()?;
    let base = a.base.as_deref().map(BaseModel::open).transpose()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let device = a.device.parse::<DeviceChoice>()?.open()?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, false);
    let prove = match &probe {
        Some(probe) => {
            let tolerance = a.tolerance.as_deref().map(verify::tolerance::Tolerance::parse).transpose()?;
            Some(Proof { probe, options: verify::Options { device: &device, tolerance, progress: &steps } })
        }
        None => None,
    };
    // The prompts of `verify --against`, so that both print the same figures; a probe's tokens are real ones.
    let prompts = match &probe {
        Some(probe) => Prompts::Tokens(probe.input_ids.clone()),
        None => Prompts::DEFAULT,
    };
    let measure = base.is_some().then_some(Measure { prompts, device: &device, progress: &steps });
    let done = pipeline::convert(&Convert {
        adapter,
        base: base.as_ref(),
        architecture: a.arch.as_deref(),
        output,
        format,
        types: &types,
        max_error: &max_error,
        auto_kl: a.types.auto_kl()?,
        measure,
        overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
        overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
        dry_run: a.dry_run,
        prove,
        progress: &|done, total| ui.progress(done, total, true),
    })?;
    ui.result(Status::Ok, json!(done), &text(&done, adapter));
    done.notes.iter().for_each(|n| ui.note(n));
    Ok(0)
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
        out.push_str(&ui::table(&["tensor", "type", "shape", "offset", "bytes"], &rows));
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
    ui::table(&["tensor", "type", "bytes", "RMSE", "max |d|", "relative", "cosine"], &rows)
}
