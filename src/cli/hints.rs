//! What a person may have meant: hints below an error, never a decision.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Kind};
use crate::inspect::{Lies, lies_at};

/// Entries of a folder that are looked at for a similar name.
const MAX_ENTRIES: usize = 10_000;
/// Folders of a folder that are looked into.
const MAX_FOLDERS: usize = 32;
/// Files of a folder that are opened to see what they are: a hint is not worth more, and a file may be made to take long.
const MAX_OPENED: usize = 8;

/// The paths that a command line gives, each with the part that it is to play.
#[derive(Debug, Clone, Default)]
pub struct Given(Vec<(Lies, PathBuf)>);

impl Given {
    /// From the arguments of a subcommand: `ADAPTER`, `--base` and `--probe`, wherever the command has them.
    pub fn of(matches: &clap::ArgMatches) -> Given {
        let parts = [("adapter", Lies::Adapter), ("base", Lies::Base), ("probe", Lies::Probe)];
        let first = |id: &str| Some(PathBuf::from(matches.try_get_raw(id).ok()??.next()?));
        Given(parts.into_iter().filter_map(|(id, part)| Some((part, first(id)?))).collect())
    }

    fn path(&self, part: Lies) -> Option<&Path> {
        self.0.iter().find(|(p, _)| *p == part).map(|(_, path)| path.as_path())
    }

    /// What was given in a part that it cannot play.
    fn mistaken(&self) -> Vec<String> {
        let shown = |path: &Path| path.to_string_lossy().into_owned();
        if let (Some(adapter), Some(base)) = (self.path(Lies::Adapter), self.path(Lies::Base))
            && (lies_at(adapter), lies_at(base)) == (Some(Lies::Base), Some(Lies::Adapter))
        {
            let line = format!("{} is a base model and {} an adapter: swapped?", shown(adapter), shown(base));
            return vec![line];
        }
        let mut out = Vec::new();
        for (part, path) in self.0.iter().filter(|(_, path)| path.exists()) {
            match lies_at(path) {
                Some(found) if found != *part => {
                    let (found, place) = (what(found), place(*part));
                    out.push(format!("{} is {found}; {place} takes {}", shown(path), what(*part)));
                }
                Some(_) => {}
                None if path.is_dir() => match (*part, &inside(path, *part)[..]) {
                    (Lies::Adapter, [_, _, ..]) => out.push(format!(
                        "{} holds several adapters: `ptplus convert --jobs N` takes them all",
                        shown(path)
                    )),
                    (_, found) => out.extend(the_one(found).map(|p| format!("did you mean {}?", shown(p)))),
                },
                None => out.extend(folder_of(path, *part).map(|p| format!("did you mean {}?", shown(p)))),
            }
        }
        out
    }
}

fn what(part: Lies) -> &'static str {
    match part {
        Lies::Adapter => "an adapter",
        Lies::Base => "a base model",
        Lies::Probe => "a probe, PyTorch's answer",
    }
}

fn place(part: Lies) -> &'static str {
    match part {
        Lies::Adapter => "ADAPTER",
        Lies::Base => "--base",
        Lies::Probe => "--probe",
    }
}

/// Of a file (`config.json`, one of several shards) the folder that it lies in, if that can play the part.
fn folder_of(path: &Path, part: Lies) -> Option<&Path> {
    // Weights of an adapter may be given by themselves: broken ones are no hint that the folder was meant.
    if part != Lies::Base && path.extension().is_none_or(|e| e != "json") {
        return None;
    }
    path.parent().filter(|folder| lies_at(folder) == Some(part))
}

/// The entries of a folder that can play the part: folders, whose names tell, and of the files the first few. An index is
/// not opened: its shards are.
fn inside(folder: &Path, part: Lies) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES).flatten().map(|e| e.path());
    let mut entries: Vec<PathBuf> = entries.filter(|path| path.extension().is_none_or(|e| e != "json")).collect();
    entries.sort();
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.into_iter().partition(|path| path.is_dir());
    let looked_at = folders.into_iter().take(MAX_FOLDERS).chain(files.into_iter().take(MAX_OPENED));
    looked_at.filter(|path| lies_at(path) == Some(part)).collect()
}

/// The one that is meant. A base often lies there twice, as a folder and as GGUF: then the folder.
fn the_one(found: &[PathBuf]) -> Option<&PathBuf> {
    let folders: Vec<&PathBuf> = found.iter().filter(|p| p.is_dir()).collect();
    match (found, &folders[..]) {
        ([one], _) => Some(one),
        (_, [one]) => Some(*one),
        _ => None,
    }
}

/// Lines to show below `e`.
pub fn hints(e: &Error, given: &Given) -> Vec<String> {
    // Numbers that differ, hashes that do not hold: the paths were the right ones.
    if matches!(e.kind(), Kind::Differs | Kind::Integrity) {
        return Vec::new();
    }
    // A file that is broken inside is of the right kind; to read it again could take as long as to refuse it.
    let is_other_format = matches!(e.code(), Code::GgufMagic | Code::SafetensorsHeader | Code::SafetensorsIndex);
    if e.kind() == Kind::Corrupt && !is_other_format {
        return e.hint_lines().to_vec();
    }
    if !e.hint_lines().is_empty() {
        return e.hint_lines().to_vec();
    }
    let mistaken = given.mistaken();
    match (e.code(), e.path()) {
        _ if !mistaken.is_empty() => mistaken,
        (Code::NotFound, Some(path)) => not_expanded(path).or_else(|| similar_path(path)).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// `--base=~/x`: a shell expands `~` only at the start of a word.
fn not_expanded(path: &Path) -> Option<String> {
    let rest = path.strip_prefix("~").ok()?;
    Some(format!("the shell did not expand ~: write a space before it, or $HOME/{}", rest.display()))
}

/// For a path that does not exist: the entry with the most similar name beside its first missing part.
fn similar_path(path: &Path) -> Option<String> {
    let missing: PathBuf = path.ancestors().take_while(|p| !p.exists() && !p.as_os_str().is_empty()).last()?.to_owned();
    let name = missing.file_name()?.to_string_lossy().into_owned();
    let parent = missing.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(parent).ok()?.take(MAX_ENTRIES).flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let found = closest(&name, names.iter().map(String::as_str))?;
    Some(format!("did you mean {}?", missing.with_file_name(found).to_string_lossy()))
}

/// The candidate most like `word`, if it is like it at all; of equals the first in alphabetical order.
pub fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Share of the longer word that may stay: `elu+1` is `elu` with two of five characters changed.
    const LIKE: f64 = 0.6;
    let mut sorted: Vec<&str> = candidates.collect();
    sorted.sort_unstable();
    let lower = word.to_lowercase();
    let scored = sorted.into_iter().map(|c| (strsim::normalized_damerau_levenshtein(&lower, &c.to_lowercase()), c));
    scored.filter(|s| s.0 >= LIKE).reduce(|best, s| if s.0 > best.0 { s } else { best }).map(|s| s.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_suggested_and_nothing_far_fetched() {
        let names = ["elu", "elu_plus_one", "relu", "gelu", "gelu_tanh", "silu"];
        for (word, expected) in [
            ("elu2", Some("elu")),
            ("ELU", Some("elu")),
            ("elu+1", Some("elu")),
            ("gelutanh", Some("gelu_tanh")),
            ("xyz", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, names.into_iter()), expected, "{word}");
        }
    }

    #[test]
    fn paths_in_the_wrong_part_are_told() {
        let m = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-gqa");
        let given = |list: &[(Lies, &str)]| Given(list.iter().map(|(part, p)| (*part, m.join(p))).collect());
        let line = |list: &[(Lies, &str)]| given(list).mistaken().join("; ").replace(&m.display().to_string(), "M");
        use Lies::*;
        assert_eq!(line(&[(Adapter, "adapter"), (Base, "base"), (Probe, "probe.safetensors")]), "");
        assert_eq!(
            line(&[(Adapter, "base"), (Base, "adapter")]),
            "M/base is a base model and M/adapter an adapter: swapped?"
        );
        assert_eq!(line(&[(Adapter, "base.gguf")]), "M/base.gguf is a base model; ADAPTER takes an adapter");
        assert_eq!(line(&[(Base, "adapter")]), "M/adapter is an adapter; --base takes a base model");
        assert_eq!(line(&[(Probe, "base")]), "M/base is a base model; --probe takes a probe, PyTorch's answer");
        assert_eq!(
            line(&[(Adapter, "probe.safetensors")]),
            "M/probe.safetensors is a probe, PyTorch's answer; ADAPTER takes an adapter"
        );
        assert_eq!(
            line(&[(Adapter, ""), (Base, ""), (Probe, "")]),
            "did you mean M/adapter?; did you mean M/base?; did you mean M/probe.safetensors?"
        );
        assert_eq!(line(&[(Base, "base/config.json")]), "did you mean M/base?");
        assert_eq!(line(&[(Adapter, "adapter/adapter_config.json")]), "did you mean M/adapter?");
        assert_eq!(line(&[(Base, "nowhere")]), "");
        let several = Given(vec![(Adapter, m.parent().unwrap().join("llama-mha/foreign"))]).mistaken();
        assert!(
            several.len() == 1
                && several[0].ends_with("holds several adapters: `ptplus convert --jobs N` takes them all"),
            "{several:?}"
        );
        assert!(not_expanded(Path::new("~/x/y")).unwrap().ends_with("$HOME/x/y"));
        assert_eq!(not_expanded(Path::new("a/~")), None);
    }

    #[test]
    fn a_missing_file_names_its_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("adapter")).unwrap();
        std::fs::write(dir.path().join("adapter/probe.safetensors"), b"").unwrap();
        let hint = |p: &str| similar_path(&dir.path().join(p));
        let shown = |p: &str| Some(format!("did you mean {}?", dir.path().join(p).display()));
        assert_eq!(hint("adapter/prob.safetensors"), shown("adapter/probe.safetensors"));
        assert_eq!(hint("adaptor/probe.safetensors"), shown("adapter"));
        assert_eq!(hint("zzz"), None);
    }
}
