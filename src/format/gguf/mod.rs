//! GGUF: ggml's container of metadata and tensors, little endian.
//!
//! ```text
//!   "GGUF"  version u32  n_tensors u64  n_keys u64
//!   n_keys    x  key str, type u32, value          str: length u64, bytes; array: type u32, count u64, elements
//!   n_tensors x  name str, n_dims u32, n_dims x ne u64, ggml type u32, offset u64
//!   zeros up to the alignment (general.alignment, 32 by default): here the data starts
//!   tensors, each padded to the alignment; offsets count from the start of the data
//! ```
//!
//! ggml lists dimensions innermost first; they are reversed here, and only here. Source: docs/gguf.md and the stricter
//! ggml/src/gguf.cpp.

mod json;
mod metadata;
mod read;
mod split;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use metadata::Metadata;
pub use split::is_name_of_part;
pub use value::{Array, Value, ValueType};
pub use write::plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::magic::GGUF as MAGIC;
pub use super::magic::is_gguf;
use super::{StoredTensor, recognize};
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

const KEY_ALIGNMENT: &str = "general.alignment";

/// A parsed GGUF file, or all parts of a split one.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The file, or the first part.
    pub path: PathBuf,
    /// Every file read: one, or the parts in order.
    pub files: Vec<Arc<Path>>,
    /// 2 or 3.
    pub version: u32,
    /// What tensors are padded to; of a split model, in the first part.
    pub alignment: u32,
    /// All metadata; of a split model, that of the first part without the `split.` keys.
    pub metadata: Metadata,
    /// All tensors, in file order, their bytes lazy.
    pub tensors: Vec<StoredTensor>,
    /// Bytes of all files together.
    pub len_bytes: u64,
}

/// Opens a GGUF file; given any part of a split model (`-00001-of-00003.gguf`), all its parts as one.
///
/// ```
/// let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/formats/version2.gguf");
/// let gguf = ptplus::format::gguf::open(file.as_ref())?;
/// assert_eq!(gguf.metadata.str("general.architecture")?, Some("llama"));
/// let tensor = gguf.tensors.iter().find(|t| t.name == "f32").unwrap();
/// assert_eq!(tensor.shape, [2, 3, 4]); // outermost first; the file says 4, 3, 2
/// # Ok::<(), ptplus::error::Error>(())
/// ```
///
/// # Errors
///
/// The codes `Gguf*`, [`NameInvalid`](crate::error::Code::NameInvalid),
/// [`NameDuplicate`](crate::error::Code::NameDuplicate), and those of [`map_file`](super::mmap::map_file).
pub fn open(path: &Path) -> Result<Gguf> {
    match split::part_name(path) {
        Some(name) => split::open(path, &name),
        None => {
            let gguf = open_one(path)?;
            split::refuse_lone_part(&gguf)?;
            Ok(gguf)
        }
    }
}

/// The key that says which version of ggml's block formats the tensors are in; 2 today.
pub const QUANTIZATION_VERSION: &str = "general.quantization_version";

/// The key with llama.cpp's number of the type that most tensors have.
pub const FILE_TYPE: &str = "general.file_type";

/// The [`QUANTIZATION_VERSION`] that a file states. Blocks mean what version 2 says; 1 packed some of them otherwise.
///
/// # Errors
///
/// [`GgufKey`](crate::error::Code::GgufKey) for a value that is no number,
/// [`ConfigUnsupported`](crate::error::Code::ConfigUnsupported) for another version beside blocks.
pub fn quantization_version(metadata: &Metadata, has_blocks: bool) -> Result<Option<u32>> {
    match metadata.u32(QUANTIZATION_VERSION)? {
        Some(found) if has_blocks && found != 2 => {
            let message = format!("expected 2 in a file with quantized tensors, found {found}");
            Err(Error::new(Code::ConfigUnsupported, message).field(QUANTIZATION_VERSION))
        }
        stated => Ok(stated),
    }
}

/// Parses a GGUF file that is in memory; `path` only names it. Split models are not followed.
///
/// # Errors
///
/// As [`open`].
pub fn parse(path: &Path, bytes: &Bytes) -> Result<Gguf> {
    read::parse(path, bytes).map_err(|e| recognize::named(path, bytes, e).file(path))
}

/// [`parse`] of a file that has to be whole: one part of a split model is refused.
///
/// # Errors
///
/// As [`open`].
pub fn parse_whole(path: &Path, bytes: &Bytes) -> Result<Gguf> {
    let gguf = parse(path, bytes)?;
    split::refuse_lone_part(&gguf)?;
    Ok(gguf)
}

fn open_one(path: &Path) -> Result<Gguf> {
    parse(path, &super::mmap::map_file(path)?)
}

/// `n` rounded up to a multiple of `alignment`, a power of two.
fn padded(n: u64, alignment: u32) -> Option<u64> {
    n.checked_next_multiple_of(alignment.into())
}
