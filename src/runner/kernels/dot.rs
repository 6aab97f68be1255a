//! Dot products with encoded rows: the projection of a few positions, where reading the weights is the whole cost.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::values;
use crate::base::Rows;
use crate::quant;

/// Sum of products, in four vectors of partial sums.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = S::as_simd_f32s(a);
    let (b, b_tail) = S::as_simd_f32s(b);
    let zero = simd.splat_f32s(0.0);
    let (mut s0, mut s1, mut s2, mut s3) = (zero, zero, zero, zero);
    let (a_blocks, a_rest) = a.as_chunks::<4>();
    let (b_blocks, b_rest) = b.as_chunks::<4>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        s0 = simd.mul_add_f32s(x[0], y[0], s0);
        s1 = simd.mul_add_f32s(x[1], y[1], s1);
        s2 = simd.mul_add_f32s(x[2], y[2], s2);
        s3 = simd.mul_add_f32s(x[3], y[3], s3);
    }
    for (x, y) in a_rest.iter().zip(b_rest) {
        s0 = simd.mul_add_f32s(*x, *y, s0);
    }
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(s0, s1), simd.add_f32s(s2, s3)));
    for (x, y) in a_tail.iter().zip(b_tail) {
        sum += x * y;
    }
    sum
}

/// `x` `[m, k]` times the transposed `rows` `[n, k]`: `[m, n]`, decoding every row once.
pub struct DotRows<'a>(pub &'a [Rows]);

/// Rows per thread and step.
const ROWS: usize = 32;

impl CustomOp1 for DotRows<'_> {
    fn name(&self) -> &'static str {
        "dot with encoded rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, k) = layout.shape().dims2()?;
        let x = values(storage, layout)?;
        let n: usize = self.0.iter().map(Rows::n_rows).sum();
        // [n, m], so that threads write neighbouring values.
        let mut columns = vec![0f32; n * m];
        let mut rest = &mut columns[..];
        for part in self.0 {
            let (out, tail) = rest.split_at_mut(part.n_rows() * m);
            rest = tail;
            out.par_chunks_mut(ROWS * m).enumerate().for_each_init(
                || vec![0f32; k],
                |row, (i, out)| pulp::Arch::new().dispatch(DotChunk { rows: part, first: i * ROWS, row, x, out }),
            );
        }
        let out = if m == 1 { columns } else { transposed(&columns, n, m) };
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

/// Some rows of [`DotRows`]: `out` `[n, m]`.
struct DotChunk<'a> {
    rows: &'a Rows,
    first: usize,
    /// Room for a decoded row.
    row: &'a mut [f32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for DotChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let k = self.row.len();
        let m = self.x.len() / k;
        for (j, out) in self.out.chunks_exact_mut(m).enumerate() {
            quant::decode_inline(self.rows.dtype(), self.rows.encoded(self.first + j), self.row);
            for (out, x) in out.iter_mut().zip(self.x.chunks_exact(k)) {
                *out = dot(simd, self.row, x);
            }
        }
    }
}

pub(super) fn transposed(columns: &[f32], n: usize, m: usize) -> Vec<f32> {
    (0..m).flat_map(|i| (0..n).map(move |j| columns[j * m + i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl WithSimd for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dot(simd, self.0, self.1)
        }
    }

    #[test]
    fn dot_products_agree_with_f64_for_every_length() {
        for n in [0, 1, 7, 63, 64, 65, 576, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
            let truth: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            let found = pulp::Arch::new().dispatch(Dot(&a, &b));
            assert!((f64::from(found) - truth).abs() < 1e-5, "{n}");
        }
    }
}
