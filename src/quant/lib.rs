//! Block formats: slices in, slices out.
//!
//! Every format has one file: a diagram of the block, the formula, the code. All of them do bit for bit what ggml does
//! (llama-cpp-sys-2 0.1.161, no importance matrix, on x86-64): `tests/it/quant_goldens.rs` proves it with stored results
//! of ggml, `tests/quant_ggml.rs` against ggml itself.
//!
//! A tensor is rows of blocks, and no row shares a block with another; so a row is the unit of work for threads.

mod bytes;
#[cfg(feature = "pulp")]
pub mod dot;
mod dtype;
pub mod float;
mod k_scales;
pub mod product;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod round;
mod search;
mod simd;
mod validate;

pub use dtype::{DType, coarsest};
pub use validate::validate_blocks;

use rayon::prelude::*;

use self::simd::Kernel;
use self::validate::position;

/// One line per block format implemented here; everything that depends on the list comes from it.
macro_rules! block_formats {
    ($with:ident) => {
        $with! {
            Q8_0 q8_0,
            Q5_0 q5_0,
            Q5_1 q5_1,
            Q4_0 q4_0,
            Q4_1 q4_1,
            Q6_K q6_k,
            Q5_K q5_k,
            Q4_K q4_k,
            Q3_K q3_k,
            Q2_K q2_k,
        }
    };
}
use block_formats;

macro_rules! implement_block_formats {
    ($($dtype:ident $module:ident,)*) => {
        const _: () = {
            $(
                assert!($module::LEN == DType::$dtype.block_len());
                assert!($module::BYTES == DType::$dtype.block_bytes());
            )*
        };

        /// The block formats that [`decode`] and [`quantize_row`] implement.
        pub const BLOCK_FORMATS: &[DType] = &[$(DType::$dtype,)*];

        #[inline(always)]
        fn decode_any_blocks(dtype: DType, src: &[u8], dst: &mut [f32]) {
            match dtype {
                // A closure, since a function passed by name is called, not inlined.
                $(DType::$dtype => decode_blocks(src, dst, #[inline(always)] |b, x| $module::decode(b, x)),)*
                _ => panic!("{dtype} has no decoder; ask `can_decode` first"),
            }
        }

        /// No element decoded from a block with finite scales is larger in magnitude; infinite for other types.
        fn limit(dtype: DType) -> f32 {
            match dtype {
                $(DType::$dtype => $module::LIMIT,)*
                _ => f32::INFINITY,
            }
        }

        impl Kernel for Quantize<'_> {
            #[inline(always)]
            fn run(self, machine: impl simd::Machine) {
                match self.dtype {
                    $(DType::$dtype => quantize_blocks(self.src, self.dst, |x, b| $module::quantize(x, b, machine)),)*
                    DType::F32 => quantize_plain(self.src, self.dst, f32::to_le_bytes),
                    DType::F16 => quantize_plain(self.src, self.dst, |x| float::f32_to_f16(x).to_le_bytes()),
                    DType::BF16 => quantize_plain(self.src, self.dst, |x| float::f32_to_bf16(x).to_le_bytes()),
                    dtype => panic!("{dtype} has no quantizer; ask `can_quantize` first"),
                }
            }
        }
    };
}

block_formats!(implement_block_formats);

/// Gives the bytes of an encoded row. No type parameter: what takes it would be compiled by each crate that calls it.
pub type Row<'f, 'a> = &'f (dyn Fn(usize) -> &'a [u8] + 'f);

/// Whether [`decode`] knows the type: the floats and [`BLOCK_FORMATS`].
pub fn can_decode(dtype: DType) -> bool {
    dtype.is_float() || BLOCK_FORMATS.contains(&dtype)
}

/// Decodes whole blocks of `src` to F32, as ggml's `to_float` does (F64, which has none there, is rounded to nearest).
///
/// Asserts that [`can_decode`] is true of `dtype` and that `dst` has exactly the elements of `src`.
pub fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
    simd::run(Decode { dtype, src, dst });
}

struct Decode<'a> {
    dtype: DType,
    src: &'a [u8],
    dst: &'a mut [f32],
}

impl simd::Kernel for Decode<'_> {
    #[inline(always)]
    fn run(self, _: impl simd::Machine) {
        decode_inline(self.dtype, self.src, self.dst);
    }
}

/// [`decode`], compiled for the instruction set of the function that calls it.
#[inline(always)]
fn decode_inline(dtype: DType, src: &[u8], dst: &mut [f32]) {
    assert_sizes(dtype, dst.len(), src.len());
    match dtype {
        DType::F64 => decode_plain(src, dst, |b| float::f64_to_f32(f64::from_le_bytes(b))),
        DType::F32 => decode_plain(src, dst, f32::from_le_bytes),
        DType::F16 => decode_plain(src, dst, |b| float::f16_to_f32(u16::from_le_bytes(b))),
        DType::BF16 => decode_plain(src, dst, |b| float::bf16_to_f32(u16::from_le_bytes(b))),
        _ => decode_any_blocks(dtype, src, dst),
    }
}

#[inline(always)]
fn decode_plain<const N: usize>(src: &[u8], dst: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (x, bytes) in dst.iter_mut().zip(src.as_chunks::<N>().0) {
        *x = convert(*bytes);
    }
}

#[inline(always)]
fn decode_blocks<const LEN: usize, const BYTES: usize>(
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in src.as_chunks::<BYTES>().0.iter().zip(dst.as_chunks_mut::<LEN>().0) {
        // Without the barrier the compiler vectorises this loop, gathering bytes from several blocks; without the copy
        // it has to assume that `out` overlaps `block`. Either costs a factor of five.
        let block = *std::hint::black_box(block);
        decode(&block, out);
    }
}

/// Whether [`quantize_row`] knows the type: F32, F16, BF16 and [`BLOCK_FORMATS`].
pub fn can_quantize(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || BLOCK_FORMATS.contains(&dtype)
}

/// Index of the first element that [`quantize_row`] cannot store: NaN, infinite, or too large for the type.
///
/// Call it before quantizing and [`validate_blocks`] after: ggml's searches for Q3_K and Q6_K lose an element beyond
/// 1e12 without a trace in the scales, since its cube overflows, and store something else in its place.
/// Too small is no error: elements below a type's smallest scale (6e-8) become 0.
pub fn first_unfit(dtype: DType, src: &[f32]) -> Option<usize> {
    match dtype {
        DType::F16 => position(src, |x| float::f32_to_f16(x) & 0x7C00 == 0x7C00),
        DType::BF16 => position(src, |x| float::f32_to_bf16(x) & 0x7F80 == 0x7F80),
        _ => {
            let limit = limit(dtype);
            position(src, |x| !x.is_finite() || x.abs() > limit)
        }
    }
}

/// Quantizes whole blocks to the bytes of ggml's `ggml_quantize_chunk` without an importance matrix.
///
/// Equal also where a scale overflows to infinity; [`validate_blocks`] finds those, and NaN and infinity among plain
/// floats. What becomes of a NaN or an infinity in `src` is not specified: [`first_unfit`] finds them.
/// Asserts that [`can_quantize`] is true of `dtype` and that `dst` has exactly the bytes for `src`.
pub fn quantize_row(dtype: DType, src: &[f32], dst: &mut [u8]) {
    assert_sizes(dtype, src.len(), dst.len());
    simd::run(Quantize { dtype, src, dst });
}

/// [`quantize_row`] without vector instructions: the reference that those are tested against.
pub fn quantize_row_scalar(dtype: DType, src: &[f32], dst: &mut [u8]) {
    assert_sizes(dtype, src.len(), dst.len());
    Quantize { dtype, src, dst }.run(simd::Scalar);
}

/// [`quantize_row`] on rows of `n_per_row` elements, on all threads of the current rayon pool.
///
/// The bytes do not depend on the number of threads. Asserts also that the rows are whole, and each whole blocks.
///
/// ```
/// use ptplus_quant::{self as quant, DType};
///
/// let values: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
/// let mut blocks = vec![0; 2 * DType::Q8_0.block_bytes()]; // 64 elements are two blocks of 32
/// quant::quantize_rows(DType::Q8_0, &values, 64, &mut blocks);
/// let mut decoded = vec![0.0; 64];
/// quant::decode(DType::Q8_0, &blocks, &mut decoded);
/// assert!(values.iter().zip(&decoded).all(|(x, y)| (x - y).abs() < 0.005));
/// ```
pub fn quantize_rows(dtype: DType, src: &[f32], n_per_row: usize, dst: &mut [u8]) {
    assert_sizes(dtype, src.len(), dst.len());
    assert!(src.len().is_multiple_of(n_per_row), "{} elements are no whole rows of {n_per_row}", src.len());
    assert!(n_per_row.is_multiple_of(dtype.block_len()), "a row of {n_per_row} is no whole blocks of {dtype}");
    // Some ten microseconds of work at a time, at least.
    let n_at_once = n_per_row.max(TASK_ELEMENTS / n_per_row * n_per_row);
    let bytes_at_once = n_at_once / dtype.block_len() * dtype.block_bytes();
    src.par_chunks(n_at_once)
        .zip(dst.par_chunks_mut(bytes_at_once))
        .for_each(|(src, dst)| quantize_row(dtype, src, dst));
}

/// Elements that one thread takes at once: the F32 values fit the second-level cache.
const TASK_ELEMENTS: usize = 1 << 15;

struct Quantize<'a> {
    dtype: DType,
    src: &'a [f32],
    dst: &'a mut [u8],
}

#[inline(always)]
fn quantize_plain<const N: usize>(src: &[f32], dst: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    for (x, bytes) in src.iter().zip(dst.as_chunks_mut::<N>().0) {
        *bytes = convert(*x);
    }
}

#[inline(always)]
fn quantize_blocks<const LEN: usize, const BYTES: usize>(
    src: &[f32],
    dst: &mut [u8],
    quantize: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (x, block) in src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<BYTES>().0) {
        quantize(x, block);
    }
}

/// Panics unless `n_elements` are whole blocks and occupy `n_bytes`: callers have checked what files declare.
#[inline(always)]
fn assert_sizes(dtype: DType, n_elements: usize, n_bytes: usize) {
    assert!(n_elements.is_multiple_of(dtype.block_len()), "{n_elements} elements are no whole blocks of {dtype}");
    let needed = (n_elements / dtype.block_len()).checked_mul(dtype.block_bytes());
    assert_eq!(needed, Some(n_bytes), "bytes that {n_elements} elements of {dtype} need, and bytes there are");
}
