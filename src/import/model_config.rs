//! What `config.json` of a model says that the configuration of an adapter says, too. A trainer saves the model with the
//! memories in it, and no `adapter_config.json`.

use serde_json::{Map, Value};

use super::stated::TRANSPOSE_MEMORY;
use crate::adapter::field::Field;
use crate::adapter::plus::{FIELDS, find_field};

/// The statements of a parsed `config.json`, by their keys in `adapter_config.json`. Whether its sizes are right is asked
/// where it is read as a base's; what is no size says nothing here.
pub(super) fn statements(config: &Value) -> Map<String, Value> {
    let mut out = Map::new();
    let Value::Object(config) = config else { return out };
    // Of a model that reads more than text.
    let text = config.get("text_config").and_then(Value::as_object);
    let sizes = if config.contains_key("num_hidden_layers") { config } else { text.unwrap_or(config) };
    let size = |key: &str| sizes.get(key).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
    let heads = size("num_attention_heads");
    let per_head = heads.zip(size("hidden_size")).filter(|(n, hidden)| hidden.is_multiple_of(*n)).map(|(n, h)| h / n);
    let model_type = config.get("model_type").filter(|v| v.is_string());
    if model_type.is_none() {
        return out;
    }
    for (key, value) in [
        ("num_layers", size("num_hidden_layers")),
        ("num_attention_heads", heads),
        ("num_key_value_heads", size("num_key_value_heads")),
        ("head_dim", size("head_dim").or(per_head)),
    ] {
        out.extend(value.map(|n| (key.to_owned(), n.into())));
    }
    out.extend(model_type.map(|v| ("base_model_type".to_owned(), v.clone())));
    // A training code may have put conventions into its model's configuration, under the names that they have here.
    let keys = FIELDS.iter().map(|field| field.key).chain(["layers_to_transform", TRANSPOSE_MEMORY]);
    let conventions = keys.filter(|key| is_convention(key));
    out.extend(conventions.filter_map(|key| Some((key.to_owned(), config.get(key)?.clone()))));
    out
}

/// Whether a key of [`statements`] is a convention, not a size.
pub(super) fn is_convention(key: &str) -> bool {
    ["layers_to_transform", TRANSPOSE_MEMORY].contains(&key) || find_field(key).is_some_and(Field::is_convention)
}
