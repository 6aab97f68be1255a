//! What a bundle has: the forms of its adapter or model (types in GGUF, and of an adapter safetensors), and what a model was made of.

use serde::Serialize;

use super::digest::AdapterDigest;
use crate::verify::Report;

/// A form of the adapter or the model as it is in the bundle.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PackedForm {
    /// What it is called.
    pub name: String,
    /// The file of its weights.
    pub file: String,
    /// The type that most elements have.
    pub dtype: &'static str,
    /// Digests of the adapter in this form; none of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<AdapterDigest>,
    /// The report on it.
    pub report: String,
    /// The verification.
    pub verification: Report,
}

/// An adapter that was merged.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// What it says that it is called, or the last part of its path.
    pub name: String,
    /// Which kind it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The factor on what it adds.
    pub scale: f64,
    /// Its digests.
    pub digest: AdapterDigest,
}
