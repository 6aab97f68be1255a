//! Q3_K: 256 three-bit numbers in 16 sub-blocks of 16, each with a signed six-bit scale.
//!
//! ```text
//!   0                      32                     96                         108      110
//!   | bit 2 of q           | bits 0-1 of q        | scales: 16 x u6          | d: f16 |
//!
//!   x[i] = d * (sc[s] - 32) * (q[i] - 4)        s = i / 16
//! ```
//!
//! Bits 0-1: as in Q2_K. Bit 2: bit `i / 32` of byte `i % 32`. Scales: the low four bits of `sc[s]` and `sc[s + 8]`
//! are the nibbles of byte `s`, the high two bits of `sc[s]` are pair `s / 4` of byte `8 + s % 4`.
//! Source: `block_q3_K` in ggml-common.h, `dequantize_row_q3_K`, `quantize_row_q3_K_ref` in ggml-quants.c.

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
pub const LIMIT: f32 = F16_MAX * 32.0 * 4.0;
/// Elements that share a scale.
pub const GROUP: usize = 16;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 7;
/// Where the scales are.
pub const SCALES: &[usize] = &[D];
/// Elements in a sub-block.
const SUB: usize = 16;
const QS: usize = LEN / 8;
const SC: usize = QS + LEN / 4;
const D: usize = SC + 12;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, D);
    for (s, sub) in out.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        let scale = d * f32::from(sub_scale(block, s));
        let shift = s % 8 / 2 * 2;
        let half = s % 2 * SUB;
        let qs = &block[QS + s / 8 * 32 + half..][..SUB];
        let high = &block[half..][..SUB];
        for ((x, q), h) in sub.iter_mut().zip(qs).zip(high) {
            let q = q >> shift & 3 | (h >> (s / 2) & 1) << 2;
            *x = scale * f32::from(q as i8 - 4);
        }
    }
}

/// The scale of sub-block `s`, -32 to 31.
#[inline(always)]
fn sub_scale(block: &[u8; BYTES], s: usize) -> i8 {
    let low = block[SC + s % 8] >> (s / 8 * 4) & 15;
    let high = block[SC + 8 + s % 4] >> (s / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The codes of one block, with scales and minimums.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    let [d, _] = machine.halves(u16_at(block, D).into());
    for (s, term) in terms.iter_mut().enumerate() {
        let scale = d * f32::from(sub_scale(block, s));
        *term = [scale, -4.0 * scale];
    }
    let (high, low) = (&block[..QS], block[QS..SC].as_chunks::<32>().0);
    for (i, (codes, low)) in codes.as_chunks_mut::<128>().0.iter_mut().zip(low).enumerate() {
        for l in 0..32 {
            let (q, h) = (low[l], high[l] >> (4 * i));
            codes[l] = q & 3 | (h & 1) << 2;
            codes[l + 32] = q >> 2 & 3 | (h & 2) << 1;
            codes[l + 64] = q >> 4 & 3 | h & 4;
            codes[l + 96] = q >> 6 | (h & 8) >> 1;
        }
    }
}

/// Quantizes one block.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let Ok(subs) = x.as_chunks::<SUB>().0.try_into() else { unreachable!("256 is 16 times 16") };
    let scales = machine.coordinates(subs);
    let max_scale = search::largest(&scales);
    block[SC..D].fill(0);
    let mut d = 0.0;
    if max_scale != 0.0 {
        let iscale = -32.0 / max_scale;
        for (s, scale) in scales.iter().enumerate() {
            let code = ((nearest_int(iscale * scale) as i8).clamp(-32, 31) + 32) as u8;
            block[SC + s % 8] |= (code & 15) << (s / 8 * 4);
            block[SC + 8 + s % 4] |= code >> 4 << (s / 4 * 2);
        }
        d = 1.0 / iscale;
    }
    let d = put_f16(block, D, d);

    // The codes are rounded again, with the scales that a reader will see.
    let mut codes = [0; LEN];
    for (s, (codes, x)) in codes.as_chunks_mut::<SUB>().0.iter_mut().zip(subs).enumerate() {
        let scale = d * f32::from(sub_scale(block, s));
        *codes = if scale == 0.0 {
            search::coordinates(x).1
        } else {
            x.map(|x| (nearest_int(x / scale).clamp(-4, 3) + 4) as u8)
        };
    }
    let high = &mut block[..QS];
    high.fill(0);
    for (i, codes) in codes.as_chunks::<{ LEN / 8 }>().0.iter().enumerate() {
        for (h, q) in high.iter_mut().zip(codes) {
            *h |= q >> 2 << i;
        }
    }
    pack_pairs(&codes.map(|q| q & 3), &mut block[QS..SC]);
}
