//! Rotary position embedding: what a model states about it, and the frequencies that follow from that.
//!
//! ```text
//!   angle(p, i) = p * frequency(i)                                      position p, pair i of the rotary_dim / 2 pairs
//!   cos, sin    = attention_factor * cos(angle), attention_factor * sin(angle)
//! ```

use std::f64::consts::PI;
use std::fmt;

/// Rotary position embedding of some layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies.
    pub theta: f64,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
    /// Multiplies cosines and sines, and so rotated queries and keys; 1 for most models.
    pub attention_factor: f64,
}

/// How the frequencies of [`Rope`] are changed. Sources: transformers' `modeling_rope_utils.py`, ggml's
/// `rope_freqs.weight`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Sequences of more than `max_positions` raise the base of the frequencies, the more the longer they are.
    Dynamic {
        /// How fast.
        factor: f64,
        /// Positions up to which nothing is changed.
        max_positions: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, and a ramp between.
    Yarn(Yarn),
    /// Each frequency is divided by its own factor, of which there is one set for short sequences and one for long.
    LongRope {
        /// Divisors `[rotary_dim / 2]` for sequences of up to `original_max_positions`.
        short: Vec<f32>,
        /// Divisors `[rotary_dim / 2]` for longer ones.
        long: Vec<f32>,
        /// Context length before scaling.
        original_max_positions: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `original_max_positions / low_freq_factor` is the wavelength from which on a frequency is low.
        low_freq_factor: f64,
        /// `original_max_positions / high_freq_factor` is the wavelength up to which a frequency is high.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_positions: usize,
    },
    /// Each frequency is divided by its entry `[rotary_dim / 2]` of the GGUF tensor `rope_freqs.weight`.
    Divisors(Vec<f32>),
}

/// YaRN: which frequencies are low is stated as rotations within the original context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f64,
    /// Context length before scaling.
    pub original_max_positions: usize,
    /// Frequencies of at least so many rotations are kept.
    pub beta_fast: f64,
    /// Frequencies of at most so many rotations are divided.
    pub beta_slow: f64,
    /// Whether the ramp begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// Rotations at the ends of the ramp where nothing states them.
    pub const BETAS: (f64, f64) = (32.0, 1.0);

    /// The factor on cosines and sines that belongs to a scaling by `factor`. Source: `get_mscale`.
    pub fn attention_factor(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// The pairs at which the ramp begins and ends. Source: `find_correction_range`.
    pub fn ramp(&self, theta: f64, rotary_dim: usize) -> (f64, f64) {
        let dim = rotary_dim as f64;
        let pair = |rotations: f64| {
            dim * (self.original_max_positions as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        (low.max(0.0), high.min(dim - 1.0))
    }

    /// Source: `_compute_yarn_parameters`, in F32 from the powers on.
    fn scale(&self, theta: f64, rotary_dim: usize, powers: &[f32]) -> Vec<f32> {
        let (low, high) = self.ramp(theta, rotary_dim);
        let span = (if low == high { high + 0.001 } else { high } - low) as f32;
        let frequency = |(i, power): (usize, &f32)| {
            let divided = 1.0 / (self.factor as f32 * power);
            let kept = 1.0 / power;
            let share_kept = 1.0 - ((i as f32 - low as f32) / span).clamp(0.0, 1.0);
            divided * (1.0 - share_kept) + kept * share_kept
        };
        powers.iter().enumerate().map(frequency).collect()
    }
}

impl Rope {
    /// RoPE without any scaling.
    pub fn plain(theta: f64) -> Rope {
        Rope { theta, scaling: RopeScaling::None, attention_factor: 1.0 }
    }

    /// Up to how many positions the frequencies are the same; `None` where they do not depend on the sequence's length.
    pub fn changes_beyond(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Dynamic { max_positions, .. } => Some(*max_positions),
            RopeScaling::LongRope { original_max_positions, short, long } if short != long => {
                Some(*original_max_positions)
            }
            _ => None,
        }
    }

    /// The frequencies `[rotary_dim / 2]` for a sequence of `n_positions`.
    ///
    /// Source: `compute_default_rope_parameters` and `ROPE_INIT_FUNCTIONS` of transformers 5.24.0, which compute in F32;
    /// `ggml_rope_ext` for divisors.
    pub fn frequencies(&self, rotary_dim: usize, n_positions: usize) -> Vec<f32> {
        let powers = |theta: f32| -> Vec<f32> {
            let power = |i| f64::from(theta).powf(f64::from((2 * i) as f32 / rotary_dim as f32)) as f32;
            (0..rotary_dim / 2).map(power).collect()
        };
        let inverse = |powers: Vec<f32>| -> Vec<f32> { powers.iter().map(|p| 1.0 / p).collect() };
        let theta = self.theta as f32;
        match &self.scaling {
            RopeScaling::None => inverse(powers(theta)),
            RopeScaling::Linear { factor } => inverse(powers(theta)).iter().map(|f| f / *factor as f32).collect(),
            RopeScaling::Dynamic { factor, max_positions } if n_positions > *max_positions => {
                let growth = *factor as f32 * n_positions as f32 / *max_positions as f32 - (factor - 1.0) as f32;
                let exponent = rotary_dim as f64 / (rotary_dim as f64 - 2.0);
                inverse(powers(theta * f64::from(growth).powf(exponent) as f32))
            }
            RopeScaling::Dynamic { .. } => inverse(powers(theta)),
            RopeScaling::Yarn(yarn) => yarn.scale(self.theta, rotary_dim, &powers(theta)),
            RopeScaling::LongRope { short, long, original_max_positions } => {
                let divisors = if n_positions > *original_max_positions { long } else { short };
                powers(theta).iter().zip(divisors).map(|(p, d)| 1.0 / (d * p)).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let context = *original_max_positions as f64;
                let longest_kept = (context / high_freq_factor) as f32;
                let shortest_divided = (context / low_freq_factor) as f32;
                let (factor, low) = (*factor as f32, *low_freq_factor as f32);
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
                inverse(powers(theta)).iter().map(scale).collect()
            }
            RopeScaling::Divisors(divisors) => {
                inverse(powers(theta)).iter().zip(divisors).map(|(f, x)| f / x).collect()
            }
        }
    }
}

impl fmt::Display for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rope_theta {} and ", self.theta)?;
        match &self.scaling {
            RopeScaling::None => f.write_str("no scaling"),
            RopeScaling::Linear { factor } => write!(f, "linear scaling by {factor}"),
            RopeScaling::Dynamic { factor, max_positions } => {
                write!(f, "dynamic scaling by {factor} ({max_positions} positions)")
            }
            RopeScaling::Yarn(y) => write!(
                f,
                "yarn scaling by {} ({}, {}, {} positions, {})",
                y.factor,
                y.beta_fast,
                y.beta_slow,
                y.original_max_positions,
                if y.truncate { "truncated" } else { "not truncated" }
            ),
            RopeScaling::LongRope { original_max_positions, .. } => {
                write!(f, "longrope scaling ({original_max_positions} positions)")
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => write!(
                f,
                "llama3 scaling by {factor} ({low_freq_factor}, {high_freq_factor}, {original_max_positions} positions)"
            ),
            RopeScaling::Divisors(_) => f.write_str("scaling by a tensor"),
        }?;
        match self.attention_factor {
            1.0 => Ok(()),
            factor => write!(f, ", attention factor {factor}"),
        }
    }
}
