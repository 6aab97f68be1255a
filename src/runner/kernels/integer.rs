//! Projections by integer products: codes of weights in block formats, activations in 8 bits.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::dot::transposed;
use super::{values, with_values};
use crate::base::Rows;
use crate::quant::product::{Few, Many, Room, Tile};

/// `x` `[m, k]` times the transposed `rows` `[n, k]`: `[m, n]`, for a few `x`, unpacking every row once.
pub struct DotCodes<'a>(pub &'a [Rows]);

/// Rows of weights per thread and step.
const ROWS: usize = 64;

impl CustomOp1 for DotCodes<'_> {
    fn name(&self) -> &'static str {
        "dot with codes"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, k) = layout.shape().dims2()?;
        let x = Few::new(values(storage, layout)?, k);
        let n: usize = self.0.iter().map(Rows::n_rows).sum();
        // [n, m], so that threads write neighbouring values.
        let mut columns = vec![0f32; n * m];
        columns.par_chunks_mut(ROWS * m).enumerate().for_each_init(Room::default, |room, (i, mut out)| {
            for (part, first, n) in runs(self.0, i * ROWS, out.len() / m) {
                let (own, rest) = out.split_at_mut(n * m);
                x.multiply(part.dtype(), &|row| part.encoded(first + row), room, own);
                out = rest;
            }
        });
        let out = if m == 1 { columns } else { transposed(&columns, n, m) };
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

/// The runs of rows in `parts` that `n` rows from `first` on are, counted across all: part, first row in it, number of rows.
fn runs(parts: &[Rows], first: usize, n: usize) -> impl Iterator<Item = (&Rows, usize, usize)> {
    parts
        .iter()
        .scan(0, move |start, part| {
            let (begin, end) = (*start, *start + part.n_rows());
            *start = end;
            let (from, to) = (first.max(begin), (first + n).min(end));
            Some((part, from.saturating_sub(begin), to.saturating_sub(from)))
        })
        .filter(|(_, _, n)| *n > 0)
}

/// Unpacked codes held at a time: 1 MiB, which fits second-level caches together with the activations.
const CHUNK_CODES: usize = 1 << 20;

/// Rows of activations per thread and step: a tile of weights is used for all of them while it is in the first-level cache.
const POSITIONS: usize = 4 * Many::ROWS;

/// `x` `[m, k]` times the transposed `parts` `[n, k]`: `[m, n]`.
pub fn multiply_codes(x: &Tensor, parts: &[Rows], tiles: &mut Vec<Tile>) -> Result<Tensor> {
    let (m, k) = x.dims2()?;
    let activations = with_values(x, |x| Many::new(x, k))?;
    let n: usize = parts.iter().map(Rows::n_rows).sum();
    let mut out = vec![0f32; m * n];
    let n_tiles = (CHUNK_CODES / k / Tile::ROWS).max(1);
    for first in (0..n).step_by(n_tiles * Tile::ROWS) {
        // No tile holds rows of two parts.
        let jobs: Vec<_> = runs(parts, first, (n_tiles * Tile::ROWS).min(n - first))
            .flat_map(|(part, first, n)| {
                let starts = (0..n).step_by(Tile::ROWS);
                starts.map(move |at| (part, first + at, Tile::ROWS.min(n - at)))
            })
            .collect();
        if tiles.len() < jobs.len() {
            tiles.resize_with(jobs.len(), Tile::default);
        }
        let tiles = &mut tiles[..jobs.len()];
        tiles.par_iter_mut().zip(&jobs).for_each_init(Room::default, |room, (tile, (part, first, n))| {
            tile.fill(part.dtype(), (*n, k), &|row| part.encoded(first + row), room);
        });
        let tiles = &*tiles;
        out.par_chunks_mut(POSITIONS * n).enumerate().for_each(|(i, out)| {
            activations.multiply(i * POSITIONS, tiles, (out, n), first);
        });
    }
    Tensor::from_vec(out, (m, n), x.device())
}
