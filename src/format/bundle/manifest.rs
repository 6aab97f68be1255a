//! `manifest.json`: every other file of the bundle with its size and SHA-256, and what the bundle is.
//!
//! What we write is its own canonical form (keys sorted, two spaces, a final newline) and carries `self_sha256`, computed
//! with that field empty, so that no change of it goes unnoticed, with or without a signature.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::path::{check_path, first_clash};
use super::{OWN_FILES, is_for_people};
use crate::digest::{hex, sorted_json};
use crate::error::{Code, Error, Result};
use crate::format::json;
use crate::format::limits::{BUNDLE_FILES, MANIFEST_BYTES, MANIFEST_VALUES};

/// Value of `schema`.
pub const SCHEMA: &str = "ptplus-bundle/1";
/// What the schemas of all versions begin with.
const SCHEMA_FAMILY: &str = "ptplus-bundle/";
const HASH: &str = "sha256";
const FILES: &str = "files";
/// The key of [`Manifest::texts`].
const TEXTS: &str = "texts";
const SELF_DIGEST: &str = "self_sha256";
const TOOL: &str = "ptplus";

/// What a manifest says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// 64 lower-case hex digits.
    pub sha256: String,
}

/// A manifest that breaks no rule by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Every listed file by its path.
    pub files: BTreeMap<String, FileEntry>,
    /// Texts for people as they were when the bundle was made; see [`is_for_people`].
    pub texts: BTreeMap<String, FileEntry>,
    /// The whole document.
    pub document: Map<String, Value>,
    /// Whether it carries, and so fulfils, `self_sha256`.
    pub has_self_digest: bool,
}

/// The text of a manifest that lists `files`, texts for people apart, and says `more` besides.
pub fn write(files: &BTreeMap<String, FileEntry>, more: Map<String, Value>) -> Vec<u8> {
    let mut document = more;
    let entry = |(path, f): (&String, &FileEntry)| json!({ "path": path, "size": f.size, "sha256": f.sha256 });
    let (texts, files): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| is_for_people(path));
    document.insert("schema".into(), SCHEMA.into());
    document.insert("hash".into(), HASH.into());
    document.insert("tool".into(), json!({ "name": TOOL, "version": env!("CARGO_PKG_VERSION") }));
    document.insert(FILES.into(), files.into_iter().map(entry).collect());
    document.insert(TEXTS.into(), texts.into_iter().map(entry).collect());
    let digest = self_digest(&document);
    document.insert(SELF_DIGEST.into(), digest.into());
    canonical_text(&Value::Object(document)).into_bytes()
}

/// Whether a text has a mark of a bundle's manifest, be it damaged otherwise.
fn is_marked(text: &[u8]) -> bool {
    let text = &text[..text.len().min(MANIFEST_BYTES)];
    let holds = |mark: &str| text.windows(mark.len()).any(|w| w == mark.as_bytes());
    holds(SCHEMA_FAMILY) || holds(SELF_DIGEST)
}

/// Whether a text is a bundle's manifest, of any version, whole or not: it says so in the place for it.
pub fn is_one(text: &[u8]) -> bool {
    if text.len() > MANIFEST_BYTES {
        return false;
    }
    let document = json::parse_of(text, MANIFEST_VALUES).unwrap_or_default();
    document.get("schema").and_then(Value::as_str).is_some_and(|s| s.starts_with(SCHEMA_FAMILY))
}

/// Whether a `manifest.json` may be meant to be a bundle's. Whatever could be read as one is: damage to a mark, or a
/// spelling of it that JSON allows, must not turn a bundle into a folder that nobody checks.
pub fn may_be_of_bundle(text: &[u8]) -> bool {
    if text.len() > MANIFEST_BYTES || is_marked(text) {
        return true;
    }
    match json::parse_of(text, MANIFEST_VALUES) {
        Ok(Value::Object(m)) => {
            let schema = m.get("schema").and_then(Value::as_str);
            schema.is_some_and(|s| s.starts_with(SCHEMA_FAMILY)) || m.contains_key(SELF_DIGEST)
        }
        // Another program's.
        Ok(_) => false,
        Err(_) => true,
    }
}

impl Manifest {
    /// Reads a manifest and checks every rule that needs no other file.
    ///
    /// # Errors
    ///
    /// [`Code::BundleManifest`], [`Code::BundlePath`].
    pub fn parse(text: &[u8]) -> Result<Manifest> {
        let broken = |e: Error| {
            let code = if e.code() == Code::BundlePath { e.code() } else { Code::BundleManifest };
            let mut out = Error::new(code, e.message());
            if let Some(field) = e.field_name() {
                out = out.field(field);
            }
            out
        };
        if text.len() > MANIFEST_BYTES {
            return Err(wrong("", format!("at most {MANIFEST_BYTES} bytes"), text.len()));
        }
        let Value::Object(document) = json::parse_of(text, MANIFEST_VALUES).map_err(broken)? else {
            return Err(wrong("", "a JSON object", "another value"));
        };
        let state = |key: &str, value: &str| match document.get(key).and_then(Value::as_str) {
            Some(found) if found == value => Ok(()),
            Some(found) => Err(wrong(key, format!("{value:?}"), format!("{found:?}"))),
            None => Err(wrong(key, format!("{value:?}"), "no such text")),
        };
        state("schema", SCHEMA)?;
        state("hash", HASH)?;
        let files = read_files(&document, FILES)?;
        let texts = if document.contains_key(TEXTS) { read_files(&document, TEXTS)? } else { BTreeMap::new() };
        if let Some(path) = texts.keys().find(|path| !is_for_people(path) || files.contains_key(*path)) {
            return Err(wrong(TEXTS, "texts for people that are not among the files", format!("{path:?}")));
        }
        if let Some((a, b)) = first_clash(files.keys().chain(texts.keys()).map(String::as_str).chain(OWN_FILES)) {
            return Err(wrong(FILES, "paths that differ in more than case", format!("{a:?} and {b:?}")));
        }
        let has_self_digest = check_self_digest(text, &document)?;
        Ok(Manifest { files, texts, document, has_self_digest })
    }
}

/// The list of files at `key`.
fn read_files(document: &Map<String, Value>, key: &str) -> Result<BTreeMap<String, FileEntry>> {
    let Some(Value::Array(list)) = document.get(key) else {
        return Err(wrong(key, "a list", "none"));
    };
    if list.len() > BUNDLE_FILES {
        return Err(wrong(key, format!("at most {BUNDLE_FILES} files"), list.len()));
    }
    let mut files = BTreeMap::new();
    let mut last: Option<&str> = None;
    for (i, item) in list.iter().enumerate() {
        let field = |name: &str| format!("{key}[{i}].{name}");
        let entry = item.as_object().ok_or_else(|| wrong(&format!("{key}[{i}]"), "an object", "another value"))?;
        if let Some(other) = entry.keys().find(|k| !matches!(k.as_str(), "path" | "size" | "sha256")) {
            return Err(wrong(&format!("{key}[{i}]"), "path, size and sha256", format!("{other:?}")));
        }
        let path = entry.get("path").and_then(Value::as_str);
        let path = path.ok_or_else(|| wrong(&field("path"), "a text", "none"))?;
        check_path(path)?;
        if OWN_FILES.contains(&path) {
            return Err(wrong(&field("path"), "every file but the manifest and its signatures", path));
        }
        if last.is_some_and(|l| l >= path) {
            return Err(wrong(&field("path"), "paths in order, each once", format!("{path:?}")));
        }
        last = Some(path);
        let size = entry.get("size").and_then(Value::as_u64);
        let size = size.ok_or_else(|| wrong(&field("size"), "a number of bytes", "none"))?;
        let sha256 = entry.get("sha256").and_then(Value::as_str).filter(|s| is_sha256(s));
        let sha256 = sha256.ok_or_else(|| wrong(&field("sha256"), "64 lower-case hex digits", "another value"))?;
        files.insert(path.to_owned(), FileEntry { size, sha256: sha256.to_owned() });
    }
    Ok(files)
}

/// Whether there is a `self_sha256`; if so it and the canonical form hold.
fn check_self_digest(text: &[u8], document: &Map<String, Value>) -> Result<bool> {
    let Some(stated) = document.get(SELF_DIGEST) else {
        // One flipped bit in the field's name must not turn the check off.
        let ours = document.get("tool").and_then(|t| t.get("name")).and_then(Value::as_str) == Some(TOOL);
        return if ours { Err(wrong(SELF_DIGEST, "this field, as ptplus writes it", "none")) } else { Ok(false) };
    };
    if canonical_text(&Value::Object(document.clone())).as_bytes() != text {
        return Err(wrong("", "the canonical form (keys sorted, two spaces, a final newline)", "another"));
    }
    let found = self_digest(document);
    if stated.as_str() != Some(&found) {
        return Err(wrong(SELF_DIGEST, found, stated));
    }
    Ok(true)
}

fn self_digest(document: &Map<String, Value>) -> String {
    let mut blank = document.clone();
    blank.insert(SELF_DIGEST.into(), "".into());
    hex(&Sha256::digest(canonical_text(&Value::Object(blank))))
}

/// Keys sorted, two spaces, a final newline.
pub(crate) fn canonical_text(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(&sorted_json(value)).unwrap_or_default();
    text.push('\n');
    text
}

/// 64 lower-case hex digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn wrong(field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    let e = Error::new(Code::BundleManifest, format!("expected {expected}, found {found}"));
    if field.is_empty() { e } else { e.field(field) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: u64) -> FileEntry {
        FileEntry { size, sha256: "0".repeat(64) }
    }

    fn ours() -> Vec<u8> {
        let files = BTreeMap::from([("README.md".to_owned(), entry(3)), ("adapter.gguf".to_owned(), entry(5))]);
        write(&files, json!({ "base": { "z": 1, "a": [] } }).as_object().unwrap().clone())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let m = Manifest::parse(&ours()).unwrap();
        assert!(m.has_self_digest);
        assert_eq!(m.files, BTreeMap::from([("adapter.gguf".to_owned(), entry(5))]));
        assert_eq!(m.texts, BTreeMap::from([("README.md".to_owned(), entry(3))]));
        assert_eq!(m.document["base"]["z"], 1);
    }

    #[test]
    fn every_flipped_bit_of_a_manifest_is_refused() {
        let text = ours();
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&bad).is_err(), "bit {bit}: {}", String::from_utf8_lossy(&bad));
        }
    }

    #[test]
    fn only_a_manifest_that_is_plainly_another_programs_is_none_of_ours() {
        for ours in [
            r#"{"schema": "ptplus-bundle/1"}"#,
            r#"{"schema":"ptplus-bundl\u0065/1"}"#,
            r#"{"self\u005fsha256": ""}"#,
            r#"{"schema": "ptplus-bundlf/1", "self_sha256": ""}"#,
            r#"{"schema": "#,
            "",
            "not JSON",
        ] {
            assert!(may_be_of_bundle(ours.as_bytes()), "{ours}");
        }
        assert!(may_be_of_bundle(" ".repeat(MANIFEST_BYTES + 1).as_bytes()));
        for other in
            ["{}", "[]", r#"{"schema": "https://example.org/manifest", "files": []}"#, r#"{"manifest_version": 3}"#]
        {
            assert!(!may_be_of_bundle(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        let sha = "0".repeat(64);
        let file = |path: &str| json!({ "path": path, "size": 1, "sha256": sha });
        let with = |files: Value| json!({ "schema": SCHEMA, "hash": "sha256", "files": files });
        let with_texts =
            |texts: Value| json!({ "schema": SCHEMA, "hash": "sha256", "files": [file("b")], "texts": texts });
        let good = with(json!([file("a"), file("b")]));
        let m = Manifest::parse(good.to_string().as_bytes()).unwrap();
        assert!(!m.has_self_digest, "a manifest without self_sha256 is accepted, and says so");
        let upper = json!([{ "path": "a", "size": 1, "sha256": "A".repeat(64) }]);
        let cases = [
            (json!([]), Code::BundleManifest),
            (json!({ "schema": "ptplus-bundle/2", "hash": "sha256", "files": [] }), Code::BundleManifest),
            (json!({ "schema": SCHEMA, "hash": "md5", "files": [] }), Code::BundleManifest),
            (json!({ "schema": SCHEMA, "hash": "sha256" }), Code::BundleManifest),
            (
                json!({ "schema": SCHEMA, "hash": "sha256", "files": [], "tool": { "name": "ptplus" } }),
                Code::BundleManifest,
            ),
            (with(json!([file("b"), file("a")])), Code::BundleManifest),
            (with(json!([file("a"), file("a")])), Code::BundleManifest),
            (with(json!([file("A"), file("a")])), Code::BundleManifest),
            (with(json!([file("a"), file("a/b")])), Code::BundleManifest),
            (with(json!([file("manifest.json")])), Code::BundleManifest),
            (with(json!([file("Manifest.json")])), Code::BundleManifest),
            (with_texts(json!([file("a")])), Code::BundleManifest),
            (with_texts(json!([file("NOTICE"), file("LICENSE")])), Code::BundleManifest),
            (with_texts(json!({})), Code::BundleManifest),
            (with(json!([file("../a")])), Code::BundlePath),
            (with(json!([file("/a")])), Code::BundlePath),
            (with(json!([{ "path": "a", "size": -1, "sha256": sha }])), Code::BundleManifest),
            (with(json!([{ "path": "a", "size": 1.0, "sha256": sha }])), Code::BundleManifest),
            (with(json!([{ "path": "a", "size": 1, "sha256": sha, "link": "b" }])), Code::BundleManifest),
            (with(upper), Code::BundleManifest),
        ];
        for (document, code) in cases {
            let e = Manifest::parse(document.to_string().as_bytes()).unwrap_err();
            assert_eq!(e.code(), code, "{document}: {e}");
        }
        let twice = format!(r#"{{"schema":"{SCHEMA}","schema":"{SCHEMA}","hash":"sha256","files":[]}}"#);
        assert_eq!(Manifest::parse(twice.as_bytes()).unwrap_err().code(), Code::BundleManifest);
    }
}
