//! What a person may have meant: hints below an error, never a decision.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, ErrorKind};
use crate::format::hub;
use crate::format::names::is_hidden;
use crate::import::source::weights_of_folder;
use crate::inspect::{Content, content_of};

/// Entries of a folder that are looked at for a similar name.
const MAX_ENTRIES: usize = 10_000;
/// Folders of a folder that are looked into.
const MAX_FOLDERS: usize = 32;
/// Files of a folder that are opened to see what they are: a hint is not worth more, and a file may be made to take long.
const MAX_OPENED: usize = 8;

/// An argument that takes a path, and what may lie there.
#[derive(Debug, Clone)]
struct Place {
    /// As people write it: `ADAPTER`, `--base`.
    name: &'static str,
    takes: &'static [Content],
    path: PathBuf,
}

/// The paths that a command line gives, each with the part that it is to play.
#[derive(Debug, Clone, Default)]
pub struct Given {
    command: String,
    places: Vec<Place>,
    /// Every value of every argument.
    values: Vec<OsString>,
}

impl Given {
    /// From the arguments of the subcommand `command`.
    pub fn of(command: &str, matches: &clap::ArgMatches) -> Given {
        let values = |id: &str| matches.try_get_raw(id).ok().flatten().into_iter().flatten().map(OsString::from);
        let adapter: (&str, &'static [Content]) = match command {
            // These take base models, too.
            "convert" | "quantize" => ("ADAPTER", &[Content::Adapter, Content::Base]),
            "pack" if values("merge").next().is_some() => ("BASE", &[Content::Base]),
            "run" => ("--adapter", &[Content::Adapter]),
            _ => ("ADAPTER", &[Content::Adapter]),
        };
        let arguments: [(&str, (&'static str, &'static [Content])); 9] = [
            ("adapter", adapter),
            ("base", ("--base", &[Content::Base])),
            ("probe", ("--probe", &[Content::Probe])),
            ("against", ("--against", &[Content::Adapter])),
            ("against_base", ("--against-base", &[Content::Base])),
            ("a", ("A", &[Content::Adapter])),
            ("b", ("B", &[Content::Adapter])),
            ("path", ("PATH", &[Content::Adapter, Content::Base, Content::Probe])),
            ("paths", ("PATH", &[Content::Adapter, Content::Base, Content::Probe])),
        ];
        let places = arguments.into_iter().flat_map(|(id, (name, takes))| {
            values(id).map(move |value| Place { name, takes, path: without_scale(value) })
        });
        Given {
            command: command.to_owned(),
            places: places.collect(),
            values: matches.ids().flat_map(|id| values(id.as_str())).collect(),
        }
    }

    fn path(&self, part: &str) -> Option<&Path> {
        self.places.iter().find(|p| p.name == part).map(|p| p.path.as_path())
    }

    /// What was given in a part that it cannot play.
    fn mistaken(&self) -> Vec<String> {
        if let (Some(adapter), Some(base)) = (self.path("ADAPTER"), self.path("--base"))
            && (content_of(adapter), content_of(base)) == (Some(Content::Base), Some(Content::Adapter))
        {
            let line = format!("{} is a base model and {} an adapter: swapped?", shown(adapter), shown(base));
            return vec![line];
        }
        let exist = self.places.iter().filter(|place| place.path.exists());
        exist.filter_map(|place| self.mistaken_at(place)).collect()
    }

    fn mistaken_at(&self, Place { name, takes, path }: &Place) -> Option<String> {
        match content_of(path) {
            Some(found) if takes.contains(&found) => None,
            // A merged model often has the adapter's configuration left beside its own.
            Some(Content::Adapter) if takes.contains(&Content::Base) && path.join("config.json").is_file() => None,
            Some(found) => Some(format!("{} is {}; {name} takes {}", shown(path), what(found), what(takes[0]))),
            // A folder with one checkpoint in it, whatever its name, is read as that checkpoint; a probe is a file.
            None if takes.iter().any(|part| *part != Content::Probe && Some(*part) == lies_in(path)) => None,
            None if path.is_dir() => takes.iter().find_map(|part| match (*part, &inside(path, *part)[..]) {
                (Content::Adapter, [first, second, ..]) => Some(self.one_of_several(path, first, second)),
                (_, found) => the_one(found).map(|p| format!("did you mean {}?", shown(p))),
            }),
            None => takes.iter().find_map(|part| folder_of(path, *part)).map(|p| format!("did you mean {}?", shown(p))),
        }
    }

    fn one_of_several(&self, folder: &Path, first: &Path, second: &Path) -> String {
        let what_helps = match &*self.command {
            "convert" => "`ptplus convert --jobs N --to FORMAT -o FOLDER` takes them all".to_owned(),
            "quantize" => "`ptplus convert --jobs N --to gguf --outtype TYPE -o FOLDER` takes them all".to_owned(),
            _ => format!("give one, such as {} or {}", shown(first), shown(second)),
        };
        format!("{} holds several adapters: {what_helps}", shown(folder))
    }

    /// Whether `path` is what the command line says, not one that was made of it.
    fn has(&self, path: &Path) -> bool {
        self.values.iter().any(|v| v == path.as_os_str()) || self.places.iter().any(|p| p.path == path)
    }
}

/// The path in `FILE:0.5`, as `run` takes adapters.
fn without_scale(value: OsString) -> PathBuf {
    let path = PathBuf::from(value);
    match path.to_str().and_then(|text| text.rsplit_once(':')) {
        Some((file, scale)) if scale.parse::<f32>().is_ok() && !path.exists() => PathBuf::from(file),
        _ => path,
    }
}

/// What the one file with weights in a folder is.
fn lies_in(folder: &Path) -> Option<Content> {
    if folder.is_dir() { weights_of_folder(folder).ok().and_then(|file| content_of(&file)) } else { None }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn what(part: Content) -> &'static str {
    match part {
        Content::Adapter => "an adapter",
        Content::Base => "a base model",
        Content::Probe => "a probe, PyTorch's answer",
    }
}

/// Of a file (`config.json`, one of several shards) the folder that it lies in, if that can play the part.
fn folder_of(path: &Path, part: Content) -> Option<&Path> {
    // Weights of an adapter may be given by themselves: broken ones are no hint that the folder was meant.
    if part != Content::Base && path.extension().is_none_or(|e| e != "json") {
        return None;
    }
    path.parent().filter(|folder| content_of(folder) == Some(part))
}

/// The entries of a folder that can play the part: folders, whose names tell, and of the files the first few. An index is
/// not opened: its shards are.
fn inside(folder: &Path, part: Content) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES).flatten().map(|e| e.path());
    let mut entries: Vec<PathBuf> =
        entries.filter(|path| !is_hidden(path) && path.extension().is_none_or(|e| e != "json")).collect();
    entries.sort();
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.into_iter().partition(|path| path.is_dir());
    let looked_at = folders.into_iter().take(MAX_FOLDERS).chain(files.into_iter().take(MAX_OPENED));
    looked_at.filter(|path| content_of(path) == Some(part)).collect()
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
    if !e.hint_lines().is_empty() {
        return e.hint_lines().to_vec();
    }
    // Numbers that differ, hashes that do not hold: the paths were the right ones.
    if matches!(e.kind(), ErrorKind::Differs | ErrorKind::Integrity) {
        return e.hint_lines().to_vec();
    }
    // A file that is broken inside is of the right kind; to read it again could take as long as to refuse it.
    let is_other_kind =
        matches!(e.code(), Code::GgufMagic | Code::SafetensorsHeader | Code::SafetensorsIndex | Code::ProbeInvalid);
    if e.kind() == ErrorKind::Corrupt && !is_other_kind {
        return Vec::new();
    }
    let mistaken = given.mistaken();
    match (e.code(), e.path()) {
        _ if !mistaken.is_empty() => mistaken,
        (Code::NotFound, Some(path)) => missing(path, given).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// For a path that does not exist.
fn missing(path: &Path, given: &Given) -> Option<String> {
    if path.is_symlink() {
        // It is there; what it leads to is not, as the error says.
        return None;
    }
    let is_address = path.to_string_lossy().contains("://");
    // A name in a folder that is there is a path that somebody mistyped.
    let may_be_id = is_address || path.parent().is_some_and(|p| !p.exists());
    let on_the_hub = || if given.has(path) && may_be_id { hub::about_missing(path) } else { None };
    match is_address {
        true => on_the_hub(),
        false => not_expanded(path).or_else(|| similar_path(path)).or_else(on_the_hub),
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
    let is_meant = |name: &String| is_hidden(Path::new(name)) == is_hidden(&missing);
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(is_meant).collect();
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
    use clap::CommandFactory as _;

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
        let gguf = crate::base_gguf::base_gguf("llama-gqa").display().to_string();
        let hints = |line: &str| {
            let in_place = |w: &str| w.replace("M/base.gguf", &gguf).replace("M/", &format!("{}/", m.display()));
            let words = line.split(' ').map(in_place);
            let matches = crate::cli::Cli::command().try_get_matches_from(words).unwrap();
            let (command, matches) = matches.subcommand().unwrap();
            let shown = Given::of(command, matches).mistaken().join("; ");
            shown.replace(&gguf, "M/base.gguf").replace(&m.display().to_string(), "M")
        };
        let adapter_for = "M/adapter --base M/base --probe M/probe.safetensors";
        for (line, expected) in [
            (format!("ptplus verify {adapter_for}"), ""),
            (format!("ptplus convert {adapter_for} -o x.gguf"), ""),
            (
                "ptplus validate M/base --base M/adapter".into(),
                "M/base is a base model and M/adapter an adapter: swapped?",
            ),
            (
                "ptplus convert M/base --base M/adapter -o x".into(),
                "M/base is a base model and M/adapter an adapter: swapped?",
            ),
            ("ptplus validate M/base.gguf".into(), "M/base.gguf is a base model; ADAPTER takes an adapter"),
            ("ptplus pack M/base --base M/base -o x".into(), "M/base is a base model; ADAPTER takes an adapter"),
            // A base is what these take, too.
            ("ptplus convert M/base -o x.gguf".into(), ""),
            ("ptplus convert M/base.gguf -o x.gguf".into(), ""),
            ("ptplus quantize M/base -o x.gguf q8_0".into(), ""),
            ("ptplus quantize M/base --base M/base -o x.gguf q8_0".into(), ""),
            (
                "ptplus run --base M/base --adapter M/base:0.5".into(),
                "M/base is a base model; --adapter takes an adapter",
            ),
            (
                "ptplus run --base M/base --adapter M/adapter --adapter M/base.gguf".into(),
                "M/base.gguf is a base model; --adapter takes an adapter",
            ),
            ("ptplus validate M/adapter --base M/adapter".into(), "M/adapter is an adapter; --base takes a base model"),
            (
                "ptplus verify M/adapter --base M/base --probe M/base".into(),
                "M/base is a base model; --probe takes a probe, PyTorch's answer",
            ),
            (
                "ptplus verify M/adapter --base M/base --against M/base".into(),
                "M/base is a base model; --against takes an adapter",
            ),
            (
                "ptplus validate M/probe.safetensors".into(),
                "M/probe.safetensors is a probe, PyTorch's answer; ADAPTER takes an adapter",
            ),
            (
                "ptplus convert M/probe.safetensors -o x".into(),
                "M/probe.safetensors is a probe, PyTorch's answer; ADAPTER takes an adapter",
            ),
            (
                "ptplus verify M/ --base M/ --probe M/".into(),
                "did you mean M/adapter?; did you mean M/base?; did you mean M/probe.safetensors?",
            ),
            ("ptplus validate M/adapter --base M/base/config.json".into(), "did you mean M/base?"),
            ("ptplus convert M/base/config.json -o x.gguf".into(), "did you mean M/base?"),
            ("ptplus validate M/adapter/adapter_config.json".into(), "did you mean M/adapter?"),
            ("ptplus validate M/adapter --base M/nowhere".into(), ""),
        ] {
            assert_eq!(hints(&line).replace("M/;", "M;"), expected, "{line}");
        }
        for (line, help) in [
            ("ptplus validate M/../llama-mha/foreign", ": give one, such as "),
            (
                "ptplus convert M/../llama-mha/foreign -o x.gguf",
                ": `ptplus convert --jobs N --to FORMAT -o FOLDER` takes them all",
            ),
        ] {
            let shown = hints(line);
            assert!(shown.contains(&format!("holds several adapters{help}")), "{line}: {shown}");
        }
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
