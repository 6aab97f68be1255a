//! An output folder of several files.

mod moving;
mod strangers;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::temporary::{PersistError, Temporary};
use super::{StagedFile, exists_error, identities, parent_and_name, refuse_input, sync_folder};
use crate::error::{Code, Error, Result};
use crate::format::names::check_name;
use moving::{move_files, sync_all};
use strangers::{has_no_entry, refuse_strangers};

/// What happens where the output folder exists and is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replace {
    /// It is an error.
    Nothing,
    /// These files, relative to the folder, go, and the output takes their place. Anything else in the folder is an error:
    /// what this program did not write, it does not remove.
    Files(BTreeSet<String>),
}

/// A folder whose files appear together on [`commit`](Self::commit), and otherwise not at all.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    temporary: Temporary,
    place: Place,
    replace: Replace,
    /// Staged files, relative to the target, in the order of their creation.
    files: Mutex<Vec<String>>,
}

/// Where the files are staged, and so how they are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a sibling of the target, which takes the target's name in one step.
    Sibling,
    /// In the target, from where each file is renamed over its namesake: for one that cannot be replaced, since it is a
    /// mount point or the current folder.
    Inside,
}

impl OutputFolder {
    /// Prepares to fill `target`: an absent or empty folder or, with [`Replace::Files`], one that holds nothing but those
    /// files. `inputs` are the files and folders that are being read.
    ///
    /// # Errors
    ///
    /// [`Code::OutputExists`] for a file, for a folder that is not empty, and for one that holds anything else;
    /// [`Code::OutputIsInput`]; [`Code::NotFound`] where the parent folder is absent; [`Code::Io`].
    pub fn create(target: &Path, replace: Replace, inputs: &[&Path]) -> Result<Self> {
        let inputs = identities(inputs);
        refuse_input(target, &inputs)?;
        // A link to a folder is followed, and `.` gets its name.
        let is_folder = std::fs::metadata(target).is_ok_and(|m| m.is_dir());
        let target = if is_folder {
            target.canonicalize().map_err(|e| Error::io(target, "cannot resolve", e))?
        } else if std::fs::symlink_metadata(target).is_ok() {
            return Err(Error::new(Code::OutputExists, "expected a folder or nothing, found a file").file(target));
        } else {
            target.to_owned()
        };
        if is_folder {
            refuse_strangers(&target, &replace)?;
            if let Replace::Files(old) = &replace {
                old.iter().try_for_each(|relative| refuse_input(&target.join(relative), &inputs))?;
            }
        }
        let forced = matches!(replace, Replace::Files(_));
        let (place, temporary) = if !is_folder || (replaceable(&target) && (forced || has_no_entry(&target))) {
            let (parent, name) = parent_and_name(&target)?;
            (Place::Sibling, Temporary::folder(&parent, &name)?)
        } else {
            let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (Place::Inside, Temporary::folder(&target, &name)?)
        };
        Ok(OutputFolder { target, temporary, place, replace, files: Mutex::default() })
    }

    /// A new file in the folder; `relative` may have `/`-separated parts. Where a folder cannot be renamed as a whole,
    /// files appear in the order in which they were made: those that others depend on come last.
    ///
    /// # Errors
    ///
    /// [`Code::NameInvalid`], [`Code::NameDuplicate`], [`Code::Io`].
    pub fn file(&self, relative: &str) -> Result<StagedFile> {
        check_name(relative)?;
        if relative.contains('\\') || relative.split('/').any(|part| part.is_empty() || part == ".") {
            return Err(Error::new(Code::NameInvalid, "the name has an empty part").field(relative));
        }
        let target = self.target.join(relative);
        let staged = self.temporary.path().join(relative);
        let failed = |e| Error::io(&target, "cannot create", e);
        // An interrupt in between would see its removed folder come back.
        let file = self.temporary.while_live(|_| {
            if let Some(parent) = staged.parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            OpenOptions::new().read(true).write(true).create_new(true).open(&staged).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::new(Code::NameDuplicate, "this file is written twice").file(&target)
                }
                _ => failed(e),
            })
        })?;
        self.files.lock().unwrap_or_else(|e| e.into_inner()).push(relative.to_owned());
        Ok(StagedFile { file, staged, target })
    }

    /// Counts a file that was put into [`staged_path`](Self::staged_path) by other means as one of the output's.
    pub fn adopt(&self, relative: &str) {
        self.files.lock().unwrap_or_else(|e| e.into_inner()).push(relative.to_owned());
    }

    /// Where the staged files can be read before they are committed.
    pub fn staged_path(&self) -> &Path {
        self.temporary.path()
    }

    /// Where the output will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs all files and puts them in place.
    ///
    /// # Errors
    ///
    /// [`Code::OutputExists`] where something appeared at the target meanwhile, [`Code::Interrupted`],
    /// [`Code::Io`]. The temporary folder is gone in any case.
    pub fn commit(self) -> Result<()> {
        let OutputFolder { target, temporary, place, replace, files, .. } = self;
        let files = files.into_inner().unwrap_or_else(|e| e.into_inner());
        let staged = temporary.path().to_owned();
        if let Err(e) = sync_all(&staged, &files) {
            // After an interrupt there is nothing to sync, and that is the better message.
            return temporary.while_live(|_| Err(e));
        }
        let existing = std::fs::metadata(&target).ok().filter(std::fs::Metadata::is_dir);
        if existing.is_some() {
            // Once more: the work in between may have taken hours.
            refuse_strangers(&target, &replace)?;
        }
        match place {
            Place::Sibling => {
                if let Some(existing) = &existing {
                    let _ = std::fs::set_permissions(&staged, existing.permissions());
                }
                match &replace {
                    Replace::Files(_) if existing.is_some() && !has_no_entry(&target) => {
                        temporary.exchange_folder(&target)
                    }
                    _ => temporary.keep_folder(&target),
                }
                .map_err(|e| at_target(e, &target))?;
                sync_folder(&parent_and_name(&target)?.0)
            }
            Place::Inside => {
                temporary.while_live(|staged| {
                    move_files(staged, &target, &files, &replace).map_err(|e| at_target(PersistError::Io(e), &target))
                })?;
                drop(temporary); // the emptied folder
                sync_all(&target, &files)
            }
        }
    }
}

fn at_target(e: PersistError, target: &Path) -> Error {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    match e {
        PersistError::Io(e) if matches!(e.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory) => {
            exists_error(target, "the output appeared while it was being written")
        }
        e => e.at(target),
    }
}

/// Whether a sibling can take this folder's place: it is no mount point, and not the current folder, which would leave
/// the user's shell in a deleted one.
fn replaceable(folder: &Path) -> bool {
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    let same_device = folder.parent().is_some_and(|parent| device(parent) == device(folder));
    let current = std::env::current_dir().and_then(|d| d.canonicalize()).ok();
    let parent_writable = folder
        .parent()
        .is_some_and(|p| rustix::fs::access(p, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok());
    same_device && parent_writable && current.as_deref() != Some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(dir: &Path) -> Vec<String> {
        let mut out = Vec::new();
        let mut open = vec![dir.to_owned()];
        while let Some(d) = open.pop() {
            for e in std::fs::read_dir(&d).unwrap().map(|e| e.unwrap().path()) {
                if e.is_dir() {
                    open.push(e);
                } else {
                    out.push(e.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        out.sort();
        out
    }

    fn files(names: &[&str]) -> Replace {
        Replace::Files(names.iter().map(|n| (*n).to_owned()).collect())
    }

    fn fill(folder: &OutputFolder) {
        folder.file("a.gguf").unwrap().write_all_at(0, b"A").unwrap();
        folder.file("reports/r.json").unwrap().write_all_at(0, b"R").unwrap();
    }

    #[test]
    fn absent_and_empty_folders_are_filled() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, empty, link) = (dir.path().join("absent"), dir.path().join("empty"), dir.path().join("link"));
        std::fs::create_dir(&empty).unwrap();
        std::fs::create_dir(dir.path().join("linked")).unwrap();
        symlink("linked", &link).unwrap();
        for target in [&absent, &empty, &link] {
            let out = OutputFolder::create(target, Replace::Nothing, &[]).unwrap();
            fill(&out);
            assert_eq!(std::fs::read(out.staged_path().join("a.gguf")).unwrap(), b"A");
            assert!(!target.join("a.gguf").exists());
            out.commit().unwrap();
            assert_eq!(tree(target), ["a.gguf", "reports/r.json"]);
        }
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "no temporary stays");
    }

    /// Where the files are moved one by one, nothing is before everything can be.
    #[test]
    fn a_folder_in_a_files_place_stops_all_of_it() {
        for (blocking, is_folder) in [("reports/r.json", true), ("reports", false)] {
            let dir = tempfile::tempdir().unwrap();
            let (staged, target) = (dir.path().join("staged"), dir.path().join("target"));
            std::fs::create_dir_all(staged.join("reports")).unwrap();
            std::fs::create_dir(&target).unwrap();
            let written = ["a.gguf", "reports/r.json"].map(str::to_owned);
            written.iter().for_each(|f| std::fs::write(staged.join(f), b"new").unwrap());
            std::fs::write(target.join("a.gguf"), b"old").unwrap();
            match is_folder {
                true => std::fs::create_dir_all(target.join(blocking)).unwrap(),
                false => std::fs::write(target.join(blocking), b"old").unwrap(),
            }
            move_files(&staged, &target, &written, &files(&["a.gguf"])).unwrap_err();
            assert_eq!(std::fs::read(target.join("a.gguf")).unwrap(), b"old", "{blocking}");
        }
    }

    #[test]
    fn what_the_output_replaces_and_has_no_more_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, target) = (dir.path().join("staged"), dir.path().join("target"));
        std::fs::create_dir(&staged).unwrap();
        std::fs::write(staged.join("a"), b"new").unwrap();
        std::fs::create_dir_all(target.join("reports/deep")).unwrap();
        for old in ["a", "b", "reports/deep/r"] {
            std::fs::write(target.join(old), b"old").unwrap();
        }
        move_files(&staged, &target, &["a".to_owned()], &files(&["a", "b", "reports/deep/r", "gone"])).unwrap();
        assert_eq!(tree(&target), ["a"]);
        assert!(!target.join("reports").exists());
    }

    #[test]
    fn a_dropped_folder_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("other"), b"").unwrap();
        for (target, replace) in [(dir.path().join("absent"), Replace::Nothing), (keep, files(&["other"]))] {
            let out = OutputFolder::create(&target, replace, &[]).unwrap();
            fill(&out);
            drop(out);
        }
        assert_eq!(tree(dir.path()), ["keep/other"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_holds_anything_else_is_not_touched() {
        for stranger in ["other", ".git/config", "reports/mine.txt", "empty/", "a.gguf.bak", "A.gguf"] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("target");
            std::fs::create_dir_all(target.join("reports")).unwrap();
            std::fs::write(target.join("a.gguf"), b"old").unwrap();
            std::fs::write(target.join("reports/old.json"), b"old").unwrap();
            let e = OutputFolder::create(&target, Replace::Nothing, &[]).unwrap_err();
            assert_eq!(e.code(), Code::OutputExists);
            let old = files(&["a.gguf", "reports/old.json", "never"]);
            let path = target.join(stranger);
            let put = || {
                std::fs::create_dir_all(if stranger.ends_with('/') { &path } else { path.parent().unwrap() }).unwrap();
                if !stranger.ends_with('/') {
                    std::fs::write(&path, b"theirs").unwrap();
                }
            };
            // Also where it appears while the output is being written.
            let out = OutputFolder::create(&target, old.clone(), &[]).unwrap();
            fill(&out);
            put();
            assert_eq!(out.commit().unwrap_err().code(), Code::OutputExists, "{stranger}");
            let e = OutputFolder::create(&target, old.clone(), &[]).unwrap_err();
            assert_eq!(e.code(), Code::OutputExists, "{stranger}");
            let first = stranger.split_inclusive('/').next().unwrap();
            let named = if first == "reports/" { stranger } else { first };
            assert!(e.message().contains(&format!("{named:?}")), "{e}");
            assert_eq!(std::fs::read(target.join("a.gguf")).unwrap(), b"old");
            assert_eq!(std::fs::read(target.join("reports/old.json")).unwrap(), b"old");
            assert!(path.exists());
            // Without it the old files go, whether or not the output has namesakes of them.
            std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)).unwrap();
            if first == ".git/" {
                std::fs::remove_dir(target.join(".git")).unwrap();
            }
            let out = OutputFolder::create(&target, old, &[]).unwrap();
            fill(&out);
            out.commit().unwrap();
            assert_eq!(tree(&target), ["a.gguf", "reports/r.json"]);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn links_are_nothing_that_ptplus_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let (target, elsewhere) = (dir.path().join("target"), dir.path().join("elsewhere"));
        std::fs::create_dir(&target).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("a"), b"theirs").unwrap();
        for (link, to) in [("a.gguf", elsewhere.join("a")), ("reports", elsewhere.clone())] {
            symlink(to, target.join(link)).unwrap();
            let old = files(&["a.gguf", "reports/a"]);
            assert_eq!(OutputFolder::create(&target, old, &[]).unwrap_err().code(), Code::OutputExists);
            std::fs::remove_file(target.join(link)).unwrap();
        }
        // What is replaced is never what is read.
        std::fs::hard_link(elsewhere.join("a"), target.join("a.gguf")).unwrap();
        let e = OutputFolder::create(&target, files(&["a.gguf"]), &[&elsewhere.join("a")]).unwrap_err();
        assert_eq!(e.code(), Code::OutputIsInput);
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let out = OutputFolder::create(&target, Replace::Nothing, &[]).unwrap();
        fill(&out);
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("theirs"), b"").unwrap();
        assert_eq!(out.commit().unwrap_err().code(), Code::OutputExists);
        assert_eq!(tree(dir.path()), ["out/theirs"]);

        // The same in a folder whose files are moved one by one: the first is taken back.
        let names = ["a".to_owned(), "b".to_owned()];
        let staged = dir.path().join("staged");
        std::fs::create_dir(&staged).unwrap();
        names.iter().for_each(|f| std::fs::write(staged.join(f), b"new").unwrap());
        std::fs::write(target.join("b"), b"old").unwrap();
        assert!(move_files(&staged, &target, &names, &Replace::Nothing).is_err());
        assert_eq!(tree(&target), ["b", "theirs"]);
        assert_eq!(std::fs::read(target.join("b")).unwrap(), b"old");
    }

    #[test]
    fn inputs_files_and_bad_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let create =
            |t: &Path, i: &[&Path]| OutputFolder::create(t, files(&["file"]), i).map(|_| ()).unwrap_err().code();
        assert_eq!(create(&file, &[]), Code::OutputExists);
        assert_eq!(create(dir.path(), &[dir.path()]), Code::OutputIsInput);
        assert_eq!(create(dir.path(), &[&file]), Code::OutputIsInput);
        assert_eq!(create(&dir.path().join("absent/out"), &[]), Code::NotFound);
        let out = OutputFolder::create(&dir.path().join("new"), Replace::Nothing, &[]).unwrap();
        for bad in ["", "/a", "../a", "a//b", "./a", "a/", "a\\b", "a\0"] {
            assert_eq!(out.file(bad).unwrap_err().code(), Code::NameInvalid, "{bad:?}");
        }
        out.file("x").unwrap();
        assert_eq!(out.file("x").unwrap_err().code(), Code::NameDuplicate);
    }
}
