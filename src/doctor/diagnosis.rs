//! What is said of a program: the answer, the object that decides, why, and what to do.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{MARKS, has_mark};
use crate::format::elf::{self, Machine};
use crate::format::mmap::map_file;

const NOT_RECOGNISED: &str =
    "no name of llama.cpp's tensors is in it: if it is another program of ggml, adapters do nothing there";

pub(super) const REBUILD: &str = "build llama.cpp with shared libraries (-DBUILD_SHARED_LIBS=ON); in a static build of your own, link with -Wl,--wrap=ggml_mul_mat and the graft (docs/LLAMA_CPP.md)";

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// llama.cpp's calls are bound by the loader: the graft takes them.
    Graftable,
    /// llama.cpp is there, and its calls were bound when it was linked.
    Bound,
    /// Nothing is bound by a loader: a static executable.
    Static,
    /// No llama.cpp in sight, but the program can open libraries or start programs.
    Undecided,
    /// No llama.cpp, and no way to it.
    None,
    /// No program of Linux.
    Foreign,
}

/// How the program comes to the object that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reached {
    /// It is the program.
    Itself,
    /// The loader loads it when the program starts.
    Needed,
    /// The program can open it while it runs.
    Opened,
}

/// An object with llama.cpp in it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Caller {
    /// The file.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// How the program comes to it.
    pub reached: Reached,
    /// The libraries on the way, the program's first; the object itself is the last.
    pub through: Vec<String>,
    /// The relocation by which its calls are bound: JUMP_SLOT or GLOB_DAT. `None`: they are bound already.
    pub relocation: Option<&'static str>,
    /// For which processor.
    pub machine: &'static str,
    #[serde(skip)]
    pub(super) for_machine: Machine,
}

/// What starting the program with a library of ours takes.
#[derive(Debug, Clone)]
pub struct Loading {
    /// For which processor the program is.
    pub machine: Machine,
    /// The loader that it names; none in a static executable.
    pub interpreter: Option<String>,
}

/// What was found, and what to do.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The program, or a folder of libraries.
    #[serde(serialize_with = "crate::lossy::path")]
    pub program: PathBuf,
    /// The answer.
    pub verdict: Verdict,
    /// Programs that run it, for a script: each runs the one before.
    #[serde(serialize_with = "crate::lossy::paths")]
    pub interpreters: Vec<PathBuf>,
    /// The object that decided; of several the first.
    pub object: Option<Caller>,
    /// More of them.
    pub others: Vec<Caller>,
    /// Libraries that are needed and were not found.
    pub not_found: Vec<String>,
    /// Why.
    pub reason: String,
    /// What to do.
    pub advice: Option<&'static str>,
    /// What a loader has to do with it; none for a folder.
    #[serde(skip)]
    pub loading: Option<Loading>,
}

impl Diagnosis {
    pub(super) fn with(self, verdict: Verdict) -> Self {
        Diagnosis { verdict, ..self }
    }

    /// With the first of `callers` as the one that decides: one for the program's own processor, and the one that names the
    /// projection whose input the adapters change (projectors of images call the function too).
    pub(super) fn decided(self, mut callers: Vec<Caller>) -> Option<Self> {
        let wanted = self.loading.as_ref().map(|l| l.machine).or_else(own_machine);
        callers.sort_by_cached_key(|c| (Some(c.for_machine) != wanted, !has_mark(&c.path, MARKS[0])));
        if callers.is_empty() {
            return None;
        }
        let first = callers.remove(0);
        let advice = (!has_mark(&first.path, MARKS[0])).then_some(NOT_RECOGNISED);
        let how = match first.reached {
            Reached::Itself => "it calls",
            Reached::Needed => "a library that it needs calls",
            Reached::Opened => "a library that it can open calls",
        };
        let relocation = first.relocation.unwrap_or_default();
        let reason = format!("{how} ggml_mul_mat through a dynamic relocation ({relocation})");
        Some(Diagnosis { reason, advice, object: Some(first), others: callers, ..self.with(Verdict::Graftable) })
    }

    pub(super) fn bound(self, mut objects: Vec<Caller>) -> Self {
        let first = objects.remove(0);
        Diagnosis {
            reason: "llama.cpp is inside, and no dynamic relocation is left for ggml_mul_mat: its calls were bound when it was linked".into(),
            advice: Some(REBUILD),
            object: Some(first),
            others: objects,
            ..self.with(Verdict::Bound)
        }
    }

    pub(super) fn advice_on_missing(&self) -> Option<&'static str> {
        let missing = !self.not_found.is_empty();
        missing.then_some("libraries that it needs were not found: set LD_LIBRARY_PATH as it is when the program runs")
    }
}

pub(super) fn foreign(program: &Path, interpreters: Vec<PathBuf>, message: &str) -> Diagnosis {
    Diagnosis {
        interpreters,
        reason: message.to_owned(),
        advice: Some("the graft works for programs of Linux; elsewhere link it in (docs/LLAMA_CPP.md)"),
        ..empty(program, Verdict::Foreign)
    }
}

pub(super) fn empty(program: &Path, verdict: Verdict) -> Diagnosis {
    Diagnosis {
        program: program.to_owned(),
        verdict,
        interpreters: Vec::new(),
        object: None,
        others: Vec::new(),
        not_found: Vec::new(),
        reason: String::new(),
        advice: None,
        loading: None,
    }
}

/// The processor that this program runs on.
fn own_machine() -> Option<Machine> {
    let own = std::env::current_exe().ok()?;
    elf::read(&map_file(&own).ok()?, &[]).ok().map(|object| object.machine)
}
