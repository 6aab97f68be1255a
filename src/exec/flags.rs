//! Flags of llama.cpp's programs by which they get what adapters say beside their numbers: the chat template, and how to sample.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Store;
use crate::about::{About, Sampling, agreed};
use crate::error::Result;
use crate::format::gguf::Value;
use crate::format::mmap::map_file;

const TEMPLATE: &str = "--chat-template-file";
/// Without it, older programs take only templates that they know; it has to come first.
const JINJA: &str = "--jinja";
/// Ways to name another template: flags, and variables that llama.cpp reads in their place.
const OTHER_TEMPLATES: [&str; 2] = [TEMPLATE, "--chat-template"];
const TEMPLATE_VARIABLES: [&str; 2] = ["LLAMA_ARG_CHAT_TEMPLATE", "LLAMA_ARG_CHAT_TEMPLATE_FILE"];
/// Other spellings of flags of sampling.
const SPELLINGS: [(&str, &str); 1] = [("--temp", "--temperature")];

/// What adapters have a program started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Arguments to add.
    pub arguments: Vec<OsString>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// The flags for what `adapters` say and `given` does not. A program that knows none of the flags gets none: it has to use the
/// template itself. Without a program, nobody's flags are known, so all are shown.
///
/// # Errors
///
/// Those of [`agreed`], [`Store::put`] and of reading the program.
pub fn said(
    adapters: &[&About],
    program: Option<&Path>,
    given: &[OsString],
    variable: &dyn Fn(&str) -> bool,
    store: &Store,
) -> Result<Said> {
    let mut out = Said::default();
    let knows = |flag: &str| program.map_or(Ok(true), |p| knows(p, flag));
    let mut shown = Vec::new();
    if !is_given(given, &OTHER_TEMPLATES) && !TEMPLATE_VARIABLES.iter().any(|name| variable(name)) {
        let template = agreed(TEMPLATE, adapters.iter().map(|a| a.chat_template.as_deref()))?;
        if let Some(text) = template {
            let file = store.put("templates", "chat_template.jinja", text.as_bytes())?;
            if knows(TEMPLATE)? {
                if knows(JINJA)? && !is_given(given, &[JINJA, "--no-jinja"]) {
                    out.arguments.push(JINJA.into());
                }
                out.arguments.extend([TEMPLATE.into(), file.into()]);
                shown.push(format!("its chat template ({TEMPLATE})"));
            } else {
                out.notes.push(format!(
                    "the program has to use the chat template that the adapter says itself: {}",
                    file.display()
                ));
            }
        }
    }
    let all: Vec<Sampling> = adapters.iter().map(|a| left_open(&a.sampling, given)).collect();
    for (flag, _, value) in Sampling::agreed(Sampling::default(), &all)?.stated() {
        if knows(flag)? {
            let value = match value {
                Value::F32(x) => x.to_string(),
                other => other.to_json(None).to_string(),
            };
            shown.push(format!("{flag} {value}"));
            out.arguments.extend([flag.into(), value.into()]);
        }
    }
    if !shown.is_empty() {
        out.notes.insert(0, format!("as the adapter says: {}; flags of the program override", shown.join(", ")));
    }
    for system in adapters.iter().filter_map(|a| a.system.as_deref()) {
        out.notes.push(format!("the adapter wants a system message, which whoever asks has to send: {system:?}"));
    }
    Ok(out)
}

/// What no argument says already.
fn left_open(said: &Sampling, given: &[OsString]) -> Sampling {
    let is_open = |flag: &'static str| {
        let other = SPELLINGS.iter().filter(|(own, _)| *own == flag).map(|(_, other)| *other);
        !is_given(given, &other.chain([flag]).collect::<Vec<_>>())
    };
    Sampling {
        temp: said.temp.filter(|_| is_open("--temp")),
        top_k: said.top_k.filter(|_| is_open("--top-k")),
        top_p: said.top_p.filter(|_| is_open("--top-p")),
        min_p: said.min_p.filter(|_| is_open("--min-p")),
        repeat_penalty: said.repeat_penalty.filter(|_| is_open("--repeat-penalty")),
        repeat_last_n: said.repeat_last_n.filter(|_| is_open("--repeat-last-n")),
    }
}

/// Whether one of `flags` is among the arguments, with its value behind it or after `=`.
pub(super) fn is_given(arguments: &[OsString], flags: &[&str]) -> bool {
    arguments.iter().any(|word| {
        let word = word.as_bytes();
        let name = word.split(|b| *b == b'=').next().unwrap_or(word);
        flags.iter().any(|flag| name == flag.as_bytes())
    })
}

/// Whether a program, or what it has in common with others of its build, holds the name of a flag.
///
/// # Errors
///
/// Those of reading them.
pub(super) fn knows(program: &Path, flag: &str) -> Result<bool> {
    let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    for file in [real.clone()].into_iter().chain(common_libraries(&real)) {
        if memchr::memmem::find(&map_file(&file)?, flag.as_bytes()).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Shared builds have what their programs have in common in a library.
fn common_libraries(program: &Path) -> Vec<PathBuf> {
    let Some(folder) = program.parent() else { return Vec::new() };
    let folders = [folder.to_owned(), folder.join("../lib")];
    let entries = folders.iter().filter_map(|f| std::fs::read_dir(f).ok()).flatten().filter_map(Result::ok);
    let is_common = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        (name.starts_with("libllama-common") || name.starts_with("libcommon")) && path.is_file()
    };
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(is_common).collect();
    found.sort();
    found
}
