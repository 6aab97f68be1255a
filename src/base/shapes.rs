//! The table of weights that depends on the model: what a tensor's shape is, and its name where families differ.

use super::config::{BaseConfig, Experts, Family, Norms, QueryKeyNorm};
use super::names::{BlockWeight, Dialect, ExpertMatrix, RopeFactors, Weight};
use super::rope::RopeScaling;

impl Norms {
    /// What GGUF calls the norm `weight`: it names places, Hugging Face's classes do not agree on them.
    fn gguf_name(&self, weight: BlockWeight) -> Option<&'static str> {
        const PLACES: [&str; 4] =
            ["attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"];
        self.all().iter().zip(PLACES).find(|(w, _)| **w == Some(weight)).map(|(_, name)| name)
    }
}

impl Weight {
    /// The weight that a GGUF file of `architecture` calls so.
    pub fn parse_gguf(name: &str, architecture: &str) -> Option<Weight> {
        let fuses = Family::from_gguf_architecture(architecture).is_some_and(|f| f.0.fused_projections);
        match Weight::parse(name, Dialect::Gguf)? {
            Weight::Block(i, BlockWeight::Up) if fuses => Some(Weight::Block(i, BlockWeight::GateUp)),
            weight => Some(weight),
        }
    }

    /// The tensor's name in files of `dialect` of such a model.
    pub fn name_in(self, dialect: Dialect, c: &BaseConfig) -> String {
        if let (Dialect::Gguf, Weight::Block(i, w)) = (dialect, self)
            && let Some(name) = c.norms.gguf_name(w)
        {
            return format!("blk.{i}.{name}");
        }
        if let (Dialect::HuggingFace, Weight::Block(i, w), Some(names)) = (dialect, self, &c.family.0.experts) {
            match w {
                BlockWeight::Router => return format!("model.layers.{i}.{}.weight", names.router),
                BlockWeight::Expert(n, m) => {
                    let matrix = names.matrices[m as usize];
                    return format!("model.layers.{i}.{}.{n}.{matrix}.weight", names.experts);
                }
                _ => {}
            }
        }
        self.name(dialect)
    }

    /// The shape that a model of this configuration needs, outermost first; `None` for a weight that it has not, or only as a
    /// part of another.
    pub fn expected_shape(self, c: &BaseConfig) -> Option<Vec<usize>> {
        use BlockWeight as W;
        let is_there = match self {
            Weight::TokenEmbedding | Weight::OutputNorm => true,
            Weight::Output => !c.tied_embeddings,
            Weight::Rope(factors) => c.ropes.iter().any(|r| match factors {
                RopeFactors::All => matches!(r.scaling, RopeScaling::Divisors(_)),
                RopeFactors::Long | RopeFactors::Short => matches!(r.scaling, RopeScaling::LongRope { .. }),
            }),
            Weight::Block(i, w) => match w {
                W::InputNorm | W::PostAttentionNorm | W::PreFeedForwardNorm | W::PostFeedForwardNorm => {
                    c.norms.all().contains(&Some(w))
                }
                W::QueryKeyValue => c.fused_projections,
                W::Query | W::Key | W::Value => !c.fused_projections,
                // Of files that fuse what the family has apart.
                W::QueryKeyValueBias => false,
                W::QueryBias | W::KeyBias | W::ValueBias => c.biases.query_key_value,
                W::QueryNorm | W::KeyNorm => c.query_key_norm.is_some(),
                W::AttentionOutput => true,
                W::AttentionOutputBias => c.biases.attention_output,
                W::GateUp => c.experts_of(i).is_none() && c.fused_projections,
                W::Gate | W::Up => c.experts_of(i).is_none() && !c.fused_projections,
                W::Down => c.experts_of(i).is_none(),
                W::GateBias | W::UpBias | W::DownBias => c.experts_of(i).is_none() && c.biases.feed_forward,
                W::Router => c.experts_of(i).is_some(),
                W::Expert(n, _) => c.experts_of(i).is_some_and(|e| n < e.n_experts),
                W::SharedExpertGate | W::SharedGate | W::SharedUp | W::SharedDown => {
                    c.experts_of(i).is_some_and(|e| e.shared_intermediate_size.is_some())
                }
            },
        };
        is_there.then(|| self.shape(c))
    }

    /// The shape that this weight has in a model of this configuration that has it.
    pub(super) fn shape(self, c: &BaseConfig) -> Vec<usize> {
        let (query, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let (value, attended) = (c.n_kv_heads * c.value_head_dim, c.n_heads * c.value_head_dim);
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let experts = |size: fn(&Experts) -> usize| c.experts.as_ref().map_or(0, size);
        let shared = || experts(|e| e.shared_intermediate_size.unwrap_or(0));
        use BlockWeight as W;
        match self {
            Weight::TokenEmbedding | Weight::Output => vec![c.vocab_size, hidden],
            Weight::OutputNorm => vec![hidden],
            Weight::Rope(_) => vec![c.rotary_dim / 2],
            Weight::Block(_, w) => match w {
                W::InputNorm | W::PostAttentionNorm | W::PreFeedForwardNorm | W::PostFeedForwardNorm => vec![hidden],
                W::QueryKeyValue => vec![query + kv + value, hidden],
                W::QueryKeyValueBias => vec![query + kv + value],
                W::Query => vec![query, hidden],
                W::Key => vec![kv, hidden],
                W::Value => vec![value, hidden],
                W::QueryBias => vec![query],
                W::KeyBias => vec![kv],
                W::ValueBias => vec![value],
                W::QueryNorm | W::KeyNorm => match c.query_key_norm {
                    Some(QueryKeyNorm::PerRow) if w == W::QueryNorm => vec![query],
                    Some(QueryKeyNorm::PerRow) => vec![kv],
                    Some(QueryKeyNorm::PerHead) | None => vec![c.head_dim],
                },
                W::AttentionOutput => vec![hidden, attended],
                W::AttentionOutputBias | W::DownBias => vec![hidden],
                W::GateUp => vec![2 * inner, hidden],
                W::Gate | W::Up => vec![inner, hidden],
                W::Down => vec![hidden, inner],
                W::GateBias | W::UpBias => vec![inner],
                W::Router => vec![experts(|e| e.n_experts), hidden],
                W::Expert(_, ExpertMatrix::Gate | ExpertMatrix::Up) => vec![experts(|e| e.intermediate_size), hidden],
                W::Expert(_, ExpertMatrix::Down) => vec![hidden, experts(|e| e.intermediate_size)],
                W::SharedExpertGate => vec![1, hidden],
                W::SharedGate | W::SharedUp => vec![shared(), hidden],
                W::SharedDown => vec![hidden, shared()],
            },
        }
    }
}
