//! Products of bytes with AVX-512 VNNI: four at once are multiplied and added in each of 16 lanes.

use std::arch::x86_64::*;

use super::{Integer, Kernel, LANES, ROWS, Term};

/// Proof that this processor has what these functions are compiled with.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx512(()))
    }

    /// Runs `kernel`, compiled with these features as far as it is inlined.
    pub fn run(self, kernel: impl Kernel) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
        fn compiled_with_avx512(kernel: impl Kernel, machine: Avx512) {
            kernel.run(machine);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled_with_avx512(kernel, self) }
    }
}

impl Integer for Avx512 {
    #[inline(always)]
    fn halves(self, bits: u32) -> Term {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { super::avx2::halves(bits) }
    }

    #[inline(always)]
    fn dot<const G: usize>(self, codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term], _: u8) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { dot::<G>(codes, terms, x, x_terms) }
    }

    #[inline(always)]
    fn dot_f16(self, row: &[[u8; 2]], x: &[f32]) -> f32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { dot_plain(row, x, |w| _mm512_cvtph_ps(w)) }
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
        _: u8,
    ) -> [[f32; ROWS]; LANES] {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { tile::<G>(codes, terms, x, x_terms) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bf16s(w: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(w)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
fn dot_plain(row: &[[u8; 2]], x: &[f32], values: impl Fn(__m256i) -> __m512) -> f32 {
    /// Vectors at once: what is added next need not wait for what was added last.
    const N: usize = 4;
    let mut sums = [_mm512_setzero_ps(); N];
    let add = |sum: &mut __m512, w: &[[u8; 2]; 16], x: &[f32; 16]| {
        // SAFETY: an array of 64 bytes.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        *sum = _mm512_fmadd_ps(values(bytemuck::cast(*w)), x, *sum);
    };
    let ((w_chunks, w_rest), (x_chunks, x_rest)) = (row.as_chunks::<16>(), x.as_chunks::<16>());
    for (w, x) in w_chunks.chunks(N).zip(x_chunks.chunks(N)) {
        for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
            add(sum, w, x);
        }
    }
    let (mut w, mut x) = ([[0; 2]; 16], [0.0; 16]);
    w[..w_rest.len()].copy_from_slice(w_rest);
    x[..x_rest.len()].copy_from_slice(x_rest);
    add(&mut sums[0], &w, &x);
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_reduce_add_ps(sum)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
fn dot<const G: usize>(codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term]) -> f32 {
    // Which of a chunk's terms, scale and minimum in turn, is the scale of each lane of four codes.
    let scale_of_lane = match G {
        16 => _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6),
        _ => _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2),
    };
    let mut sum = _mm512_setzero_ps();
    let mut mins = _mm256_setzero_ps();
    let mut add = |codes: &[u8; 64], x: &[i8; 64], terms: &[Term], x_terms: &[Term]| {
        // SAFETY: both are 64 bytes.
        let (codes, x) = unsafe { (_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().cast())) };
        let products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x));
        let terms = _mm256_mul_ps(load_terms(terms), load_terms(x_terms));
        let scales = _mm512_permutexvar_ps(scale_of_lane, _mm512_castps256_ps512(terms));
        sum = _mm512_fmadd_ps(products, scales, sum);
        mins = _mm256_add_ps(mins, terms);
    };
    let (chunks, rest) = codes.as_chunks::<64>();
    let (x_chunks, x_rest) = x.as_chunks::<64>();
    let (n_chunks, n_rest) = (terms.len() / (64 / G) * (64 / G), rest.len());
    let of_chunks = terms.chunks_exact(64 / G).zip(x_terms.chunks_exact(64 / G));
    for ((codes, x), (terms, x_terms)) in chunks.iter().zip(x_chunks).zip(of_chunks) {
        add(codes, x, terms, x_terms);
    }
    if n_rest > 0 {
        let (mut codes, mut x) = ([0; 64], [0; 64]);
        codes[..n_rest].copy_from_slice(rest);
        x[..n_rest].copy_from_slice(x_rest);
        add(&codes, &x, &terms[n_chunks..], &x_terms[n_chunks..]);
    }
    let mins = _mm256_blend_ps::<0b0101_0101>(mins, _mm256_setzero_ps());
    _mm512_reduce_add_ps(_mm512_add_ps(sum, _mm512_zextps256_ps512(mins)))
}

/// Up to four terms, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
fn load_terms(terms: &[Term]) -> __m256 {
    match terms {
        [a, b] => _mm256_zextps128_ps256(bytemuck::cast([*a, *b])),
        [a, b, c, d] => bytemuck::cast([*a, *b, *c, *d]),
        _ => {
            let mut all = [[0f32; 2]; 4];
            all[..terms.len()].copy_from_slice(terms);
            bytemuck::cast(all)
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
fn tile<const G: usize>(
    codes: &[[u32; ROWS]],
    terms: &[[[f32; ROWS]; 2]],
    x: &[[u32; LANES]],
    x_terms: &[[Term; LANES]],
) -> [[f32; ROWS]; LANES] {
    let mut sums = [_mm512_setzero_ps(); LANES];
    let groups = codes.chunks_exact(G / 4).zip(x.chunks_exact(G / 4));
    for ((codes, x), (terms, x_terms)) in groups.zip(terms.iter().zip(x_terms)) {
        let mut products = [_mm512_setzero_si512(); LANES];
        for (codes, x) in codes.iter().zip(x) {
            // SAFETY: an array of 64 bytes.
            let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
            for (products, x) in products.iter_mut().zip(x) {
                *products = _mm512_dpbusd_epi32(*products, codes, _mm512_set1_epi32(*x as i32));
            }
        }
        // SAFETY: arrays of 64 bytes.
        let [scales, mins] = terms.each_ref().map(|t| unsafe { _mm512_loadu_ps(t.as_ptr()) });
        for ((sum, products), [scale, scaled_sum]) in sums.iter_mut().zip(products).zip(x_terms) {
            let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*scale));
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, *sum);
            *sum = _mm512_fmadd_ps(mins, _mm512_set1_ps(*scaled_sum), *sum);
        }
    }
    sums.map(|sum| {
        let mut out = [0f32; ROWS];
        // SAFETY: an array of 64 bytes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        out
    })
}
