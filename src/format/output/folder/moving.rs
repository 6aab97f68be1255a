//! Files of an output into a folder that stays, one by one.

use std::collections::BTreeSet;
use std::path::Path;

use super::Replace;
use crate::error::{Error, Result};
use crate::format::output::temporary::rename_file;
use crate::format::output::{Overwrite, sync_folder};

/// Syncs files and every folder that holds one.
pub(super) fn sync_all(folder: &Path, files: &[String]) -> Result<()> {
    let mut folders = BTreeSet::from([folder.to_owned()]);
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

/// Moves files one by one, and removes what the output replaces and has no more. Where nothing is replaced, a failure
/// takes back what was moved.
pub(super) fn move_files(staged: &Path, target: &Path, files: &[String], replace: &Replace) -> std::io::Result<()> {
    let overwrite = if *replace == Replace::Nothing { Overwrite::Never } else { Overwrite::Force };
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
    if let Replace::Files(old) = replace {
        for relative in old.iter().filter(|old| !files.contains(old)) {
            let gone = target.join(relative);
            match std::fs::remove_file(&gone) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            // A folder that is not empty stays.
            let parents = gone.ancestors().skip(1).take_while(|p| *p != target);
            parents.for_each(|p| drop(std::fs::remove_dir(p)));
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
