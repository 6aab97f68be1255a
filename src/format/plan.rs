//! What a writer will write, decided before the first byte is written: the header, and where each tensor goes.

use std::collections::BTreeMap;

use crate::tensor::DType;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// A tensor with its place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes go, from the start of the file.
    pub file_offset: u64,
    /// How many bytes that are.
    pub len_bytes: u64,
}

/// A whole file except the tensors' bytes. Bytes that belong to neither header nor tensor are zero, so a writer
/// sets the file's length first and leaves them alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlan {
    /// The bytes from offset 0 up to the first tensor.
    pub header: Vec<u8>,
    /// The tensors, by rising offset.
    pub tensors: Vec<PlannedTensor>,
    /// The file's exact length.
    pub len_bytes: u64,
    /// Where the text of each string value in the metadata starts.
    pub(super) value_offsets: BTreeMap<String, u64>,
}

impl FilePlan {
    /// Where the text of the string value `key` starts in the file, so that a value of the same length can be
    /// written over it later. GGUF only; `None` for other types and unknown keys.
    pub fn value_offset(&self, key: &str) -> Option<u64> {
        self.value_offsets.get(key).copied()
    }
    /// The planned file, the bytes of each tensor counting up.
    #[cfg(test)]
    pub(super) fn file_counting_up(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        bytes.resize(self.len_bytes as usize, 0);
        for t in &self.tensors {
            let range = t.file_offset as usize..(t.file_offset + t.len_bytes) as usize;
            bytes[range].iter_mut().enumerate().for_each(|(i, b)| *b = (i + 1) as u8);
        }
        bytes
    }
}
