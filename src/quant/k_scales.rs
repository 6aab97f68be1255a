//! The scales and minimums that Q4_K and Q5_K share: eight of each, six bits wide, in 12 bytes.
//!
//! ```text
//!   byte  0..4    sc[0..4] in bits 0-5, bits 4-5 of sc[4..8] in bits 6-7
//!         4..8    mn[0..4] in bits 0-5, bits 4-5 of mn[4..8] in bits 6-7
//!         8..12   bits 0-3 of sc[4..8] in the low nibble, bits 0-3 of mn[4..8] in the high one
//! ```
//!
//! Source: `get_scale_min_k4` in ggml-quants.c.

use super::bytes::put_f16;
use super::search::{self, Affine, nearest_int};
use super::simd::Machine;
use super::simd::integer::Term;

/// Elements in a block.
const LEN: usize = 256;
/// Elements in a sub-block.
const SUB: usize = LEN / N;
/// Sub-blocks of a block.
pub const N: usize = 8;
/// Bytes of all scales and minimums.
pub const BYTES: usize = 12;
/// Bytes before the codes: `d`, `dmin` and these.
pub const HEADER: usize = 4 + BYTES;

/// Scale and minimum of sub-block `s`, 0 to 63 each.
#[inline(always)]
pub fn unpack(packed: &[u8], s: usize) -> (u8, u8) {
    if s < 4 {
        (packed[s] & 63, packed[s + 4] & 63)
    } else {
        (packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4)
    }
}

/// Scale and negated minimum of every sub-block, given `d` and `dmin`.
#[inline(always)]
pub fn terms([d, dmin]: [f32; 2], packed: &[u8], terms: &mut [Term; N]) {
    for (s, term) in terms.iter_mut().enumerate() {
        let (scale, min) = unpack(packed, s);
        *term = [d * f32::from(scale), -dmin * f32::from(min)];
    }
}

/// Stores all scales and minimums, 0 to 63 each.
#[inline(always)]
pub fn pack(scales: &[u8; N], mins: &[u8; N], packed: &mut [u8]) {
    for s in 0..4 {
        packed[s] = scales[s] | scales[s + 4] >> 4 << 6;
        packed[s + 4] = mins[s] | mins[s + 4] >> 4 << 6;
        packed[s + 8] = scales[s + 4] & 15 | mins[s + 4] << 4;
    }
}

/// What Q4_K and Q5_K quantize alike: searches, stores the header (`d`, `dmin`, packed) and returns the codes.
#[inline(always)]
pub fn quantize(x: &[f32; LEN], header: &mut [u8; HEADER], search: &Affine, machine: impl Machine) -> [u8; LEN] {
    let Ok(subs) = x.as_chunks::<SUB>().0.try_into() else { unreachable!("256 is 8 times 32") };
    let (scales, mins) = machine.affine(subs, search);
    // Negative ones do not count, and become 0 or wrap below as they do in ggml.
    let max_scale = scales.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let max_min = mins.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let six_bits = |value: f32| (nearest_int(value) as u8).min(63);
    let (inv_scale, inv_min) = (inverse(max_scale), inverse(max_min));
    let scale_codes = scales.map(|s| six_bits(inv_scale * s));
    let min_codes = mins.map(|m| six_bits(inv_min * m));
    let d = put_f16(header, 0, max_scale / 63.0);
    let dmin = put_f16(header, 2, max_min / 63.0);
    pack(&scale_codes, &min_codes, &mut header[4..]);

    // The codes are rounded again, with the scales that a reader will see.
    let mut codes = [0; LEN];
    for (s, (codes, x)) in codes.as_chunks_mut::<SUB>().0.iter_mut().zip(subs).enumerate() {
        let scale = d * f32::from(scale_codes[s]);
        let min = dmin * f32::from(min_codes[s]);
        *codes = if scale == 0.0 {
            search::affine(x, search).2
        } else {
            x.map(|x| nearest_int((x + min) / scale).clamp(0, search.max_code) as u8)
        };
    }
    codes
}
