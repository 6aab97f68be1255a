//! Projections: `x W^T + b`.

use candle_core::{Result as CandleResult, Tensor};

use super::candle;
use super::device::Device;
use super::kernels::dot::DotRows;
use crate::base::{BaseModel, Rows, Weight};
use crate::error::Result;

/// A projection, possibly several that share their input and follow each other in the output.
pub(super) struct Linear {
    matrix: Matrix,
    /// `[n]`
    bias: Option<Tensor>,
}

enum Matrix {
    /// `[n, k]` on the device, decoded.
    Dense(Tensor),
    /// Encoded in the memory map, decoded while in use. CPU only.
    Encoded(Vec<Rows>),
}

/// Up to this many positions, a dot product per row and position beats decoding into a matrix for a matrix product:
/// both read the weights once, and the former keeps a decoded row in the first-level cache.
const FEW_POSITIONS: usize = 6;

/// Decoded values held at a time. 16 MiB fit well into last-level caches, and below the limit from which on the
/// allocator returns memory to the system, which would cost a page fault per 4 KiB.
const CHUNK_VALUES: usize = 1 << 22;

impl Linear {
    /// The projections `weights`, their outputs one after the other. `biases` are as many, or none.
    pub fn load(base: &BaseModel, weights: &[Weight], biases: &[Weight], device: &Device) -> Result<Self> {
        let parts = weights.iter().map(|w| base.rows(*w)).collect::<Result<Vec<_>>>()?;
        let bias = match biases {
            [] => None,
            _ => {
                let parts = biases.iter().map(|w| base.vector(*w)).collect::<Result<Vec<_>>>()?;
                let values = parts.concat();
                let n = values.len();
                Some(Tensor::from_vec(values, n, &device.0).map_err(candle)?)
            }
        };
        let matrix = if device.0.is_cpu() {
            Matrix::Encoded(parts)
        } else {
            let parts = parts
                .iter()
                .map(|p| Tensor::from_vec(p.to_f32(), (p.n_rows(), p.row_len()), &device.0))
                .collect::<CandleResult<Vec<_>>>()
                .map_err(candle)?;
            Matrix::Dense(Tensor::cat(&parts, 0).map_err(candle)?)
        };
        Ok(Linear { matrix, bias })
    }

    /// `x` `[N, k]` to `[N, n]`.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let y = match &self.matrix {
            Matrix::Dense(w) => x.matmul(&w.t()?)?,
            Matrix::Encoded(parts) if x.dim(0)? <= FEW_POSITIONS => {
                x.contiguous()?.apply_op1_no_bwd(&DotRows(parts))?
            }
            Matrix::Encoded(parts) => decode_and_multiply(x, parts)?,
        };
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }
}

fn decode_and_multiply(x: &Tensor, parts: &[Rows]) -> CandleResult<Tensor> {
    let mut outputs = Vec::new();
    let k = x.dim(1)?;
    // Chunks run across parts, so that narrow projections share one product.
    let max_rows = (CHUNK_VALUES / k.max(1)).max(1);
    let n_total: usize = parts.iter().map(Rows::n_rows).sum();
    let (mut part, mut row) = (0, 0);
    let mut done = 0;
    while done < n_total {
        let n = max_rows.min(n_total - done);
        let mut w = vec![0f32; n * k];
        let mut rest = &mut w[..];
        while !rest.is_empty() {
            let take = (parts[part].n_rows() - row).min(rest.len() / k);
            let (out, tail) = rest.split_at_mut(take * k);
            parts[part].decode(row..row + take, out);
            rest = tail;
            row += take;
            if row == parts[part].n_rows() {
                (part, row) = (part + 1, 0);
            }
        }
        done += n;
        let w = Tensor::from_vec(w, (n, k), x.device())?;
        outputs.push(x.matmul(&w.t()?)?);
    }
    match outputs.len() {
        1 => Ok(outputs.remove(0)),
        _ => Tensor::cat(&outputs, 1),
    }
}
