//! A folder for files that programs go on reading after `ptplus` has stepped aside: its owner's alone, and each file
//! under the digest of its bytes, so that one that is there can be used again and is never changed under a program.
//!
//! ```text
//!   $XDG_CACHE_HOME/ptplus/graft/SHA256/libptplus_graft.so
//!   $XDG_CACHE_HOME/ptplus/adapters/SHA256/NAME.gguf
//! ```
//! Nothing is ever removed: a running program may need it. The whole folder can go when none runs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::{Code, Error, Result};
use crate::format::mmap::map_file;
use crate::format::output::{OutputFile, Overwrite, Scratch};

/// Such a folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Why it is not where it should be.
    note: Option<String>,
}

impl Store {
    /// In the user's folder for caches; where there is none that can be used, in the one for temporary files.
    ///
    /// # Errors
    ///
    /// [`Code::Io`] where neither can be used.
    pub fn open() -> Result<Store> {
        let variable = |name: &str| std::env::var_os(name);
        Store::open_in(variable("XDG_CACHE_HOME"), variable("HOME"), &std::env::temp_dir())
    }

    fn open_in(cache: Option<OsString>, home: Option<OsString>, temporary: &Path) -> Result<Store> {
        // The standard says to ignore relative paths.
        let stated = |value: Option<OsString>| value.map(PathBuf::from).filter(|p| p.is_absolute());
        let wanted = stated(cache).or_else(|| stated(home).map(|h| h.join(".cache"))).map(|p| p.join("ptplus"));
        let why = match wanted {
            None => "neither XDG_CACHE_HOME nor HOME names a folder".to_owned(),
            Some(folder) => match usable(&folder) {
                Ok(()) => return Ok(Store { folder, note: None }),
                Err(e) => e.to_string(),
            },
        };
        let uid = rustix::process::geteuid().as_raw();
        let shared = temporary.join(format!("ptplus-{uid}"));
        let folder = match usable(&shared) {
            Ok(()) => shared,
            // Anybody can take that name; a fresh one is nobody's.
            Err(_) => {
                let fresh = tempfile::Builder::new().prefix("ptplus-").tempdir_in(temporary);
                let fresh = fresh.map_err(|e| Error::io(temporary, "cannot make a folder here", e))?.keep();
                usable(&fresh)?;
                fresh
            }
        };
        let note = Some(format!("{why}: files for the program are in {}", folder.display()));
        Ok(Store { folder, note })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Why it is in the folder for temporary files, if it is.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// A folder for work on a file that is to be put here; gone with the value.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        Scratch::beside(&self.folder.join("work"))
    }

    /// The file with these bytes, called `name`, below `shelf`: written unless it is there, whole, and the user's own.
    ///
    /// # Errors
    ///
    /// [`Code::Io`]; [`Code::NotAFile`] where something else has the file's name.
    pub fn put(&self, shelf: &str, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let folder = self.folder.join(shelf).join(digest);
        own_folder(&folder)?;
        let path = folder.join(name);
        if !holds(&path, bytes) {
            let out = OutputFile::create_private(&path, Overwrite::Force, &[])?;
            out.write_all_at(0, bytes)?;
            out.commit()?;
        }
        Ok(path)
    }
}

/// Whether a plain file of ours is there with just these bytes, and nobody else can change it.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let is_ours = std::fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.uid() == rustix::process::geteuid().as_raw() && m.mode() & 0o022 == 0);
    is_ours && map_file(path).is_ok_and(|found| found[..] == *bytes)
}

/// Makes the folder, or checks it, and that libraries in it can be loaded.
fn usable(folder: &Path) -> Result<()> {
    let wrong = |message: &str| Err(Error::new(Code::Io, message).file(folder));
    // The loader splits its list there, and replaces $ORIGIN and its like.
    if folder.as_os_str().as_bytes().iter().any(|b| matches!(b, b':' | b' ' | b'$') || b.is_ascii_control()) {
        return wrong("expected a path that LD_PRELOAD can state, found a colon, space, $ or control character in it");
    }
    own_folder(folder)?;
    let system =
        rustix::fs::statvfs(folder).map_err(|e| Error::io(folder, "cannot ask for its file system", e.into()))?;
    if system.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
        return wrong("expected a file system that libraries can be loaded from, found one mounted noexec");
    }
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_err() {
        return wrong("expected a folder that can be written to");
    }
    Ok(())
}

/// Makes the folder for its owner alone; one that is there must be the user's, and is closed to others.
fn own_folder(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Error::io(folder, "cannot make the folder", e))?;
    let meta = std::fs::metadata(folder).map_err(|e| Error::io(folder, "cannot open the folder", e))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::new(Code::Io, "expected a folder of this user, found another's").file(folder));
    }
    if meta.mode() & 0o077 != 0 {
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, closed).map_err(|e| Error::io(folder, "cannot close it to others", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(temp: &Path) -> Store {
        Store::open_in(Some(temp.join("cache").into()), None, &temp.join("tmp")).unwrap()
    }

    #[test]
    fn a_file_is_written_once_and_again_when_it_is_not_what_it_should_be() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(temp.path());
        assert_eq!((store.folder(), store.note()), (&*temp.path().join("cache/ptplus"), None));
        let path = store.put("graft", "x.so", b"bytes").unwrap();
        let inode = |p: &Path| std::fs::symlink_metadata(p).unwrap().ino();
        let first = inode(&path);
        assert_eq!(store.put("graft", "x.so", b"bytes").unwrap(), path);
        assert_eq!(inode(&path), first);
        for folder in [store.folder(), path.parent().unwrap()] {
            assert_eq!(std::fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let other = store.put("graft", "x.so", b"other").unwrap();
        assert_ne!(other, path);

        // Changed, open to others, a link to what others can change: none is used.
        std::fs::write(&path, b"Bytes").unwrap();
        assert_eq!(store.put("graft", "x.so", b"bytes").unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        store.put("graft", "x.so", b"bytes").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let elsewhere = temp.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        store.put("graft", "x.so", b"bytes").unwrap();
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file() && elsewhere.is_file());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(store.put("graft", "x.so", b"bytes").unwrap_err().code(), Code::NotAFile);
    }

    #[test]
    fn without_a_folder_for_caches_there_is_one_for_temporary_files() {
        let temp = tempfile::tempdir().unwrap();
        let tmp = temp.path().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        std::fs::write(temp.path().join("file"), b"").unwrap();
        let in_tmp = tmp.join(format!("ptplus-{}", rustix::process::geteuid().as_raw()));
        let homes = [None, Some("relative".into()), Some("".into()), Some(temp.path().join("file").into())];
        for home in
            homes.into_iter().chain([Some(temp.path().join("a b").into()), Some(temp.path().join("a:b").into())])
        {
            let store = Store::open_in(None, home.clone(), &tmp).unwrap();
            assert_eq!(store.folder(), in_tmp, "{home:?}");
            assert!(store.note().is_some_and(|n| n.contains("ptplus-")), "{home:?}");
        }
        // Its name is taken by something that is no folder of ours.
        std::fs::remove_dir_all(&in_tmp).unwrap();
        std::fs::write(&in_tmp, b"").unwrap();
        let store = Store::open_in(None, None, &tmp).unwrap();
        assert!(store.folder() != in_tmp && store.folder().starts_with(&tmp));
        assert_eq!(std::fs::metadata(store.folder()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn home_counts_where_nothing_names_a_folder_for_caches() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open_in(Some("relative".into()), Some(temp.path().into()), temp.path()).unwrap();
        assert_eq!(store.folder(), temp.path().join(".cache/ptplus"));
    }
}
