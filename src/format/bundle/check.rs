//! Whether a bundle is whole: every rule, every size, every hash, the signature. Every finding at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::manifest::{FileEntry, Manifest};
use super::signature::{self, PublicKey};
use super::{Bundle, MANIFEST_FILE, MODEL_SIGNATURE_FILE, OWN_FILES, SIGNATURE_FILE, is_for_people, model_signing};
use crate::digest::hex;
use crate::error::{Code, Error};
use crate::finding::Finding;
use crate::format::recognize;
use crate::tensor::Bytes;

/// What is known about who made a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[non_exhaustive]
pub enum Signature {
    /// No signature.
    None,
    /// A valid one by a key that the caller trusts.
    Trusted {
        /// The number that minisign shows for the key.
        key_id: String,
    },
    /// A valid one by the key that the manifest names; whose key that is, nobody has said.
    Valid {
        /// Likewise.
        key_id: String,
    },
    /// One that could not be checked, for want of the key.
    Unchecked,
    /// One that does not hold.
    Invalid,
}

/// The outcome of a check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Checked {
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// The manifest, where it could be read.
    pub manifest: Option<Manifest>,
    /// The state of the manifest's signature.
    pub signature: Signature,
    /// The state of the signature of all files.
    pub model_signature: Signature,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Findings that an error lists below its line.
const MOST_LINES: usize = 100;

impl Checked {
    /// Whether nothing is wrong.
    pub fn pass(&self) -> bool {
        self.findings.is_empty()
    }

    /// The first finding as an error that names every file with one.
    pub fn to_error(&self) -> Option<Error> {
        let first = self.findings.first()?;
        let mut more: Vec<String> = self.findings.iter().take(MOST_LINES).map(Finding::line).collect();
        if self.findings.len() > MOST_LINES {
            more.push(format!("and {} more; see `ptplus check`", self.findings.len() - MOST_LINES));
        }
        let e = first.to_error();
        Some(if more.len() > 1 { e.details(more) } else { e })
    }
}

/// What is asked of a bundle beyond what it promises.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demands<'a> {
    /// A signature of the manifest by this key.
    pub trusted: Option<&'a PublicKey>,
    /// A signature of all files by this key.
    pub trusted_model: Option<&'a model_signing::PublicKey>,
    /// That texts for people are as they were packed, and that nothing else is there, a repository's own included.
    pub is_strict: bool,
}

/// Checks a bundle; with `trusted`, a signature by that key is required.
pub fn check(bundle: &Bundle, trusted: Option<&PublicKey>) -> Checked {
    check_reporting(bundle, Demands { trusted, ..Demands::default() }, &|_, _| {})
}

/// [`check`], calling `progress` with the bytes hashed and those of all files, from any thread.
pub fn check_reporting(bundle: &Bundle, demands: Demands<'_>, progress: &(dyn Fn(u64, u64) + Sync)) -> Checked {
    let mut out = Checked {
        findings: bundle.findings.clone(),
        manifest: None,
        signature: Signature::None,
        model_signature: Signature::None,
        notes: Vec::new(),
    };
    let Some(text) = bundle.files.get(MANIFEST_FILE) else {
        out.findings.push(Finding::new(Code::BundleMissing, MANIFEST_FILE, "this file", "none"));
        return out;
    };
    match Manifest::parse(text) {
        Ok(manifest) => {
            out.findings.extend(compare_files(bundle, &manifest, demands.is_strict, progress));
            if !manifest.has_self_digest {
                out.notes.push(
                    "the manifest has no self_sha256: that it was not changed itself, only a signature can tell".into(),
                );
            }
            out.manifest = Some(manifest);
        }
        Err(e) => {
            let place = e.field_name().map_or(MANIFEST_FILE.to_owned(), |f| format!("{MANIFEST_FILE}: {f}"));
            let found = match recognize::stand_in(text) {
                Some((what, help)) => format!("{what}: {help}"),
                None => e.message().to_owned(),
            };
            out.findings.push(Finding::new(e.code(), place, "a valid manifest", found));
        }
    }
    check_signature(bundle, text, demands.trusted, &mut out);
    check_model_signature(bundle, demands.trusted_model, &mut out);
    out
}

fn compare_files(
    bundle: &Bundle,
    manifest: &Manifest,
    is_strict: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Vec<Finding> {
    let total = bundle.files.values().map(|bytes| bytes.len() as u64).sum();
    let done = AtomicU64::new(0);
    let step = |n: u64| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
    let listed: BTreeMap<&String, &FileEntry> = match is_strict {
        true => manifest.files.iter().chain(&manifest.texts).collect(),
        false => manifest.files.iter().collect(),
    };
    let paths: BTreeSet<&String> = bundle.files.keys().chain(listed.keys().copied()).collect();
    let paths: Vec<&String> = paths.into_iter().filter(|p| !OWN_FILES.contains(&p.as_str())).collect();
    let extra = |path: &str| Finding::new(Code::BundleExtra, path, "only files of the manifest", "another file");
    let compare = |path: &&String| match (bundle.files.get(*path), listed.get(path)) {
        (Some(bytes), Some(entry)) => compare_file(path, bytes, entry, &step),
        (None, _) => Some(Finding::new(Code::BundleMissing, path.as_str(), "this file", "none")),
        (_, None) if !is_strict && is_for_people(path) => None,
        (_, None) => Some(extra(path)),
    };
    let of_repository = bundle.of_repository.iter().filter(|_| is_strict).map(|name| extra(name));
    paths.par_iter().filter_map(compare).collect::<Vec<_>>().into_iter().chain(of_repository).collect()
}

fn compare_file(path: &str, bytes: &Bytes, entry: &FileEntry, step: &dyn Fn(u64)) -> Option<Finding> {
    if bytes.len() as u64 != entry.size {
        let (expected, found) = (format!("{} bytes", entry.size), format!("{} bytes", bytes.len()));
        let found = match recognize::stand_in(bytes) {
            Some((what, help)) => format!("{found}, {what}: {help}"),
            None => found,
        };
        return Some(Finding::new(Code::BundleChanged, path, expected, found));
    }
    let found = sha256_in_steps(bytes, step);
    (found != entry.sha256).then(|| {
        Finding::new(Code::BundleChanged, path, format!("SHA-256 {}", entry.sha256), format!("SHA-256 {found}"))
    })
}

/// SHA-256 of a file's bytes; pages of a memory map leave the process again on the way.
pub fn file_sha256(bytes: &Bytes) -> String {
    sha256_in_steps(bytes, &|_| {})
}

/// [`file_sha256`], calling `step` with the bytes of each step.
fn sha256_in_steps(bytes: &Bytes, step: &dyn Fn(u64)) -> String {
    // Large enough that giving pages back costs nothing, small enough that a large file never fills the memory.
    const STEP: usize = 16 << 20;
    let mut hasher = Sha256::new();
    for start in (0..bytes.len()).step_by(STEP) {
        let part = bytes.slice(start..bytes.len().min(start + STEP)).expect("a range within the bytes");
        hasher.update(&*part);
        step(part.len() as u64);
        if bytes.len() > STEP {
            part.release();
        }
    }
    hex(&hasher.finalize())
}

fn check_signature(bundle: &Bundle, text: &Bytes, trusted: Option<&PublicKey>, out: &mut Checked) {
    let fault = |code, found: String| Finding::new(code, SIGNATURE_FILE, "a valid signature of the manifest", found);
    let stated = out.manifest.as_ref().and_then(|m| m.document.get("signature")).cloned();
    let key = stated.as_ref().and_then(|s| s.get("public_key")).and_then(Value::as_str).map(str::to_owned);
    if key.is_none()
        && let Some(other) = stated.filter(|s| !s.is_null())
    {
        out.findings.push(fault(Code::SignatureInvalid, format!("a manifest that names no key: {other}")));
    }
    let stated = key;
    let Some(bytes) = bundle.files.get(SIGNATURE_FILE) else {
        if trusted.is_some() {
            out.findings.push(fault(Code::SignatureMissing, "none".into()));
        } else if let Some(key) = stated {
            out.findings.push(fault(Code::SignatureMissing, format!("none, though the manifest names the key {key}")));
        }
        return;
    };
    let named = stated.map(|text| PublicKey::from_base64(&text).map_err(|e| e.message().to_owned())).transpose();
    let named = match named {
        Ok(key) => key,
        Err(e) => {
            out.findings.push(fault(Code::SignatureInvalid, format!("a manifest that names no valid key: {e}")));
            None
        }
    };
    let verdict = match trusted.or(named.as_ref()) {
        Some(key) => signature::verify(key, bytes, text).map(|()| Some(key.id())),
        None => signature::parse(bytes).map(|_| None),
    };
    out.signature = match verdict {
        Ok(Some(key_id)) if trusted.is_some() => Signature::Trusted { key_id },
        Ok(Some(key_id)) => {
            out.notes.push(format!(
                "signed by key {key_id}, which the bundle itself names: whose it is, only --trusted-key can tell"
            ));
            Signature::Valid { key_id }
        }
        Ok(None) => {
            out.notes.push("there is a signature, and no key to check it with: --trusted-key".into());
            Signature::Unchecked
        }
        Err(e) => {
            out.findings.push(fault(e.code(), e.message().to_owned()));
            Signature::Invalid
        }
    };
}

/// The signature of all files. A manifest that names its key is one of ours, and so is the signature then, byte for byte.
fn check_model_signature(bundle: &Bundle, trusted: Option<&model_signing::PublicKey>, out: &mut Checked) {
    let fault = |code, found: String| Finding::new(code, MODEL_SIGNATURE_FILE, "a valid signature of the files", found);
    let stated =
        out.manifest.as_ref().and_then(|m| m.document.get("model_signature")).filter(|s| !s.is_null()).cloned();
    let named = stated.as_ref().map(|s| {
        let text = s.get("public_key").and_then(Value::as_str).unwrap_or_default();
        model_signing::PublicKey::from_pem(text)
    });
    let named = match named.transpose() {
        Ok(named) => named,
        Err(_) => {
            out.findings.push(fault(Code::SignatureInvalid, "a manifest that names no valid key".into()));
            None
        }
    };
    let Some(text) = bundle.files.get(MODEL_SIGNATURE_FILE) else {
        if trusted.is_some() {
            out.findings.push(fault(Code::SignatureMissing, "none".into()));
        } else if stated.is_some() {
            out.findings.push(fault(Code::SignatureMissing, "none, though the manifest names a key".into()));
        }
        return;
    };
    let key = trusted.or(named.as_ref());
    let signed = match model_signing::verify(key, text) {
        Ok(signed) => signed,
        Err(e) => {
            out.findings.push(fault(e.code(), e.message().to_owned()));
            out.model_signature = Signature::Invalid;
            return;
        }
    };
    let before = out.findings.len();
    if named.is_some() && !signed.is_ours {
        out.findings.push(fault(Code::SignatureInvalid, "another form than ptplus writes".into()));
    }
    let is_ignored = |path: &str| {
        let is_below = |folder: &String| path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'));
        path == MODEL_SIGNATURE_FILE || is_for_people(path) || signed.ignored.iter().any(|i| i == path || is_below(i))
    };
    let unsigned = bundle.files.keys().filter(|path| !signed.files.contains_key(*path) && !is_ignored(path));
    let mut differ: Vec<&String> = unsigned.collect();
    let listed = out.manifest.as_ref().map(|m| &m.files);
    differ.extend(
        signed
            .files
            .iter()
            .filter(|(path, digest)| {
                // What the manifest lists was held against it already.
                let found = match listed.and_then(|files| files.get(*path)) {
                    Some(entry) => Some(entry.sha256.clone()),
                    None => bundle.files.get(*path).map(file_sha256),
                };
                found.as_ref() != Some(digest)
            })
            .map(|(path, _)| path),
    );
    for path in differ {
        let expected = "a file that model.sig signs, as it signs it";
        out.findings.push(Finding::new(Code::SignatureInvalid, path, expected, "another"));
    }
    out.model_signature = match key.and_then(|key| key.hint().ok()) {
        _ if out.findings.len() > before => Signature::Invalid,
        None => {
            out.notes.push("there is a model.sig, and no key to check it with: --trusted-key".into());
            Signature::Unchecked
        }
        Some(hint) if trusted.is_some() => Signature::Trusted { key_id: hint[..16].to_owned() },
        Some(hint) => {
            let key_id = hint[..16].to_owned();
            out.notes.push(format!(
                "model.sig is by key {key_id}, which the bundle itself names: whose it is, only --trusted-key can tell"
            ));
            Signature::Valid { key_id }
        }
    };
}
