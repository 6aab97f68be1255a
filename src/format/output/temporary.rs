//! Temporary files and folders: created under a lock, known to [`discard_all`], removed unless kept.

use std::collections::BTreeSet;
use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Overwrite;
use crate::error::{Code, Error, Result};

const MARK: &str = ".ptplus-tmp-";
const RANDOM_CHARS: usize = 8;
/// Longest name on common file systems, in bytes.
const MAX_FILE_NAME: usize = 255;

/// The temporaries of this process.
#[derive(Default)]
struct Registry {
    live: BTreeSet<PathBuf>,
    /// Set by [`discard_all`]: the process is about to end and makes no more temporaries.
    closed: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { live: BTreeSet::new(), closed: false });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    fn add(&mut self, path: &Path) -> Result<()> {
        if self.closed {
            return Err(interrupted());
        }
        self.live.insert(path.to_owned());
        Ok(())
    }

    fn discard_all(&mut self) {
        self.closed = true;
        for path in std::mem::take(&mut self.live) {
            remove(&path);
        }
    }
}

/// Removes every temporary of this process and lets it make no more: what a Ctrl-C handler calls before it ends the
/// process. A commit that is under way is finished first; later ones fail with [`Code::Interrupted`].
pub fn discard_all() {
    registry().discard_all();
}

fn interrupted() -> Error {
    Error::new(Code::Interrupted, "interrupted")
}

/// A locked temporary file or folder; removed when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Temporary {
    /// An empty file for `target_name` in `folder`, of this mode less the umask, open for writing.
    pub(super) fn file(folder: &Path, target_name: &str, mode: u32) -> Result<(Self, File)> {
        create(folder, target_name, |builder| {
            let (file, path) = builder.permissions(Permissions::from_mode(mode)).tempfile_in(folder)?.keep()?;
            Ok((path, file.try_clone()?, file))
        })
    }

    /// An empty folder, likewise.
    pub(super) fn folder(folder: &Path, target_name: &str) -> Result<Self> {
        let (temporary, ()) = create(folder, target_name, |builder| {
            let path = builder.permissions(Permissions::from_mode(0o777)).tempdir_in(folder)?.keep();
            let lock = File::open(&path)?;
            Ok((path, lock, ()))
        })?;
        Ok(temporary)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames a temporary file to `target`.
    pub(super) fn keep_file(self, target: &Path, overwrite: Overwrite) -> Result<(), PersistError> {
        self.keep(|path| rename_file(path, target, overwrite))
    }

    /// Renames a temporary folder to `target`, which is absent or an empty folder.
    pub(super) fn keep_folder(self, target: &Path) -> Result<(), PersistError> {
        self.keep(|path| std::fs::rename(path, target))
    }

    /// Gives a temporary folder the name of `target`, an existing folder, which is removed with all that it holds.
    pub(super) fn exchange_folder(self, target: &Path) -> Result<(), PersistError> {
        let registry = registry();
        if !registry.live.contains(&self.path) {
            return Err(PersistError::Interrupted);
        }
        exchange(&self.path, target).map_err(PersistError::Io)
        // What lies at the temporary path now is the old folder, and goes when this is dropped. After a kill it has no
        // lock, and goes with the next run.
    }

    /// Runs `act` while no [`discard_all`] can come between; after one, fails with [`Code::Interrupted`].
    pub(super) fn while_live<T>(&self, act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let registry = registry();
        if registry.live.contains(&self.path) { act(&self.path) } else { Err(interrupted()) }
    }

    /// Runs `rename` while no [`discard_all`] can come between.
    fn keep(self, rename: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), PersistError> {
        let mut registry = registry();
        if !registry.live.contains(&self.path) {
            return Err(PersistError::Interrupted);
        }
        rename(&self.path).map_err(PersistError::Io)?;
        registry.live.remove(&self.path);
        Ok(())
    }
}

/// Why a temporary could not be put in its place.
pub(super) enum PersistError {
    Interrupted,
    Io(std::io::Error),
}

impl PersistError {
    pub(super) fn at(self, target: &Path) -> Error {
        match self {
            PersistError::Interrupted => interrupted(),
            PersistError::Io(e) => Error::io(target, "cannot put the output in its place", e),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Committed ones are no longer listed.
        let mut registry = registry();
        if registry.live.remove(&self.path) {
            remove(&self.path);
        }
    }
}

/// Renames a file; without [`Overwrite::Force`] atomically fails where `to` exists.
pub(super) fn rename_file(from: &Path, to: &Path, overwrite: Overwrite) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    if overwrite == Overwrite::Force {
        return std::fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without this flag: a hard link never replaces either.
        Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other.map_err(Into::into),
    }
}

fn exchange(new: &Path, target: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        // File systems without this flag: two renames, between which the target is absent.
        Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => {
            let mut aside = new.as_os_str().to_owned();
            aside.push("-old");
            std::fs::rename(target, &aside)?;
            if let Err(e) = std::fs::rename(new, target) {
                std::fs::rename(&aside, target)?;
                return Err(e);
            }
            std::fs::rename(&aside, new)
        }
        other => other.map_err(Into::into),
    }
}

/// `.TARGET.ptplus-tmp-`, the target's name cut so that the whole fits a file name.
fn prefix(target_name: &str) -> String {
    let room = MAX_FILE_NAME - RANDOM_CHARS - MARK.len() - 1;
    let cut = (0..=room.min(target_name.len())).rev().find(|i| target_name.is_char_boundary(*i)).unwrap_or(0);
    format!(".{}{MARK}", &target_name[..cut])
}

/// Whether a folder entry is a temporary of any target.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(MARK)
}

fn create<T>(
    folder: &Path,
    target_name: &str,
    make: impl Fn(&mut tempfile::Builder) -> std::io::Result<(PathBuf, File, T)>,
) -> Result<(Temporary, T)> {
    let prefix = prefix(target_name);
    remove_stale(folder, &prefix);
    let failed = |e| Error::io(folder, "cannot write into this folder", without_path(e));
    loop {
        // Creating and listing happen under one lock, so that an interrupt finds either both or neither.
        let mut registry = registry();
        if registry.closed {
            return Err(interrupted());
        }
        let (path, lock, made) =
            make(tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM_CHARS)).map_err(failed)?;
        registry.add(&path)?;
        drop(registry);
        // Where locks are not supported (some network file systems), nobody else can take one either.
        let _ = lock.try_lock();
        let temporary = Temporary { path, _lock: lock };
        // Between creation and lock another process may have taken it for stale.
        if same_file(&temporary.path, &temporary._lock) {
            return Ok((temporary, made));
        }
    }
}

/// The error of the system alone: `tempfile` adds the name of the temporary, which nobody knows, and gives the cause in
/// no other way.
fn without_path(e: std::io::Error) -> std::io::Error {
    let text = e.to_string();
    match text.split_once(" at path ") {
        Some((cause, _)) => std::io::Error::new(e.kind(), cause),
        None => e,
    }
}

fn same_file(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Removes temporaries of the same target that no living process holds. What cannot be examined is left alone.
fn remove_stale(folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|n| n.strip_prefix(prefix));
        let ours = random.is_some_and(|r| r.len() == RANDOM_CHARS && r.bytes().all(|b| b.is_ascii_alphanumeric()));
        let is_link_or_special = entry.file_type().map_or(true, |t| !t.is_file() && !t.is_dir());
        if !ours || is_link_or_special {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => remove(&path),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

/// Removes a file or folder as far as possible; there is nobody to report to.
fn remove(path: &Path) {
    if std::fs::remove_file(path).is_err() {
        let _ = std::fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_removes_what_is_listed_and_stops_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("f"), dir.path().join("d"));
        std::fs::write(&file, b"x").unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("inner"), b"x").unwrap();
        let mut registry = Registry::default();
        registry.add(&file).unwrap();
        registry.add(&folder).unwrap();
        registry.discard_all();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        assert_eq!(registry.add(&file).unwrap_err().code(), Code::Interrupted);
    }

    #[test]
    fn only_unlocked_temporaries_of_the_same_target_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let stale = [".out.ptplus-tmp-AAAAAAAA", ".out.ptplus-tmp-BBBBBBBB"];
        std::fs::write(dir.path().join(stale[0]), b"x").unwrap();
        std::fs::create_dir(dir.path().join(stale[1])).unwrap();
        std::fs::write(dir.path().join(stale[1]).join("inner"), b"x").unwrap();
        let others = [".out2.ptplus-tmp-AAAAAAAA", ".out.ptplus-tmp-x", ".out.ptplus-tmp-../AAAAA", "out"];
        for other in others.iter().filter(|o| !o.contains('/')) {
            std::fs::write(dir.path().join(other), b"x").unwrap();
        }
        let (live, _file) = Temporary::file(dir.path(), "out", 0o666).unwrap();
        let (second, _file) = Temporary::file(dir.path(), "out", 0o666).unwrap();
        assert!(live.path().exists() && second.path().exists(), "a live one was taken for stale");
        for stale in stale {
            assert!(!dir.path().join(stale).exists());
        }
        for other in others.iter().filter(|o| !o.contains('/')) {
            assert!(dir.path().join(other).exists(), "{other}");
        }
        drop((live, second));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let name = "é".repeat(127);
        assert!(prefix(&name).len() + RANDOM_CHARS <= MAX_FILE_NAME);
        assert!(prefix(&name).starts_with(".éé"));
        assert_eq!(prefix("a.gguf"), ".a.gguf.ptplus-tmp-");
    }
}
