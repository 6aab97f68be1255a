//! `--auto KL=X`: per tensor the smallest type that keeps the whole output within a bound.
//!
//! ```text
//!   each tensor alone, in a coarse type    -> its share of the KL divergence, measured by running it
//!   each tensor in every type              -> its relative error r; the divergence of the whole grows with r^2
//!   steps to the next smaller type, those that cost least divergence for the bytes they save first
//!   bisection over how many of these steps are taken, each trial measured on the whole
//! ```
//!
//! The model orders the steps; what is accepted was measured, never predicted.

use rayon::prelude::*;
use serde::Serialize;

use crate::adapter::{Adapter, Role, RowOrder};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::export::OutputTensor;
use crate::quant;
use crate::runner::{self, Device, Lane, Sink, StreamOptions};
use crate::tensor::{DType, LazyTensor};
use crate::transform::loss::LossSum;
use crate::transform::row_order;
use crate::verify::stats::kl_divergence;

/// How the types were found.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// The bound on the mean KL divergence.
    pub kl_bound: f64,
    /// The mean KL divergence of the accepted types, measured.
    pub kl: f64,
    /// Steps to a smaller type that were accepted, and that there are.
    pub n_steps: usize,
    /// See `n_steps`.
    pub n_steps_possible: usize,
    /// Whole adapters that were run.
    pub n_trials: usize,
    /// Each tensor.
    pub tensors: Vec<DecidedTensor>,
}

/// What was found out about one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct DecidedTensor {
    /// Name in the output.
    pub name: String,
    /// The type it gets.
    pub dtype: String,
    /// Relative error in that type.
    pub relative_error: f64,
    /// Mean KL divergence with this tensor alone in its coarsest type.
    pub kl_alone: f64,
}

/// Adapters that run side by side; more would need more memory for little time.
const LANES: usize = 8;

/// One tensor in one type.
struct Candidate {
    dtype: DType,
    encoded: LazyTensor,
    relative_error: f64,
}

/// One tensor: candidates from the largest type to the smallest, the first being what it has.
struct Ladder<'a> {
    tensor: &'a OutputTensor,
    name: &'a str,
    candidates: Vec<Candidate>,
    kl_alone: f64,
}

/// Finds the types for `tensors` (a plan that keeps every type), in the row order `order` of the output.
///
/// Errors: [`Code::ErrorBound`] where not even the types that the source has keep within the bound (a NaN does that);
/// those of the runner.
pub fn decide(
    adapter: &Adapter,
    order: RowOrder,
    tensors: &[(OutputTensor, String)],
    base: &BaseModel,
    input_ids: &[Vec<u32>],
    device: &Device,
    kl_bound: f64,
) -> Result<(Vec<(String, DType)>, Decision)> {
    let mut ladders: Vec<Ladder> = tensors
        .par_iter()
        .filter(|(t, _)| {
            matches!(t.role, Role::Memory | Role::FeatureWeight) && !t.source.stored_dtype().is_quantized()
        })
        .map(|(tensor, name)| Ladder { tensor, name, candidates: candidates(tensor), kl_alone: 0.0 })
        .collect();
    let trial = |choice: &[usize]| with_types(adapter, order, &ladders, choice);
    let run = |adapters: &[Adapter]| mean_kls(base, adapter, adapters, input_ids, device);

    let alone: Vec<Vec<usize>> = (0..ladders.len())
        .map(|i| ladders.iter().enumerate().map(|(k, l)| if k == i { l.candidates.len() - 1 } else { 0 }).collect())
        .collect();
    let mut kls = Vec::new();
    for group in alone.chunks(LANES) {
        kls.extend(run(&group.iter().map(|c| trial(c)).collect::<Vec<_>>())?);
    }
    let n_alone = kls.len();
    ladders.iter_mut().zip(kls).for_each(|(l, kl)| l.kl_alone = kl);

    let steps = steps(&ladders);
    let choice = |n: usize| {
        let mut choice = vec![0; ladders.len()];
        steps[..n].iter().for_each(|i| choice[*i] += 1);
        choice
    };
    let trial = |n: usize| with_types(adapter, order, &ladders, &choice(n));
    // Between `fits`, which was measured to keep within the bound, and `breaks`, which was not.
    let (mut fits, mut breaks, mut n_trials) = (0, steps.len() + 1, n_alone);
    let mut kl = 0.0; // no step: the source itself
    while breaks - fits > 1 {
        // The divergence is nearly additive, so a few points at once find the place faster than one by one.
        let n = (breaks - fits - 1).min(LANES - 1);
        let points: Vec<usize> = (1..=n).map(|i| fits + i * (breaks - fits) / (n + 1)).collect();
        let found = run(&points.iter().map(|p| trial(*p)).collect::<Vec<_>>())?;
        n_trials += found.len();
        for (point, found) in points.into_iter().zip(found) {
            if found <= kl_bound {
                (fits, kl) = (point, found);
            } else {
                breaks = point;
                break;
            }
        }
    }
    let chosen = choice(fits);
    let types = ladders.iter().zip(&chosen).map(|(l, i)| (l.name.to_owned(), l.candidates[*i].dtype)).collect();
    let decided = ladders.iter().zip(&chosen).map(|(l, i)| DecidedTensor {
        name: l.name.to_owned(),
        dtype: l.candidates[*i].dtype.name().to_owned(),
        relative_error: l.candidates[*i].relative_error,
        kl_alone: l.kl_alone,
    });
    let tensors = decided.collect();
    Ok((types, Decision { kl_bound, kl, n_steps: fits, n_steps_possible: steps.len(), n_trials, tensors }))
}

/// What the tensor has, then every smaller type that fits its rows and its values and that is worth its error: a type
/// that is larger than another and no more exact is left out.
fn candidates(t: &OutputTensor) -> Vec<Candidate> {
    let mut values = vec![0f32; t.source.n_elements()];
    quant::decode(t.source.dtype(), &t.source.to_bytes(), &mut values);
    let row_len = t.source.shape().last().copied().unwrap_or(1);
    let bits = |d: DType| d.block_bytes() * 8 * 64 / d.block_len();
    let mut out = vec![Candidate { dtype: t.dtype, encoded: t.source.clone(), relative_error: 0.0 }];
    let types = [DType::F16, DType::BF16].into_iter().chain(quant::BLOCK_FORMATS.iter().copied());
    for dtype in types.filter(|d| bits(*d) < bits(t.dtype) && row_len.is_multiple_of(d.block_len())) {
        if quant::first_unfit(dtype, &values).is_some() {
            continue;
        }
        let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
        quant::quantize_rows(dtype, &values, row_len, &mut bytes);
        if quant::validate_blocks(dtype, &bytes).is_some() {
            continue;
        }
        let mut decoded = vec![0f32; values.len()];
        quant::decode(dtype, &bytes, &mut decoded);
        let mut sum = LossSum::default();
        sum.add(&values, &decoded);
        let tensor = match dtype.is_quantized() {
            true => LazyTensor::quantized(bytes.into(), dtype, t.source.shape(), quant::decode),
            false => LazyTensor::new(bytes.into(), dtype, t.source.shape()),
        };
        if let Ok(encoded) = tensor {
            out.push(Candidate { dtype, encoded, relative_error: sum.loss().relative });
        }
    }
    out.sort_by(|a, b| bits(b.dtype).cmp(&bits(a.dtype)).then(b.relative_error.total_cmp(&a.relative_error)));
    let mut smallest_error = f64::INFINITY;
    let mut worth: Vec<Candidate> = Vec::new();
    for c in out.into_iter().rev() {
        if c.relative_error < smallest_error {
            smallest_error = c.relative_error;
            worth.push(c);
        }
    }
    worth.reverse();
    worth
}

/// Indices of the ladders, one for each step to the next smaller type, cheapest first; the steps of one tensor in order.
fn steps(ladders: &[Ladder]) -> Vec<usize> {
    let cost = |l: &Ladder, at: usize| {
        let (from, to) = (&l.candidates[at], &l.candidates[at + 1]);
        let coarsest = l.candidates.last().map_or(1.0, |c| c.relative_error);
        let kl = |c: &Candidate| l.kl_alone * (c.relative_error / coarsest).powi(2);
        let bytes = |c: &Candidate| l.tensor.source.n_elements() / c.dtype.block_len() * c.dtype.block_bytes();
        (kl(to) - kl(from)) / (bytes(from) - bytes(to)) as f64
    };
    let mut at = vec![0; ladders.len()];
    let mut out = Vec::new();
    loop {
        let next = (0..ladders.len())
            .filter(|i| at[*i] + 1 < ladders[*i].candidates.len())
            .min_by(|a, b| cost(&ladders[*a], at[*a]).total_cmp(&cost(&ladders[*b], at[*b])));
        let Some(i) = next else { return out };
        at[i] += 1;
        out.push(i);
    }
}

/// The adapter with every ladder's tensor in the type that `choice` names.
fn with_types(adapter: &Adapter, order: RowOrder, ladders: &[Ladder], choice: &[usize]) -> Adapter {
    let mut out = adapter.clone();
    row_order::apply_all(&mut out, order);
    for (l, i) in ladders.iter().zip(choice) {
        let encoded = l.candidates[*i].encoded.clone();
        let layer = out.layers.get_mut(&l.tensor.layer).expect("the plan's layers are the adapter's");
        let slot = layer.get_mut(l.tensor.role).expect("the plan's tensors are the adapter's");
        *slot = if l.tensor.role == Role::Memory { encoded.transpose(1, 2) } else { encoded };
    }
    out.layers.values_mut().for_each(|l| row_order::undo(l, order));
    out
}

/// Mean KL divergence of each adapter's logits from those of `source`.
fn mean_kls(
    base: &BaseModel,
    source: &Adapter,
    adapters: &[Adapter],
    input_ids: &[Vec<u32>],
    device: &Device,
) -> Result<Vec<f64>> {
    struct Kls {
        sums: Vec<f64>,
        n: usize,
    }
    impl Sink for Kls {
        fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
            self.sums.iter_mut().zip(&lanes[1..]).for_each(|(sum, lane)| *sum += kl_divergence(lanes[0], lane));
            self.n += 1;
            Ok(())
        }
    }
    let lanes: Vec<Lane> = std::iter::once(source).chain(adapters).map(|a| Lane { adapters: vec![(a, 1.0)] }).collect();
    let mut sink = Kls { sums: vec![0.0; adapters.len()], n: 0 };
    let options = StreamOptions { positions: None, device: device.clone() };
    runner::stream(base, input_ids, &lanes, &options, &mut sink)?;
    if sink.sums.iter().any(|s| s.is_nan()) {
        return Err(Error::new(Code::ErrorBound, "expected finite logits, found NaN or infinity"));
    }
    Ok(sink.sums.iter().map(|s| s / sink.n as f64).collect())
}
