//! What the first bytes of a file say that it is.

pub(super) const GGUF: &[u8; 4] = b"GGUF";

/// Whether these are the first bytes of a GGUF file, of any version and byte order.
pub fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(GGUF)
}

/// Whether these can be the first bytes of a safetensors file: a header length within the limit, then `{`.
pub fn is_safetensors(start: &[u8]) -> bool {
    let Some((len, rest)) = start.split_first_chunk::<8>() else { return false };
    let len = u64::from_le_bytes(*len);
    (2..=super::limits::HEADER_BYTES as u64).contains(&len) && rest.first() == Some(&b'{')
}
