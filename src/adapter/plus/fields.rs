//! The fields of a Prefix-Tuning+ adapter.

use super::Config;
use crate::adapter::field::Get::{self, Count, Name, Scale};
use crate::adapter::field::{Field, SettledBy};
use crate::base::BaseConfig;

/// D_v in messages. `adapter_config.json` has no key for it: the memories' shape says it.
pub const VALUE_LENGTH: &str = "value head_dim";

/// Every field, in the order of `adapter_config.json`.
pub const FIELDS: [Field<Config>; 11] = [
    convention("feature_map", "--feature-map MAP", Name(|c| c.conventions.feature_map.name())),
    convention("query_tap", "--query-tap post_rope or pre_rope", Name(|c| c.conventions.query_tap.name())),
    convention("query_scale", "--query-scale X", Scale(|c| c.conventions.query_scale)),
    convention("memory_scale", "--memory-scale X", Scale(|c| c.conventions.memory_scale)),
    convention(
        "memory_sharing",
        "--memory-sharing per_head, per_kv_head or shared",
        Name(|c| c.conventions.memory_sharing.name()),
    ),
    size("num_layers", "block_count", |c| c.geometry.n_layers, |b| b.n_layers),
    size("num_attention_heads", "head_count", |c| c.geometry.n_heads, |b| b.n_heads),
    size("num_key_value_heads", "head_count_kv", |c| c.geometry.n_kv_heads, |b| b.n_kv_heads),
    size("head_dim", "key_length", |c| c.geometry.head_dim, |b| b.head_dim),
    Field {
        is_in_config: false,
        ..size(VALUE_LENGTH, "value_length", |c| c.geometry.value_head_dim, |b| b.value_head_dim)
    },
    Field { settled_by: SettledBy::Sizes, ..size("num_features", "feature_length", |c| c.geometry.n_features, |_| 0) },
];

const fn convention(key: &'static str, flag: &'static str, get: Get<Config>) -> Field<Config> {
    Field { key, is_in_config: true, gguf: key, get, settled_by: SettledBy::Flag(flag) }
}

const fn size(
    key: &'static str,
    gguf: &'static str,
    get: fn(&Config) -> usize,
    of_base: fn(&BaseConfig) -> usize,
) -> Field<Config> {
    Field { key, is_in_config: true, gguf, get: Count(get), settled_by: SettledBy::Base(of_base) }
}

/// The field with this key.
pub fn find(key: &str) -> Option<&'static Field<Config>> {
    FIELDS.iter().find(|field| field.key == key)
}
