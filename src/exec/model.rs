//! The model in a llama.cpp program's arguments.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::flags::knows;
use crate::error::{Code, Error, Result};
use crate::format::gguf;
use crate::format::mmap::map_file;

const HINT: &str = "name the model that the program loads with --base, before --";

/// The GGUF file that `-m` or `--model` names; else the one in `from_environment`, the value of `LLAMA_ARG_MODEL`.
///
/// Other programs use `-m` for other things (`python -m MODULE`), so what is no GGUF file is passed by.
///
/// # Errors
///
/// [`Code::Usage`] where none is named, or several; [`Code::NotFound`] where one is named that does not exist.
pub fn model_in(arguments: &[OsString], from_environment: Option<OsString>) -> Result<PathBuf> {
    let mut named = named(arguments);
    if named.is_empty() {
        named.extend(from_environment.filter(|v| !v.is_empty()).map(PathBuf::from));
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for path in named.iter().filter(|p| p.is_file() && map_file(p).is_ok_and(|bytes| gguf::is_gguf(&bytes))) {
        if !found.contains(path) {
            found.push(path.clone());
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => match named.iter().find(|p| p.extension().is_some_and(|e| e == "gguf")) {
            Some(missing) => Err(Error::io(missing, "cannot open the model", std::io::ErrorKind::NotFound.into())),
            None => Err(usage("expected a model among the program's arguments (-m FILE.gguf), found none")),
        },
        several => {
            let names: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            Err(usage(&format!("expected one model among the program's arguments, found {}", names.join(", "))))
        }
    }
}

fn usage(message: &str) -> Error {
    Error::new(Code::Usage, message).field("--base").hints([HINT.to_owned()])
}

/// Whether the arguments name a model, of whatever kind.
pub fn names_model(arguments: &[OsString]) -> bool {
    !named(arguments).is_empty()
}

/// Refuses a program that has no flag for its model: it might ignore it.
///
/// # Errors
///
/// [`Code::ProgramUnfit`]; those of reading the program.
pub fn check_takes_model(program: &Path) -> Result<()> {
    if knows(program, "--model")? && knows(program, "--ctx-size")? {
        return Ok(());
    }
    let message = "expected a program of llama.cpp, which takes a model as -m, found another: give it the bundle's model.gguf itself";
    Err(Error::new(Code::ProgramUnfit, message).file(program))
}

/// The values of `-m` and `--model`, in order.
fn named(arguments: &[OsString]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let joined = ["--model=", "-m="].iter().find_map(|flag| word.as_bytes().strip_prefix(flag.as_bytes()));
        match joined {
            Some(value) => out.push(PathBuf::from(OsStr::from_bytes(value))),
            None if word == "-m" || word == "--model" => out.extend(words.next().map(PathBuf::from)),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found_however_it_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = temp.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (a, b, text) = (file("a.gguf", b"GGUF"), file("b.gguf", b"GGUF"), file("app", b"import x"));
        let model = |line: &[&str], variable: Option<&str>| {
            model_in(&line.iter().map(OsString::from).collect::<Vec<_>>(), variable.map(OsString::from))
        };
        let joined = format!("--model={a}");
        for line in
            [&["-m", &a][..], &["--model", &a], &[&joined], &["-m", "module", "--model", &a], &["-m", &a, "-m", &a]]
        {
            assert_eq!(model(line, Some(&b)).unwrap(), PathBuf::from(&a), "{line:?}");
        }
        assert_eq!(model(&["-md", &b, "-m", &a], None).unwrap(), PathBuf::from(&a), "a draft model is another one");
        assert_eq!(model(&["--port", "1"], Some(&b)).unwrap(), PathBuf::from(&b));
        for line in [&["-m", &a, "-m", &b][..], &[], &["-m"], &["-m", &text], &["-hf", "user/model"]] {
            let e = model(line, None).unwrap_err();
            assert_eq!((e.code(), e.hint_lines().len()), (Code::Usage, 1), "{line:?}: {e}");
        }
        assert_eq!(model(&["-m", "/nowhere.gguf"], None).unwrap_err().code(), Code::NotFound);
    }
}
