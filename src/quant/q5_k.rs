//! Q5_K: 256 five-bit numbers in eight sub-blocks of 32, each with a six-bit scale and minimum.
//!
//! ```text
//!   0        2           4                        16             48                   176
//!   | d: f16 | dmin: f16 | sc, mn: 2 x 8 x u6     | bit 4 of q   | bits 0-3 of q      |
//!
//!   x[i] = d * sc[s] * q[i] - dmin * mn[s]        s = i / 32
//! ```
//!
//! Bits 0-3: as in Q4_K. Bit 4: bit `i / 32` of byte `i % 32`. Scales: [`super::k_scales`].
//! Source: `block_q5_K` in ggml-common.h, `dequantize_row_q5_K`, `quantize_row_q5_K_ref` in ggml-quants.c.

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
pub const LIMIT: f32 = F16_MAX * 63.0 * 31.0;
/// Elements that share a scale.
pub const GROUP: usize = 32;
/// The largest of [`codes`].
pub const MAX_CODE: u8 = 31;
/// Where the scales are.
pub const SCALES: &[usize] = &[0, DMIN];
/// Elements in a sub-block.
const SUB: usize = LEN / k_scales::N;
const DMIN: usize = 2;
const SC: usize = 4;
const QH: usize = SC + k_scales::BYTES;
const QS: usize = QH + LEN / 8;

/// Decodes one block.
#[inline(always)]
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    let dmin = f16_at(block, DMIN);
    // All codes first, in vectors of bytes: byte `l` of 32 has the high bits of eight codes.
    let mut codes = [0; LEN];
    unpack(block, &mut codes);
    for (s, (sub, codes)) in out.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).enumerate() {
        let (sc, mn) = k_scales::unpack(&block[SC..QH], s);
        let scale = d * f32::from(sc);
        let min = dmin * f32::from(mn);
        for (x, q) in sub.iter_mut().zip(codes) {
            *x = scale * f32::from(*q) - min;
        }
    }
}

/// The five bits of every element.
#[inline(always)]
fn unpack(block: &[u8; BYTES], codes: &mut [u8; LEN]) {
    let (high, low) = (&block[QH..QS], &block[QS..]);
    for l in 0..SUB {
        let (h, q) = (high[l], [low[l], low[l + 32], low[l + 64], low[l + 96]]);
        codes[l] = q[0] & 15 | (h & 1) << 4;
        codes[l + 32] = q[0] >> 4 | (h & 2) << 3;
        codes[l + 64] = q[1] & 15 | (h & 4) << 2;
        codes[l + 96] = q[1] >> 4 | (h & 8) << 1;
        codes[l + 128] = q[2] & 15 | (h & 16);
        codes[l + 160] = q[2] >> 4 | (h & 32) >> 1;
        codes[l + 192] = q[3] & 15 | (h & 64) >> 2;
        codes[l + 224] = q[3] >> 4 | (h & 128) >> 3;
    }
}

/// The codes of one block, with scales and minimums.
#[inline(always)]
pub fn codes(block: &[u8; BYTES], codes: &mut [u8; LEN], terms: &mut [Term; LEN / GROUP], machine: impl Integer) {
    k_scales::terms(machine.halves(u32_at(block, 0)), &block[SC..QH], terms);
    unpack(block, codes);
}

const SEARCH: Affine = Affine { max_code: 31, first: -0.5, last_step: 15, norm: Norm::Squared };

/// Quantizes one block.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], block: &mut [u8; BYTES], machine: impl Machine) {
    let Some((header, qs)) = block.split_first_chunk_mut() else { unreachable!("a block is longer than its header") };
    let codes = k_scales::quantize(x, header, &SEARCH, machine);
    let (qh, qs) = qs.split_at_mut(QS - QH);
    for (qs, codes) in qs.chunks_exact_mut(SUB).zip(codes.chunks_exact(2 * SUB)) {
        let (low, high) = codes.split_at(SUB);
        for ((q, l), h) in qs.iter_mut().zip(low).zip(high) {
            *q = l & 15 | h << 4;
        }
    }
    qh.fill(0);
    for (s, codes) in codes.as_chunks::<SUB>().0.iter().enumerate() {
        for (h, q) in qh.iter_mut().zip(codes) {
            *h |= q >> 4 << s;
        }
    }
}
