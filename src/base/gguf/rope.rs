//! RoPE in a GGUF file: what llama.cpp computes from its keys and tensors, whoever wrote them.
//!
//! Sources: `load_hparams` and `get_rope_factors` in llama.cpp's llama-model.cpp, the constructor in llama-context.cpp,
//! `load_arch_tensors` in models/*.cpp, `rope_yarn` in ggml-cpu/ops.cpp.

use super::context_length;
use crate::base::config::{Family, RopeTensors};
use crate::base::keys::Keys;
use crate::base::names::{Dialect, RopeFactors, Weight};
use crate::base::rope::{Rope, RopeScaling, Yarn};
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::format::names::shorten;
use crate::quant;

/// Reads RoPE; `tensor` finds a tensor of the file by name.
pub(super) fn parse<'t>(
    keys: &Keys,
    family: Family,
    tensor: &impl Fn(&str) -> Option<&'t StoredTensor>,
    rotary_dim: usize,
) -> Result<Rope> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let kind = keys.text(&keys.key("rope.scaling.type"))?.unwrap_or("linear");
    let factor = match kind {
        "none" => None,
        "linear" | "yarn" | "longrope" => factor(keys)?,
        other => {
            let message = format!("expected none, linear, yarn or longrope, found {:?}", shorten(other));
            return Err(keys.unsupported("rope.scaling.type", message));
        }
    };
    let mut attention_factor = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    // llama.cpp divides by both.
    let divisors = divisors(keys, family, tensor, kind, rotary_dim)?.map(|scaling| match (scaling, factor) {
        (scaling, None) => scaling,
        (RopeScaling::Divisors(x), Some(f)) => RopeScaling::Divisors(scaled(&x, f)),
        (RopeScaling::LongRope { short, long, original_max_positions }, Some(f)) => {
            RopeScaling::LongRope { short: scaled(&short, f), long: scaled(&long, f), original_max_positions }
        }
        (other, Some(_)) => other,
    });
    let scaling = match (divisors, factor) {
        (Some(_), _) if kind == "yarn" => {
            let message = "expected no divisors of RoPE beside yarn: this is not computed here";
            return Err(keys.unsupported("rope.scaling.type", message));
        }
        (Some(scaling), _) => scaling,
        (None, factor) if kind == "yarn" => {
            let factor = factor.unwrap_or(1.0);
            attention_factor *= Yarn::attention_factor(factor, 1.0);
            RopeScaling::Yarn(yarn(keys, theta, factor)?)
        }
        (None, Some(factor)) => RopeScaling::Linear { factor },
        (None, None) => RopeScaling::None,
    };
    Ok(Rope { theta, scaling, attention_factor })
}

fn scaled(divisors: &[f32], factor: f64) -> Vec<f32> {
    divisors.iter().map(|x| x * factor as f32).collect()
}

fn yarn(keys: &Keys, theta: f64, factor: f64) -> Result<Yarn> {
    // The ramp divides by the logarithm.
    if theta as f32 <= 1.0 {
        return Err(keys.invalid("rope.freq_base", format!("expected more than 1 for yarn, found {theta}")));
    }
    let (beta_fast, beta_slow) = Yarn::BETAS;
    // Converters write these, and llama.cpp reads them in other architectures only: where they say something else than it
    // computes, the model that they are about is another one.
    for (name, computed) in [
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_attn_factor", Yarn::attention_factor(factor, 1.0)),
        ("rope.scaling.yarn_beta_fast", beta_fast),
        ("rope.scaling.yarn_beta_slow", beta_slow),
    ] {
        if let Some(stated) = keys.number(name)?.filter(|x| (x - computed).abs() > 1e-6 * computed) {
            let message = format!(
                "expected {computed}, which llama.cpp computes with for {}, whatever this key says, found {stated}: the numbers would not be those of the model that was converted",
                keys.architecture
            );
            return Err(keys.unsupported(name, message));
        }
    }
    let original_max_positions = original_max_positions(keys)?;
    Ok(Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate: true })
}

fn original_max_positions(keys: &Keys) -> Result<usize> {
    let name = "rope.scaling.original_context_length";
    match keys.count(name)? {
        Some(0) => Err(keys.invalid(name, "expected at least 1, found 0")),
        Some(n) => Ok(n),
        None => context_length(keys)?.ok_or_else(|| keys.missing(name)),
    }
}

/// The divisors in the file, if llama.cpp reads them for this architecture.
fn divisors<'t>(
    keys: &Keys,
    family: Family,
    tensor: &impl Fn(&str) -> Option<&'t StoredTensor>,
    kind: &str,
    rotary_dim: usize,
) -> Result<Option<RopeScaling>> {
    let find = |factors| tensor(&Weight::Rope(factors).name(Dialect::Gguf));
    let (all, long, short) = (find(RopeFactors::All), find(RopeFactors::Long), find(RopeFactors::Short));
    let read = family.llama_cpp().rope_tensors;
    let reads_long_and_short = read == RopeTensors::LongAndShort || (read == RopeTensors::ByType && kind == "longrope");
    let reads_all = read == RopeTensors::ByType && kind != "longrope";
    if let Some(t) = all.filter(|_| !reads_all).or(long.or(short).filter(|_| !reads_long_and_short)) {
        let message = format!(
            "expected no such tensor, since llama.cpp asks for none in a {} of this type of RoPE",
            keys.architecture
        );
        return Err(Error::new(Code::ConfigUnsupported, message).file(keys.file).field(&t.name).at(t.file_offset));
    }
    match (all, long, short) {
        (None, None, None) => Ok(None),
        (Some(t), ..) => Ok(Some(RopeScaling::Divisors(values(t, rotary_dim)?))),
        (None, Some(long), Some(short)) => Ok(Some(RopeScaling::LongRope {
            short: values(short, rotary_dim)?,
            long: values(long, rotary_dim)?,
            original_max_positions: original_max_positions(keys)?,
        })),
        (None, long, _) => {
            let missing = if long.is_some() { RopeFactors::Short } else { RopeFactors::Long };
            Err(Error::new(Code::BaseTensor, "expected divisors for long and for short sequences, found none of these")
                .file(keys.file)
                .field(Weight::Rope(missing).name(Dialect::Gguf)))
        }
    }
}

fn values(t: &StoredTensor, rotary_dim: usize) -> Result<Vec<f32>> {
    let wrong = |message: String| Error::new(Code::BaseTensor, message).file(&t.file).field(&t.name).at(t.file_offset);
    if t.shape != [rotary_dim / 2] {
        return Err(wrong(format!("expected shape {:?}, found {:?}", [rotary_dim / 2], t.shape)));
    }
    if !t.dtype.is_float() || !quant::can_decode(t.dtype) {
        return Err(crate::base::complete::of_unread_type(t, "F64, F32, F16 or BF16"));
    }
    t.verify()?;
    let mut values = vec![0f32; rotary_dim / 2];
    quant::decode(t.dtype, &t.bytes, &mut values);
    match values.iter().position(|x| !x.is_normal() || *x < 0.0) {
        Some(i) => Err(wrong(format!("expected finite divisors above 0, found {} at index {i}", values[i]))),
        None => Ok(values),
    }
}

/// The factor of scaling, under its name or the older one; 0 is llama.cpp's way to say "no scaling".
fn factor(keys: &Keys) -> Result<Option<f64>> {
    let stated = |name| match keys.number(name)? {
        Some(0.0) => Ok(Some(0.0)),
        _ => keys.positive(name),
    };
    let (factor, older) = (stated("rope.scaling.factor")?, stated("rope.scale_linear")?);
    if let (Some(a), Some(b)) = (factor, older)
        && a != b
    {
        return Err(keys.invalid("rope.scale_linear", format!("expected {a}, as rope.scaling.factor says, found {b}")));
    }
    Ok(factor.or(older).filter(|&f| f != 0.0 && f != 1.0))
}
