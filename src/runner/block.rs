//! One block of the model: attention with the adapters' terms, then the feed-forward network.

use candle_core::{Result as CandleResult, Tensor};

use std::ops::Range;

use super::additions::Addition;
use super::attention::{LayerCache, Scoring, attend};
use super::candle;
use super::device::Device;
use super::effects::Effects;
use super::experts::{FeedForward, FeedForwardEffects};
use super::kernels::rms_norm::rms_norm;
use super::linear::{Linear, Workspace};
use super::phi::{Term, Terms};
use super::rope::Rotations;
use crate::adapter::plus::QueryTap;
use crate::base::{BaseConfig, BaseModel, BlockWeight as W, QueryKeyNorm, Weight};
use crate::error::Result;

/// The weights of one block.
pub(super) struct Block {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rms_eps: f64,
    norms: Norms,
    scoring: Scoring,
    rope: Option<usize>,
    query_key_value: Linear,
    /// Of query and key.
    query_key_norms: Option<(QueryKeyNorm, Tensor, Tensor)>,
    attention_output: Linear,
    feed_forward: FeedForward,
    residual_multiplier: f64,
}

/// The RMS norms of a block where the family has one, `[hidden]` each.
struct Norms {
    before_attention: Option<Tensor>,
    after_attention: Option<Tensor>,
    before_feed_forward: Option<Tensor>,
    after_feed_forward: Option<Tensor>,
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
    feed_forward: FeedForwardEffects,
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
        let feed_forward = &mut self.feed_forward;
        for (additions, weights) in [
            (&mut self.query_key_value, &[W::QueryKeyValue, W::Query, W::Key, W::Value][..]),
            (&mut self.attention_output, &[W::AttentionOutput]),
            (&mut feed_forward.network.gate_up, &[W::GateUp, W::Gate, W::Up, W::SharedGate, W::SharedUp]),
            (&mut feed_forward.network.down, &[W::Down, W::SharedDown]),
            (&mut feed_forward.shared_gate, &[W::SharedExpertGate]),
        ] {
            // Those that the block has of these: a matrix of several or its parts, one network or an expert.
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
        let layer = c.layers[index];
        let vector = |w| vector(base, Weight::Block(index, w), device);
        let norm = |w: Option<W>| w.map(vector).transpose();
        let linear = |weights: &[W], biases: &[W], biased: bool| {
            let named = |ws: &[W]| ws.iter().map(|w| Weight::Block(index, *w)).collect::<Vec<_>>();
            Linear::load(base, &named(weights), &if biased { named(biases) } else { vec![] }, device)
        };
        Ok(Block {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            rms_eps: c.rms_eps,
            norms: Norms {
                before_attention: norm(c.norms.before_attention)?,
                after_attention: norm(c.norms.after_attention)?,
                before_feed_forward: norm(c.norms.before_feed_forward)?,
                after_feed_forward: norm(c.norms.after_feed_forward)?,
            },
            scoring: Scoring {
                scale: c.attention_scale as f32,
                softcap: c.attention_softcap.map(|c| c as f32),
                window: layer.window,
            },
            rope: layer.rope,
            query_key_value: linear(
                &[W::Query, W::Key, W::Value],
                &[W::QueryBias, W::KeyBias, W::ValueBias],
                c.biases.query_key_value,
            )?,
            query_key_norms: match c.query_key_norm {
                Some(norm) => Some((norm, vector(W::QueryNorm)?, vector(W::KeyNorm)?)),
                None => None,
            },
            attention_output: linear(&[W::AttentionOutput], &[W::AttentionOutputBias], c.biases.attention_output)?,
            feed_forward: FeedForward::load(base, index, device)?,
            residual_multiplier: c.residual_multiplier,
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
        rotations: &Rotations,
        cache: Option<&mut LayerCache>,
        effects: &BlockEffects,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, Option<Observed>)> {
        let (q, k, v) = self.heads(x, &effects.query_key_value, workspace).map_err(candle)?;
        let rotated = rotations.apply(self.rope, &q).map_err(candle)?;
        let k = rotations.apply(self.rope, &k).map_err(candle)?;
        let attended = attend(&rotated, &k, &v, rotations.start, self.scoring, cache).map_err(candle)?;
        let term = sum_of_terms(&effects.terms, &q, &rotated, rotations.start)?;
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
        let normed = self.norm(x.reshape((b * t, hidden))?, self.norms.before_attention.as_ref())?;
        let qkv = self.query_key_value.forward(&normed, additions, t, workspace)?;
        let (d, h, h_kv) = (self.head_dim, self.n_heads, self.n_kv_heads);
        let part = |first: usize, heads: usize, norm: Option<(QueryKeyNorm, &Tensor)>| {
            let x = qkv.narrow(1, first * d, heads * d)?;
            let x = match norm {
                Some((QueryKeyNorm::PerHead, w)) => rms_norm(&x.reshape((b, t, heads, d))?, w, self.rms_eps)?,
                Some((QueryKeyNorm::PerRow, w)) => rms_norm(&x, w, self.rms_eps)?.reshape((b, t, heads, d))?,
                None => x.reshape((b, t, heads, d))?,
            };
            x.transpose(1, 2)
        };
        let (query_norm, key_norm) = match &self.query_key_norms {
            Some((norm, query, key)) => (Some((*norm, query)), Some((*norm, key))),
            None => (None, None),
        };
        Ok((part(0, h, query_norm)?, part(h, h_kv, key_norm)?, part(h + h_kv, h_kv, None)?))
    }

    fn norm(&self, x: Tensor, weight: Option<&Tensor>) -> CandleResult<Tensor> {
        match weight {
            Some(w) => rms_norm(&x, w, self.rms_eps),
            None => Ok(x),
        }
    }

    /// What a part of the block gives, added to what went in.
    fn residual(&self, x: Tensor, y: Tensor, norm: Option<&Tensor>) -> CandleResult<Tensor> {
        let y = self.norm(y, norm)?;
        if self.residual_multiplier == 1.0 { x + y } else { x + (y * self.residual_multiplier)? }
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
        let x = self.residual(x.reshape((b * t, hidden))?, projected, self.norms.after_attention.as_ref())?;
        let normed = self.norm(x.clone(), self.norms.before_feed_forward.as_ref())?;
        let y = self.feed_forward.forward(&normed, &effects.feed_forward, t, workspace)?;
        self.residual(x, y, self.norms.after_feed_forward.as_ref())?.reshape((b, t, hidden))
    }
}

/// The final norm, the output head, and what is done to logits.
pub(super) struct Head {
    norm: Tensor,
    rms_eps: f64,
    output: Linear,
    scaling: f64,
    softcap: Option<f64>,
}

impl Head {
    pub fn load(base: &BaseModel, device: &Device) -> Result<Self> {
        let BaseConfig { rms_eps, logits_scaling: scaling, final_softcap: softcap, .. } = base.config;
        let norm = vector(base, Weight::OutputNorm, device)?;
        let output = Linear::load(base, &[base.output_weight()?], &[], device)?;
        Ok(Head { norm, rms_eps, output, scaling, softcap })
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
            .and_then(|logits| if self.scaling == 1.0 { Ok(logits) } else { logits / self.scaling })
            .and_then(|logits| match self.softcap {
                Some(c) => (logits / c)?.tanh()? * c,
                None => Ok(logits),
            })
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
