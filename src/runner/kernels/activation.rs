//! phi's activation, elementwise.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::{exp, exp_m1};
use super::{RUN, values, vectorized};
use crate::adapter::plus::FeatureMap;

/// `map` of every element of `x`, any shape.
pub fn activate(map: FeatureMap, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1_no_bwd(&Activate(map)) } else { by_operations(map, x) }
}

/// The same functions from candle's own operations, for GPUs. Nothing small is made from the difference of two numbers near
/// 1, so tails and values near 0 keep their digits (docs/METHOD.md).
fn by_operations(map: FeatureMap, x: &Tensor) -> Result<Tensor> {
    match map {
        FeatureMap::Identity => Ok(x.clone()),
        FeatureMap::Elu => {
            // expm1(x) = 2 t / (1 - t), t = tanh(x / 2)
            let t = (negative(x)? * 0.5)?.tanh()?;
            positive(x)? + ((&t * 2.0)? / (1.0 - &t)?)?
        }
        FeatureMap::EluPlusOne => positive(x)? + negative(x)?.exp()?,
        FeatureMap::Relu => positive(x),
        FeatureMap::Silu => x * sigmoid_by_operations(x)?,
        FeatureMap::Gelu => {
            let size = x.abs()?;
            positive(x)? - ((&size * 0.5)? * erfc(&(size * std::f64::consts::FRAC_1_SQRT_2)?)?)?
        }
        FeatureMap::GeluTanh => {
            let cubic = ((x.sqr()? * 0.044_715)? + 1.0)?;
            x * sigmoid_by_operations(&((x * cubic)? * (2.0 * SQRT_2_OVER_PI))?)?
        }
        FeatureMap::Softplus => positive(x)? + log_1p(&x.abs()?.neg()?.exp()?)?,
        FeatureMap::Sigmoid => sigmoid_by_operations(x),
        FeatureMap::Tanh => x.tanh(),
        FeatureMap::Exp => x.exp(),
    }
}

/// `max(x, 0)`; NaN stays (candle's own relu makes 0 of it).
fn positive(x: &Tensor) -> Result<Tensor> {
    x.le(0f32)?.where_cond(&x.zeros_like()?, x)
}

/// `min(x, 0)`
fn negative(x: &Tensor) -> Result<Tensor> {
    x.le(0f32)?.where_cond(x, &x.zeros_like()?)
}

fn sigmoid_by_operations(x: &Tensor) -> Result<Tensor> {
    negative(x)?.exp()? / (x.abs()?.neg()?.exp()? + 1.0)?
}

/// `ln(1 + x)` for x from 0 to 1: what rounding `1 + x` lost is put back (Kahan).
fn log_1p(x: &Tensor) -> Result<Tensor> {
    let u = (x + 1.0)?;
    let corrected = ((u.log()? * x)? / (&u - 1.0)?)?;
    u.eq(1f32)?.where_cond(x, &corrected)
}

/// `erfc(z)` for `z >= 0`: `exp(-z^2) t Q(t)`, `t = 1 / (1 + z/2)`, with a relative error below 1e-6 until it underflows.
/// Q is a least-squares fit of `exp(z^2) erfc(z) / t` for z from 0 to 14, within 5e-8.
fn erfc(z: &Tensor) -> Result<Tensor> {
    const Q: [f64; 9] = [
        0.282_084_358,
        0.282_411_613,
        0.242_838_848,
        0.203_736_99,
        -0.029_110_119_5,
        0.281_675_253,
        -0.490_353_78,
        0.286_097_689,
        -0.059_380_894_2,
    ];
    let t = ((z * 0.5)? + 1.0)?.recip()?;
    let mut q = t.affine(Q[8], Q[7])?;
    for c in Q[..7].iter().rev() {
        q = ((q * &t)? + *c)?;
    }
    z.sqr()?.neg()?.exp()? * (q * t)?
}

struct Activate(FeatureMap);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "phi activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = values(storage, layout)?.to_vec();
        out.par_chunks_mut(RUN).for_each(|run| apply(self.0, run));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Replaces every `$x` of `$values`. A macro, so that nothing can stay a call in the vectorised loop.
macro_rules! each {
    ($values:ident, $x:ident => $y:expr) => {
        vectorized(
            #[inline(always)]
            || {
                for value in $values {
                    let $x = *value;
                    *value = $y;
                }
            },
        )
    };
}

/// Replaces every value by its activation.
pub fn apply(map: FeatureMap, values: &mut [f32]) {
    match map {
        FeatureMap::Identity => {}
        FeatureMap::Elu => each!(values, x => elu(x)),
        FeatureMap::EluPlusOne => each!(values, x => if x > 0.0 { x + 1.0 } else { exp(x) }),
        // Not `max`, which turns NaN into 0.
        FeatureMap::Relu => each!(values, x => if x < 0.0 { 0.0 } else { x }),
        FeatureMap::Silu => each!(values, x => x * sigmoid(x)),
        FeatureMap::Gelu => each!(values, x => gelu(x)),
        FeatureMap::GeluTanh => each!(values, x => gelu_tanh(x)),
        FeatureMap::Softplus => each!(values, x => x.max(0.0) + exp(-x.abs()).ln_1p()),
        FeatureMap::Sigmoid => each!(values, x => sigmoid(x)),
        FeatureMap::Tanh => each!(values, x => tanh(x)),
        FeatureMap::Exp => each!(values, x => exp(x)),
    }
}

#[inline(always)]
fn elu(x: f32) -> f32 {
    if x > 0.0 { x } else { exp_m1(x) }
}

/// `exp(min(x, 0)) / (1 + exp(-|x|))`: never more than 1, and no tail is lost.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    // Beyond 10 the result is 1 in F32. `clamp` keeps NaN.
    let e = exp_m1(2.0 * x.clamp(-10.0, 10.0));
    e / (e + 2.0)
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x * 0.5 * libm::erfcf(x * -std::f32::consts::FRAC_1_SQRT_2)
}

/// `x/2 (1 + tanh u) = x sigmoid(2u)`
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(2.0 * SQRT_2_OVER_PI as f32 * (x * (1.0 + 0.044_715 * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definitions of docs/METHOD.md, in F64 and in forms that keep small values there.
    fn truth(map: FeatureMap, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match map {
            FeatureMap::Identity => x,
            FeatureMap::Elu => {
                if x > 0.0 {
                    x
                } else {
                    x.exp_m1()
                }
            }
            FeatureMap::EluPlusOne => {
                if x > 0.0 {
                    x + 1.0
                } else {
                    x.exp()
                }
            }
            FeatureMap::Relu => x.max(0.0),
            FeatureMap::Silu => x * sigmoid(x),
            FeatureMap::Gelu => x / 2.0 * libm::erfc(-x / 2f64.sqrt()),
            FeatureMap::GeluTanh => x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))),
            FeatureMap::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            FeatureMap::Sigmoid => sigmoid(x),
            FeatureMap::Tanh => x.tanh(),
            FeatureMap::Exp => x.exp(),
        }
    }

    #[test]
    fn every_activation_is_its_definition() {
        for &map in FeatureMap::ALL {
            let xs: Vec<f32> = (-3000..=3000).map(|i| i as f32 * 0.01).collect();
            let mut ys = xs.clone();
            apply(map, &mut ys);
            for (x, y) in xs.iter().zip(ys) {
                let t = truth(map, f64::from(*x));
                let error = (f64::from(y) - t).abs();
                assert!(error <= 3e-7 * t.abs().max(1.0), "{map}({x}): {y}, expected {t}");
            }
        }
    }

    /// Near 0 and in the tails, where a difference of numbers near 1 has no digits left, the kernels and the operations of
    /// GPUs are the same functions to a few units of the last place.
    #[test]
    fn small_values_and_tails_keep_their_digits_everywhere() {
        let tiny = (-7..=-1).flat_map(|k| [1.0, 2.7, 6.1].map(|m: f32| m * 10f32.powi(k)));
        let xs: Vec<f32> = tiny.chain((4..=180).map(|i| i as f32 * 0.5)).flat_map(|x| [x, -x]).collect();
        let tensor = Tensor::from_slice(&xs, xs.len(), &candle_core::Device::Cpu).unwrap();
        for &map in FeatureMap::ALL {
            let mut kernel = xs.clone();
            apply(map, &mut kernel);
            let operations: Vec<f32> = by_operations(map, &tensor).unwrap().to_vec1().unwrap();
            for (what, ys) in [("kernel", kernel), ("operations", operations)] {
                for (x, y) in xs.iter().zip(ys) {
                    let t = truth(map, f64::from(*x));
                    if t > f64::from(f32::MAX) {
                        assert_eq!(y, f32::INFINITY, "{what} of {map}({x})");
                        continue;
                    }
                    // The exponent of these grows with x^2, and with it what its rounding does to the result.
                    let is_gelu = matches!(map, FeatureMap::Gelu | FeatureMap::GeluTanh);
                    let relative = 2e-6 + if is_gelu { 1e-7 * f64::from(x * x) } else { 0.0 };
                    let error = (f64::from(y) - t).abs();
                    assert!(error <= relative * t.abs() + 1e-44, "{what} of {map}({x}): {y:e}, expected {t:e}");
                }
            }
        }
    }

    /// Values of Python's `math`, which PyTorch's functions in F64 agree with where they have digits.
    #[test]
    fn small_values_are_those_of_another_library() {
        for (map, x, expected) in [
            (FeatureMap::Elu, -1e-4, -9.999_500_016_666_25e-5),
            (FeatureMap::EluPlusOne, -5.0, 6.737_946_999_085_467e-3),
            (FeatureMap::EluPlusOne, -20.0, 2.061_153_622_438_558e-9),
            (FeatureMap::Silu, -20.0, -4.122_307_236_380_407e-8),
            (FeatureMap::Gelu, -5.0, -1.433_257_859_395_973_1e-6),
            (FeatureMap::Softplus, -20.0, 2.061_153_620_314_381e-9),
            (FeatureMap::Softplus, -30.0, 9.357_622_968_839_737e-14),
            (FeatureMap::Sigmoid, -30.0, 9.357_622_968_839_299e-14),
            (FeatureMap::Sigmoid, -80.0, 1.804_851_387_845_415_2e-35),
            (FeatureMap::Exp, -80.0, 1.804_851_387_845_415_2e-35),
        ] {
            let mut kernel = [x as f32];
            apply(map, &mut kernel);
            let tensor = Tensor::from_slice(&[x as f32], 1, &candle_core::Device::Cpu).unwrap();
            let operations: Vec<f32> = by_operations(map, &tensor).unwrap().to_vec1().unwrap();
            for y in [kernel[0], operations[0]] {
                assert!(
                    (f64::from(y) - expected).abs() <= 2e-6 * expected.abs(),
                    "{map}({x}): {y:e}, not {expected:e}"
                );
            }
        }
    }

    #[test]
    fn every_activation_lets_nan_through() {
        for &map in FeatureMap::ALL {
            let mut x = [1.0, f32::NAN, 2.0];
            let tensor = Tensor::from_slice(&x, 3, &candle_core::Device::Cpu).unwrap();
            let operations: Vec<f32> = by_operations(map, &tensor).unwrap().to_vec1().unwrap();
            apply(map, &mut x);
            for x in [&x[..], &operations] {
                assert!(x[1].is_nan() && x[0].is_finite() && x[2].is_finite(), "{map}");
            }
        }
    }

    #[test]
    fn extreme_arguments_give_the_limits() {
        for (map, low, high) in [
            (FeatureMap::Elu, -1.0, 1e4),
            (FeatureMap::Silu, 0.0, 1e4),
            (FeatureMap::Gelu, 0.0, 1e4),
            (FeatureMap::GeluTanh, 0.0, 1e4),
            (FeatureMap::Softplus, 0.0, 1e4),
            (FeatureMap::Sigmoid, 0.0, 1.0),
            (FeatureMap::Tanh, -1.0, 1.0),
        ] {
            let mut x = [-1e4, 1e4];
            apply(map, &mut x);
            assert_eq!(x, [low, high], "{map}");
        }
    }
}
