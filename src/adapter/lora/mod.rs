//! LoRA as plain values: low-rank additions to linear weights of a base, whatever file they came from.
//!
//! ```text
//!   W' = W + scale * B A          W [rows, columns]   A [r, columns]   B [rows, r]
//! ```
//!
//! In memory W's rows are in *Hugging Face order*, and so are B's. The token embedding is a matrix like the others, `[V, hidden]`;
//! files hold its halves transposed, and readers and writers see to it.

mod alpha;
mod folded;
pub mod gguf_keys;
mod names;
mod scale;
mod stating;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Part, Slot};
use crate::base::{BaseConfig, Weight};
use crate::tensor::LazyTensor;

pub use alpha::{common_alpha, fold, runtime_factor};
pub(super) use names::{canonical_name, gguf_tensor_name, parse_canonical_name};
pub use names::{is_reordered, module_name, turned_for_gguf, turned_for_peft};
pub use scale::{MAX_RANK, Rules, Scale};
pub use stating::PEFT_TYPE;

/// An imported LoRA: not yet checked against a base.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `adapter_config.json` as the source states it; of a GGUF file, what says the same. Carried along: what counts is in
    /// [`modules`](Self::modules).
    pub config: Map<String, Value>,
    /// The additions, by the weight that they are added to: linear weights of blocks, the embedding, the head.
    pub modules: BTreeMap<Weight, Module>,
    /// Weights that stand in the place of the base's: `modules_to_save`, trained norms and biases, embeddings with new rows.
    pub saved: BTreeMap<Weight, LazyTensor>,
    /// What an earlier conversion has multiplied into B, since GGUF has one alpha for all modules.
    pub folded: BTreeMap<Weight, f64>,
    /// Of a GGUF file: what the keys of the base that llama.cpp adds it to are multiplied with
    /// ([`BaseConfig::gguf_key_factor`](crate::base::BaseConfig::gguf_key_factor)). The factors of [`modules`](Self::modules) have
    /// it divided out: they are about the model's own keys.
    pub key_factor: Option<f64>,
}

/// What is added to one weight W `[rows, columns]`.
#[derive(Debug, Clone)]
pub struct Module {
    /// A `[r, columns]`
    pub a: LazyTensor,
    /// B `[rows, r]`
    pub b: LazyTensor,
    /// The factor on B A, and what it was made from.
    pub scale: Scale,
    /// DoRA's magnitudes `[rows]`: row `i` of `W + scale * B A` is brought to the length `magnitude[i]`.
    pub magnitude: Option<LazyTensor>,
    /// `lora_bias` `[rows]`: `scale * bias` is added to the projection's output.
    pub bias: Option<LazyTensor>,
}

impl Module {
    /// r: rows of A, columns of B.
    pub fn rank(&self) -> usize {
        self.a.shape().first().copied().unwrap_or(0)
    }

    /// Whether it is A and B and nothing else.
    pub fn is_plain(&self) -> bool {
        self.magnitude.is_none() && self.bias.is_none()
    }
}

impl Lora {
    /// Every tensor with its slot, slots ascending.
    pub fn tensors(&self) -> impl Iterator<Item = (Slot, &LazyTensor)> {
        let modules = self.modules.iter().flat_map(|(&weight, m)| {
            let parts = [
                (Part::A, Some(&m.a)),
                (Part::B, Some(&m.b)),
                (Part::Magnitude, m.magnitude.as_ref()),
                (Part::Bias, m.bias.as_ref()),
            ];
            parts.into_iter().filter_map(move |(part, t)| Some((Slot::of_weight(weight, part), t?)))
        });
        let saved = self.saved.iter().map(|(&weight, t)| (Slot::of_weight(weight, Part::Whole), t));
        let mut all: Vec<_> = modules.chain(saved).collect();
        all.sort_by_key(|(slot, _)| *slot);
        all.into_iter()
    }

    /// The tensor in `slot`, if there is one.
    pub fn get(&self, slot: Slot) -> Option<&LazyTensor> {
        let weight = slot.weight()?;
        let module = || self.modules.get(&weight);
        match slot.part {
            Part::A => Some(&module()?.a),
            Part::B => Some(&module()?.b),
            Part::Magnitude => module()?.magnitude.as_ref(),
            Part::Bias => module()?.bias.as_ref(),
            Part::Whole => self.saved.get(&weight),
            Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => None,
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => None,
        }
    }

    /// The kinds of layers that are added to, by the last word of their modules' names: `q_proj`, `embed_tokens`.
    pub fn kinds(&self) -> std::collections::BTreeSet<String> {
        let last = |name: String| name.rsplit('.').next().unwrap_or_default().to_owned();
        self.modules.keys().map(|&w| last(module_name(w))).collect()
    }

    /// The factors as text, in F32, for comparisons: each with the modules that have it.
    pub(super) fn scales_text(&self) -> String {
        let mut by_factor: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (&weight, module) in &self.modules {
            by_factor.entry((module.scale.factor as f32).to_string()).or_default().push(module_name(weight));
        }
        match by_factor.len() {
            1 => by_factor.into_keys().collect(),
            _ => by_factor
                .into_iter()
                .map(|(x, names)| format!("{x}: {}", names.join(" ")))
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    /// Whether the GGUF file that this was read from is one for llama.cpp with this base: keys are multiplied in both alike.
    pub fn has_keys_of(&self, base: &BaseConfig) -> bool {
        let own = self.key_factor.unwrap_or(1.0) as f32;
        let factor = |w: &Weight| base.addition_factor(*w, base.gguf_key_factor()) as f32;
        self.modules.keys().filter(|w| w.makes_keys()).all(|w| factor(w) == own)
    }

    /// Whether a file of low-rank additions can say all of it.
    pub fn is_plain(&self) -> bool {
        self.saved.is_empty() && self.modules.values().all(Module::is_plain)
    }
}
