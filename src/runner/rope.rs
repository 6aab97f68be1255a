//! Rotary position embedding: angles in the arithmetic that PyTorch uses, so that long prompts agree too.

use std::f64::consts::PI;
use std::ops::Range;

use candle_core::Tensor;

use super::candle;
use super::device::Device;
use super::kernels::rope::rotate_halves;
use crate::base::{BaseModel, RopeScaling, Weight};
use crate::error::Result;

/// The inverse frequencies `[D/2]` of a model, F32.
///
/// Source: `compute_default_rope_parameters`, `_compute_linear_scaling_rope_parameters` and
/// `_compute_llama3_parameters` of transformers 5.23.0, which compute in F32; `ggml_rope_ext` for divisors.
///
/// # Errors
///
/// Those of [`BaseModel::vector`].
pub(super) fn inverse_frequencies(base: &BaseModel) -> Result<Vec<f32>> {
    let rope = base.config.rope;
    let d = base.config.head_dim as f32;
    let power = |i: usize| f64::from(rope.theta as f32).powf(f64::from((2 * i) as f32 / d)) as f32;
    let plain: Vec<f32> = (0..base.config.head_dim / 2).map(|i| 1.0 / power(i)).collect();
    Ok(match rope.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain.iter().map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = original_max_positions as f64;
            let longest_kept = (context / high_freq_factor) as f32;
            let shortest_divided = (context / low_freq_factor) as f32;
            let (factor, low) = (factor as f32, low_freq_factor as f32);
            let span = (high_freq_factor - low_freq_factor) as f32;
            let scale = |f: &f32| {
                let wavelength = (2.0 * PI) as f32 / f;
                if wavelength > shortest_divided {
                    f / factor
                } else if wavelength < longest_kept {
                    *f
                } else {
                    let smooth = (context as f32 / wavelength - low) / span;
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            plain.iter().map(scale).collect()
        }
        RopeScaling::Factors => {
            let divisors = base.vector(Weight::RopeFactors)?;
            plain.iter().zip(divisors).map(|(f, x)| f / x).collect()
        }
    })
}

/// Cosines and sines of some positions, `[T, D/2]` each.
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    /// The first position.
    pub start: usize,
}

impl Rotation {
    pub fn new(inverse_frequencies: &[f32], positions: Range<usize>, device: &Device) -> Result<Self> {
        let angles: Vec<f32> =
            positions.clone().flat_map(|p| inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        let shape = (positions.len(), inverse_frequencies.len());
        // In F64 and rounded once: F32 functions differ between libraries by more than the last bit.
        let table = |f: fn(f64) -> f64| {
            let values = angles.iter().map(|a| f(f64::from(*a)) as f32).collect();
            Tensor::from_vec(values, shape, &device.0).map_err(candle)
        };
        Ok(Rotation { cos: table(f64::cos)?, sin: table(f64::sin)?, start: positions.start })
    }

    /// Turns `x` `[B, H, T, D]`: component `j` together with `D/2 + j`.
    pub fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        rotate_halves(x, &self.cos, &self.sin)
    }
}

/// Queries `[B, H, T, D]` as they were before RoPE, given those after it, at positions 0 to T-1: a rotation undone.
///
/// # Errors
///
/// Those of the base's RoPE. Asserts that `q` has `shape`.
pub fn before_rope(base: &BaseModel, q: &[f32], shape: [usize; 4]) -> Result<Vec<f32>> {
    assert_eq!(q.len(), shape.iter().product::<usize>());
    let device = Device::cpu();
    let mut rotation = Rotation::new(&inverse_frequencies(base)?, 0..shape[2], &device)?;
    rotation.sin = rotation.sin.neg().map_err(candle)?;
    let q = Tensor::from_slice(q, &shape[..], &device.0).map_err(candle)?;
    rotation.apply(&q).and_then(|x| x.flatten_all()?.to_vec1()).map_err(candle)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn base(file: &str) -> BaseModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-gqa");
        BaseModel::open(&folder.join(file)).unwrap()
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let mut base = base("base");
        base.config.rope.scaling = RopeScaling::None;
        let plain = inverse_frequencies(&base).unwrap();
        base.config.rope.scaling = RopeScaling::Linear { factor: 4.0 };
        let scaled = inverse_frequencies(&base).unwrap();
        assert_eq!(plain[0], 1.0);
        assert_eq!(scaled, plain.iter().map(|f| f / 4.0).collect::<Vec<_>>());
    }

    #[test]
    fn the_formula_of_llama3_gives_the_divisors_that_ggufs_conversion_stored() {
        let (formula, divisors) = (inverse_frequencies(&base("base")), inverse_frequencies(&base("base.gguf")));
        for (a, b) in formula.unwrap().iter().zip(divisors.unwrap()) {
            assert!((a - b).abs() <= 1e-6 * a, "{a} {b}");
        }
    }
}
