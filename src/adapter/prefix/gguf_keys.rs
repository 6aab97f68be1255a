//! Keys of virtual tokens in GGUF, beside those of every adapter.

use crate::adapter::Kind;

/// The layout's version, in `adapter.virtual_tokens.version`.
pub const VERSION: u32 = 1;

/// `adapter.virtual_tokens.{field}`
pub fn key(field: &str) -> String {
    format!("adapter.{}.{field}", Kind::Prefix)
}

/// Every field.
pub const FIELDS: [&str; 8] =
    ["version", "method", "token_count", "block_count", "head_count_kv", "key_length", "embedding_length", "key_order"];
