//! Plain float types: F16 and BF16, converted exactly as ggml does.
//!
//! ```text
//!   F32    s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
//!   BF16   s eeeeeeee mmmmmmm                    the upper half of an F32
//!   F16    s eeeee mmmmmmmmmm                    exponent biased by 15 instead of 127
//! ```
//!
//! Both round to nearest, ties to even. They differ on NaN: BF16 keeps the upper payload bits and sets bit 6 (not the
//! quiet bit alone), F16 keeps only the sign. Source: `ggml_compute_*` in ggml-impl.h.

/// The largest finite F16.
pub const F16_MAX: f32 = 65504.0;

/// The F16 nearest to `value`; values beyond 65504 become infinite, every NaN becomes `0x7E00` with its sign.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let twice = bits << 1; // the sign is shifted out
    // Scaling up and down again turns what F16 cannot hold into infinity, and changes nothing else.
    let scaled = value.abs() * f32::from_bits(0x7780_0000) * f32::from_bits(0x0880_0000); // 2^112, 2^-110
    // Adding a power of two that is 2^13 units larger lets the float unit round the mantissa to 10 bits.
    let bias = (twice & 0xFF00_0000).max(0x7100_0000);
    let rounded = (f32::from_bits((bias >> 1) + 0x0780_0000) + scaled).to_bits();
    // Not `|`: a mantissa that rounds up to 2^10 carries into the exponent.
    let magnitude = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF);
    let magnitude = if twice > 0xFF00_0000 { 0x7E00 } else { magnitude };
    (bits >> 16 & 0x8000 | magnitude) as u16
}

/// The value of an F16, exactly; a NaN becomes quiet and keeps its payload.
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7FFF);
    let bits = if magnitude >= 0x7C00 {
        let quiet = if magnitude > 0x7C00 { 0x0040_0000 } else { 0 };
        ((magnitude << 13) + ((112 + 112) << 23)) | quiet // 31 + 224 = 255, the exponent of infinity
    } else if magnitude >= 0x0400 {
        (magnitude << 13) + (112 << 23)
    } else {
        // Subnormal: the mantissa counts units of 2^-24, and 0.5 has units of 2^-24.
        (f32::from_bits(126 << 23 | magnitude) - 0.5).to_bits()
    };
    f32::from_bits(sign | bits)
}

/// The BF16 nearest to `value`.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let upper = (bits >> 16) as u16;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 {
        return upper | 64;
    }
    // The largest finite value rounds up into infinity, and nothing can wrap: a NaN is not here.
    (bits.wrapping_add(0x7FFF + u32::from(upper & 1)) >> 16) as u16
}

/// The value of a BF16, exactly.
#[inline(always)]
pub fn bf16_to_f32(brain: u16) -> f32 {
    f32::from_bits(u32::from(brain) << 16)
}

/// The F32 nearest to `value`, ties to even; values beyond the range of F32 become infinite.
#[inline(always)]
pub fn f64_to_f32(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Miri, which looks at memory and not at values, takes a sample.
    const STEP: usize = if cfg!(miri) { 997 } else { 1 };

    #[test]
    fn every_f16_becomes_the_value_that_another_implementation_gives_and_comes_back() {
        for bits in (0..=u16::MAX).step_by(STEP) {
            let reference = half::f16::from_bits(bits);
            let value = f16_to_f32(bits);
            if reference.is_nan() {
                assert_eq!(
                    value.to_bits(),
                    (u32::from(bits & 0x8000) << 16) | 0x7FC0_0000 | u32::from(bits & 0x3FF) << 13
                );
                assert_eq!(f32_to_f16(value), bits & 0x8000 | 0x7E00);
            } else {
                assert_eq!(value.to_bits(), reference.to_f32_const().to_bits(), "{bits:#06x}");
                assert_eq!(f32_to_f16(value), bits);
            }
        }
    }

    #[test]
    fn rounding_agrees_with_another_implementation_around_every_border() {
        for bits in (0..0x7BFFu16).step_by(STEP) {
            let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            for value in [middle, middle.next_down(), middle.next_up(), high.next_down(), -middle, -middle.next_up()] {
                assert_eq!(f32_to_f16(value), half::f16::from_f32_const(value).to_bits(), "{value:e}");
            }
        }
        for upper in (0..0x7F80u32).step_by(STEP) {
            for lower in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(upper << 16 | lower);
                assert_eq!(f32_to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
                assert_eq!(f32_to_bf16(-value), half::bf16::from_f32(-value).to_bits(), "{value:e}");
            }
        }
    }

    #[test]
    fn values_outside_the_range_and_nan_are_what_ggml_makes_of_them() {
        for (value, f16, bf16) in [
            (65519.996, 0x7BFF, 0x4780),
            (65520.0, 0x7C00, 0x4780),
            (f32::MAX, 0x7C00, 0x7F80),
            (f32::NEG_INFINITY, 0xFC00, 0xFF80),
            (2f32.powi(-25), 0x0000, 0x3300),
            (2f32.powi(-25) * 1.0001, 0x0001, 0x3300),
            (-0.0, 0x8000, 0x8000),
            (f32::from_bits(1), 0x0000, 0x0000),
            (f32::from_bits(0x7F80_0001), 0x7E00, 0x7FC0),
            (f32::from_bits(0xFFFF_FFFF), 0xFE00, 0xFFFF),
        ] {
            assert_eq!((f32_to_f16(value), f32_to_bf16(value)), (f16, bf16), "{:#x}", value.to_bits());
        }
        assert_eq!(f64_to_f32(1e39), f32::INFINITY);
        assert_eq!(f64_to_f32(1.0 + 2f64.powi(-24)), 1.0, "a tie goes to even");
    }
}
