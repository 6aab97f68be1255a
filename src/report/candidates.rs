//! The same adapter in every type: what `quantize` would have made of it.

use std::path::Path;

use crate::base::BaseModel;
use crate::error::{Error, Result};
use crate::export::types::writable;
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::pipeline::{self, Convert, Format, Measure, OutType, TypeRules};
use crate::runner::Device;
use crate::tensor::DType;
use crate::transform::cast::Overflow;
use crate::transform::loss::{Bound, Metric};
use crate::validate::BaseMismatch;
use crate::verify::Prompts;

/// A type that a conversion could have had, measured.
pub struct Candidate {
    /// The type that most of the tensors got.
    pub name: String,
    /// Bytes of the whole file.
    pub len_bytes: u64,
    /// The largest relative error of a tensor.
    pub relative: f64,
    /// Mean KL divergence of the logits from the source's, where there is a base.
    pub mean_kl: Option<f64>,
}

/// Converts `adapter` to every writable type smaller than F32, in a temporary folder, and measures each the way a
/// conversion does, on `device` if there is a base. Types that come to the same after falling back are one. The second list says what could not be
/// measured, and why.
///
/// Errors: [`Code::Io`](crate::error::Code::Io) where there is no temporary folder.
pub fn candidates(
    adapter: &Path,
    reading: &Options,
    base: Option<&BaseModel>,
    architecture: Option<&str>,
    device: Option<&Device>,
) -> Result<(Vec<Candidate>, Vec<String>)> {
    let measure = || device.map(|device| Measure { prompts: Prompts::DEFAULT, device, progress: &|_, _| {} });
    let folder =
        tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "cannot make a temporary folder", e))?;
    // A bound that nothing exceeds, so that the logits are measured for floats too.
    let bounds: Vec<Bound> = measure().iter().map(|_| Bound { metric: Metric::Kl, limit: f64::INFINITY }).collect();
    let mut seen: Vec<Vec<String>> = Vec::new();
    let (mut out, mut failed) = (Vec::new(), Vec::new());
    for dtype in writable().filter(|d| *d != DType::F32) {
        let types = TypeRules::from(OutType::As(dtype));
        let convert = |dry_run| {
            pipeline::convert(&Convert {
                adapter,
                reading,
                base,
                architecture,
                output: &folder.path().join(format!("{dtype}.gguf")),
                format: Format::Gguf,
                types: &types,
                max_error: &bounds,
                auto_kl: None,
                measure: measure(),
                overflow: Overflow::Error,
                // The conversion that this is about has decided.
                base_mismatch: BaseMismatch::Ignore,
                command: None,
                overwrite: Overwrite::Never,
                dry_run,
                prove: None,
                progress: &|_, _| {},
            })
        };
        let plan = match convert(true) {
            Ok(plan) => plan,
            Err(e) => {
                failed.push(format!("{dtype} was not measured: {}", e.message()));
                continue;
            }
        };
        let got: Vec<String> = plan.tensors.iter().map(|t| t.dtype.clone()).collect();
        if seen.contains(&got) {
            continue;
        }
        seen.push(got);
        match convert(false) {
            Ok(done) => out.push(Candidate {
                name: plan.tensors.iter().max_by_key(|t| t.len_bytes).map_or(String::new(), |t| t.dtype.clone()),
                len_bytes: done.len_bytes,
                relative: done.tensors.iter().filter_map(|t| Some(t.loss?.relative)).fold(0.0, f64::max),
                mean_kl: done.output_error.map(|e| e.metrics.mean_kl),
            }),
            Err(e) => failed.push(format!("{dtype} was not measured: {}", e.message())),
        }
    }
    Ok((out, failed))
}
