//! The searches on eight sub-blocks at once, with AVX2.
//!
//! `x[i]` holds element `i` of eight sub-blocks; lane `k` of every vector belongs to sub-block `k`. Each lane does what
//! the scalar reference in [`crate::quant::search`] does, operation by operation; branches become selections.
//!
//! Rounding to a code takes three operations here instead of the reference's six, by staying in F32. That is only
//! equal while what is rounded is small (see [`Rounded`]); where it might not be, the reference does the work.

use std::arch::x86_64::*;

use super::{Kernel, Machine, Scalar};
use crate::quant::search::{Affine, COORDINATE_ROUNDS, Norm, ROUNDER, SYMMETRIC_STEPS, ZERO_BELOW};

/// Proof that this processor has AVX2 and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Avx2(()))
    }

    /// Runs `kernel`, compiled with AVX2 as far as it is inlined.
    pub fn run(self, kernel: impl Kernel) {
        #[target_feature(enable = "avx2,f16c")]
        fn compiled_with_avx2(kernel: impl Kernel, machine: Avx2) {
            kernel.run(machine);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled_with_avx2(kernel, self) }
    }
}

impl Machine for Avx2 {
    #[inline(always)]
    fn min_max(self, x: &[f32; 32]) -> (f32, f32) {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { min_max(x) }
    }

    #[inline(always)]
    fn magnitude(self, x: &[f32; 32]) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { magnitude(x) }
    }

    #[inline(always)]
    fn codes(self, x: &[f32; 32], min: f32, id: f32, half: f32) -> [u8; 32] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { codes(x, min, id, half) }
    }

    #[inline(always)]
    fn signed_codes(self, x: &[f32; 32], id: f32) -> [i8; 32] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { signed_codes(x, id) }
    }

    #[inline(always)]
    fn affine<const SUB: usize>(self, x: &[[f32; SUB]; 8], p: &Affine) -> ([f32; 8], [f32; 8]) {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { affine(x, p) }.unwrap_or_else(|| Scalar.affine(x, p))
    }

    #[inline(always)]
    fn symmetric(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { symmetric(x) }.unwrap_or_else(|| Scalar.symmetric(x))
    }

    #[inline(always)]
    fn coordinates(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { coordinates(x) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn min_max(x: &[f32; 32]) -> (f32, f32) {
    let [a, b, c, d] = vectors(x);
    let min = _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d));
    let max = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    let (min, max) = (reduce(min, |a, b| _mm_min_ps(a, b)), reduce(max, |a, b| _mm_max_ps(a, b)));
    // Lanes mix up the order, which only shows in the sign of zeros.
    let first = |value: f32| if value == 0.0 { x.iter().copied().find(|x| *x == 0.0).unwrap_or(value) } else { value };
    (first(min), first(max))
}

#[inline]
#[target_feature(enable = "avx2")]
fn magnitude(x: &[f32; 32]) -> f32 {
    let [a, b, c, d] = vectors(x);
    reduce(_mm256_max_ps(_mm256_max_ps(abs(a), abs(b)), _mm256_max_ps(abs(c), abs(d))), |a, b| _mm_max_ps(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn codes(x: &[f32; 32], min: f32, id: f32, half: f32) -> [u8; 32] {
    let (min, id, half) = (_mm256_set1_ps(min), _mm256_set1_ps(id), _mm256_set1_ps(half));
    let mut codes = [_mm256_setzero_si256(); 4];
    for (code, x) in codes.iter_mut().zip(vectors(x)) {
        *code = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(x, min), id), half));
    }
    bytemuck::cast(narrow(codes))
}

#[inline]
#[target_feature(enable = "avx2")]
fn signed_codes(x: &[f32; 32], id: f32) -> [i8; 32] {
    let id = _mm256_set1_ps(id);
    // The largest float below 1/2: adding 1/2 itself would round 0.49999997 up.
    let half = _mm256_set1_ps(0.5f32.next_down());
    let mut codes = [_mm256_setzero_si256(); 4];
    for (code, x) in codes.iter_mut().zip(vectors(x)) {
        let v = _mm256_mul_ps(x, id);
        let half = _mm256_or_ps(half, _mm256_and_ps(v, _mm256_set1_ps(-0.0)));
        *code = _mm256_cvttps_epi32(_mm256_add_ps(v, half));
    }
    bytemuck::cast(narrow(codes))
}

/// 32 integers, -128 to 127 or 0 to 127, as bytes in order.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow([a, b, c, d]: [__m256i; 4]) -> __m256i {
    // Packing works within 128-bit halves and leaves groups of four: a0 b0 c0 d0 a1 b1 c1 d1.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// Combines the eight lanes with an operation whose order does not matter.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce(v: __m256, combine: impl Fn(__m128, __m128) -> __m128) -> f32 {
    let v = combine(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = combine(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(combine(v, _mm_movehdup_ps(v)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn vectors(x: &[f32; 32]) -> [__m256; 4] {
    bytemuck::cast(*x)
}

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

/// Whether every lane is at most [`ROUNDABLE`] in magnitude; NaN is not.
#[inline]
#[target_feature(enable = "avx2")]
fn all_roundable(v: __m256) -> bool {
    let small = _mm256_cmp_ps::<_CMP_LE_OQ>(abs(v), _mm256_set1_ps(ROUNDABLE));
    _mm256_movemask_ps(small) == 0xFF
}

#[target_feature(enable = "avx2")]
fn affine<const SUB: usize>(subs: &[[f32; SUB]; 8], p: &Affine) -> Option<([f32; 8], [f32; 8])> {
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
fn symmetric(subs: &[[f32; 16]; 16]) -> Option<[f32; 16]> {
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
fn coordinates(subs: &[[f32; 16]; 16]) -> [f32; 16] {
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

#[inline]
#[target_feature(enable = "avx2")]
fn abs(v: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)
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

#[inline]
#[target_feature(enable = "avx2")]
fn array(v: __m256) -> [f32; 8] {
    bytemuck::cast(v)
}
