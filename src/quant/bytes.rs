//! Little-endian fields of a block, and what its elements have in common.

use super::float::{f16_to_f32, f32_to_f16};

/// The F16 at `offset`, as F32.
#[inline(always)]
pub fn f16_at(block: &[u8], offset: usize) -> f32 {
    f16_to_f32(u16_at(block, offset))
}

/// The two bytes at `offset`.
#[inline(always)]
pub fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

/// The four bytes at `offset`.
#[inline(always)]
pub fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

/// Stores `value` as F16 at `offset`; returns what a reader will see.
#[inline(always)]
pub fn put_f16(block: &mut [u8], offset: usize, value: f32) -> f32 {
    let half = f32_to_f16(value);
    block[offset..offset + 2].copy_from_slice(&half.to_le_bytes());
    f16_to_f32(half)
}

/// `1 / d`, or `None` where rounding with it has no meaning: `d` or its reciprocal overflows.
///
/// ggml then converts NaN or infinity to an integer, which on x86-64 leaves 0 in every code. 0 for `d` = 0.
#[inline(always)]
pub fn reciprocal(d: f32) -> Option<f32> {
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    (d.is_finite() && id.is_finite()).then_some(id)
}

/// Smallest and largest element, the first of several that are equal (0 and -0 are).
#[inline(always)]
pub fn min_max(x: &[f32; 32]) -> (f32, f32) {
    let (mut min, mut max) = ([f32::MAX; 8], [f32::MIN; 8]);
    for x in x.as_chunks::<8>().0 {
        for k in 0..8 {
            min[k] = if x[k] < min[k] { x[k] } else { min[k] };
            max[k] = if x[k] > max[k] { x[k] } else { max[k] };
        }
    }
    let min = min.into_iter().fold(f32::MAX, |a, b| if b < a { b } else { a });
    let max = max.into_iter().fold(f32::MIN, |a, b| if b > a { b } else { a });
    // Lanes mix up the order, which only shows in the sign of zeros.
    let first = |value: f32| if value == 0.0 { x.iter().copied().find(|x| *x == 0.0).unwrap_or(value) } else { value };
    (first(min), first(max))
}

/// The element of largest magnitude, the first of several; 0 when all are 0.
#[inline(always)]
pub fn largest(x: &[f32; 32]) -> f32 {
    let (min, max) = min_max(x);
    if max > -min {
        max
    } else if max < -min {
        min
    } else {
        super::search::largest(x)
    }
}

/// The low four bits of code `j` into the low half of byte `j`, those of code `j + 16` into the high half.
#[inline(always)]
pub fn pack_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for ((q, l), h) in out.iter_mut().zip(low).zip(high) {
        *q = l & 15 | h << 4;
    }
}

/// Bit 4 of code `i` as bit `i`.
#[inline(always)]
pub fn fifth_bits(codes: &[u8; 32]) -> u32 {
    codes.iter().enumerate().fold(0, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i)
}

/// Two-bit codes: of each 128, codes `l`, `l + 32`, `l + 64` and `l + 96` into byte `l` of 32, lowest bits first.
#[inline(always)]
pub fn pack_pairs(codes: &[u8; 256], out: &mut [u8]) {
    for (out, codes) in out.chunks_exact_mut(32).zip(codes.as_chunks::<128>().0) {
        for (l, q) in out.iter_mut().enumerate() {
            *q = codes[l] | codes[l + 32] << 2 | codes[l + 64] << 4 | codes[l + 96] << 6;
        }
    }
}
