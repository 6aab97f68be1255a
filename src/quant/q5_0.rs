//! Q5_0: 32 five-bit numbers and one scale.
//!
//! ```text
//!   0        2                     6                                           22
//!   | d: f16 | bit 4 of q[i] at i  | bits 0-3 of q[0] q[16] .. q[15] q[31]     |        x[i] = d * (q[i] - 16)
//! ```
//!
//! Source: `block_q5_0` in ggml-common.h, `dequantize_row_q5_0`, `quantize_row_q5_0_ref` in ggml-quants.c.

use super::bytes::{f16_at, fifth_bits, five_bit_codes, pack_nibbles, put_f16, u16_at, u32_at};
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
pub const MAX_CODE: u8 = 31;
/// Where the scales are.
pub const SCALES: &[usize] = &[0];
const QH: usize = 2;
const QS: usize = QH + LEN / 8;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let qh = u32_at(block, QH);
    for j in 0..LEN / 2 {
        let q = block[QS + j];
        let q0 = q & 15 | (qh >> j << 4) as u8 & 16;
        let q1 = q >> 4 | (qh >> (j + LEN / 2) << 4) as u8 & 16;
        out[j] = f32::from(q0 as i8 - 16) * d;
        out[j + LEN / 2] = f32::from(q1 as i8 - 16) * d;
    }
}

/// The codes of one block, with scale and minimum.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, _] = machine.halves(u16_at(block, 0).into());
    terms[0] = [d, -16.0 * d];
    five_bit_codes(u32_at(block, QH), &block[QS..], codes);
}

/// Quantizes one block: the scale takes the element of largest magnitude to -16.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let d = machine.largest(x) / -16.0;
    put_f16(block, 0, d);
    let codes = match reciprocal(d) {
        Some(id) => machine.codes(x, 0.0, id, 16.5).map(|q| q.min(31)),
        None => [0; LEN],
    };
    block[QH..QS].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
    pack_nibbles(&codes, &mut block[QS..]);
}
