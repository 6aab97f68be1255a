//! What configuration, layout file and flags state, brought together. No two may disagree: the one that is wrong would
//! otherwise be believed or dropped in silence.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::stated::TRANSPOSE_MEMORY;
use crate::adapter::field::SettledBy;
use crate::adapter::plus::{MemorySharing, find_field};
use crate::error::{Code, Error, Result};

/// Key of `adapter_config.json` under which an import records who settled what.
pub const RECORD_KEY: &str = "ptplus_conventions";

/// Who settled a convention that the configuration leaves open: `layout file`, `flag`, `probe`; and further facts about
/// how that was done.
pub type Settled = BTreeMap<String, Value>;

/// Two statements in different words, which say the same only of an adapter of certain sizes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Doubt {
    key: String,
    before: Value,
    earlier: String,
    value: Value,
    who: &'static str,
}

impl Doubt {
    /// # Errors
    ///
    /// [`Code::ConventionContradiction`] where the adapter is none of those.
    pub fn settle(&self, sizes: &Sizes) -> Result<()> {
        if say_the_same(&self.key, &self.before, &self.value, sizes) { Ok(()) } else { Err(self.contradiction()) }
    }

    fn contradiction(&self) -> Error {
        let Doubt { key, before, earlier, value, who } = self;
        let message =
            format!("expected {before}, as the {earlier} says, found {value} in the {who}: state one of them");
        Error::new(Code::ConventionContradiction, message).field(flag_of(key).unwrap_or(key))
    }
}

/// What decides whether two statements say the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    /// Whether the order of the layers says which rows of a tensor are whose.
    pub are_layers_stacked: bool,
}

/// Whether both values of `key` say the same of an adapter of these sizes.
pub(super) fn say_the_same(key: &str, a: &Value, b: &Value, sizes: &Sizes) -> bool {
    match key {
        "layers_to_transform" => {
            let list = |v: &Value| -> Option<Vec<u64>> {
                match v {
                    Value::Null => Some((0..sizes.n_layers as u64).collect()),
                    Value::Array(items) => items.iter().map(Value::as_u64).collect(),
                    one => Some(vec![one.as_u64()?]),
                }
            };
            let in_order = |mut list: Vec<u64>| {
                if !sizes.are_layers_stacked {
                    list.sort_unstable();
                }
                list
            };
            matches!((list(a), list(b)), (Some(a), Some(b)) if in_order(a.clone()) == in_order(b.clone()))
        }
        "memory_sharing" => {
            let n_memories = |v: &Value| match MemorySharing::parse(v.as_str()?)? {
                MemorySharing::PerHead => Some(sizes.n_heads),
                MemorySharing::PerKvHead => Some(sizes.n_kv_heads),
                MemorySharing::Shared => Some(1),
            };
            a == b || matches!((n_memories(a), n_memories(b)), (Some(a), Some(b)) if a == b)
        }
        _ => same(a, b),
    }
}

/// The configuration with what the others add, who added what, and what only the adapter's sizes can settle.
///
/// # Errors
///
/// [`Code::ConventionContradiction`].
pub(super) fn merge(
    config: Map<String, Value>,
    config_name: &str,
    layout: Option<&Map<String, Value>>,
    flags: &Map<String, Value>,
) -> Result<(Map<String, Value>, Settled, Vec<Doubt>)> {
    let mut merged = config;
    let mut settled = Settled::new();
    let mut doubts = Vec::new();
    for (who, statements) in [("layout file", layout), ("flag", Some(flags))] {
        for (key, value) in statements.into_iter().flatten() {
            let is_list = key == "layers_to_transform";
            match merged.get(key) {
                Some(Value::Null) if !is_list => {}
                Some(before) if same(before, value) => continue,
                Some(before) => {
                    let earlier = settled.get(key).and_then(Value::as_str).unwrap_or(config_name).to_owned();
                    let doubt = Doubt { key: key.clone(), before: before.clone(), earlier, value: value.clone(), who };
                    if !matches!(key.as_str(), "layers_to_transform" | "memory_sharing") {
                        return Err(doubt.contradiction());
                    }
                    doubts.push(doubt);
                    continue;
                }
                None => {}
            }
            merged.insert(key.clone(), value.clone());
            settled.insert(key.clone(), who.into());
        }
    }
    Ok((merged, settled, doubts))
}

/// Equal as numbers of F32, which is what GGUF and the engines keep, or equal.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x as f32 == y as f32,
        _ => a == b,
    }
}

/// The record for `adapter_config.json`.
pub(super) fn record(settled: &Settled) -> Value {
    Value::Object(settled.clone().into_iter().collect())
}

/// The flag that states a key.
pub fn flag_of(key: &str) -> Option<&'static str> {
    flag_usage(key)?.split(' ').next()
}

/// The refusal to guess: every open key on a line of its own with the flag that settles it.
pub(super) fn still_open(keys: &[&str]) -> Error {
    // One base says all sizes.
    let mut groups: Vec<(Vec<&str>, Option<&str>)> = Vec::new();
    for key in keys {
        let usage = flag_usage(key);
        match groups.iter_mut().find(|(_, known)| known.is_some() && *known == usage) {
            Some((group, _)) => group.push(key),
            None => groups.push((vec![key], usage)),
        }
    }
    let by_probe = |key: &str| !matches!(flag_of(key), None | Some("--base" | "--layers"));
    let rows: Vec<(String, &str)> = groups
        .into_iter()
        .map(|(keys, usage)| (keys.join(", "), usage.unwrap_or("in adapter_config.json")))
        .chain(keys.iter().any(|k| by_probe(k)).then_some(match keys.iter().all(|k| by_probe(k)) {
            true => ("or all of them".to_owned(), BY_PROBE),
            false => ("or all but those of --base and --layers".to_owned(), BY_PROBE),
        }))
        .collect();
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    let lines = rows.iter().map(|(what, usage)| format!("{what:width$}  {usage}")).collect();
    let (what, verb) = match keys {
        [key] => ((*key).to_owned(), "is"),
        _ => (format!("{} conventions", keys.len()), "are"),
    };
    Error::new(
        Code::ConventionOpen,
        format!("{what} {verb} stated nowhere, and ptplus does not guess; what settles it:"),
    )
    .details(lines)
}

const BY_PROBE: &str = "--probe PROBE --base BASE (convert, pack, verify)";

/// The flag that states a key, with what it takes.
pub(crate) fn flag_usage(key: &str) -> Option<&'static str> {
    match find_field(key).map(|field| field.settled_by) {
        Some(SettledBy::Flag(usage)) => Some(usage),
        Some(SettledBy::Base(_) | SettledBy::Sizes) => Some("--base BASE"),
        None => match key {
            TRANSPOSE_MEMORY => Some("--transpose-memory or --transpose-memory=false"),
            "layers_to_transform" => Some("--layers LIST"),
            "flattening_order" => Some("--layout FILE.toml"),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(v: Value) -> Map<String, Value> {
        v.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_open_is_a_list_with_one_flag_a_line() {
        let e = still_open(&["feature_map", "query_scale", "num_layers", "head_dim"]);
        assert_eq!(e.message(), "4 conventions are stated nowhere, and ptplus does not guess; what settles it:");
        assert_eq!(
            e.detail_lines(),
            [
                "feature_map                              --feature-map MAP",
                "query_scale                              --query-scale X",
                "num_layers, head_dim                     --base BASE",
                "or all but those of --base and --layers  --probe PROBE --base BASE (convert, pack, verify)",
            ]
        );
        let e = still_open(&["query_tap"]);
        assert!(e.message().starts_with("query_tap is stated nowhere"), "{e}");
        assert_eq!(still_open(&["num_layers"]).detail_lines(), ["num_layers  --base BASE"]);
    }

    #[test]
    fn what_is_added_is_recorded_and_what_contradicts_is_refused() {
        let config = map(json!({"feature_map": "elu", "query_scale": 1, "query_tap": null}));
        let (merged, settled, doubts) = merge(
            config.clone(),
            "adapter_config.json",
            Some(&map(json!({"memory_scale": 0.5}))),
            &map(json!({"query_scale": 1.0, "query_tap": "pre_rope"})),
        )
        .unwrap();
        assert_eq!((merged["query_tap"].as_str(), doubts), (Some("pre_rope"), vec![]));
        assert_eq!(
            settled.into_iter().collect::<Vec<_>>(),
            [("memory_scale".into(), json!("layout file")), ("query_tap".into(), json!("flag"))]
        );
        for flags in [json!({"feature_map": "relu"}), json!({"query_scale": 2})] {
            assert_eq!(
                merge(config.clone(), "config.json", None, &map(flags)).unwrap_err().code(),
                Code::ConventionContradiction
            );
        }
        let both = merge(
            Map::new(),
            "",
            Some(&map(json!({"query_tap": "post_rope"}))),
            &map(json!({"query_tap": "pre_rope"})),
        );
        assert!(both.unwrap_err().message().contains("layout file"));
    }

    #[test]
    fn the_same_in_other_words_is_no_contradiction() {
        let sizes = |are_layers_stacked| Sizes { n_layers: 3, n_heads: 4, n_kv_heads: 4, are_layers_stacked };
        for (key, a, b, named, stacked) in [
            ("layers_to_transform", json!(null), json!([0, 1, 2]), true, true),
            ("layers_to_transform", json!([0, 1, 2]), json!(null), true, true),
            ("layers_to_transform", json!(1), json!([1]), true, true),
            ("layers_to_transform", json!([2, 0]), json!([0, 2]), true, false),
            ("layers_to_transform", json!([2, 1, 0]), json!(null), true, false),
            ("layers_to_transform", json!([0, 1]), json!(null), false, false),
            ("layers_to_transform", json!([0, 1]), json!([0, 0, 1]), false, false),
            ("layers_to_transform", json!([0, 1]), json!([0, 1, 2]), false, false),
            ("layers_to_transform", json!([0, 1]), json!("all"), false, false),
            ("memory_sharing", json!("per_head"), json!("per_kv_head"), true, true),
            ("memory_sharing", json!("per_head"), json!("shared"), false, false),
            ("query_scale", json!(0.353_553_390_593_273_8), json!(0.353_553_38), true, true),
            ("query_scale", json!(0.353), json!(0.354), false, false),
            ("feature_map", json!("elu"), json!("relu"), false, false),
        ] {
            for (is_stacked, expected) in [(false, named), (true, stacked)] {
                assert_eq!(say_the_same(key, &a, &b, &sizes(is_stacked)), expected, "{key} {a} {b} {is_stacked}");
            }
        }
    }
}
