//! The searches for scales of the k-quants: the scalar reference, statement by statement as in ggml.
//!
//! A sub-block is approximated as `scale * code` (symmetric) or `scale * code + min` (affine). ggml tries several
//! scales, rounds the elements with each, and keeps the one with the least weighted error. Which one wins depends on
//! the last bit of sums, so every sum runs over the elements in order, in F32, without fused multiply-add.
//!
//! Source: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `nearest_int` in ggml-quants.c.

/// Sub-blocks whose largest magnitude is below this count as zero (`GROUP_MAX_EPS`).
pub const ZERO_BELOW: f32 = 1e-15;

/// Rounds to nearest, ties to even, for magnitudes below 2^22; beyond, whatever ggml's trick makes of the bits.
#[inline(always)]
pub fn nearest_int(value: f32) -> i32 {
    let bits = (value + ROUNDER).to_bits();
    (bits & 0x007F_FFFF) as i32 - 0x0040_0000
}

/// 1.5 * 2^23: floats of this size are integers, so that adding it rounds.
pub const ROUNDER: f32 = 12_582_912.0;

/// What an affine search tries and how it measures.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Codes are 0 to this.
    pub max_code: i32,
    /// The scales tried are `max - min` over `max_code + first + 0.1 * step`, for step 0 to `last_step`.
    pub first: f32,
    /// See [`Affine::first`].
    pub last_step: usize,
    /// Weights and measure of the error.
    pub norm: Norm,
}

/// Weights and measure of the error of an affine search.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `|x| * |error|`
    Absolute,
    /// `(rms + |x|) * error^2`
    Squared,
}

/// Scale, minimum (negated, as the blocks store it) and codes.
pub fn affine<const SUB: usize>(x: &[f32; SUB], p: &Affine) -> (f32, f32, [u8; SUB]) {
    let weights = weights(x, p.norm);
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..SUB {
        if x[i] < min {
            min = x[i];
        }
        if x[i] > max {
            max = x[i];
        }
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return (0.0, -min, [0; SUB]);
    }
    let round = |iscale: f32, min: f32| x.map(|x| nearest_int(iscale * (x - min)).clamp(0, p.max_code) as u8);
    let error = |scale: f32, min: f32, codes: &[u8; SUB]| {
        let mut sum = 0.0;
        for i in 0..SUB {
            let diff = scale * f32::from(codes[i]) + min - x[i];
            sum += weights[i] * if p.norm == Norm::Absolute { diff.abs() } else { diff * diff };
        }
        sum
    };

    let iscale = p.max_code as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    let mut codes = round(iscale, min);
    let mut best_error = error(scale, min, &codes);
    for step in 0..=p.last_step {
        let iscale = p.divisor(step) / (max - min);
        let tried = round(iscale, min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for i in 0..SUB {
            let l = f32::from(tried[i]);
            let wl = weights[i] * l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(this_scale, this_min, &tried);
            if this_error < best_error {
                // The next steps start from this minimum, as in ggml.
                (codes, best_error, scale, min) = (tried, this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min, codes)
}

impl Affine {
    /// `max_code` and a little more or less.
    #[inline(always)]
    pub fn divisor(&self, step: usize) -> f32 {
        self.first + 0.1 * step as f32 + self.max_code as f32
    }
}

fn weights<const SUB: usize>(x: &[f32; SUB], norm: Norm) -> [f32; SUB] {
    match norm {
        Norm::Absolute => x.map(f32::abs),
        Norm::Squared => {
            let mut sum = 0.0;
            for x in x {
                sum += x * x;
            }
            let rms = (sum / SUB as f32).sqrt();
            x.map(|x| rms + x.abs())
        }
    }
}

/// The element of largest magnitude, the first of several; 0 when all are 0.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut largest = 0f32;
    for &x in x {
        if x.abs() > largest.abs() {
            largest = x;
        }
    }
    largest
}

/// Signed scale and codes 0 to 63 (32 is zero) for Q6_K: 19 scales around the largest element, weighted by `x^2`.
pub fn symmetric<const SUB: usize>(x: &[f32; SUB]) -> (f32, [u8; SUB]) {
    const MAX_CODE: i32 = 32;
    let max = largest(x);
    if max.abs() < ZERO_BELOW {
        return (0.0, [0; SUB]);
    }
    let round = |iscale: f32| x.map(|x| nearest_int(iscale * x).clamp(-MAX_CODE, MAX_CODE - 1));
    let sums = |codes: &[i32; SUB]| {
        let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
        for i in 0..SUB {
            let (w, l) = (x[i] * x[i], codes[i] as f32);
            sum_lx += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut codes = round(-(MAX_CODE as f32) / max);
    let (sum_lx, sum_l2) = sums(&codes);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in SYMMETRIC_STEPS {
        let tried = round(-(MAX_CODE as f32 + 0.1 * step as f32) / max);
        let (sum_lx, sum_l2) = sums(&tried);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
            codes = tried;
        }
    }
    (scale, codes.map(|l| (l + MAX_CODE) as u8))
}

/// Tenths that the symmetric search adds to the number of codes.
pub const SYMMETRIC_STEPS: [i8; 18] = [-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// Signed scale and codes 0 to 7 (4 is zero) for Q3_K: one element at a time is moved as long as that helps, in at
/// most [`COORDINATE_ROUNDS`] rounds. Codes of a zero sub-block are 0, not 4, as in ggml: the scale makes up for it.
pub fn coordinates<const SUB: usize>(x: &[f32; SUB]) -> (f32, [u8; SUB]) {
    const MAX_CODE: i32 = 4;
    let max = largest(x);
    if max.abs() < ZERO_BELOW {
        return (0.0, [0; SUB]);
    }
    let iscale = -(MAX_CODE as f32) / max;
    let round = |v: f32| nearest_int(v).clamp(-MAX_CODE, MAX_CODE - 1);
    let mut codes = x.map(|x| round(iscale * x));
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for i in 0..SUB {
        let (w, l) = (x[i] * x[i], codes[i] as f32);
        sum_lx += w * x[i] * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..COORDINATE_ROUNDS {
        let mut changed = false;
        for i in 0..SUB {
            let (w, l) = (x[i] * x[i], codes[i] as f32);
            let mut lx = sum_lx - w * x[i] * l;
            if lx > 0.0 {
                let mut l2 = sum_l2 - w * l * l;
                let code = round(x[i] * l2 / lx);
                if code != codes[i] {
                    lx += w * x[i] * code as f32;
                    l2 += w * code as f32 * code as f32;
                    if l2 > 0.0 && lx * lx * sum_l2 > sum_lx * sum_lx * l2 {
                        (codes[i], sum_lx, sum_l2, changed) = (code, lx, l2, true);
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    let scale = if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 };
    (scale, codes.map(|l| (l + MAX_CODE) as u8))
}

/// See [`coordinates`].
pub const COORDINATE_ROUNDS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_inside_the_range_and_wraps_outside_like_the_original() {
        for (value, rounded) in [
            (0.5, 0),
            (1.5, 2),
            (-0.5, 0),
            (-2.5, -2),
            (4_194_303.0, 4_194_303),
            (-4_194_303.0, -4_194_303),
            (4_194_304.0, -4_194_304),
            (f32::INFINITY, -4_194_304),
            (f32::NAN, 0),
        ] {
            assert_eq!(nearest_int(value), rounded, "{value}");
        }
    }

    #[test]
    fn representable_sub_blocks_are_found_exactly() {
        let x: [f32; 32] = std::array::from_fn(|i| (i % 16) as f32 * 0.25 - 1.0);
        let p = Affine { max_code: 15, first: -1.0, last_step: 20, norm: Norm::Squared };
        let (scale, min, codes) = affine(&x, &p);
        assert_eq!((scale, min), (0.25, 1.0));
        assert!(codes.iter().enumerate().all(|(i, c)| usize::from(*c) == i % 16));

        let x: [f32; 16] = std::array::from_fn(|i| (i as f32 - 16.0) * 2.0);
        let (scale, codes) = symmetric(&x);
        assert_eq!(codes.map(|c| (f32::from(c) - 32.0) * scale), x);

        let x: [f32; 16] = std::array::from_fn(|i| ((i % 8) as f32 - 4.0) * 0.5);
        let (scale, codes) = coordinates(&x);
        assert_eq!(codes.map(|c| (f32::from(c) - 4.0) * scale), x);
    }

    #[test]
    fn zero_and_constant_sub_blocks_do_not_divide_by_zero() {
        let p = Affine { max_code: 3, first: -0.5, last_step: 15, norm: Norm::Absolute };
        assert_eq!(affine(&[0f32; 16], &p), (0.0, 0.0, [0; 16]));
        assert_eq!(affine(&[-2f32; 16], &p), (0.0, 2.0, [0; 16]));
        assert_eq!(symmetric(&[1e-16f32; 16]), (0.0, [0; 16]));
        assert_eq!(coordinates(&[-1e-16f32; 16]), (0.0, [0; 16]));
    }
}
