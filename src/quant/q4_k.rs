//! Q4_K: 256 nibbles in eight sub-blocks of 32, each with a six-bit scale and minimum.
//!
//! ```text
//!   0        2           4                        16                  144
//!   | d: f16 | dmin: f16 | sc, mn: 2 x 8 x u6     | q: u4             |
//!
//!   x[i] = d * sc[s] * q[i] - dmin * mn[s]        s = i / 32
//! ```
//!
//! Of each 64 elements, byte `l` of 32 holds element `l` (low nibble) and `l + 32`. Scales: [`super::k_scales`].
//! Source: `block_q4_K` in ggml-common.h, `dequantize_row_q4_K`, `quantize_row_q4_K_ref` in ggml-quants.c.

use super::bytes::{f16_at, u32_at};
use super::float::F16_MAX;
use super::k_scales;
use super::search::{Affine, Norm};
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN / 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 63.0 * 15.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 15;
/// Where the scales are.
pub const SCALES: &[usize] = &[0, DMIN];
/// Elements in a sub-block.
const SUB: usize = LEN / k_scales::N;
const DMIN: usize = 2;
const SC: usize = 4;
const QS: usize = SC + k_scales::BYTES;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let dmin = f16_at(block, DMIN);
    for (s, sub) in out.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        let (sc, mn) = k_scales::unpack(&block[SC..QS], s);
        let scale = d * f32::from(sc);
        let min = dmin * f32::from(mn);
        let shift = s % 2 * 4;
        for (x, q) in sub.iter_mut().zip(&block[QS + s / 2 * SUB..][..SUB]) {
            *x = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// The codes of one block, with scales and minimums.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    k_scales::terms(machine.halves(u32_at(block, 0)), &block[SC..QS], terms);
    for (codes, qs) in codes.as_chunks_mut::<64>().0.iter_mut().zip(block[QS..].as_chunks::<32>().0) {
        for (l, q) in qs.iter().enumerate() {
            codes[l] = q & 15;
            codes[l + 32] = q >> 4;
        }
    }
}

const SEARCH: Affine = Affine { max_code: 15, first: -1.0, last_step: 20, norm: Norm::Squared };

/// Quantizes one block.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let Some((header, qs)) = block.split_first_chunk_mut() else { unreachable!("a block is longer than its header") };
    let codes = k_scales::quantize(x, header, &SEARCH, machine);
    for (qs, codes) in qs.chunks_exact_mut(SUB).zip(codes.chunks_exact(2 * SUB)) {
        let (low, high) = codes.split_at(SUB);
        for ((q, l), h) in qs.iter_mut().zip(low).zip(high) {
            *q = l | h << 4;
        }
    }
}
