//! The flow for a weighted sum: read, add up, prove against the parts side by side, write.

use std::path::PathBuf;

use serde::Serialize;

use super::{Convert, Converted, check_place, convert_read, read_adapter};
use crate::adapter::Adapter;
use crate::base::BaseModel;
use crate::base::fingerprint::Depth;
use crate::combine::combine;
use crate::error::Result;
use crate::runner::Device;
use crate::validate::{self, Validated};
use crate::verify::{self, Prompts, Report, verify_sum};

/// A weighted sum to write.
pub struct Combine<'a> {
    /// The adapters, each with its weight.
    pub parts: &'a [(PathBuf, f64)],
    /// Where and how to write; its `adapter` names the first part in messages.
    pub output: Convert<'a>,
    /// With a base: where the sum is run beside its parts.
    pub device: &'a Device,
}

/// What came of a sum.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Combined {
    /// What was written.
    #[serde(flatten)]
    pub output: Converted,
    /// The sum against its parts side by side, with a base.
    pub beside_parts: Option<Report>,
}

/// Adds adapters up and writes the sum.
///
/// # Errors
///
/// Those of reading, of [`combine`] and of writing; [`Code::BaseDiffers`](crate::error::Code::BaseDiffers); [`Code::NumbersDiffer`](crate::error::Code::NumbersDiffer) where the sum does not compute
/// what its parts do, [`Code::NoEffect`](crate::error::Code::NoEffect) where that is nothing, with nothing left behind.
pub fn combine_adapters(job: &Combine<'_>) -> Result<Combined> {
    check_place(&job.output)?;
    let base = job.output.base;
    let read: Vec<(Validated, f64)> = job
        .parts
        .iter()
        .map(|(path, weight)| {
            let adapter = read_adapter(path, base)?;
            if let Some(base) = base {
                adapter.confirm_base(base, Depth::Weights, job.output.base_mismatch)?;
            }
            Ok((adapter, *weight))
        })
        .collect::<Result<_>>()?;
    let parts: Vec<(&Adapter, f64)> = read.iter().map(|(a, s)| (a.adapter(), *s)).collect();
    let sum = combine(&parts)?;
    let mut sum = validate::check_in_memory(sum, base).map_err(|r| r.into_error().file(job.output.adapter))?;
    sum.origin.path = job.output.adapter.to_owned();
    sum.origin.files = read.iter().flat_map(|(a, _)| a.origin.files.iter().cloned()).collect();
    // The source of a sum is what its parts' sources are.
    let line = |(a, s): &(Validated, f64)| format!("{s} {}\n", a.origin.config_digest_text);
    sum.origin.config_digest_text = read.iter().map(line).collect();
    sum.origin.gguf_architecture = read.iter().find_map(|(a, _)| a.origin.gguf_architecture.clone());
    let beside_parts = base.map(|base| prove(job, &sum, &parts, base)).transpose()?;
    let output = convert_read(&job.output, sum, None)?;
    Ok(Combined { output, beside_parts })
}

fn prove(job: &Combine<'_>, sum: &Validated, parts: &[(&Adapter, f64)], base: &BaseModel) -> Result<Report> {
    let tolerance = Some(verify::tolerance::Tolerance::for_dtype(crate::tensor::DType::F32)?);
    let progress = |_: usize, _: usize| {};
    let options = verify::Options { device: job.device, tolerance, progress: &progress };
    verify_sum(sum, parts, base, &Prompts::DEFAULT, &options)?.passed("nothing was written", job.output.adapter)
}
