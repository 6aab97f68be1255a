//! RMS norm: `x / sqrt(mean(x^2) + eps) * weight` of every row.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dot::dot;
use super::{RUN, values};

/// Norms the rows of `x` `[.., n]` with `weight` `[n]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if x.device().is_cpu() {
        x.apply_op2_no_bwd(weight, &RmsNorm(eps as f32))
    } else {
        candle_nn::ops::rms_norm(&x, weight, eps as f32)
    }
}

struct RmsNorm(f32);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, w: &CpuStorage, w_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_l)?, values(w, w_l)?);
        let n = weight.len();
        if n == 0 || !x.len().is_multiple_of(n) {
            candle_core::bail!("rows of {n} do not divide {} values", x.len());
        }
        let mut out = x.to_vec();
        out.par_chunks_mut(RUN.div_ceil(n) * n)
            .for_each(|rows| pulp::Arch::new().dispatch(NormRows { rows, weight, eps: self.0 }));
        Ok((CpuStorage::F32(out), x_l.shape().clone()))
    }
}

struct NormRows<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl WithSimd for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.weight.len()) {
            let mean = dot(simd, row, row) / row.len() as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for (x, w) in row.iter_mut().zip(self.weight) {
                *x = w * (*x * scale);
            }
        }
    }
}
