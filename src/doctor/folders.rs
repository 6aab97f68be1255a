//! What a program can open while it runs: addons, extensions, libraries beside it. Folders are searched within bounds.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{ASKED, Caller, Looked, Reached};
use crate::format::elf;
use crate::format::mmap::map_file;

/// Entries of folders that are looked at; a large site-packages has a hundred thousand.
const MAX_ENTRIES: usize = 1 << 18;
/// Folders within folders; node_modules nest some dozen.
const MAX_DEPTH: usize = 32;
/// Objects that are named in an answer.
const MAX_NAMED: usize = 32;
/// Bytes in which traces of a llama.cpp without relocations are looked for, in all.
const MAX_SEARCHED: u64 = 1 << 28;
/// Bytes of a script's first line: the kernel's own limit.
const MAX_FIRST_LINE: usize = 256;

/// Objects with llama.cpp in them.
pub(super) struct Found {
    pub graftable: Vec<Caller>,
    pub bound: Vec<Caller>,
    /// Whether everything was looked at.
    pub is_whole: bool,
}

/// Looks at every library below these folders. Links to folders are not followed.
pub(super) fn callers_in(folders: &[PathBuf]) -> Found {
    let mut found = Found { graftable: Vec::new(), bound: Vec::new(), is_whole: true };
    let mut waiting: Vec<(PathBuf, usize)> = folders.iter().rev().map(|f| (f.clone(), 0)).collect();
    let (mut n_entries, mut n_searched) = (0, 0);
    let mut seen = BTreeSet::new();
    while let Some((folder, depth)) = waiting.pop() {
        let mut entries: Vec<std::fs::DirEntry> = std::fs::read_dir(&folder).into_iter().flatten().flatten().collect();
        n_entries += entries.len();
        if n_entries > MAX_ENTRIES || depth > MAX_DEPTH || found.graftable.len() >= MAX_NAMED {
            found.is_whole = false;
            break;
        }
        // The same answer on every machine.
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let mut inner = Vec::new();
        for entry in entries {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                inner.push((path, depth + 1));
                continue;
            }
            // libllama.so and libllama.so.0 are links to one file.
            if !path.is_file() || !path.canonicalize().is_ok_and(|real| seen.insert(real)) {
                continue;
            }
            look_at(&path, &mut found, &mut n_searched);
        }
        waiting.extend(inner.into_iter().rev());
    }
    found
}

fn look_at(path: &Path, found: &mut Found, n_searched: &mut u64) {
    let Ok(bytes) = map_file(path) else { return };
    if !elf::is_elf(&bytes) {
        return;
    }
    // A broken one cannot be opened either.
    let Ok(object) = elf::read(&bytes, &ASKED) else { return };
    let through = vec![path.file_name().unwrap_or_default().to_string_lossy().into_owned()];
    let looked = Looked { path: path.to_owned(), reached: Reached::Opened, through, object };
    if let Some(caller) = looked.caller() {
        found.graftable.push(caller);
    } else if !looked.is_ggml() && *n_searched < MAX_SEARCHED {
        *n_searched += bytes.len() as u64;
        if looked.has_marks() && found.bound.len() < MAX_NAMED {
            found.bound.push(looked.bound());
        }
    }
}

/// `libx.so`, `libx.so.1`, `x.node`.
pub(super) fn is_called_library(name: &str) -> bool {
    name.ends_with(".so") || name.contains(".so.") || name.ends_with(".node")
}

/// Where a program's own libraries may lie that it opens by name.
pub(super) fn places(program: &Path, scripts: &[PathBuf]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    if name.starts_with("python") || name.starts_with("pypy") {
        // A virtual environment's own packages, else those of the installation behind the link.
        let given = program.parent().and_then(Path::parent).filter(|prefix| prefix.join("pyvenv.cfg").is_file());
        let prefix = given.or_else(|| real.parent().and_then(Path::parent));
        out.extend(prefix.into_iter().flat_map(packages));
    } else if ["node", "bun", "deno", "electron"].iter().any(|known| name.starts_with(known)) {
        let here = std::env::current_dir().ok();
        let starts = scripts.iter().filter_map(|s| s.canonicalize().ok()).chain(here);
        // As Node looks for modules: beside the script, then in each folder above.
        out.extend(starts.flat_map(|s| s.ancestors().map(|a| a.join("node_modules")).collect::<Vec<_>>()));
        out.extend(real.parent().and_then(Path::parent).map(|prefix| prefix.join("lib/node_modules")));
    } else if !is_of_system(&real) {
        out.extend(real.parent().map(Path::to_owned));
        let prefix = real.parent().filter(|p| p.ends_with("bin")).and_then(Path::parent);
        out.extend(prefix.into_iter().flat_map(|p| ["lib", "lib64"].map(|lib| p.join(lib))));
    }
    let mut seen = BTreeSet::new();
    out.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    out
}

/// Folders of a Python installation for packages.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let versions = ["lib", "lib64"].iter().flat_map(|lib| std::fs::read_dir(prefix.join(lib)).into_iter().flatten());
    let mut versions: Vec<PathBuf> = versions.flatten().map(|e| e.path()).collect();
    versions.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python")));
    versions.sort();
    versions.iter().flat_map(|v| ["site-packages", "dist-packages"].map(|kind| v.join(kind))).collect()
}

/// Programs of the system lie beside all others, so what lies there says nothing.
fn is_of_system(program: &Path) -> bool {
    ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin"].iter().any(|f| program.parent() == Some(Path::new(f)))
}

/// The program that a script's first line names; that of `env` is looked up as `env` would.
pub(super) fn interpreter(script: &[u8]) -> Option<PathBuf> {
    let line = script[..script.len().min(MAX_FIRST_LINE)].split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line.strip_prefix(b"#!")?).ok()?;
    let mut words = line.split_whitespace();
    let program = PathBuf::from(words.next()?);
    if program.file_name().is_none_or(|name| name != "env") {
        return Some(program);
    }
    let named = words.find(|w| !w.starts_with('-') && !w.contains('='))?;
    Some(on_path(named.as_ref()).unwrap_or(program))
}

/// The program of this name on PATH, as a shell would find it; a name with a slash is a path.
pub fn on_path(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let found: Vec<PathBuf> = std::env::split_paths(&path).map(|f| f.join(name)).filter(|p| p.is_file()).collect();
    // As shells do, one that may not be run only where there is no other.
    found.iter().find(|p| is_executable(p)).or(found.first()).cloned()
}

/// Whether this user may run the file.
pub fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_name_programs() {
        let named = |line: &str| interpreter(line.as_bytes());
        assert_eq!(named("#!/bin/sh -e\nx"), Some("/bin/sh".into()));
        assert_eq!(named("#! /opt/venv/bin/python3\n"), Some("/opt/venv/bin/python3".into()));
        let sh = named("#!/usr/bin/env -S LANG=C sh -u\n").unwrap();
        assert!(sh.ends_with("sh") && sh.is_absolute(), "{sh:?}");
        assert_eq!(named("#!/usr/bin/env no-such-program-anywhere"), Some("/usr/bin/env".into()));
        assert_eq!(named("#!\n"), None);
        assert_eq!(named("#!"), None);
    }

    #[test]
    fn libraries_have_names_of_their_own() {
        for name in ["libllama.so", "libllama.so.0.0.1", "llama-addon.node", "_x.cpython-311-x86_64-linux-gnu.so"] {
            assert!(is_called_library(name), "{name}");
        }
        for name in ["llama-server", "sonic", "node", "lib.solid"] {
            assert!(!is_called_library(name), "{name}");
        }
    }
}
