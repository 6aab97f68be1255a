//! Softmax over the keys that a query sees.

use candle_core::{CpuStorage, D, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

use super::activation::tanh;
use super::exp::exp;
use super::{RUN, vectorized};

/// Which keys a query sees: those at its own position and before, at most `window` of them.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// Position of the first query.
    pub first_query: usize,
    /// Number of queries; row `r` of the scores belongs to query `r % n_queries`.
    pub n_queries: usize,
    /// Position of the first key.
    pub first_key: usize,
    /// A window includes the query's own position. Source: `sliding_window_overlay` in transformers' masking_utils.py.
    pub window: Option<usize>,
}

impl Mask {
    /// The visible keys of a row, as indices into it.
    pub fn visible(&self, row: usize) -> std::ops::Range<usize> {
        let position = self.first_query + row % self.n_queries;
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        first.saturating_sub(self.first_key)..position + 1 - self.first_key
    }
}

/// Scores `[N, n_rows, n_keys]` times `scale`, capped where `softcap` says at what, softmax over the visible keys, 0 elsewhere.
pub fn masked_softmax(scores: Tensor, scale: f32, softcap: Option<f32>, mask: Mask) -> Result<Tensor> {
    if scores.device().is_cpu() {
        scores.inplace_op1(&MaskedSoftmax { scale, softcap, mask })?;
        return Ok(scores);
    }
    on_gpu(&scores, scale, softcap, mask)
}

fn on_gpu(scores: &Tensor, scale: f32, softcap: Option<f32>, mask: Mask) -> Result<Tensor> {
    let (_, n_rows, n_keys) = scores.dims3()?;
    let hidden = (0..n_rows).flat_map(|r| {
        let visible = mask.visible(r);
        (0..n_keys).map(move |k| if visible.contains(&k) { 0f32 } else { f32::NEG_INFINITY })
    });
    let hidden = Tensor::from_iter(hidden, scores.device())?.reshape((1, n_rows, n_keys))?;
    let scaled = (scores * f64::from(scale))?;
    let capped = match softcap.map(f64::from) {
        Some(c) => ((scaled / c)?.tanh()? * c)?,
        None => scaled,
    };
    let masked = capped.broadcast_add(&hidden)?;
    let shifted = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?)?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

struct MaskedSoftmax {
    scale: f32,
    softcap: Option<f32>,
    mask: Mask,
}

impl InplaceOp1 for MaskedSoftmax {
    fn name(&self) -> &'static str {
        "masked softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, n_rows, n_keys) = layout.shape().dims3()?;
        let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("expected contiguous F32 scores")
        };
        let run = RUN.div_ceil(n_keys.max(1));
        values[start..end].par_chunks_mut((run * n_keys).max(1)).enumerate().for_each(|(i, rows)| {
            vectorized(
                #[inline(always)]
                || {
                    for (k, row) in rows.chunks_exact_mut(n_keys).enumerate() {
                        let visible = self.mask.visible((i * run + k) % n_rows);
                        softmax_row(row, visible, self.scale, self.softcap);
                    }
                },
            );
        });
        Ok(())
    }
}

/// Softmax of `row * scale`, or of `c tanh(row * scale / c)` with a softcap `c`, over its `visible` part, 0 elsewhere.
#[inline(always)]
pub fn softmax_row(row: &mut [f32], visible: std::ops::Range<usize>, mut scale: f32, softcap: Option<f32>) {
    if let Some(c) = softcap {
        let scaled = scale / c;
        row[visible.clone()].iter_mut().for_each(|x| *x = tanh(*x * scaled));
        scale = c;
    }
    let (before, rest) = row.split_at_mut(visible.start);
    let (seen, after) = rest.split_at_mut(visible.len());
    before.fill(0.0);
    after.fill(0.0);
    // Sixteen partial results each, so that the loops become vector instructions.
    let mut largest = [f32::NEG_INFINITY; 16];
    let (blocks, tail) = seen.as_chunks_mut::<16>();
    for block in blocks.iter_mut() {
        for (x, m) in block.iter_mut().zip(&mut largest) {
            *x *= scale;
            *m = m.max(*x);
        }
    }
    for (x, m) in tail.iter_mut().zip(&mut largest) {
        *x *= scale;
        *m = m.max(*x);
    }
    // `max` passes over NaN, but exp(NaN - shift) below does not.
    let mut shift = largest[0];
    for m in largest {
        shift = shift.max(m);
    }
    let mut sums = [0f32; 16];
    for block in blocks.iter_mut() {
        for (x, s) in block.iter_mut().zip(&mut sums) {
            *x = exp(*x - shift);
            *s += *x;
        }
    }
    for (x, s) in tail.iter_mut().zip(&mut sums) {
        *x = exp(*x - shift);
        *s += *x;
    }
    let mut sum = 0.0;
    for s in sums {
        sum += s;
    }
    let factor = 1.0 / sum;
    for x in seen {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_window_includes_the_own_position() {
        let mask = Mask { first_query: 5, n_queries: 3, first_key: 2, window: Some(3) };
        assert_eq!(mask.visible(0), 1..4, "positions 3, 4, 5");
        assert_eq!(mask.visible(2), 3..6);
        assert_eq!(mask.visible(3), 1..4, "the next head starts over");
        let causal = Mask { window: None, first_key: 0, ..mask };
        assert_eq!(causal.visible(1), 0..7);
    }

    #[test]
    fn rows_are_distributions_over_the_visible_keys() {
        let (n_rows, n_keys) = (4, 37);
        let mask = Mask { first_query: 33, n_queries: 4, first_key: 0, window: Some(20) };
        let scores: Vec<f32> = (0..2 * n_rows * n_keys).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
        let t = Tensor::from_vec(scores.clone(), (2, n_rows, n_keys), &Device::Cpu).unwrap();
        let p: Vec<f32> = masked_softmax(t, 0.5, None, mask).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let t = Tensor::from_vec(scores.clone(), (2, n_rows, n_keys), &Device::Cpu).unwrap();
        let capped: Vec<f32> =
            masked_softmax(t, 0.5, Some(6.0), mask).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (r, (p, s)) in capped.chunks(n_keys).zip(scores.chunks(n_keys)).enumerate() {
            let visible = mask.visible(r % n_rows);
            let score = |k: usize| 6.0 * (f64::from(s[k]) * 0.5 / 6.0).tanh();
            let total: f64 = visible.clone().map(|k| score(k).exp()).sum();
            for k in visible {
                assert!((f64::from(p[k]) - score(k).exp() / total).abs() < 1e-6, "row {r} key {k}");
            }
        }
        for (r, (p, s)) in p.chunks(n_keys).zip(scores.chunks(n_keys)).enumerate() {
            let visible = mask.visible(r % n_rows);
            let total: f64 = visible.clone().map(|k| (f64::from(s[k]) * 0.5).exp()).sum();
            for k in 0..n_keys {
                let expected = if visible.contains(&k) { (f64::from(s[k]) * 0.5).exp() / total } else { 0.0 };
                assert!((f64::from(p[k]) - expected).abs() < 1e-6, "row {r} key {k}");
            }
        }
    }

    #[test]
    fn the_gpu_formula_gives_the_same_distributions() {
        let mask = Mask { first_query: 33, n_queries: 4, first_key: 0, window: Some(20) };
        let scores: Vec<f32> = (0..8 * 37).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
        let t = || Tensor::from_vec(scores.clone(), (2, 4, 37), &Device::Cpu).unwrap();
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for softcap in [None, Some(5.0)] {
            let (cpu, gpu) =
                (masked_softmax(t(), 0.5, softcap, mask).unwrap(), on_gpu(&t(), 0.5, softcap, mask).unwrap());
            for (a, b) in values(cpu).into_iter().zip(values(gpu)) {
                assert!((a - b).abs() < 1e-6, "{softcap:?} {a} {b}");
            }
        }
    }

    #[test]
    fn a_nan_score_spoils_its_row_and_no_other() {
        let mask = Mask { first_query: 39, n_queries: 1, first_key: 0, window: None };
        let mut scores = vec![1f32; 80];
        scores[17] = f32::NAN;
        let t = Tensor::from_vec(scores, (2, 1, 40), &Device::Cpu).unwrap();
        let p: Vec<f32> = masked_softmax(t, 1.0, None, mask).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(p[..40].iter().all(|x| x.is_nan()) && p[40..].iter().all(|x| x.is_finite()));
    }
}
