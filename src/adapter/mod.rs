//! Adapters as plain values, whatever file they came from: one folder for each kind, and what all kinds have in common.
//!
//! In memory everything is in *Hugging Face component order*; row order is applied when an adapter is written to
//! GGUF and undone when it is read (see [`crate::transform::row_order`]), and nowhere else.

use serde_json::{Map, Value};

use crate::base::fingerprint::Touched;
use crate::named::named_enum;
use crate::tensor::LazyTensor;
use field::FieldValue;

pub mod field;
pub mod gguf_names;
pub mod lora;
pub mod plus;
pub mod prefix;
mod slot;
pub use lora::Lora;
pub use plus::Plus;
pub use prefix::Prefix;
pub use slot::{Part, Site, Slot};

named_enum! {
    /// The kinds of adapters, by `adapter.type` in GGUF.
    Kind {
        /// [`Plus`]
        Plus = "prefix_tuning_plus",
        /// [`Lora`]
        Lora = "lora",
        /// [`Prefix`]
        Prefix = "virtual_tokens",
    }
}

/// An imported adapter: configuration and tensors, not yet checked against each other or against a base.
#[derive(Debug, Clone)]
pub enum Adapter {
    /// Prefix-Tuning+: a term beside attention.
    Plus(Plus),
    /// LoRA: low-rank additions to weights.
    Lora(Lora),
    /// Virtual tokens: what stands in front of a sequence.
    Prefix(Prefix),
}

impl From<Plus> for Adapter {
    fn from(plus: Plus) -> Self {
        Adapter::Plus(plus)
    }
}

impl From<Lora> for Adapter {
    fn from(lora: Lora) -> Self {
        Adapter::Lora(lora)
    }
}

impl From<Prefix> for Adapter {
    fn from(prefix: Prefix) -> Self {
        Adapter::Prefix(prefix)
    }
}

impl Adapter {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Adapter::Plus(_) => Kind::Plus,
            Adapter::Lora(_) => Kind::Lora,
            Adapter::Prefix(_) => Kind::Prefix,
        }
    }

    /// The Prefix-Tuning+ adapter, if it is one.
    pub fn as_plus(&self) -> Option<&Plus> {
        match self {
            Adapter::Plus(plus) => Some(plus),
            Adapter::Lora(_) | Adapter::Prefix(_) => None,
        }
    }

    /// The LoRA, if it is one.
    pub fn as_lora(&self) -> Option<&Lora> {
        match self {
            Adapter::Plus(_) | Adapter::Prefix(_) => None,
            Adapter::Lora(lora) => Some(lora),
        }
    }

    /// The virtual tokens, if it is some.
    pub fn as_prefix(&self) -> Option<&Prefix> {
        match self {
            Adapter::Plus(_) | Adapter::Lora(_) => None,
            Adapter::Prefix(prefix) => Some(prefix),
        }
    }

    /// Every tensor with its slot, slots ascending.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = (Slot, &LazyTensor)> + '_> {
        match self {
            Adapter::Plus(plus) => Box::new(plus.tensors()),
            Adapter::Lora(lora) => Box::new(lora.tensors()),
            Adapter::Prefix(prefix) => prefix.tensors(),
        }
    }

    /// The tensor in `slot`, if the adapter has it.
    pub fn get(&self, slot: Slot) -> Option<&LazyTensor> {
        match self {
            Adapter::Plus(plus) => plus.get(slot),
            Adapter::Lora(lora) => lora.get(slot),
            Adapter::Prefix(prefix) => prefix.get(slot),
        }
    }

    /// What of the base it was trained against.
    pub fn touched(&self) -> Touched {
        match self {
            Adapter::Plus(plus) => Touched::Queries(plus.layers.keys().copied().collect()),
            Adapter::Lora(lora) => Touched::Weights(lora.modules.keys().copied().collect()),
            // What meets the virtual tokens; embeddings go through the whole base, so every layer it has.
            Adapter::Prefix(prefix) => match &prefix.tokens {
                prefix::VirtualTokens::KeysValues(layers) => Touched::Queries(layers.keys().copied().collect()),
                prefix::VirtualTokens::Embeddings(_) => Touched::AllQueries,
            },
        }
    }

    /// The adapted blocks of the base, ascending.
    pub fn layer_numbers(&self) -> std::collections::btree_set::IntoIter<usize> {
        let layers: std::collections::BTreeSet<usize> = match self {
            Adapter::Plus(plus) => plus.layers.keys().copied().collect(),
            Adapter::Lora(_) | Adapter::Prefix(_) => self.tensors().filter_map(|(slot, _)| slot.layer).collect(),
        };
        layers.into_iter()
    }

    /// This adapter in the form in which `other` has the same: see [`Lora::folded_like`].
    pub fn in_form_of(&self, other: &Adapter) -> Adapter {
        match (self, other) {
            (Adapter::Lora(own), Adapter::Lora(other)) => own.folded_like(other).into(),
            (
                Adapter::Plus(_) | Adapter::Lora(_) | Adapter::Prefix(_),
                Adapter::Plus(_) | Adapter::Lora(_) | Adapter::Prefix(_),
            ) => self.clone(),
        }
    }

    /// The base's `model_type`, where stated.
    pub fn base_model_type(&self) -> Option<&str> {
        match self {
            Adapter::Plus(plus) => plus.config.base_model_type.as_deref(),
            Adapter::Lora(_) | Adapter::Prefix(_) => self.extra().get("base_model_type").and_then(Value::as_str),
        }
    }

    /// What of `adapter_config.json` is carried along and never interpreted.
    pub fn extra(&self) -> &Map<String, Value> {
        match self {
            Adapter::Plus(plus) => &plus.config.extra,
            Adapter::Lora(lora) => &lora.config,
            Adapter::Prefix(prefix) => &prefix.config,
        }
    }

    /// [`extra`](Self::extra), to be changed.
    pub fn extra_mut(&mut self) -> &mut Map<String, Value> {
        match self {
            Adapter::Plus(plus) => &mut plus.config.extra,
            Adapter::Lora(lora) => &mut lora.config,
            Adapter::Prefix(prefix) => &mut prefix.config,
        }
    }

    /// What it states about what it computes, by key.
    pub fn fields(&self) -> Vec<(&'static str, FieldValue)> {
        match self {
            Adapter::Plus(plus) => plus.fields().map(|(field, value)| (field.key, value)).collect(),
            // Factors are those of modules, and no list of fields.
            Adapter::Lora(_) => Vec::new(),
            Adapter::Prefix(prefix) => prefix.fields(),
        }
    }

    /// [`fields`](Self::fields) as text; scales as GGUF keeps them, in F32.
    pub fn conventions(&self) -> impl Iterator<Item = (&'static str, String)> {
        let fields = self.fields().into_iter().map(|(key, value)| (key, value.text()));
        fields.chain(self.as_lora().map(|lora| ("scales", lora.scales_text())))
    }
}
