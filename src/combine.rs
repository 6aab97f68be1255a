//! Weighted sums of adapters as one adapter of the same kind, where one can compute the sum exactly.
//!
//! ```text
//!   sum of s phi(q) M   = phi(q) (sum of s M)          Prefix-Tuning+, with one phi
//!   sum of s c B A      = [s1 c1 B1, s2 c2 B2] [A1; A2]  LoRA: ranks add up, factors go into B; of parts with one A, B adds up
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::field::SettledBy;
use crate::adapter::lora::{Lora, Module, Scale, module_name};
use crate::adapter::plus::{Layer, Plus};
use crate::adapter::{Adapter, Part, Slot};
use crate::base::Weight;
use crate::error::{Code, Error, Result};
use crate::import::RECORD_KEY;
use crate::import::stated::{BASE_FINGERPRINT, BASE_MISMATCH_IGNORED, WIDENED_FROM};
use crate::tensor::LazyTensor;
use crate::transform::low_rank::decoded;

/// The sum of `parts`, each with its weight. Sums are computed in F64 and kept in F32.
///
/// # Errors
///
/// [`Code::AdapterMismatch`] for adapters of other sizes or bases; [`Code::ConfigUnsupported`] for kinds or functions whose sum
/// is no function of that kind; [`Code::NoEffect`] for a sum of zeros; [`Code::Usage`] for none, and for a weight that is not finite;
/// those of decoding.
pub fn combine(parts: &[(&Adapter, f64)]) -> Result<Adapter> {
    if let Some((_, weight)) = parts.iter().find(|(_, s)| !s.is_finite()) {
        return Err(Error::new(Code::Usage, format!("expected finite weights, found {weight}")));
    }
    let Some((first, _)) = parts.first() else {
        return Err(Error::new(Code::Usage, "expected adapters to add up, found none"));
    };
    let (kind, model_type) = (first.kind(), first.base_model_type());
    for (other, _) in parts {
        if other.kind() != kind {
            let message = format!(
                "expected adapters of one kind, since no kind computes what both do, found {kind} and {}; llama.cpp and \
                 `ptplus run` take both side by side",
                other.kind()
            );
            return Err(Error::new(Code::ConfigUnsupported, message));
        }
        if let (Some(a), Some(b)) = (model_type, other.base_model_type())
            && a != b
        {
            return Err(Error::new(Code::AdapterMismatch, format!("expected adapters of one base, found {a} and {b}")));
        }
    }
    let mut sum = match first {
        Adapter::Plus(_) => {
            let parts: Vec<(&Plus, f64)> = parts.iter().filter_map(|(a, s)| Some((a.as_plus()?, *s))).collect();
            Adapter::Plus(plus(&parts)?)
        }
        Adapter::Lora(_) => {
            let parts: Vec<(&Lora, f64)> = parts.iter().filter_map(|(a, s)| Some((a.as_lora()?, *s))).collect();
            Adapter::Lora(lora(&parts)?)
        }
        Adapter::Prefix(_) => {
            let message = "expected adapters whose effects add up, found virtual tokens: attention is not linear in its keys, and a sum of \
                           embeddings is another token; no file of this kind computes what two of them do";
            return Err(Error::new(Code::ConfigUnsupported, message));
        }
    };
    let fingerprints: BTreeSet<String> =
        parts.iter().map(|(a, _)| a.extra().get(BASE_FINGERPRINT).map_or(String::new(), ToString::to_string)).collect();
    let extra = sum.extra_mut();
    for key in [WIDENED_FROM, RECORD_KEY] {
        extra.shift_remove(key);
    }
    // What the sum touches, another base may have in common with each of the parts alone.
    if fingerprints.len() > 1 {
        extra.shift_remove(BASE_FINGERPRINT);
    }
    if parts.iter().any(|(a, _)| a.extra().contains_key(BASE_MISMATCH_IGNORED)) {
        extra.insert(BASE_MISMATCH_IGNORED.into(), true.into());
    }
    Ok(sum)
}

fn plus(parts: &[(&Plus, f64)]) -> Result<Plus> {
    let (first, _) = parts[0];
    for (other, _) in parts {
        for ((field, a), (_, b)) in first.fields().zip(other.fields()) {
            let (a, b) = (a.json(), b.json());
            if a == b || field.key == "memory_scale" {
                continue;
            }
            // Sizes are the base's; everything else says which function is computed.
            let code = match field.settled_by {
                SettledBy::Base(_) => Code::AdapterMismatch,
                SettledBy::Flag(_) | SettledBy::Sizes => Code::ConfigUnsupported,
            };
            let message = format!(
                "expected adapters with one value, since memories add up only below one phi, found {a} and {b}"
            );
            return Err(Error::new(code, message).field(field.key));
        }
    }
    let scale = first.config.conventions.memory_scale;
    let is_common = scale != 0.0 && parts.iter().all(|(p, _)| p.config.conventions.memory_scale == scale);
    let factor = |p: &Plus, s: f64| if is_common { s } else { s * p.config.conventions.memory_scale };
    let numbers: BTreeSet<usize> = parts.iter().flat_map(|(p, _)| p.layers.keys().copied()).collect();
    let mut layers = BTreeMap::new();
    for i in numbers {
        let of_layer: Vec<(&Layer, f64)> =
            parts.iter().filter_map(|(p, s)| Some((p.layers.get(&i)?, factor(p, *s)))).collect();
        let (layer, _) = of_layer[0];
        for part in [Part::FeatureWeight, Part::FeatureBias, Part::Normalizer] {
            let values = |l: &Layer| l.get(part).map(decoded).transpose();
            let expected = values(layer)?;
            for (other, _) in &of_layer[1..] {
                if values(other)? != expected {
                    let message = "expected the same values in all adapters, since memories add up only below one phi, found others";
                    let name = Slot::attention(i, part).canonical_name();
                    return Err(Error::new(Code::ConfigUnsupported, message).field(name));
                }
            }
        }
        let memories: Vec<(&LazyTensor, f64)> = of_layer.iter().map(|(l, s)| (&l.memory, *s)).collect();
        let memory = sum(&memories, &Slot::attention(i, Part::Memory).canonical_name())?;
        layers.insert(i, Layer { memory, ..layer.clone() });
    }
    refuse_zero(layers.values().map(|l: &Layer| &l.memory))?;
    let mut config = first.config.clone();
    config.conventions.memory_scale = if is_common { scale } else { 1.0 };
    config.layers_to_transform = None;
    Ok(Plus { config, layers })
}

fn lora(parts: &[(&Lora, f64)]) -> Result<Lora> {
    for (part, _) in parts {
        if let Some(weight) = part.saved.keys().next() {
            let message = "expected additions to the base's weights, found a weight that replaces one: merge the adapters into the \
                           base instead (ptplus convert BASE --merge A --merge B -o OUT.gguf)";
            return Err(Error::new(Code::ConfigUnsupported, message).field(module_name(*weight)));
        }
    }
    let weights: BTreeSet<Weight> = parts.iter().flat_map(|(l, _)| l.modules.keys().copied()).collect();
    let modules = weights
        .into_iter()
        .map(|weight| {
            let of_weight: Vec<(&Module, f64)> =
                parts.iter().filter_map(|(l, s)| Some((l.modules.get(&weight)?, *s))).collect();
            Ok((weight, module(&of_weight).map_err(|e| e.field(module_name(weight)))?))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    refuse_zero(modules.values().filter(|m| m.scale.factor != 0.0).map(|m| &m.b))?;
    let config = parts[0].0.config.clone();
    Ok(Lora { config, modules, saved: BTreeMap::new(), folded: BTreeMap::new(), key_factor: None })
}

/// The sum of what several adapters add to one weight.
fn module(parts: &[(&Module, f64)]) -> Result<Module> {
    if parts.iter().any(|(m, _)| m.magnitude.is_some()) {
        let message = "expected low-rank additions, found DoRA, whose rows are brought to a length that a sum has not: merge the \
                       adapters into the base instead (ptplus convert BASE --merge A --merge B -o OUT.gguf)";
        return Err(Error::new(Code::ConfigUnsupported, message));
    }
    if let [(only, s)] = parts {
        let scale = Scale { alpha: only.scale.alpha * s, factor: only.scale.factor * s };
        return Ok(Module { scale, ..(*only).clone() });
    }
    let (first, _) = parts[0];
    let (&[_, columns], &[rows, _]) = (first.a.shape(), first.b.shape()) else {
        return Err(Error::new(Code::AdapterShape, "expected matrices A and B"));
    };
    // Each A once, with what it is multiplied with.
    type Summands<'a> = Vec<(&'a LazyTensor, f64)>;
    let mut additions: Vec<(Vec<f32>, Summands<'_>)> = Vec::new();
    for (m, s) in parts {
        let r = m.rank();
        if m.a.shape() != [r, columns] || m.b.shape() != [rows, r] {
            let message = format!(
                "expected additions to a weight [{rows}, {columns}], found {:?} and {:?}",
                m.a.shape(),
                m.b.shape()
            );
            return Err(Error::new(Code::AdapterMismatch, message));
        }
        let (a, b) = (decoded(&m.a)?, (&m.b, m.scale.factor * s));
        match additions.iter_mut().find(|(known, _)| *known == a) {
            Some((_, summands)) => summands.push(b),
            None => additions.push((a, vec![b])),
        }
    }
    let rank: usize = additions.iter().map(|(_, summands)| summands[0].0.shape()[1]).sum();
    let mut b = vec![0f32; rows * rank];
    let mut first_column = 0;
    for (_, summands) in &additions {
        let sum = sum(summands, "lora_B")?;
        let r = sum.shape()[1];
        for (out, values) in b.chunks_exact_mut(rank).zip(decoded(&sum)?.chunks_exact(r.max(1))) {
            out[first_column..first_column + r].copy_from_slice(values);
        }
        first_column += r;
    }
    let a: Vec<f32> = additions.into_iter().flat_map(|(a, _)| a).collect();
    let biases: Vec<(&LazyTensor, f64)> =
        parts.iter().filter_map(|(m, s)| Some((m.bias.as_ref()?, m.scale.factor * s))).collect();
    Ok(Module {
        a: LazyTensor::from_f32(&a, &[rank, columns]),
        b: LazyTensor::from_f32(&b, &[rows, rank]),
        scale: Scale { alpha: rank as f64, factor: 1.0 },
        magnitude: None,
        bias: if biases.is_empty() { None } else { Some(sum(&biases, "bias")?) },
    })
}

/// Refuses a sum of which nothing is left.
fn refuse_zero<'a>(mut tensors: impl Iterator<Item = &'a LazyTensor>) -> Result<()> {
    let has_effect = |t: &LazyTensor| decoded(t).map(|values| values.iter().any(|v| *v != 0.0));
    match tensors.find_map(|t| has_effect(t).map(|has| has.then_some(())).transpose()) {
        Some(found) => found,
        None => Err(Error::new(Code::NoEffect, "expected a sum that changes the base, found zeros alone")),
    }
}

/// The weighted sum of tensors of one shape.
fn sum(parts: &[(&LazyTensor, f64)], name: &str) -> Result<LazyTensor> {
    let shape = parts[0].0.shape();
    let mut all = vec![0f64; parts[0].0.n_elements()];
    for (t, s) in parts {
        if t.shape() != shape {
            let message = format!("expected tensors of one shape, found {shape:?} and {:?}", t.shape());
            return Err(Error::new(Code::AdapterMismatch, message).field(name));
        }
        all.iter_mut().zip(decoded(t)?).for_each(|(sum, v)| *sum += s * f64::from(v));
    }
    let values: Vec<f32> = all.into_iter().map(|v| v as f32).collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::new(Code::NonFinite, "expected finite sums, found one beyond F32").field(name));
    }
    Ok(LazyTensor::from_f32(&values, shape))
}
