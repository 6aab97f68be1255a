//! What an adapter does to a base model, as the runner takes it: one plain value, whatever kind of adapter it comes from.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::adapter::lora::{self, Lora};
use crate::adapter::plus::{self, Plus};
use crate::adapter::prefix::{KeysValues, Prefix, VirtualTokens};
use crate::base::{BaseModel, Dialect, Weight};
use crate::error::{Code, Error, Result};
use crate::tensor::LazyTensor;

/// Everything that an adapter changes in a base model's forward pass.
#[derive(Debug, Clone, Default)]
pub struct Effects<'a> {
    /// Additions to matrices: projections, the embedding, the head.
    pub matrices: BTreeMap<Weight, MatrixEffect<'a>>,
    /// Terms after attention, by layer.
    pub terms: BTreeMap<usize, AttentionTerm<'a>>,
    /// Weights that stand in the place of the base's. The runner refuses them: they have to be merged.
    pub replaced: Vec<Weight>,
    /// What stands in front of the sequence, at positions from 0 on; its own tokens follow.
    pub front: Option<Front<'a>>,
}

/// What stands in front of a sequence, as an adapter states it.
#[derive(Debug, Clone, Copy)]
pub enum Front<'a> {
    /// Keys and values of every layer.
    KeysValues(&'a BTreeMap<usize, KeysValues>),
    /// Embeddings `[P, hidden]`, which go through the base.
    Embeddings(&'a LazyTensor),
}

impl<'a> Front<'a> {
    /// What these virtual tokens are.
    pub fn of(prefix: &'a Prefix) -> Self {
        match &prefix.tokens {
            VirtualTokens::KeysValues(layers) => Front::KeysValues(layers),
            VirtualTokens::Embeddings(t) => Front::Embeddings(t),
        }
    }

    /// P.
    pub fn n_tokens(&self) -> usize {
        let shape = match self {
            Front::KeysValues(layers) => layers.values().next().map(|l| &l.keys.shape()[1..]),
            Front::Embeddings(t) => Some(t.shape()),
        };
        shape.and_then(|s| s.first().copied()).unwrap_or(0)
    }

    pub(super) fn check_fits(&self, base: &BaseModel) -> Result<()> {
        let c = &base.config;
        let is_it = match self {
            Front::KeysValues(layers) => {
                let shape = [c.n_kv_heads, self.n_tokens(), c.head_dim];
                layers.keys().copied().eq(0..c.n_layers)
                    && layers.values().all(|l| l.keys.shape() == shape && l.values.shape() == shape)
                    && c.value_head_dim == c.head_dim
            }
            Front::Embeddings(t) => t.shape() == [self.n_tokens(), c.hidden_size],
        };
        if is_it && self.n_tokens() > 0 {
            return Ok(());
        }
        let message = "expected virtual tokens of the base's layers, heads and sizes, found others";
        Err(Error::new(Code::AdapterMismatch, message))
    }
}

/// `W + scale * B A` in the place of a matrix W `[rows, columns]`.
#[derive(Debug, Clone, Copy)]
pub struct MatrixEffect<'a> {
    /// A `[r, columns]`
    pub a: &'a LazyTensor,
    /// B `[rows, r]`
    pub b: &'a LazyTensor,
    /// The factor on B A, and on the bias.
    pub scale: f64,
    /// DoRA: the rows of the sum are brought to these lengths, `[rows]`.
    pub magnitude: Option<&'a LazyTensor>,
    /// Added to the projection's output, `[rows]`.
    pub bias: Option<&'a LazyTensor>,
}

/// `memory_scale * phi(query_scale * q) M`, added to the attention heads' outputs of one layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionTerm<'a> {
    /// Feature map, tap, scales and sizes.
    pub config: &'a plus::Config,
    /// Memories and feature maps.
    pub layer: &'a plus::Layer,
}

impl<'a> From<&'a Adapter> for Effects<'a> {
    fn from(adapter: &'a Adapter) -> Self {
        match adapter {
            Adapter::Plus(plus) => plus.into(),
            Adapter::Lora(lora) => lora.into(),
            Adapter::Prefix(prefix) => prefix.into(),
        }
    }
}

impl<'a> From<&'a Plus> for Effects<'a> {
    fn from(adapter: &'a Plus) -> Self {
        let term = |(&i, layer)| (i, AttentionTerm { config: &adapter.config, layer });
        Effects { terms: adapter.layers.iter().map(term).collect(), ..Effects::default() }
    }
}

impl<'a> From<&'a Lora> for Effects<'a> {
    fn from(lora: &'a Lora) -> Self {
        let effect = |(&weight, m): (&Weight, &'a lora::Module)| {
            let effect = MatrixEffect {
                a: &m.a,
                b: &m.b,
                scale: m.scale.factor,
                magnitude: m.magnitude.as_ref(),
                bias: m.bias.as_ref(),
            };
            (weight, effect)
        };
        Effects {
            matrices: lora.modules.iter().map(effect).collect(),
            replaced: lora.saved.keys().copied().collect(),
            ..Effects::default()
        }
    }
}

impl<'a> From<&'a Prefix> for Effects<'a> {
    fn from(prefix: &'a Prefix) -> Self {
        Effects { front: Some(Front::of(prefix)), ..Effects::default() }
    }
}

/// What stands in front of sequences with all of these adapters, each with its strength.
///
/// # Errors
///
/// [`Code::Usage`] for virtual tokens with another strength than 1, or beside another adapter.
pub(super) fn front_of<'a, 'b>(adapters: &'b [(Effects<'a>, f64)]) -> Result<Option<&'b Front<'a>>> {
    let Some((front, strength)) = adapters.iter().find_map(|(e, s)| Some((e.front.as_ref()?, *s))) else {
        return Ok(None);
    };
    if strength != 1.0 {
        let message = format!("expected a scale of 1, since virtual tokens are there or not, found {strength}");
        return Err(Error::new(Code::Usage, message));
    }
    if adapters.len() > 1 {
        let message = "expected virtual tokens alone, since each adapter was trained without the other, found another beside them";
        return Err(Error::new(Code::Usage, message));
    }
    Ok(Some(front))
}

impl Effects<'_> {
    /// That the sizes are those of `base`, so that nothing in a forward pass can go out of step.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterMismatch`], [`Code::AdapterShape`]; [`Code::ConfigUnsupported`] for weights in the place of the base's.
    pub(super) fn check_fits(&self, base: &BaseModel) -> Result<()> {
        if let Some(weight) = self.replaced.first() {
            let message = "expected additions to the base's weights, found a weight that replaces one: \
                           `ptplus convert BASE --merge ADAPTER` makes a base of both";
            return Err(Error::new(Code::ConfigUnsupported, message).field(weight.name(Dialect::HuggingFace)));
        }
        for term in self.terms.values() {
            term.check_fits(base)?;
        }
        if let Some(front) = &self.front {
            front.check_fits(base)?;
        }
        if let Some(last) = self.terms.keys().next_back().filter(|last| **last >= base.config.n_layers) {
            return Err(mismatch("number of layers", base.config.n_layers, last + 1));
        }
        self.matrices.iter().try_for_each(|(weight, effect)| effect.check_fits(*weight, base))
    }
}

impl AttentionTerm<'_> {
    fn check_fits(&self, base: &BaseModel) -> Result<()> {
        match self.config.other_sizes(&base.config).next() {
            Some((field, base_has, has)) => Err(mismatch(field.key, base_has, has)),
            None => Ok(()),
        }
    }
}

impl MatrixEffect<'_> {
    fn check_fits(&self, weight: Weight, base: &BaseModel) -> Result<()> {
        let named = |e: Error| e.field(weight.name(Dialect::HuggingFace));
        let is_there = match weight {
            Weight::Block(i, _) => i < base.config.n_layers && weight.is_linear(),
            // A head that is tied to the embedding is one as well.
            Weight::Output => true,
            _ => base.tensor(weight).is_some(),
        };
        let shape = match weight {
            Weight::Output => Some(vec![base.config.vocab_size, base.config.hidden_size]),
            _ => weight.expected_shape(&base.config),
        };
        let Some([n_rows, row_len]) = shape.as_deref().filter(|_| is_there) else {
            let message = "expected a matrix that the base has, found an addition to another weight";
            return Err(named(Error::new(Code::AdapterMismatch, message)));
        };
        let rank = self.a.shape().first().copied().unwrap_or(0);
        let vector = |t: Option<&LazyTensor>| t.is_none_or(|t| t.shape() == [*n_rows]);
        let fits = self.a.shape() == [rank, *row_len]
            && self.b.shape() == [*n_rows, rank]
            && vector(self.magnitude)
            && vector(self.bias);
        if fits {
            return Ok(());
        }
        let message = format!(
            "expected A [r, {row_len}] and B [{n_rows}, r] for the base's weight, found {:?} and {:?}",
            self.a.shape(),
            self.b.shape()
        );
        Err(named(Error::new(Code::AdapterShape, message)))
    }
}

fn mismatch(what: &str, expected: usize, found: usize) -> Error {
    Error::new(Code::AdapterMismatch, format!("expected {expected}, as the base has, found {found}")).field(what)
}
