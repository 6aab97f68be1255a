//! Elements of a strided view, copied to where they lie contiguously.

use super::SubAxis;

/// Writes to `dst`, one after the other, the elements of `size` bytes that `axes` (without lengths of 1, neighbours
/// merged) reach in `src` from element `offset` on.
pub(super) fn strided(axes: &[SubAxis], offset: usize, src: &[u8], size: usize, dst: &mut [u8]) {
    match size {
        1 => gather_elements::<1>(axes, offset, src, dst),
        2 => gather_elements::<2>(axes, offset, src, dst),
        4 => gather_elements::<4>(axes, offset, src, dst),
        8 => gather_elements::<8>(axes, offset, src, dst),
        _ => gather_wide(axes, offset, src, size, dst),
    }
}

/// Elements of the unit-stride axis moved per step: one cache line of F32.
const TILE: usize = 16;

fn gather_elements<const N: usize>(axes: &[SubAxis], offset: usize, src: &[u8], dst: &mut [u8]) {
    let (src, _) = src.as_chunks::<N>();
    let (dst, _) = dst.as_chunks_mut::<N>();
    match axes.iter().rposition(|a| a.1 == 1) {
        _ if axes.is_empty() => dst[0] = src[offset],
        // The innermost axis is contiguous: copy runs.
        Some(unit) if unit + 1 == axes.len() => {
            let run = axes[unit].0;
            let mut rows = dst.chunks_exact_mut(run);
            for_each_offset(&axes[..unit], offset, &mut |o| {
                if let Some(row) = rows.next() {
                    row.copy_from_slice(&src[o..o + run]);
                }
            });
        }
        // A transposition: the contiguous axis lies further out. Work in tiles of it, so that what is read is whole
        // cache lines and what is written stays in the first-level cache.
        Some(unit) => {
            let inner = &axes[unit + 1..];
            let n_inner: usize = inner.iter().map(|a| a.0).product();
            let mut inner_offsets = Vec::with_capacity(n_inner);
            for_each_offset(inner, 0, &mut |o| inner_offsets.push(o));
            let n_unit = axes[unit].0;
            let mut blocks = dst.chunks_exact_mut(n_unit * n_inner);
            for_each_offset(&axes[..unit], offset, &mut |o| {
                let Some(block) = blocks.next() else { return };
                for (tile, rows) in block.chunks_mut(TILE * n_inner).enumerate() {
                    let n_tile = rows.len() / n_inner;
                    let base = o + tile * TILE;
                    for (k, inner_offset) in inner_offsets.iter().enumerate() {
                        let run = &src[base + inner_offset..][..n_tile];
                        for (i, value) in run.iter().enumerate() {
                            rows[i * n_inner + k] = *value;
                        }
                    }
                }
            });
        }
        None => {
            let mut out = dst.iter_mut();
            for_each_offset(axes, offset, &mut |o| {
                if let Some(d) = out.next() {
                    *d = src[o];
                }
            });
        }
    }
}

/// Elements of any other size: pairs of F64, which nobody has many of.
fn gather_wide(axes: &[SubAxis], offset: usize, src: &[u8], size: usize, dst: &mut [u8]) {
    let mut out = dst.chunks_exact_mut(size);
    for_each_offset(axes, offset, &mut |o| {
        if let Some(element) = out.next() {
            element.copy_from_slice(&src[o * size..][..size]);
        }
    });
}

/// Calls `f` with the element offset of every index, in row-major order.
fn for_each_offset(axes: &[SubAxis], start: usize, f: &mut dyn FnMut(usize)) {
    let mut index = vec![0usize; axes.len()];
    let mut offset = start;
    if axes.iter().any(|a| a.0 == 0) {
        return;
    }
    loop {
        f(offset);
        let mut axis = axes.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            let (len, stride) = axes[axis];
            index[axis] += 1;
            offset += stride;
            if index[axis] < len {
                break;
            }
            offset -= stride * len;
            index[axis] = 0;
        }
    }
}
