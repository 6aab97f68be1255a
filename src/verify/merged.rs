//! A base that adapters were merged into, against what PyTorch computed with the adapters beside the base, or what the runner does.

use std::collections::BTreeMap;

use super::probe::Probe;
use super::sinks::AgainstProbe;
use super::stats::{max_abs_difference, worse};
use super::{BaseFigures, Options, Prompts, Report, report, stream_options};
use crate::adapter::Adapter;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::runner::{self, Lane, Sink};
use crate::tensor::coarsest;
use crate::verify::stats::Comparison;
use crate::verify::tolerance::Tolerance;

/// Runs `merged` and the base that it was made from, if that is at hand, and compares both with the probe. Limits that no option
/// states are those of the coarsest type among the merged model's matrices.
///
/// # Errors
///
/// As [`verify`](super::verify()). Without a base, and where the adapters changed the number of embeddings so that the plain base
/// has other logits, the effect is that of the probe: [`Code::NothingCompared`] for one without `base_logits`.
pub fn verify_merged(
    merged: &BaseModel,
    base: Option<&BaseModel>,
    probe: &Probe,
    options: &Options<'_>,
) -> Result<Report> {
    probe.check_fits(merged)?;
    let tolerance = tolerance(merged, options)?;
    let stream = stream_options(options, Some(&probe.positions));
    let mut plain = Rows::new(options.progress);
    let comparable = base.filter(|base| merged.config.vocab_size == base.config.vocab_size);
    if let Some(base) = comparable {
        runner::stream(base, &probe.input_ids, &[Lane::default()], &stream, &mut plain)?;
    } else {
        for batch in 0..probe.input_ids.len() {
            for (p, position) in probe.positions.iter().enumerate() {
                let row = probe.base_logits(batch, p).ok_or_else(|| {
                    let reason = match base {
                        Some(_) => "since the base has another number of tokens than the merged one",
                        None => {
                            "or beside it --base, the model without the adapters, since what they change is to be seen"
                        }
                    };
                    let message = format!("expected base_logits, {reason}, found none");
                    Error::new(Code::NothingCompared, message).file(&probe.path)
                })?;
                plain.rows.insert((batch, *position), vec![row]);
            }
        }
    }
    let mut sink = Beside { inner: AgainstProbe::new(probe, options.progress), plain: &plain };
    runner::stream(merged, &probe.input_ids, &[Lane::default()], &stream, &mut sink)?;
    let sink = sink.inner;
    let of_base = BaseFigures { size: sink.base_size, half_precision: probe.half_precision() };
    let reference_effect = sink.reference_effect.unwrap_or(sink.found_effect);
    // The probe's own rows say nothing about a base.
    let of_plain = if comparable.is_some() { sink.base } else { Comparison::default() };
    let tolerance = tolerance.of_model(plain.size());
    report(sink.adapter, of_plain, of_base, Vec::new(), reference_effect, sink.found_effect, tolerance)
}

/// Runs `merged` beside the base with the adapters that were merged into it, each with its factor, and compares.
///
/// # Errors
///
/// As [`verify`](super::verify()); [`Code::NothingCompared`] where the adapters changed the number of tokens.
pub fn verify_merged_beside_parts(
    merged: &BaseModel,
    base: &BaseModel,
    parts: &[(&Adapter, f64)],
    prompts: &Prompts,
    options: &Options<'_>,
) -> Result<Report> {
    let (found, expected) = (merged.config.vocab_size, base.config.vocab_size);
    if found != expected {
        let message = format!("expected --probe, since the merged model has {found} tokens and its base {expected}");
        return Err(Error::new(Code::NothingCompared, message).file(&base.path));
    }
    let tolerance = tolerance(merged, options)?;
    let ids = prompts.ids(expected)?;
    let stream = stream_options(options, None);
    let parts = Lane { adapters: parts.iter().map(|(a, s)| ((*a).into(), *s)).collect() };
    let (mut reference, mut found) = (Rows::new(options.progress), Rows::new(options.progress));
    runner::stream(base, &ids, &[Lane::default(), parts], &stream, &mut reference)?;
    runner::stream(merged, &ids, &[Lane::default()], &stream, &mut found)?;
    let (mut comparison, mut effects) = (Comparison::default(), [0.0f64; 2]);
    for ((at, of_parts), of_merged) in reference.rows.iter().zip(found.rows.values()) {
        let (plain, of_parts, of_merged) = (&of_parts[0], &of_parts[1], &of_merged[0]);
        comparison.add(at.0, at.1, of_parts, of_merged);
        for (effect, logits) in effects.iter_mut().zip([of_parts, of_merged]) {
            *effect = worse(*effect, max_abs_difference(logits, plain));
        }
    }
    let of_base = BaseFigures { size: reference.size(), half_precision: None };
    let tolerance = tolerance.of_model(reference.size());
    report(comparison, Comparison::default(), of_base, Vec::new(), effects[0], effects[1], tolerance)
}

/// The limits that are stated, or else those of the coarsest type among the merged model's matrices.
fn tolerance(merged: &BaseModel, options: &Options<'_>) -> Result<Tolerance> {
    let matrices = || merged.tensors().filter(|t| t.shape.len() > 1).map(|t| t.dtype);
    options.tolerance.clone().map_or_else(|| Tolerance::for_dtype(coarsest(matrices())), Ok)
}

/// Keeps the logits of all lanes.
struct Rows<'a> {
    rows: BTreeMap<(usize, usize), Vec<Vec<f32>>>,
    progress: &'a dyn Fn(usize, usize),
}

impl<'a> Rows<'a> {
    fn new(progress: &'a dyn Fn(usize, usize)) -> Self {
        Rows { rows: BTreeMap::new(), progress }
    }

    /// `max |logit|` of the first lane.
    fn size(&self) -> f64 {
        self.rows.values().flat_map(|lanes| &lanes[0]).fold(0.0, |m, x| f64::max(m, f64::from(x.abs())))
    }
}

impl Sink for Rows<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        self.rows.insert((batch, position), lanes.iter().map(|lane| lane.to_vec()).collect());
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}

/// Passes on the merged base's logits as the second lane, with the plain base's as the first.
struct Beside<'a, 'b> {
    inner: AgainstProbe<'a>,
    plain: &'a Rows<'b>,
}

impl Sink for Beside<'_, '_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let plain = self.plain.rows.get(&(batch, position)).expect("both runs have the same positions");
        self.inner.logits(batch, position, &[&plain[0], lanes[0]])
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        self.inner.progress(done, total)
    }
}
