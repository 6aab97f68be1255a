use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::base_check::{self, BaseCheck};
use super::command::Recorded;
use super::convert::{To, format_of};
use super::progress::Unit;
use super::scaled::path_and_scale;
use super::types;
use super::ui::Ui;
use crate::error::{Result, escape};
use crate::export::types::{OutType, TypeRules};
use crate::format::output::Overwrite;
use crate::pipeline::{Combine, Convert, combine_adapters};
use crate::runner::DeviceChoice;

#[derive(clap::Args)]
#[command(
    after_help = "Memories of Prefix-Tuning+ adapters add up where they stand below one feature map; ranks of LoRAs add up, and factors go into B. Kinds do not mix: give both to run or exec instead. With --base the sum is run beside its parts before anything is written.\n\nExample:\n  ptplus combine adapter.gguf:0.7 adapter/:0.3 -o both.gguf --base model/"
)]
pub struct Arguments {
    /// Adapters of one kind and base, each with its weight in the sum
    #[arg(required = true, value_name = "ADAPTER[:WEIGHT]")]
    adapters: Vec<String>,
    /// Where to write: a file that ends in .gguf, or a folder for safetensors
    #[arg(short, long, visible_alias = "outfile", value_name = "OUT")]
    output: PathBuf,
    /// Output format; by default gguf when OUT ends in .gguf, else safetensors
    #[arg(long, value_enum, ignore_case = true)]
    to: Option<To>,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// GGUF architecture of the base, where the base is not at hand
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Element type; keep: F32, or as the source has it where nothing is added to it
    #[arg(long, value_name = "TYPE", default_value = "keep", value_parser = types::names())]
    outtype: String,
    /// Device for running the sum beside its parts: cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Replace an existing output; of a folder the adapter that ptplus wrote there, unless anything else lies there
    #[arg(short, long)]
    force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    base_check: BaseCheck,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let format = format_of(a.to, &a.output)?;
    let parts = a
        .adapters
        .iter()
        .map(|text| path_and_scale("ADAPTER", text).map(|(path, weight)| (path, f64::from(weight))))
        .collect::<Result<Vec<_>>>()?;
    let types = TypeRules::from(OutType::parse(&a.outtype)?);
    let device = a.device.parse::<DeviceChoice>()?.open()?;
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let (first, _) = &parts[0];
    let command = command(a, &parts);
    let progress = |done, total| ui.progress(done, total, Unit::Bytes);
    let mut output = Convert::new(first, &a.output, format);
    output.base = base.as_ref();
    output.architecture = a.arch.as_deref();
    output.types = &types;
    output.overwrite = if a.force { Overwrite::Force } else { Overwrite::Never };
    output.base_mismatch = a.base_check.mismatch();
    output.command = Some(&command);
    output.dry_run = a.dry_run;
    output.progress = &progress;
    let done = combine_adapters(&Combine { parts: &parts, output, device: &device })?;
    let mut text = String::new();
    if let Some(r) = &done.beside_parts {
        let m = &r.metrics;
        let _ = writeln!(
            text,
            "run beside its parts: max |dlogit| {:.2e} (limit {:.2e}), effect {:.2e}, {} positions",
            m.max_abs,
            r.limits.max_abs.unwrap_or(f64::NAN),
            r.found_effect,
            m.n_positions
        );
    } else {
        ui.note("not run beside its parts: --base BASE does that");
    }
    let _ = writeln!(
        text,
        "{} {} adapters -> {}: {}, {} tensors, {} bytes",
        if a.dry_run { "would combine" } else { "combined" },
        parts.len(),
        escape(&a.output.to_string_lossy()),
        done.output.format,
        done.output.tensors.len(),
        done.output.len_bytes
    );
    ui.made(json!(done), text);
    done.output.notes.iter().for_each(|n| ui.note(n));
    base_check::note(ui, done.output.base_identity.as_ref());
    Ok(0)
}

/// What the output records: names of files without their folders.
fn command(a: &Arguments, parts: &[(PathBuf, f64)]) -> String {
    let mut command = Recorded::new("combine", &parts[0].0);
    if parts[0].1 != 1.0 {
        command.weight(parts[0].1);
    }
    for (path, weight) in &parts[1..] {
        command.argument(path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into()));
        if *weight != 1.0 {
            command.weight(*weight);
        }
    }
    command.file("--base", a.base.as_deref());
    command.value("--arch", a.arch.as_ref());
    command.value("--outtype", Some(&a.outtype).filter(|t| !t.eq_ignore_ascii_case("keep")));
    a.base_check.record(&mut command);
    command.line()
}
