//! A base that adapters were merged into, against what PyTorch computed with the adapters beside the base.

use std::collections::BTreeMap;

use super::probe::Probe;
use super::sinks::AgainstProbe;
use super::{BaseFigures, Options, Report, report, stream_options};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::runner::{self, Lane, Sink};
use crate::tensor::dtype::coarsest;
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
    let matrices = || merged.tensors().filter(|t| t.shape.len() > 1).map(|t| t.dtype);
    let tolerance = options.tolerance.clone().map_or_else(|| Tolerance::for_dtype(coarsest(matrices())), Ok)?;
    let stream = stream_options(options, Some(&probe.positions));
    let mut plain = OneLane { rows: BTreeMap::new(), progress: options.progress };
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
                plain.rows.insert((batch, *position), row);
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
    report(sink.adapter, of_plain, of_base, Vec::new(), reference_effect, sink.found_effect, tolerance)
}

/// Keeps the logits of the only lane.
struct OneLane<'a> {
    rows: BTreeMap<(usize, usize), Vec<f32>>,
    progress: &'a dyn Fn(usize, usize),
}

impl Sink for OneLane<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        self.rows.insert((batch, position), lanes[0].to_vec());
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
    plain: &'a OneLane<'b>,
}

impl Sink for Beside<'_, '_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let plain = self.plain.rows.get(&(batch, position)).expect("both runs have the same positions");
        self.inner.logits(batch, position, &[plain, lanes[0]])
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        self.inner.progress(done, total)
    }
}
