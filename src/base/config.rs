//! What a base model states about itself, whichever dialect states it: plain values and their invariants.

use super::names::{BlockWeight, Weight};
use super::rope::Rope;

mod row;

pub(super) use row::{BiasRule, BiasRules, Defaults, ExpertNames, Row};
pub use row::{Family, GivenEmbeddings, Head, LlamaCpp, RopeTensors};

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

/// Which weight is the RMS norm at which place of a block; no weight, no norm there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norms {
    /// Of what query, key and value are projected from.
    pub before_attention: Option<BlockWeight>,
    /// Of what the output projection gives, before it is added to the residual.
    pub after_attention: Option<BlockWeight>,
    /// Of what gate and up are projected from.
    pub before_feed_forward: Option<BlockWeight>,
    /// Of what the down projection gives, before it is added to the residual.
    pub after_feed_forward: Option<BlockWeight>,
    /// Whether Hugging Face's files hold every norm's weight less 1. GGUF files and [`BaseModel::vector`](super::BaseModel::vector)
    /// have the weight that multiplies.
    pub stored_less_one: bool,
}

impl Norms {
    /// As in OLMo 2: behind.
    pub const AFTER: Norms = Norms {
        before_attention: None,
        after_attention: Some(BlockWeight::PostAttentionNorm),
        before_feed_forward: None,
        after_feed_forward: Some(BlockWeight::PostFeedForwardNorm),
        stored_less_one: false,
    };

    /// As in Gemma 2 and 3: before and behind.
    pub const AROUND_LESS_ONE: Norms = Norms {
        before_attention: Some(BlockWeight::InputNorm),
        after_attention: Some(BlockWeight::PostAttentionNorm),
        before_feed_forward: Some(BlockWeight::PreFeedForwardNorm),
        after_feed_forward: Some(BlockWeight::PostFeedForwardNorm),
        stored_less_one: true,
    };

    /// As in Llama.
    pub const BEFORE: Norms = Norms {
        before_attention: Some(BlockWeight::InputNorm),
        after_attention: None,
        before_feed_forward: Some(BlockWeight::PostAttentionNorm),
        after_feed_forward: None,
        stored_less_one: false,
    };

    /// All places.
    pub fn all(&self) -> [Option<BlockWeight>; 4] {
        [self.before_attention, self.after_attention, self.before_feed_forward, self.after_feed_forward]
    }
}

/// What an RMS norm of queries and keys, which comes before RoPE, takes for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head: weights `[D]`.
    PerHead,
    /// All heads of a position: weights `[H*D]` and `[H_kv*D]`.
    PerRow,
}

/// The function on the gate of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// GELU by erf.
    Gelu,
}

impl Activation {
    /// The names that transformers has for it.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Activation::Silu => &["silu", "swish"],
            Activation::GeluTanh => &["gelu_pytorch_tanh"],
            Activation::Gelu => &["gelu"],
        }
    }
}

/// What is computed after attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// One network.
    Dense,
    /// The mixture that [`BaseConfig::experts`] describes.
    Experts,
}

/// A mixture of experts: a router chooses a few networks for each position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Number of networks.
    pub n_experts: usize,
    /// How many a position gets.
    pub n_per_token: usize,
    /// Whether the weights of those that a position gets are divided by their sum.
    pub renormalise: bool,
    /// Length of an expert's inner state.
    pub intermediate_size: usize,
    /// Length of the inner state of the expert that every position gets, with a gate of its own.
    pub shared_intermediate_size: Option<usize>,
}

/// What is odd about one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// How many positions, its own included, a query sees; `None` sees all.
    pub window: Option<usize>,
    /// Index into [`BaseConfig::ropes`]; `None` for a layer that does not rotate.
    pub rope: Option<usize>,
    /// What is computed after attention.
    pub feed_forward: FeedForward,
}

impl Layer {
    /// One that sees everything.
    pub const FULL: Layer = Layer { window: None, rope: Some(0), feed_forward: FeedForward::Dense };

    /// One with this window.
    pub fn with_window(window: Option<usize>) -> Layer {
        Layer { window, ..Layer::FULL }
    }
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
    /// Which norms stand where.
    pub norms: Norms,
    /// The norm of query and key heads before RoPE.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// What scores are multiplied with: `1/sqrt(D)` in most families.
    pub attention_scale: f64,
    /// What a GGUF file's keys are multiplied with beyond the model's own, since llama.cpp has a scale of its own; 1 in folders.
    pub key_factor: f64,
    /// `c` where scores, scaled, become `c tanh(score / c)`.
    pub attention_softcap: Option<f64>,
    /// How many components of a query and key head are rotated, from the first on; even.
    pub rotary_dim: usize,
    /// The rotary position embeddings that layers choose from, at least one.
    pub ropes: Vec<Rope>,
    /// Each layer's own, one for each block.
    pub layers: Vec<Layer>,
    /// The function on the gate.
    pub activation: Activation,
    /// The mixture of those layers that have one.
    pub experts: Option<Experts>,
    /// What token embeddings are multiplied with.
    pub embedding_multiplier: f64,
    /// What the outputs of attention and of the feed-forward network are multiplied with before they are added to the residual.
    pub residual_multiplier: f64,
    /// What logits are divided by.
    pub logits_scaling: f64,
    /// `c` where logits, scaled, become `c tanh(logit / c)`.
    pub final_softcap: Option<f64>,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether query, key and value are one matrix, and gate and up are.
    pub fused_projections: bool,
}

impl BaseConfig {
    /// One of these sizes, with what its row says of the family and the neutral values of what only some models have.
    pub(super) fn plain(family: Family, sizes: &Sizes) -> BaseConfig {
        let row = family.0;
        BaseConfig {
            family,
            model_type: None,
            n_layers: sizes.n_layers,
            n_heads: sizes.n_heads,
            n_kv_heads: sizes.n_kv_heads,
            head_dim: sizes.head_dim,
            value_head_dim: sizes.head_dim,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            vocab_size: sizes.vocab_size,
            context_length: None,
            rms_eps: row.defaults.rms_eps,
            norms: row.norms,
            query_key_norm: row.query_key_norm,
            attention_scale: 1.0 / (sizes.head_dim as f64).sqrt(),
            key_factor: 1.0,
            attention_softcap: None,
            rotary_dim: sizes.head_dim,
            ropes: vec![Rope::plain(row.defaults.rope_theta)],
            layers: vec![Layer::FULL; sizes.n_layers],
            activation: row.activation.1,
            experts: None,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logits_scaling: 1.0,
            final_softcap: None,
            tied_embeddings: row.defaults.tied_embeddings,
            biases: Biases::default(),
            fused_projections: row.fused_projections,
        }
    }

    /// The mixture that a layer has, if it has one.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        let has_experts = self.layers.get(layer).is_some_and(|l| l.feed_forward == FeedForward::Experts);
        self.experts.as_ref().filter(|_| has_experts)
    }

    /// What the keys of a GGUF file of this model are multiplied with, so that the scores of llama.cpp are the model's.
    pub fn gguf_key_factor(&self) -> f64 {
        let factor = self.family.llama_cpp().attention_scale.map_or(1.0, |of| self.attention_scale / of(self));
        // Different roundings of one number.
        if (factor - 1.0).abs() < 1e-6 { self.key_factor } else { self.key_factor * factor }
    }

    /// What is added to `weight` is multiplied with this where keys are with `key_factor`. A norm of the key takes the factor itself.
    pub fn addition_factor(&self, weight: Weight, key_factor: f64) -> f64 {
        let makes_keys = weight.makes_keys() && self.query_key_norm.is_none();
        if makes_keys { key_factor } else { 1.0 }
    }

    /// The window of each layer that has one.
    pub fn windows(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().filter_map(|l| l.window)
    }
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

/// `rotary_dim` where RoPE turns so many components of a head.
pub(super) fn check_rotary_dim(rotary_dim: usize, head_dim: usize) -> Result<usize, String> {
    match rotary_dim {
        0 => Err(format!("expected some of the {head_dim} components of a head, found none")),
        n if n > head_dim || !n.is_multiple_of(2) => {
            Err(format!("expected an even number up to the head length {head_dim}, since RoPE turns pairs, found {n}"))
        }
        n => Ok(n),
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
