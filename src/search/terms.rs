//! The probe's `term.{i}` as evidence: each is computed from the query that the probe recorded, so no model runs.

use rayon::prelude::*;

use super::scales::{Point, Scales, Sums};
use super::{Evidence, FIRST_POSITIONS, Search};
use crate::adapter::plus::QueryTap;
use crate::error::{Code, Error, Result};
use crate::import::Candidate;
use crate::runner::{self, phi};
use crate::tensor::DType;
use crate::verify::tolerance::Tolerance;

/// Step of `ln query` for a derivative: F32 has seven digits, and half of them are left.
const STEP: f64 = 2e-3;

/// What the probe holds of some layers.
pub(super) struct Terms<'a> {
    search: &'a Search<'a>,
    layers: Vec<Layer>,
}

/// What the probe holds of one layer.
#[derive(Clone)]
struct Layer {
    layer: usize,
    shape: [usize; 4],
    /// After and before RoPE.
    queries: [Vec<f32>; 2],
    term: Vec<f32>,
    /// Largest difference that rounding explains.
    limit: f64,
}

impl<'a> Terms<'a> {
    /// `None` where the probe has no layer with both query and term.
    pub fn of(search: &'a Search<'a>, tolerance: &Tolerance) -> Result<Option<Terms<'a>>> {
        let mut layers = Vec::new();
        let candidates = search.candidates;
        let adapted: Vec<usize> =
            candidates.list.first().map_or(Vec::new(), |c| candidates.layers(c).keys().copied().collect());
        for layer in adapted {
            let (Some(q), Some(term)) = (search.probe.q(layer), search.probe.term(layer)) else { continue };
            let c = &search.base.config;
            let (batch, t) = (search.probe.input_ids.len(), search.probe.input_ids[0].len());
            let shape = [batch, c.n_heads, t, c.head_dim];
            let before = runner::before_rope(search.base, layer, &q, shape)?;
            let size = term.iter().fold(0.0, |m, v| f64::max(m, f64::from(v.abs())));
            let limit = size * term_share(tolerance);
            // Terms that are 0 everywhere tell nothing.
            if limit > 0.0 {
                layers.push(Layer { layer, shape, queries: [q, before], term, limit });
            }
        }
        Ok((!layers.is_empty()).then_some(Terms { search, layers }))
    }

    /// A few positions of the first layer.
    pub fn first_look(&self) -> Terms<'a> {
        Terms { search: self.search, layers: self.layers.first().map(Layer::first_look).into_iter().collect() }
    }

    /// Each layer by itself.
    pub fn by_layer(&self) -> impl Iterator<Item = (usize, Terms<'a>)> {
        self.layers.iter().map(|l| (l.layer, Terms { search: self.search, layers: vec![l.clone()] }))
    }

    fn sums_of(&self, p: &Point) -> Result<Sums> {
        let layers = self.search.candidates.layers(&p.candidate);
        let config = self.search.draft.config_of(&p.candidate.conventions, layers, self.search.base)?;
        let mut sums = Sums::default();
        for e in &self.layers {
            let Some(weights) = layers.get(&e.layer) else { return Ok(Sums::INVALID) };
            let query = &e.queries[usize::from(config.conventions.query_tap == QueryTap::PreRope)];
            let mut term = phi::ScaledTerm::new(query, e.shape, &config, weights, e.layer)?;
            let values = term.at(p.scales.query, 1.0)?;
            let next = if p.by.query_scale { Some(term.at(p.scales.query * STEP.exp(), 1.0)?) } else { None };
            let (memory, unit) = (p.scales.memory, 1.0 / e.limit);
            for (i, (x, reference)) in values.iter().zip(&e.term).enumerate() {
                let x = f64::from(*x);
                let r = (memory * x - f64::from(*reference)) * unit;
                let u = next.as_ref().map_or(0.0, |n| memory * (f64::from(n[i]) - x) / STEP * unit);
                let v = if p.by.memory_scale { x * unit } else { 0.0 };
                sums.add(r, u, v, p.valley);
            }
        }
        Ok(sums.checked())
    }
}

impl Evidence for Terms<'_> {
    fn name(&self) -> &'static str {
        "term"
    }

    /// Of the query scale every power of two that a training code may have, of either sign: a term costs little.
    fn starts(&self, c: &Candidate) -> Vec<Scales> {
        let start = Scales::of(c);
        if !c.unknown.query_scale {
            return vec![start];
        }
        let signs = if self.search.candidates.has_both_signs(c) { vec![start.query] } else { vec![1.0, -1.0] };
        let powers = (-10..=10).map(|k| f64::from(k).exp2());
        signs.iter().flat_map(|s| powers.clone().map(move |q| Scales { query: s * q, ..start })).collect()
    }

    fn followed(&self) -> usize {
        3
    }

    fn rounds(&self) -> &'static [usize] {
        &[30]
    }

    fn sums(&self, points: &[Point]) -> Result<Vec<Sums>> {
        let sums = points.par_iter().map(|p| match self.sums_of(p) {
            // phi . N = 0 is no reading that anybody trained with.
            Err(e) if e.code() == Code::DenominatorZero => Ok(Sums::INVALID),
            other => other,
        });
        sums.collect::<Result<Vec<Sums>, Error>>()
    }
}

impl Layer {
    /// The first batch row and its positions from the last one back, few of them: late positions are rotated most.
    fn first_look(&self) -> Layer {
        let [_, h, t, d] = self.shape;
        let d_v = self.term.len() / (self.shape[0] * h * t).max(1);
        let n = t.min(FIRST_POSITIONS);
        let cut = |x: &[f32], len: usize| -> Vec<f32> {
            (0..h).flat_map(|head| x[(head * t + t - n) * len..(head + 1) * t * len].iter().copied()).collect()
        };
        Layer {
            layer: self.layer,
            shape: [1, h, n, d],
            queries: [cut(&self.queries[0], d), cut(&self.queries[1], d)],
            term: cut(&self.term, d_v),
            limit: self.limit,
        }
    }
}

/// Largest difference of a term that rounding explains, as a share of the layer's largest term. The query is the
/// probe's own, so one matrix product's rounding is all there is, and that of the stored weights: for F16 and BF16 the
/// factors of [`Tolerance`], for F32 what sums in another order cost (`verify` through the whole model: at most 9e-7 on the fixtures).
pub(super) fn term_share(tolerance: &Tolerance) -> f64 {
    match DType::parse(tolerance.name()) {
        Some(DType::F16) => 1e-3,
        Some(DType::BF16) => 8e-3,
        _ => 3e-5,
    }
}
