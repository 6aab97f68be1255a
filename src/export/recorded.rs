//! What outputs of every kind record of their source.

use serde_json::{Map, Value as Json};

use super::OutputTensor;
use crate::tensor::DType;
use crate::validate::Validated;

/// Placeholder for the source digest until the tensors have been read; as long as the digest.
pub(super) const DIGEST_PENDING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Each tensor's type in the first source, as compact JSON.
pub(super) fn source_dtypes(source: &Validated) -> String {
    let recorded = &source.origin.recorded_dtypes;
    let map: Map<String, Json> = source
        .adapter()
        .tensors()
        .map(|(slot, t)| {
            let name = slot.canonical_name();
            let dtype = recorded.get(&name).copied().unwrap_or(t.dtype());
            (name, dtype.name().into())
        })
        .collect();
    Json::Object(map).to_string()
}

/// The type that the weights were in, where every tensor is written in a finer one.
pub(super) fn widened_from(source: &Validated, tensors: &[OutputTensor]) -> Option<DType> {
    let coarsest = source.coarsest_dtype();
    tensors.iter().all(|t| t.dtype.fineness() > coarsest.fineness()).then_some(coarsest)
}
