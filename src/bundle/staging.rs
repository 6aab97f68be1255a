//! Where a bundle grows until it gets its name, and what the manifest will say of its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::seal;
use crate::error::Result;
use crate::format::bundle::check::file_sha256;
use crate::format::bundle::manifest::FileEntry;
use crate::format::bundle::{OWN_FILES, place};
use crate::format::mmap::map_file;
use crate::format::output::{OutputFile, OutputFolder, Overwrite, Replace, Scratch};
use crate::tensor::Bytes;

/// Where a bundle grows.
pub enum Place {
    Folder(OutputFolder),
    Archive(OutputFile, Scratch),
}

impl Place {
    /// Opens the place of `output`, which is none of `inputs`.
    ///
    /// # Errors
    ///
    /// [`Code::OutputPlace`](crate::error::Code::OutputPlace), [`Code::OutputExists`](crate::error::Code::OutputExists); those of the
    /// file system.
    pub fn open(output: &Path, is_tar: bool, overwrite: Overwrite, inputs: &[&Path]) -> Result<Place> {
        place::refuse_inside_bundle(output)?;
        if is_tar {
            return Ok(Place::Archive(OutputFile::create(output, overwrite, inputs)?, Scratch::beside(output)?));
        }
        let replace = match overwrite {
            Overwrite::Never => Replace::Nothing,
            Overwrite::Force => Replace::Files(place::files_of_bundle(output)),
        };
        Ok(Place::Folder(OutputFolder::create(output, replace, inputs)?))
    }

    /// The folder in which the weights' files are made.
    pub fn work(&self) -> &Path {
        match self {
            Place::Folder(folder) => folder.staged_path(),
            Place::Archive(_, scratch) => scratch.path(),
        }
    }

    /// Writes what is missing and puts the bundle in its place.
    pub fn put(self, files: &[String], texts: &BTreeMap<String, Vec<u8>>) -> Result<PathBuf> {
        match self {
            Place::Folder(folder) => {
                files.iter().for_each(|file| folder.adopt(file));
                // The manifest comes last: without it nothing is a bundle.
                let last = |path: &str| OWN_FILES.contains(&path);
                let (end, begin): (Vec<_>, Vec<_>) = texts.iter().partition(|(path, _)| last(path));
                for (path, text) in begin.into_iter().chain(end) {
                    folder.file(path)?.write_all_at(0, text)?;
                }
                let target = folder.target().to_owned();
                folder.commit()?;
                Ok(target)
            }
            Place::Archive(out, scratch) => {
                let mut all: BTreeMap<&str, Bytes> =
                    texts.iter().map(|(path, text)| (path.as_str(), Bytes::from(text.clone()))).collect();
                for file in files {
                    all.insert(file, map_file(&scratch.path().join(file))?);
                }
                seal::write_archive(&out, &all)?;
                let target = out.target().to_owned();
                out.commit()?;
                Ok(target)
            }
        }
    }
}

/// What the manifest says of the weights in the working folder and of the texts.
///
/// # Errors
///
/// Those of opening the files.
pub fn entries(
    work: &Path,
    files: &[String],
    texts: &BTreeMap<String, Vec<u8>>,
) -> Result<BTreeMap<String, FileEntry>> {
    let mut all: Vec<(String, Bytes)> =
        texts.iter().map(|(path, text)| (path.clone(), Bytes::from(text.clone()))).collect();
    for file in files {
        all.push((file.clone(), map_file(&work.join(file))?));
    }
    let hashed = |(path, bytes): (String, Bytes)| (path, entry(&bytes));
    Ok(all.into_par_iter().map(hashed).collect::<Vec<_>>().into_iter().collect())
}

/// What it says of one.
pub fn entry(bytes: &Bytes) -> FileEntry {
    FileEntry { size: bytes.len() as u64, sha256: file_sha256(bytes) }
}
