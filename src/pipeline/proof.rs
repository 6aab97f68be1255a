//! What proves an output before it gets its name: bounds on what its types cost, and the probe.

use std::path::Path;

use super::{Convert, Converted, OutputError, read_adapter};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::export::{Plan, Written};
use crate::runner::Device;
use crate::transform::loss::{Bound, Loss, Metric};
use crate::validate::Validated;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, FailedReport, Prompts, Reference};

/// A verification of the output, before anyone can see it.
#[derive(Clone)]
pub struct Proof<'a> {
    /// PyTorch's answer.
    pub probe: &'a Probe,
    /// Where it was read from.
    pub path: &'a Path,
    /// How to verify.
    pub options: verify::Options<'a>,
}

/// How to run the output beside the source.
#[derive(Clone)]
pub struct Measure<'a> {
    /// What both are asked.
    pub prompts: Prompts,
    /// Where to compute.
    pub device: &'a Device,
    /// Called with work done and work in all.
    pub progress: &'a dyn Fn(usize, usize),
}

/// Puts what the types cost into the report, and refuses what is beyond a bound.
pub(super) fn hold_to_bounds(
    job: &Convert<'_>,
    report: &mut Converted,
    source: &Validated,
    plan: &Plan,
    written: &Written,
    staged: &Path,
) -> Result<()> {
    report.add_losses(written, job.max_error)?;
    let kl_bounds: Vec<&Bound> = job.max_error.iter().filter(|b| b.metric == Metric::Kl).collect();
    // Casts between floats are left to the probe and to `verify`; blocks are what needs a look at the outputs.
    let is_quantized =
        plan.tensors.iter().zip(&written.losses).any(|(t, l)| t.dtype.is_quantized() && *l != Loss::NONE);
    let (Some(measure), Some(base)) = (&job.measure, job.base) else { return Ok(()) };
    if !is_quantized && kl_bounds.is_empty() {
        return Ok(());
    }
    let output = read_adapter(staged, Some(base))?;
    let mut found = run_beside_source(&output, source, base, measure)?;
    for bound in kl_bounds {
        let mean_kl = found.metrics.mean_kl;
        if let Err(e) = bound.check_value("mean KL", mean_kl) {
            (found.pass, found.limits.mean_kl) = (false, Some(bound.limit));
            return Err(e.file(job.output).caused_by(FailedReport(found)));
        }
    }
    let verify::Report { metrics, effect, found_effect, layers, positions, .. } = found;
    report.output_error = Some(OutputError { metrics, effect, found_effect, layers, positions });
    Ok(())
}

/// Figures without limits.
fn run_beside_source(
    output: &Validated,
    source: &Validated,
    base: &BaseModel,
    measure: &Measure<'_>,
) -> Result<verify::Report> {
    let options =
        verify::Options { device: measure.device, tolerance: Some(Tolerance::none()), progress: measure.progress };
    let reference = Reference::Adapter { adapter: source, base: None, prompts: &measure.prompts };
    verify::verify(output, base, reference, &options)
}

/// The proof of the staged output, if one is asked for.
pub(super) fn prove(job: &Convert<'_>, source: &Validated, staged: &Path) -> Result<Option<verify::Report>> {
    job.prove.as_ref().map(|proof| prove_file(staged, job.base, source, proof)).transpose()
}

/// Reads the adapter at `path` as anybody would and holds it against the probe.
///
/// # Errors
///
/// [`Code::NumbersDiffer`], [`Code::NoEffect`]; those of reading and running.
pub(crate) fn prove_file(
    path: &Path,
    base: Option<&BaseModel>,
    source: &Validated,
    proof: &Proof<'_>,
) -> Result<verify::Report> {
    let base = base.ok_or_else(|| Error::new(Code::Usage, "expected --base beside --probe").field("--probe"))?;
    let adapter = read_adapter(path, Some(base))?;
    // What the source's type has lost, writing a finer one does not bring back.
    let tolerance = Some(verify::tolerance(&proof.options, &[&adapter, source])?);
    let options = verify::Options { tolerance, ..proof.options.clone() };
    verify::verify(&adapter, base, Reference::Probe(proof.probe), &options)?
        .passed("nothing was written", &source.origin.path)
}
