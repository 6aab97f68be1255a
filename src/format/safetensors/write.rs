//! The deterministic writer: `__metadata__` first with sorted keys, tensors in the order given.

use std::collections::{BTreeMap, HashSet};

use super::METADATA;
use crate::error::{Code, Error, Result};
use crate::format::limits;
use crate::format::names::check_name;
use crate::format::plan::{FilePlan, PlannedTensor, TensorSpec};
use crate::tensor::shape;

/// Lays out a file. Spaces after the header let the data start at a multiple of 8, as the format asks of writers.
///
/// # Errors
///
/// [`Code::SafetensorsDtype`] for types that the format lacks, [`Code::NameInvalid`],
/// [`Code::NameDuplicate`], [`Code::ShapeOverflow`], [`Code::SafetensorsHeader`] above a limit.
pub fn plan(metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> Result<FilePlan> {
    let metadata_bytes: usize = metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if tensors.len() > limits::SAFETENSORS_TENSORS
        || tensors.iter().any(|t| t.shape.len() > limits::SAFETENSORS_DIMS)
        || tensors.iter().map(|t| t.shape.len()).sum::<usize>() > limits::SAFETENSORS_ALL_DIMS
        || metadata.len() > limits::SAFETENSORS_METADATA_KEYS
        || metadata_bytes > limits::SAFETENSORS_METADATA_BYTES
    {
        return Err(too_large());
    }
    let mut names = HashSet::with_capacity(tensors.len());
    let mut planned = Vec::with_capacity(tensors.len());
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        metadata.keys().try_for_each(|k| check_name(k))?;
        entries.push(format!("\"{METADATA}\":{}", json(metadata)));
    }
    let mut end: u64 = 0;
    for t in tensors {
        check_name(&t.name)?;
        if t.name == METADATA || !names.insert(&t.name) {
            return Err(Error::new(Code::NameDuplicate, "this name occurs twice, or is reserved").field(&t.name));
        }
        let type_name = t.dtype.safetensors_name().ok_or_else(|| {
            Error::new(Code::SafetensorsDtype, format!("safetensors has no type {}", t.dtype)).field(&t.name)
        })?;
        let len_bytes = shape::len_bytes(&t.shape, t.dtype).map_err(|e| e.field(&t.name))? as u64;
        let begin = end;
        end = begin.checked_add(len_bytes).ok_or_else(too_large)?;
        entries.push(format!(
            "{}:{{\"dtype\":\"{type_name}\",\"shape\":{},\"data_offsets\":[{begin},{end}]}}",
            json(&t.name),
            json(&t.shape)
        ));
        planned.push(PlannedTensor {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            file_offset: begin, // the start of the data is added below
            len_bytes,
        });
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() > limits::HEADER_BYTES {
        return Err(too_large());
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    let data_start = header.len() as u64;
    let len_bytes = end.checked_add(data_start).filter(|n| *n <= i64::MAX as u64).ok_or_else(too_large)?;
    planned.iter_mut().for_each(|t| t.file_offset += data_start);
    Ok(FilePlan { header, tensors: planned, len_bytes, value_offsets: BTreeMap::new() })
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("strings, numbers and lists of them have a JSON form")
}

fn too_large() -> Error {
    Error::new(Code::SafetensorsHeader, "tensors or metadata are more than a safetensors file may hold")
}
