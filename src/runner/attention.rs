//! Causal attention with grouped key/value heads and an optional window, and the cache of keys and values.

use candle_core::{Result, Tensor};

use super::kernels::attend_few::AttendFew;
use super::kernels::softmax::{Mask, masked_softmax};

/// Queries per step: bounds the scores held at once, and lets early queries skip the keys after them.
const QUERIES: usize = 128;

/// Up to this many queries per head are not worth the preparation of a matrix product.
const FEW_QUERIES: usize = 4;

/// Keys and values of one layer for the positions seen so far.
pub(super) struct LayerCache {
    /// `[B * H_kv, capacity, D]` each, filled up to `len`.
    kv: Option<(Tensor, Tensor)>,
    len: usize,
}

impl LayerCache {
    pub fn new() -> Self {
        LayerCache { kv: None, len: 0 }
    }

    /// One that has seen `len` positions, whose keys and values `[B * H_kv, len, D]` these are. Nothing is written into them: the
    /// next position has no room there.
    pub fn holding(k: Tensor, v: Tensor, len: usize) -> Self {
        LayerCache { kv: Some((k, v)), len }
    }

    /// Keys and values of the positions seen, `[B * H_kv, len, D]` each.
    pub fn contents(&self) -> Result<(Tensor, Tensor)> {
        let Some((k, v)) = &self.kv else { candle_core::bail!("the cache is empty") };
        Ok((k.narrow(1, 0, self.len)?.contiguous()?, v.narrow(1, 0, self.len)?.contiguous()?))
    }

    /// Appends `k` and `v` `[B * H_kv, T, D]` and gives all positions.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, t, d) = k.dims3()?;
        let needed = self.len + t;
        let capacity = match &self.kv {
            Some((k, _)) => k.dim(1)?,
            None => 0,
        };
        if needed > capacity {
            // Doubling makes the copies of all growth together no more than the final size.
            let capacity = needed.next_power_of_two().max(64);
            let grow = |old: Option<&Tensor>| {
                let new = Tensor::zeros((rows, capacity, d), k.dtype(), k.device())?;
                if let Some(old) = old.filter(|_| self.len > 0) {
                    new.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                }
                Ok::<_, candle_core::Error>(new)
            };
            self.kv = Some((grow(self.kv.as_ref().map(|kv| &kv.0))?, grow(self.kv.as_ref().map(|kv| &kv.1))?));
        }
        let Some((ks, vs)) = &self.kv else { candle_core::bail!("the cache has no room") };
        ks.slice_set(&k.contiguous()?, 1, self.len)?;
        vs.slice_set(&v.contiguous()?, 1, self.len)?;
        self.len = needed;
        Ok((ks.narrow(1, 0, needed)?, vs.narrow(1, 0, needed)?))
    }
}

/// How queries and keys make weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scoring {
    /// What scores are multiplied with.
    pub scale: f32,
    /// `c` where they then become `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// How many positions, its own included, a query sees.
    pub window: Option<usize>,
}

/// `q` `[B, H, T, D]` at positions from `start` on, `k` and `v` `[B, H_kv, T, D]`: `[B, H, T, D]`.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    start: usize,
    scoring: Scoring,
    cache: Option<&mut LayerCache>,
) -> Result<Tensor> {
    let (b, h, t, d) = q.dims4()?;
    let h_kv = k.dim(1)?;
    let group = h / h_kv;
    let flat = |x: &Tensor| x.contiguous()?.reshape((b * h_kv, t, d));
    let (k, v) = (flat(k)?, flat(v)?);
    let (k, v) = match cache {
        Some(cache) => cache.append(&k, &v)?,
        None => (k, v),
    };
    let Scoring { scale, softcap, window } = scoring;
    let q = q.reshape((b * h_kv, group, t, d))?;
    let mut outputs = Vec::new();
    for first in (0..t).step_by(QUERIES) {
        let n = QUERIES.min(t - first);
        let mask = Mask {
            first_query: start + first,
            n_queries: n,
            first_key: window.map_or(0, |w| (start + first + 1).saturating_sub(w)),
            window,
        };
        let n_keys = start + first + n - mask.first_key;
        let (k, v) = (k.narrow(1, mask.first_key, n_keys)?, v.narrow(1, mask.first_key, n_keys)?);
        // The queries of a group share their keys: one product for all of them.
        let q = q.narrow(2, first, n)?.contiguous()?.reshape((b * h_kv, group * n, d))?;
        let out = if t <= FEW_QUERIES && q.device().is_cpu() {
            q.apply_op3_no_bwd(&k, &v, &AttendFew { scale, softcap, mask })?
        } else {
            masked_softmax(q.matmul(&k.transpose(1, 2)?)?, scale, softcap, mask)?.matmul(&v)?
        };
        outputs.push(out.reshape((b * h_kv, group, n, d))?);
    }
    let out = match outputs.len() {
        1 => outputs.remove(0),
        _ => Tensor::cat(&outputs, 2)?,
    };
    out.reshape((b, h, t, d))
}
