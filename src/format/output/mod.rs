//! Outputs that appear whole or not at all: everything is written to a temporary sibling, synced, and renamed.
//!
//! A temporary is called `.TARGET.ptplus-tmp-XXXXXXXX` and locked by the process that writes it. It is removed when its
//! output is dropped, by [`discard_all`] (for Ctrl-C), and, after a kill, by the next run that writes the same target:
//! a temporary that nobody holds a lock on belongs to a dead process.

mod file;
mod folder;
mod temporary;

pub use file::OutputFile;
pub use folder::{OutputFolder, Replace};
pub use temporary::discard_all;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use crate::error::{Code, Error, Result};

/// How much is written before a sync in between. Enough for a disk to be busy with, and a small part of what takes time.
const SYNC_BYTES: u64 = 16 << 20;

/// What happens where the output exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// It is an error.
    Never,
    /// It is replaced.
    Force,
}

/// A file being written, still under its temporary name. Writing needs no exclusive access: threads may write
/// different ranges at once.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    /// Where the bytes are now.
    staged: PathBuf,
    /// What messages call it.
    target: PathBuf,
}

impl StagedFile {
    /// Sets the length; bytes never written are zero.
    ///
    /// # Errors
    ///
    /// [`Code::Io`].
    pub fn set_len(&self, len_bytes: u64) -> Result<()> {
        self.file.set_len(len_bytes).map_err(|e| Error::io(&self.target, "cannot set the length", e))
    }

    /// Writes all of `bytes` at `file_offset`.
    ///
    /// # Errors
    ///
    /// [`Code::Io`], with the offset.
    pub fn write_all_at(&self, file_offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, file_offset)
            .map_err(|e| Error::io(&self.target, "cannot write", e).at(file_offset))
    }

    /// Does `write`, which calls its argument with the lengths of what it has written, while another thread syncs what there is: the
    /// sync before the rename then waits for the last of it only.
    ///
    /// # Errors
    ///
    /// Those of `write`; [`Code::Io`] where a sync fails, which no later sync would say again.
    pub(crate) fn sync_during<T>(&self, write: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<T>) -> Result<T> {
        let (go, wait) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            let syncing = scope.spawn(move || wait.into_iter().try_for_each(|()| self.sync()));
            let n_written = AtomicU64::new(0);
            let result = write(&|n| {
                let before = n_written.fetch_add(n, Ordering::Relaxed);
                if before / SYNC_BYTES < (before + n) / SYNC_BYTES {
                    // Full where a sync is yet to begin, which will see these bytes too.
                    let _ = go.try_send(());
                }
            });
            drop(go);
            let synced = syncing.join().expect("syncing does not panic");
            let done = result?;
            synced.map(|()| done)
        })
    }

    /// Where the bytes can be read before they are committed.
    pub fn staged_path(&self) -> &Path {
        &self.staged
    }

    /// Where the output will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.target, "cannot sync", e))
    }
}

/// A folder for files on the way to an output: beside it, so that they lie on the same disk, and gone when dropped, on
/// Ctrl-C, and, after a kill, with the next run that writes the same output.
#[derive(Debug)]
pub struct Scratch(temporary::Temporary);

impl Scratch {
    /// An empty folder beside `target`.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`] where the parent folder is absent; [`Code::Io`].
    pub fn beside(target: &Path) -> Result<Scratch> {
        let (parent, name) = parent_and_name(target)?;
        temporary::Temporary::folder(&parent, &name).map(Scratch)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// `path` without links and detours, as far as it exists.
pub fn resolved(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => resolved(Path::new(".")).join(name),
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Device and inode: equal for the same file under any name, link or hard link.
type Identity = (u64, u64);

/// `None` where nothing exists (also behind a dangling link).
fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Refuses a target that is one of the inputs under whatever name.
fn refuse_input(target: &Path, inputs: &[(Identity, PathBuf)]) -> Result<()> {
    let Some(found) = identity(target) else { return Ok(()) };
    match inputs.iter().find(|i| i.0 == found) {
        Some((_, input)) => {
            let message = format!("the output is the same as the input {}", input.display());
            Err(Error::new(Code::OutputIsInput, message).file(target))
        }
        None => Ok(()),
    }
}

fn identities(inputs: &[&Path]) -> Vec<(Identity, PathBuf)> {
    inputs.iter().filter_map(|p| Some((identity(p)?, (*p).to_owned()))).collect()
}

/// The folder that holds `target` and the last part of its path.
fn parent_and_name(target: &Path) -> Result<(PathBuf, String)> {
    if target == Path::new("-") {
        let message = "expected a path, found -: outputs are not written to stdout (./- is a file of that name)";
        return Err(Error::new(Code::Usage, message).file(target));
    }
    let name = target
        .file_name()
        .ok_or_else(|| Error::new(Code::Usage, "expected an output with a name").file(target))?
        .to_string_lossy()
        .into_owned();
    let parent = match target.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    };
    match std::fs::metadata(&parent) {
        Ok(m) if m.is_dir() => Ok((parent, name)),
        Ok(_) => Err(Error::new(Code::NotFound, "expected a folder to write into, found a file").file(&parent)),
        Err(e) => Err(Error::io(&parent, "cannot write into this folder", e)),
    }
}

fn exists_error(target: &Path, what: &str) -> Error {
    Error::new(Code::OutputExists, format!("{what}; --force would replace it")).file(target)
}

/// Makes renames in `folder` durable.
fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|f| f.sync_all()) {
        // Some file systems cannot sync a folder, and say so with EINVAL.
        Err(e) if e.kind() != std::io::ErrorKind::InvalidInput => Err(Error::io(folder, "cannot sync", e)),
        _ => Ok(()),
    }
}
