//! `exp` and `expm1` as straight-line code that the compiler turns into vector instructions.
//!
//! Whole numbers use wrapping operations: nothing can overflow here, and the checks of the others are branches.

/// `exp(x) - 1`, within 2 units in the last place, also near 0. Overflows to infinity, keeps NaN.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let (n, tail) = reduce(x);
    let (a, b) = halves(n);
    // 2^n (1 + tail) - 1, arranged so that nothing cancels for n = 0
    let scale = a * b;
    let large = (1.0 + tail) * a * b - 1.0;
    let small = scale * tail + (scale - 1.0);
    if n.wrapping_abs() > 30 { large } else { small }
}

/// `exp(x)`, within 2 units in the last place. Overflows to infinity, underflows to 0, keeps NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (n, tail) = reduce(x);
    let (a, b) = halves(n);
    (1.0 + tail) * a * b
}

/// `n` and `t` with `exp(x) = 2^n (1 + t)`, `|t| < 0.42`.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    // Beyond these limits the result is 0 or infinite anyway. `clamp` keeps NaN.
    let x = x.clamp(-105.0, 90.0);
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let whole = rounded - ROUND;
    // ln 2 in two parts: the first has so few bits that the product is exact.
    let r = whole.mul_add(-0.693_359_4, x);
    let r = whole.mul_add(2.121_944_4e-4, r);
    // Coefficients of Cephes' expf (Moshier), for |r| <= ln(2)/2.
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    (n, p.mul_add(r * r, r))
}

/// Two powers of two with the product `2^n`, both normal numbers for `|n| < 252`.
#[inline(always)]
fn halves(n: i32) -> (f32, f32) {
    let a = n >> 1;
    (power_of_two(a), power_of_two(n.wrapping_sub(a)))
}

#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the true value.
    fn ulps(found: f32, truth: f64) -> f64 {
        let nearest = truth as f32;
        let unit = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
        (f64::from(found) - truth).abs() / unit
    }

    #[test]
    fn both_are_within_two_units_of_the_last_place() {
        let mut worst = (0f64, 0f64);
        for i in 0..4_000_000u32 {
            let x = -104.0 + f64::from(i) * (192.7 / 4e6);
            for x in [x as f32, (x * 1e-3) as f32, (x * 1e-7) as f32] {
                worst.0 = worst.0.max(ulps(exp(x), f64::from(x).exp()));
                worst.1 = worst.1.max(ulps(exp_m1(x), f64::from(x).exp_m1()));
            }
        }
        assert!(worst.0 <= 2.0 && worst.1 <= 2.0, "{worst:?}");
    }

    #[test]
    fn limits_and_nan_are_those_of_the_functions() {
        assert_eq!((exp(0.0), exp_m1(0.0)), (1.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp_m1(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert_eq!((exp(f32::NEG_INFINITY), exp_m1(f32::NEG_INFINITY)), (0.0, -1.0));
        assert!(exp(f32::NAN).is_nan() && exp_m1(f32::NAN).is_nan());
    }
}
