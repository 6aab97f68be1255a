//! Llama 1, 2 and 3.x, and what calls itself so (SmolLM2).

use super::{layers, mixture, no_more_fields, nothing_to_write, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, Experts, GivenEmbeddings, Head, LlamaCpp, Norms,
    RopeTensors, Row,
};
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::Result;

pub(super) const ROW: Row = Row {
    model_types: &["llama"],
    gguf_architecture: "llama",
    class_stems: &["Llama", "LLaMA"],
    row_order: RowOrder::Norm,
    defaults: Defaults {
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: None,
        head_dim: None,
        hidden_size: 4_096,
        intermediate_size: 11_008,
        vocab_size: 32_000,
        context_length: 2_048,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        tied_embeddings: false,
    },
    norms: Norms::BEFORE,
    query_key_norm: None,
    biases: BiasRules {
        query_key_value: BiasRule::Stated("attention_bias"),
        attention_output: BiasRule::Stated("attention_bias"),
        feed_forward: BiasRule::Stated("mlp_bias"),
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::full,
    ropes: one_rope,
    read_folder: no_more_fields,
    own_keys: mixture::KEYS,
    read_gguf: read_experts,
    write_gguf: nothing_to_write,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: true, feed_forward: true },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: false,
        applies_windows: false,
        rope_tensors: RopeTensors::ByType,
        is_70b: |c| c.n_layers == 80 && c.n_heads != c.n_kv_heads,
    },
};

/// A file with experts is a Mixtral's.
fn read_experts(keys: &Keys, config: &mut BaseConfig) -> Result<()> {
    if keys.count("expert_count")?.is_none_or(|n| n == 0) {
        return mixture::expect_none(keys);
    }
    let intermediate_size = config.intermediate_size;
    mixture::read_gguf(keys, config, |n_per_token| Experts {
        n_experts: 0,
        n_per_token,
        renormalise: true,
        intermediate_size,
        shared_intermediate_size: None,
    })
}
