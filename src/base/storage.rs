//! Where weights lie: which tensor of the files holds a weight, alone or among others.
//!
//! ```text
//!   self_attn.q_proj.weight     [H*D, hidden]              a query projection
//!   attn_qkv.weight             [(H+2*H_kv)*D, hidden]     query, key and value
//! ```
//!
//! Weights of one tensor follow each other in it, so each is a range of its bytes: nothing is copied or decoded to tell
//! them apart.

use std::collections::HashMap;

use super::config::BaseConfig;
use super::names::{BlockWeight as W, Dialect, Weight};
use crate::format::StoredTensor;
use crate::tensor::shape;

/// A tensor of the files that a model has, and the weights in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the dialect's table.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What lies in it, one after the other.
    pub weights: Vec<Weight>,
}

/// The tensors of a model of this configuration. Where files store a weight in several ways, `has` decides: whether there is
/// a tensor of this name.
pub fn layout(c: &BaseConfig, dialect: Dialect, has: impl Fn(&str) -> bool) -> Vec<Stored> {
    let mut out = Vec::new();
    // A folder's configuration says RoPE's divisors.
    let is_here = |w: &Weight| dialect == Dialect::Gguf || !matches!(w, Weight::Rope(_));
    for weight in Weight::all(c.n_layers).filter(is_here) {
        if let Some(stored) = fused(weight, dialect, c).filter(|(name, _)| has(name)) {
            // The others come with the first.
            out.extend(Stored::of(stored, c).filter(|s| s.weights[0] == weight));
        } else {
            out.extend(Stored::of((weight.name_in(dialect, c), vec![weight]), c));
        }
    }
    if c.tied_embeddings && has(&Weight::Output.name_in(dialect, c)) {
        // Stored all the same; compared with the embedding when it is used.
        let shape = Weight::Output.shape(c);
        out.push(Stored { name: Weight::Output.name_in(dialect, c), shape, weights: vec![Weight::Output] });
    }
    out
}

/// The tensor in which files of the dialect may have `weight` with its neighbours. llama.cpp asks for query, key and value in
/// one tensor first, whatever the architecture (`create_tensor_qkv` in llama-model.cpp).
fn fused(weight: Weight, dialect: Dialect, c: &BaseConfig) -> Option<(String, Vec<Weight>)> {
    let Weight::Block(i, w) = weight else { return None };
    let (name, weights) = match (dialect, w) {
        (Dialect::Gguf, W::Query | W::Key | W::Value) => (W::QueryKeyValue, [W::Query, W::Key, W::Value]),
        (Dialect::Gguf, W::QueryBias | W::KeyBias | W::ValueBias) => {
            (W::QueryKeyValueBias, [W::QueryBias, W::KeyBias, W::ValueBias])
        }
        _ => return None,
    };
    Some((Weight::Block(i, name).name_in(dialect, c), weights.map(|w| Weight::Block(i, w)).to_vec()))
}

impl Stored {
    /// `None` where the model has not all of the weights.
    fn of((name, weights): (String, Vec<Weight>), c: &BaseConfig) -> Option<Stored> {
        let shapes: Vec<Vec<usize>> = weights.iter().map(|w| w.expected_shape(c)).collect::<Option<_>>()?;
        let mut shape = shapes.first()?.clone();
        shape[0] = shapes.iter().map(|s| s[0]).sum();
        Some(Stored { name, shape, weights })
    }

    /// Puts views of the tensor into `weights`, those of a weight's parts as well.
    pub(super) fn split(&self, t: &StoredTensor, c: &BaseConfig, weights: &mut HashMap<Weight, StoredTensor>) {
        let mut start = 0;
        for &weight in &self.weights {
            start += place(weight, t, start, c, weights);
        }
        assert_eq!(start, t.bytes.len(), "{} is its weights", t.name);
    }
}

/// Puts a view of the weight that begins at byte `start` of a tensor into `weights`; how long it is.
fn place(
    weight: Weight,
    t: &StoredTensor,
    start: usize,
    c: &BaseConfig,
    weights: &mut HashMap<Weight, StoredTensor>,
) -> usize {
    let shape = weight.shape(c);
    let len = shape::len_bytes(&shape, t.dtype).expect("no more than the whole tensor");
    let bytes = t.bytes.slice(start..start + len).expect("within the tensor");
    weights.insert(weight, StoredTensor { shape, file_offset: t.file_offset + start as u64, bytes, ..t.clone() });
    weight.parts().iter().fold(start, |at, part| at + place(*part, t, at, c, weights));
    len
}
