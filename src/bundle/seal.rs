//! Writes a bundle's manifest anew after its owner has changed what lies beside the adapter and its proof. Those two are never sealed
//! again: a damaged adapter would be whole then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::claims;
use crate::digest::hex;
use crate::error::{Code, Error, Result};
use crate::format::bundle::check::file_sha256;
use crate::format::bundle::manifest::{self, FileEntry, Manifest};
use crate::format::bundle::signature::Signer;
use crate::format::bundle::tar::{self, Strictness};
use crate::format::bundle::{
    Bundle, MANIFEST_FILE, MODEL_SIGNATURE_FILE, OWN_FILES, PROVENANCE_FILE, SIGNATURE_FILE, is_for_people,
    model_signing,
};
use crate::format::output::{OutputFile, Overwrite};
use crate::import::source::{CONFIG_FILE, WEIGHTS_FILE};
use crate::tensor::Bytes;

/// Who signs.
#[derive(Clone, Copy, Default)]
pub struct Signers<'a> {
    /// The manifest.
    pub manifest: Option<&'a Signer>,
    /// All files, for model signing.
    pub model: Option<&'a model_signing::Signer>,
}

/// What became of a file since the bundle was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It has other bytes.
    Changed,
    /// It is gone.
    Removed,
}

/// What was sealed.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Sealed {
    /// Each file that is not as it was.
    pub changes: BTreeMap<String, Change>,
    /// Files of the bundle.
    pub n_files: usize,
    /// Signatures that were there and are no more.
    pub dropped: Vec<&'static str>,
    /// Signatures that are there now.
    pub signed: Vec<&'static str>,
}

/// Seals the bundle at `path`, in place. Signatures that are there must be made anew by `signers`, or be given up with
/// `drops_signatures`.
///
/// # Errors
///
/// [`Code::Usage`] for a signed bundle where nothing says what is to become of its signatures; [`Code::BundleChanged`] where the
/// adapter, a report or the provenance is not as it was sealed, or where the manifest or a file beside would not be true of the adapter;
/// those of reading a bundle.
pub fn seal(path: &Path, signers: Signers<'_>, drops_signatures: bool) -> Result<Sealed> {
    let bundle = Bundle::open_as(path, Strictness::Unpack)?;
    if let Some(finding) = bundle.findings.first() {
        return Err(finding.to_error().file(path));
    }
    let missing =
        || Error::new(Code::BundleMissing, "expected a manifest, found none: `ptplus pack` makes one").file(path);
    let old = Manifest::parse(bundle.files.get(MANIFEST_FILE).ok_or_else(missing)?).map_err(|e| e.file(path))?;
    let dropped = given_up(&bundle, &old, signers);
    if !dropped.is_empty() && !drops_signatures {
        let message = format!(
            "expected a key for a new signature, or --unsigned: the bundle has {}, which no change leaves valid",
            dropped.join(" and ")
        );
        return Err(Error::new(Code::Usage, message).field(if dropped[0] == SIGNATURE_FILE {
            "--sign"
        } else {
            "--sign-oms"
        }));
    }
    let contents: Vec<(&String, &Bytes)> =
        bundle.files.iter().filter(|(p, _)| !OWN_FILES.contains(&p.as_str())).collect();
    let entry = |(path, bytes): (&String, &Bytes)| {
        (path.clone(), FileEntry { size: bytes.len() as u64, sha256: file_sha256(bytes) })
    };
    let entries: BTreeMap<String, FileEntry> =
        contents.into_par_iter().map(entry).collect::<Vec<_>>().into_iter().collect();
    let changes = changes(&old, &entries);
    if let Some((file, _)) = changes.iter().find(|(file, _)| is_proved(file)) {
        let message = "expected it as it was sealed: a changed adapter, and what was found of it, are no matter of sealing; \
                       `ptplus pack` makes a new bundle, verified";
        return Err(Error::new(Code::BundleChanged, message).file(path).field(file));
    }
    let mut more = old.document.clone();
    for key in ["signature", "model_signature"] {
        more.remove(key);
    }
    let own = own_files(&entries, more, signers, &subject_of(&old.document))?;
    // Still true of the adapter?
    let sealed = Manifest::parse(&own[MANIFEST_FILE])?;
    if let Some(first) = claims::compare_contents(&sealed, &bundle)?.first() {
        return Err(first.to_error().file(path));
    }
    let signed: Vec<&'static str> =
        OWN_FILES.into_iter().filter(|f| *f != MANIFEST_FILE && own.contains_key(*f)).collect();
    let n_files = entries.len() + own.len();
    match bundle.is_tar {
        false => write_folder(path, &own)?,
        true => {
            let listed = bundle.files.iter().filter(|(p, _)| !OWN_FILES.contains(&p.as_str()));
            let mut all: BTreeMap<&str, Bytes> = listed.map(|(p, bytes)| (p.as_str(), bytes.clone())).collect();
            all.extend(own.iter().map(|(p, text)| (p.as_str(), Bytes::from(text.clone()))));
            let out = OutputFile::create(path, Overwrite::Force, &[])?;
            write_archive(&out, &all)?;
            out.commit()?;
        }
    }
    Ok(Sealed { changes, n_files, dropped, signed })
}

/// Signatures that are there, or that the manifest names, and that nobody makes anew.
fn given_up(bundle: &Bundle, old: &Manifest, signers: Signers<'_>) -> Vec<&'static str> {
    let stated = |key: &str| old.document.get(key).is_some_and(|v| !v.is_null());
    let has = |file: &str, key| bundle.files.contains_key(file) || stated(key);
    let mut out = Vec::new();
    if has(SIGNATURE_FILE, "signature") && signers.manifest.is_none() {
        out.push(SIGNATURE_FILE);
    }
    if has(MODEL_SIGNATURE_FILE, "model_signature") && signers.model.is_none() {
        out.push(MODEL_SIGNATURE_FILE);
    }
    out
}

fn changes(old: &Manifest, now: &BTreeMap<String, FileEntry>) -> BTreeMap<String, Change> {
    let before: BTreeMap<&String, &FileEntry> = old.files.iter().chain(&old.texts).collect();
    let paths: BTreeSet<&String> = before.keys().copied().chain(now.keys()).collect();
    let change = |path: &String| match (before.get(path), now.get(path)) {
        (Some(a), Some(b)) => (*a != b).then_some(Change::Changed),
        (None, _) => Some(Change::Added),
        (_, None) => Some(Change::Removed),
    };
    paths.into_iter().filter_map(|path| Some((path.clone(), change(path)?))).collect()
}

/// The adapter, and what was found of it when the bundle was made.
fn is_proved(path: &str) -> bool {
    let is_adapter = path.ends_with(".gguf") || path == WEIGHTS_FILE || path == CONFIG_FILE;
    is_adapter || path == PROVENANCE_FILE || path.starts_with("reports/")
}

/// What a signature of all files calls the bundle.
fn subject_of(document: &Map<String, Value>) -> String {
    let described = ["adapter", "model"].into_iter().find_map(|key| document.get(key));
    let name = described.and_then(|a| a.get("download_name")).and_then(Value::as_str).unwrap_or("bundle");
    subject(name).to_owned()
}

/// [`subject_of`], from the name suggested for a download.
pub(super) fn subject(download_name: &str) -> &str {
    download_name.strip_suffix(".gguf").unwrap_or(download_name)
}

/// The manifest of `entries` with what it says besides, and its signatures.
pub(super) fn own_files(
    entries: &BTreeMap<String, FileEntry>,
    mut more: Map<String, Value>,
    signers: Signers<'_>,
    subject: &str,
) -> Result<BTreeMap<String, Vec<u8>>> {
    if let Some(signer) = signers.manifest {
        more.insert("signature".into(), json!({ "public_key": signer.public_base64() }));
    }
    if let Some(signer) = signers.model {
        more.insert("model_signature".into(), json!({ "public_key": signer.public().to_pem()? }));
    }
    let manifest = manifest::write(entries, more);
    let mut out = BTreeMap::new();
    if let Some(signer) = signers.manifest {
        out.insert(SIGNATURE_FILE.to_owned(), signer.sign(&manifest)?.into_bytes());
    }
    out.insert(MANIFEST_FILE.to_owned(), manifest);
    if let Some(signer) = signers.model {
        let listed =
            entries.iter().filter(|(path, _)| !is_for_people(path)).map(|(path, e)| (path.clone(), e.sha256.clone()));
        let own = out.iter().map(|(path, text)| (path.clone(), hex(&Sha256::digest(text))));
        let files: BTreeMap<String, String> = listed.chain(own).collect();
        out.insert(MODEL_SIGNATURE_FILE.to_owned(), signer.sign(subject, &files)?.into_bytes());
    }
    Ok(out)
}

/// The new manifest last: until it is there, the old one says that its signatures are not right.
fn write_folder(folder: &Path, own: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let write = |file: &str, text: &[u8]| {
        let out = OutputFile::create(&folder.join(file), Overwrite::Force, &[])?;
        out.write_all_at(0, text)?;
        out.commit()
    };
    for file in [SIGNATURE_FILE, MODEL_SIGNATURE_FILE] {
        let path = folder.join(file);
        match own.get(file) {
            Some(text) => write(file, text)?,
            None if std::fs::symlink_metadata(&path).is_ok() => {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the old signature", e))?;
            }
            None => {}
        }
    }
    write(MANIFEST_FILE, &own[MANIFEST_FILE])
}

/// The archive of these files, as every bundle's is.
pub(super) fn write_archive(out: &OutputFile, files: &BTreeMap<&str, Bytes>) -> Result<()> {
    let sizes: Vec<(&str, u64)> = files.iter().map(|(path, bytes)| (*path, bytes.len() as u64)).collect();
    let (placed, len) = tar::plan(&sizes)?;
    out.set_len(len)?;
    for (entry, bytes) in placed.iter().zip(files.values()) {
        out.write_all_at(entry.header_offset, &entry.header)?;
        write_in_steps(out, entry.header_offset + entry.header.len() as u64, bytes)?;
    }
    Ok(())
}

/// Copies without filling the memory with pages of the source.
pub(super) fn write_in_steps(out: &OutputFile, offset: u64, bytes: &Bytes) -> Result<()> {
    const STEP: usize = 16 << 20;
    for start in (0..bytes.len()).step_by(STEP) {
        let part = bytes.slice(start..bytes.len().min(start + STEP)).expect("a range within the bytes");
        out.write_all_at(offset + start as u64, &part)?;
        if bytes.len() > STEP {
            part.release();
        }
    }
    Ok(())
}
