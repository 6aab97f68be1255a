//! Virtual tokens as plain values: what Prefix-Tuning, prompt tuning and P-tuning put in front of a sequence, whatever file it
//! came from.
//!
//! ```text
//!   position   0 .. P-1            P, P+1, ..
//!              virtual tokens      real tokens
//! ```
//!
//! Prefix-Tuning states keys and values for every layer: keys as they are after RoPE, so nothing rotates them again. The others
//! state embeddings, which go through the base like those of tokens. Keys are in *Hugging Face order* in memory.

pub mod gguf_keys;
mod names;
mod peft;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::field::FieldValue;
use super::{Part, Slot};
use crate::named::named_enum;
use crate::tensor::LazyTensor;

pub(super) use names::{canonical_name, parse_canonical_name};
pub use names::{gguf_name, parse_gguf_name};
pub use peft::{PROMPT_EMBEDDINGS, of_prompt_embeddings, to_prompt_embeddings};

named_enum! {
    /// How virtual tokens were trained, by PEFT's `peft_type`.
    Method {
        /// Keys and values in every layer.
        PrefixTuning = "PREFIX_TUNING",
        /// Embeddings.
        PromptTuning = "PROMPT_TUNING",
        /// Embeddings that a small network made.
        PTuning = "P_TUNING",
    }
}

/// Imported virtual tokens: not yet checked against a base.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// `adapter_config.json` as the source states it; of a GGUF file, what says the same. Carried along: what counts is in the
    /// other fields.
    pub config: Map<String, Value>,
    /// How they were trained.
    pub method: Method,
    /// What they are.
    pub tokens: VirtualTokens,
}

/// What stands in front of a sequence.
#[derive(Debug, Clone)]
pub enum VirtualTokens {
    /// Keys and values, by layer.
    KeysValues(BTreeMap<usize, KeysValues>),
    /// Input embeddings `[P, hidden]`.
    Embeddings(LazyTensor),
}

/// What one layer's attention finds in front.
#[derive(Debug, Clone)]
pub struct KeysValues {
    /// `[H_kv, P, D]`, after RoPE.
    pub keys: LazyTensor,
    /// `[H_kv, P, D]`
    pub values: LazyTensor,
}

impl Method {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Method::PrefixTuning => "Prefix-Tuning",
            Method::PromptTuning => "prompt tuning",
            Method::PTuning => "P-Tuning",
        }
    }

    /// Where it was published.
    pub fn paper(self) -> &'static str {
        match self {
            Method::PrefixTuning => "https://arxiv.org/abs/2101.00190",
            Method::PromptTuning => "https://arxiv.org/abs/2104.08691",
            Method::PTuning => "https://arxiv.org/abs/2103.10385",
        }
    }
}

impl Prefix {
    /// P.
    pub fn n_tokens(&self) -> usize {
        let (tensor, axis) = match &self.tokens {
            VirtualTokens::KeysValues(layers) => (layers.values().next().map(|l| &l.keys), 1),
            VirtualTokens::Embeddings(t) => (Some(t), 0),
        };
        tensor.and_then(|t| t.shape().get(axis).copied()).unwrap_or(0)
    }

    /// Every tensor with its slot, slots ascending.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = (Slot, &LazyTensor)> + '_> {
        match &self.tokens {
            VirtualTokens::KeysValues(layers) => Box::new(layers.iter().flat_map(|(&i, l)| {
                [(Part::PrefixKeys, &l.keys), (Part::PrefixValues, &l.values)].map(|(p, t)| (Slot::attention(i, p), t))
            })),
            VirtualTokens::Embeddings(t) => Box::new(std::iter::once((Slot::virtual_tokens(), t))),
        }
    }

    /// The tensor in `slot`, if there is one.
    pub fn get(&self, slot: Slot) -> Option<&LazyTensor> {
        self.tensors().find(|(own, _)| *own == slot).map(|(_, t)| t)
    }

    /// What it states about what it computes, by key: sizes that tensors have.
    pub fn fields(&self) -> Vec<(&'static str, FieldValue)> {
        let mut out = vec![
            ("method", FieldValue::Name(self.method.name())),
            ("num_virtual_tokens", FieldValue::Count(self.n_tokens())),
        ];
        match &self.tokens {
            VirtualTokens::KeysValues(layers) => {
                let len = |axis: usize| layers.values().next().and_then(|l| l.keys.shape().get(axis).copied());
                out.push(("num_layers", FieldValue::Count(layers.len())));
                out.push(("num_key_value_heads", FieldValue::Count(len(0).unwrap_or(0))));
                out.push(("head_dim", FieldValue::Count(len(2).unwrap_or(0))));
            }
            VirtualTokens::Embeddings(t) => {
                out.push(("hidden_size", FieldValue::Count(t.shape().get(1).copied().unwrap_or(0))));
            }
        }
        out
    }
}
