//! Storages and the tensors that are views of them.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::limits::MAX_REPEATED_BYTES;
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::tensor::{Bytes, DType, LazyTensor, shape};

/// The elements behind one or several tensors.
#[derive(Debug)]
pub(crate) struct Storage {
    /// Its key in the file: the entry `data/{key}` of a zip archive.
    pub(super) key: String,
    pub(super) bytes: Bytes,
    pub(super) file: Arc<Path>,
    pub(super) file_offset: u64,
    /// The checksum of the archive entry; legacy files have none.
    pub(super) crc32: Option<u32>,
    /// What comparing it came to, once somebody asked.
    pub(super) intact: OnceLock<bool>,
}

impl Storage {
    /// See [`TensorRef::verify`].
    pub(crate) fn verify(&self) -> Result<()> {
        let Some(expected) = self.crc32 else { return Ok(()) };
        if *self.intact.get_or_init(|| crc32fast::hash(&self.bytes) == expected) {
            return Ok(());
        }
        let text = format!("storage {:?} does not have the checksum {expected:08x} of its archive entry", self.key);
        Err(Error::new(Code::PickleChecksum, text).file(&self.file).at(self.file_offset))
    }
}

/// A tensor of a checkpoint: a view of a storage, whose bytes stay where they are until asked for.
#[derive(Debug, Clone)]
pub struct TensorRef {
    pub(super) storage: Arc<Storage>,
    pub(super) dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Distance of neighbours along each dimension, in elements.
    pub strides: Vec<usize>,
    /// Where the first element is in the storage, in elements.
    pub storage_offset: usize,
}

impl TensorRef {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The key of the storage in the file; tensors with the same key share their bytes.
    pub fn storage_key(&self) -> &str {
        &self.storage.key
    }

    /// All bytes of the storage.
    pub fn storage_bytes(&self) -> &Bytes {
        &self.storage.bytes
    }

    /// Where the tensor's first element lies in the file.
    pub fn file_offset(&self) -> u64 {
        let offset = self.storage_offset.saturating_mul(self.dtype().block_bytes());
        self.storage.file_offset.saturating_add(offset as u64)
    }

    /// Compares the storage's bytes with the checksum of its archive entry, once for all tensors that share it.
    /// A legacy file has no checksum; there nothing is compared.
    ///
    /// # Errors
    ///
    /// [`Code::PickleChecksum`].
    pub fn verify(&self) -> Result<()> {
        self.storage.verify()
    }

    /// The tensor as a view. This is where its bytes are read for the first time, and [verified](Self::verify).
    ///
    /// # Errors
    ///
    /// [`Code::PickleChecksum`].
    pub fn lazy(&self) -> Result<LazyTensor> {
        self.verify()?;
        self.view()
    }

    /// The view, whose bounds are checked, without a look at the bytes.
    pub(crate) fn view(&self) -> Result<LazyTensor> {
        let s = &*self.storage;
        let fail = |e: Error| Error::new(Code::PickleTensor, e.message()).file(&s.file).at(s.file_offset);
        // Strides of an empty tensor are never used, but whoever makes new ones multiplies the other dimensions.
        let extents: Vec<usize> = self.shape.iter().map(|&d| d.max(1)).collect();
        let size_bytes = self.dtype.block_bytes();
        shape::len_bytes(&extents, self.dtype).map_err(fail)?;
        let n_elements = shape::n_elements(&self.shape).map_err(fail)?;
        // Strides of 0 make any number of elements out of one.
        if n_elements * size_bytes > s.bytes.len().max(MAX_REPEATED_BYTES) {
            let message = format!("{n_elements} elements repeat a storage of {} bytes", s.bytes.len());
            return Err(fail(Error::new(Code::PickleTensor, message)));
        }
        if n_elements == 0 || self.is_contiguous() {
            // The plain range, so that what copies whole tensors sees that it may.
            let start = self.storage_offset.checked_mul(size_bytes);
            let range = start.and_then(|start| Some(start..start.checked_add(n_elements * size_bytes)?));
            if let Some(bytes) = range.and_then(|r| s.bytes.slice(r)) {
                return LazyTensor::new(bytes, self.dtype, &self.shape);
            }
        }
        LazyTensor::strided(s.bytes.clone(), self.dtype, &self.shape, &self.strides, self.storage_offset).map_err(fail)
    }

    /// The tensor as other formats have it, copied where its elements do not lie so; `left` are the bytes of copies that
    /// may yet be made.
    pub(super) fn stored(&self, name: String, left: &mut usize) -> Result<StoredTensor> {
        let view = self.view().map_err(|e| e.field(&name))?;
        let len = view.len_bytes();
        let start = self.storage_offset.saturating_mul(self.dtype.block_bytes());
        let bytes = match self.is_contiguous() || len == 0 {
            true => self.storage.bytes.slice(start..start.saturating_add(len)),
            false => None,
        };
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                *left = left.checked_sub(len).ok_or_else(|| {
                    let message =
                        "expected tensors that lie as a whole, found views that would be larger than the file";
                    Error::new(Code::PickleLimit, message).field(&name)
                })?;
                self.verify()?;
                view.to_bytes().into()
            }
        };
        let (file, file_offset) = (self.storage.file.clone(), self.file_offset());
        let (dtype, shape, storage) = (self.dtype, self.shape.clone(), Some(self.storage.clone()));
        Ok(StoredTensor { name, dtype, shape, file, file_offset, bytes, storage })
    }

    /// Whether the elements lie in row-major order without holes.
    fn is_contiguous(&self) -> bool {
        let mut stride = 1usize;
        self.shape.iter().zip(&self.strides).rev().all(|(&len, &s)| {
            let fits = len == 1 || s == stride;
            stride = stride.saturating_mul(len);
            fits
        })
    }
}
