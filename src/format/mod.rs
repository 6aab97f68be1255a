//! Bytes to containers of ordered tensors and metadata, and back. Formats never know adapters.

pub mod bundle;
pub mod elf;
pub mod gguf;
pub(crate) mod hub;
pub mod index;
pub mod json;
pub(crate) mod ld_cache;
pub mod limits;
pub(crate) mod links;
pub mod llama_state;
mod magic;
pub mod mmap;
pub mod names;
pub mod output;
pub mod pickle;
mod plan;
pub(crate) mod recognize;
pub mod safetensors;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::tensor::{Bytes, DType, LazyTensor};
pub use output::{OutputFile, OutputFolder, Overwrite, Replace};
pub use plan::{FilePlan, PlannedTensor, TensorSpec};

/// A tensor as a container lists it; its bytes stay in the memory map until asked for.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Dimensions, outermost first, whatever the file's own convention.
    pub shape: Vec<usize>,
    /// The file that holds the bytes (one of several for a sharded container).
    pub file: Arc<Path>,
    /// Where the bytes start in that file.
    pub file_offset: u64,
    /// The bytes; readers have checked that their number fits shape and type.
    pub bytes: Bytes,
    /// The storage whose checksum is compared when the bytes are first asked for; formats without checksums have none.
    pub(crate) storage: Option<Arc<pickle::Storage>>,
}

impl StoredTensor {
    /// Compares the bytes with their checksum, once, where there is one.
    ///
    /// # Errors
    ///
    /// `pickle-checksum`.
    pub(crate) fn verify(&self) -> Result<()> {
        self.storage.as_ref().map_or(Ok(()), |s| s.verify().map_err(|e| e.field(&self.name)))
    }

    /// The tensor as a view, decoding blocks where it is quantized.
    ///
    /// # Errors
    ///
    /// `config-unsupported` for a type that is not decoded here; `shape-overflow`; `pickle-checksum`.
    pub fn lazy(&self) -> Result<LazyTensor> {
        self.verify()?;
        if self.dtype.is_quantized() {
            LazyTensor::quantized(self.bytes.clone(), self.dtype, &self.shape, crate::quant::decode)
        } else {
            LazyTensor::new(self.bytes.clone(), self.dtype, &self.shape)
        }
        .map_err(|e| e.file(&self.file).field(&self.name).at(self.file_offset))
    }
}
