//! A bundle's files as bytes, whether they lie in a folder or in a tar archive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::path::check_path;
use super::tar::{self, Strictness};
use super::{MANIFEST_FILE, MODEL_FILE, manifest};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::limits::{BUNDLE_DEPTH, BUNDLE_ENTRIES, BUNDLE_FILES};
use crate::format::mmap::map_file;
use crate::format::{links, recognize};
use crate::tensor::Bytes;

/// The files of a bundle, not yet checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The folder or the archive.
    pub path: PathBuf,
    /// Whether it is an archive.
    pub is_tar: bool,
    /// Every plain file by its path in the bundle; the bytes lie in memory maps.
    pub files: BTreeMap<String, Bytes>,
    /// Links, bad paths, deviations of an archive.
    pub findings: Vec<Finding>,
    /// What was passed over: a repository's own.
    pub of_repository: Vec<&'static str>,
}

/// What a clone or a download has beside the files.
const OF_REPOSITORIES: [&str; 2] = [".git", ".cache"];

impl Bundle {
    /// Opens a bundle as it is packed.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`], [`Code::Io`]; [`Code::UnknownFormat`] for a file that is no tar archive. What breaks a
    /// rule of bundles is in [`findings`](Self::findings).
    pub fn open(path: &Path) -> Result<Bundle> {
        Self::open_as(path, Strictness::Exact)
    }

    /// [`open`](Self::open), reading an archive more or less strictly.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_as(path: &Path, strictness: Strictness) -> Result<Bundle> {
        let meta = std::fs::metadata(path).map_err(|e| links::not_opened(path, "cannot open the bundle", e))?;
        if meta.is_dir() {
            return Self::open_folder(path);
        }
        let bytes = map_file(path)?;
        if !tar::is_tar(&bytes) && !is_called_tar(path) {
            let message = "expected a bundle (a folder, or a tar archive of one), found another file";
            return Err(recognize::named(path, &bytes, Error::new(Code::UnknownFormat, message)).file(path));
        }
        recognize::refuse_stand_in(&bytes).map_err(|e| e.file(path))?;
        Ok(Self::from_tar(path, &bytes, strictness))
    }

    /// An archive in memory; `path` only names it.
    pub fn from_tar(path: &Path, bytes: &Bytes, strictness: Strictness) -> Bundle {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let (files, findings) = tar::read(&name, bytes, strictness);
        Bundle { path: path.to_owned(), is_tar: true, files, findings, of_repository: Vec::new() }
    }

    fn open_folder(root: &Path) -> Result<Bundle> {
        let mut found = Bundle {
            path: root.to_owned(),
            is_tar: false,
            files: BTreeMap::new(),
            findings: Vec::new(),
            of_repository: Vec::new(),
        };
        let mut folders: Vec<(String, usize)> = vec![(String::new(), 0)];
        let mut n_all = 0;
        while let Some((folder, depth)) = folders.pop() {
            let here = root.join(&folder);
            let failed = |e| Error::io(&here, "cannot list the folder", e);
            let mut n_entries = 0;
            for entry in std::fs::read_dir(&here).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                n_entries += 1;
                n_all += 1;
                if n_all > BUNDLE_ENTRIES {
                    let expected = format!("at most {BUNDLE_ENTRIES} files and folders");
                    let place = if folder.is_empty() { "the folder".to_owned() } else { folder };
                    found.findings.push(Finding::new(Code::BundleExtra, place, expected, "more"));
                    return Ok(found);
                }
                let name = entry.file_name();
                let shown = format!("{folder}{}", name.to_string_lossy());
                let kind = entry.file_type().map_err(failed)?;
                let mut refuse = |code, expected: &str, found_is: String| {
                    found.findings.push(Finding::new(code, &shown, expected, found_is));
                };
                if name.to_str().is_none() {
                    refuse(Code::BundlePath, "a name in UTF-8", "another".into());
                } else if let Err(e) = check_path(&shown) {
                    refuse(e.code(), "a path of a bundle", e.message().into());
                } else if let Some(own) = OF_REPOSITORIES.iter().find(|own| folder.is_empty() && ***own == shown) {
                    found.of_repository.push(own);
                } else if kind.is_dir() && depth < BUNDLE_DEPTH {
                    folders.push((format!("{shown}/"), depth + 1));
                } else if kind.is_file() || (kind.is_symlink() && links::is_in_hub_cache(root, &entry.path())) {
                    if found.files.len() >= BUNDLE_FILES {
                        refuse(Code::BundleExtra, &format!("at most {BUNDLE_FILES} files"), "more".into());
                        return Ok(found);
                    }
                    let bytes = map_file(&entry.path())?;
                    found.files.insert(shown, bytes);
                } else if kind.is_symlink() {
                    refuse(Code::BundleLink, "a plain file", "a symbolic link".into());
                } else {
                    let what = if kind.is_dir() { "a folder that deep" } else { "a pipe, socket or device" };
                    refuse(Code::BundleLink, "a plain file", what.into());
                }
            }
            if n_entries == 0 && !folder.is_empty() {
                found.findings.push(Finding::new(Code::BundleExtra, folder, "no empty folder", "one"));
            }
        }
        Ok(found)
    }
}

/// Whether a bundle lies at `path`: a folder with a `manifest.json` that is not plainly another program's, or a tar
/// archive.
pub fn is_bundle(path: &Path) -> bool {
    if path.is_dir() {
        let manifest = path.join(MANIFEST_FILE);
        // A link, a pipe or a file that cannot be read: `check` says what is wrong with it.
        return std::fs::symlink_metadata(&manifest).is_ok()
            && map_file(&manifest).map_or(true, |bytes| manifest::may_be_of_bundle(&bytes));
    }
    path.is_file() && (is_called_tar(path) || map_file(path).is_ok_and(|bytes| tar::is_tar(&bytes)))
}

/// Whether a bundle of a model lies at `path`, by the name of the file in it.
pub fn holds_model(path: &Path) -> bool {
    if path.is_dir() {
        return path.join(MODEL_FILE).is_file() && is_bundle(path);
    }
    is_bundle(path) && Bundle::open_as(path, Strictness::Unpack).is_ok_and(|b| b.files.contains_key(MODEL_FILE))
}

/// A damaged archive has its name left.
pub fn is_called_tar(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"))
}
