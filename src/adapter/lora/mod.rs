//! LoRA as plain values: low-rank additions to linear weights of a base, whatever file they came from.
//!
//! ```text
//!   W' = W + scale * B A          W [rows, columns]   A [r, columns]   B [rows, r]
//! ```
//!
//! In memory W's rows are in *Hugging Face order*, and so are B's. The token embedding is a matrix like the others, `[V, hidden]`;
//! files hold its halves transposed, and readers and writers see to it.

mod alpha;
pub mod gguf_keys;
mod names;
mod scale;
mod stating;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::base::Weight;
use crate::tensor::LazyTensor;

pub use alpha::{common_alpha, fold, runtime_factor};
pub use names::{Half, gguf_name, module_name, peft_name};
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
    /// Whether a file of low-rank additions can say all of it.
    pub fn is_plain(&self) -> bool {
        self.saved.is_empty() && self.modules.values().all(Module::is_plain)
    }
}
