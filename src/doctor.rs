//! Whether the preload library can bring adapters into a program: only where llama.cpp is a shared library.

use std::path::{Path, PathBuf};

use serde::Serialize;

use indexmap::IndexSet;

use crate::error::{Code, Error, Result};
use crate::format::elf::{self, Definition, Dynamic};
use crate::format::mmap::map_file;

/// What the preload library wraps. Made at run time, so that this program does not hold the name that it looks for.
pub(crate) fn wrapped() -> String {
    std::hint::black_box("llama-init-from-model").replace('-', "_")
}

/// How a program has llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Linking {
    /// As a shared library: it can be wrapped.
    Dynamic,
    /// Inside the program, or opened by name while it runs: nothing can be put between.
    Static,
    /// Not at all.
    None,
    /// A script; the program that runs it is another file.
    Script,
    /// Not a program of Linux.
    Foreign,
}

/// What was found, and what to do.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The program.
    #[serde(serialize_with = "crate::lossy::path")]
    pub program: PathBuf,
    /// How it has llama.cpp.
    pub linking: Linking,
    /// Libraries that it needs.
    pub needs: Vec<String>,
    /// The library among them, or the program itself, that calls llama.cpp.
    pub called_from: Option<String>,
    /// What to do.
    pub advice: &'static str,
}

/// Looks at a program file; nothing is run.
///
/// # Errors
///
/// [`Code::NotFound`], [`Code::Io`]; [`Code::Elf`] for a broken file.
pub fn diagnose(program: &Path) -> Result<Diagnosis> {
    let bytes = map_file(program)?;
    let wrapped = wrapped();
    let found = |linking: Linking, dynamic: Dynamic, called_from: Option<String>| Diagnosis {
        program: program.to_owned(),
        linking,
        needs: dynamic.needed,
        called_from,
        advice: advice(linking),
    };
    if bytes.starts_with(b"#!") {
        return Ok(found(Linking::Script, Dynamic::default(), None));
    }
    let dynamic = match elf::dynamic(&bytes, &wrapped) {
        Ok(dynamic) => dynamic,
        Err(e) if e.code() == Code::ElfKind => return Ok(found(Linking::Foreign, Dynamic::default(), None)),
        Err(e) => return Err(e.file(program)),
    };
    if dynamic.symbol(&wrapped) == Some(Definition::Imported) {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(found(Linking::Dynamic, dynamic, Some(name)));
    }
    if let Some(library) = calling_library(program, &dynamic, &wrapped)? {
        return Ok(found(Linking::Dynamic, dynamic, Some(library)));
    }
    // The name is in llama.cpp's own messages, so it is there in a stripped program too.
    let linking = if contains(&bytes, wrapped.as_bytes()) { Linking::Static } else { Linking::None };
    Ok(found(linking, dynamic, None))
}

fn advice(linking: Linking) -> &'static str {
    match linking {
        Linking::Dynamic => {
            "LD_PRELOAD=libptplus_llama_preload.so PTPLUS_ADAPTER=adapter.gguf works, if the library was built against the llama.h of the program's libllama (docs/LLAMA_CPP.md)"
        }
        Linking::Static => {
            "llama.cpp is inside the program, or opened by name: it cannot be wrapped; use a build with shared libraries (BUILD_SHARED_LIBS=ON), or the C drop-in (docs/LLAMA_CPP.md)"
        }
        Linking::None => "the program does not use llama.cpp",
        Linking::Script => "a script: name the program that its first line starts, or that it starts itself",
        Linking::Foreign => {
            "the preload library works for 64-bit Linux programs only; use the C drop-in (docs/LLAMA_CPP.md)"
        }
    }
}

/// Folders of a search path that are looked into; programs state a few.
const MAX_FOLDERS: usize = 64;

/// The first library beside the program or on its search path that calls llama.cpp: newer llama.cpp programs are a few
/// lines around one.
fn calling_library(program: &Path, dynamic: &Dynamic, wrapped: &str) -> Result<Option<String>> {
    let origin = program.canonicalize().map_err(|e| Error::io(program, "cannot find its folder", e))?;
    let origin = origin.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    let stated: IndexSet<&str> = dynamic.search_path.iter().flat_map(|p| p.split(':')).take(MAX_FOLDERS).collect();
    let expanded = stated.iter().map(|p| PathBuf::from(p.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)));
    let folders: Vec<PathBuf> = expanded.filter(|p| p.is_absolute()).chain([PathBuf::from(&origin)]).collect();
    for name in dynamic.needed.iter().filter(|n| !n.contains('/')) {
        let Some(path) = folders.iter().map(|f| f.join(name)).find(|p| p.is_file()) else { continue };
        let Ok(library) = map_file(&path).and_then(|bytes| elf::dynamic(&bytes, wrapped)) else { continue };
        if library.symbol(wrapped) == Some(Definition::Imported) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(i) = rest.iter().position(|b| *b == part[0]) {
        rest = &rest[i..];
        if rest.starts_with(part) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_where_it_is() {
        assert!(contains(b"aabab", b"bab") && contains(b"bab", b"bab") && contains(b"bbab", b"bab"));
        assert!(!contains(b"", b"bab") && !contains(b"ba", b"bab") && !contains(b"babbo", b"bob"));
    }

    #[test]
    fn scripts_and_other_files_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("program");
        let kind = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            diagnose(&path).map(|d| d.linking)
        };
        assert_eq!(kind(b"#!/bin/sh\nexec llama-cli").unwrap(), Linking::Script);
        assert_eq!(kind(b"MZ\x90\0").unwrap(), Linking::Foreign);
        assert_eq!(kind(b"").unwrap(), Linking::Foreign);
        assert_eq!(kind(b"\x7fELF\x02\x01\x01").unwrap_err().code(), Code::Elf);
        assert_eq!(diagnose(&temp.path().join("none")).unwrap_err().code(), Code::NotFound);
        assert_eq!(diagnose(Path::new("/bin/sh")).unwrap().linking, Linking::None);
        #[cfg(not(feature = "llama-cpp"))]
        assert_eq!(diagnose(&std::env::current_exe().unwrap()).unwrap().linking, Linking::None, "the name itself");
    }
}
