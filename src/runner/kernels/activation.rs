//! phi's activation, elementwise.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::{exp, exp_m1};
use super::{RUN, values, vectorized};
use crate::adapter::FeatureMap;

/// `map` of every element of `x`, any shape.
pub fn activate(map: FeatureMap, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1_no_bwd(&Activate(map)) } else { on_gpu(map, x) }
}

/// As PyTorch's functional forms, which the reference uses.
fn on_gpu(map: FeatureMap, x: &Tensor) -> Result<Tensor> {
    match map {
        FeatureMap::Identity => Ok(x.clone()),
        FeatureMap::Elu => x.elu(1.0),
        FeatureMap::EluPlusOne => x.elu(1.0)? + 1.0,
        // candle's own makes 0 of NaN.
        FeatureMap::Relu => x.le(0f32)?.where_cond(&x.zeros_like()?, x),
        FeatureMap::Silu => x.silu(),
        FeatureMap::Gelu => x.gelu_erf(),
        FeatureMap::GeluTanh => x.gelu(),
        FeatureMap::Softplus => x.gt(SOFTPLUS_LINEAR_FROM)?.where_cond(x, &(x.exp()? + 1.0)?.log()?),
        FeatureMap::Sigmoid => candle_nn::ops::sigmoid(x),
        FeatureMap::Tanh => x.tanh(),
        FeatureMap::Exp => x.exp(),
    }
}

/// `threshold` of `torch.nn.functional.softplus`.
const SOFTPLUS_LINEAR_FROM: f32 = 20.0;

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
        FeatureMap::EluPlusOne => each!(values, x => elu(x) + 1.0),
        // Not `max`, which turns NaN into 0.
        FeatureMap::Relu => each!(values, x => if x < 0.0 { 0.0 } else { x }),
        FeatureMap::Silu => each!(values, x => x * sigmoid(x)),
        FeatureMap::Gelu => each!(values, x => x * 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))),
        FeatureMap::GeluTanh => each!(values, x => gelu_tanh(x)),
        FeatureMap::Softplus => each!(values, x => if x > SOFTPLUS_LINEAR_FROM { x } else { exp(x).ln_1p() }),
        FeatureMap::Sigmoid => each!(values, x => sigmoid(x)),
        FeatureMap::Tanh => each!(values, x => tanh(x)),
        FeatureMap::Exp => each!(values, x => exp(x)),
    }
}

#[inline(always)]
fn elu(x: f32) -> f32 {
    if x > 0.0 { x } else { exp_m1(x) }
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Beyond 10 the result is 1 in F32. `clamp` keeps NaN.
    let e = exp_m1(2.0 * x.clamp(-10.0, 10.0));
    e / (e + 2.0)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SCALE: f32 = 0.797_884_6; // sqrt(2 / pi)
    0.5 * x * (1.0 + tanh(SCALE * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definitions of the specification, in F64.
    fn truth(map: FeatureMap, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let elu = |x: f64| if x > 0.0 { x } else { x.exp_m1() };
        match map {
            FeatureMap::Identity => x,
            FeatureMap::Elu => elu(x),
            FeatureMap::EluPlusOne => elu(x) + 1.0,
            FeatureMap::Relu => x.max(0.0),
            FeatureMap::Silu => x * sigmoid(x),
            FeatureMap::Gelu => x / 2.0 * (1.0 + libm::erf(x / 2f64.sqrt())),
            FeatureMap::GeluTanh => {
                x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            FeatureMap::Softplus => x.exp().ln_1p(),
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

    #[test]
    fn the_gpu_formulas_are_the_definitions_too() {
        let xs: Vec<f32> = (-3000..=3000).map(|i| i as f32 * 0.01).chain([f32::NAN]).collect();
        let x = Tensor::from_slice(&xs, xs.len(), &candle_core::Device::Cpu).unwrap();
        for &map in FeatureMap::ALL {
            let ys: Vec<f32> = on_gpu(map, &x).unwrap().to_vec1().unwrap();
            for (x, y) in xs.iter().zip(&ys).take(xs.len() - 1) {
                let t = truth(map, f64::from(*x));
                assert!((f64::from(*y) - t).abs() <= 1e-6 * t.abs().max(1.0), "{map}({x}): {y}, expected {t}");
            }
            assert!(ys[xs.len() - 1].is_nan(), "{map}");
        }
    }

    #[test]
    fn every_activation_lets_nan_through() {
        for &map in FeatureMap::ALL {
            let mut x = [1.0, f32::NAN, 2.0];
            apply(map, &mut x);
            assert!(x[1].is_nan() && x[0].is_finite() && x[2].is_finite(), "{map}");
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
