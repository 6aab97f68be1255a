//! Paths in JSON: a file name may be no UTF-8, and a report about it must not fail for that.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// The path, with U+FFFD for what is no UTF-8.
pub fn path<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}

/// A list of paths, likewise.
pub fn paths<S: Serializer>(paths: &[PathBuf], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(paths.iter().map(|p| p.to_string_lossy()))
}
