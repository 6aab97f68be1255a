//! What a base model states about itself, whichever dialect states it: plain values and their invariants.

use std::fmt;

/// The model families whose forward pass is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1, 2 and 3.x, and what calls itself so (SmolLM2).
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with biases on query, key and value.
    Qwen2,
    /// Llama with RMS norms on the query and key heads.
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: &'static [Family] = &[Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The name in Hugging Face's `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The name in GGUF's `general.architecture`. Mistral is `llama` there.
    pub fn gguf_architecture(self) -> &'static str {
        match self {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The family with this `model_type`.
    pub fn from_model_type(name: &str) -> Option<Family> {
        Family::ALL.iter().copied().find(|f| f.model_type() == name)
    }

    /// The family with this `general.architecture`; a Mistral in GGUF is a Llama with a window.
    pub fn from_gguf_architecture(name: &str) -> Option<Family> {
        Family::ALL.iter().copied().find(|f| f.gguf_architecture() == name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// Rotary position embedding over the whole head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies.
    pub theta: f64,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

impl fmt::Display for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rope_theta {} and ", self.theta)?;
        match self.scaling {
            RopeScaling::None => f.write_str("no scaling"),
            RopeScaling::Linear { factor } => write!(f, "linear scaling by {factor}"),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => write!(
                f,
                "llama3 scaling by {factor} ({low_freq_factor}, {high_freq_factor}, {original_max_positions} positions)"
            ),
            RopeScaling::Factors => f.write_str("scaling by a tensor"),
        }
    }
}

/// How the frequencies of [`Rope`] are changed. Sources: transformers' `modeling_rope_utils.py`, ggml's
/// `rope_freqs.weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `original_max_positions / low_freq_factor` is the wavelength from which on a frequency is low.
        low_freq_factor: f64,
        /// `original_max_positions / high_freq_factor` is the wavelength up to which a frequency is high.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_positions: usize,
    },
    /// Each frequency is divided by its entry of the GGUF tensor `rope_freqs.weight`.
    Factors,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Query, key and value.
    pub query_key_value: bool,
    /// The attention's output projection.
    pub attention_output: bool,
    /// Gate, up and down projection.
    pub feed_forward: bool,
}

/// The configuration of a base model.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseConfig {
    /// Decides the forward pass. A GGUF file cannot tell Mistral from Llama: it says Llama.
    pub family: Family,
    /// Hugging Face's `model_type`, where the file states it.
    pub model_type: Option<String>,
    /// L: number of blocks.
    pub n_layers: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: key/value heads; divides H.
    pub n_kv_heads: usize,
    /// D: length of a query and key head; even.
    pub head_dim: usize,
    /// D_v: length of a value head; D in every supported family.
    pub value_head_dim: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Length of the feed-forward network's inner state.
    pub intermediate_size: usize,
    /// V: number of tokens.
    pub vocab_size: usize,
    /// Positions that the model was made for, where the file states it. Nothing here depends on it.
    pub context_length: Option<usize>,
    /// Added to the mean square inside every RMS norm.
    pub rms_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Per layer how many positions, its own included, a query sees; `None` sees all.
    pub sliding_windows: Vec<Option<usize>>,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether query and key heads pass through an RMS norm before RoPE.
    pub query_key_norm: bool,
}

/// The sizes of a [`BaseConfig`] with their names in the file and their limits.
///
/// The limits are about ten times the largest published model of any family; they keep products within 64 bits and
/// tables that are sized by a count within reason.
pub(super) struct Sizes {
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
}

/// The names that one dialect uses for [`Sizes`], in the order of its fields.
pub(super) type SizeNames = [&'static str; 7];

impl Sizes {
    /// The first violated invariant: name of the field and what is wrong with it.
    pub fn check(&self, names: &SizeNames) -> Result<(), (&'static str, String)> {
        let [layers, heads, kv_heads, head_dim, hidden, intermediate, vocab] = *names;
        let limits = [
            (layers, self.n_layers, 2_000),
            (heads, self.n_heads, 4_096),
            (kv_heads, self.n_kv_heads, 4_096),
            (head_dim, self.head_dim, 8_192),
            (hidden, self.hidden_size, 1 << 18),
            (intermediate, self.intermediate_size, 1 << 20),
            (vocab, self.vocab_size, 1 << 22),
        ];
        for (name, found, limit) in limits {
            if found == 0 || found > limit {
                return Err((name, format!("expected a number from 1 to {limit}, found {found}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let message = format!("expected a divisor of the {} heads, found {}", self.n_heads, self.n_kv_heads);
            return Err((kv_heads, message));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err((
                head_dim,
                format!("expected an even number, since RoPE turns pairs, found {}", self.head_dim),
            ));
        }
        Ok(())
    }
}

/// Head length where none is stated: hidden size over heads, which must divide.
pub(super) fn derived_head_dim(hidden_size: usize, n_heads: usize) -> Result<usize, String> {
    match hidden_size.checked_rem(n_heads) {
        Some(0) => Ok(hidden_size / n_heads),
        Some(_) => Err(format!("expected a multiple of the {n_heads} heads, found {hidden_size}")),
        None => Err("expected at least one head, found 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::RowOrder;

    #[test]
    fn every_family_has_a_row_order_and_is_found_by_both_names() {
        for &f in Family::ALL {
            assert!(RowOrder::of_gguf_architecture(f.gguf_architecture()).is_some(), "{f}");
            assert_eq!(Family::from_model_type(f.model_type()), Some(f));
            let by_architecture = Family::from_gguf_architecture(f.gguf_architecture());
            assert_eq!(by_architecture.map(Family::gguf_architecture), Some(f.gguf_architecture()));
        }
    }
}
