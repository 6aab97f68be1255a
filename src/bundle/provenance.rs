//! `provenance.json`: how a bundle's adapter came about, as an in-toto statement of SLSA provenance. No clock and no host is
//! in it: the same inputs give the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::digest::hex;
use crate::error::Result;
use crate::format::bundle::check::file_sha256;
use crate::format::bundle::manifest::FileEntry;
use crate::format::mmap::map_file;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Names the meaning of the parameters: a command line of `ptplus pack`.
const BUILD_TYPE: &str = "urn:ptplus:pack:1";
const BUILDER: &str = "urn:ptplus";

/// What a bundle was made from.
pub struct Materials<'a> {
    /// The adapter's files, and the probe.
    pub files: Vec<&'a Path>,
    /// The base's name.
    pub base_name: &'a str,
    /// Its id on the hub.
    pub base_id: Option<&'a str>,
    /// Its fingerprint: all its files would take as long to read as it is large.
    pub base_fingerprint: &'a str,
    /// The command in its normal form.
    pub command: &'a str,
}

/// The statement about the files of an adapter.
///
/// # Errors
///
/// Those of opening the materials.
pub fn statement(adapter: &BTreeMap<&str, &FileEntry>, made_from: &Materials<'_>) -> Result<Value> {
    let subject = |(name, entry): (&&str, &&FileEntry)| json!({ "name": name, "digest": { "sha256": entry.sha256 } });
    let mut materials = Vec::new();
    for path in &made_from.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        materials.push((name, file_sha256(&map_file(path)?)));
    }
    materials.sort();
    let file = |(name, digest): &(String, String)| json!({ "name": name, "digest": { "sha256": digest } });
    let mut base = json!({
        "name": made_from.base_name,
        "digest": { "ptplusBase": hex(&Sha256::digest(made_from.base_fingerprint)) },
        "annotations": { "fingerprint": made_from.base_fingerprint },
    });
    if let Some(id) = made_from.base_id {
        base["uri"] = format!("https://huggingface.co/{id}").into();
    }
    Ok(json!({
        "_type": STATEMENT_TYPE,
        "subject": adapter.iter().map(subject).collect::<Vec<_>>(),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": { "command": made_from.command },
                "resolvedDependencies": materials.iter().map(file).chain([base]).collect::<Vec<_>>(),
            },
            "runDetails": { "builder": { "id": BUILDER, "version": { "ptplus": env!("CARGO_PKG_VERSION") } } },
        },
    }))
}

/// Why a statement in a bundle is not true of its files; `None` where it is.
pub fn untrue(statement: &Value, files: &BTreeMap<String, FileEntry>) -> Option<String> {
    let text = |pointer: &str| statement.pointer(pointer).and_then(Value::as_str);
    if text("/_type") != Some(STATEMENT_TYPE) || text("/predicateType") != Some(PREDICATE_TYPE) {
        return Some("a statement of another type".into());
    }
    let Some(subjects) = statement.get("subject").and_then(Value::as_array).filter(|s| !s.is_empty()) else {
        return Some("a statement about nothing".into());
    };
    subjects.iter().find_map(|subject| {
        let name = subject.get("name").and_then(Value::as_str).unwrap_or_default();
        let digest = subject.pointer("/digest/sha256").and_then(Value::as_str);
        let is_true = files.get(name).is_some_and(|entry| digest == Some(entry.sha256.as_str()));
        (!is_true).then(|| format!("another digest of {name:?}"))
    })
}
