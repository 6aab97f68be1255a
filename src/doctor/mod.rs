//! Whether the graft can bring adapters into a program. One thing decides: whether the object that builds llama.cpp's
//! graph calls `ggml_mul_mat` through a dynamic relocation, so that the loader binds the call to the graft's definition.
//!
//! ```text
//!   program --(its first line)--> interpreter --(needs)--> libraries     libraries.rs, as ld.so finds them
//!                                     `--------(can open)--> folders     folders.rs: addons, extensions, what lies beside it
//! ```
//! Nothing is run.

mod diagnosis;
mod folders;
mod libraries;

pub use diagnosis::{Caller, Diagnosis, Loading, Reached, Verdict};
pub use folders::{is_executable, on_path};

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::format::elf::{self, Definition, Object};
use crate::format::mmap::map_file;
use diagnosis::{REBUILD, empty, foreign};

/// What the graft defines in llama.cpp's place.
pub(crate) const WRAPPED: &str = "ggml_mul_mat";

/// What an object is asked for: [`WRAPPED`], then ways to more code than the loader loads, libraries and programs.
const ASKED: [&str; 13] = [
    WRAPPED,
    "dlopen",
    "execve",
    "execv",
    "execvp",
    "execvpe",
    "execl",
    "execlp",
    "execle",
    "posix_spawn",
    "posix_spawnp",
    "system",
    "popen",
];

/// Bytes that only an object with llama.cpp in it has: the name of the tensor that the graft waits for, and the wrapped
/// function among symbols that nothing is bound by.
const MARKS: [&[u8]; 2] = [b"blk.%d.attn_output", b"\0ggml_mul_mat\0"];

/// Scripts that start scripts: more than one is unusual, and a script may name itself.
const MAX_INTERPRETERS: usize = 4;

/// Looks at a program, a library or a folder of libraries.
///
/// # Errors
///
/// [`Code::NotFound`], [`Code::Io`]; [`Code::Elf`] for a broken file.
pub fn diagnose(program: &Path) -> Result<Diagnosis> {
    diagnose_started(program, &[])
}

/// [`diagnose`], for a program that is started with these arguments: an interpreter looks for libraries beside its script,
/// too.
///
/// # Errors
///
/// Those of [`diagnose`].
pub fn diagnose_started(program: &Path, arguments: &[std::ffi::OsString]) -> Result<Diagnosis> {
    let meta = std::fs::metadata(program).map_err(|e| Error::io(program, "cannot open", e))?;
    if meta.is_dir() {
        return Ok(of_folder(program));
    }
    let mut interpreters: Vec<PathBuf> = Vec::new();
    let mut scripts: Vec<PathBuf> = Vec::new();
    let mut file = program.to_owned();
    loop {
        let bytes = map_file(&file)?;
        if elf::is_elf(&bytes) {
            let object = match elf::read(&bytes, &ASKED) {
                Ok(object) => object,
                Err(e) if e.code() == Code::ElfKind => return Ok(foreign(program, interpreters, e.message())),
                Err(e) => return Err(e.file(&file)),
            };
            scripts.extend(arguments.iter().map(PathBuf::from).filter(|a| !a.as_os_str().is_empty() && a.exists()));
            let mut found = of_program(&file, &object, &scripts)?;
            found.program = program.to_owned();
            found.interpreters = interpreters;
            return Ok(found);
        }
        // Without a first line of its own, the system's shell runs it.
        let is_text = !bytes.is_empty() && memchr::memchr(0, &bytes[..bytes.len().min(512)]).is_none();
        let next = if bytes.starts_with(b"#!") { folders::interpreter(&bytes) } else { None };
        let next = next.or_else(|| is_text.then(|| PathBuf::from("/bin/sh")));
        let Some(next) = next.filter(|_| interpreters.len() < MAX_INTERPRETERS) else {
            return Ok(foreign(program, interpreters, "it is neither an ELF file nor a script"));
        };
        scripts.push(file);
        interpreters.push(next.clone());
        file = next;
    }
}

/// An ELF file: what it needs, then what it can open.
fn of_program(file: &Path, object: &Object, scripts: &[PathBuf]) -> Result<Diagnosis> {
    let loading = Some(Loading { machine: object.machine, interpreter: object.interpreter.clone() });
    let loaded = libraries::loaded(file, object)?;
    let callers: Vec<Caller> = loaded.objects.iter().filter_map(|l| l.caller()).collect();
    let base = Diagnosis { loading, not_found: loaded.not_found.clone(), ..empty(file, Verdict::Graftable) };
    let is_static = object.interpreter.is_none() && object.needed.is_empty() && !is_library(file);
    if is_static {
        let inside = loaded.objects.first().is_some_and(|l| l.has_marks());
        let reason = match inside {
            true => {
                "a static executable with llama.cpp inside: its calls were bound when it was linked, and no loader reads LD_PRELOAD for it"
            }
            false => "a static executable: no loader reads LD_PRELOAD for it",
        };
        return Ok(Diagnosis { reason: reason.into(), advice: Some(REBUILD), ..base.with(Verdict::Static) });
    }
    if let Some(diagnosis) = base.clone().decided(callers) {
        return Ok(diagnosis);
    }
    let bound: Vec<Caller> =
        loaded.objects.iter().filter(|l| !l.is_ggml() && l.has_marks()).map(|l| l.bound()).collect();
    if !bound.is_empty() {
        return Ok(base.bound(bound));
    }
    if !loaded.objects.iter().any(|l| l.leads_on()) {
        let reason = "no object that it needs calls ggml_mul_mat for llama.cpp, and it opens no libraries and starts no programs".into();
        let advice = base.advice_on_missing();
        return Ok(Diagnosis { reason, advice, ..base.with(Verdict::None) });
    }
    let places = folders::places(file, scripts);
    let found = folders::callers_in(&places);
    if found.graftable.is_empty() && !found.bound.is_empty() {
        return Ok(base.bound(found.bound));
    }
    if let Some(diagnosis) = base.clone().decided(found.graftable) {
        return Ok(diagnosis);
    }
    let looked = match places.len() {
        0 => String::new(),
        _ => {
            format!(" (looked into {})", places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))
        }
    };
    let reason = format!(
        "no object that it needs calls ggml_mul_mat for llama.cpp; what it opens or starts while it runs decides{looked}"
    );
    let advice = "name what holds llama.cpp: the program, a folder such as node_modules or site-packages, or a library";
    Ok(Diagnosis { reason, advice: Some(base.advice_on_missing().unwrap_or(advice)), ..base.with(Verdict::Undecided) })
}

fn is_library(file: &Path) -> bool {
    folders::is_called_library(&file.file_name().unwrap_or_default().to_string_lossy())
}

fn of_folder(folder: &Path) -> Diagnosis {
    let found = folders::callers_in(&[folder.to_owned()]);
    let base = empty(folder, Verdict::Graftable);
    if found.graftable.is_empty() && !found.bound.is_empty() {
        return base.bound(found.bound);
    }
    let graftable = found.graftable;
    base.clone().decided(graftable).unwrap_or_else(|| {
        let stopped = if found.is_whole { "" } else { "; the folder is too large to be searched to its end" };
        Diagnosis {
            reason: format!("no library below this folder calls ggml_mul_mat{stopped}"),
            advice: Some("name the program that runs llama.cpp, or the folder that its libraries lie in"),
            ..base.with(Verdict::None)
        }
    })
}

/// An object that was looked at.
struct Looked {
    path: PathBuf,
    reached: Reached,
    through: Vec<String>,
    object: Object,
}

impl Looked {
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether this is ggml by itself: it calls its own function here and there, but builds no model's graph.
    fn is_ggml(&self) -> bool {
        self.name().starts_with("libggml")
    }

    /// Whether it opens libraries or starts programs; the C library defines how.
    fn leads_on(&self) -> bool {
        self.object.symbols[1..].iter().any(|s| s.definition == Some(Definition::Imported))
    }

    /// As what decides, if its calls are bound by the loader.
    fn caller(&self) -> Option<Caller> {
        let symbol = self.object.symbols[0];
        symbol.relocation.filter(|_| !self.is_ggml()).map(|r| Caller { relocation: Some(r.name()), ..self.bound() })
    }

    fn bound(&self) -> Caller {
        Caller {
            path: self.path.clone(),
            reached: self.reached,
            through: self.through.clone(),
            relocation: None,
            machine: self.object.machine.name(),
            for_machine: self.object.machine,
        }
    }

    fn has_marks(&self) -> bool {
        MARKS.iter().any(|mark| has_mark(&self.path, mark))
    }
}

fn has_mark(path: &Path, mark: &[u8]) -> bool {
    map_file(path).is_ok_and(|bytes| memchr::memmem::find(&bytes, mark).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("program");
        let kind = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            diagnose(&path).map(|d| d.verdict)
        };
        assert_eq!(kind(b"#!/bin/sh\nexec llama-cli").unwrap(), Verdict::Undecided);
        assert_eq!(kind(b"echo no first line").unwrap(), Verdict::Undecided);
        assert_eq!(kind(b"MZ\x90\0").unwrap(), Verdict::Foreign);
        assert_eq!(kind(b"").unwrap(), Verdict::Foreign);
        assert_eq!(kind(b"\x7fELF\x02\x01\x01").unwrap_err().code(), Code::Elf);
        assert_eq!(kind(b"\x7fELF\x07\x01\x01").unwrap(), Verdict::Foreign);
        assert_eq!(kind(b"#!/nowhere/at-all\n").unwrap_err().code(), Code::NotFound);
        assert_eq!(diagnose(&temp.path().join("none")).unwrap_err().code(), Code::NotFound);
        let own = format!("#!{}\n", path.display());
        assert_eq!(kind(own.as_bytes()).unwrap(), Verdict::Foreign, "a script that runs itself");
        assert_eq!(diagnose(temp.path()).unwrap().verdict, Verdict::None);
    }
}
