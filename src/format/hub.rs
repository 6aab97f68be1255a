//! The Hugging Face hub as it shows on a disk: its cache, and the ids that people know models by. Nothing here asks the
//! network.
//!
//! ```text
//!   CACHE/models--ORG--NAME/refs/main                      the revision's hash
//!                          /snapshots/REVISION/FILE        links into
//!                          /blobs/HASH                     the files
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Bytes of a file in `refs`, which holds a hash of 40 digits.
const MAX_REF_BYTES: u64 = 256;
/// Models of a cache that are named.
const SHOWN: usize = 5;
/// Entries of a cache that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Whether a text is `organization/name`.
pub(crate) fn is_hub_id(text: &str) -> bool {
    let is_part = |s: &str| {
        !s.is_empty() && !s.starts_with(['.', '-']) && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.split_once('/').is_some_and(|(organization, name)| is_part(organization) && is_part(name))
}

/// The folder of the blobs that the snapshot `folder` links to.
pub(super) fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| snapshots.with_file_name("blobs"))
}

/// `ORG/NAME` of a folder `models--ORG--NAME`, or of anything inside one.
pub(crate) fn id_of(path: &Path) -> Option<String> {
    let name = path.ancestors().find_map(|p| p.file_name()?.to_str()?.strip_prefix("models--"))?;
    Some(name.replacen("--", "/", 1))
}

/// `NAME` of the model that `folder` is a snapshot of; the snapshot's own name is a hash.
pub(crate) fn name_of_snapshot(folder: &Path) -> Option<String> {
    blobs(folder)?;
    Some(id_of(folder)?.rsplit('/').next()?.to_owned())
}

/// The snapshot that `models--ORG--NAME` has of its main revision, else the last one by name.
fn snapshot(model: &Path) -> Option<PathBuf> {
    let snapshots = model.join("snapshots");
    let main = model.join("refs/main");
    let revision = (main.metadata().ok().filter(|m| m.is_file() && m.len() <= MAX_REF_BYTES))
        .and_then(|_| std::fs::read_to_string(&main).ok())
        .map(|text| snapshots.join(text.trim()));
    let folders = || std::fs::read_dir(&snapshots).into_iter().flatten().take(MAX_ENTRIES).flatten().map(|e| e.path());
    revision
        .filter(|p| p.is_dir() && p.parent() == Some(&*snapshots))
        .or_else(|| folders().filter(|p| p.is_dir()).max())
}

/// The snapshots in a cache.
fn snapshots(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let is_model = |name: &OsString| name.to_string_lossy().starts_with("models--");
    let mut found: Vec<PathBuf> =
        entries.filter(|e| is_model(&e.file_name())).filter_map(|e| snapshot(&e.path())).collect();
    found.sort();
    found
}

/// What helps where `folder` is a cache, a model in one, or the folder that a cache lies in.
pub(super) fn about_folder(folder: &Path) -> Option<String> {
    if folder.join("snapshots").is_dir() && id_of(folder).is_some() {
        return Some(match snapshot(folder) {
            Some(path) => format!("the files of a model in the Hugging Face cache lie in {}", path.display()),
            None => not_downloaded(folder),
        });
    }
    let found = [snapshots(folder), snapshots(&folder.join("hub"))].concat();
    if found.is_empty() {
        return None;
    }
    let shown: Vec<String> = found.iter().take(SHOWN).map(|p| p.display().to_string()).collect();
    let more = if found.len() > SHOWN { format!(" and {} more", found.len() - SHOWN) } else { String::new() };
    Some(format!("{} is a Hugging Face cache; the models in it: {}{more}", folder.display(), shown.join(", ")))
}

fn not_downloaded(path: &Path) -> String {
    let id = id_of(path).unwrap_or_else(|| "ORG/NAME".to_owned());
    format!("the Hugging Face cache has a link without its file: `hf download {id}` fetches what is missing")
}

/// What helps where a link of a cache leads nowhere.
pub(super) fn about_broken_link(link: &Path) -> Option<String> {
    let is_snapshot = link.parent().and_then(blobs).is_some();
    (is_snapshot && id_of(link).is_some()).then(|| not_downloaded(link))
}

/// What helps where `path`, which does not exist, is the name of something on the hub or elsewhere in the network.
#[cfg(feature = "cli")]
pub(crate) fn about_missing(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let on_a_site =
        (["huggingface.co/", "www.huggingface.co/", "hf.co/"].iter()).find_map(|site| rest.strip_prefix(site));
    let (is_address, id) = match (scheme, on_a_site) {
        ("http" | "https" | "", Some(id)) => (true, id),
        ("hf", _) => (true, rest),
        ("", None) => (false, rest),
        ("file", _) => return Some(format!("paths are written without file://, as {rest}")),
        _ => return Some("ptplus never opens the network: download the file, and give its path".to_owned()),
    };
    let mut parts = id.trim_end_matches('/').split('/');
    let mut part = || parts.next().filter(|p| is_id_part(p));
    let (org, name) = (part()?, part()?);
    // `@` begins a revision, and what follows in a path names files or a revision.
    let rest: Vec<&str> = parts.collect();
    if !is_address && (!rest.is_empty() || has_ending_of_files(name)) {
        return None;
    }
    let name = name.split('@').next().unwrap_or(name);
    let id = format!("{org}/{name}");
    if let Some(snapshot) = cache().and_then(|c| snapshot(&c.join(format!("models--{org}--{name}")))) {
        return Some(format!("{id} is in the Hugging Face cache, at {}", snapshot.display()));
    }
    let file = match &rest[..] {
        ["blob" | "resolve", _, file @ ..] if !file.is_empty() => format!(" {}", file.join("/")),
        ["tree", ..] | [] => String::new(),
        file => format!(" {}", file.join("/")),
    };
    Some(format!(
        "ptplus takes paths, and never opens the network: `hf download {id}{file} --local-dir {name}` fetches it into {name}"
    ))
}

/// What ids of the hub are made of.
#[cfg(feature = "cli")]
fn is_id_part(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    !part.is_empty() && !part.starts_with(['.', '-']) && part.chars().all(is_plain)
}

/// `out/adapter.gguf` is no id.
#[cfg(feature = "cli")]
fn has_ending_of_files(name: &str) -> bool {
    const ENDINGS: [&str; 12] =
        ["bin", "ckpt", "gguf", "html", "jinja", "json", "npz", "pt", "pth", "safetensors", "tar", "toml"];
    name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&&*ending.to_lowercase()))
}

/// Where huggingface_hub keeps its cache: the same variables, in the same order.
#[cfg(feature = "cli")]
fn cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").map(|home| home.join(".cache"));
    (variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")))
        .or_else(|| variable("HF_HOME").map(|p| p.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").or_else(home).map(|p| p.join("huggingface/hub")))
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    /// A cache with one model of one revision.
    fn cache_with(id: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join(format!("models--{}", id.replace('/', "--")));
        let snapshot = model.join("snapshots").join("ab".repeat(20));
        for folder in [&snapshot, &model.join("snapshots/zz"), &model.join("refs"), &model.join("blobs")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(model.join("refs/main"), "ab".repeat(20)).unwrap();
        (dir, snapshot)
    }

    #[test]
    fn a_cache_and_a_model_in_it_name_the_snapshot_that_is_meant() {
        let (dir, of_main) = cache_with("Qwen/Qwen2.5-0.5B");
        let model = of_main.ancestors().nth(2).unwrap();
        assert_eq!(id_of(&of_main).as_deref(), Some("Qwen/Qwen2.5-0.5B"));
        assert_eq!(name_of_snapshot(&of_main).as_deref(), Some("Qwen2.5-0.5B"));
        assert_eq!(name_of_snapshot(model), None);
        for folder in [dir.path(), model] {
            let help = about_folder(folder).unwrap();
            assert!(help.ends_with(&of_main.display().to_string()), "{help}");
        }
        // Without the reference: the last by name. It is a file of somebody else's, and leads nowhere else.
        std::fs::write(model.join("refs/main"), "../../../etc").unwrap();
        assert_eq!(snapshot(model), Some(model.join("snapshots/zz")));
        assert_eq!(about_folder(&of_main), None);
        std::fs::remove_dir_all(model.join("snapshots")).unwrap();
        std::fs::create_dir(model.join("snapshots")).unwrap();
        assert!(about_folder(model).unwrap().contains("`hf download Qwen/Qwen2.5-0.5B`"));
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        let help = |text: &str| about_missing(Path::new(text)).unwrap_or_default();
        let fetched = "`hf download no-such-org/Model-0.5B --local-dir Model-0.5B`";
        for text in [
            "no-such-org/Model-0.5B",
            "hf://no-such-org/Model-0.5B",
            "hf://no-such-org/Model-0.5B@main",
            "https://huggingface.co/no-such-org/Model-0.5B",
            "https://huggingface.co/no-such-org/Model-0.5B/tree/main",
            "https://hf.co/no-such-org/Model-0.5B/",
            "huggingface.co/no-such-org/Model-0.5B",
        ] {
            assert!(help(text).contains(fetched), "{text}: {}", help(text));
        }
        let one_file = "`hf download no-such-org/M f/x.gguf --local-dir M`";
        for text in ["hf://no-such-org/M/f/x.gguf", "https://huggingface.co/no-such-org/M/resolve/main/f/x.gguf"] {
            assert!(help(text).contains(one_file), "{text}: {}", help(text));
        }
        for text in ["https://example.com/x.gguf", "s3://bucket/x", "gs://bucket/x"] {
            assert!(help(text).contains("never opens the network"), "{text}");
        }
        assert_eq!(help("file:///tmp/x"), "paths are written without file://, as /tmp/x");
        for text in ["gpt2", "out/adapter.gguf", "out/x.safetensors", "a/b/c", "/a/b", "./a/b", "../a", "a b/c", "a//b"]
        {
            assert_eq!(help(text), "", "{text}");
        }
    }
}
