//! Where an output may lie, under which name, and what it may replace: never what this program did not write, and never so
//! that a reader takes it, or what lies around it, for something else.

use std::collections::BTreeSet;
use std::path::Path;

use super::check::file_sha256;
use super::manifest::{self, Manifest};
use super::{MANIFEST_FILE, OWN_FILES};
use crate::error::{Code, Error, Result};
use crate::format::gguf;
use crate::format::mmap::map_file;
use crate::format::output::resolved;

/// The files of the bundle in `folder` that are what its manifest lists, by size and SHA-256, texts for people included, and
/// the manifest with its signature. None where there is no valid manifest: then nobody knows who wrote what lies there.
pub fn files_of_bundle(folder: &Path) -> BTreeSet<String> {
    let read = |relative: &str| {
        let path = folder.join(relative);
        let is_file = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_file());
        map_file(&path).ok().filter(|_| is_file)
    };
    let Some(manifest) = read(MANIFEST_FILE).and_then(|text| Manifest::parse(&text).ok()) else {
        return BTreeSet::new();
    };
    let is_unchanged = |relative: &str, size: u64, sha256: &str| {
        read(relative).is_some_and(|bytes| bytes.len() as u64 == size && file_sha256(&bytes) == sha256)
    };
    let listed = manifest
        .files
        .into_iter()
        .chain(manifest.texts)
        .filter(|(relative, e)| is_unchanged(relative, e.size, &e.sha256));
    listed.map(|(relative, _)| relative).chain(OWN_FILES.map(str::to_owned)).collect()
}

/// Refuses an output inside a bundle, at any depth: the bundle would hold what its manifest does not list, or a listed file
/// with other bytes.
///
/// # Errors
///
/// [`Code::OutputPlace`].
pub fn refuse_inside_bundle(output: &Path) -> Result<()> {
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A link to a folder is followed, one in a file's place is replaced.
    let place = if output.is_dir() { resolved(output).parent().map(Path::to_owned) } else { Some(resolved(parent)) };
    let place = place.unwrap_or_default();
    let is_bundle = |folder: &&Path| map_file(&folder.join(MANIFEST_FILE)).is_ok_and(|text| manifest::is_one(&text));
    match place.ancestors().find(is_bundle) {
        None => Ok(()),
        Some(bundle) => {
            let message = format!(
                "the output would lie in the bundle {}, which would not be whole any more; `ptplus pack` makes a new one",
                bundle.display()
            );
            Err(Error::new(Code::OutputPlace, message).file(output))
        }
    }
}

/// Refuses a name under which a GGUF file would be taken for something else: for one part of several, or for a file of
/// another format.
///
/// # Errors
///
/// [`Code::OutputPlace`].
pub fn refuse_name_of_gguf(output: &Path) -> Result<()> {
    const OF_OTHERS: [&str; 17] = [
        "7z",
        "bin",
        "ckpt",
        "gz",
        "htm",
        "html",
        "json",
        "minisig",
        "npz",
        "pickle",
        "pkl",
        "pt",
        "pth",
        "safetensors",
        "tar",
        "xz",
        "zip",
    ];
    let wrong = |message: String| Err(Error::new(Code::OutputPlace, message).file(output));
    if gguf::is_name_of_part(output) {
        return wrong(
            "the output would have the name of one part of several, and readers would look for the others".into(),
        );
    }
    let ending = output.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if OF_OTHERS.contains(&ending.as_str()) {
        return wrong(format!("expected a name that ends in .gguf, found .{ending}, which says another format"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_something_else_are_refused() {
        for bad in
            ["x-00001-of-00002.gguf", "a/x-00002-of-00002.gguf", "x.safetensors", "model.BIN", "config.json", "b.tar"]
        {
            assert_eq!(refuse_name_of_gguf(Path::new(bad)).unwrap_err().code(), Code::OutputPlace, "{bad}");
        }
        for good in ["x.gguf", "x", "x-00001-of-00001.gguf", "x-1-of-2.gguf", "llama-3.2-1b"] {
            refuse_name_of_gguf(Path::new(good)).unwrap();
        }
    }

    #[test]
    fn only_what_is_plainly_a_bundle_keeps_outputs_out() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, below) = (dir.path().join("b"), dir.path().join("b/c/d"));
        std::fs::create_dir_all(&below).unwrap();
        std::os::unix::fs::symlink(&below, dir.path().join("link")).unwrap();
        let outputs = [bundle.join("x"), below.join("x"), bundle.join("new/x"), dir.path().join("link/x")];
        for (text, is_bundle) in [
            (r#"{"schema": "ptplus-bundle/1"}"#, true),
            (r#"{"schema": "ptplus-bundle/2", "files": 1}"#, true),
            (r#"{"self_sha256": "", "schema": "https://example.org"}"#, false),
            (r#"{"about": "schema ptplus-bundle/1, self_sha256"}"#, false),
            ("not JSON: self_sha256", false),
        ] {
            std::fs::write(bundle.join("manifest.json"), text).unwrap();
            for output in &outputs {
                assert_eq!(refuse_inside_bundle(output).is_err(), is_bundle, "{text} {}", output.display());
            }
            refuse_inside_bundle(&bundle).unwrap();
        }
    }
}
