//! SHA-256 digests that do not depend on how a file is laid out.

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// First line of the text that [`source_sha256`] hashes; names its definition.
const SOURCE_SCHEME: &str = "ptplus-source/1";

/// One consumed tensor of a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TensorDigest {
    /// Name in the source.
    pub name: String,
    /// Type in the source.
    pub dtype: String,
    /// Shape in the source, outermost first.
    pub shape: Vec<usize>,
    /// SHA-256 of its contiguous row-major bytes, lower-case hex.
    pub sha256: String,
}

/// The canonical digest of a source: over the consumed tensors (name, type, shape, bytes), sorted by name, and the
/// configuration. `docs/FORMAT.md` has the exact text that is hashed.
pub fn source_sha256(config: &str, mut tensors: Vec<TensorDigest>) -> String {
    tensors.sort();
    let mut h = Sha256::new();
    h.update(format!("{SOURCE_SCHEME}\n{config}\n"));
    for t in &tensors {
        // JSON keeps any name on one line, whatever characters it has.
        h.update(format!("{}\n", serde_json::json!([t.name, t.dtype, t.shape, t.sha256])));
    }
    hex(&h.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compact JSON with the keys of every object sorted, so that key order does not matter.
pub fn sorted_compact_json(value: &Value) -> String {
    sorted_json(value).to_string()
}

/// The value with the keys of every object sorted.
///
/// The value came through a reader with a depth limit, so recursion is bounded.
pub fn sorted_json(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted_json(v))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted_json).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn key_order_and_tensor_order_do_not_matter_but_everything_else_does() {
        assert_eq!(sorted_compact_json(&json!({"b": {"d": 1, "c": [2]}, "a": 0})), r#"{"a":0,"b":{"c":[2],"d":1}}"#);
        let t = |name: &str, dtype: &str| TensorDigest {
            name: name.into(),
            dtype: dtype.into(),
            shape: vec![1],
            sha256: "00".into(),
        };
        let reference = source_sha256("{}", vec![t("a", "F32"), t("b", "F32")]);
        assert_eq!(source_sha256("{}", vec![t("b", "F32"), t("a", "F32")]), reference);
        assert_ne!(source_sha256("{ }", vec![t("a", "F32"), t("b", "F32")]), reference);
        assert_ne!(source_sha256("{}", vec![t("a", "F16"), t("b", "F32")]), reference);
        assert_ne!(source_sha256("{}", vec![t("a", "F32")]), reference);
        assert_eq!(reference.len(), 64);
    }
}
