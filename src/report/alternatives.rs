//! The same adapter in every type: what `quantize` would have made of it.

use std::path::Path;

use crate::base::BaseModel;
use crate::error::{Error, Result};
use crate::export::types::writable;
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::pipeline::{self, Convert, Converted, Format, Measure, OutType, TypeRules};
use crate::tensor::DType;
use crate::transform::cast::Overflow;
use crate::transform::loss::{Bound, Metric};
use crate::validate::BaseMismatch;

/// A type that a conversion could have had, measured.
pub struct Alternative {
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
/// conversion does; with a base that runs it as `measure` says, which is told the work on all types together. Types that
/// come to the same after falling back are one. The second list says what could not be measured, and why.
///
/// # Errors
///
/// [`Code::Io`](crate::error::Code::Io) where there is no temporary folder.
pub fn alternatives(
    adapter: &Path,
    reading: &Options,
    base: Option<&BaseModel>,
    architecture: Option<&str>,
    measure: &Measure<'_>,
) -> Result<(Vec<Alternative>, Vec<String>)> {
    let folder =
        tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "cannot make a temporary folder", e))?;
    // A bound that nothing exceeds, so that the logits are measured for floats too.
    let bounds: Vec<Bound> = base.iter().map(|_| Bound { metric: Metric::Kl, limit: f64::INFINITY }).collect();
    let convert = |dtype: DType, dry_run: bool, progress: &dyn Fn(usize, usize)| {
        pipeline::convert(&Convert {
            adapter,
            reading,
            base,
            architecture,
            output: &folder.path().join(format!("{dtype}.gguf")),
            format: Format::Gguf,
            types: &TypeRules::from(OutType::As(dtype)),
            max_error: &bounds,
            auto_kl: None,
            measure: base.map(|_| Measure { prompts: measure.prompts.clone(), device: measure.device, progress }),
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
    let mut planned: Vec<(DType, Vec<String>)> = Vec::new();
    let (mut out, mut failed) = (Vec::new(), Vec::new());
    for dtype in writable().filter(|d| *d != DType::F32) {
        match convert(dtype, true, &|_, _| {}) {
            Ok(plan) => {
                let types: Vec<String> = plan.tensors.into_iter().map(|t| t.dtype).collect();
                if planned.iter().all(|(_, others)| *others != types) {
                    planned.push((dtype, types));
                }
            }
            Err(e) => failed.push(format!("{dtype} was not measured: {}", e.message())),
        }
    }
    let n = planned.len();
    for (i, (dtype, _)) in planned.into_iter().enumerate() {
        let progress = |done: usize, total: usize| (measure.progress)(i * total + done, n * total);
        match convert(dtype, false, &progress) {
            Ok(done) => out.push(Alternative::of(&done)),
            Err(e) => failed.push(format!("{dtype} was not measured: {}", e.message())),
        }
        if base.is_none() {
            (measure.progress)(i + 1, n);
        }
    }
    Ok((out, failed))
}

impl Alternative {
    /// What a conversion wrote.
    pub(super) fn of(done: &Converted) -> Alternative {
        let largest = done.tensors.iter().max_by_key(|t| t.len_bytes);
        let measured = done.output_error.as_ref().map(|e| e.metrics.mean_kl);
        Alternative {
            name: largest.map_or(String::new(), |t| t.dtype.clone()),
            len_bytes: done.len_bytes,
            relative: done.tensors.iter().filter_map(|t| Some(t.loss?.relative)).fold(0.0, f64::max),
            mean_kl: measured.or(done.auto.as_ref().map(|d| d.kl)),
        }
    }
}
