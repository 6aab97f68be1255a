//! Rotary position embedding: angles in the arithmetic that PyTorch uses, so that long prompts agree too.

use std::f64::consts::PI;
use std::ops::Range;

use candle_core::{D, Tensor};

use super::candle;
use super::device::Device;
use super::kernels::rope::rotate_halves;
use crate::base::{BaseModel, Rope, RopeScaling, Weight};
use crate::error::Result;

/// The inverse frequencies `[rotary_dim/2]` of a rotation of the model's, F32.
///
/// Source: `compute_default_rope_parameters`, `_compute_linear_scaling_rope_parameters` and
/// `_compute_llama3_parameters` of transformers 5.23.0, which compute in F32; `ggml_rope_ext` for divisors.
///
/// # Errors
///
/// Those of [`BaseModel::vector`].
fn inverse_frequencies(base: &BaseModel, rope: &Rope) -> Result<Vec<f32>> {
    let d = base.config.rotary_dim as f32;
    let power = |i: usize| f64::from(rope.theta as f32).powf(f64::from((2 * i) as f32 / d)) as f32;
    let plain: Vec<f32> = (0..base.config.rotary_dim / 2).map(|i| 1.0 / power(i)).collect();
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

/// The rotations of a model, ready for any positions: inverse frequencies of each.
pub(super) struct Ropes(Vec<Vec<f32>>);

impl Ropes {
    /// # Errors
    ///
    /// Those of [`BaseModel::vector`].
    pub fn of(base: &BaseModel) -> Result<Self> {
        base.config.ropes.iter().map(|r| inverse_frequencies(base, r)).collect::<Result<_>>().map(Ropes)
    }

    /// Those of `positions`.
    pub fn at(&self, positions: Range<usize>, device: &Device) -> Result<Rotations> {
        let all = self.0.iter().map(|f| Rotation::new(f, positions.clone(), device)).collect::<Result<_>>()?;
        Ok(Rotations { all, start: positions.start })
    }
}

/// Every rotation of a model at some positions.
pub(super) struct Rotations {
    all: Vec<Rotation>,
    /// The first position.
    pub start: usize,
}

impl Rotations {
    /// Turns `x` `[B, H, T, D]` as `rope` says: an index into the model's, or none.
    pub fn apply(&self, rope: Option<usize>, x: &Tensor) -> candle_core::Result<Tensor> {
        match rope {
            Some(i) => self.all[i].apply(x),
            None => x.contiguous(),
        }
    }
}

/// Cosines and sines of some positions, `[T, rotary_dim/2]` each.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    fn new(inverse_frequencies: &[f32], positions: Range<usize>, device: &Device) -> Result<Self> {
        let angles: Vec<f32> =
            positions.clone().flat_map(|p| inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        let shape = (positions.len(), inverse_frequencies.len());
        // In F64 and rounded once: F32 functions differ between libraries by more than the last bit.
        let table = |f: fn(f64) -> f64| {
            let values = angles.iter().map(|a| f(f64::from(*a)) as f32).collect();
            Tensor::from_vec(values, shape, &device.0).map_err(candle)
        };
        Ok(Rotation { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Turns `x` `[B, H, T, D]`: component `j` together with `rotary_dim/2 + j`. What is beyond these stays.
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (d, turned) = (x.dim(D::Minus1)?, 2 * self.cos.dim(1)?);
        if turned == d {
            return rotate_halves(x, &self.cos, &self.sin);
        }
        let first = x.narrow(D::Minus1, 0, turned)?;
        let first = rotate_halves(&first, &self.cos, &self.sin)?;
        Tensor::cat(&[first, x.narrow(D::Minus1, turned, d - turned)?], D::Minus1)
    }
}

/// Queries `[B, H, T, D]` of `layer` as they were before RoPE, given those after it, at positions 0 to T-1: a rotation undone.
///
/// # Errors
///
/// Those of the base's RoPE. Asserts that `q` has `shape`.
pub fn before_rope(base: &BaseModel, layer: usize, q: &[f32], shape: [usize; 4]) -> Result<Vec<f32>> {
    assert_eq!(q.len(), shape.iter().product::<usize>());
    let Some(rope) = base.config.layers[layer].rope else { return Ok(q.to_vec()) };
    let device = Device::cpu();
    let frequencies = inverse_frequencies(base, &base.config.ropes[rope])?;
    let mut rotation = Rotation::new(&frequencies, 0..shape[2], &device)?;
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

    fn frequencies(base: &BaseModel) -> Vec<f32> {
        inverse_frequencies(base, &base.config.ropes[0]).unwrap()
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let mut base = base("base");
        base.config.ropes[0].scaling = RopeScaling::None;
        let plain = frequencies(&base);
        base.config.ropes[0].scaling = RopeScaling::Linear { factor: 4.0 };
        let scaled = frequencies(&base);
        assert_eq!(plain[0], 1.0);
        assert_eq!(scaled, plain.iter().map(|f| f / 4.0).collect::<Vec<_>>());
    }

    #[test]
    fn the_formula_of_llama3_gives_the_divisors_that_ggufs_conversion_stored() {
        let (formula, divisors) = (frequencies(&base("base")), frequencies(&base("base.gguf")));
        for (a, b) in formula.iter().zip(divisors) {
            assert!((a - b).abs() <= 1e-6 * a, "{a} {b}");
        }
    }
}
