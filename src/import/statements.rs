//! What configuration, layout file and flags state, brought together. No two may disagree: the one that is wrong would
//! otherwise be believed or dropped in silence.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

/// Key of `adapter_config.json` under which an import records who settled what.
pub const RECORD_KEY: &str = "ptplus_conventions";

/// Who settled a convention that the configuration leaves open: `layout file`, `flag`, `probe`; and further facts about
/// how that was done.
pub type Settled = BTreeMap<String, Value>;

/// The configuration with what the others add, and who added what.
///
/// # Errors
///
/// [`Code::ConventionContradiction`].
pub(super) fn merge(
    config: Map<String, Value>,
    layout: Option<&Map<String, Value>>,
    flags: &Map<String, Value>,
) -> Result<(Map<String, Value>, Settled)> {
    let mut merged = config;
    let mut settled = Settled::new();
    for (who, statements) in [("layout file", layout), ("flag", Some(flags))] {
        for (key, value) in statements.into_iter().flatten() {
            let is_list = key == "layers_to_transform";
            match merged.get(key) {
                Some(Value::Null) if !is_list => {}
                Some(before) if same(before, value) => continue,
                Some(before) => {
                    let earlier = settled.get(key).and_then(Value::as_str).unwrap_or("adapter_config.json");
                    return Err(Error::new(
                        Code::ConventionContradiction,
                        format!(
                            "expected {before}, as the {earlier} says, found {value} in the {who}: state one of them"
                        ),
                    )
                    .field(flag_of(key).unwrap_or(key)));
                }
                None => {}
            }
            merged.insert(key.clone(), value.clone());
            settled.insert(key.clone(), who.into());
        }
    }
    Ok((merged, settled))
}

/// Equal as numbers (1 and 1.0), or equal.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

/// The record for `adapter_config.json`.
pub(super) fn record(settled: &Settled) -> Value {
    Value::Object(settled.clone().into_iter().collect())
}

/// The flag that states a key.
pub fn flag_of(key: &str) -> Option<&'static str> {
    Some(match key {
        "feature_map" => "--feature-map",
        "query_tap" => "--query-tap",
        "query_scale" => "--query-scale",
        "memory_scale" => "--memory-scale",
        "memory_sharing" => "--memory-sharing",
        "transpose_memory" => "--transpose-memory",
        "layers_to_transform" => "--layers",
        "flattening_order" => "--layout",
        "num_features" | "head_dim" | "num_attention_heads" | "num_key_value_heads" | "num_layers" => "--base",
        _ => return None,
    })
}

/// The refusal to guess: every open key with the flag that settles it.
pub(super) fn still_open(keys: &[&str]) -> Error {
    let list: Vec<String> =
        keys.iter().map(|k| flag_of(k).map_or_else(|| (*k).to_owned(), |flag| format!("{k} ({flag})"))).collect();
    let verb = if keys.len() == 1 { "is" } else { "are" };
    Error::new(
        Code::ConventionOpen,
        format!(
            "{} {verb} stated nowhere; ptplus does not guess: state them by flag or in adapter_config.json, or let a probe settle them (convert and verify, --probe PROBE --base BASE)",
            list.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(v: Value) -> Map<String, Value> {
        v.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_added_is_recorded_and_what_contradicts_is_refused() {
        let config = map(json!({"feature_map": "elu", "query_scale": 1, "query_tap": null}));
        let (merged, settled) = merge(
            config.clone(),
            Some(&map(json!({"memory_scale": 0.5}))),
            &map(json!({"query_scale": 1.0, "query_tap": "pre_rope"})),
        )
        .unwrap();
        assert_eq!(merged["query_tap"], "pre_rope");
        assert_eq!(
            settled.into_iter().collect::<Vec<_>>(),
            [("memory_scale".into(), json!("layout file")), ("query_tap".into(), json!("flag"))]
        );
        for flags in [json!({"feature_map": "relu"}), json!({"query_scale": 2})] {
            assert_eq!(merge(config.clone(), None, &map(flags)).unwrap_err().code(), Code::ConventionContradiction);
        }
        let both =
            merge(Map::new(), Some(&map(json!({"query_tap": "post_rope"}))), &map(json!({"query_tap": "pre_rope"})));
        assert!(both.unwrap_err().message().contains("layout file"));
    }
}
