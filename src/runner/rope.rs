//! Rotary position embedding: angles in the arithmetic that PyTorch uses, so that long prompts agree too.

use std::ops::Range;

use candle_core::{D, Tensor};

use super::candle;
use super::device::Device;
use super::kernels::rope::rotate_halves;
use crate::base::{BaseConfig, BaseModel, Rope};
use crate::error::Result;

/// How a model turns the queries and keys of sequences up to one length: every rotation of it, ready for any positions.
pub(super) struct Ropes(Vec<Frequencies>);

/// One of them.
struct Frequencies {
    /// `[rotary_dim/2]`
    values: Vec<f32>,
    attention_factor: f32,
}

impl Frequencies {
    fn new(config: &BaseConfig, rope: &Rope, n_positions: usize) -> Self {
        let values = rope.frequencies(config.rotary_dim, n_positions);
        Frequencies { values, attention_factor: rope.attention_factor as f32 }
    }
}

impl Ropes {
    /// Those of sequences that have, or may reach, `n_positions`: transformers takes the length of the text that it sees,
    /// llama.cpp that of the context.
    pub fn new(config: &BaseConfig, n_positions: usize) -> Self {
        Ropes(config.ropes.iter().map(|r| Frequencies::new(config, r, n_positions)).collect())
    }

    /// Those of `positions`.
    pub fn at(&self, positions: Range<usize>, device: &Device) -> Result<Rotations> {
        let rotation = |f: &Frequencies| {
            Rotation::new(&f.values, (f.attention_factor, f.attention_factor), positions.clone(), device)
        };
        let all = self.0.iter().map(rotation).collect::<Result<_>>()?;
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
    /// With a factor on cosines and one on sines.
    fn new(
        frequencies: &[f32],
        (of_cos, of_sin): (f32, f32),
        positions: Range<usize>,
        device: &Device,
    ) -> Result<Self> {
        let angles: Vec<f32> = positions.clone().flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let shape = (positions.len(), frequencies.len());
        // In F64 and rounded once: F32 functions differ between libraries by more than the last bit.
        let table = |f: fn(f64) -> f64, factor: f32| {
            let values = angles.iter().map(|a| f(f64::from(*a)) as f32 * factor).collect();
            Tensor::from_vec(values, shape, &device.0).map_err(candle)
        };
        Ok(Rotation { cos: table(f64::cos, of_cos)?, sin: table(f64::sin, of_sin)? })
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

/// Queries `[B, H, T, D]` of `layer` as they were before RoPE, given those after it, at positions 0 to T-1: rotation
/// and attention factor undone.
///
/// # Errors
///
/// Those of the device. Asserts that `q` has `shape`.
pub fn before_rope(base: &BaseModel, layer: usize, q: &[f32], shape: [usize; 4]) -> Result<Vec<f32>> {
    assert_eq!(q.len(), shape.iter().product::<usize>());
    let Some(rope) = base.config.layers[layer].rope else { return Ok(q.to_vec()) };
    let (device, t) = (Device::cpu(), shape[2]);
    let Frequencies { values, attention_factor } = Frequencies::new(&base.config, &base.config.ropes[rope], t);
    let rotation = Rotation::new(&values, (1.0 / attention_factor, -1.0 / attention_factor), 0..t, &device)?;
    let q = Tensor::from_slice(q, &shape[..], &device.0).map_err(candle)?;
    rotation.apply(&q).and_then(|x| x.flatten_all()?.to_vec1()).map_err(candle)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::{RopeScaling, Yarn};

    fn base() -> BaseModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-gqa/base");
        BaseModel::open(&folder).unwrap()
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let mut config = base().config;
        config.ropes[0].scaling = RopeScaling::None;
        let plain = Frequencies::new(&config, &config.ropes[0], 1).values;
        config.ropes[0].scaling = RopeScaling::Linear { factor: 4.0 };
        let scaled = Frequencies::new(&config, &config.ropes[0], 1).values;
        assert_eq!(plain[0], 1.0);
        assert_eq!(scaled, plain.iter().map(|f| f / 4.0).collect::<Vec<_>>());
    }

    #[test]
    fn the_formula_of_llama3_gives_the_divisors_that_ggufs_conversion_stored() {
        let gguf = BaseModel::open(&crate::base_gguf::base_gguf("llama-gqa")).unwrap();
        let frequencies = |base: BaseModel| base.config.ropes[0].frequencies(64, 1);
        for (a, b) in frequencies(base()).iter().zip(frequencies(gguf)) {
            assert!((a - b).abs() <= 1e-6 * a, "{a} {b}");
        }
    }

    #[test]
    fn a_rotation_with_an_attention_factor_is_undone() {
        let mut base = base();
        base.config.ropes[0].attention_factor = 1.25;
        base.config.ropes[0].scaling = RopeScaling::Yarn(Yarn {
            factor: 4.0,
            original_max_positions: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        });
        let shape = [1, base.config.n_heads, 3, base.config.head_dim];
        let q: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
        let device = Device::cpu();
        let rotations = Ropes::new(&base.config, 3).at(0..3, &device).unwrap();
        let turned = rotations.apply(Some(0), &Tensor::from_slice(&q, &shape[..], &device.0).unwrap()).unwrap();
        let turned: Vec<f32> = turned.flatten_all().unwrap().to_vec1().unwrap();
        let length = |x: &[f32]| x[..shape[3]].iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length(&turned) / length(&q) - 1.25).abs() < 1e-5);
        for (a, b) in before_rope(&base, 0, &turned, shape).unwrap().iter().zip(&q) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
