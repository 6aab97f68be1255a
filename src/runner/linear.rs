//! Projections: `x W^T + b`.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result as CandleResult, Tensor};
use rayon::prelude::*;

use super::additions::{self, Addition};
use super::candle;
use super::device::{Activations, Device};
use super::kernels::dot::DotRows;
use super::kernels::integer::{DotCodes, multiply_codes};
use super::kernels::with_values;
use crate::base::{BaseModel, Rows, Weight};
use crate::error::Result;
use crate::quant::BLOCK_FORMATS;
use crate::quant::product::Tile;
use crate::tensor;

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
    /// In block formats in the memory map, whose codes are multiplied with activations in 8 bits, or in 16 bits, which few
    /// positions are multiplied with as they are. CPU only.
    Codes { parts: Vec<Rows>, is_all_codes: bool },
}

/// Up to this many positions, a dot product per row and position beats decoding into a matrix for a matrix product:
/// both read the weights once, and the former keeps a decoded row in the first-level cache.
pub(super) const FEW_POSITIONS: usize = 6;

/// Decoded values held at a time, more or less: 4 MiB, which fit into second-level caches together with their operands.
const CHUNK_VALUES: usize = 1 << 20;

/// Rows of weights that a kernel of the matrix product takes at once, with AVX-512. The rest go through slower ones.
const PRODUCT_ROWS: usize = 64;

/// Room for decoded weights, used again and again: fresh memory would cost a page fault per 4 KiB.
#[derive(Default)]
pub(super) struct Workspace {
    decoded: Option<Tensor>,
    tiles: Vec<Tile>,
}

impl Workspace {
    /// Room for at least `n` values.
    fn room(&mut self, n: usize) -> CandleResult<&Tensor> {
        match &self.decoded {
            Some(t) if t.elem_count() >= n => {}
            _ => self.decoded = Some(Tensor::zeros(n, DType::F32, &Device::cpu().0)?),
        }
        match &self.decoded {
            Some(t) => Ok(t),
            None => candle_core::bail!("no room for decoded weights"),
        }
    }
}

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
        let matrix = Linear::of(parts, device).map_err(candle)?.matrix;
        Ok(Linear { matrix, bias })
    }

    /// These matrices, their outputs one after the other.
    pub fn of(parts: Vec<Rows>, device: &Device) -> CandleResult<Self> {
        let (has_codes, is_short) = (
            |p: &Rows| BLOCK_FORMATS.contains(&p.dtype()),
            |p: &Rows| matches!(p.dtype(), tensor::DType::F16 | tensor::DType::BF16) && p.row_len().is_multiple_of(32),
        );
        let matrix = if device.1 == Activations::EightBits && parts.iter().all(|p| has_codes(p) || is_short(p)) {
            Matrix::Codes { is_all_codes: parts.iter().all(has_codes), parts }
        } else if device.0.is_cpu() {
            Matrix::Encoded(parts)
        } else {
            let parts = parts
                .iter()
                .map(|p| Tensor::from_vec(p.to_f32(), (p.n_rows(), p.row_len()), &device.0))
                .collect::<CandleResult<Vec<_>>>()?;
            Matrix::Dense(Tensor::cat(&parts, 0)?)
        };
        Ok(Linear { matrix, bias: None })
    }

    /// `x` `[N, k]` to `[N, n]`, with additions; `n_rows` rows of `x` belong to each sequence.
    pub fn forward(
        &self,
        x: &Tensor,
        additions: &[Addition],
        n_rows: usize,
        workspace: &mut Workspace,
    ) -> CandleResult<Tensor> {
        let mut y = match &self.matrix {
            Matrix::Dense(w) => x.matmul(&w.t()?)?,
            Matrix::Encoded(parts) if x.dim(0)? <= FEW_POSITIONS => {
                x.contiguous()?.apply_op1_no_bwd(&DotRows(parts))?
            }
            Matrix::Encoded(parts) => decode_and_multiply(x, parts, workspace)?,
            Matrix::Codes { parts, .. } if x.dim(0)? <= FEW_POSITIONS => {
                x.contiguous()?.apply_op1_no_bwd(&DotCodes(parts))?
            }
            Matrix::Codes { parts, is_all_codes: false } => decode_and_multiply(x, parts, workspace)?,
            Matrix::Codes { parts, .. } => multiply_codes(&x.contiguous()?, parts, &mut workspace.tiles)?,
        };
        if !additions.is_empty() {
            y = additions::add(y, x, additions, n_rows)?;
        }
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }
}

fn decode_and_multiply(x: &Tensor, parts: &[Rows], workspace: &mut Workspace) -> CandleResult<Tensor> {
    let n_rows = (CHUNK_VALUES / x.dim(1)?.max(1) + PRODUCT_ROWS / 2) / PRODUCT_ROWS * PRODUCT_ROWS;
    decode_and_multiply_by(n_rows.max(PRODUCT_ROWS), x, parts, workspace)
}

/// The same with so many rows of weights decoded at a time. They run across parts, so that narrow projections share one product.
fn decode_and_multiply_by(
    max_rows: usize,
    x: &Tensor,
    parts: &[Rows],
    workspace: &mut Workspace,
) -> CandleResult<Tensor> {
    let k = x.dim(1)?;
    let n_rows: usize = parts.iter().map(Rows::n_rows).sum();
    let room = workspace.room(max_rows.min(n_rows) * k)?;
    let product = |first: usize, n: usize| {
        let w = room.narrow(0, 0, n * k)?;
        w.inplace_op1(&DecodeRows { parts, first })?;
        x.matmul(&w.reshape((n, k))?.t()?)
    };
    if n_rows <= max_rows {
        return product(0, n_rows);
    }
    let m = x.dim(0)?;
    let mut out = vec![0f32; m * n_rows];
    for first in (0..n_rows).step_by(max_rows) {
        let n = max_rows.min(n_rows - first);
        with_values(&product(first, n)?, |part| {
            let rows = out.par_chunks_mut(n_rows).zip(part.par_chunks(n));
            rows.for_each(|(out, row)| out[first..first + n].copy_from_slice(row));
        })?;
    }
    Tensor::from_vec(out, (m, n_rows), x.device())
}

/// Fills a tensor with decoded rows, counted across all `parts`, from `first` on.
struct DecodeRows<'a> {
    parts: &'a [Rows],
    first: usize,
}

impl InplaceOp1 for DecodeRows<'_> {
    fn name(&self) -> &'static str {
        "decode rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("expected contiguous F32 room")
        };
        let mut rest = &mut values[start..end];
        let mut skip = self.first;
        for part in self.parts {
            if skip >= part.n_rows() {
                skip -= part.n_rows();
                continue;
            }
            let n = (part.n_rows() - skip).min(rest.len() / part.row_len());
            let (out, tail) = rest.split_at_mut(n * part.row_len());
            part.decode(skip..skip + n, out);
            (rest, skip) = (tail, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockWeight as W;

    fn projections() -> Vec<Rows> {
        let base = BaseModel::open(&crate::base_gguf::base_gguf("llama-gqa")).unwrap();
        [W::Query, W::Key, W::Value].map(|w| base.rows(Weight::Block(0, w)).unwrap()).into()
    }

    #[test]
    fn decoding_may_start_and_end_anywhere() {
        let parts = projections();
        let k = parts[0].row_len();
        let all: Vec<f32> = parts.iter().flat_map(|p| p.to_f32()).collect();
        let n_rows = all.len() / k;
        let border = parts[0].n_rows();
        for (first, n) in [(0, n_rows), (border - 3, 7), (border, 1), (n_rows - 2, 2), (5, n_rows - 9)] {
            let room = Tensor::zeros(n * k, DType::F32, &candle_core::Device::Cpu).unwrap();
            room.inplace_op1(&DecodeRows { parts: &parts, first }).unwrap();
            assert_eq!(room.to_vec1::<f32>().unwrap(), all[first * k..(first + n) * k], "{n} rows from {first}");
        }
    }

    #[test]
    fn products_of_several_pieces_follow_each_other() {
        let parts = projections();
        let k = parts[0].row_len();
        let x: Vec<f32> = (0..9 * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = Tensor::from_slice(&x, (9, k), &candle_core::Device::Cpu).unwrap();
        let by =
            |n| decode_and_multiply_by(n, &x, &parts, &mut Workspace::default()).unwrap().to_vec2::<f32>().unwrap();
        let n_rows: usize = parts.iter().map(Rows::n_rows).sum();
        let whole = by(n_rows);
        for n in [7, n_rows / 2, n_rows - 1] {
            let near = |a: &f32, b: &f32| (a - b).abs() < 1e-5;
            assert!(by(n).iter().flatten().zip(whole.iter().flatten()).all(|(a, b)| near(a, b)), "{n} at a time");
        }
    }

    #[test]
    fn few_and_many_positions_are_projected_alike() {
        let parts = projections();
        let k = parts[0].row_len();
        let w: Vec<f32> = parts.iter().flat_map(|p| p.to_f32()).collect();
        let n = w.len() / k;
        for m in [1, 2, FEW_POSITIONS, FEW_POSITIONS + 1, 33] {
            let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let linear = Linear { matrix: Matrix::Encoded(parts.clone()), bias: None };
            let x_tensor = Tensor::from_slice(&x, (m, k), &candle_core::Device::Cpu).unwrap();
            let y = linear.forward(&x_tensor, &[], m, &mut Workspace::default()).unwrap().to_vec2::<f32>().unwrap();
            for (y, x) in y.iter().zip(x.chunks(k)) {
                assert_eq!(y.len(), n);
                for (y, w) in y.iter().zip(w.chunks(k)) {
                    let truth: f64 = x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    assert!((f64::from(*y) - truth).abs() < 1e-5, "{m} positions");
                }
            }
        }
    }
}
