//! `rope_freqs.weight`: RoPE scaling of the kind `llama3` as divisors of the frequencies.

use std::f64::consts::PI;

use crate::base::{BaseConfig, RopeScaling};

/// The divisors `[D/2]`, computed in F64 and rounded once. Source: `generate_extra_tensors` of `LlamaModel` in llama.cpp's
/// converter, which computes in F32 and so differs in the last two bits.
///
/// Asserts that the configuration has this scaling.
pub(super) fn llama3_factors(c: &BaseConfig) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = c.ropes[0].scaling
    else {
        panic!("only llama3 scaling has divisors");
    };
    let context = original_max_positions as f64;
    let divisor = |i: usize| {
        let frequency = 1.0 / c.ropes[0].theta.powf((2 * i) as f64 / c.rotary_dim as f64);
        let wavelength = 2.0 * PI / frequency;
        if wavelength < context / high_freq_factor {
            1.0
        } else if wavelength > context / low_freq_factor {
            factor
        } else {
            let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..c.rotary_dim / 2).map(|i| divisor(i) as f32).collect()
}
