//! Safetensors: a JSON header and contiguous tensors.
//!
//! ```text
//!   header length u64 (little endian)
//!   {"__metadata__":{str:str..}, NAME:{"dtype":str,"shape":[int..],"data_offsets":[begin,end]}..} and spaces
//!   tensors without gaps; offsets count from here
//! ```
//!
//! Source: <https://github.com/huggingface/safetensors#format> and the crate's `Metadata::validate`. The crate gives
//! its verdict on every file; `header` adds the rules that it is lax about.

mod header;
#[cfg(test)]
mod tests;
mod write;

pub use write::plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::{self, Shard};
pub use super::magic::is_safetensors;
use super::mmap::map_file;
use super::{StoredTensor, pickle, recognize};
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

const METADATA: &str = "__metadata__";

/// A parsed safetensors file, or all shards of a model.
#[derive(Debug, Clone)]
pub struct Safetensors {
    /// The file, or the index of a sharded model.
    pub path: PathBuf,
    /// Every file with tensors: one, or the shards by name.
    pub files: Vec<Arc<Path>>,
    /// `__metadata__`; of a sharded model, the entries on which all shards agree.
    pub metadata: BTreeMap<String, String>,
    /// All tensors, in file order, their bytes lazy.
    pub tensors: Vec<StoredTensor>,
    /// Bytes of all files with tensors together.
    pub len_bytes: u64,
}

/// Opens one safetensors file.
///
/// # Errors
///
/// [`Code::SafetensorsHeader`], [`Code::SafetensorsDtype`], [`Code::NameInvalid`], [`Code::NameDuplicate`],
/// and those of [`map_file`].
pub fn open(path: &Path) -> Result<Safetensors> {
    parse(path, &map_file(path)?)
}

/// Opens all shards of a model, given its `*.safetensors.index.json`. Each shard is opened once; index and shards must
/// list exactly the same tensors.
///
/// # Errors
///
/// [`Code::UnknownFormat`] where a shard is a PyTorch checkpoint; those of [`index::read`] and [`open`].
pub fn open_index(path: &Path) -> Result<Safetensors> {
    open_shards(path, &index::read(path)?)
}

/// [`open_index`], of an index that was read.
///
/// # Errors
///
/// As there.
pub fn open_shards(path: &Path, shards: &[Shard]) -> Result<Safetensors> {
    let mut whole = Safetensors {
        path: path.to_owned(),
        files: Vec::new(),
        metadata: BTreeMap::new(),
        tensors: Vec::new(),
        len_bytes: 0,
    };
    for shard in shards {
        let part = shard.opened(path, open_shard(&shard.file))?;
        shard.holds(part.tensors.iter().map(|t| t.name.as_str()))?;
        match whole.files.is_empty() {
            true => whole.metadata = part.metadata,
            false => whole.metadata.retain(|k, v| part.metadata.get(k) == Some(v)),
        }
        whole.tensors.extend(part.tensors);
        whole.files.extend(part.files);
        whole.len_bytes = whole.len_bytes.saturating_add(part.len_bytes);
    }
    Ok(whole)
}

fn open_shard(file: &Path) -> Result<Safetensors> {
    let bytes = map_file(file)?;
    if pickle::is_checkpoint(&bytes) && !is_safetensors(&bytes) {
        let message = "expected safetensors, as other shards are, found that this one is a PyTorch checkpoint";
        return Err(Error::new(Code::UnknownFormat, message).file(file));
    }
    parse(file, &bytes)
}

/// Parses a safetensors file that is in memory; `path` only names it.
///
/// # Errors
///
/// As [`open`].
pub fn parse(path: &Path, bytes: &Bytes) -> Result<Safetensors> {
    parse_unnamed(path, bytes).map_err(|e| recognize::named(path, bytes, e).file(path))
}

fn parse_unnamed(path: &Path, bytes: &Bytes) -> Result<Safetensors> {
    let (data_start, entries) = header::read(bytes)?;
    let file: Arc<Path> = path.into();
    let mut tensors = Vec::with_capacity(entries.tensors.len());
    for t in entries.tensors {
        let (begin, end) = (data_start + t.begin, data_start + t.end);
        let bytes = bytes.slice(begin..end).ok_or_else(|| {
            Error::new(Code::SafetensorsHeader, format!("bytes {begin}..{end} lie outside the file")).field(&t.name)
        })?;
        tensors.push(StoredTensor {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            file: file.clone(),
            file_offset: begin as u64,
            bytes,
            storage: None,
        });
    }
    Ok(Safetensors {
        path: path.to_owned(),
        files: vec![file],
        metadata: entries.metadata,
        tensors,
        len_bytes: bytes.len() as u64,
    })
}
