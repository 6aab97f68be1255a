//! What a source states about its adapter: `adapter_config.json`, read strictly, nothing assumed.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::foreign;
use crate::adapter::plus::{KnownGeometry, StatedConventions, StatedLayers};
use crate::error::{Code, Error, Result};
use crate::format::json;
use crate::format::names::cut;
use crate::named::Named;

/// `peft_type` of the canonical layout.
pub const PEFT_TYPE: &str = "PREFIX_TUNING_PLUS";

/// How keys begin that are written by us.
pub const OWN_KEYS: &str = "ptplus_";

/// Key in the metadata of safetensors files, written by us: which version of ptplus wrote the file. A folder with PEFT's own kinds of
/// adapters has nothing else by which `--force` knows whose it is.
pub const TOOL_VERSION: &str = "ptplus_tool_version";

/// PEFT's configuration together with what ptplus wrote beside the tensors, of which objects are JSON.
///
/// # Errors
///
/// Those of [`foreign::of_config`].
pub(super) fn with_own_keys(
    config: &Map<String, Value>,
    metadata: &BTreeMap<String, String>,
) -> Result<Map<String, Value>> {
    let mut out = config.clone();
    for (key, text) in metadata.iter().filter(|(key, _)| key.starts_with(OWN_KEYS) && *key != TOOL_VERSION) {
        let value = json::parse(text.as_bytes()).ok().filter(|v| !v.is_string());
        out.insert(key.clone(), value.unwrap_or_else(|| text.as_str().into()));
    }
    foreign::of_config(&out)?;
    Ok(out)
}

/// Key of `adapter_config.json`, written by us: the coarsest type that the weights were in before they were widened to
/// the type that they have in the file.
pub const WIDENED_FROM: &str = "ptplus_widened_from";

/// Key of `adapter_config.json`, written by us: the [fingerprint](crate::base::fingerprint) of the base that the adapter was
/// made for.
pub const BASE_FINGERPRINT: &str = "ptplus_base_fingerprint";

/// Key of `adapter_config.json`, written by us: true where somebody said `--ignore-base-mismatch` and there was one.
pub const BASE_MISMATCH_IGNORED: &str = "ptplus_base_mismatch_ignored";

/// Key of PEFT's for modules that are trained and saved as a whole.
pub(super) const MODULES_TO_SAVE: &str = "modules_to_save";

/// Key of `adapter_config.json` for `--transpose-memory`.
pub const TRANSPOSE_MEMORY: &str = "transpose_memory";

/// Largest layer count accepted. The deepest published transformers have about 130 blocks.
const MAX_LAYERS: usize = 4096;
/// Largest head count accepted; published models stay at or below 128.
const MAX_HEADS: usize = 4096;
/// Largest head length or feature count accepted; published head lengths stay at or below 512.
const MAX_FEATURES: usize = 1 << 20;

/// Methods of PEFT itself (0.18), whose configurations use some keys for something else: heads are those of keys, layers
/// those of the other method.
const OTHER_METHODS: &[&str] = &[
    "ADALORA",
    "ADAPTION_PROMPT",
    "ARROW",
    "BOFT",
    "BONE",
    "C3A",
    "CPT",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "LORA",
    "MISS",
    "MULTITASK_PROMPT_TUNING",
    "OFT",
    "OSF",
    "POLY",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "TRAINABLE_TOKENS",
    "VBLORA",
    "VERA",
    "WAVEFT",
    "XLORA",
];
/// The keys that those use for something else.
const OTHER_MEANINGS: [&str; 5] =
    ["num_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "layers_to_transform"];

/// What is stated; `None` is not stated, which for a convention means *open*: nobody guesses it.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)] // the other fields are keys of adapter_config.json
pub struct Stated {
    pub conventions: StatedConventions,
    pub sizes: KnownGeometry,
    pub layers_to_transform: Option<StatedLayers>,
    pub base_model_type: Option<String>,
    /// All other keys, in order.
    pub extra: Map<String, Value>,
}

impl Stated {
    /// Reads a parsed `adapter_config.json`.
    ///
    /// # Errors
    ///
    /// [`Code::ConfigField`] for a field of the wrong type or out of range; [`Code::ConfigUnsupported`] for an unknown feature map, tap or sharing.
    pub fn from_json(config: Value) -> Result<Stated> {
        let Value::Object(mut map) = config else {
            return Err(Error::new(Code::ConfigField, format!("expected a JSON object, found {}", kind_of(&config))));
        };
        // A training code's own kind, or none: what the tensors are, their names say.
        match map.get("peft_type") {
            None | Some(Value::Null) => drop(map.shift_remove("peft_type")),
            Some(Value::String(kind)) if kind == PEFT_TYPE => {}
            Some(Value::String(kind)) => {
                if OTHER_METHODS.contains(&kind.as_str()) {
                    map.retain(|key, _| !OTHER_MEANINGS.contains(&key.as_str()));
                }
                map.shift_remove("peft_type");
            }
            Some(other) => return Err(wrong("peft_type", "a string", other)),
        }
        check_carried(&map)?;
        let conventions = StatedConventions {
            feature_map: take(&mut map, "feature_map", choice)?,
            query_tap: take(&mut map, "query_tap", choice)?,
            query_scale: take(&mut map, "query_scale", scale)?,
            memory_scale: take(&mut map, "memory_scale", scale)?,
            memory_sharing: take(&mut map, "memory_sharing", choice)?,
        };
        let sizes = KnownGeometry {
            n_layers: take(&mut map, "num_layers", |k, v| count(k, v, MAX_LAYERS))?,
            n_heads: take(&mut map, "num_attention_heads", |k, v| count(k, v, MAX_HEADS))?,
            n_kv_heads: take(&mut map, "num_key_value_heads", |k, v| count(k, v, MAX_HEADS))?,
            head_dim: take(&mut map, "head_dim", |k, v| count(k, v, MAX_FEATURES))?,
            value_head_dim: None,
            n_features: take(&mut map, "num_features", |k, v| count(k, v, MAX_FEATURES))?,
        };
        let stated = Stated {
            conventions,
            sizes,
            layers_to_transform: map
                .shift_remove("layers_to_transform")
                .map(|v| layers("layers_to_transform", &v))
                .transpose()?,
            base_model_type: take(&mut map, "base_model_type", |k, v| {
                v.as_str().map(str::to_owned).ok_or_else(|| wrong(k, "a string", v))
            })?,
            extra: map,
        };
        if let (Some(h), Some(kv)) = (sizes.n_heads, sizes.n_kv_heads)
            && !h.is_multiple_of(kv)
        {
            return Err(Error::new(
                Code::ConfigField,
                format!("expected a divisor of the {h} query heads, found {kv}"),
            )
            .field("num_key_value_heads"));
        }
        Ok(stated)
    }
}

/// What is carried and never computed from: a wrong type says that it is damaged, and PEFT would stop there.
fn check_carried(map: &Map<String, Value>) -> Result<()> {
    for (key, expected, fits) in [
        ("task_type", "a string or null", Value::is_string as fn(&Value) -> bool),
        ("base_model_name_or_path", "a string or null", Value::is_string),
        ("revision", "a string or null", Value::is_string),
        ("inference_mode", "true, false or null", Value::is_boolean),
    ] {
        if let Some(v) = map.get(key).filter(|v| !v.is_null() && !fits(v)) {
            return Err(wrong(key, expected, v));
        }
    }
    // What PEFT would train and save beside the adapter: the output is the adapter alone and would compute something else.
    for key in [MODULES_TO_SAVE, "trainable_token_indices"] {
        let is_empty = |v: &Value| match v {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            _ => false,
        };
        if let Some(v) = map.get(key).filter(|v| !is_empty(v)) {
            let message = format!(
                "expected none: weights of the base that were trained beside an adapter are not exported, found {}",
                cut(&v.to_string(), 80)
            );
            return Err(Error::new(Code::ConfigUnsupported, message).field(key));
        }
    }
    foreign::of_config(map).map(drop)
}

/// Removes `key` and reads it; an explicit null counts as not stated.
fn take<T>(map: &mut Map<String, Value>, key: &str, read: impl Fn(&str, &Value) -> Result<T>) -> Result<Option<T>> {
    match map.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => read(key, &v).map(Some),
    }
}

fn count(key: &str, v: &Value, max: usize) -> Result<usize> {
    v.as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (1..=max).contains(n))
        .ok_or_else(|| wrong(key, &format!("an integer from 1 to {max}"), v))
}

fn scale(key: &str, v: &Value) -> Result<f64> {
    // GGUF stores F32, and so do the engines' kernels: a scale beyond it would become Inf there, a tiny one 0.
    let fits = |x: &f64| *x == 0.0 || (*x as f32).is_normal();
    v.as_f64().filter(fits).ok_or_else(|| wrong(key, "a number within the range of F32", v))
}

fn choice<T: Named>(key: &str, v: &Value) -> Result<T> {
    let text = v.as_str().ok_or_else(|| wrong(key, "a string", v))?;
    T::parse(text).ok_or_else(|| {
        let message = format!("expected one of {}, found {text:?}", T::NAMES.join(", "));
        Error::new(Code::ConfigUnsupported, message).field(key)
    })
}

fn layers(key: &str, v: &Value) -> Result<StatedLayers> {
    let one = |v: &Value| v.as_u64().map(|n| n as usize).filter(|n| *n < MAX_LAYERS);
    match v {
        Value::Null => Ok(StatedLayers::All),
        Value::Number(_) => one(v).map(|n| StatedLayers::List(vec![n])).ok_or_else(|| wrong(key, "layer numbers", v)),
        Value::Array(items) => {
            if items.len() > MAX_LAYERS {
                return Err(wrong(key, &format!("at most {MAX_LAYERS} layer numbers"), v));
            }
            let list: Vec<usize> = items
                .iter()
                .map(|i| one(i).ok_or_else(|| wrong(key, &format!("layer numbers below {MAX_LAYERS}"), i)))
                .collect::<Result<_>>()?;
            let distinct: std::collections::BTreeSet<_> = list.iter().collect();
            if distinct.len() != list.len() {
                return Err(wrong(key, "each layer once", v));
            }
            Ok(StatedLayers::List(list))
        }
        _ => Err(wrong(key, "null or a list of layer numbers", v)),
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> Error {
    Error::new(
        Code::ConfigField,
        format!("expected {expected}, found {}", cut(&json::as_python_writes(&found.to_string()), 80)),
    )
    .field(key)
}

fn kind_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::plus::FeatureMap;
    use serde_json::json;

    #[test]
    fn every_wrong_field_is_named_with_its_code() {
        let cases = [
            (json!([]), Code::ConfigField, ""),
            (json!({"peft_type": 3}), Code::ConfigField, "peft_type"),
            (json!({"feature_map": "elu2"}), Code::ConfigUnsupported, "feature_map"),
            (json!({"feature_map": 1}), Code::ConfigField, "feature_map"),
            (json!({"query_tap": "mid_rope"}), Code::ConfigUnsupported, "query_tap"),
            (json!({"query_scale": "1"}), Code::ConfigField, "query_scale"),
            (json!({"memory_scale": 1e200}), Code::ConfigField, "memory_scale"),
            (json!({"num_layers": 0}), Code::ConfigField, "num_layers"),
            (json!({"num_layers": -1}), Code::ConfigField, "num_layers"),
            (json!({"num_layers": 2.0}), Code::ConfigField, "num_layers"),
            (json!({"num_attention_heads": 1u64 << 40}), Code::ConfigField, "num_attention_heads"),
            (json!({"num_attention_heads": 4, "num_key_value_heads": 3}), Code::ConfigField, "num_key_value_heads"),
            (json!({"layers_to_transform": [0, 0]}), Code::ConfigField, "layers_to_transform"),
            (json!({"layers_to_transform": [-1]}), Code::ConfigField, "layers_to_transform"),
            (json!({"layers_to_transform": "all"}), Code::ConfigField, "layers_to_transform"),
            (json!({"modules_to_save": ["lm_head"]}), Code::ConfigUnsupported, "modules_to_save"),
            (json!({"modules_to_save": 1}), Code::ConfigUnsupported, "modules_to_save"),
            (
                json!({"trainable_token_indices": {"embed_tokens": [0]}}),
                Code::ConfigUnsupported,
                "trainable_token_indices",
            ),
        ];
        for (config, code, field) in cases {
            let e = Stated::from_json(config.clone()).unwrap_err();
            assert_eq!(e.code(), code, "{config}");
            assert_eq!(e.field_name().unwrap_or(""), field, "{config}");
        }
    }

    #[test]
    fn nothing_is_assumed() {
        let s = Stated::from_json(json!({"base_model_name_or_path": "x"})).unwrap();
        assert_eq!(s.conventions.open(), ["feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing"]);
        assert_eq!(s.extra["base_model_name_or_path"], "x");
    }

    #[test]
    fn another_peft_type_says_nothing_about_the_tensors() {
        let stated = |kind: Value| {
            let config = json!({"peft_type": kind, "num_attention_heads": 2, "feature_map": "elu", "r": 8});
            Stated::from_json(config).unwrap()
        };
        for (kind, heads) in [
            (json!("LORA"), None),
            (json!("PREFIX_TUNING"), None),
            (json!("PREFIX_MEMORY"), Some(2)),
            (json!(null), Some(2)),
            (json!(PEFT_TYPE), Some(2)),
        ] {
            let s = stated(kind.clone());
            assert_eq!((s.sizes.n_heads, s.conventions.feature_map), (heads, Some(FeatureMap::Elu)), "{kind}");
            assert_eq!(s.extra.contains_key("peft_type"), kind == PEFT_TYPE, "{kind}");
            assert_eq!(s.extra["r"], 8);
        }
    }

    #[test]
    fn null_is_all_layers_and_absent_is_not() {
        assert_eq!(
            Stated::from_json(json!({"layers_to_transform": null})).unwrap().layers_to_transform,
            Some(StatedLayers::All)
        );
        assert_eq!(Stated::from_json(json!({})).unwrap().layers_to_transform, None);
    }
}
