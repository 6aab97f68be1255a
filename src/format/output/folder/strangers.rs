//! What lies in an output folder already.

use std::collections::BTreeSet;
use std::path::Path;

use super::Replace;
use crate::error::{Code, Error, Result};
use crate::format::output::exists_error;
use crate::format::output::temporary::is_temporary;

/// Refuses to touch a folder that holds anything but what may be replaced, and temporaries.
pub(super) fn refuse_strangers(folder: &Path, replace: &Replace) -> Result<()> {
    const SHOWN: usize = 3;
    let ours = match replace {
        Replace::Nothing => return if is_empty(folder)? { Ok(()) } else { Err(not_empty(folder)) },
        Replace::Files(ours) => ours,
    };
    let mut strangers = strangers(folder, ours)?;
    if strangers.is_empty() {
        return Ok(());
    }
    strangers.sort();
    let shown: Vec<String> = strangers.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if strangers.len() > SHOWN { format!(" and {} more", strangers.len() - SHOWN) } else { String::new() };
    let message = format!(
        "the output folder holds what ptplus did not write there, or what was changed since: {}{more}; --force replaces \
         ptplus's own files alone",
        shown.join(", ")
    );
    Err(Error::new(Code::OutputExists, message)
        .file(folder)
        .hints(["move that elsewhere, or write into another folder".to_owned()]))
}

fn not_empty(folder: &Path) -> Error {
    exists_error(folder, "the output folder is not empty")
}

/// What lies in the folder and is neither one of `ours` nor a temporary; of a folder without any of ours its name alone.
fn strangers(folder: &Path, ours: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let here = folder.join(&below);
        let failed = |e| Error::io(&here, "cannot list", e);
        for entry in std::fs::read_dir(&here).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name();
            let Some(relative) = name.to_str().map(|name| format!("{below}{name}")) else {
                found.push(format!("{below}{}", name.to_string_lossy()));
                continue;
            };
            let inner = format!("{relative}/");
            if kind.is_dir() && ours.range(inner.clone()..).next().is_some_and(|next| next.starts_with(&inner)) {
                open.push(inner);
            } else if !(kind.is_file() && ours.contains(&relative) || below.is_empty() && is_temporary(&relative)) {
                found.push(if kind.is_dir() { inner } else { relative });
            }
        }
    }
    Ok(found)
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
pub(super) fn has_no_entry(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
