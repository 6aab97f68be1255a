//! Memories of Prefix-Tuning+ against themselves and their base.

use super::check_type;
use crate::adapter::Slot;
use crate::adapter::plus::{Geometry, MemorySharing, PARTS, PartSpec, Plus};
use crate::base::{BaseModel, RowOrder};
use crate::error::Code;
use crate::finding::Findings;

pub(super) fn against_itself(adapter: &Plus, findings: &mut Findings) {
    let g = &adapter.config.geometry;
    if !g.n_heads.is_multiple_of(g.n_kv_heads) {
        findings.add(
            Code::ConfigField,
            "num_key_value_heads",
            format!("a divisor of num_attention_heads = {}", g.n_heads),
            g.n_kv_heads,
        );
    }
    for (&i, layer) in &adapter.layers {
        if i >= g.n_layers {
            findings.add(
                Code::AdapterMismatch,
                format!("layers.{i}"),
                format!("a layer below num_layers = {}", g.n_layers),
                format!("layer {i}"),
            );
        }
        if layer.feature_weight.is_none() && g.n_features != g.head_dim {
            findings.add(
                Code::AdapterMismatch,
                format!("layers.{i}"),
                format!("num_features = head_dim = {} without a learned feature map", g.head_dim),
                format!("num_features {}", g.n_features),
            );
        }
        for (part, t) in layer.tensors() {
            let name = Slot::attention(i, part).canonical_name();
            let spec = PartSpec::of(part);
            let expected = spec.shape(&adapter.config);
            if t.shape() != expected {
                let found = format!("{:?}{}", t.shape(), other_sharing(adapter, t.shape(), &expected));
                let expected = format!("{} = {expected:?}", spec.symbols());
                findings.add(Code::AdapterShape, &name, expected, found);
            }
            check_type(&name, t, findings);
        }
    }
}

/// Where the number of memories alone is another one than stated: the sharing that has so many.
fn other_sharing(adapter: &Plus, found: &[usize], expected: &[usize]) -> String {
    let ([n, rest @ ..], [_, expected_rest @ ..]) = (found, expected) else { return String::new() };
    let of_so_many = |s: &&MemorySharing| adapter.config.geometry.n_memories(**s) == *n;
    match MemorySharing::ALL.iter().find(of_so_many) {
        Some(sharing) if rest == expected_rest => format!(", which is memory_sharing {sharing}"),
        _ => String::new(),
    }
}

/// W, b and N are properties of an adapter: one that lacks a part in some of its layers has lost it.
pub(super) fn uneven(adapter: &Plus, findings: &mut Findings) {
    for part in PARTS.iter().map(|spec| spec.part) {
        let Some((first, _)) = adapter.layers.iter().find(|(_, layer)| layer.get(part).is_some()) else { continue };
        for (&i, _) in adapter.layers.iter().filter(|(_, layer)| layer.get(part).is_none()) {
            let expected = format!("a tensor in every adapted layer, as in layer {first}");
            findings.add(Code::AdapterMissing, Slot::attention(i, part).canonical_name(), expected, "no such tensor");
        }
    }
}

pub(super) fn against_base(adapter: &Plus, base: &BaseModel, findings: &mut Findings) {
    let Geometry { n_layers, head_dim, .. } = adapter.config.geometry;
    for (field, base_has, has) in adapter.config.other_sizes(&base.config) {
        findings.add(Code::AdapterMismatch, field.key, format!("{base_has}, as the base has"), has);
    }
    for &i in adapter.layers.keys().filter(|i| **i >= base.config.n_layers && **i < n_layers) {
        findings.add(
            Code::AdapterMismatch,
            format!("layers.{i}"),
            format!("a layer below the base's {}", base.config.n_layers),
            format!("layer {i}"),
        );
    }
    let order = RowOrder::of_gguf_architecture(base.gguf_architecture());
    if order == Some(RowOrder::Norm) && !head_dim.is_multiple_of(2) {
        findings.add(Code::AdapterMismatch, "head_dim", "an even number, as RoPE needs", head_dim);
    }
}

/// Where sizes differ: which base the adapter may be for.
pub(super) fn other_base(adapter: &Plus, base: &BaseModel) -> Option<String> {
    let list = |has: fn((usize, usize)) -> usize| {
        let differ = adapter.config.other_sizes(&base.config).filter(|(field, ..)| field.is_in_config);
        let sizes: Vec<String> = differ.map(|(field, a, b)| format!("{} {}", field.key, has((a, b)))).collect();
        sizes.join(", ")
    };
    let (base_has, adapter_has) = (list(|sizes| sizes.0), list(|sizes| sizes.1));
    if base_has.is_empty() {
        return None;
    }
    let stated = |key: &str| adapter.config.extra.get(key)?.as_str().filter(|s| !s.is_empty());
    let whose = match (stated("base_model_name_or_path"), &adapter.config.base_model_type) {
        (Some(path), _) if name_in(path).is_some() => name_in(path).unwrap_or_default().to_owned(),
        (_, Some(family)) => format!("another {family} model"),
        _ => "another model".to_owned(),
    };
    Some(format!("this base has {base_has}; the adapter {adapter_has}: is it for {whose}?"))
}

/// The last part of a trainer's path, unless it names no model.
fn name_in(path: &str) -> Option<&str> {
    const SAY_NOTHING: [&str; 7] = ["base", "base.gguf", "model", "models", "final", "hf", "weights"];
    let last = path.trim_end_matches('/').rsplit('/').next()?;
    (!last.is_empty() && !last.starts_with("checkpoint") && !SAY_NOTHING.contains(&last)).then_some(last)
}
