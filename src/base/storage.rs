//! Where weights lie: which tensor of the files holds a weight, alone or among others.
//!
//! ```text
//!   self_attn.q_proj.weight     [H*D, hidden]              a query projection
//!   attn_qkv.weight             [(H+2*H_kv)*D, hidden]     query, key and value
//!   ffn_gate_exps.weight        [E, inner, hidden]         the gate of expert 0, of expert 1, ...
//!   mlp.experts.gate_up_proj    [E, 2*inner, hidden]       gate and up of expert 0, of expert 1, ...
//! ```
//!
//! Weights of one tensor follow each other in it, so each is a range of its bytes: nothing is copied or decoded to tell
//! them apart.

use std::collections::HashMap;

use super::config::{BaseConfig, Experts};
use super::names::{BlockWeight as W, Dialect, ExpertMatrix, Weight};
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
        if let Weight::Block(i, W::Router) = weight
            && let Some(experts) = c.experts_of(i)
        {
            out.push(router(i, c, dialect, &has));
            self::experts(i, experts, c, dialect, &has, &mut out);
        } else if let Some(stored) = fused(weight, dialect, c).filter(|(name, _)| has(name)) {
            // The others come with the first.
            out.extend(Stored::of(stored, c, dialect).filter(|s| s.weights[0] == weight));
        } else {
            out.extend(Stored::of((weight.name_in(dialect, c), vec![weight]), c, dialect));
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

/// What chooses experts. Before it has a file's names, transformers 5 calls it alike in all families.
fn router(block: usize, c: &BaseConfig, dialect: Dialect, has: impl Fn(&str) -> bool) -> Stored {
    let weight = Weight::Block(block, W::Router);
    let (own, common) = (weight.name_in(dialect, c), weight.name(dialect));
    let name = if !has(&own) && has(&common) { common } else { own };
    Stored { name, shape: weight.shape(c), weights: vec![weight] }
}

/// The experts of a block: in GGUF a stack for each matrix, in Hugging Face's files tensors of their own. The other way round
/// they are in files of llama.cpp's first months with experts, and where transformers 5 saves what it has in memory.
fn experts(
    block: usize,
    e: &Experts,
    c: &BaseConfig,
    dialect: Dialect,
    has: impl Fn(&str) -> bool,
    out: &mut Vec<Stored>,
) {
    use ExpertMatrix::{Down, Gate, Up};
    let weight = |n: usize, m: ExpertMatrix| Weight::Block(block, W::Expert(n, m));
    let stacks: Vec<(String, &[ExpertMatrix])> = match dialect {
        Dialect::Gguf => (ExpertMatrix::ALL.iter())
            .map(|m| (format!("blk.{block}.ffn_{}_exps.weight", m.name()), std::slice::from_ref(m)))
            .collect(),
        Dialect::HuggingFace => [("gate_up_proj", &[Gate, Up][..]), ("down_proj", &[Down])]
            .map(|(name, matrices)| (format!("model.layers.{block}.mlp.experts.{name}"), matrices))
            .into(),
    };
    for (name, matrices) in stacks {
        let first = weight(0, matrices[0]);
        let is_usual = dialect == Dialect::Gguf && !has(&first.name_in(dialect, c));
        if is_usual || has(&name) {
            let n_rows = matrices.iter().map(|m| weight(0, *m).shape(c)[0]).sum();
            let shape = vec![e.n_experts, n_rows, first.shape(c)[1]];
            let weights = (0..e.n_experts).flat_map(|n| matrices.iter().map(move |m| weight(n, *m))).collect();
            out.push(Stored { name, shape, weights });
        } else {
            let each = (0..e.n_experts).flat_map(|n| matrices.iter().map(move |m| weight(n, *m)));
            out.extend(each.filter_map(|w| Stored::of((w.name_in(dialect, c), vec![w]), c, dialect)));
        }
    }
}

impl Stored {
    /// `None` where the model has not all of the weights.
    fn of((name, weights): (String, Vec<Weight>), c: &BaseConfig, dialect: Dialect) -> Option<Stored> {
        let shapes: Vec<Vec<usize>> = weights.iter().map(|w| w.expected_shape(c)).collect::<Option<_>>()?;
        let mut shape = shapes.first()?.clone();
        shape[0] = shapes.iter().map(|s| s[0]).sum();
        if dialect == Dialect::Gguf && matches!(weights[..], [Weight::Block(_, W::SharedExpertGate)]) {
            shape.remove(0); // a vector there
        }
        Some(Stored { name, shape, weights })
    }

    /// Whether a tensor of this shape is one. A matrix of one row may be a vector: llama.cpp makes no difference.
    pub(super) fn has_shape(&self, shape: &[usize]) -> bool {
        let is_row = matches!(self.weights[..], [Weight::Block(_, W::SharedExpertGate)]);
        let hidden = &self.shape[self.shape.len() - 1..];
        shape == self.shape || (is_row && (shape == hidden || shape == [1, hidden[0]]))
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
