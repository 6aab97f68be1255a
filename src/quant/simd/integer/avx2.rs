//! Products of bytes with AVX2.

use std::arch::x86_64::*;

use super::{Integer, Kernel, LANES, ROWS, Term};

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Avx2(()))
    }

    /// Runs `kernel`, compiled with these features as far as it is inlined.
    pub fn run(self, kernel: impl Kernel) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_with_avx2(kernel: impl Kernel, machine: Avx2) {
            kernel.run(machine);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled_with_avx2(kernel, self) }
    }
}

impl Integer for Avx2 {
    #[inline(always)]
    fn halves(self, bits: u32) -> Term {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { halves(bits) }
    }

    #[inline(always)]
    fn dot<const G: usize>(self, codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term], max_code: u8) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { dot::<G>(codes, terms, x, x_terms, max_code) }
    }

    #[inline(always)]
    fn dot_f16(self, row: &[[u8; 2]], x: &[f32]) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { dot_plain(row, x, |w| f16s(w)) }
    }

    #[inline(always)]
    fn dot_bf16(self, row: &[[u8; 2]], x: &[f32]) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { dot_plain(row, x, |w| bf16s(w)) }
    }

    #[inline(always)]
    fn tile<const G: usize>(
        self,
        codes: &[[u32; ROWS]],
        terms: &[[[f32; ROWS]; 2]],
        x: &[[u32; LANES]],
        x_terms: &[[Term; LANES]],
        max_code: u8,
    ) -> [[f32; ROWS]; LANES] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { tile::<G>(codes, terms, x, x_terms, max_code) }
    }
}

/// The two F16 in `bits`, the lower first.
#[inline]
#[target_feature(enable = "f16c")]
pub fn halves(bits: u32) -> Term {
    let values: [f32; 4] = bytemuck::cast(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)));
    [values[0], values[1]]
}

#[inline]
#[target_feature(enable = "f16c")]
fn f16s(w: &[[u8; 2]; 8]) -> __m256 {
    _mm256_cvtph_ps(bytemuck::cast(*w))
}

#[inline]
#[target_feature(enable = "avx2")]
fn bf16s(w: &[[u8; 2]; 8]) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bytemuck::cast(*w))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_plain(row: &[[u8; 2]], x: &[f32], values: impl Fn(&[[u8; 2]; 8]) -> __m256) -> f32 {
    /// Vectors at once: what is added next need not wait for what was added last.
    const N: usize = 4;
    let mut sums = [_mm256_setzero_ps(); N];
    let add = |sum: &mut __m256, w: &[[u8; 2]; 8], x: &[f32; 8]| {
        *sum = _mm256_fmadd_ps(values(w), bytemuck::cast(*x), *sum);
    };
    let ((w_chunks, w_rest), (x_chunks, x_rest)) = (row.as_chunks::<8>(), x.as_chunks::<8>());
    for (w, x) in w_chunks.chunks(N).zip(x_chunks.chunks(N)) {
        for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
            add(sum, w, x);
        }
    }
    let (mut w, mut x) = ([[0; 2]; 8], [0.0; 8]);
    w[..w_rest.len()].copy_from_slice(w_rest);
    x[..x_rest.len()].copy_from_slice(x_rest);
    add(&mut sums[0], &w, &x);
    let lanes: [f32; 8] =
        bytemuck::cast(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
    lanes.iter().sum()
}

/// Sums of four products of `codes`, at most `max_code`, with `x`, in each of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn products(codes: __m256i, x: __m256i, max_code: u8) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    // Sums of two products fit 16 bits up to codes of 128: the eighth bit of larger ones is multiplied for itself.
    if max_code <= 128 {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
    }
    let low = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));
    let high = _mm256_andnot_si256(_mm256_set1_epi8(0x7F), codes);
    let (low, high) = (_mm256_maddubs_epi16(low, x), _mm256_maddubs_epi16(high, x));
    _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const G: usize>(codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term], max_code: u8) -> f32 {
    let mut sum = _mm256_setzero_ps();
    let mut min = 0.0;
    let chunks = codes.as_chunks::<32>().0.iter().zip(x.as_chunks::<32>().0);
    let of_chunks = terms.chunks_exact(32 / G).zip(x_terms.chunks_exact(32 / G));
    for ((codes, x), (terms, x_terms)) in chunks.zip(of_chunks) {
        let products = _mm256_cvtepi32_ps(products(bytemuck::cast(*codes), bytemuck::cast(*x), max_code));
        let scales = match G {
            16 => _mm256_set_m128(_mm_set1_ps(terms[1][0] * x_terms[1][0]), _mm_set1_ps(terms[0][0] * x_terms[0][0])),
            _ => _mm256_set1_ps(terms[0][0] * x_terms[0][0]),
        };
        sum = _mm256_fmadd_ps(products, scales, sum);
        for (t, x_t) in terms.iter().zip(x_terms) {
            min += t[1] * x_t[1];
        }
    }
    let lanes: [f32; 8] = bytemuck::cast(sum);
    lanes.iter().sum::<f32>() + min
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const G: usize>(
    codes: &[[u32; ROWS]],
    terms: &[[[f32; ROWS]; 2]],
    x: &[[u32; LANES]],
    x_terms: &[[Term; LANES]],
    max_code: u8,
) -> [[f32; ROWS]; LANES] {
    const HALF: usize = ROWS / 2;
    /// Rows of activations at once: their sums are all that 16 registers hold.
    const FEW: usize = 4;
    let mut out = [[0f32; ROWS]; LANES];
    for first in (0..LANES).step_by(FEW) {
        for half in 0..2 {
            let mut sums = [_mm256_setzero_ps(); FEW];
            let groups = codes.chunks_exact(G / 4).zip(x.chunks_exact(G / 4));
            for ((codes, x), (terms, x_terms)) in groups.zip(terms.iter().zip(x_terms)) {
                let mut of_group = [_mm256_setzero_si256(); FEW];
                for (codes, x) in codes.iter().zip(x) {
                    let codes: __m256i = bytemuck::cast(codes.as_chunks::<HALF>().0[half]);
                    for (i, sum) in of_group.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(x[first + i] as i32);
                        *sum = _mm256_add_epi32(*sum, products(codes, x, max_code));
                    }
                }
                let [scales, mins]: [__m256; 2] =
                    terms.each_ref().map(|t| bytemuck::cast(t.as_chunks::<HALF>().0[half]));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let [scale, scaled_sum] = x_terms[first + i];
                    let scales = _mm256_mul_ps(scales, _mm256_set1_ps(scale));
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_group[i]), scales, *sum);
                    *sum = _mm256_fmadd_ps(mins, _mm256_set1_ps(scaled_sum), *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                out[first + i].as_chunks_mut::<HALF>().0[half] = bytemuck::cast(sum);
            }
        }
    }
    out
}
