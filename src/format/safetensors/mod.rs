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
mod index;
#[cfg(test)]
mod tests;
mod write;

pub use index::open_index;
pub use write::plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{StoredTensor, recognize};
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
/// and those of [`map_file`](super::mmap::map_file).
pub fn open(path: &Path) -> Result<Safetensors> {
    parse(path, &super::mmap::map_file(path)?)
}

/// Whether these can be the first bytes of a safetensors file: a header length within the limit, then `{`.
pub fn is_safetensors(start: &[u8]) -> bool {
    let Some((len, rest)) = start.split_first_chunk::<8>() else { return false };
    let len = u64::from_le_bytes(*len);
    (2..=super::limits::HEADER_BYTES as u64).contains(&len) && rest.first() == Some(&b'{')
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
