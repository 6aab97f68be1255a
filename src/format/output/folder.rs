//! An output folder of several files.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::temporary::{PersistError, Temporary, is_temporary, rename_file};
use super::{Identity, Overwrite, StagedFile, exists_error, identities, parent_and_name, refuse_input, sync_folder};
use crate::error::{Code, Error, Result};
use crate::format::names::check_name;

/// A folder whose files appear together on [`commit`](Self::commit), and otherwise not at all.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    temporary: Temporary,
    place: Place,
    overwrite: Overwrite,
    inputs: Vec<(Identity, PathBuf)>,
    /// Whether nothing of an existing folder stays.
    is_whole: bool,
    /// Staged files, relative to the target, in the order of their creation.
    files: Mutex<Vec<String>>,
}

/// Where the files are staged, and so how they are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a sibling of the target, which takes the target's name in one step, unless the target has files to keep: then
    /// each file is renamed over its namesake.
    Sibling,
    /// In the target, from where each file is renamed over its namesake: for one that cannot be replaced, since it is a
    /// mount point or the current folder.
    Inside,
}

impl OutputFolder {
    /// Prepares to fill `target`: an absent or empty folder or, with [`Overwrite::Force`], any folder, of which only
    /// files of the same name are replaced. `inputs` are the files and folders that are being read.
    ///
    /// # Errors
    ///
    /// [`Code::OutputExists`] for a folder that is not empty and for a file; [`Code::OutputIsInput`];
    /// [`Code::NotFound`] where the parent folder is absent; [`Code::Io`].
    pub fn create(target: &Path, overwrite: Overwrite, inputs: &[&Path]) -> Result<Self> {
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
        let empty = !is_folder || is_empty(&target)?;
        if !empty && overwrite == Overwrite::Never {
            return Err(exists_error(&target, "the output folder is not empty"));
        }
        let forced = overwrite == Overwrite::Force;
        let (place, temporary) = if !is_folder || (replaceable(&target) && (forced || has_no_entry(&target))) {
            let (parent, name) = parent_and_name(&target)?;
            (Place::Sibling, Temporary::folder(&parent, &name)?)
        } else {
            let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (Place::Inside, Temporary::folder(&target, &name)?)
        };
        Ok(OutputFolder { target, temporary, place, overwrite, inputs, is_whole: false, files: Mutex::default() })
    }

    /// A new file in the folder; `relative` may have `/`-separated parts. Where a folder cannot be renamed as a whole,
    /// files appear in the order in which they were made: those that others depend on come last.
    ///
    /// # Errors
    ///
    /// [`Code::NameInvalid`], [`Code::NameDuplicate`], [`Code::OutputIsInput`], [`Code::Io`].
    pub fn file(&self, relative: &str) -> Result<StagedFile> {
        check_name(relative)?;
        if relative.contains('\\') || relative.split('/').any(|part| part.is_empty() || part == ".") {
            return Err(Error::new(Code::NameInvalid, "the name has an empty part").field(relative));
        }
        let target = self.target.join(relative);
        refuse_input(&target, &self.inputs)?;
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

    /// Lets the output take the place of an existing folder with all that it holds.
    pub fn replace_whole(&mut self) {
        self.is_whole = true;
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
        let OutputFolder { target, temporary, place, overwrite, files, is_whole, .. } = self;
        let files = files.into_inner().unwrap_or_else(|e| e.into_inner());
        let staged = temporary.path().to_owned();
        if let Err(e) = sync_all(&staged, &files) {
            // After an interrupt there is nothing to sync, and that is the better message.
            return temporary.while_live(|_| Err(e));
        }
        match place {
            Place::Sibling
                if overwrite == Overwrite::Force && std::fs::read_dir(&target).is_ok() && !has_no_entry(&target) =>
            {
                let _ = std::fs::metadata(&target).map(|m| std::fs::set_permissions(&staged, m.permissions()));
                if is_whole || holds_only(&target, &files) {
                    temporary.exchange_folder(&target).map_err(|e| at_target(e, &target))?;
                    return sync_folder(&parent_and_name(&target)?.0);
                }
                temporary.while_live(|staged| {
                    move_files(staged, &target, &files, overwrite).map_err(|e| at_target(PersistError::Io(e), &target))
                })?;
                sync_all(&target, &files)
            }
            Place::Sibling => {
                if let Ok(existing) = std::fs::metadata(&target) {
                    let _ = std::fs::set_permissions(&staged, existing.permissions());
                }
                temporary.keep_folder(&target).map_err(|e| at_target(e, &target))?;
                sync_folder(&parent_and_name(&target)?.0)
            }
            Place::Inside => {
                temporary.while_live(|staged| {
                    move_files(staged, &target, &files, overwrite).map_err(|e| at_target(PersistError::Io(e), &target))
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

/// Nothing in it but temporaries.
fn is_empty(folder: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "cannot list", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "cannot list", e))?;
        if !entry.file_name().to_str().is_some_and(is_temporary) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Nothing in it at all.
fn has_no_entry(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether each file in it will be replaced by one of `files`.
fn holds_only(folder: &Path, files: &[String]) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().all(|e| {
        let is_file = e.file_type().is_ok_and(|t| t.is_file());
        is_file && e.file_name().to_str().is_some_and(|name| is_temporary(name) || files.iter().any(|f| f == name))
    })
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

/// Syncs files and every folder that holds one.
fn sync_all(folder: &Path, files: &[String]) -> Result<()> {
    let mut folders = std::collections::BTreeSet::from([folder.to_owned()]);
    for relative in files {
        let path = folder.join(relative);
        std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| Error::io(&path, "cannot sync", e))?;
        folders.extend(path.ancestors().skip(1).take_while(|p| *p != folder).map(Path::to_owned));
    }
    folders.iter().try_for_each(|f| sync_folder(f))
}

/// The folders between `target` and a file below it; a link among them would lead out.
fn create_folders_below(target: &Path, relative: &Path) -> std::io::Result<()> {
    let parents: Vec<&Path> = relative.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    for folder in parents.into_iter().rev().map(|p| target.join(p)) {
        match std::fs::symlink_metadata(&folder) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let message = format!("{} is no folder", folder.display());
                return Err(std::io::Error::new(std::io::ErrorKind::NotADirectory, message));
            }
            Err(_) => std::fs::create_dir(&folder)?,
        }
    }
    Ok(())
}

/// Moves files one by one. Without force nothing is replaced, and a failure takes back what was moved.
fn move_files(staged: &Path, target: &Path, files: &[String], overwrite: Overwrite) -> std::io::Result<()> {
    // Before anything is moved: what would stop it half-way. A bundle chooses its own names.
    for relative in files {
        let to = target.join(relative);
        if std::fs::symlink_metadata(&to).is_ok_and(|m| m.is_dir()) {
            let message = format!("{} is a folder", to.display());
            return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, message));
        }
        let folders = Path::new(relative).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty());
        for folder in folders.map(|p| target.join(p)) {
            if std::fs::symlink_metadata(&folder).is_ok_and(|m| !m.is_dir()) {
                let message = format!("{} is no folder", folder.display());
                return Err(std::io::Error::new(std::io::ErrorKind::NotADirectory, message));
            }
        }
    }
    let mut moved = Vec::new();
    let result = files.iter().try_for_each(|relative| {
        let to = target.join(relative);
        create_folders_below(target, Path::new(relative))?;
        rename_file(&staged.join(relative), &to, overwrite)?;
        moved.push(to);
        Ok(())
    });
    if result.is_err() && overwrite == Overwrite::Never {
        for path in moved {
            let _ = std::fs::remove_file(path);
        }
    }
    result
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
            let out = OutputFolder::create(target, Overwrite::Never, &[]).unwrap();
            fill(&out);
            assert_eq!(std::fs::read(out.staged_path().join("a.gguf")).unwrap(), b"A");
            assert!(!target.join("a.gguf").exists());
            out.commit().unwrap();
            assert_eq!(tree(target), ["a.gguf", "reports/r.json"]);
        }
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "no temporary stays");
    }

    #[test]
    fn a_folder_in_a_files_place_stops_all_of_it() {
        for (blocking, is_folder) in [("reports/r.json", true), ("reports", false)] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("a.gguf"), b"old").unwrap();
            match is_folder {
                true => std::fs::create_dir_all(dir.path().join(blocking)).unwrap(),
                false => std::fs::write(dir.path().join(blocking), b"old").unwrap(),
            }
            let out = OutputFolder::create(dir.path(), Overwrite::Force, &[]).unwrap();
            fill(&out);
            out.commit().unwrap_err();
            assert_eq!(std::fs::read(dir.path().join("a.gguf")).unwrap(), b"old", "{blocking}");
        }
    }

    #[test]
    fn a_dropped_folder_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("other"), b"").unwrap();
        for (target, overwrite) in [(dir.path().join("absent"), Overwrite::Never), (keep, Overwrite::Force)] {
            let out = OutputFolder::create(&target, overwrite, &[]).unwrap();
            fill(&out);
            drop(out);
        }
        assert_eq!(tree(dir.path()), ["keep/other"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn with_force_only_namesakes_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.gguf"), b"old").unwrap();
        std::fs::write(dir.path().join("other"), b"other").unwrap();
        let e = OutputFolder::create(dir.path(), Overwrite::Never, &[]).unwrap_err();
        assert_eq!(e.code(), Code::OutputExists);
        let out = OutputFolder::create(dir.path(), Overwrite::Force, &[]).unwrap();
        fill(&out);
        out.commit().unwrap();
        assert_eq!(tree(dir.path()), ["a.gguf", "other", "reports/r.json"]);
        assert_eq!(std::fs::read(dir.path().join("a.gguf")).unwrap(), b"A");
        assert_eq!(std::fs::read(dir.path().join("other")).unwrap(), b"other");
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let out = OutputFolder::create(&target, Overwrite::Never, &[]).unwrap();
        fill(&out);
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("theirs"), b"").unwrap();
        assert_eq!(out.commit().unwrap_err().code(), Code::OutputExists);
        assert_eq!(tree(dir.path()), ["out/theirs"]);

        // The same in a folder whose files are moved one by one: the first is taken back.
        let files = ["a".to_owned(), "b".to_owned()];
        let staged = dir.path().join("staged");
        std::fs::create_dir(&staged).unwrap();
        files.iter().for_each(|f| std::fs::write(staged.join(f), b"new").unwrap());
        std::fs::write(target.join("b"), b"old").unwrap();
        assert!(move_files(&staged, &target, &files, Overwrite::Never).is_err());
        assert_eq!(tree(&target), ["b", "theirs"]);
        assert_eq!(std::fs::read(target.join("b")).unwrap(), b"old");
    }

    #[test]
    fn inputs_files_and_bad_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let create =
            |t: &Path, i: &[&Path]| OutputFolder::create(t, Overwrite::Force, i).map(|_| ()).unwrap_err().code();
        assert_eq!(create(&file, &[]), Code::OutputExists);
        assert_eq!(create(dir.path(), &[dir.path()]), Code::OutputIsInput);
        assert_eq!(create(&dir.path().join("absent/out"), &[]), Code::NotFound);
        let out = OutputFolder::create(dir.path(), Overwrite::Force, &[&file]).unwrap();
        assert_eq!(out.file("file").unwrap_err().code(), Code::OutputIsInput);
        for bad in ["", "/a", "../a", "a//b", "./a", "a/", "a\\b", "a\0"] {
            assert_eq!(out.file(bad).unwrap_err().code(), Code::NameInvalid, "{bad:?}");
        }
        out.file("x").unwrap();
        assert_eq!(out.file("x").unwrap_err().code(), Code::NameDuplicate);
    }
}
