//! RoPE as GGUF states it: keys, and divisors of the frequencies where llama.cpp reads any.
//!
//! What is written is what makes llama.cpp compute the model's own frequencies; where it can't be made to, that is an error.
//! Sources: those of `base/gguf/rope.rs`; `set_gguf_parameters` and `generate_extra_tensors` in llama.cpp's converter.

use std::f64::consts::PI;

use crate::base::{BaseModel, Rope, RopeFactors, RopeScaling, RopeTensors, Yarn};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{Metadata, Value};

/// What a file says about RoPE beside its base.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Stated {
    /// `rope.scaling.type`.
    kind: Option<&'static str>,
    factor: Option<f64>,
    original_max_positions: Option<usize>,
    /// The factor on cosines and sines beyond the one that llama.cpp derives from the type.
    attention_factor: Option<f64>,
    /// Divisors `[rotary_dim / 2]`.
    pub tensors: Vec<(RopeFactors, Vec<f32>)>,
    /// What a reader should know.
    pub note: Option<String>,
}

/// How the RoPE of a folder's model is stated.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] where llama.cpp would turn by other angles.
pub(super) fn state(base: &BaseModel) -> Result<Stated> {
    let (rope, rotary_dim) = (&base.config.ropes[0], base.config.rotary_dim);
    let read = base.config.family.llama_cpp().rope_tensors;
    let refuse = |what: &str, reason: &str| {
        let message = format!("expected no {what}, since llama.cpp {reason} for {}", base.gguf_architecture());
        Err(Error::new(Code::ConfigUnsupported, message).file(&base.path.join("config.json")).field("rope_parameters"))
    };
    let mut stated = Stated::default();
    let mut attention_factor = rope.attention_factor;
    match &rope.scaling {
        RopeScaling::None | RopeScaling::Divisors(_) => {}
        RopeScaling::Linear { factor } => {
            stated.kind = Some("linear");
            stated.factor = Some(*factor);
        }
        RopeScaling::Dynamic { max_positions, .. } => {
            stated.note = Some(format!(
                "RoPE is scaled in texts of more than {max_positions} positions, the longer the more, which llama.cpp does not know: the file holds the model without scaling, which is the same up to there"
            ));
        }
        RopeScaling::Yarn(yarn) if is_llama_cpps(yarn, rope.theta, rotary_dim) => {
            stated.kind = Some("yarn");
            stated.factor = Some(yarn.factor);
            stated.original_max_positions = Some(yarn.original_max_positions);
            attention_factor /= Yarn::attention_factor(yarn.factor, 1.0);
        }
        RopeScaling::Yarn(yarn) if read == RopeTensors::None => {
            let betas = format!("({}, {}, {})", yarn.beta_fast, yarn.beta_slow, yarn.truncate);
            let what = format!("beta_fast, beta_slow and truncate {betas} other than (32, 1, true) in yarn scaling");
            return refuse(&what, "computes with these");
        }
        RopeScaling::Yarn(_) | RopeScaling::Llama3 { .. } => {
            let divisors = divisors(rope, rotary_dim);
            match read {
                RopeTensors::ByType => stated.tensors.push((RopeFactors::All, divisors)),
                RopeTensors::LongAndShort => {
                    stated.tensors.extend([(RopeFactors::Long, divisors.clone()), (RopeFactors::Short, divisors)]);
                }
                RopeTensors::None => return refuse("llama3 scaling", "reads no divisors of the frequencies"),
            }
        }
        RopeScaling::LongRope { .. } if read == RopeTensors::None => {
            return refuse("longrope scaling", "reads no divisors of the frequencies");
        }
        RopeScaling::LongRope { short, long, original_max_positions } => {
            stated.kind = Some("longrope");
            stated.original_max_positions = Some(*original_max_positions);
            stated.tensors.extend([(RopeFactors::Long, long.clone()), (RopeFactors::Short, short.clone())]);
            stated.note = (short != long).then(|| format!(
                "RoPE has factors for texts of up to {original_max_positions} positions and others for longer ones: llama.cpp takes the latter where its context is longer, however short the text"
            ));
        }
    }
    stated.attention_factor = Some(attention_factor).filter(|x| (*x as f32) != 1.0);
    Ok(stated)
}

impl Stated {
    /// Writes the keys of `architecture`.
    pub fn put(&self, architecture: &str, m: &mut Metadata) -> Result<()> {
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        if let Some(kind) = self.kind {
            m.insert(key("type"), kind);
        }
        if let Some(factor) = self.factor {
            m.insert(key("factor"), Value::F32(factor as f32));
        }
        if let Some(n) = self.original_max_positions {
            let n = u32::try_from(n).map_err(|_| {
                Error::new(Code::GgufWrite, format!("expected at most {}, found {n}", u32::MAX))
                    .field("rope_parameters")
            })?;
            m.insert(key("original_context_length"), Value::U32(n));
        }
        if let Some(factor) = self.attention_factor {
            m.insert(key("attn_factor"), Value::F32(factor as f32));
        }
        Ok(())
    }
}

/// Whether the ramp is the one that llama.cpp computes, which reads neither where it begins nor where it ends.
fn is_llama_cpps(yarn: &Yarn, theta: f64, rotary_dim: usize) -> bool {
    let (beta_fast, beta_slow) = Yarn::BETAS;
    let (low, high) = yarn.ramp(theta, rotary_dim);
    // Between pairs that change places the two go different ways.
    low <= high && (low, high) == Yarn { beta_fast, beta_slow, truncate: true, ..*yarn }.ramp(theta, rotary_dim)
}

/// The divisors `[rotary_dim / 2]` that a formula comes to, computed in F64 and rounded once. llama.cpp's converter computes
/// those of llama3 in F32 and so differs in the last two bits.
///
/// Asserts that the scaling is a formula.
fn divisors(rope: &Rope, rotary_dim: usize) -> Vec<f32> {
    let divisor = |i: usize| match &rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = *original_max_positions as f64;
            let frequency = 1.0 / rope.theta.powf((2 * i) as f64 / rotary_dim as f64);
            let wavelength = 2.0 * PI / frequency;
            if wavelength < context / high_freq_factor {
                1.0
            } else if wavelength > context / low_freq_factor {
                *factor
            } else {
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        }
        RopeScaling::Yarn(yarn) => {
            let (low, high) = yarn.ramp(rope.theta, rotary_dim);
            let span = if low == high { 0.001 } else { high - low };
            let divided = ((i as f64 - low) / span).clamp(0.0, 1.0);
            1.0 / (divided / yarn.factor + 1.0 - divided)
        }
        other => panic!("{other:?} has no formula for divisors"),
    };
    (0..rotary_dim / 2).map(|i| divisor(i) as f32).collect()
}
