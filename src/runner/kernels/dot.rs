//! Dot products with encoded rows: the projection of a few positions, where reading the weights is the whole cost.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use super::{values, vectorized};
use crate::base::Rows;
use crate::quant;

/// Sum of products, in many partial sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<64>();
    let (b_blocks, b_tail) = b.as_chunks::<64>();
    let mut sums = [0f32; 64];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for i in 0..64 {
            sums[i] = x[i].mul_add(y[i], sums[i]);
        }
    }
    for ((s, x), y) in sums.iter_mut().zip(a_tail).zip(b_tail) {
        *s = x.mul_add(*y, *s);
    }
    // Halving keeps the additions vectors for as long as there are enough.
    let mut n = 32;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
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
                |row, (i, out)| {
                    vectorized(|| {
                        for (j, out) in out.chunks_exact_mut(m).enumerate() {
                            quant::decode(part.dtype(), part.encoded(i * ROWS + j), row);
                            for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                                *out = dot(row, x);
                            }
                        }
                    });
                },
            );
        }
        let out = if m == 1 { columns } else { transposed(&columns, n, m) };
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

fn transposed(columns: &[f32], n: usize, m: usize) -> Vec<f32> {
    (0..m).flat_map(|i| (0..n).map(move |j| columns[j * m + i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_products_agree_with_f64_for_every_length() {
        for n in [0, 1, 7, 63, 64, 65, 576, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
            let truth: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((f64::from(dot(&a, &b)) - truth).abs() < 1e-5, "{n}");
        }
    }
}
