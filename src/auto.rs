//! `--auto KL=X`: per tensor the smallest type that keeps the whole output within a bound.
//!
//! ```text
//!   each tensor alone, in a coarse type    -> its share of the KL divergence, measured by running it on a few tokens
//!   each tensor in every type              -> its relative error r; the divergence of the whole grows with r^2
//!   steps to the next smaller type, those that cost least divergence for the bytes they save first
//!   bisection over how many of these steps are taken, each trial measured on the whole
//! ```
//!
//! The model orders the steps; what is accepted was measured, never predicted.

use rayon::prelude::*;
use serde::Serialize;

use crate::adapter::plus::PartSpec;
use crate::adapter::{Adapter, Plus, Slot};
use crate::base::{BaseModel, RowOrder};
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
#[non_exhaustive]
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
    /// Mean KL divergence with this tensor alone in its coarsest type, on the first few tokens.
    pub kl_alone: f64,
}

/// Adapters that run side by side; more would need more memory for little time.
const LANES: usize = 8;

/// Tokens on which a tensor is run alone. That only orders the steps, and the shares of the tensors differ by factors.
const ALONE_TOKENS: usize = 16;

/// How adapters are run to see what their types cost.
pub struct Trials<'a> {
    /// What they are compared with.
    pub source: &'a Adapter,
    /// The base to run on.
    pub base: &'a BaseModel,
    /// What is asked.
    pub input_ids: &'a [Vec<u32>],
    /// Where to compute.
    pub device: &'a Device,
    /// Called with work done and work in all; how many trials the search needs is estimated at first.
    pub progress: &'a dyn Fn(usize, usize),
}

/// One tensor in one type.
struct Encoding {
    dtype: DType,
    encoded: LazyTensor,
    relative_error: f64,
}

/// One tensor: candidates from the largest type to the smallest, the first being what it has.
struct Ladder<'a> {
    slot: Slot,
    tensor: &'a OutputTensor,
    name: &'a str,
    candidates: Vec<Encoding>,
    kl_alone: f64,
}

/// Finds the types for `tensors` (a plan that keeps every type), in the row order `order` of the output.
///
/// # Errors
///
/// [`Code::ErrorBound`] where not even the types that the source has keep within the bound (a NaN does that);
/// those of the runner.
pub fn decide(
    trials: &Trials<'_>,
    order: RowOrder,
    tensors: &[(OutputTensor, String)],
    kl_bound: f64,
) -> Result<(Vec<(String, DType)>, Decision)> {
    let Adapter::Plus(adapter) = trials.source else {
        let message =
            "expected a Prefix-Tuning+ adapter: types of other kinds are not searched for; name them with --outtype";
        return Err(Error::new(Code::ConfigUnsupported, message).field("--auto"));
    };
    let slots: Vec<Slot> = adapter.tensors().map(|(slot, _)| slot).collect();
    assert_eq!(slots.len(), tensors.len(), "the plan is of this adapter");
    let mut ladders: Vec<Ladder> = tensors
        .par_iter()
        .zip(slots)
        .filter(|((t, _), slot)| !slot.part.stays_f32() && !t.source.stored_dtype().is_quantized())
        .map(|((tensor, name), slot)| Ladder { slot, tensor, name, candidates: candidates(tensor), kl_alone: 0.0 })
        .collect();
    let trial = |choice: &[usize]| with_types(adapter, order, &ladders, choice);
    let alone = |i: usize| -> Vec<usize> {
        ladders.iter().enumerate().map(|(k, l)| if k == i { l.candidates.len() - 1 } else { 0 }).collect()
    };
    let each: Vec<usize> = (0..ladders.len()).collect();
    let n_possible: usize = ladders.iter().map(|l| l.candidates.len() - 1).sum();
    let mut rounds = Rounds::new(trials, each.len().div_ceil(LANES), n_possible);
    let few_tokens = [trials.input_ids[0].iter().copied().take(ALONE_TOKENS).collect::<Vec<_>>()];
    let mut kls = Vec::new();
    for group in each.chunks(LANES) {
        kls.extend(rounds.mean_kls(&group.iter().map(|i| trial(&alone(*i))).collect::<Vec<_>>(), &few_tokens)?);
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
        let found = rounds.mean_kls(&points.iter().map(|p| trial(*p)).collect::<Vec<_>>(), trials.input_ids)?;
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
fn candidates(t: &OutputTensor) -> Vec<Encoding> {
    let mut values = vec![0f32; t.source.n_elements()];
    quant::decode(t.source.dtype(), &t.source.to_bytes(), &mut values);
    let row_len = t.source.shape().last().copied().unwrap_or(1);
    let bits = |d: DType| d.block_bytes() * 8 * 64 / d.block_len();
    let mut out = vec![Encoding { dtype: t.dtype, encoded: t.source.clone(), relative_error: 0.0 }];
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
            out.push(Encoding { dtype, encoded, relative_error: sum.loss().relative });
        }
    }
    out.sort_by(|a, b| bits(b.dtype).cmp(&bits(a.dtype)).then(b.relative_error.total_cmp(&a.relative_error)));
    let mut smallest_error = f64::INFINITY;
    let mut worth: Vec<Encoding> = Vec::new();
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
        let kl = |c: &Encoding| l.kl_alone * (c.relative_error / coarsest).powi(2);
        let bytes = |c: &Encoding| l.tensor.source.n_elements() / c.dtype.block_len() * c.dtype.block_bytes();
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
fn with_types(adapter: &Plus, order: RowOrder, ladders: &[Ladder], choice: &[usize]) -> Adapter {
    let mut out = adapter.clone();
    row_order::apply_all(&mut out, order);
    for (l, i) in ladders.iter().zip(choice) {
        let encoded = l.candidates[*i].encoded.clone();
        let tensor = out.get_mut(l.slot).expect("the plan's tensors are the adapter's");
        *tensor = PartSpec::of(l.slot.part).in_gguf(encoded);
    }
    out.layers.values_mut().for_each(|l| row_order::undo(l, order));
    out.into()
}

/// Runs adapters side by side, round after round.
struct Rounds<'a> {
    trials: &'a Trials<'a>,
    n_done: usize,
    n_expected: usize,
}

impl<'a> Rounds<'a> {
    /// `n_alone` rounds, and then those of a search among `n_steps` steps.
    fn new(trials: &'a Trials<'a>, n_alone: usize, n_steps: usize) -> Self {
        let mut n_search = 0;
        let mut left = n_steps;
        while left > 0 {
            (left, n_search) = (left / LANES, n_search + 1);
        }
        Rounds { trials, n_done: 0, n_expected: n_alone + n_search }
    }

    /// Mean KL divergence of each adapter's logits from those of the source.
    fn mean_kls(&mut self, adapters: &[Adapter], input_ids: &[Vec<u32>]) -> Result<Vec<f64>> {
        let t = self.trials;
        self.n_expected = self.n_expected.max(self.n_done + 1);
        let (n_done, n_expected) = (self.n_done, self.n_expected);
        let progress = |done: usize, total: usize| (t.progress)(n_done * total + done, n_expected * total);
        let lanes: Vec<Lane> = std::iter::once(t.source).chain(adapters).map(Lane::of).collect();
        let mut sink = Kls { sums: vec![0.0; adapters.len()], n: 0, progress: &progress };
        let options = StreamOptions { positions: None, device: t.device.clone() };
        runner::stream(t.base, input_ids, &lanes, &options, &mut sink)?;
        if sink.sums.iter().any(|s| s.is_nan()) {
            return Err(Error::new(Code::ErrorBound, "expected finite logits, found NaN or infinity"));
        }
        self.n_done += 1;
        Ok(sink.sums.iter().map(|s| s / sink.n as f64).collect())
    }
}

/// Sums of the divergences of all lanes but the first from the first.
struct Kls<'a> {
    sums: Vec<f64>,
    n: usize,
    progress: &'a dyn Fn(usize, usize),
}

impl Sink for Kls<'_> {
    fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
        // Each lane's own sum: threads change nothing about the order of its additions.
        self.sums.par_iter_mut().zip(&lanes[1..]).for_each(|(sum, lane)| *sum += kl_divergence(lanes[0], lane));
        self.n += 1;
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}
