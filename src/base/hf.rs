//! `config.json` of a Hugging Face folder, in the dialects of transformers 4 and 5.
//!
//! Defaults of absent keys and the meaning of null are those of the configuration classes in transformers 4.57.1 and
//! 5.23.0 (`configuration_{llama,mistral,qwen2,qwen3}.py`, `modeling_rope_utils.py`).

use std::path::Path;

use serde_json::Value;

use super::config::{BaseConfig, Biases, Family, Rope, RopeScaling, SizeNames, Sizes, derived_head_dim};
use super::fields::{Fields, Stated, describe};
use crate::error::{Code, Error, Result};

const NAMES: SizeNames = [
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
];

/// Largest `config.json` read; real ones have a few KiB.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What a configuration class assumes for keys that a file leaves out.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as heads.
    n_kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    head_dim: Option<usize>,
}

impl Defaults {
    fn of(family: Family) -> Self {
        match family {
            Family::Llama => {
                Defaults { vocab_size: 32_000, intermediate_size: 11_008, n_kv_heads: None, head_dim: None }
            }
            Family::Mistral => {
                Defaults { vocab_size: 32_000, intermediate_size: 14_336, n_kv_heads: Some(8), head_dim: None }
            }
            Family::Qwen2 => {
                Defaults { vocab_size: 151_936, intermediate_size: 22_016, n_kv_heads: Some(32), head_dim: None }
            }
            Family::Qwen3 => {
                Defaults { vocab_size: 151_936, intermediate_size: 22_016, n_kv_heads: Some(32), head_dim: Some(128) }
            }
        }
    }
}

/// Reads the configuration that `json` states. `file` is for messages.
///
/// Errors: [`Code::BaseArchitecture`] for a `model_type` that is not on the list, [`Code::ConfigUnsupported`] for
/// what is not computed here, [`Code::ConfigField`] for what is wrong in itself.
pub(super) fn parse(file: &Path, json: &Value) -> Result<BaseConfig> {
    let fields = Fields::new(file, json)?;
    let family = family(file, &fields)?;
    refuse_what_changes_the_computation(&fields)?;

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
        Stated::Is(eps) if eps >= 0.0 => eps,
        _ => return Err(fields.invalid("rms_norm_eps", "expected a number of at least 0")),
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
        rms_eps,
        rope: rope(&fields)?,
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
    match fields.text("hidden_act")?.or_absent("silu") {
        // transformers knows the same function under both names
        Some("silu" | "swish") => {}
        Some(other) => return Err(fields.unsupported("hidden_act", format!("expected silu, found {other:?}"))),
        None => return Err(fields.invalid("hidden_act", "expected silu, found null")),
    }
    if let Some(parts) = fields.count("pretraining_tp")?.value().filter(|&n| n > 1) {
        return Err(fields.unsupported("pretraining_tp", format!("expected 1, found {parts}")));
    }
    if let Stated::Is(found) = fields.get("quantization_config") {
        let found = describe(found);
        return Err(fields.unsupported("quantization_config", format!("expected unquantized weights, found {found}")));
    }
    for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if let Some(n) = fields.count(name)?.value().filter(|&n| n > 0) {
            return Err(fields.unsupported(name, format!("expected no mixture of experts, found {n}")));
        }
    }
    Ok(())
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

/// transformers 4 has `rope_theta` beside `rope_scaling`, transformers 5 both in `rope_parameters`; 5 reads a
/// non-empty `rope_scaling` in preference.
fn rope(fields: &Fields) -> Result<Rope> {
    let scaling = fields.object("rope_scaling")?.value().filter(|f| !f.is_empty());
    let parameters = match scaling {
        Some(f) => Some(f),
        None => fields.object("rope_parameters")?.value(),
    };
    let outer_theta = match fields.get("rope_theta") {
        Stated::Absent => None,
        _ => Some(fields.positive("rope_theta")?),
    };
    refuse_partial_rotation(fields)?;
    let Some(p) = parameters else {
        return Ok(Rope { theta: outer_theta.unwrap_or(10_000.0), scaling: RopeScaling::None });
    };
    if let Some(name) = p.nested() {
        return Err(p.unsupported(name, "expected one set of RoPE parameters for all layers, found one per kind"));
    }
    refuse_partial_rotation(&p)?;
    let inner_theta = match p.get("rope_theta") {
        Stated::Absent => None,
        _ => Some(p.positive("rope_theta")?),
    };
    let theta = match (inner_theta, outer_theta) {
        (Some(a), Some(b)) if a != b => {
            return Err(p.invalid("rope_theta", format!("found {a} here and {b} at the top level")));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => 10_000.0,
    };
    let kind = match (p.text("rope_type")?, p.text("type")?) {
        (Stated::Is(kind), _) | (Stated::Absent, Stated::Is(kind)) => kind,
        (Stated::Absent, Stated::Absent) => "default",
        _ => return Err(p.invalid("rope_type", "expected a string, found null")),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: p.positive("factor")? },
        "llama3" => llama3(fields, &p)?,
        other => {
            let message = format!("expected default, linear or llama3, found {other:?}");
            return Err(p.unsupported("rope_type", message));
        }
    };
    Ok(Rope { theta, scaling })
}

fn llama3(fields: &Fields, p: &Fields) -> Result<RopeScaling> {
    let low_freq_factor = p.positive("low_freq_factor")?;
    let high_freq_factor = p.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let message = format!("expected more than low_freq_factor {low_freq_factor}, found {high_freq_factor}");
        return Err(p.invalid("high_freq_factor", message));
    }
    let name = "original_max_position_embeddings";
    let original_max_positions = match (fields.count(name)?.value(), p.count(name)?.value()) {
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) => fields.count("max_position_embeddings")?.value().ok_or_else(|| {
            p.invalid(name, "expected a whole number, found neither this nor max_position_embeddings")
        })?,
    };
    if original_max_positions == 0 {
        return Err(p.invalid(name, "expected at least 1, found 0"));
    }
    Ok(RopeScaling::Llama3 { factor: p.positive("factor")?, low_freq_factor, high_freq_factor, original_max_positions })
}

fn refuse_partial_rotation(fields: &Fields) -> Result<()> {
    let name = "partial_rotary_factor";
    match fields.number(name)?.value() {
        None => Ok(()),
        Some(1.0) => Ok(()),
        Some(x) => Err(fields.unsupported(name, format!("expected rotation of the whole head, found {x}"))),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(json: Value) -> Result<BaseConfig> {
        parse(Path::new("config.json"), &json)
    }

    /// `changes` on top of a complete configuration; a change to the string "absent" removes the key.
    fn changed(model_type: &str, changes: Value) -> Result<BaseConfig> {
        let mut config = json!({
            "model_type": model_type, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 160,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 512, "rope_theta": 5000.0,
        });
        for (key, value) in changes.as_object().unwrap() {
            match value.as_str() {
                Some("absent") => drop(config.as_object_mut().unwrap().shift_remove(key)),
                _ => drop(config.as_object_mut().unwrap().insert(key.clone(), value.clone())),
            }
        }
        parsed(config)
    }

    #[test]
    fn absent_keys_take_the_class_defaults() {
        // (layers, heads, kv heads, head length, hidden, intermediate, vocabulary), read off transformers' classes
        for (name, expected, window) in [
            ("llama", (32, 32, 32, 128, 4096, 11008, 32000), None),
            ("mistral", (32, 32, 8, 128, 4096, 14336, 32000), Some(4096)),
            ("qwen2", (32, 32, 32, 128, 4096, 22016, 151936), None),
            ("qwen3", (32, 32, 32, 128, 4096, 22016, 151936), None),
        ] {
            let c = parsed(json!({ "model_type": name })).unwrap();
            let found =
                (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_size, c.intermediate_size, c.vocab_size);
            assert_eq!(found, expected, "{name}");
            assert_eq!((c.rms_eps, c.rope.theta, c.rope.scaling), (1e-6, 10_000.0, RopeScaling::None), "{name}");
            assert_eq!(c.sliding_windows, vec![window; 32], "{name}");
            assert!(!c.tied_embeddings, "{name}");
        }
    }

    #[test]
    fn null_is_not_absent() {
        let kv = |name, value: Value| changed(name, json!({ "num_key_value_heads": value })).map(|c| c.n_kv_heads);
        assert_eq!(kv("mistral", Value::Null).unwrap(), 4, "null is as many as heads");
        assert_eq!(kv("qwen2", json!(1)).unwrap(), 1);
        let window =
            |value: Value| changed("mistral", json!({ "sliding_window": value })).map(|c| c.sliding_windows[0]);
        assert_eq!(window(Value::Null).unwrap(), None);
        assert_eq!(window(json!("absent")).unwrap(), Some(4096));
        assert_eq!(window(json!(8)).unwrap(), Some(8));
        let head_dim = |name, value: Value| changed(name, json!({ "head_dim": value })).map(|c| c.head_dim);
        assert_eq!(head_dim("qwen3", json!("absent")).unwrap(), 128);
        assert_eq!(head_dim("qwen3", Value::Null).unwrap_err().field_name(), Some("head_dim"));
        assert_eq!(head_dim("mistral", Value::Null).unwrap(), 24);
        assert_eq!(head_dim("llama", json!(64)).unwrap(), 64, "not hidden size over heads");
    }

    #[test]
    fn both_dialects_state_the_same_rope() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let fields = json!({"factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let with = |more: Value| {
            let mut all = fields.as_object().unwrap().clone();
            all.extend(more.as_object().unwrap().clone());
            Value::Object(all)
        };
        for (changes, theta, scaling) in [
            (json!({}), 5000.0, RopeScaling::None),
            (json!({"rope_theta": "absent"}), 10_000.0, RopeScaling::None),
            (json!({"rope_scaling": null, "rope_parameters": null}), 5000.0, RopeScaling::None),
            (json!({"rope_scaling": {"type": "linear", "factor": 2}}), 5000.0, RopeScaling::Linear { factor: 2.0 }),
            (json!({"rope_scaling": with(json!({"rope_type": "llama3"}))}), 5000.0, llama3),
            (
                json!({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 7}}),
                7.0,
                RopeScaling::None,
            ),
            (
                json!({"rope_theta": "absent",
                "rope_parameters": with(json!({"rope_type": "llama3", "rope_theta": 5e5}))}),
                5e5,
                llama3,
            ),
            (
                json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
                5000.0,
                RopeScaling::Linear { factor: 4.0 },
            ),
        ] {
            let rope = changed("llama", changes.clone()).unwrap().rope;
            assert_eq!(rope, Rope { theta, scaling }, "{changes}");
        }
    }

    #[test]
    fn windows_apply_to_the_layers_that_the_configuration_names() {
        for (name, changes, expected) in [
            ("llama", json!({"sliding_window": 4}), [None, None, None]),
            ("qwen2", json!({"sliding_window": 4}), [None, None, None]),
            (
                "qwen2",
                json!({"sliding_window": 4, "use_sliding_window": true, "max_window_layers": 2}),
                [None, None, Some(4)],
            ),
            ("qwen2", json!({"sliding_window": 4, "use_sliding_window": true}), [None, None, None]),
            (
                "qwen2",
                json!({"sliding_window": null, "use_sliding_window": true, "max_window_layers": 0}),
                [None, None, None],
            ),
            ("qwen3", json!({"use_sliding_window": true, "max_window_layers": 1}), [None, Some(4096), Some(4096)]),
            (
                "qwen3",
                json!({"sliding_window": 4, "use_sliding_window": true,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
                [Some(4), None, Some(4)],
            ),
            (
                "qwen3",
                json!({"layer_types": ["full_attention", "full_attention", "full_attention"]}),
                [None, None, None],
            ),
            (
                "mistral",
                json!({"sliding_window": 4,
                "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]}),
                [Some(4), Some(4), Some(4)],
            ),
        ] {
            assert_eq!(changed(name, changes.clone()).unwrap().sliding_windows, expected, "{name} {changes}");
        }
    }

    #[test]
    fn biases_and_norms_are_those_of_the_family() {
        let llama = changed("llama", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
        assert_eq!(llama.biases, Biases { query_key_value: true, attention_output: true, feed_forward: true });
        let qwen2 = changed("qwen2", json!({"attention_bias": false})).unwrap();
        assert_eq!(qwen2.biases, Biases { query_key_value: true, ..Biases::default() });
        assert_eq!(changed("mistral", json!({"attention_bias": true})).unwrap().biases, Biases::default());
        assert!(changed("qwen3", json!({})).unwrap().query_key_norm && !llama.query_key_norm);
    }

    #[test]
    fn what_is_wrong_or_not_computed_is_refused_with_its_field() {
        use Code::{BaseArchitecture as A, ConfigField as F, ConfigUnsupported as U};
        for (name, changes, code, field) in [
            ("llama", json!({"model_type": "absent"}), A, "model_type"),
            ("llama", json!({"model_type": null}), A, "model_type"),
            ("gpt2", json!({}), A, "model_type"),
            ("llama", json!({"model_type": 3}), F, "model_type"),
            ("llama", json!({"hidden_act": "gelu"}), U, "hidden_act"),
            ("llama", json!({"hidden_act": null}), F, "hidden_act"),
            ("llama", json!({"pretraining_tp": 2}), U, "pretraining_tp"),
            ("llama", json!({"partial_rotary_factor": 0.5}), U, "partial_rotary_factor"),
            (
                "llama",
                json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
                U,
                "rope_parameters.partial_rotary_factor",
            ),
            ("llama", json!({"quantization_config": {"quant_method": "gptq"}}), U, "quantization_config"),
            ("llama", json!({"num_local_experts": 8}), U, "num_local_experts"),
            ("llama", json!({"rope_scaling": {"type": "yarn", "factor": 2}}), U, "rope_scaling.rope_type"),
            ("llama", json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}), U, "rope_scaling.rope_type"),
            ("llama", json!({"rope_scaling": {"rope_type": null}}), F, "rope_scaling.rope_type"),
            ("llama", json!({"rope_scaling": {"type": "linear"}}), F, "rope_scaling.factor"),
            ("llama", json!({"rope_scaling": {"type": "linear", "factor": 0}}), F, "rope_scaling.factor"),
            ("llama", json!({"rope_scaling": {"type": "linear", "factor": "2"}}), F, "rope_scaling.factor"),
            ("llama", json!({"rope_scaling": "linear"}), F, "rope_scaling"),
            (
                "llama",
                json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
                F,
                "rope_scaling.high_freq_factor",
            ),
            (
                "qwen2",
                json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
                U,
                "rope_parameters.full_attention",
            ),
            (
                "llama",
                json!({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}),
                F,
                "rope_parameters.rope_theta",
            ),
            ("llama", json!({"rope_theta": null}), F, "rope_theta"),
            ("llama", json!({"rope_theta": -1}), F, "rope_theta"),
            ("llama", json!({"num_attention_heads": 0}), F, "num_attention_heads"),
            ("llama", json!({"num_attention_heads": 0, "head_dim": null}), F, "hidden_size"),
            ("llama", json!({"num_key_value_heads": 3}), F, "num_key_value_heads"),
            ("llama", json!({"num_key_value_heads": 0}), F, "num_key_value_heads"),
            ("llama", json!({"head_dim": 25}), F, "head_dim"),
            ("llama", json!({"head_dim": 24.0}), F, "head_dim"),
            ("llama", json!({"head_dim": -24}), F, "head_dim"),
            ("llama", json!({"head_dim": "absent", "hidden_size": 97}), F, "hidden_size"),
            ("llama", json!({"num_hidden_layers": 0}), F, "num_hidden_layers"),
            ("llama", json!({"num_hidden_layers": 4_000_000_000u64}), F, "num_hidden_layers"),
            ("llama", json!({"num_hidden_layers": null}), F, "num_hidden_layers"),
            ("llama", json!({"vocab_size": u64::MAX}), F, "vocab_size"),
            ("llama", json!({"hidden_size": "96"}), F, "hidden_size"),
            ("llama", json!({"rms_norm_eps": -1e-6}), F, "rms_norm_eps"),
            ("llama", json!({"rms_norm_eps": null}), F, "rms_norm_eps"),
            ("llama", json!({"tie_word_embeddings": "yes"}), F, "tie_word_embeddings"),
            ("mistral", json!({"sliding_window": 0}), F, "sliding_window"),
            (
                "mistral",
                json!({"layer_types": ["full_attention", "full_attention", "full_attention"]}),
                U,
                "layer_types",
            ),
            ("qwen3", json!({"layer_types": ["full_attention"]}), F, "layer_types"),
            (
                "qwen3",
                json!({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}),
                U,
                "layer_types",
            ),
            (
                "qwen3",
                json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
                F,
                "layer_types",
            ),
        ] {
            let e = changed(name, changes.clone()).unwrap_err();
            assert_eq!((e.code(), e.field_name()), (code, Some(field)), "{changes}: {e}");
        }
    }
}
