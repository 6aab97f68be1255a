use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::reading::Reading;
use super::ui::{self, Status, Ui};
use super::usage;
use crate::base::BaseModel;
use crate::error::{Result, escape};
use crate::format::output::Overwrite;
use crate::pipeline::{self, Convert, Converted, Format, OutType, Proof};
use crate::runner::DeviceChoice;
use crate::tensor::DType;
use crate::transform::cast::Overflow;
use crate::verify;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;

#[derive(clap::Args)]
#[command(
    after_help = "GGUF output needs --base (or --arch): the order of the query's components depends on the architecture.\n\nExamples:\n  ptplus convert adapter/ -o adapter.gguf --base model/ --probe probe.safetensors\n  ptplus convert adapter.gguf -o adapter/ --to safetensors\n  ptplus convert adapter/ -o adapter-f16.gguf --arch llama --outtype f16 --dry-run"
)]
pub struct Arguments {
    /// Adapter: canonical folder, GGUF, or a checkpoint of another training code
    adapter: PathBuf,
    /// Where to write: a GGUF file or a folder
    #[arg(short, long, visible_alias = "outfile", value_name = "OUT")]
    output: PathBuf,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// GGUF architecture of the base, where the base is not at hand
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Output format; by default gguf when OUT ends in .gguf, else safetensors
    #[arg(long, value_enum, ignore_case = true)]
    to: Option<To>,
    /// Element type of the memories and feature maps
    #[arg(long, value_enum, ignore_case = true, default_value = "keep")]
    outtype: Type,
    /// Verify the output against PyTorch's answer before it is renamed into place
    #[arg(long, requires = "base")]
    probe: Option<PathBuf>,
    /// Device for the verification: cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Limits for the verification: f32, f16, bf16 or max_abs=X,mean_kl=Y
    #[arg(long, requires = "probe")]
    tolerance: Option<String>,
    /// Replace values beyond the output type by its largest value instead of refusing
    #[arg(long)]
    allow_overflow: bool,
    /// Replace an existing output
    #[arg(short, long)]
    force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    Gguf,
    Safetensors,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
    /// As the source has it
    Keep,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let device = a.device.parse::<DeviceChoice>()?;
    let format = match a.to {
        Some(To::Gguf) => Format::Gguf,
        Some(To::Safetensors) => Format::Safetensors,
        None if a.output.extension().is_some_and(|e| e == "gguf") => Format::Gguf,
        None => Format::Safetensors,
    };
    if format == Format::Safetensors && a.output.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
        return Err(usage(
            "--output",
            format!(
                "expected a folder for safetensors output, found {:?}: the adapter is two files, weights and configuration",
                a.output
            ),
        ));
    }
    let reading = a.reading.options()?;
    let device = device.open()?;
    let base = a.base.as_deref().map(BaseModel::open).transpose()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, false);
    let prove = match &probe {
        Some(probe) => Some(Proof {
            probe,
            path: a.probe.as_deref().unwrap_or(Path::new("")),
            options: verify::Options { device: &device, tolerance, progress: &steps },
        }),
        None => None,
    };
    let done = pipeline::convert(&Convert {
        adapter: &a.adapter,
        reading: &reading,
        base: base.as_ref(),
        architecture: a.arch.as_deref(),
        output: &a.output,
        format,
        out_type: match a.outtype {
            Type::F32 => OutType::As(DType::F32),
            Type::F16 => OutType::As(DType::F16),
            Type::Bf16 => OutType::As(DType::BF16),
            Type::Keep => OutType::Keep,
        },
        overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
        overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
        dry_run: a.dry_run,
        prove,
        progress: &|done, total| ui.progress(done, total, true),
    })?;
    ui.result(Status::Ok, json!(done), &text(&done, &a.adapter))?;
    done.notes.iter().for_each(|n| ui.note(n));
    Ok(0)
}

fn text(c: &Converted, adapter: &Path) -> String {
    let mut out = String::new();
    if c.dry_run {
        let rows: Vec<Vec<String>> = c
            .tensors
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    format!("{} -> {}", t.source_dtype, t.dtype),
                    format!("{:?}", t.shape),
                    t.file_offset.to_string(),
                    t.len_bytes.to_string(),
                ]
            })
            .collect();
        out.push_str(&ui::table(&["tensor", "type", "shape", "offset", "bytes"], &rows));
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
