//! A LoRA against itself and its base.

use super::check_type;
use crate::adapter::lora::gguf_keys::CONFIG_HEAD_DIM;
use crate::adapter::lora::{Lora, module_name};
use crate::adapter::{Part, Slot};
use crate::base::{BaseModel, Weight};
use crate::error::Code;
use crate::finding::Findings;
use crate::tensor::LazyTensor;

pub(super) fn against_itself(lora: &Lora, findings: &mut Findings) {
    for (slot, t) in lora.tensors() {
        check_type(&slot.canonical_name(), t, findings);
    }
    for (&weight, module) in &lora.modules {
        let scale = module.scale;
        if !(scale.factor as f32).is_finite() || (scale.factor != 0.0 && !(scale.factor as f32).is_normal()) {
            let expected = "a factor that F32 can hold";
            findings.add(Code::ConfigField, module_name(weight), expected, scale.factor);
        }
    }
    let adds_nothing = |m: &crate::adapter::lora::Module| m.scale.factor == 0.0 && m.magnitude.is_none();
    if !lora.modules.is_empty() && lora.saved.is_empty() && lora.modules.values().all(adds_nothing) {
        findings.add(Code::NoEffect, "lora_alpha", "a factor other than 0", "0 for every module");
    }
}

pub(super) fn against_base(lora: &Lora, base: &BaseModel, findings: &mut Findings) {
    let c = &base.config;
    for (slot, t) in lora.tensors() {
        let name = slot.canonical_name();
        if let Some(layer) = slot.layer.filter(|i| *i >= c.n_layers) {
            let expected = format!("a layer below the base's {}", c.n_layers);
            findings.add(Code::AdapterMismatch, name, expected, format!("layer {layer}"));
            continue;
        }
        let Some([rows, columns]) = slot.weight().and_then(|w| matrix(w, base)) else {
            if slot.part == Part::Whole {
                whole_vector(slot, t, base, findings);
            } else {
                findings.add(Code::AdapterMismatch, name, "a weight that the base has", "an addition to another");
            }
            continue;
        };
        let (expected, is_right) = match (slot.part, t.shape()) {
            (Part::A, &[_, found]) => (format!("[r, {columns}]"), found == columns),
            (Part::B, &[found, _]) => (format!("[{rows}, r]"), found == rows),
            (Part::Magnitude | Part::Bias, &[found]) => (format!("[{rows}]"), found == rows),
            // New rows: tokens that were added.
            (Part::Whole, &[_, found]) if is_vocabulary(slot) => (format!("[tokens, {columns}]"), found == columns),
            (Part::Whole, found) => (format!("[{rows}, {columns}]"), found == [rows, columns]),
            (_, _) => ("another number of dimensions".into(), false),
        };
        if !is_right {
            let expected = format!("{expected}, as the base's weight has");
            findings.add(Code::AdapterShape, name, expected, format!("{:?}", t.shape()));
        }
    }
    if let Some(stated) = lora.config.get(CONFIG_HEAD_DIM)
        && stated.as_u64() != Some(c.head_dim as u64)
    {
        let expected = format!("{}, as the base has", c.head_dim);
        findings.add(Code::AdapterMismatch, "head_dim", expected, stated);
    }
}

/// Rows and columns of a linear weight of the base; a head that is the embedding has the embedding's.
fn matrix(weight: Weight, base: &BaseModel) -> Option<[usize; 2]> {
    let weight = match weight {
        Weight::Output if base.config.tied_embeddings => Weight::TokenEmbedding,
        other => other,
    };
    match weight.expected_shape(&base.config)?[..] {
        [rows, columns] => Some([rows, columns]),
        _ => None,
    }
}

fn is_vocabulary(slot: Slot) -> bool {
    matches!(slot.weight(), Some(Weight::TokenEmbedding | Weight::Output))
}

/// A norm or a bias in the place of the base's.
fn whole_vector(slot: Slot, t: &LazyTensor, base: &BaseModel, findings: &mut Findings) {
    let expected = slot.weight().and_then(|w| w.expected_shape(&base.config));
    match expected {
        Some(shape) if shape == t.shape() => {}
        Some(shape) => {
            let expected = format!("{shape:?}, as the base's weight has");
            findings.add(Code::AdapterShape, slot.canonical_name(), expected, format!("{:?}", t.shape()));
        }
        None => {
            let expected = "a weight that the base has";
            findings.add(Code::AdapterMismatch, slot.canonical_name(), expected, "another");
        }
    }
}
