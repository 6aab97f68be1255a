//! The table of weights that depends on the model: what a tensor's shape is, and its name where families differ.

use super::config::{BaseConfig, Norms, QueryKeyNorm};
use super::names::{BlockWeight, Dialect, RopeFactors, Weight};
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
    /// The tensor's name in files of `dialect` of such a model.
    pub fn name_in(self, dialect: Dialect, c: &BaseConfig) -> String {
        if let (Dialect::Gguf, Weight::Block(i, w)) = (dialect, self)
            && let Some(name) = c.norms.gguf_name(w)
        {
            return format!("blk.{i}.{name}");
        }
        self.name(dialect)
    }

    /// The shape that a model of this configuration needs, outermost first; `None` for a weight that it has not.
    pub fn expected_shape(self, c: &BaseConfig) -> Option<Vec<usize>> {
        let (query, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let (value, attended) = (c.n_kv_heads * c.value_head_dim, c.n_heads * c.value_head_dim);
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let with = |present: bool, shape: Vec<usize>| present.then_some(shape);
        use BlockWeight as W;
        match self {
            Weight::TokenEmbedding => Some(vec![c.vocab_size, hidden]),
            Weight::OutputNorm => Some(vec![hidden]),
            Weight::Output => with(!c.tied_embeddings, vec![c.vocab_size, hidden]),
            Weight::Rope(factors) => {
                let has = c.ropes.iter().any(|r| match factors {
                    RopeFactors::All => matches!(r.scaling, RopeScaling::Divisors(_)),
                    RopeFactors::Long | RopeFactors::Short => matches!(r.scaling, RopeScaling::LongRope { .. }),
                });
                with(has, vec![c.rotary_dim / 2])
            }
            Weight::Block(_, w) => match w {
                W::InputNorm | W::PostAttentionNorm | W::PreFeedForwardNorm | W::PostFeedForwardNorm => {
                    with(c.norms.all().contains(&Some(w)), vec![hidden])
                }
                W::Query => Some(vec![query, hidden]),
                W::Key => Some(vec![kv, hidden]),
                W::Value => Some(vec![value, hidden]),
                W::QueryBias => with(c.biases.query_key_value, vec![query]),
                W::KeyBias => with(c.biases.query_key_value, vec![kv]),
                W::ValueBias => with(c.biases.query_key_value, vec![value]),
                W::QueryNorm | W::KeyNorm => c.query_key_norm.map(|n| match (n, w) {
                    (QueryKeyNorm::PerHead, _) => vec![c.head_dim],
                    (QueryKeyNorm::PerRow, W::QueryNorm) => vec![query],
                    (QueryKeyNorm::PerRow, _) => vec![kv],
                }),
                W::AttentionOutput => Some(vec![hidden, attended]),
                W::AttentionOutputBias => with(c.biases.attention_output, vec![hidden]),
                W::Gate | W::Up => Some(vec![inner, hidden]),
                W::Down => Some(vec![hidden, inner]),
                W::GateBias | W::UpBias => with(c.biases.feed_forward, vec![inner]),
                W::DownBias => with(c.biases.feed_forward, vec![hidden]),
            },
        }
    }
}
