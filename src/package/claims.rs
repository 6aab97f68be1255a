//! Whether what a manifest says about the adapter is true of the adapter in the bundle. The hashes of the files hold
//! either way: whoever exchanges the adapter and reseals the manifest leaves the claims behind.

use serde_json::{Value, json};

use super::MANIFEST_FILE;
use super::digest::{AdapterDigest, of_tensors};
use super::manifest::Manifest;
use crate::error::Code;
use crate::finding::Finding;
use crate::validate::Validated;

/// Compares the digests of the tensors and of the adapter, and the fingerprint of its base, each where it is stated.
/// Reads every tensor twice.
pub fn compare(manifest: &Manifest, adapter: &Validated) -> Vec<Finding> {
    let stated = |path: &[&str]| {
        let first = manifest.document.get(path[0])?;
        let value = path[1..].iter().try_fold(first, |v, key| v.get(key))?;
        (!value.is_null()).then_some(value)
    };
    let mut findings = Vec::new();
    let mut check = |path: &[&str], actual: &dyn Fn() -> Value| {
        if let Some(stated) = stated(path) {
            let actual = actual();
            if *stated != actual {
                let place = format!("{MANIFEST_FILE}: {}", path.join("."));
                findings.push(Finding::new(Code::BundleChanged, place, short(&actual), short(stated)));
            }
        }
    };
    check(&["tensors"], &|| json!(of_tensors(adapter)));
    check(&["adapter", "digest"], &|| json!(AdapterDigest::of(adapter.adapter())));
    if let Some(print) = adapter.base_fingerprint() {
        check(&["base", "fingerprint"], &|| print.into());
    }
    findings
}

/// Lists of digests are long.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("the digests of {} tensors", list.len()),
        other => other.to_string().chars().take(200).collect(),
    }
}
