//! Q8_0: 32 signed bytes and one scale.
//!
//! ```text
//!   0        2                                 34
//!   | d: f16 | q[0] .. q[31]: i8               |        x[i] = d * q[i]
//! ```
//!
//! Source: `block_q8_0` in ggml-common.h, `dequantize_row_q8_0`, `quantize_row_q8_0_ref` in ggml-quants.c.

use super::bytes::{f16_at, put_f16, reciprocal};
use super::simd::Machine;

/// Elements in a block.
pub const LEN: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = QS + LEN;
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

/// Quantizes one block: the scale takes the largest magnitude to 127, halves are rounded away from zero.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], _: impl Machine) {
    let mut magnitudes = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for k in 0..8 {
            magnitudes[k] = if x[k].abs() > magnitudes[k] { x[k].abs() } else { magnitudes[k] };
        }
    }
    let magnitude = magnitudes.into_iter().fold(0f32, |a, b| if b > a { b } else { a });
    let d = magnitude / 127.0;
    put_f16(block, 0, d);
    let qs = &mut block[QS..];
    match reciprocal(d) {
        Some(id) => qs.iter_mut().zip(x).for_each(|(q, x)| *q = (x * id).round() as i8 as u8),
        None => qs.fill(0),
    }
}
