//! Q8_0: 32 signed bytes and one scale.
//!
//! ```text
//!   0        2                                 34
//!   | d: f16 | q[0] .. q[31]: i8               |        x[i] = d * q[i]
//! ```
//!
//! Source: `block_q8_0` in ggml-common.h, `dequantize_row_q8_0`, `quantize_row_q8_0_ref` in ggml-quants.c.

use super::bytes::{f16_at, put_f16, u16_at};
use super::float::F16_MAX;
use super::round::reciprocal;
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 127.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 255;
/// Where the scales are.
pub const SCALES: &[usize] = &[0];
const QS: usize = 2;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    for (x, q) in out.iter_mut().zip(&block[QS..]) {
        *x = f32::from(*q as i8) * d;
    }
}

/// The codes of one block, with scale and minimum.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, _] = machine.halves(u16_at(block, 0).into());
    terms[0] = [d, -128.0 * d];
    for (code, q) in codes.iter_mut().zip(&block[QS..]) {
        *code = q ^ 0x80;
    }
}

/// Quantizes one block: the scale takes the largest magnitude to 127, halves are rounded away from zero.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let d = machine.magnitude(x) / 127.0;
    put_f16(block, 0, d);
    let qs = &mut block[QS..];
    match reciprocal(d) {
        Some(id) => qs.copy_from_slice(bytemuck::bytes_of(&machine.signed_codes(x, id))),
        None => qs.fill(0),
    }
}
