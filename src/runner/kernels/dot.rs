//! Dot products with encoded rows: the projection of a few positions, where reading the weights is the whole cost.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use super::values;
use crate::base::Rows;
use crate::quant::dot::dot_rows;

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
                |room, (i, out)| dot_rows(part.dtype(), &|j| part.encoded(i * ROWS + j), x, room, out),
            );
        }
        let out = if m == 1 { columns } else { transposed(&columns, n, m) };
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

pub(super) fn transposed(columns: &[f32], n: usize, m: usize) -> Vec<f32> {
    (0..m).flat_map(|i| (0..n).map(move |j| columns[j * m + i])).collect()
}
