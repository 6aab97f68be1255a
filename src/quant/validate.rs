//! The check that ggml's `ggml_validate_row_data` makes: a block whose scale is not finite poisons every product.

use super::float::f64_to_f32;
use super::{q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};
use crate::DType;

/// Index of the first block (of the first element, for plain types) with a scale or value that is NaN or infinite.
///
/// Knows every type of ggml, also those that [`super::decode`] does not. Integers and NVFP4, all of whose scale bytes
/// are finite, have nothing to find. An F64 counts as the F32 that it becomes, here as in ggml. Asserts that `data` is whole blocks.
pub fn validate_blocks(dtype: DType, data: &[u8]) -> Option<usize> {
    let size = dtype.block_bytes();
    assert!(data.len().is_multiple_of(size), "{} bytes are no whole blocks of {dtype}", data.len());
    let first = |is_bad: &dyn Fn(&[u8]) -> bool| data.chunks_exact(size).position(is_bad);
    match dtype {
        DType::F64 => position(data.as_chunks::<8>().0, |b| !f64_to_f32(f64::from_le_bytes(b)).is_finite()),
        DType::F32 => position(data.as_chunks::<4>().0, |b| !f32::from_le_bytes(b).is_finite()),
        DType::BF16 => position(data.as_chunks::<2>().0, |b| u16::from_le_bytes(b) & 0x7F80 == 0x7F80),
        DType::F16 => position(data.as_chunks::<2>().0, is_not_finite_f16),
        DType::F8_E5M2 => data.iter().position(|b| b & 0x7C == 0x7C),
        DType::F8_E4M3 => data.iter().position(|b| b & 0x7F == 0x7F), // has NaN, no infinity
        DType::Q8_K => first(&|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        DType::MXFP4 => first(&|b| b[0] == 0xFF),
        DType::IQ1_M => first(&|b| is_not_finite_f16(iq1_m_scale(b))),
        _ => match f16_scales(dtype) {
            [] => None,
            offsets => first(&|b| offsets.iter().any(|o| is_not_finite_f16([b[*o], b[o + 1]]))),
        },
    }
}

/// Offsets of the F16 scales of a block.
fn f16_scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q8_0 => q8_0::SCALES,
        DType::Q5_0 => q5_0::SCALES,
        DType::Q5_1 => q5_1::SCALES,
        DType::Q4_0 => q4_0::SCALES,
        DType::Q4_1 => q4_1::SCALES,
        DType::Q6_K => q6_k::SCALES,
        DType::Q5_K => q5_k::SCALES,
        DType::Q4_K => q4_k::SCALES,
        DType::Q3_K => q3_k::SCALES,
        DType::Q2_K => q2_k::SCALES,
        DType::Q8_1 => &[0, 2],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::Q1_0
        | DType::Q2_0
        | DType::IQ1_S
        | DType::IQ2_XXS
        | DType::IQ2_XS
        | DType::IQ2_S
        | DType::IQ3_XXS
        | DType::IQ3_S
        | DType::IQ4_XS
        | DType::IQ4_NL => &[0],
        _ => &[],
    }
}

fn is_not_finite_f16(bytes: [u8; 2]) -> bool {
    u16::from_le_bytes(bytes) & 0x7C00 == 0x7C00
}

/// The scale of an IQ1_M block is spread over the high nibbles of its last four 16-bit words.
fn iq1_m_scale(block: &[u8]) -> [u8; 2] {
    let nibble = |word: usize| block[48 + 2 * word + 1] >> 4;
    [nibble(0) | nibble(1) << 4, nibble(2) | nibble(3) << 4]
}

/// Index of the first element for which `is_bad`; whole chunks are tested without a branch each.
pub(super) fn position<T: Copy>(elements: &[T], is_bad: impl Fn(T) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    for (i, chunk) in elements.chunks(CHUNK).enumerate() {
        if chunk.iter().fold(false, |any, x| any | is_bad(*x)) {
            return chunk.iter().position(|x| is_bad(*x)).map(|k| i * CHUNK + k);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_element_that_is_not_finite_is_named() {
        let mut values = vec![1.5f32; 3000];
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(validate_blocks(DType::F32, &bytes(&values)), None);
        values[2047] = f32::NAN;
        values[2900] = f32::INFINITY;
        assert_eq!(validate_blocks(DType::F32, &bytes(&values)), Some(2047));
        for (dtype, bad, good) in [
            (DType::F16, 0x7C00u16, 0x7BFFu16),
            (DType::F16, 0xFE00, 0xFBFF),
            (DType::BF16, 0xFF80, 0xFF7F),
            (DType::BF16, 0x7FC0, 0x7F7F),
        ] {
            let mut data = good.to_le_bytes().repeat(5);
            assert_eq!(validate_blocks(dtype, &data), None);
            data[6..8].copy_from_slice(&bad.to_le_bytes());
            assert_eq!(validate_blocks(dtype, &data), Some(3));
        }
        for (value, found) in [(f64::from(f32::MAX), None), (1e39, Some(1)), (f64::NEG_INFINITY, Some(1))] {
            let data = [1.0, value].map(f64::to_le_bytes).concat();
            assert_eq!(validate_blocks(DType::F64, &data), found, "{value}");
        }
    }

    #[test]
    fn every_scale_of_every_format_counts_and_nothing_else_does() {
        for dtype in DType::ALL.iter().copied().filter(|d| d.is_quantized()) {
            let offsets = f16_scales(dtype);
            for offset in 0..dtype.block_bytes() - 1 {
                let mut data = vec![0; 3 * dtype.block_bytes()];
                let at = dtype.block_bytes() + offset;
                data[at..at + 2].copy_from_slice(&0xFC00u16.to_le_bytes());
                let expected = match dtype {
                    DType::Q8_K | DType::MXFP4 | DType::IQ1_M => continue,
                    _ => offsets.contains(&offset).then_some(1),
                };
                assert_eq!(validate_blocks(dtype, &data), expected, "{dtype} {offset}");
            }
        }
        assert_eq!(validate_blocks(DType::MXFP4, &[[0xFE; 17], [0xFF; 17]].concat()), Some(1));
        let mut q8_k = vec![0; 292];
        q8_k[..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        assert_eq!(validate_blocks(DType::Q8_K, &q8_k), Some(0));
        let mut iq1_m = vec![0; 56];
        (iq1_m[53], iq1_m[55]) = (0xC0, 0x70); // nibbles C of bits 8-11, 7 of bits 12-15
        assert_eq!(validate_blocks(DType::IQ1_M, &iq1_m), Some(0));
        iq1_m[53] = 0xB0;
        assert_eq!(validate_blocks(DType::IQ1_M, &iq1_m), None);
    }
}
