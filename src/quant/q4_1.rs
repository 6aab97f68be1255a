//! Q4_1: 32 nibbles, a scale and a minimum.
//!
//! ```text
//!   0        2        4                                 20
//!   | d: f16 | m: f16 | q[0] q[16] .. q[15] q[31]: u4   |        x[i] = d * q[i] + m
//! ```
//!
//! The low nibble of byte `j` is element `j`, the high one element `j + 16`.
//! Source: `block_q4_1` in ggml-common.h, `dequantize_row_q4_1`, `quantize_row_q4_1_ref` in ggml-quants.c.

use super::bytes::{f16_at, pack_nibbles, put_f16, u32_at};
use super::float::F16_MAX;
use super::round::reciprocal;
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN / 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 16.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 15;
/// Where the scales are.
pub const SCALES: &[usize] = &[0, MIN];
const MIN: usize = 2;
const QS: usize = 4;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let m = f16_at(block, MIN);
    let (low, high) = out.split_at_mut(LEN / 2);
    for ((x0, x1), q) in low.iter_mut().zip(high).zip(&block[QS..]) {
        *x0 = f32::from(q & 15) * d + m;
        *x1 = f32::from(q >> 4) * d + m;
    }
}

/// The codes of one block, with scale and minimum.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    terms[0] = machine.halves(u32_at(block, 0));
    for (j, q) in block[QS..].iter().enumerate() {
        codes[j] = q & 15;
        codes[j + LEN / 2] = q >> 4;
    }
}

/// Quantizes one block: the scale takes the smallest element to 0 and the largest to 15.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let (m, max) = machine.min_max(x);
    let d = (max - m) / 15.0;
    put_f16(block, 0, d);
    put_f16(block, MIN, m);
    let codes = match reciprocal(d) {
        Some(id) => machine.codes(x, m, id, 0.5).map(|q| q.min(15)),
        None => [0; LEN],
    };
    pack_nibbles(&codes, &mut block[QS..]);
}
