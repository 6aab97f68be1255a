//! AVX2: the proof that the processor has it, and the formats with one scale for 32 elements.

use std::arch::x86_64::*;

use super::avx2_search::{self as search, abs};
use super::{Kernel, Machine, Scalar};
use crate::search::Affine;

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
        unsafe { search::affine(x, p) }.unwrap_or_else(|| Scalar.affine(x, p))
    }

    #[inline(always)]
    fn symmetric(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { search::symmetric(x) }.unwrap_or_else(|| Scalar.symmetric(x))
    }

    #[inline(always)]
    fn coordinates(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { search::coordinates(x) }
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
