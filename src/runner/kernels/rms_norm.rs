//! RMS norm: `x / sqrt(mean(x^2) + eps) * weight` of every row.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{RUN, values};
use crate::quant::dot::dot;

/// Norms the rows of `x` `[.., n]` with `weight` `[n]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if x.device().is_cpu() { x.apply_op2_no_bwd(weight, &RmsNorm(eps as f32)) } else { on_gpu(&x, weight, eps) }
}

fn on_gpu(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normed_and_the_gpu_formula_gives_the_same_values() {
        let values: Vec<f32> = (0..3 * 40).map(|i| ((i * 31 % 67) as f32 - 33.0) * 0.2).collect();
        let weights: Vec<f32> = (0..40).map(|i| 0.5 + i as f32 / 40.0).collect();
        let device = &candle_core::Device::Cpu;
        let x = Tensor::from_slice(&values, (3, 40), device).unwrap();
        let weight = Tensor::from_slice(&weights, 40, device).unwrap();
        let rows = |t: Tensor| t.to_vec2::<f32>().unwrap();
        let own = rows(rms_norm(&x, &weight, 1e-5).unwrap());
        let gpu = rows(on_gpu(&x, &weight, 1e-5).unwrap());
        for (row, x) in values.chunks(40).enumerate() {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 40.0;
            for i in 0..40 {
                let truth = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weights[i]);
                for found in [own[row][i], gpu[row][i]] {
                    assert!((f64::from(found) - truth).abs() < 1e-6 * truth.abs().max(1.0), "{found} {truth}");
                }
            }
        }
    }
}
