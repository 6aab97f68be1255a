//! Keys and tensor names of a GGUF adapter (SPEC-level names; one table for reading and writing).

use super::{Adapter, Role};
use crate::error::Error;
use crate::finding::Finding;

/// `general.type` of every adapter.
pub const GENERAL_TYPE: &str = "adapter";
/// `adapter.type` of this method.
pub const ADAPTER_TYPE: &str = "prefix_tuning_plus";
/// The layout's version, in `adapter.prefix_tuning_plus.version`.
pub const VERSION: u32 = 1;

/// `adapter.prefix_tuning_plus.{field}`
pub fn key(field: &str) -> String {
    format!("adapter.{ADAPTER_TYPE}.{field}")
}

/// Provenance: the version of ptplus that wrote the file.
pub const TOOL_VERSION: &str = "ptplus.tool_version";
/// Provenance: digest of the source, 64 hex digits.
pub const SOURCE_SHA256: &str = "ptplus.source_sha256";
/// Provenance: the fingerprint of the base that the adapter was made for.
pub const BASE_FINGERPRINT: &str = "ptplus.base_fingerprint";
/// Provenance: the command that wrote the file, without what does not change its content.
pub const COMMAND: &str = "ptplus.command";
/// What the source's configuration states beyond the keys above, as compact JSON.
pub const SOURCE_CONFIG: &str = "ptplus.source_config";
/// Each tensor's type in the source, as compact JSON.
pub const SOURCE_DTYPES: &str = "ptplus.source_dtypes";

const SUFFIXES: [(Role, &str); 4] = [
    (Role::Memory, "attn_prefix_memory.weight"),
    (Role::FeatureWeight, "attn_prefix_feature.weight"),
    (Role::FeatureBias, "attn_prefix_feature.bias"),
    (Role::Normalizer, "attn_prefix_normalizer.weight"),
];

/// `blk.{layer}.attn_prefix_memory.weight` and its siblings.
pub fn tensor_name(layer: usize, role: Role) -> String {
    let (_, suffix) = SUFFIXES.iter().find(|(r, _)| *r == role).expect("every role has a name");
    format!("blk.{layer}.{suffix}")
}

/// Layer and role of a tensor name, if it is one.
pub fn parse_tensor_name(name: &str) -> Option<(usize, Role)> {
    let (number, suffix) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    let (role, _) = SUFFIXES.iter().find(|(_, s)| *s == suffix)?;
    (tensor_name(layer, *role) == name).then_some((layer, *role))
}

/// What `adapter_config.json` and the canonical layout call something, by the name that it has in a GGUF file.
fn name_in_gguf(canonical: &str) -> Option<String> {
    const FIELDS: [(&str, &str); 12] = [
        ("feature_map", "feature_map"),
        ("query_tap", "query_tap"),
        ("query_scale", "query_scale"),
        ("memory_scale", "memory_scale"),
        ("memory_sharing", "memory_sharing"),
        ("num_layers", "block_count"),
        ("num_attention_heads", "head_count"),
        ("num_key_value_heads", "head_count_kv"),
        ("head_dim", "key_length"),
        ("value head_dim", "value_length"),
        ("num_features", "feature_length"),
        ("layers_to_transform", "layers"),
    ];
    const RECORDED: [&str; 6] = [
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "base_model_type",
        "ptplus_widened_from",
    ];
    if let Some((_, field)) = FIELDS.iter().find(|(name, _)| *name == canonical) {
        return Some(key(field));
    }
    if canonical == "ptplus_base_fingerprint" {
        return Some(BASE_FINGERPRINT.to_owned());
    }
    if RECORDED.contains(&canonical) {
        return Some(format!("{SOURCE_CONFIG}: {canonical}"));
    }
    if let Some((layer, role)) = Adapter::parse_canonical_name(canonical) {
        return Some(tensor_name(layer, role));
    }
    let layer = canonical.strip_prefix("layers.")?;
    layer.bytes().all(|b| b.is_ascii_digit()).then(|| format!("blk.{layer}"))
}

/// An error about a GGUF adapter, naming what stands in that file.
pub(crate) fn in_gguf_terms(e: Error) -> Error {
    match e.field_name().and_then(name_in_gguf) {
        Some(name) => Error::new(e.code(), e.message()).field(name),
        None => e,
    }
}

/// Names the place of a finding as [`in_gguf_terms`] does.
pub(crate) fn place_in_gguf(finding: &mut Finding) {
    if let Some(name) = name_in_gguf(&finding.place) {
        finding.place = name;
    }
}
