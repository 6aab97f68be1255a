//! What a person may have meant: hints below an error, never a decision.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, escape};

/// Entries of a folder that are looked at for a similar name.
const MAX_ENTRIES: usize = 10_000;

/// Lines to show below `e`.
pub fn hints(e: &Error) -> Vec<String> {
    match (e.code(), e.path()) {
        (Code::NotFound, Some(path)) => similar_path(path).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// For a path that does not exist: the entry with the most similar name beside its first missing part.
fn similar_path(path: &Path) -> Option<String> {
    let missing: PathBuf = path.ancestors().take_while(|p| !p.exists() && !p.as_os_str().is_empty()).last()?.to_owned();
    let name = missing.file_name()?.to_string_lossy().into_owned();
    let parent = missing.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(parent).ok()?.take(MAX_ENTRIES).flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let found = closest(&name, names.iter().map(String::as_str))?;
    Some(format!("did you mean {}?", escape(&missing.with_file_name(found).to_string_lossy())))
}

/// The candidate most like `word`, if it is like it at all; of equals the first in alphabetical order.
pub fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Jaro-Winkler similarity below which clap makes no suggestion either.
    const LIKE: f64 = 0.7;
    let mut sorted: Vec<&str> = candidates.collect();
    sorted.sort_unstable();
    let lower = word.to_lowercase();
    let scored = sorted.into_iter().map(|c| (strsim::jaro_winkler(&lower, &c.to_lowercase()), c));
    scored.filter(|s| s.0 > LIKE).reduce(|best, s| if s.0 > best.0 { s } else { best }).map(|s| s.1)
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
        ] {
            assert_eq!(closest(word, names.into_iter()), expected, "{word}");
        }
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
