//! Keys and tensor names of a GGUF adapter (SPEC-level names; one table for reading and writing).

use super::Role;

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
