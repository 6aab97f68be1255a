//! Does the adapter still compute what it should? Data in, figures out; the caller prints them.
//!
//! Three references exist: a probe (what PyTorch computed), another adapter file (before and after a conversion), and
//! another device.
//! Either way the plain base runs beside the adapter, because the limits are relative to the adapter's effect and an
//! adapter that changes nothing is a failure.

#[cfg(feature = "llama-cpp")]
pub mod engines;
mod merged;
mod outcome;
pub mod probe;
mod prompts;
mod sinks;
pub mod stats;
pub mod tensors;
pub mod tolerance;

use crate::adapter::Adapter;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::runner::{self, Device, Lane, StreamOptions};
use crate::tensor::DType;
use crate::tensor::coarsest;
use crate::validate::Validated;
pub use merged::{verify_merged, verify_merged_beside_parts};
pub use outcome::{FailedReport, Failure, LayerReport, Report};
use probe::Probe;
pub use prompts::Prompts;
use sinks::{AgainstProbe, Collect, SideBySide};
use stats::Comparison;
use tolerance::Tolerance;

/// What to compare the adapter with.
pub enum Reference<'a> {
    /// PyTorch's answer.
    Probe(&'a Probe),
    /// Another adapter, on the same base or on another form of it.
    Adapter {
        /// The reference.
        adapter: &'a Validated,
        /// Its base, if it is not the same one.
        base: Option<&'a BaseModel>,
        /// What both are asked.
        prompts: &'a Prompts,
    },
    /// The same adapter and base on another device.
    Device {
        /// Where the reference is computed.
        device: &'a Device,
        /// What both are asked.
        prompts: &'a Prompts,
    },
}

/// How to verify.
#[derive(Clone)]
pub struct Options<'a> {
    /// Where to compute.
    pub device: &'a Device,
    /// The limits; `None` takes those of the coarsest type involved.
    pub tolerance: Option<Tolerance>,
    /// Called with work done and work in all.
    pub progress: &'a dyn Fn(usize, usize),
}

/// Runs the adapter on its base and compares.
///
/// # Errors
///
/// [`Code::NothingCompared`] where there is no position to compare or no tolerance is established;
/// [`Code::ProbeMismatch`]; those of the runner. Numbers that differ are no error: they are in the report.
pub fn verify(
    adapter: &Validated,
    base: &BaseModel,
    reference: Reference<'_>,
    options: &Options<'_>,
) -> Result<Report> {
    match reference {
        Reference::Probe(probe) => against_probe(adapter, base, probe, options),
        Reference::Adapter { adapter: other, base: other_base, prompts } => {
            let reference = ReferenceRun { adapter: other, base: other_base, device: None };
            against_adapter(adapter, base, &reference, prompts, options)
        }
        Reference::Device { device, prompts } => {
            let reference = ReferenceRun { adapter, base: None, device: Some(device) };
            against_adapter(adapter, base, &reference, prompts, options)
        }
    }
}

fn against_probe(adapter: &Validated, base: &BaseModel, probe: &Probe, options: &Options<'_>) -> Result<Report> {
    probe.check_fits(base)?;
    let tolerance = tolerance(options, &[adapter])?;
    let lanes = [Lane::default(), lane(adapter)];
    let mut sink = AgainstProbe::new(probe, options.progress);
    runner::stream(base, &probe.input_ids, &lanes, &stream_options(options, Some(&probe.positions)), &mut sink)?;
    let found_effect = sink.found_effect;
    let reference_effect = sink.reference_effect.unwrap_or(found_effect);
    let of_base = BaseFigures { size: sink.base_size, half_precision: probe.half_precision() };
    let mut report = report(sink.adapter, sink.base, of_base, sink.layers, reference_effect, found_effect, tolerance)?;
    want_layers_of_probe(&mut report, adapter, probe);
    Ok(report)
}

/// A layer for which the probe has a term and the adapter none is a failure.
fn want_layers_of_probe(report: &mut Report, adapter: &Validated, probe: &Probe) {
    let not_adapted: Vec<usize> =
        probe.term_layers().filter(|i| !adapter.adapter().layer_numbers().any(|l| l == *i)).collect();
    if !not_adapted.is_empty() {
        report.fail(Code::NumbersDiffer, format!("adapted layers: expected those of the probe, which has a term for {not_adapted:?}; the adapter has none there"));
    }
}

/// Runs a sum of adapters beside its parts, each with its weight, and compares.
///
/// # Errors
///
/// As [`verify`].
pub fn verify_sum(
    sum: &Validated,
    parts: &[(&Adapter, f64)],
    base: &BaseModel,
    prompts: &Prompts,
    options: &Options<'_>,
) -> Result<Report> {
    let tolerance = tolerance(options, &[sum])?;
    let ids = prompts.ids(base.config.vocab_size)?;
    let parts = Lane { adapters: parts.iter().map(|(a, s)| ((*a).into(), *s)).collect() };
    let mut sink = SideBySide::new(options.progress);
    runner::stream(base, &ids, &[Lane::default(), parts, lane(sum)], &stream_options(options, None), &mut sink)?;
    let of_base = BaseFigures { size: sink.base_size, half_precision: None };
    report(sink.adapter, sink.base, of_base, sink.layers, sink.reference_effect, sink.found_effect, tolerance)
}

/// What the adapter is compared with; what is `None` is the same on both sides.
struct ReferenceRun<'a> {
    adapter: &'a Validated,
    base: Option<&'a BaseModel>,
    device: Option<&'a Device>,
}

fn against_adapter(
    adapter: &Validated,
    base: &BaseModel,
    reference: &ReferenceRun<'_>,
    prompts: &Prompts,
    options: &Options<'_>,
) -> Result<Report> {
    let other = reference.adapter;
    let tolerance = tolerance(options, &[adapter, other])?;
    let ids = prompts.ids(base.config.vocab_size)?;
    let stream = stream_options(options, None);
    let sink = match (reference.base, reference.device) {
        (None, None) => {
            let lanes = [Lane::default(), lane(other), lane(adapter)];
            let mut sink = SideBySide::new(options.progress);
            runner::stream(base, &ids, &lanes, &stream, &mut sink)?;
            sink
        }
        (other_base, device) => {
            let other_base = other_base.unwrap_or(base);
            if other_base.config.vocab_size != base.config.vocab_size {
                return Err(Error::new(
                    Code::AdapterMismatch,
                    format!(
                        "expected a vocabulary of {}, as --base has, found {}",
                        base.config.vocab_size, other_base.config.vocab_size
                    ),
                )
                .field("--against-base"));
            }
            let mut collected = Collect::new(options.progress);
            let there = StreamOptions { device: device.unwrap_or(options.device).clone(), positions: None };
            runner::stream(other_base, &ids, &[Lane::default(), lane(other)], &there, &mut collected)?;
            let mut sink = SideBySide::with_reference(collected, options.progress);
            runner::stream(base, &ids, &[Lane::default(), lane(adapter)], &stream, &mut sink)?;
            sink
        }
    };
    let of_base = BaseFigures { size: sink.base_size, half_precision: None };
    report(sink.adapter, sink.base, of_base, sink.layers, sink.reference_effect, sink.found_effect, tolerance)
}

fn lane(adapter: &Validated) -> Lane<'_> {
    Lane::of(adapter.adapter())
}

fn stream_options(options: &Options<'_>, positions: Option<&[usize]>) -> StreamOptions {
    StreamOptions { device: options.device.clone(), positions: positions.map(<[usize]>::to_vec) }
}

/// The limits that are stated, or else those of the coarsest type that any of the adapters has ever been in. Those of a
/// type are the adapters' kind's.
///
/// # Errors
///
/// [`Code::NothingCompared`] where none are established for it.
pub(crate) fn tolerance(options: &Options<'_>, adapters: &[&Validated]) -> Result<Tolerance> {
    let tolerance = match &options.tolerance {
        Some(stated) => stated.clone(),
        None => Tolerance::for_dtype(coarsest(adapters.iter().map(|a| a.coarsest_dtype())))?,
    };
    let kinds = adapters.iter().map(|a| a.adapter().kind());
    Ok(kinds.fold(tolerance, Tolerance::of_kind))
}

fn report(
    adapter: Comparison,
    base: Comparison,
    of_base: BaseFigures,
    layers: Vec<LayerReport>,
    reference_effect: f64,
    found_effect: f64,
    tolerance: Tolerance,
) -> Result<Report> {
    let metrics = adapter
        .metrics()
        .ok_or_else(|| Error::new(Code::NothingCompared, "expected positions to compare, found none"))?;
    // An adapter that is right has the reference's effect. Taking the smaller keeps a reference whose plain base is
    // off from widening its own limits.
    let effect = reference_effect.min(found_effect);
    let limits = tolerance.limits(effect);
    let mut report = Report {
        pass: true,
        metrics,
        base_metrics: base.metrics(),
        limits,
        tolerance: tolerance.name().to_owned(),
        effect: reference_effect,
        found_effect,
        worst: adapter.worst(),
        layers,
        positions: adapter.rows().to_vec(),
        failures: Vec::new(),
    };
    let base_differs = match (report.base_metrics, limits.max_abs) {
        (Some(b), Some(limit)) if !within(b.max_abs, limit) => Some(of_base.differs(b.max_abs, limit)),
        _ => None,
    };
    // Before the figures of the adapter, which mean nothing on another base; after them where the limit is to blame.
    let is_arithmetic = report.base_metrics.is_some_and(|b| within(b.max_abs, tolerance::LAYER_FLOOR));
    let (before, after) = if is_arithmetic { (None, base_differs) } else { (base_differs, None) };
    before.into_iter().for_each(|message| report.fail(Code::NumbersDiffer, message));
    for (name, found, limit) in limits.exceeded(&metrics) {
        report.fail(Code::NumbersDiffer, format!("{name}: expected at most {limit:.3e}, found {found:.3e}"));
    }
    after.into_iter().for_each(|message| report.fail(Code::NumbersDiffer, message));
    for l in report.layers.clone() {
        let parts = [("q", l.q_max_abs, l.q_size), ("term", l.term_max_abs, l.term_size)];
        for (part, found, size) in parts {
            let (Some(found), Some(size), Some(relative)) = (found, size, limits.layer_relative) else { continue };
            let limit = tolerance::LAYER_FLOOR + relative * size;
            if !within(found, limit) {
                let message =
                    format!("{part}.{}: expected at most {limit:.3e} of {size:.3e}, found {found:.3e}", l.layer);
                report.fail(Code::NumbersDiffer, message);
            }
        }
    }
    // An effect within the tolerance proves nothing: the base without any adapter would pass as well.
    let floor = limits.max_abs.unwrap_or(0.0);
    if !(found_effect > 0.0 && found_effect > floor) {
        let message = format!(
            "the adapter's effect on the logits: expected more than the limit of {floor:.3e}, found {found_effect:.3e}"
        );
        report.fail(Code::NoEffect, message);
    }
    Ok(report)
}

/// What explains a difference of the plain base.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BaseFigures {
    /// `max |base_logits|` of the reference.
    pub size: f64,
    /// In which half precision the reference was computed, where its numbers show that.
    pub half_precision: Option<DType>,
}

/// Largest difference of logits, as a share of the largest, that half precision in a whole model explains: BF16 has 8
/// significant bits, and the errors of its layers add up.
const ROUNDING_SHARE: f64 = 0.05;

impl BaseFigures {
    /// Says that the base alone is `found` away from the reference, where `limit` is allowed, and what may be the cause.
    pub fn differs(&self, found: f64, limit: f64) -> String {
        const AGAIN: &str = "compute the probe anew with the model in float32 (`model.float()`)";
        let cause = match self.half_precision {
            _ if found <= tolerance::LAYER_FLOOR => {
                "sums in another order explain a difference of this size: the limit is below it".to_owned()
            }
            Some(t) if found <= ROUNDING_SHARE * self.size => format!(
                "the probe was computed in {t}, as all of its logits are {t} numbers, and rounding explains a difference of this size: {AGAIN}"
            ),
            Some(t) => {
                format!("the probe was computed in {t}, and this may not be the reference's base: {AGAIN} to tell")
            }
            None if found <= ROUNDING_SHARE * self.size => format!(
                "rounding explains a difference of this size, where the reference was computed in BF16 or F16 or one of the two bases is stored in fewer bits ({AGAIN}); it may also be another base, such as one that was trained further"
            ),
            None => "this is not the reference's base".to_owned(),
        };
        format!(
            "the base alone, max_abs: expected at most {limit:.3e}, found {found:.3e} (largest logit {:.3e}): {cause}",
            self.size
        )
    }
}

/// NaN is within no limit.
fn within(found: f64, limit: f64) -> bool {
    found <= limit
}
