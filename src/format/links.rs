//! Links among the files of one model. A name in a file must not lead to other files of the machine.

use std::path::{Path, PathBuf};

use super::hub;
use crate::error::{Code, Error};

/// Where `path`, a file of `folder`, leads out of it, if it does. A dangling link does not: it fails to open, with a
/// message of its own. Nor does one to a file of the same name elsewhere: so people have one copy of a large model in
/// several folders, and a name in a file cannot choose which other file is read.
pub(super) fn target_outside(folder: &Path, path: &Path) -> Option<PathBuf> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
    if !is_link {
        return None;
    }
    let (home, target) = (folder.canonicalize().ok()?, path.canonicalize().ok()?);
    let allowed = target.parent() == Some(&*home)
        || target.parent() == hub::blobs(&home).as_deref()
        || target.file_name() == path.file_name();
    (!allowed).then_some(target)
}

/// Whether `path` is a link by which the Hugging Face cache keeps a file of the snapshot `folder`.
pub(crate) fn is_in_hub_cache(folder: &Path, path: &Path) -> bool {
    let (Ok(home), Ok(target)) = (folder.canonicalize(), path.canonicalize()) else { return false };
    target.is_file() && target.parent() == hub::blobs(&home).as_deref() && target.parent().is_some()
}

/// A file of that name, or a link that should lead to one: what is wrong with it is an error when it is read.
pub(crate) fn is_present(file: &Path) -> bool {
    file.symlink_metadata().is_ok_and(|m| !m.is_dir())
}

/// The error of opening `path`, which says so where a link on the way leads nowhere.
pub(crate) fn not_opened(path: &Path, what: &str, e: std::io::Error) -> Error {
    let broken = || path.ancestors().find(|p| p.is_symlink() && !p.exists());
    match (e.kind(), broken()) {
        (std::io::ErrorKind::NotFound, Some(link)) => {
            let target = std::fs::read_link(link).unwrap_or_default();
            let message = format!("{what}: a link to {}, where nothing is", target.display());
            Error::new(Code::NotFound, message).file(link).hints(hub::about_broken_link(link)).caused_by(e)
        }
        _ => Error::io(path, what, e),
    }
}
