//! The forms in which a bundle has its adapter: types in GGUF, and safetensors.

use serde::Serialize;

use super::digest::AdapterDigest;
use crate::verify::Report;

/// A form of the adapter as it is in the bundle.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PackedForm {
    /// What it is called.
    pub name: String,
    /// The file of its weights.
    pub file: String,
    /// The type that most elements have.
    pub dtype: &'static str,
    /// Digests of the adapter in this form.
    pub digest: AdapterDigest,
    /// The report on it.
    pub report: String,
    /// The verification.
    pub verification: Report,
}
