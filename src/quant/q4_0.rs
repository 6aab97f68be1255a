//! Q4_0: 32 nibbles and one scale.
//!
//! ```text
//!   0        2                                 18
//!   | d: f16 | q[0] q[16] .. q[15] q[31]: u4   |        x[i] = d * (q[i] - 8)
//! ```
//!
//! The low nibble of byte `j` is element `j`, the high one element `j + 16`.
//! Source: `block_q4_0` in ggml-common.h, `dequantize_row_q4_0`, `quantize_row_q4_0_ref` in ggml-quants.c.

use super::bytes::{f16_at, pack_nibbles, put_f16, u16_at};
use super::float::F16_MAX;
use super::round::reciprocal;
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN / 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 8.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 15;
/// Where the scales are.
pub const SCALES: &[usize] = &[0];
const QS: usize = 2;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let (low, high) = out.split_at_mut(LEN / 2);
    for ((x0, x1), q) in low.iter_mut().zip(high).zip(&block[QS..]) {
        *x0 = f32::from((q & 15) as i8 - 8) * d;
        *x1 = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// The codes of one block, with scale and minimum.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, _] = machine.halves(u16_at(block, 0).into());
    terms[0] = [d, -8.0 * d];
    for (j, q) in block[QS..].iter().enumerate() {
        codes[j] = q & 15;
        codes[j + LEN / 2] = q >> 4;
    }
}

/// Quantizes one block: the scale takes the element of largest magnitude to -8.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let d = machine.largest(x) / -8.0;
    put_f16(block, 0, d);
    let codes = match reciprocal(d) {
        Some(id) => machine.codes(x, 0.0, id, 8.5).map(|q| q.min(15)),
        None => [0; LEN],
    };
    pack_nibbles(&codes, &mut block[QS..]);
}
