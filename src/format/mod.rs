//! Bytes to containers of ordered tensors and metadata, and back. Formats never know adapters.

pub mod elf;
pub mod gguf;
pub(crate) mod hub;
pub mod json;
pub mod limits;
pub(crate) mod links;
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
}

impl StoredTensor {
    /// The tensor as a view, decoding blocks where it is quantized.
    ///
    /// # Errors
    ///
    /// `config-unsupported` for a type that is not decoded here; `shape-overflow`.
    pub fn lazy(&self) -> Result<LazyTensor> {
        if self.dtype.is_quantized() {
            LazyTensor::quantized(self.bytes.clone(), self.dtype, &self.shape, crate::quant::decode)
        } else {
            LazyTensor::new(self.bytes.clone(), self.dtype, &self.shape)
        }
        .map_err(|e| e.file(&self.file).field(&self.name).at(self.file_offset))
    }
}
