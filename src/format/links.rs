//! Links among the files of one model. A name in a file must not lead to other files of the machine.

use std::path::{Path, PathBuf};

/// Where `path`, a file of `folder`, leads out of it, if it does. A dangling link does not: it fails to open, with a
/// message of its own.
pub(super) fn target_outside(folder: &Path, path: &Path) -> Option<PathBuf> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
    if !is_link {
        return None;
    }
    let (home, target) = (folder.canonicalize().ok()?, path.canonicalize().ok()?);
    let allowed = target.parent() == Some(&*home) || target.parent() == hub_blobs(&home).as_deref();
    (!allowed).then_some(target)
}

/// Whether `path` is a link by which the Hugging Face cache keeps a file of the snapshot `folder`.
pub(crate) fn is_in_hub_cache(folder: &Path, path: &Path) -> bool {
    let (Ok(home), Ok(target)) = (folder.canonicalize(), path.canonicalize()) else { return false };
    target.is_file() && target.parent() == hub_blobs(&home).as_deref() && target.parent().is_some()
}

/// The Hugging Face cache keeps the files of `models--X--Y/snapshots/REVISION` as links into `models--X--Y/blobs`.
fn hub_blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| snapshots.with_file_name("blobs"))
}
