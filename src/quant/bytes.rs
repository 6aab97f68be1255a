//! Fields of a block: little-endian numbers, and codes that share bytes.

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

/// The low four bits of code `j` into the low half of byte `j`, those of code `j + 16` into the high half.
#[inline(always)]
pub fn pack_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for ((q, l), h) in out.iter_mut().zip(low).zip(high) {
        *q = l & 15 | h << 4;
    }
}

/// 32 codes of five bits: bit 4 of each in `high`, bits 0-3 as [`pack_nibbles`] stores them.
#[inline(always)]
pub fn five_bit_codes(high: u32, low: &[u8], codes: &mut [u8; 32]) {
    for (j, q) in low.iter().enumerate() {
        codes[j] = q & 15;
        codes[j + 16] = q >> 4;
    }
    for (codes, bits) in codes.as_chunks_mut::<8>().0.iter_mut().zip(high.to_le_bytes()) {
        // Bit `j` alone in byte `j`, then at bit 4 of it: adding 127 to a byte sets its top bit unless it is zero.
        let alone = u64::from(bits).wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let fifth = alone.wrapping_add(0x7F7F_7F7F_7F7F_7F7F) >> 3 & 0x1010_1010_1010_1010;
        *codes = (u64::from_le_bytes(*codes) | fifth).to_le_bytes();
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
