//! One output file.

use std::ops::Deref;
use std::path::Path;

use super::temporary::{PersistError, Temporary};
use super::{Overwrite, StagedFile, exists_error, identities, parent_and_name, refuse_input, sync_folder};
use crate::error::{Code, Error, Result};

/// What any program asks for; the umask takes away from it.
const USUAL_MODE: u32 = 0o666;
const PRIVATE_MODE: u32 = 0o600;

/// A file that appears at its target on [`commit`](Self::commit), whole, and otherwise not at all.
#[derive(Debug)]
pub struct OutputFile {
    staged: StagedFile,
    temporary: Temporary,
    overwrite: Overwrite,
}

impl OutputFile {
    /// Prepares to write `target`. `inputs` are the files that are being read.
    ///
    /// # Errors
    ///
    /// [`Code::OutputExists`]; [`Code::OutputIsInput`] where target and an input are the same file by any
    /// name, link or hard link; [`Code::NotAFile`]; [`Code::NotFound`] where the folder is absent; [`Code::Io`].
    pub fn create(target: &Path, overwrite: Overwrite, inputs: &[&Path]) -> Result<Self> {
        Self::create_with_mode(target, overwrite, inputs, USUAL_MODE)
    }

    /// [`create`](Self::create), for its owner alone from the first moment on.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create).
    pub fn create_private(target: &Path, overwrite: Overwrite, inputs: &[&Path]) -> Result<Self> {
        Self::create_with_mode(target, overwrite, inputs, PRIVATE_MODE)
    }

    fn create_with_mode(target: &Path, overwrite: Overwrite, inputs: &[&Path], mode: u32) -> Result<Self> {
        let (parent, name) = parent_and_name(target)?;
        refuse_input(target, &identities(inputs))?;
        // A link counts as existing even if it points nowhere; what it points to must not be a device.
        let exists = std::fs::symlink_metadata(target).is_ok();
        if std::fs::metadata(target).is_ok_and(|m| !m.is_file()) {
            let message = "expected a regular file or nothing, found a folder, pipe or device";
            return Err(Error::new(Code::NotAFile, message).file(target));
        }
        if exists && overwrite == Overwrite::Never {
            return Err(exists_error(target, "the output exists"));
        }
        let (temporary, file) = Temporary::file(&parent, &name, mode)?;
        let staged = StagedFile { file, staged: temporary.path().to_owned(), target: target.to_owned() };
        Ok(OutputFile { staged, temporary, overwrite })
    }

    /// Syncs the file and renames it into place. A link at the target is replaced, not followed.
    ///
    /// # Errors
    ///
    /// [`Code::OutputExists`] where something appeared at the target meanwhile, [`Code::Interrupted`],
    /// [`Code::Io`]. The temporary file is gone in any case.
    pub fn commit(self) -> Result<()> {
        let OutputFile { staged, temporary, overwrite } = self;
        staged.sync()?;
        temporary.keep_file(&staged.target, overwrite).map_err(|e| match e {
            PersistError::Io(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                exists_error(&staged.target, "the output appeared while it was being written")
            }
            e => e.at(&staged.target),
        })?;
        sync_folder(&parent_and_name(&staged.target)?.0)
    }
}

impl Deref for OutputFile {
    type Target = StagedFile;
    fn deref(&self) -> &StagedFile {
        &self.staged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_committed_file_has_the_bytes_and_the_usual_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.gguf");
        let out = OutputFile::create(&target, Overwrite::Never, &[]).unwrap();
        out.set_len(6).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| out.write_all_at(4, b"ef").unwrap());
            s.spawn(|| out.write_all_at(0, b"ab").unwrap());
        });
        assert_eq!(std::fs::read(out.staged_path()).unwrap(), b"ab\0\0ef");
        assert!(!target.exists());
        out.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"ab\0\0ef");
        assert_eq!(names(dir.path()), ["out.gguf"]);
        let plain = dir.path().join("plain");
        std::fs::write(&plain, b"").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&target), mode(&plain));
    }

    #[test]
    fn what_is_written_while_it_is_synced_is_whole_and_errors_come_through() {
        let dir = tempfile::tempdir().unwrap();
        let out = OutputFile::create(&dir.path().join("out"), Overwrite::Never, &[]).unwrap();
        let part = vec![7; 5 << 20];
        let n = out.sync_during(|written| {
            (0..10).try_for_each(|i| {
                out.write_all_at(i * part.len() as u64, &part)?;
                written(part.len() as u64);
                Ok(())
            })?;
            Ok(10)
        });
        assert_eq!(n.unwrap(), 10);
        let failed = || Error::new(Code::Io, "expected room, found none");
        assert_eq!(out.sync_during::<()>(|_| Err(failed())).unwrap_err().code(), Code::Io);
        out.commit().unwrap();
        assert!(std::fs::read(dir.path().join("out")).unwrap() == part.repeat(10));
    }

    #[test]
    fn a_dropped_file_leaves_nothing_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::write(&target, b"old").unwrap();
        let out = OutputFile::create(&target, Overwrite::Force, &[]).unwrap();
        out.write_all_at(0, b"new").unwrap();
        drop(out);
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn what_exists_is_replaced_only_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::write(&target, b"old").unwrap();
        assert_eq!(OutputFile::create(&target, Overwrite::Never, &[]).unwrap_err().code(), Code::OutputExists);
        let out = OutputFile::create(&target, Overwrite::Force, &[]).unwrap();
        out.write_all_at(0, b"new").unwrap();
        out.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");

        let dangling = dir.path().join("dangling");
        symlink("nowhere", &dangling).unwrap();
        assert_eq!(OutputFile::create(&dangling, Overwrite::Never, &[]).unwrap_err().code(), Code::OutputExists);

        let late = dir.path().join("late");
        let out = OutputFile::create(&late, Overwrite::Never, &[]).unwrap();
        std::fs::write(&late, b"somebody else's").unwrap();
        assert_eq!(out.commit().unwrap_err().code(), Code::OutputExists);
        assert_eq!(std::fs::read(&late).unwrap(), b"somebody else's");
        assert_eq!(names(dir.path()), ["dangling", "late", "out"]);
    }

    #[test]
    fn an_input_is_never_replaced_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::write(&input, b"data").unwrap();
        let (link, hard) = (dir.path().join("link"), dir.path().join("hard"));
        symlink(&input, &link).unwrap();
        std::fs::hard_link(&input, &hard).unwrap();
        let detour = dir.path().join(".").join("in");
        for target in [&input, &link, &hard, &detour] {
            for overwrite in [Overwrite::Never, Overwrite::Force] {
                let e = OutputFile::create(target, overwrite, &[&input]).unwrap_err();
                assert_eq!(e.code(), Code::OutputIsInput, "{}", target.display());
            }
        }
        assert_eq!(OutputFile::create(&input, Overwrite::Force, &[&link]).unwrap_err().code(), Code::OutputIsInput);
    }

    #[test]
    fn impossible_targets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let create = |p: &Path| OutputFile::create(p, Overwrite::Force, &[]).unwrap_err().code();
        assert_eq!(create(&dir.path().join("absent/out")), Code::NotFound);
        assert_eq!(create(dir.path()), Code::NotAFile);
        assert_eq!(create(Path::new("/dev/null")), Code::NotAFile);
        assert_eq!(create(Path::new("/")), Code::Usage);
        let long = dir.path().join("n".repeat(255));
        OutputFile::create(&long, Overwrite::Never, &[]).unwrap().commit().unwrap();
        assert!(long.exists());
    }
}
