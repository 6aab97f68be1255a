//! Dot products in F32 with encoded rows, each decoded on its way through the first-level cache.

use pulp::{Simd, WithSimd};

use crate::{DType, Row, decode_inline};

/// Sum of products, in four vectors of partial sums. Asserts that `b` is as long as `a`.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "factors");
    let (a, a_tail) = S::as_simd_f32s(a);
    let (b, b_tail) = S::as_simd_f32s(b);
    let zero = simd.splat_f32s(0.0);
    let (mut s0, mut s1, mut s2, mut s3) = (zero, zero, zero, zero);
    let (a_blocks, a_rest) = a.as_chunks::<4>();
    let (b_blocks, b_rest) = b.as_chunks::<4>();
    // Without `zip`, whose parts are calls where a caller in another crate is compiled in pieces.
    for (i, x) in a_blocks.iter().enumerate() {
        let y = &b_blocks[i];
        s0 = simd.mul_add_f32s(x[0], y[0], s0);
        s1 = simd.mul_add_f32s(x[1], y[1], s1);
        s2 = simd.mul_add_f32s(x[2], y[2], s2);
        s3 = simd.mul_add_f32s(x[3], y[3], s3);
    }
    for (i, x) in a_rest.iter().enumerate() {
        s0 = simd.mul_add_f32s(*x, b_rest[i], s0);
    }
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(s0, s1), simd.add_f32s(s2, s3)));
    for (i, x) in a_tail.iter().enumerate() {
        sum += x * b_tail[i];
    }
    sum
}

/// Fills `out` `[n, m]` with the products of `n` encoded rows, of which `row` gives the bytes, with the rows of `x` `[m, k]`; `room`
/// `[k]` holds one decoded row.
///
/// Asserts that [`can_decode`](crate::can_decode) is true of `dtype` and that rows have `k` elements.
pub fn dot_rows(dtype: DType, row: Row<'_, '_>, x: &[f32], room: &mut [f32], out: &mut [f32]) {
    pulp::Arch::new().dispatch(DotRows { dtype, row, x, room, out });
}

struct DotRows<'b, 'a> {
    dtype: DType,
    row: Row<'b, 'a>,
    x: &'b [f32],
    room: &'b mut [f32],
    out: &'b mut [f32],
}

impl WithSimd for DotRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let k = self.room.len();
        let m = self.x.len() / k;
        for (j, out) in self.out.chunks_exact_mut(m).enumerate() {
            decode_inline(self.dtype, (self.row)(j), self.room);
            for (out, x) in out.iter_mut().zip(self.x.chunks_exact(k)) {
                *out = dot(simd, self.room, x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl WithSimd for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dot(simd, self.0, self.1)
        }
    }

    #[test]
    fn dot_products_agree_with_f64_for_every_length() {
        for n in [0, 1, 7, 63, 64, 65, 576, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
            let truth: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            let found = pulp::Arch::new().dispatch(Dot(&a, &b));
            assert!((f64::from(found) - truth).abs() < 1e-5, "{n}");
        }
    }
}
