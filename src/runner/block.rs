//! One block of the model: attention with the adapters' terms, then the feed-forward network.

use candle_core::{Result as CandleResult, Tensor};

use std::ops::Range;

use super::additions::Addition;
use super::attention::{LayerCache, attend};
use super::candle;
use super::device::Device;
use super::effects::Effects;
use super::kernels::rms_norm::rms_norm;
use super::kernels::swiglu::swiglu;
use super::linear::{Linear, Workspace};
use super::phi::{Term, Terms};
use super::rope::Rotation;
use crate::adapter::plus::QueryTap;
use crate::base::{BaseConfig, BaseModel, BlockWeight as W, Weight};
use crate::error::Result;

/// The weights of one block.
pub(super) struct Block {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rms_eps: f64,
    window: Option<usize>,
    attention_norm: Tensor,
    query_key_value: Linear,
    /// Of the query and of the key heads, `[D]` each.
    head_norms: Option<(Tensor, Tensor)>,
    attention_output: Linear,
    feed_forward_norm: Tensor,
    gate_up: Linear,
    down: Linear,
}

/// What a block gives beside its output, where somebody wants it.
pub(super) struct Observed {
    /// `[B, H, T, D]` after RoPE.
    pub q: Tensor,
    /// `[B, H, T, D_v]`: the sum of the adapters' terms; 0 in batch rows without an adapter.
    pub term: Tensor,
}

/// What adapters do to one block, each for its sequences of the batch.
#[derive(Default)]
pub(super) struct BlockEffects {
    terms: Terms,
    query_key_value: Vec<Addition>,
    attention_output: Vec<Addition>,
    gate_up: Vec<Addition>,
    down: Vec<Addition>,
}

impl BlockEffects {
    /// Adds what `effects`, which fit the base, have for block `index`. `sequences` of the batch get it, or all of them.
    ///
    /// # Errors
    ///
    /// Those of [`Term::new`] and [`Addition::new`].
    pub fn add(
        &mut self,
        base: &BaseModel,
        index: usize,
        (effects, strength): (&Effects<'_>, f64),
        sequences: Option<Range<usize>>,
        device: &Device,
    ) -> Result<()> {
        if let Some(t) = effects.terms.get(&index) {
            self.terms.push((sequences.clone(), Term::new(t.config, t.layer, index, strength, device)?));
        }
        for (additions, weights) in [
            (&mut self.query_key_value, &[W::Query, W::Key, W::Value][..]),
            (&mut self.attention_output, &[W::AttentionOutput]),
            (&mut self.gate_up, &[W::Gate, W::Up]),
            (&mut self.down, &[W::Down]),
        ] {
            let mut first_output = 0;
            for weight in weights.iter().map(|w| Weight::Block(index, *w)) {
                if let Some(effect) = effects.matrices.get(&weight) {
                    let place = (sequences.clone(), first_output);
                    additions.push(Addition::new(base, weight, effect, strength, place, device)?);
                }
                first_output += weight.expected_shape(&base.config).map_or(0, |shape| shape[0]);
            }
        }
        Ok(())
    }
}

impl Block {
    /// Loads block `index`.
    pub fn load(base: &BaseModel, index: usize, device: &Device) -> Result<Self> {
        let c = &base.config;
        let vector = |w| vector(base, Weight::Block(index, w), device);
        let linear = |weights: &[W], biases: &[W], biased: bool| {
            let named = |ws: &[W]| ws.iter().map(|w| Weight::Block(index, *w)).collect::<Vec<_>>();
            Linear::load(base, &named(weights), &if biased { named(biases) } else { vec![] }, device)
        };
        Ok(Block {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            rms_eps: c.rms_eps,
            window: c.sliding_windows[index],
            attention_norm: vector(W::AttentionNorm)?,
            query_key_value: linear(
                &[W::Query, W::Key, W::Value],
                &[W::QueryBias, W::KeyBias, W::ValueBias],
                c.biases.query_key_value,
            )?,
            head_norms: if c.query_key_norm { Some((vector(W::QueryNorm)?, vector(W::KeyNorm)?)) } else { None },
            attention_output: linear(&[W::AttentionOutput], &[W::AttentionOutputBias], c.biases.attention_output)?,
            feed_forward_norm: vector(W::FeedForwardNorm)?,
            gate_up: linear(&[W::Gate, W::Up], &[W::GateBias, W::UpBias], c.biases.feed_forward)?,
            down: linear(&[W::Down], &[W::DownBias], c.biases.feed_forward)?,
        })
    }

    /// `x` `[B, T, hidden]` to the same shape. What was observed comes back when there are terms.
    ///
    /// # Errors
    ///
    /// [`Code::DenominatorZero`](crate::error::Code::DenominatorZero) from a term.
    pub fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        effects: &BlockEffects,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, Option<Observed>)> {
        let (q, k, v) = self.heads(x, &effects.query_key_value, workspace).map_err(candle)?;
        let rotated = rotation.apply(&q).map_err(candle)?;
        let k = rotation.apply(&k).map_err(candle)?;
        let attended = attend(&rotated, &k, &v, rotation.start, self.window, cache).map_err(candle)?;
        let term = sum_of_terms(&effects.terms, &q, &rotated, rotation.start)?;
        let attended = match &term {
            Some(term) => (attended + term).map_err(candle)?,
            None => attended,
        };
        let y = self.finish(x, &attended, effects, workspace).map_err(candle)?;
        Ok((y, term.map(|term| Observed { q: rotated, term })))
    }

    /// Queries `[B, H, T, D]`, keys and values `[B, H_kv, T, D]`, biased and normed, before RoPE.
    fn heads(
        &self,
        x: &Tensor,
        additions: &[Addition],
        workspace: &mut Workspace,
    ) -> CandleResult<(Tensor, Tensor, Tensor)> {
        let (b, t, hidden) = x.dims3()?;
        let normed = rms_norm(&x.reshape((b * t, hidden))?, &self.attention_norm, self.rms_eps)?;
        let qkv = self.query_key_value.forward(&normed, additions, t, workspace)?;
        let (d, h, h_kv) = (self.head_dim, self.n_heads, self.n_kv_heads);
        let part = |first: usize, heads: usize, norm: Option<&Tensor>| {
            let x = qkv.narrow(1, first * d, heads * d)?.reshape((b, t, heads, d))?;
            let x = match norm {
                Some(w) => rms_norm(&x, w, self.rms_eps)?,
                None => x,
            };
            x.transpose(1, 2)
        };
        let norms = self.head_norms.as_ref();
        Ok((part(0, h, norms.map(|n| &n.0))?, part(h, h_kv, norms.map(|n| &n.1))?, part(h + h_kv, h_kv, None)?))
    }

    /// Output projection, feed-forward network and both residuals.
    fn finish(
        &self,
        x: &Tensor,
        attended: &Tensor,
        effects: &BlockEffects,
        workspace: &mut Workspace,
    ) -> CandleResult<Tensor> {
        let (b, t, hidden) = x.dims3()?;
        let attended = attended.transpose(1, 2)?.reshape((b * t, self.n_heads * self.head_dim))?;
        let projected = self.attention_output.forward(&attended, &effects.attention_output, t, workspace)?;
        let x = (x.reshape((b * t, hidden))? + projected)?;
        let normed = rms_norm(&x, &self.feed_forward_norm, self.rms_eps)?;
        let inner = swiglu(&self.gate_up.forward(&normed, &effects.gate_up, t, workspace)?)?;
        (x + self.down.forward(&inner, &effects.down, t, workspace)?)?.reshape((b, t, hidden))
    }
}

/// The final norm and the output head.
pub(super) struct Head {
    norm: Tensor,
    rms_eps: f64,
    output: Linear,
}

impl Head {
    pub fn load(base: &BaseModel, device: &Device) -> Result<Self> {
        let BaseConfig { rms_eps, .. } = base.config;
        let norm = vector(base, Weight::OutputNorm, device)?;
        Ok(Head { norm, rms_eps, output: Linear::load(base, &[base.output_weight()?], &[], device)? })
    }

    /// `[N, hidden]` to logits `[N, V]`; `n_rows` rows belong to each sequence.
    pub fn forward(
        &self,
        x: &Tensor,
        additions: &[Addition],
        n_rows: usize,
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        rms_norm(x, &self.norm, self.rms_eps)
            .and_then(|x| self.output.forward(&x, additions, n_rows, workspace))
            .map_err(candle)
    }
}

fn vector(base: &BaseModel, weight: Weight, device: &Device) -> Result<Tensor> {
    let values = base.vector(weight)?;
    let n = values.len();
    Tensor::from_vec(values, n, &device.0).map_err(candle)
}

/// The terms of all adapters, each for its batch rows; `None` without any.
fn sum_of_terms(terms: &Terms, before_rope: &Tensor, after_rope: &Tensor, start: usize) -> Result<Option<Tensor>> {
    if terms.is_empty() {
        return Ok(None);
    }
    let mut sum = after_rope.zeros_like().map_err(candle)?;
    for (rows, term) in terms {
        let q = match term.conventions.query_tap {
            QueryTap::PostRope => after_rope,
            QueryTap::PreRope => before_rope,
        };
        let rows = rows.clone().unwrap_or(0..q.dim(0).map_err(candle)?);
        let q = q.narrow(0, rows.start, rows.len()).map_err(candle)?;
        let value = term.apply(&q, start)?;
        sum = add_rows(&sum, &value, rows.start).map_err(candle)?;
    }
    Ok(Some(sum))
}

/// `sum` with `value` added to its batch rows from `first` on.
fn add_rows(sum: &Tensor, value: &Tensor, first: usize) -> CandleResult<Tensor> {
    let (n, all) = (value.dim(0)?, sum.dim(0)?);
    let added = (sum.narrow(0, first, n)? + value)?;
    if n == all {
        return Ok(added);
    }
    let before = sum.narrow(0, 0, first)?;
    let after = sum.narrow(0, first + n, all - first - n)?;
    Tensor::cat(&[before, added, after], 0)
}
