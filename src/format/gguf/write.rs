//! The deterministic writer: GGUF version 3, entries and tensors in the order given.

use std::collections::{BTreeMap, HashSet};

use super::read::{check_alignment, sized};
use super::value::{Value, write_string};
use super::{KEY_ALIGNMENT, MAGIC, Metadata, padded};
use crate::error::{Code, Error, Result};
use crate::format::limits;
use crate::format::names::check_name;
use crate::format::plan::{FilePlan, PlannedTensor, TensorSpec};

const VERSION: u32 = 3;

/// Lays out a file. The header ends where the data starts; the file ends with the padding of its last tensor.
///
/// # Errors
///
/// [`Code::GgufWrite`] where a type, name or size has no place in GGUF, [`Code::NameInvalid`],
/// [`Code::NameDuplicate`], [`Code::ShapeBlock`], [`Code::GgufDims`], [`Code::GgufAlignment`].
pub fn plan(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<FilePlan> {
    let alignment = metadata.get(KEY_ALIGNMENT).map_or(Ok(limits::GGUF_DEFAULT_ALIGNMENT), check_alignment)?;
    if metadata.len() as u64 > limits::GGUF_KEYS || tensors.len() as u64 > limits::TENSORS {
        let message = format!("{} metadata entries and {} tensors are above the limits", metadata.len(), tensors.len());
        return Err(Error::new(Code::GgufWrite, message));
    }
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());

    let mut value_offsets = BTreeMap::new();
    for (key, value) in metadata.iter() {
        check_name(key)?;
        check_value(value).map_err(|e| e.field(key))?;
        write_string(key, &mut header);
        header.extend(value.value_type().id().to_le_bytes());
        value.write(&mut header);
        if let Value::String(text) = value {
            value_offsets.insert(key.to_owned(), (header.len() - text.len()) as u64);
        }
    }

    let mut names = HashSet::with_capacity(tensors.len());
    let mut planned = Vec::with_capacity(tensors.len());
    let mut data_len: u64 = 0; // of the padded data so far
    for t in tensors {
        let (type_id, len_bytes) = check_tensor(t).map_err(|e| e.field(&t.name))?;
        if !names.insert(&t.name) {
            return Err(Error::new(Code::NameDuplicate, "this tensor occurs twice").field(&t.name));
        }
        write_string(&t.name, &mut header);
        header.extend((t.shape.len() as u32).to_le_bytes());
        for &d in t.shape.iter().rev() {
            header.extend((d as u64).to_le_bytes());
        }
        header.extend(type_id.to_le_bytes());
        header.extend(data_len.to_le_bytes());
        planned.push(PlannedTensor {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            file_offset: data_len, // the start of the data is added below
            len_bytes,
        });
        data_len = data_len.checked_add(len_bytes).and_then(|n| padded(n, alignment)).ok_or_else(too_long)?;
    }
    if header.len() > limits::GGUF_HEADER_BYTES {
        let message = format!("metadata and tensor table have {} bytes, above the limit", header.len());
        return Err(Error::new(Code::GgufWrite, message));
    }
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    let data_start = header.len() as u64;
    let len_bytes = data_start.checked_add(data_len).filter(|n| *n <= i64::MAX as u64).ok_or_else(too_long)?;
    planned.iter_mut().for_each(|t| t.file_offset += data_start);
    Ok(FilePlan { header, tensors: planned, len_bytes, value_offsets })
}

fn too_long() -> Error {
    Error::new(Code::GgufWrite, "the tensors together are longer than a file can be")
}

/// What a reader would refuse: arrays come from a reader or from `str`s, which may hold NUL.
fn check_value(value: &Value) -> Result<()> {
    let has_nul = match value {
        Value::String(s) if s.len() as u64 > limits::GGUF_STRING_BYTES => {
            return Err(Error::new(Code::GgufWrite, "the string is longer than the limit"));
        }
        Value::String(s) => s.contains('\0'),
        Value::Array(a) => a.strs().into_iter().flatten().any(|s| s.contains('\0')),
        _ => false,
    };
    if has_nul { Err(Error::new(Code::GgufWrite, "a string holds NUL")) } else { Ok(()) }
}

/// The type's number and the bytes of the tensor.
fn check_tensor(t: &TensorSpec) -> Result<(u32, u64)> {
    check_name(&t.name)?;
    if t.name.len() > limits::GGUF_TENSOR_NAME_BYTES {
        let message = format!("the name has {} bytes, more than {}", t.name.len(), limits::GGUF_TENSOR_NAME_BYTES);
        return Err(Error::new(Code::GgufWrite, message));
    }
    if t.shape.len() > limits::GGUF_DIMS as usize {
        let message = format!("expected at most {} dimensions, found {}", limits::GGUF_DIMS, t.shape.len());
        return Err(Error::new(Code::GgufWrite, message));
    }
    let id = t.dtype.ggml_id().ok_or_else(|| Error::new(Code::GgufWrite, format!("ggml has no type {}", t.dtype)))?;
    Ok((id, sized(&t.shape, t.dtype)?))
}
