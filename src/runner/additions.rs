//! Low-rank additions to projections, for the batch rows that have the adapter: `x A^T B^T` beside `x W^T`.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use rayon::prelude::*;

use super::candle;
use super::device::Device;
use super::effects::MatrixEffect;
use crate::base::{BaseModel, Dialect, Weight};
use crate::error::{Code, Error, Result};
use crate::transform::low_rank::{LowRank, decoded};

/// One addition to one projection, ready on the device.
pub(super) struct Addition {
    /// Sequences of the batch that it applies to; `None` is all of them.
    sequences: Option<Range<usize>>,
    /// The projection's first output in the linear that computes it with others.
    first_output: usize,
    /// A^T `[k, r]`
    a: Tensor,
    /// B^T `[r, n]`
    b: Tensor,
    scale: f64,
    /// DoRA's factors `[n]` on the rows of `W + scale * B A`.
    gains: Option<Tensor>,
    /// `[n]`, with the scale in it.
    bias: Option<Tensor>,
}

/// Rows of `w` whose DoRA factors are computed at a time.
const GAIN_ROWS: usize = 256;

impl Addition {
    /// Decodes what is added to `weight`, which begins at `first_output` of its linear. `strength` multiplies the addition.
    ///
    /// # Errors
    ///
    /// Those of decoding, of the adapter and of the base.
    pub fn new(
        base: &BaseModel,
        weight: Weight,
        effect: &MatrixEffect<'_>,
        strength: f64,
        (sequences, first_output): (Option<Range<usize>>, usize),
        device: &Device,
    ) -> Result<Addition> {
        let named = |e: Error| e.field(weight.name(Dialect::HuggingFace));
        let key_factor = base.config.addition_factor(weight, base.config.key_factor);
        if key_factor != 1.0 && effect.magnitude.is_some() {
            let message = "expected no DoRA of keys that the base's file holds multiplied, found one: take the Hugging Face folder";
            return Err(named(Error::new(Code::ConfigUnsupported, message)));
        }
        let scale = effect.scale * strength * key_factor;
        let low_rank = LowRank::new(effect.a, effect.b, scale, effect.magnitude).map_err(named)?;
        let gains = low_rank.magnitude.is_some().then(|| gains(base, weight, &low_rank)).transpose()?;
        let bias = effect.bias.map(decoded).transpose().map_err(named)?;
        let (k, n, r) = (low_rank.row_len, low_rank.n_rows(), low_rank.rank);
        let make = || -> CandleResult<Addition> {
            let vector = |v: Vec<f32>| Tensor::from_vec(v, n, &device.0);
            Ok(Addition {
                sequences,
                first_output,
                a: Tensor::from_vec(low_rank.a, (r, k), &device.0)?.t()?.contiguous()?,
                b: Tensor::from_vec(low_rank.b, (n, r), &device.0)?.t()?.contiguous()?,
                scale,
                gains: gains.map(vector).transpose()?,
                bias: bias.map(|b| vector(b)?.affine(scale, 0.0)).transpose()?,
            })
        };
        make().map_err(candle)
    }

    /// What is added to `y` = `x W^T` `[N, all outputs]`, in the rows and outputs that it concerns.
    fn of(&self, x: &Tensor, y: &Tensor, rows: &Range<usize>) -> CandleResult<Tensor> {
        let x = x.narrow(0, rows.start, rows.len())?;
        self.finish(x.matmul(&self.a)?, || {
            y.narrow(0, rows.start, rows.len())?.narrow(1, self.first_output, self.b.dim(1)?)
        })
    }

    /// From `x A^T` on.
    fn finish(&self, inner: Tensor, plain: impl FnOnce() -> CandleResult<Tensor>) -> CandleResult<Tensor> {
        let product = inner.affine(self.scale, 0.0)?.matmul(&self.b)?;
        let product = match &self.gains {
            None => product,
            Some(gains) => {
                let change = plain()?.broadcast_mul(&gains.affine(1.0, -1.0)?)?;
                (change + product.broadcast_mul(gains)?)?
            }
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// DoRA's factors of all rows.
fn gains(base: &BaseModel, weight: Weight, low_rank: &LowRank) -> Result<Vec<f32>> {
    let rows = base.rows(base.stored_weight(weight)?)?;
    let starts: Vec<usize> = (0..rows.n_rows()).step_by(GAIN_ROWS).collect();
    let parts: Vec<Vec<f32>> = starts
        .into_par_iter()
        .map(|first| {
            let n = GAIN_ROWS.min(rows.n_rows() - first);
            let mut w = vec![0f32; n * rows.row_len()];
            rows.decode(first..first + n, &mut w);
            low_rank.gains(first, &w)
        })
        .collect();
    Ok(parts.concat())
}

/// `y` `[N, n]` of `x` `[N, k]`, with the additions; `n_rows` rows of both belong to each sequence, one after the other.
pub(super) fn add(y: Tensor, x: &Tensor, additions: &[Addition], n_rows: usize) -> CandleResult<Tensor> {
    let plain = y.clone();
    additions.iter().try_fold(y, |sum, addition| {
        let all = sum.dim(0)?;
        let rows = addition.sequences.as_ref().map_or(0..all, |s| s.start * n_rows..s.end * n_rows);
        let added = addition.of(x, &plain, &rows)?;
        let n_outputs = sum.dim(1)?;
        let after = n_outputs - addition.first_output - added.dim(1)?;
        sum + padded(padded(added, 1, addition.first_output, after)?, 0, rows.start, all - rows.end)?
    })
}

fn padded(x: Tensor, dim: usize, before: usize, after: usize) -> CandleResult<Tensor> {
    if before + after == 0 { Ok(x) } else { x.pad_with_zeros(dim, before, after) }
}

/// An addition to the token embedding: rows of B are what ids look up.
pub(super) struct EmbeddingAddition {
    /// Sequences of the batch that it applies to.
    sequences: Option<Range<usize>>,
    low_rank: LowRank,
}

impl EmbeddingAddition {
    /// Decodes it; arguments as those of [`Addition::new`].
    ///
    /// # Errors
    ///
    /// Those of decoding.
    pub fn new(effect: &MatrixEffect<'_>, strength: f64, sequences: Option<Range<usize>>) -> Result<Self> {
        let low_rank = LowRank::new(effect.a, effect.b, effect.scale * strength, effect.magnitude)
            .map_err(|e| e.field(Weight::TokenEmbedding.name(Dialect::HuggingFace)))?;
        Ok(EmbeddingAddition { sequences, low_rank })
    }
}

/// The embeddings of `ids`, of all sequences one after the other, `[ids.len(), hidden]`, with the additions; each sequence
/// has `n_positions` of them.
///
/// # Errors
///
/// Those of [`BaseModel::embed`].
pub(super) fn embed(
    base: &BaseModel,
    ids: &[u32],
    additions: &[EmbeddingAddition],
    n_positions: usize,
) -> Result<Vec<f32>> {
    let mut x = base.embed(ids)?;
    add_rows(base, ids, additions, n_positions, &mut x);
    let multiplier = base.config.embedding_multiplier as f32;
    if multiplier != 1.0 {
        x.iter_mut().for_each(|v| *v *= multiplier);
    }
    Ok(x)
}

fn add_rows(base: &BaseModel, ids: &[u32], additions: &[EmbeddingAddition], n_positions: usize, x: &mut [f32]) {
    if additions.is_empty() {
        return;
    }
    let plain = x.to_vec();
    let hidden = base.config.hidden_size;
    let mut room = vec![0.0; hidden];
    for addition in additions {
        let rows = addition.sequences.as_ref().map_or(0..ids.len(), |s| s.start * n_positions..s.end * n_positions);
        for i in rows {
            let at = i * hidden..(i + 1) * hidden;
            addition.low_rank.add_to_row(ids[i] as usize, &plain[at.clone()], &mut room, &mut x[at]);
        }
    }
}
