//! Keys of a GGUF adapter that every kind has.

/// `general.type` of every adapter.
pub const GENERAL_TYPE: &str = "adapter";

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
