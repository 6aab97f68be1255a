//! Q2_K: 256 two-bit numbers in 16 sub-blocks of 16, each with a four-bit scale and minimum.
//!
//! ```text
//!   0                            16                  80       82          84
//!   | per sub-block s:           | q: u2             | d: f16 | dmin: f16 |
//!   | low nibble sc, high mn     | (layout below)    |        |           |
//!
//!   x[i] = d * sc[s] * q[i] - dmin * mn[s]        s = i / 16
//! ```
//!
//! Of each 128 elements, byte `l` of 32 holds elements `l`, `l + 32`, `l + 64`, `l + 96`, lowest bits first.
//! Source: `block_q2_K` in ggml-common.h, `dequantize_row_q2_K`, `quantize_row_q2_K_ref` in ggml-quants.c.

use super::bytes::{f16_at, pack_pairs, put_f16, u32_at};
use super::float::F16_MAX;
use super::search::{self, Affine, Norm, nearest_int};
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = DMIN + 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 15.0 * 3.0;
/// Elements that share a scale.
pub const GROUP: usize = 16;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 3;
/// Where the scales are.
pub const SCALES: &[usize] = &[D, DMIN];
/// Elements in a sub-block.
const SUB: usize = 16;
const QS: usize = LEN / SUB;
const D: usize = QS + LEN / 4;
const DMIN: usize = D + 2;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, D);
    let dmin = f16_at(block, DMIN);
    // All codes first, in vectors of bytes: 32 bytes hold two bits each of four times 32 elements.
    let mut codes = [0; LEN];
    unpack(block, &mut codes);
    for ((sub, codes), sc) in out.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(&block[..QS])
    {
        let scale = d * f32::from(sc & 15);
        let min = dmin * f32::from(sc >> 4);
        for (x, q) in sub.iter_mut().zip(codes) {
            *x = scale * f32::from(*q) - min;
        }
    }
}

/// The two bits of every element.
#[inline(always)]
fn unpack(block: &[u8; BYTES], codes: &mut [u8; LEN]) {
    for (codes, qs) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block[QS..D].as_chunks::<32>().0) {
        for (i, q) in qs.iter().enumerate() {
            codes[i] = q & 3;
            codes[i + 32] = q >> 2 & 3;
            codes[i + 64] = q >> 4 & 3;
            codes[i + 96] = q >> 6;
        }
    }
}

/// The codes of one block, with scales and minimums.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, dmin] = machine.halves(u32_at(block, D));
    for (term, sc) in terms.iter_mut().zip(&block[..QS]) {
        *term = [d * f32::from(sc & 15), -dmin * f32::from(sc >> 4)];
    }
    unpack(block, codes);
}

const SEARCH: Affine = Affine { max_code: 3, first: -0.5, last_step: 15, norm: Norm::Absolute };

/// Quantizes one block.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let subs = x.as_chunks::<SUB>().0;
    let (mut scales, mut mins) = ([0f32; LEN / SUB], [0f32; LEN / SUB]);
    let halves = scales.as_chunks_mut::<8>().0.iter_mut().zip(mins.as_chunks_mut::<8>().0);
    for (subs, (scales, mins)) in subs.as_chunks::<8>().0.iter().zip(halves) {
        (*scales, *mins) = machine.affine(subs, &SEARCH);
    }
    let max_scale = scales.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let max_min = mins.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let inverse = |max: f32| if max > 0.0 { 15.0 / max } else { 0.0 };
    let (inv_scale, inv_min) = (inverse(max_scale), inverse(max_min));
    for s in 0..LEN / SUB {
        // Not masked: what overflows runs into the other nibble, as in ggml.
        let scale = if max_scale > 0.0 { nearest_int(inv_scale * scales[s]) as u8 } else { 0 };
        let min = if max_min > 0.0 { nearest_int(inv_min * mins[s]) as u8 } else { 0 };
        block[s] = scale | min << 4;
    }
    let d = put_f16(block, D, max_scale / 15.0);
    let dmin = put_f16(block, DMIN, max_min / 15.0);

    // The codes are rounded again, with the scales that a reader will see.
    let mut codes = [0; LEN];
    for (s, (codes, x)) in codes.as_chunks_mut::<SUB>().0.iter_mut().zip(subs).enumerate() {
        let scale = d * f32::from(block[s] & 15);
        let min = dmin * f32::from(block[s] >> 4);
        *codes = if scale == 0.0 {
            search::affine(x, &SEARCH).2
        } else {
            x.map(|x| nearest_int((x + min) / scale).clamp(0, 3) as u8)
        };
    }
    pack_pairs(&codes, &mut block[QS..D]);
}
