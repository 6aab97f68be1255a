//! The probe's logits as evidence: the model runs, all points side by side as rows of one batch.

use super::scales::{Point, Scales, Sums};
use super::{Evidence, FIRST_POSITIONS, Search};
use crate::adapter::Plus;
use crate::error::{Code, Error, Result};
use crate::import::Candidate;
use crate::runner::{self, Lane, Sink};
use crate::verify::probe::Probe;
use crate::verify::stats::max_abs_difference;
use crate::verify::tolerance::Tolerance;

/// Rows (lanes times positions) that run through the model at once; bounds the memory to a few activations each.
const ROWS: usize = 4096;
/// Values of memories that are decoded at once, one layer of every lane: 256 MiB.
const DECODED_VALUES: usize = 1 << 26;
/// Step of `ln query` and of the share of `memory` for a derivative: logits are exact to five digits or so.
const STEP: f64 = 0.02;

/// Some rows and positions of the probe.
pub(super) struct Logits<'a> {
    search: &'a Search<'a>,
    input_ids: Vec<Vec<u32>>,
    positions: Vec<usize>,
    /// Largest difference that rounding explains.
    limit: f64,
}

impl<'a> Logits<'a> {
    /// Everything that the probe has.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for limits that do not bound the largest difference.
    pub fn of(search: &'a Search<'a>, tolerance: &Tolerance) -> Result<Logits<'a>> {
        let limit = tolerance.limits(effect(search)?).max_abs.ok_or_else(|| {
            Error::new(Code::Usage, "expected a limit on max_abs, which the search compares").field("--tolerance")
        })?;
        let probe = search.probe;
        Ok(Logits { search, input_ids: probe.input_ids.clone(), positions: probe.positions.clone(), limit })
    }

    /// A short prefix of the first row.
    pub fn first_look(&self) -> Logits<'a> {
        let (input_ids, positions) = first_look(self.search.probe);
        Logits { input_ids, positions, ..*self }
    }

    /// Evaluates points that run together; `None` where one of them divides by 0.
    fn together(&self, points: &[Point]) -> Result<Option<Vec<Sums>>> {
        let Search { draft, candidates, base, probe, .. } = self.search;
        // The point itself, then a step of each scale that is asked for.
        let mut adapters = Vec::new();
        for p in points {
            let layers = candidates.layers(&p.candidate);
            let mut config = draft.config_of(&p.scales.put_into(&p.candidate).conventions, layers, base)?;
            let at = p.scales;
            let steps = [
                Some(at),
                p.by.query_scale.then_some(Scales { query: at.query * STEP.exp(), ..at }),
                p.by.memory_scale.then_some(Scales { memory: at.memory + memory_step(at), ..at }),
            ];
            for scales in steps.into_iter().flatten() {
                let conventions = &mut config.conventions;
                (conventions.query_scale, conventions.memory_scale) = (scales.query, scales.memory);
                adapters.push(Plus { config: config.clone(), layers: layers.clone() });
            }
        }
        let lanes: Vec<Lane<'_>> = adapters.iter().map(Lane::of).collect();
        let mut sink = Differences { probe, points, unit: 1.0 / self.limit, sums: vec![Sums::default(); points.len()] };
        let options = self.search.stream(&self.positions);
        match runner::stream(base, &self.input_ids, &lanes, &options, &mut sink) {
            Ok(()) => Ok(Some(sink.sums.into_iter().map(Sums::checked).collect())),
            Err(e) if e.code() == Code::DenominatorZero => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Evidence for Logits<'_> {
    fn name(&self) -> &'static str {
        "logits"
    }

    /// Few, since a model runs. With a memory scale of 1/sqrt(D) the effect is small and nearly linear, so that one step
    /// from there finds others, of either sign.
    fn starts(&self, c: &Candidate) -> Vec<Scales> {
        let start = Scales::of(c);
        let root = (self.search.base.config.head_dim as f64).sqrt();
        let of = |unknown: bool, x: f64, starts: &[f64]| match unknown {
            true => starts.iter().map(|s| s * x).collect(),
            false => vec![x],
        };
        let queries = of(c.unknown.query_scale, start.query, &[1.0 / root, 0.5, 1.0, 2.0, root]);
        let memories = of(c.unknown.memory_scale, start.memory, &[1.0 / root, 1.0]);
        queries.iter().flat_map(|&query| memories.iter().map(move |&memory| Scales { query, memory })).collect()
    }

    fn followed(&self) -> usize {
        3
    }

    fn rounds(&self) -> &'static [usize] {
        &[3, 3, 3, 3]
    }

    fn sums(&self, points: &[Point]) -> Result<Vec<Sums>> {
        let rows = self.input_ids.len() * self.input_ids[0].len();
        let candidates = self.search.candidates;
        let values = |p: &Point| -> usize {
            let layers = candidates.layers(&p.candidate).values();
            layers.map(|l| l.tensors().map(|(_, t)| t.n_elements()).sum()).max().unwrap_or(0)
        };
        let most_values = points.iter().map(values).max().unwrap_or(0).max(1);
        const LANES: usize = 3; // of one point, at most
        let size = (ROWS / rows).min(DECODED_VALUES / most_values) / LANES;
        let mut out = Vec::with_capacity(points.len());
        let mut work: Vec<&[Point]> = points.chunks(size.max(1)).rev().collect();
        while let Some(chunk) = work.pop() {
            match (self.together(chunk)?, chunk) {
                (Some(sums), _) => out.extend(sums),
                (None, [_]) => out.push(Sums::INVALID),
                // One of them divides by 0, as no reading does that anybody trained with: halve until it stands alone.
                (None, _) => {
                    let (a, b) = chunk.split_at(chunk.len() / 2);
                    work.extend([b, a]);
                }
            }
        }
        Ok(out)
    }
}

fn memory_step(at: Scales) -> f64 {
    if at.memory == 0.0 { STEP } else { STEP * at.memory }
}

struct Differences<'a> {
    probe: &'a Probe,
    points: &'a [Point],
    unit: f64,
    sums: Vec<Sums>,
}

impl Sink for Differences<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let reference = reference(self.probe, batch, position);
        let mut rest = lanes;
        for (p, sums) in self.points.iter().zip(&mut self.sums) {
            let mut next = |wanted: bool| {
                let (first, others) = rest.split_first().filter(|_| wanted)?;
                rest = others;
                Some(*first)
            };
            let (at, by_query, by_memory) = (next(true), next(p.by.query_scale), next(p.by.memory_scale));
            let at = at.expect("every point has a lane");
            let memory_step = memory_step(p.scales);
            for (i, (x, expected)) in at.iter().zip(&reference).enumerate() {
                let x = f64::from(*x);
                let slope =
                    |lane: Option<&[f32]>, step: f64| lane.map_or(0.0, |l| (f64::from(l[i]) - x) / step * self.unit);
                let r = (x - f64::from(*expected)) * self.unit;
                sums.add(r, slope(by_query, STEP), slope(by_memory, memory_step), p.valley);
            }
        }
        Ok(())
    }
}

/// A short prefix of the probe's first row, and its positions there.
pub(super) fn first_look(probe: &Probe) -> (Vec<Vec<u32>>, Vec<usize>) {
    let positions = probe.positions[..probe.positions.len().min(FIRST_POSITIONS)].to_vec();
    let prefix = positions.last().map_or(1, |p| p + 1);
    (vec![probe.input_ids[0][..prefix].to_vec()], positions)
}

/// `max |logits - base_logits|` of the probe, or of its logits and our base.
pub(super) fn effect(search: &Search<'_>) -> Result<f64> {
    let probe = search.probe;
    let mut sink = Effect { probe, effect: 0.0 };
    let recorded = (0..probe.input_ids.len()).flat_map(|b| (0..probe.positions.len()).map(move |p| (b, p)));
    let mut known = true;
    for (b, p) in recorded {
        match probe.base_logits(b, p) {
            Some(base) => sink.effect = f64::max(sink.effect, max_abs_difference(&probe.logits(b, p), &base)),
            None => known = false,
        }
    }
    if !known {
        let options = search.stream(&probe.positions);
        runner::stream(search.base, &probe.input_ids, &[Lane::default()], &options, &mut sink)?;
    }
    Ok(sink.effect)
}

struct Effect<'a> {
    probe: &'a Probe,
    effect: f64,
}

impl Sink for Effect<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        self.effect = self.effect.max(max_abs_difference(&reference(self.probe, batch, position), lanes[0]));
        Ok(())
    }
}

fn reference(probe: &Probe, batch: usize, position: usize) -> Vec<f32> {
    let p = probe.positions.iter().position(|x| *x == position).expect("only the probe's positions were asked for");
    probe.logits(batch, p)
}
