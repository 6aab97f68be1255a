use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::job::{Job, Mode, Prepared, document};
use super::llama_state::StateArguments;
use super::progress::Unit;
use super::scaled::path_and_scale;
use super::ui::Ui;
use super::{base_check, table, types, usage};
use crate::error::{Result, escape};
use crate::format::output::Overwrite;
use crate::inspect;
use crate::pipeline::{self, ConvertBase, Converted, ConvertedTensor, Format, Proof, Tokenizer, TypeRules};
use crate::runner::DeviceChoice;
use crate::transform::cast::Overflow;
use crate::transform::loss::Loss;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, LayerReport};

#[derive(clap::Args)]
#[command(
    override_usage = "ptplus convert [OPTIONS] -o OUT <ADAPTER | BASE>\n       ptplus convert [OPTIONS] --merge ADAPTER -o OUT.gguf <BASE>\n       ptplus convert [OPTIONS] --to FORMAT -o FOLDER <ADAPTER | FOLDER>...\n       ptplus convert [OPTIONS] --to llama-state --base BASE -o STATE.bin <ADAPTER>\n       ptplus convert --list-types",
    after_help = "GGUF output needs --base (or --arch): the order of the query's components depends on the architecture.\n\nMany adapters: a line for each (with --json one document a line), the others go on when one fails, and the exit code is that of the worst failure in the order 2, 3, 7, 4, 6, 5, 1.\n\nExamples:\n  ptplus convert adapter/ -o adapter.gguf --base model/ \\\n      --probe probe.safetensors\n  ptplus convert adapter.gguf -o adapter/ --to safetensors\n  ptplus convert adapter/ -o adapter-f16.gguf --arch llama --outtype f16 \\\n      --dry-run\n  ptplus convert model/ -o model.gguf\n  ptplus convert --jobs 4 adapters/ -o gguf/ --to gguf --base model/"
)]
pub struct Arguments {
    /// Output format; by default gguf when OUT ends in .gguf, else safetensors. llama-state: of virtual tokens, the state of a
    /// sequence that has read them, which stock llama.cpp loads
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
    /// Merge a LoRA into the base model that is converted, with a factor on what it adds; may be given more than once
    #[arg(long, value_name = "ADAPTER[:SCALE]", conflicts_with_all = ["more", "jobs"])]
    merge: Vec<String>,
    #[command(flatten)]
    pub job: Job,
    #[command(flatten)]
    state: StateArguments,
}

/// A format by its name.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum To {
    Gguf,
    Safetensors,
    #[value(hide = true)] // of virtual tokens alone; the help of convert says so
    LlamaState,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let Some(output) = a.job.output.as_deref().filter(|_| !a.job.types.list_types) else { return types::list(ui) };
    let is_batch = a.jobs.is_some() || !a.more.is_empty();
    if is_batch && a.to.is_none() {
        return Err(usage("--to", "expected gguf or safetensors: the names of many outputs do not say which"));
    }
    if a.to == Some(To::LlamaState) {
        if is_batch || !a.merge.is_empty() {
            return Err(usage("--to", "expected one adapter: a state is that of one sequence"));
        }
        return super::llama_state::run(&a.job, &a.state, &a.outtype, output, ui);
    }
    if let Some(flag) = a.state.given() {
        return Err(usage(flag, "expected --to llama-state: other outputs are for no context of llama.cpp"));
    }
    let format = format_of(a.to, output)?;
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
    run_job(&a.job, types, format, &a.merge, ui)
}

/// The format that is asked for, or that the output's name says.
pub fn format_of(to: Option<To>, output: &Path) -> Result<Format> {
    let format = match to {
        Some(To::Gguf) => Format::Gguf,
        Some(To::Safetensors) => Format::Safetensors,
        Some(To::LlamaState) => {
            return Err(usage("--to", "expected gguf or safetensors: a state is made of an adapter, by convert"));
        }
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
    Ok(format)
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

pub fn run_job(a: &Job, types: TypeRules, format: Format, merge: &[String], ui: &Ui) -> Result<u8> {
    let (Some(adapter), Some(output)) = (a.adapter.as_deref(), a.output.as_deref()) else {
        return Err(usage("convert", "expected an adapter and --output"));
    };
    if inspect::is_base(adapter)? {
        return run_base(a, adapter, output, &types, format, merge, ui);
    }
    if !merge.is_empty() {
        return Err(usage(
            "--merge",
            "expected a base model to merge into, found an adapter: convert BASE --merge ADAPTER",
        ));
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
    let outcome = prepared.convert(adapter, output, ui, Mode::Single);
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
fn run_base(
    a: &Job,
    base: &Path,
    output: &Path,
    types: &TypeRules,
    format: Format,
    merge: &[String],
    ui: &Ui,
) -> Result<u8> {
    let adapter_flags = [
        ("--base", a.base.is_some()),
        ("--arch", a.arch.is_some()),
        ("--probe", a.probe.is_some() && merge.is_empty()),
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
    let merge = merge
        .iter()
        .map(|text| path_and_scale("--merge", text).map(|(path, scale)| (path, f64::from(scale))))
        .collect::<Result<Vec<_>>>()?;
    let device = a.device.parse::<DeviceChoice>()?.open()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let prove = probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof {
        probe,
        path,
        options: verify::Options { device: &device, tolerance, progress: &steps },
    });
    let done = pipeline::convert_base(&ConvertBase {
        base,
        output,
        merge: &merge,
        base_mismatch: a.base_check.mismatch(),
        prove,
        about: None,
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
    if !merge.is_empty() && done.verification.is_none() && !done.dry_run {
        ui.note(NOT_PROVED);
    }
    Ok(0)
}

/// A merged base is another model, and nothing in it says whether it is the right one.
const NOT_PROVED: &str = "not proved: --probe PROBE compares the merged base with what PyTorch computed";

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
        let _ = writeln!(out, "verified against the probe: {}", base_check::proof_text(v));
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
