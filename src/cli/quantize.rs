use std::path::{Path, PathBuf};

use super::convert;
use super::job::Job;
use super::ui::Ui;
use super::{types, usage};
use crate::error::Result;
use crate::export::types::OutType;
use crate::inspect::is_base;
use crate::pipeline::Format;

#[derive(clap::Args)]
#[command(
    override_usage = "ptplus quantize [OPTIONS] -o OUT.gguf <ADAPTER | BASE> <TYPE>\n       ptplus quantize [OPTIONS] -o OUT.gguf <ADAPTER> --auto KL=VALUE --base BASE\n       ptplus quantize --list-types",
    after_help = "Rows that are no whole blocks of TYPE (256 elements for the K types, 32 for the others) fall back as in llama.cpp; biases and normalisers stay F32. With --base the output is also run beside the source. A base model also takes llama.cpp's mixes (Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M), and every type means what it means to llama-quantize (docs/FORMAT.md).\n\nExamples:\n  ptplus quantize adapter/ -o adapter-q8_0.gguf q8_0 --base model/\n  ptplus quantize adapter.gguf -o small.gguf q4_0 \\\n      --tensor-type 'blk\\.0\\.=q8_0' --max-error relative=0.1\n  ptplus quantize adapter/ -o small.gguf --auto KL=1e-3 --base model/\n  ptplus quantize model/ -o model-q4_k_m.gguf q4_k_m\n  ptplus quantize --list-types"
)]
pub struct Arguments {
    /// Type of the memories and feature maps (of a base model: of the matrices), by name or by ggml's number
    #[arg(value_name = "TYPE", index = 2, required_unless_present_any = ["list_types", "auto"], conflicts_with = "auto", value_parser = types::names())]
    dtype: Option<String>,
    /// Where llama-quantize takes its output from.
    #[arg(index = 3, hide = true)]
    extra: Option<PathBuf>,
    #[command(flatten)]
    pub job: Job,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    if a.job.types.list_types {
        return types::list(ui);
    }
    if let Some(extra) = &a.extra {
        let message = format!("expected -o {} for the output, found it without", extra.display());
        return Err(usage("--output", message));
    }
    if let (Some(adapter), Some(dtype)) = (&a.job.adapter, &a.dtype)
        && !adapter.exists()
        && adapter.to_str().is_some_and(|name| OutType::parse(name).is_ok())
        && Path::new(dtype).exists()
    {
        let message = format!("expected a type after the adapter, found {dtype:?} after {}", adapter.display());
        return Err(usage("TYPE", message).hints([format!("{} {dtype}: swapped?", adapter.display())]));
    }
    if let Some(output) = a.job.output.as_ref().filter(|o| o.extension().is_none_or(|e| e != "gguf")) {
        return Err(usage("--output", format!("expected a name that ends in .gguf, found {output:?}")));
    }
    let types = a.job.types.rules("TYPE", a.dtype.as_deref().unwrap_or("keep"))?;
    // Refused later too, but there the type is known as --outtype only.
    if let (OutType::Mix(mix), Some(adapter)) = (types.default, &a.job.adapter)
        && !is_base(adapter)?
    {
        return Err(usage("TYPE", format!("expected a type, since mixes are for base models, found {mix}")));
    }
    convert::run_job(&a.job, types, Format::Gguf, &[], ui)
}
