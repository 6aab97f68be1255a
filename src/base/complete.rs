//! Whether the tensors are those that the configuration needs.

use std::collections::{HashMap, HashSet};

use super::storage::{self, Stored};
use super::{BaseModel, Dialect, Weight};
use crate::error::{Code, Error, Result};
use crate::format::{StoredTensor, gguf};
use crate::tensor::DType;

impl BaseModel {
    /// Finds the weights: every tensor that the configuration needs is there with its shape and a type that such a weight can
    /// have, and none that would change the computation.
    pub(super) fn find_weights(&mut self) -> Result<()> {
        let layout = storage::layout(&self.config, self.dialect, |name| self.tensors.contains_key(name));
        let mut weights = HashMap::new();
        for stored in &layout {
            let Some(t) = self.tensors.get(&stored.name) else {
                let message = format!("expected a tensor of shape {:?}, found none", stored.shape);
                return Err(Error::new(Code::BaseTensor, message).file(&self.path).field(&stored.name));
            };
            check(t, stored)?;
            stored.split(t, &self.config, &mut weights);
        }
        (self.layout, self.weights) = (layout, weights);
        // llama.cpp refuses a GGUF file with any other, and what the tensor would do there is unknown.
        let refused =
            self.unused_tensors().filter(|(name, _)| self.dialect == Dialect::Gguf || is_in_forward_pass(name));
        let place = |name: &str| Weight::parse(name, self.dialect);
        if let Some((_, t)) = refused.min_by_key(|(name, _)| (place(name).is_none(), place(name), *name)) {
            let message = format!("expected no such tensor in a {} of this configuration", self.config.family);
            return Err(unexpected(t, message));
        }
        match &self.metadata {
            Some(metadata) => {
                let has_blocks = self.tensors.values().any(|t| t.dtype.is_quantized());
                // Early converters stated no version.
                gguf::quantization_version(metadata, has_blocks).map(drop).map_err(|e| e.file(&self.path))
            }
            None => Ok(()),
        }
    }

    /// The tensors of the files that no weight of the family is, with the names that the table would have for them.
    pub(crate) fn unused_tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        let known: HashSet<&str> = self.layout.iter().map(|s| s.name.as_str()).collect();
        self.tensors.iter().map(|(name, t)| (name.as_str(), t)).filter(move |(name, _)| !known.contains(name))
    }
}

fn check(t: &StoredTensor, stored: &Stored) -> Result<()> {
    let shape = &stored.shape;
    let wrong = |code, message| Err(Error::new(code, message).file(&t.file).field(&t.name).at(t.file_offset));
    if !stored.has_shape(&t.shape) {
        return wrong(Code::BaseTensor, format!("expected shape {shape:?}, found {:?}", t.shape));
    }
    // Integers and 8-bit floats are the blocks of quantized checkpoints, without their scales.
    let (fits, expected) = match shape.len() {
        1 => (t.dtype.is_float(), "F64, F32, F16 or BF16"),
        _ => (t.dtype.is_float() || t.dtype.is_quantized(), "F64, F32, F16, BF16 or blocks of ggml"),
    };
    if !fits {
        return Err(of_unread_type(t, expected));
    }
    Ok(())
}

/// The error of a tensor of a type that is none of the `expected`, with what helps.
pub(crate) fn of_unread_type(t: &StoredTensor, expected: &str) -> Error {
    let is_8_bit_float = matches!(t.dtype, DType::F8_E4M3 | DType::F8_E5M2);
    unexpected(t, format!("expected {expected}, found {}", t.dtype))
        .hints(is_8_bit_float.then(|| super::hf::FROM_FP8.to_owned()))
}

fn unexpected(t: &StoredTensor, message: String) -> Error {
    Error::new(Code::ConfigUnsupported, message).file(&t.file).field(&t.name).at(t.file_offset)
}

/// transformers warns of names that it does not know and goes on. One inside of a module that computes is a block
/// beyond the last, the scale of a quantized weight or a part of another architecture; a reward model's head is not.
/// Files of old releases have RoPE's frequencies and masks.
fn is_in_forward_pass(name: &str) -> bool {
    const HARMLESS: [&str; 3] = [".rotary_emb.inv_freq", ".self_attn.bias", ".self_attn.masked_bias"];
    const MODULES: [&str; 4] = ["model.layers.", "model.norm.", "model.embed_tokens.", "lm_head."];
    MODULES.iter().any(|m| name.starts_with(m)) && !HARMLESS.iter().any(|suffix| name.ends_with(suffix))
}
