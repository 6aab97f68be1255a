//! `config.json` of a Hugging Face folder, in the dialects of transformers 4 and 5.
//!
//! Defaults of absent keys and the meaning of null are those of the configuration classes in transformers 4.57.1 and
//! 5.23.0 (`configuration_*.py` of the family, `modeling_rope_utils.py`).

use std::path::Path;

use serde_json::Value;

use super::config::{BaseConfig, BiasRule, Biases, Family, Row, SizeNames, Sizes, derived_head_dim};
use super::family;
use super::fields::{Fields, Stated, describe};
use crate::error::{Code, Error, Result};

mod classes;
pub(super) mod rope;
#[cfg(test)]
mod tests;

const NAMES: SizeNames = [
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
];

/// Reads the configuration that `json` states. `file` is for messages.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] for a `model_type` that is not on the list, [`Code::ConfigUnsupported`] for
/// what is not computed here, [`Code::ConfigField`] for what is wrong in itself.
pub(super) fn parse(file: &Path, json: &Value) -> Result<BaseConfig> {
    let fields = Fields::new(file, json)?;
    let (family, model_type) = family_of(file, &fields)?;
    classes::check(&fields, family)?;
    refuse_what_changes_the_computation(&fields, family.0)?;
    check_unused(&fields)?;

    let Row { defaults, biases, .. } = family.0;
    let hidden_size = fields.count_or("hidden_size", defaults.hidden_size)?;
    let n_heads = fields.count_or("num_attention_heads", defaults.n_heads)?;
    let sizes = Sizes {
        n_layers: fields.count_or("num_hidden_layers", defaults.n_layers)?,
        n_heads,
        n_kv_heads: match fields.count("num_key_value_heads")? {
            Stated::Is(n) => n,
            Stated::Null => n_heads,
            Stated::Absent => defaults.n_kv_heads.unwrap_or(n_heads),
        },
        head_dim: head_dim(&fields, family, defaults.head_dim, hidden_size, n_heads)?,
        hidden_size,
        intermediate_size: fields.count_or("intermediate_size", defaults.intermediate_size)?,
        vocab_size: fields.count_or("vocab_size", defaults.vocab_size)?,
    };
    sizes.check(&NAMES).map_err(|(name, message)| fields.invalid(name, message))?;
    let rotary_dim = rope::rotary_dim(&fields, family.0, sizes.head_dim)?;
    let rms_eps = match fields.number("rms_norm_eps")? {
        Stated::Absent => defaults.rms_eps,
        // GGUF keeps F32, where what is almost 1 is 1.
        Stated::Is(eps) if (0.0..1.0).contains(&eps) && (eps as f32) < 1.0 => eps,
        _ => return Err(fields.invalid("rms_norm_eps", "expected a number of at least 0 and below 1")),
    };
    let biased = |rule: &BiasRule| match rule {
        BiasRule::Never => Ok(false),
        BiasRule::Always => Ok(true),
        BiasRule::Stated(name) => fields.flag(name, false),
    };
    let mut config = BaseConfig {
        family,
        model_type: Some(model_type.to_owned()),
        context_length: positions(&fields, "max_position_embeddings")?.or_absent(defaults.context_length),
        rms_eps,
        tied_embeddings: fields.flag("tie_word_embeddings", defaults.tied_embeddings)?,
        biases: Biases {
            query_key_value: biased(&biases.query_key_value)?,
            attention_output: biased(&biases.attention_output)?,
            feed_forward: biased(&biases.feed_forward)?,
        },
        ropes: (family.0.ropes)(&fields, defaults.rope_theta, rotary_dim)?,
        rotary_dim,
        layers: (family.0.layers)(&fields, family, sizes.n_layers)?,
        ..BaseConfig::plain(family, &sizes)
    };
    (family.0.read_folder)(&fields, &mut config)?;
    Ok(config)
}

fn family_of<'a>(file: &Path, fields: &Fields<'a>) -> Result<(Family, &'a str)> {
    let supported = || Family::ALL.iter().map(|f| f.model_type()).collect::<Vec<_>>().join(", ");
    let refuse = |found: &str| {
        Error::new(Code::BaseArchitecture, format!("expected one of {}, found {found}", supported()))
            .file(file)
            .field("model_type")
    };
    match fields.text("model_type")? {
        Stated::Is(name) => {
            let refuse = || refuse(&format!("{name:?}")).hints(family::missing(name));
            let family = Family::from_model_type(name).ok_or_else(refuse)?;
            Ok((family, name))
        }
        Stated::Absent => Err(refuse("no such field")),
        Stated::Null => Err(refuse("null")),
    }
}

fn refuse_what_changes_the_computation(fields: &Fields, row: &Row) -> Result<()> {
    if let Stated::Is(_) = fields.get("text_config") {
        let message = "expected the configuration of a language model alone, found one with other modalities beside it";
        let hint =
            "save the language model alone, in Python: `AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT)`";
        return Err(fields.unsupported("text_config", message).hints([hint.to_owned()]));
    }
    // Names of Python classes in the model's repository. Those of configuration and tokenizer compute nothing that is
    // read here; a model's own class may compute anything, whatever `model_type` says.
    if let Some(map) = fields.object("auto_map")?.value() {
        // transformers takes its own class of this name, unless it is told to trust the repository's.
        let of_others = |(_, class): &(&str, &Value)| !class.as_str().is_some_and(|c| classes::is_own(c, row));
        if let Some((name, _)) = map.entries("AutoModel").find(of_others) {
            return Err(fields
                .unsupported("auto_map", format!("expected no code for {name}: only known families are computed")));
        }
    }
    let (name, activation) = row.activation;
    let expected = activation.names()[0];
    match fields.text(name)?.or_absent(expected) {
        Some(found) if activation.names().contains(&found) => {}
        Some(other) => return Err(fields.unsupported(name, format!("expected {expected}, found {other:?}"))),
        None => return Err(fields.invalid(name, format!("expected {expected}, found null"))),
    }
    // The second is compressed-tensors' older name.
    for name in ["quantization_config", "compression_config"] {
        if let Stated::Is(found) = fields.get(name) {
            // By name, or as compressed-tensors states it.
            let text = found.to_string().to_ascii_lowercase();
            let is_fp8 =
                text.contains("fp8") || (text.contains("\"num_bits\":8") && text.contains("\"type\":\"float\""));
            let hint =
                if is_fp8 { FROM_FP8 } else { "take the model that it was quantized from, or a GGUF file of it" };
            let message = format!("expected unquantized weights, found {}", describe(found));
            return Err(fields.unsupported(name, message).hints([hint.to_owned()]));
        }
    }
    for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if let Some(n) = fields.count(name)?.value().filter(|&n| n > 0 && row.experts.is_none()) {
            return Err(fields.unsupported(name, format!("expected no mixture of experts, found {n}")));
        }
    }
    for name in ["is_encoder_decoder", "use_bidirectional_attention"] {
        if fields.flag(name, false)? {
            return Err(fields.unsupported(name, "expected false: only causal decoders are computed, found true"));
        }
    }
    if !fields.flag("is_causal", true)? {
        return Err(fields.unsupported("is_causal", "expected causal attention, found false"));
    }
    Ok(())
}

/// What helps with weights in 8-bit floats.
pub(super) const FROM_FP8: &str = "convert to BF16 first, in Python: `AutoModelForCausalLM.from_pretrained(IN, dtype=\"bfloat16\", quantization_config=FineGrainedFP8Config(dequantize=True)).save_pretrained(OUT)`";

/// Fields that nothing is computed from, in this family or at all: a wrong type says that the file is damaged.
fn check_unused(fields: &Fields) -> Result<()> {
    for name in ["dtype", "torch_dtype"] {
        fields.text(name)?;
    }
    for name in ["attention_dropout", "initializer_range"] {
        fields.number(name)?;
    }
    // In how many parts the training multiplied its matrices: the product is the same.
    for name in ["sliding_window", "max_window_layers", "pretraining_tp"] {
        fields.count(name)?;
    }
    fields.flag("use_cache", true)?;
    for name in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let is_id = |v: &Value| v.is_i64() || v.is_u64();
        match fields.get(name) {
            Stated::Is(Value::Array(ids)) if ids.iter().all(is_id) => {}
            Stated::Is(v) if !is_id(v) => {
                let message = format!("expected a number, a list of numbers or null, found {}", describe(v));
                return Err(fields.invalid(name, message));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A number of positions: at least 1, and of 32 bits, as in GGUF and the engines.
fn positions(fields: &Fields, name: &str) -> Result<Stated<usize>> {
    match fields.count(name)? {
        Stated::Is(n) if n == 0 || n > u32::MAX as usize => {
            Err(fields.invalid(name, format!("expected a number from 1 to {}, found {n}", u32::MAX)))
        }
        stated => Ok(stated),
    }
}

fn head_dim(
    fields: &Fields,
    family: Family,
    default: Option<usize>,
    hidden_size: usize,
    n_heads: usize,
) -> Result<usize> {
    match (fields.count("head_dim")?, default) {
        (Stated::Is(d), _) => Ok(d),
        (Stated::Absent, Some(d)) => Ok(d),
        (Stated::Null, Some(_)) => {
            Err(fields.invalid("head_dim", format!("expected a whole number, since {family} derives none, found null")))
        }
        (Stated::Absent | Stated::Null, None) => {
            derived_head_dim(hidden_size, n_heads).map_err(|message| fields.invalid("hidden_size", message))
        }
    }
}
