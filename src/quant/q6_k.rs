//! Q6_K: 256 six-bit numbers in 16 sub-blocks of 16, each with a signed byte as scale.
//!
//! ```text
//!   0                    128                  192              208      210
//!   | bits 0-3 of q      | bits 4-5 of q      | sc: 16 x i8    | d: f16 |
//!
//!   x[i] = d * sc[s] * (q[i] - 32)        s = i / 16
//! ```
//!
//! Of each 128 elements: byte `l` of 64 holds in its nibbles the low bits of elements `l` and `l + 64`, byte `l` of 32
//! the high bits of elements `l`, `l + 32`, `l + 64`, `l + 96`, lowest first.
//! Source: `block_q6_K` in ggml-common.h, `dequantize_row_q6_K`, `quantize_row_q6_K_ref` in ggml-quants.c.

use super::bytes::{f16_at, pack_pairs, put_f16, u16_at};
use super::float::F16_MAX;
use super::search::{self, nearest_int};
use super::simd::Machine;
use super::simd::integer::{Integer, Term};

/// Elements in a block.
pub const LEN: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = D + 2;
/// No element of a block with finite scales is larger in magnitude.
pub const LIMIT: f32 = F16_MAX * 128.0 * 32.0;
/// Elements that share a scale.
pub const GROUP: usize = 16;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 63;
/// Where the scales are.
pub const SCALES: &[usize] = &[D];
/// Elements in a sub-block.
const SUB: usize = 16;
const QH: usize = LEN / 2;
const SC: usize = QH + LEN / 4;
const D: usize = SC + LEN / SUB;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, D);
    // All codes first: bytes in step are vectors of bytes, bytes that are gathered and widened one at a time are not.
    let mut codes = [0; LEN];
    unpack(block, &mut codes);
    for ((sub, codes), scale) in
        out.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(&block[SC..D])
    {
        let scale = d * f32::from(*scale as i8);
        for (x, q) in sub.iter_mut().zip(codes) {
            *x = scale * f32::from(*q as i8 - 32);
        }
    }
}

/// The six bits of every element.
#[inline(always)]
fn unpack(block: &[u8; BYTES], codes: &mut [u8; LEN]) {
    let (low, rest) = block.split_at(QH);
    for ((codes, low), high) in
        codes.as_chunks_mut::<128>().0.iter_mut().zip(low.as_chunks::<64>().0).zip(rest.as_chunks::<32>().0)
    {
        for l in 0..32 {
            let h = high[l];
            codes[l] = low[l] & 15 | (h & 3) << 4;
            codes[l + 32] = low[l + 32] & 15 | (h >> 2 & 3) << 4;
            codes[l + 64] = low[l] >> 4 | (h >> 4 & 3) << 4;
            codes[l + 96] = low[l + 32] >> 4 | (h >> 6) << 4;
        }
    }
}

/// The codes of one block, with scales and minimums.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, _] = machine.halves(u16_at(block, D).into());
    for (term, scale) in terms.iter_mut().zip(&block[SC..D]) {
        let scale = d * f32::from(*scale as i8);
        *term = [scale, -32.0 * scale];
    }
    unpack(block, codes);
}

/// Quantizes one block.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let Ok(subs) = x.as_chunks::<SUB>().0.try_into() else { unreachable!("256 is 16 times 16") };
    let scales = machine.symmetric(subs);
    let max_scale = search::largest(&scales);
    if max_scale.abs() < search::ZERO_BELOW {
        block.fill(0);
        return;
    }
    let iscale = -128.0 / max_scale;
    let d = put_f16(block, D, 1.0 / iscale);
    for (code, scale) in block[SC..D].iter_mut().zip(scales) {
        *code = nearest_int(iscale * scale).min(127) as u8;
    }

    // The codes are rounded again, with the scales that a reader will see.
    let mut codes = [0; LEN];
    for (s, (codes, x)) in codes.as_chunks_mut::<SUB>().0.iter_mut().zip(subs).enumerate() {
        let scale = d * f32::from(block[SC + s] as i8);
        *codes = if scale == 0.0 {
            search::symmetric(x).1
        } else {
            x.map(|x| (nearest_int(x / scale).clamp(-32, 31) + 32) as u8)
        };
    }
    let (low, high) = block[..SC].split_at_mut(QH);
    for (low, codes) in low.chunks_exact_mut(64).zip(codes.as_chunks::<128>().0) {
        for (l, q) in low.iter_mut().enumerate() {
            *q = codes[l] & 15 | codes[l + 64] << 4;
        }
    }
    pack_pairs(&codes.map(|q| q >> 4), high);
}
