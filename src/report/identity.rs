//! Which adapter, base and probe a page is about: digests that do not depend on names and places of files.

use super::page::{Section, Table};
use super::{base_text, name};
use crate::base::BaseModel;
use crate::base::fingerprint::Fingerprint;
use crate::bundle::digest::AdapterDigest;
use crate::error::Result;
use crate::format::bundle::check::file_sha256;
use crate::format::mmap::map_file;
use crate::validate::Validated;
use crate::verify::probe::Probe;

/// What is to be named, as far as it is there.
pub(super) struct Subjects<'a> {
    /// Each with what it is: `adapter`, `reference`.
    pub adapters: &'a [(&'a str, &'a Validated)],
    pub base: Option<&'a BaseModel>,
    pub probe: Option<&'a Probe>,
    /// Digest of a conversion's source.
    pub source_sha256: Option<&'a str>,
}

/// What cannot be read is said in a note.
pub(super) fn identity(s: &Subjects<'_>, notes: &mut Vec<String>) -> Section {
    let mut rows = Vec::new();
    let mut row = |what: String, value: String| rows.push(vec![what, value]);
    for (what, adapter) in s.adapters {
        let digest = AdapterDigest::of(adapter.adapter());
        row(format!("{what}: canonical"), digest.canonical);
        row(format!("{what}: values"), digest.values);
    }
    if let Some(digest) = s.source_sha256 {
        row("digest of the source".into(), digest.into());
    }
    let mut noted = |what: &str, value: Result<String>| value.map_err(|e| notes.push(format!("{what}: {e}"))).ok();
    if let Some(base) = s.base {
        row("base".into(), base_text(base));
        if let Some((_, adapter)) = s.adapters.first() {
            let fingerprint = Fingerprint::of(base, &adapter.adapter().touched()).map(|f| f.to_string());
            noted("the base's fingerprint", fingerprint).into_iter().for_each(|f| row("base: fingerprint".into(), f));
        }
    }
    if let Some(probe) = s.probe {
        row("probe".into(), name(&probe.path));
        let digest = map_file(&probe.path).map(|bytes| file_sha256(&bytes));
        noted("the probe's SHA-256", digest).into_iter().for_each(|d| row("probe: SHA-256".into(), d));
    }
    let caption = "Digests of adapters are those of ptplus hash, the base's fingerprint that of its bundle";
    Section {
        title: "Identity",
        table: Some(Table { caption: caption.into(), header: vec!["what", "value"], n_text: 2, rows }),
        ..Section::default()
    }
}
