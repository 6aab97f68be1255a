//! `config.json` of a Hugging Face folder, in the dialects of transformers 4 and 5.
//!
//! Defaults of absent keys and the meaning of null are those of the configuration classes in transformers 4.57.1 and
//! 5.23.0 (`configuration_{llama,mistral,qwen2,qwen3}.py`, `modeling_rope_utils.py`).

use std::path::Path;

use serde_json::Value;

use super::config::{BaseConfig, Biases, Family, SizeNames, Sizes, derived_head_dim};
use super::fields::{Fields, Stated, describe};
use crate::error::{Code, Error, Result};

mod classes;
mod rope;
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

/// What a configuration class assumes for keys that a file leaves out.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as heads.
    n_kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    head_dim: Option<usize>,
    context_length: usize,
}

impl Defaults {
    fn of(family: Family) -> Self {
        match family {
            Family::Llama => Defaults {
                vocab_size: 32_000,
                intermediate_size: 11_008,
                n_kv_heads: None,
                head_dim: None,
                context_length: 2_048,
            },
            Family::Mistral => Defaults {
                vocab_size: 32_000,
                intermediate_size: 14_336,
                n_kv_heads: Some(8),
                head_dim: None,
                context_length: 131_072,
            },
            Family::Qwen2 => Defaults {
                vocab_size: 151_936,
                intermediate_size: 22_016,
                n_kv_heads: Some(32),
                head_dim: None,
                context_length: 32_768,
            },
            Family::Qwen3 => Defaults {
                vocab_size: 151_936,
                intermediate_size: 22_016,
                n_kv_heads: Some(32),
                head_dim: Some(128),
                context_length: 32_768,
            },
        }
    }
}

/// Reads the configuration that `json` states. `file` is for messages.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] for a `model_type` that is not on the list, [`Code::ConfigUnsupported`] for
/// what is not computed here, [`Code::ConfigField`] for what is wrong in itself.
pub(super) fn parse(file: &Path, json: &Value) -> Result<BaseConfig> {
    let fields = Fields::new(file, json)?;
    let family = family(file, &fields)?;
    classes::check(&fields, family)?;
    refuse_what_changes_the_computation(&fields)?;
    check_unused(&fields)?;

    let defaults = Defaults::of(family);
    let hidden_size = fields.count_or("hidden_size", 4_096)?;
    let n_heads = fields.count_or("num_attention_heads", 32)?;
    let sizes = Sizes {
        n_layers: fields.count_or("num_hidden_layers", 32)?,
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
    let rms_eps = match fields.number("rms_norm_eps")? {
        Stated::Absent => 1e-6,
        // GGUF keeps F32, where what is almost 1 is 1.
        Stated::Is(eps) if (0.0..1.0).contains(&eps) && (eps as f32) < 1.0 => eps,
        _ => return Err(fields.invalid("rms_norm_eps", "expected a number of at least 0 and below 1")),
    };
    let attention_bias = matches!(family, Family::Llama | Family::Qwen3) && fields.flag("attention_bias", false)?;
    Ok(BaseConfig {
        family,
        model_type: Some(family.model_type().to_owned()),
        n_layers: sizes.n_layers,
        n_heads,
        n_kv_heads: sizes.n_kv_heads,
        head_dim: sizes.head_dim,
        value_head_dim: sizes.head_dim,
        hidden_size,
        intermediate_size: sizes.intermediate_size,
        vocab_size: sizes.vocab_size,
        context_length: positions(&fields, "max_position_embeddings")?.or_absent(defaults.context_length),
        rms_eps,
        rope: rope::parse(&fields)?,
        sliding_windows: sliding_windows(&fields, family, sizes.n_layers)?,
        tied_embeddings: fields.flag("tie_word_embeddings", false)?,
        biases: Biases {
            query_key_value: attention_bias || family == Family::Qwen2,
            attention_output: attention_bias,
            feed_forward: family == Family::Llama && fields.flag("mlp_bias", false)?,
        },
        query_key_norm: family == Family::Qwen3,
    })
}

fn family(file: &Path, fields: &Fields) -> Result<Family> {
    let supported = || Family::ALL.iter().map(|f| f.model_type()).collect::<Vec<_>>().join(", ");
    let refuse = |found: &str| {
        Error::new(Code::BaseArchitecture, format!("expected one of {}, found {found}", supported()))
            .file(file)
            .field("model_type")
    };
    match fields.text("model_type")? {
        Stated::Is(name) => Family::from_model_type(name).ok_or_else(|| refuse(&format!("{name:?}"))),
        Stated::Absent => Err(refuse("no such field")),
        Stated::Null => Err(refuse("null")),
    }
}

fn refuse_what_changes_the_computation(fields: &Fields) -> Result<()> {
    // Names of Python classes in the model's repository. Those of configuration and tokenizer compute nothing that is
    // read here; a model's own class may compute anything, whatever `model_type` says.
    if let Some(class) = fields.object("auto_map")?.value().and_then(|map| map.first_key("AutoModel")) {
        return Err(
            fields.unsupported("auto_map", format!("expected no code for {class}: only known families are computed"))
        );
    }
    match fields.text("hidden_act")?.or_absent("silu") {
        // transformers knows the same function under both names
        Some("silu" | "swish") => {}
        Some(other) => return Err(fields.unsupported("hidden_act", format!("expected silu, found {other:?}"))),
        None => return Err(fields.invalid("hidden_act", "expected silu, found null")),
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
        if let Some(n) = fields.count(name)?.value().filter(|&n| n > 0) {
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
    rope::refuse_layers_without(fields)
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

/// Llama attends to everything. Mistral has one window for all layers. The Qwens have one for the layers that
/// `layer_types` names, or else for those from `max_window_layers` on, and only if `use_sliding_window` says so.
fn sliding_windows(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let stated = || match fields.count("sliding_window")?.or_absent(4_096) {
        Some(0) => Err(fields.invalid("sliding_window", "expected at least 1 or null, found 0")),
        window => Ok(window),
    };
    let uniform = match family {
        Family::Llama => Some(None),
        Family::Mistral => Some(stated()?),
        Family::Qwen2 | Family::Qwen3 => None,
    };
    let types = layer_types(fields, n_layers)?;
    if let Some(window) = uniform {
        // These classes do not read layer_types; where it says something else, the file means another model.
        let fits = |sliding: &bool| *sliding == window.is_some();
        if types.is_some_and(|t| !t.iter().all(fits)) {
            return Err(
                fields.unsupported("layer_types", format!("expected the same attention in all {family} layers"))
            );
        }
        return Ok(vec![window; n_layers]);
    }
    let window = if fields.flag("use_sliding_window", false)? { stated()? } else { None };
    match types {
        Some(types) => types
            .into_iter()
            .map(|sliding| match (sliding, window) {
                (false, _) => Ok(None),
                (true, Some(w)) => Ok(Some(w)),
                (true, None) => Err(fields.invalid("layer_types", "found sliding_attention, but no sliding window")),
            })
            .collect(),
        None => {
            let first = fields.count_or("max_window_layers", 28)?;
            Ok((0..n_layers).map(|i| window.filter(|_| i >= first)).collect())
        }
    }
}

/// Per layer whether it has a window; `None` where the file does not say.
fn layer_types(fields: &Fields, n_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(items) = fields.list("layer_types")?.value() else { return Ok(None) };
    if items.len() != n_layers {
        let message = format!("expected one entry for each of {n_layers} layers, found {}", items.len());
        return Err(fields.invalid("layer_types", message));
    }
    let parse = |v: &Value| match v.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some(other) => {
            let message = format!("expected full_attention or sliding_attention, found {other:?}");
            Err(fields.unsupported("layer_types", message))
        }
        None => Err(fields.invalid("layer_types", format!("expected strings, found {}", describe(v)))),
    };
    items.iter().map(parse).collect::<Result<_>>().map(Some)
}
