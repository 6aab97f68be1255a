//! What a manifest says about the adapter, and whether it is true of the adapter in the bundle. The hashes of the files
//! hold either way: whoever exchanges the adapter and reseals the manifest leaves the claims behind.

use serde_json::{Map, Value, json};

use super::MANIFEST_FILE;
use super::digest::{AdapterDigest, of_tensors};
use super::manifest::Manifest;
use crate::error::Code;
use crate::finding::Finding;
use crate::import::RECORD_KEY;
use crate::validate::Validated;

/// The manifest's `adapter`, but for the name under which it is offered.
pub(super) fn of_adapter(adapter: &Validated, digest: &AdapterDigest) -> Map<String, Value> {
    let a = adapter.adapter();
    let (c, g) = (&a.config, &a.config.geometry);
    let described = json!({
        "type": "prefix_tuning_plus",
        "digest": digest,
        "feature_map": c.feature_map.name(),
        "query_tap": c.query_tap.name(),
        "query_scale": c.query_scale,
        "memory_scale": c.memory_scale,
        "memory_sharing": c.memory_sharing.name(),
        "num_layers": g.n_layers,
        "layers": a.layers.keys().collect::<Vec<_>>(),
        "num_attention_heads": g.n_heads,
        "num_key_value_heads": g.n_kv_heads,
        "head_dim": g.head_dim,
        "num_features": g.n_features,
        "gguf_architecture": adapter.origin.gguf_architecture,
        "row_order": adapter.origin.row_order.name(),
        "conventions_settled_by": c.extra.get(RECORD_KEY).cloned().unwrap_or(Value::Null),
    });
    match described {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Compares everything that the manifest states of the adapter, each key where it is stated: the tensors' digests,
/// `adapter`, the base's fingerprint and architecture, and the reports. Reads every tensor twice.
pub fn compare(manifest: &Manifest, adapter: &Validated) -> Vec<Finding> {
    let mut check = Claims { manifest, findings: Vec::new() };
    check.equal(&["tensors"], &json!(of_tensors(adapter)));
    if check.is_object("adapter") {
        for (key, actual) in of_adapter(adapter, &AdapterDigest::of(adapter.adapter())) {
            check.equal(&["adapter", &key], &actual);
        }
    }
    if check.is_object("base") {
        if let Some(print) = adapter.base_fingerprint() {
            check.equal(&["base", "fingerprint"], &print.into());
        }
        if let Some(architecture) = &adapter.origin.gguf_architecture {
            check.equal(&["base", "architecture"], &architecture.as_str().into());
        }
    }
    check.reports();
    check.findings
}

struct Claims<'a> {
    manifest: &'a Manifest,
    findings: Vec<Finding>,
}

impl Claims<'_> {
    /// Null is not stated.
    fn stated(&self, path: &[&str]) -> Option<&Value> {
        let first = self.manifest.document.get(path[0])?;
        let value = path[1..].iter().try_fold(first, |v, key| v.get(key))?;
        (!value.is_null()).then_some(value)
    }

    fn differ(&mut self, path: &[&str], expected: String, found: String) {
        let place = format!("{MANIFEST_FILE}: {}", path.join("."));
        self.findings.push(Finding::new(Code::BundleChanged, place, expected, found));
    }

    fn equal(&mut self, path: &[&str], actual: &Value) {
        let Some(stated) = self.stated(path).filter(|stated| !same(stated, actual)) else { return };
        let found = short(stated);
        self.differ(path, short(actual), found);
    }

    /// Whether there is something to compare below `key`; another value than an object is a finding.
    fn is_object(&mut self, key: &str) -> bool {
        match self.stated(&[key]) {
            None => false,
            Some(Value::Object(_)) => true,
            Some(other) => {
                let found = short(other);
                self.differ(&[key], "an object".into(), found);
                false
            }
        }
    }

    fn reports(&mut self) {
        let Some(stated) = self.stated(&["reports"]) else { return };
        let names = stated.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let Some(Some(names)) = names else {
            let found = short(stated);
            return self.differ(&["reports"], "a list of files".into(), found);
        };
        let absent = names.into_iter().find(|name| !self.manifest.files.contains_key(*name)).map(|n| format!("{n:?}"));
        if let Some(absent) = absent {
            self.differ(&["reports"], "files of the bundle".into(), absent);
        }
    }
}

/// Equal, or equal as numbers: 1 and 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

/// Lists of digests are long.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
        other => other.to_string().chars().take(200).collect(),
    }
}
