//! What other modules ask of a base besides its weights.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{BaseModel, Family, RowOrder, Rows};
use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::quant;
use crate::tensor::DType;

/// The GGUF architecture of a Hugging Face `model_type`; `None` for one whose row order is not known either. Families that
/// no runner supports are called alike on both sides (`gemma3_text` is the language model of `gemma3`).
pub fn gguf_architecture_of(model_type: &str) -> Option<&'static str> {
    let listed = || {
        let name = model_type.strip_suffix("_text").unwrap_or(model_type);
        RowOrder::known_architectures().find(|architecture| *architecture == name)
    };
    Family::from_model_type(model_type).map(Family::gguf_architecture).or_else(listed)
}

impl BaseModel {
    /// Every file that opening reads: configuration, index and weights, each once.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: BTreeSet<PathBuf> = self.tensors().map(|t| t.file.to_path_buf()).collect();
        if self.path.is_dir() {
            files.extend(
                ["config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
                    .map(|name| self.path.join(name))
                    .into_iter()
                    .filter(|p| p.exists()),
            );
        } else {
            files.insert(self.path.clone());
        }
        files.into_iter().collect()
    }

    /// NaN and Inf in the weights that the forward pass uses, and an output head that is not the embedding that it is tied to. Reads all of them, calling `progress` with the bytes read
    /// and those of all tensors.
    ///
    /// # Errors
    ///
    /// Those of decoding a weight.
    pub fn bad_weights(&self, progress: &dyn Fn(u64, u64)) -> Result<Vec<Finding>> {
        let total = self.tensors().map(|t| t.bytes.len() as u64).sum();
        let mut done = 0;
        let mut findings = Vec::new();
        for stored in self.layout() {
            let Some(t) = self.tensor_named(&stored.name) else { continue };
            let weight = stored.weights[0];
            let is_alone = stored.weights.len() == 1;
            self.decodable(weight)?;
            if t.shape.len() == 1 {
                let values = if is_alone { self.vector(weight)? } else { Rows::of(t).to_f32() };
                findings.extend(first_bad(&t.name, &values, 0, is_alone));
            } else {
                let rows = if is_alone { self.rows(weight)? } else { Rows::of(t) };
                let mut values = Vec::new();
                // A few rows at a time: the embedding of a large model takes GiBs as F32.
                const VALUES: usize = 1 << 20;
                let step = (VALUES / rows.row_len().max(1)).max(1);
                for start in (0..rows.n_rows()).step_by(step) {
                    let range = start..rows.n_rows().min(start + step);
                    values.resize(range.len() * rows.row_len(), 0.0);
                    rows.decode(range, &mut values);
                    if let Some(f) = first_bad(&t.name, &values, start * rows.row_len(), is_alone) {
                        findings.push(f);
                        break;
                    }
                }
            }
            done += t.bytes.len() as u64;
            progress(done, total);
        }
        match self.output_weight() {
            Err(e) if e.code() == Code::BaseTensor => {
                let name = e.field_name().unwrap_or_default().to_owned();
                findings.push(Finding::new(
                    Code::BaseTensor,
                    name,
                    "the values of the embedding",
                    "others, though it is tied",
                ));
            }
            other => drop(other?),
        }
        Ok(findings)
    }
}

/// Of weights that share a tensor, elements are counted as they lie in it.
fn first_bad(name: &str, values: &[f32], start: usize, is_alone: bool) -> Option<Finding> {
    let i = quant::validate_blocks(DType::F32, bytemuck::cast_slice(values))?;
    Some(Finding::new(
        Code::NonFinite,
        name,
        "finite values",
        format!("{} at element {}{}", values[i], start + i, if is_alone { " (Hugging Face row order)" } else { "" }),
    ))
}
