//! Q5_1: 32 five-bit numbers, a scale and a minimum.
//!
//! ```text
//!   0        2        4                     8                                           24
//!   | d: f16 | m: f16 | bit 4 of q[i] at i  | bits 0-3 of q[0] q[16] .. q[15] q[31]     |        x[i] = d * q[i] + m
//! ```
//!
//! Source: `block_q5_1` in ggml-common.h, `dequantize_row_q5_1`, `quantize_row_q5_1_ref` in ggml-quants.c.

use super::bytes::{f16_at, fifth_bits, five_bit_codes, pack_nibbles, put_f16, u32_at};
use super::float::F16_MAX;
use super::round::reciprocal;
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN / 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 32.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 31;
/// Where the scales are.
pub const SCALES: &[usize] = &[0, MIN];
const MIN: usize = 2;
const QH: usize = 4;
const QS: usize = QH + LEN / 8;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let m = f16_at(block, MIN);
    let qh = u32_at(block, QH);
    for j in 0..LEN / 2 {
        let q = block[QS + j];
        let q0 = q & 15 | (qh >> j << 4) as u8 & 16;
        let q1 = q >> 4 | (qh >> (j + LEN / 2) << 4) as u8 & 16;
        out[j] = f32::from(q0) * d + m;
        out[j + LEN / 2] = f32::from(q1) * d + m;
    }
}

/// The codes of one block, with scale and minimum.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    terms[0] = machine.halves(u32_at(block, 0));
    five_bit_codes(u32_at(block, QH), &block[QS..], codes);
}

/// Quantizes one block: the scale takes the smallest element to 0 and the largest to 31.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let (m, max) = machine.min_max(x);
    let d = (max - m) / 31.0;
    put_f16(block, 0, d);
    put_f16(block, MIN, m);
    let codes = match reciprocal(d) {
        Some(id) => machine.codes(x, m, id, 0.5),
        None => [0; LEN],
    };
    block[QH..QS].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
    pack_nibbles(&codes, &mut block[QS..]);
}
