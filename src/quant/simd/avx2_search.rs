//! The searches on eight sub-blocks at once, with AVX2.
//!
//! `x[i]` holds element `i` of eight sub-blocks; lane `k` of every vector belongs to sub-block `k`. Each lane does what
//! the scalar reference in [`crate::search`] does, operation by operation; branches become selections.
//!
//! Rounding to a code takes three operations here instead of the reference's six, by staying in F32. That is only
//! equal while what is rounded is small (see [`Rounded`]); where it might not be, the reference does the work.

use std::arch::x86_64::*;

use crate::search::{Affine, COORDINATE_ROUNDS, Norm, ROUNDER, SYMMETRIC_STEPS, ZERO_BELOW};

/// `|v|` up to which adding [`ROUNDER`] rounds to an integer and keeps the sign (the reference asserts the same).
const ROUNDABLE: f32 = 4_194_303.0;

/// Rounds to integers from `low` to `high`, as floats. For `|v| <= ROUNDABLE` this is the reference's `nearest_int`
/// with its clamps.
#[derive(Clone, Copy)]
struct Rounded {
    low: __m256,
    high: __m256,
}

impl Rounded {
    #[target_feature(enable = "avx2")]
    fn between(low: i32, high: i32) -> Self {
        Rounded { low: _mm256_set1_ps(ROUNDER + low as f32), high: _mm256_set1_ps(ROUNDER + high as f32) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn round(self, v: __m256) -> __m256 {
        let shifted = _mm256_add_ps(v, _mm256_set1_ps(ROUNDER));
        _mm256_sub_ps(_mm256_min_ps(_mm256_max_ps(shifted, self.low), self.high), _mm256_set1_ps(ROUNDER))
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn abs(v: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)
}

#[inline]
#[target_feature(enable = "avx2")]
fn array(v: __m256) -> [f32; 8] {
    bytemuck::cast(v)
}

/// Whether every lane is at most [`ROUNDABLE`] in magnitude; NaN is not.
#[inline]
#[target_feature(enable = "avx2")]
fn all_roundable(v: __m256) -> bool {
    let small = _mm256_cmp_ps::<_CMP_LE_OQ>(abs(v), _mm256_set1_ps(ROUNDABLE));
    _mm256_movemask_ps(small) == 0xFF
}

#[target_feature(enable = "avx2")]
pub fn affine<const SUB: usize>(subs: &[[f32; SUB]; 8], p: &Affine) -> Option<([f32; 8], [f32; 8])> {
    let zero = _mm256_setzero_ps();
    let x = transpose(subs);
    let w = weights(&x, p.norm);

    let (mut lowest, mut highest) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = _mm256_mul_ps(w[0], x[0]);
    for i in 1..SUB {
        lowest = _mm256_min_ps(x[i], lowest);
        highest = _mm256_max_ps(x[i], highest);
        sum_w = _mm256_add_ps(sum_w, w[i]);
        sum_x = _mm256_add_ps(sum_x, _mm256_mul_ps(w[i], x[i]));
    }
    let mut min = _mm256_min_ps(zero, lowest);
    let flat = _mm256_cmp_ps::<_CMP_EQ_OQ>(highest, min);
    let flat_min = min;

    let rounded = Rounded::between(0, p.max_code);
    // Flat sub-blocks have no scale; with 0 in its place they do no harm until the end.
    let inverse_scale = |divisor: f32, min: __m256| {
        _mm256_andnot_ps(flat, _mm256_div_ps(_mm256_set1_ps(divisor), _mm256_sub_ps(highest, min)))
    };
    // Subtraction and multiplication round monotonically, so all elements lie between these two.
    let in_range = |iscale: __m256, min: __m256| {
        all_roundable(_mm256_mul_ps(iscale, _mm256_sub_ps(lowest, min)))
            && all_roundable(_mm256_mul_ps(iscale, _mm256_sub_ps(highest, min)))
    };
    let mut codes = [zero; SUB];
    let error = |scale: __m256, min: __m256, codes: &[__m256; SUB]| {
        let mut sum = zero;
        for i in 0..SUB {
            let diff = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(scale, codes[i]), min), x[i]);
            let diff = if p.norm == Norm::Absolute { abs(diff) } else { _mm256_mul_ps(diff, diff) };
            sum = _mm256_add_ps(sum, _mm256_mul_ps(w[i], diff));
        }
        sum
    };

    let iscale = inverse_scale(p.max_code as f32, min);
    if !in_range(iscale, min) {
        return None;
    }
    for i in 0..SUB {
        codes[i] = rounded.round(_mm256_mul_ps(iscale, _mm256_sub_ps(x[i], min)));
    }
    let mut scale = _mm256_div_ps(_mm256_set1_ps(1.0), iscale);
    let mut best_error = error(scale, min, &codes);
    for step in 0..=p.last_step {
        let iscale = inverse_scale(p.divisor(step), min);
        if !in_range(iscale, min) {
            return None;
        }
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..SUB {
            let l = rounded.round(_mm256_mul_ps(iscale, _mm256_sub_ps(x[i], min)));
            let wl = _mm256_mul_ps(w[i], l);
            sum_l = _mm256_add_ps(sum_l, wl);
            sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(wl, l));
            sum_xl = _mm256_add_ps(sum_xl, _mm256_mul_ps(wl, x[i]));
            codes[i] = l;
        }
        let determinant = _mm256_sub_ps(_mm256_mul_ps(sum_w, sum_l2), _mm256_mul_ps(sum_l, sum_l));
        let this_scale = _mm256_sub_ps(_mm256_mul_ps(sum_w, sum_xl), _mm256_mul_ps(sum_x, sum_l));
        let this_scale = _mm256_div_ps(this_scale, determinant);
        let this_min = _mm256_sub_ps(_mm256_mul_ps(sum_l2, sum_x), _mm256_mul_ps(sum_l, sum_xl));
        let this_min = _mm256_div_ps(this_min, determinant);
        let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(this_min, zero);
        let this_scale = _mm256_blendv_ps(this_scale, _mm256_div_ps(sum_xl, sum_l2), positive);
        let this_min = _mm256_andnot_ps(positive, this_min);

        let this_error = error(this_scale, this_min, &codes);
        let better = _mm256_and_ps(
            _mm256_cmp_ps::<_CMP_GT_OQ>(determinant, zero),
            _mm256_cmp_ps::<_CMP_LT_OQ>(this_error, best_error),
        );
        best_error = _mm256_blendv_ps(best_error, this_error, better);
        scale = _mm256_blendv_ps(scale, this_scale, better);
        min = _mm256_blendv_ps(min, this_min, better);
    }
    let scale = _mm256_andnot_ps(flat, scale);
    let min = _mm256_blendv_ps(min, flat_min, flat);
    Some((array(scale), array(_mm256_xor_ps(min, _mm256_set1_ps(-0.0)))))
}

#[target_feature(enable = "avx2")]
fn weights<const SUB: usize>(x: &[__m256; SUB], norm: Norm) -> [__m256; SUB] {
    let mut offset = _mm256_setzero_ps();
    if norm == Norm::Squared {
        for x in x {
            offset = _mm256_add_ps(offset, _mm256_mul_ps(*x, *x));
        }
        offset = _mm256_sqrt_ps(_mm256_div_ps(offset, _mm256_set1_ps(SUB as f32)));
    }
    // Adding 0 to a magnitude changes nothing.
    let mut w = *x;
    for w in &mut w {
        *w = _mm256_add_ps(offset, abs(*w));
    }
    w
}

#[target_feature(enable = "avx2")]
pub fn symmetric(subs: &[[f32; 16]; 16]) -> Option<[f32; 16]> {
    const MAX_CODE: i32 = 32;
    let zero = _mm256_setzero_ps();
    let rounded = Rounded::between(-MAX_CODE, MAX_CODE - 1);
    let mut scales = [0f32; 16];
    for (subs, scales) in subs.as_chunks::<8>().0.iter().zip(scales.as_chunks_mut::<8>().0) {
        let x = transpose(subs);
        let (max, is_zero) = largest(&x);
        let mut w = x;
        let mut wx = x;
        for i in 0..16 {
            w[i] = _mm256_mul_ps(x[i], x[i]);
            wx[i] = _mm256_mul_ps(w[i], x[i]);
        }
        let sums = |iscale: __m256| {
            let (mut sum_lx, mut sum_l2) = (zero, zero);
            for i in 0..16 {
                let l = rounded.round(_mm256_mul_ps(iscale, x[i]));
                sum_lx = _mm256_add_ps(sum_lx, _mm256_mul_ps(wx[i], l));
                sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(_mm256_mul_ps(w[i], l), l));
            }
            (sum_lx, sum_l2)
        };
        let inverse_scale = |codes: f32| _mm256_andnot_ps(is_zero, _mm256_div_ps(_mm256_set1_ps(-codes), max));

        // The last step has the largest factor, and no element is larger than `max`.
        let widest = MAX_CODE as f32 + 0.1 * f32::from(SYMMETRIC_STEPS[SYMMETRIC_STEPS.len() - 1]);
        if !all_roundable(_mm256_mul_ps(inverse_scale(widest), max)) {
            return None;
        }
        let (sum_lx, sum_l2) = sums(inverse_scale(MAX_CODE as f32));
        let any = _mm256_cmp_ps::<_CMP_NEQ_UQ>(sum_l2, zero);
        let mut scale = _mm256_and_ps(any, _mm256_div_ps(sum_lx, sum_l2));
        let mut best = _mm256_mul_ps(scale, sum_lx);
        for step in SYMMETRIC_STEPS {
            let (sum_lx, sum_l2) = sums(inverse_scale(MAX_CODE as f32 + 0.1 * f32::from(step)));
            let better = _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_GT_OQ>(sum_l2, zero),
                _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_mul_ps(sum_lx, sum_lx), _mm256_mul_ps(best, sum_l2)),
            );
            let this_scale = _mm256_div_ps(sum_lx, sum_l2);
            scale = _mm256_blendv_ps(scale, this_scale, better);
            best = _mm256_blendv_ps(best, _mm256_mul_ps(this_scale, sum_lx), better);
        }
        *scales = array(_mm256_andnot_ps(is_zero, scale));
    }
    Some(scales)
}

#[target_feature(enable = "avx2")]
pub fn coordinates(subs: &[[f32; 16]; 16]) -> [f32; 16] {
    let (low, high) = subs.split_at(8);
    let (Ok(low), Ok(high)) = (low.try_into(), high.try_into()) else { unreachable!("16 is 8 and 8") };
    // Two searches side by side: each waits for its own divisions most of the time.
    let mut pair = [Coordinates::start(low), Coordinates::start(high)];
    for _ in 0..COORDINATE_ROUNDS {
        let mut changed = 0;
        for i in 0..16 {
            for search in &mut pair {
                changed |= search.step(i);
            }
        }
        // A round without a change repeats itself, so lanes that are done may go on with the others.
        if changed == 0 {
            break;
        }
    }
    let mut scales = [0f32; 16];
    for (scales, search) in scales.as_chunks_mut::<8>().0.iter_mut().zip(pair) {
        *scales = array(search.scale());
    }
    scales
}

struct Coordinates {
    x: [__m256; 16],
    codes: [__m256; 16],
    sum_lx: __m256,
    sum_l2: __m256,
    is_zero: __m256,
}

impl Coordinates {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn start(subs: &[[f32; 16]; 8]) -> Self {
        let x = transpose(subs);
        let (max, is_zero) = largest(&x);
        let iscale = _mm256_andnot_ps(is_zero, _mm256_div_ps(_mm256_set1_ps(-4.0), max));
        let mut codes = x;
        let (mut sum_lx, mut sum_l2) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for i in 0..16 {
            let l = Self::round(_mm256_mul_ps(iscale, x[i]));
            let w = _mm256_mul_ps(x[i], x[i]);
            sum_lx = _mm256_add_ps(sum_lx, _mm256_mul_ps(_mm256_mul_ps(w, x[i]), l));
            sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(_mm256_mul_ps(w, l), l));
            codes[i] = l;
        }
        Coordinates { x, codes, sum_lx, sum_l2, is_zero }
    }

    /// Tries to move element `i`; a bit for every lane in which it moved.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn step(&mut self, i: usize) -> i32 {
        let zero = _mm256_setzero_ps();
        let (x, l) = (self.x[i], self.codes[i]);
        let w = _mm256_mul_ps(x, x);
        let wx = _mm256_mul_ps(w, x);
        let lx = _mm256_sub_ps(self.sum_lx, _mm256_mul_ps(wx, l));
        let l2 = _mm256_sub_ps(self.sum_l2, _mm256_mul_ps(_mm256_mul_ps(w, l), l));
        let code = Self::round(_mm256_div_ps(_mm256_mul_ps(x, l2), lx));
        let tried = _mm256_and_ps(
            _mm256_cmp_ps::<_CMP_GT_OQ>(lx, zero),
            _mm256_andnot_ps(self.is_zero, _mm256_cmp_ps::<_CMP_NEQ_UQ>(code, l)),
        );
        if _mm256_movemask_ps(tried) == 0 {
            return 0; // most elements stay; the processor guesses so and does not wait for the division
        }
        let lx = _mm256_add_ps(lx, _mm256_mul_ps(wx, code));
        let l2 = _mm256_add_ps(l2, _mm256_mul_ps(_mm256_mul_ps(w, code), code));
        let gain = _mm256_cmp_ps::<_CMP_GT_OQ>(
            _mm256_mul_ps(_mm256_mul_ps(lx, lx), self.sum_l2),
            _mm256_mul_ps(_mm256_mul_ps(self.sum_lx, self.sum_lx), l2),
        );
        let moved = _mm256_and_ps(_mm256_and_ps(tried, gain), _mm256_cmp_ps::<_CMP_GT_OQ>(l2, zero));
        self.codes[i] = _mm256_blendv_ps(l, code, moved);
        self.sum_lx = _mm256_blendv_ps(self.sum_lx, lx, moved);
        self.sum_l2 = _mm256_blendv_ps(self.sum_l2, l2, moved);
        _mm256_movemask_ps(moved)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn scale(&self) -> __m256 {
        let any = _mm256_cmp_ps::<_CMP_GT_OQ>(self.sum_l2, _mm256_setzero_ps());
        let scale = _mm256_and_ps(any, _mm256_div_ps(self.sum_lx, self.sum_l2));
        _mm256_andnot_ps(self.is_zero, scale)
    }

    /// The reference's `nearest_int` for every value, clamped to -4 and 3: a quotient here may be of any size.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn round(v: __m256) -> __m256 {
        let bits = _mm256_castps_si256(_mm256_add_ps(v, _mm256_set1_ps(ROUNDER)));
        let mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(0x007F_FFFF));
        let code = _mm256_sub_epi32(mantissa, _mm256_set1_epi32(0x0040_0000));
        let code = _mm256_max_epi32(_mm256_min_epi32(code, _mm256_set1_epi32(3)), _mm256_set1_epi32(-4));
        _mm256_cvtepi32_ps(code)
    }
}

/// The element of largest magnitude in each lane, the first of several, and the lanes that count as zero.
#[inline]
#[target_feature(enable = "avx2")]
fn largest(x: &[__m256; 16]) -> (__m256, __m256) {
    let (mut max, mut magnitude) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for x in x {
        let larger = _mm256_cmp_ps::<_CMP_GT_OQ>(abs(*x), magnitude);
        magnitude = _mm256_blendv_ps(magnitude, abs(*x), larger);
        max = _mm256_blendv_ps(max, *x, larger);
    }
    (max, _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, _mm256_set1_ps(ZERO_BELOW)))
}

/// Element `i` of every sub-block into vector `i`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose<const SUB: usize>(subs: &[[f32; SUB]; 8]) -> [__m256; SUB] {
    let mut x = [_mm256_setzero_ps(); SUB];
    for (i, x) in x.iter_mut().enumerate() {
        let [a, b, c, d, e, f, g, h] = subs;
        *x = _mm256_setr_ps(a[i], b[i], c[i], d[i], e[i], f[i], g[i], h[i]);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::nearest_int;

    #[test]
    fn rounding_in_f32_is_the_reference_s_wherever_it_is_used() {
        if super::super::avx2::Avx2::detect().is_none() {
            return;
        }
        let edge = [0.5, 1.5, 2.5, 3.5, 14.5, 15.5, 1e3, 4_194_302.5, ROUNDABLE].map(|v: f32| [v, v.next_down()]);
        for value in edge.into_iter().flatten().flat_map(|v| [v, -v]).chain([0.0, -0.0, 1e-40]) {
            // SAFETY: AVX2 was detected.
            let (fits, code) = unsafe { fits_and_code(value, 0, 15) };
            assert!(fits, "{value}");
            assert_eq!(code, nearest_int(value).clamp(0, 15) as f32, "{value}");
        }
        for value in [ROUNDABLE.next_up(), -4_194_304.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            // SAFETY: AVX2 was detected.
            assert!(!unsafe { fits_and_code(value, 0, 15) }.0, "{value}");
        }
    }

    #[target_feature(enable = "avx2")]
    fn fits_and_code(value: f32, low: i32, high: i32) -> (bool, f32) {
        // One lane that does not fit is enough.
        let v = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, value);
        (all_roundable(v), array(Rounded::between(low, high).round(v))[7])
    }
}
