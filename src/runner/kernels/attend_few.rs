//! Attention of a few queries, as in generation: reading the keys and values once is the whole cost, and matrix products
//! of so few rows spend more on preparation than on that.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::softmax::{Mask, softmax_row};
use super::values;
use crate::quant::dot::dot;

/// `q` `[N, n_rows, D]`, `k` and `v` `[N, n_keys, D]`, the latter two contiguous within each of the N: `[N, n_rows, D]`.
pub struct AttendFew {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub mask: Mask,
}

impl CustomOp3 for AttendFew {
    fn name(&self) -> &'static str {
        "attention of a few queries"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, n_rows, d) = q_l.shape().dims3()?;
        let q = values(q, q_l)?;
        let k = PerHead::new(k, k_l, n, d)?;
        let v = PerHead::new(v, v_l, n, d)?;
        let mut out = vec![0f32; n * n_rows * d];
        out.par_chunks_mut(d).zip(q.par_chunks(d)).enumerate().for_each_init(
            || vec![0f32; k.len / d],
            |scores, (row, (out, q))| {
                let (head, row) = (row / n_rows, row % n_rows);
                let (k, v) = (k.of(head), v.of(head));
                pulp::Arch::new().dispatch(AttendRow { op: self, row, q, k, v, scores, out });
            },
        );
        Ok((CpuStorage::F32(out), (n, n_rows, d).into()))
    }
}

/// Keys or values: `len` contiguous numbers per head, `stride` apart.
struct PerHead<'a> {
    values: &'a [f32],
    stride: usize,
    len: usize,
}

impl<'a> PerHead<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout, n: usize, d: usize) -> Result<Self> {
        let (n_heads, n_keys, width) = layout.shape().dims3()?;
        match layout.stride() {
            [stride, row, 1] if n_heads == n && width == d && *row == d => {
                let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
                Ok(PerHead { values, stride: *stride, len: n_keys * d })
            }
            other => candle_core::bail!("expected {n} heads of rows of {d}, found {:?} {other:?}", layout.shape()),
        }
    }

    fn of(&self, head: usize) -> &'a [f32] {
        &self.values[head * self.stride..][..self.len]
    }
}

struct AttendRow<'a> {
    op: &'a AttendFew,
    row: usize,
    /// `[D]`
    q: &'a [f32],
    /// `[n_keys, D]`
    k: &'a [f32],
    v: &'a [f32],
    /// `[n_keys]`
    scores: &'a mut [f32],
    /// `[D]`, zeros
    out: &'a mut [f32],
}

impl WithSimd for AttendRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.q.len();
        let visible = self.op.mask.visible(self.row);
        let seen = visible.start * d..visible.end * d;
        for (score, k) in self.scores[visible.clone()].iter_mut().zip(self.k[seen.clone()].chunks_exact(d)) {
            *score = dot(simd, self.q, k);
        }
        softmax_row(self.scores, visible.clone(), self.op.scale, self.op.softcap);
        for (weight, v) in self.scores[visible].iter().zip(self.v[seen].chunks_exact(d)) {
            for (out, v) in self.out.iter_mut().zip(v) {
                *out = weight.mul_add(*v, *out);
            }
        }
    }
}
