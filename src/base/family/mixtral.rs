//! Mistral with a mixture of experts in every layer. In GGUF it is a Llama with experts.

use super::{layers, mixture, one_rope};
use crate::base::config::{
    Activation, BiasRule, BiasRules, Biases, Defaults, ExpertNames, Experts, GivenEmbeddings, Head, LlamaCpp, Norms,
    RopeTensors, Row,
};
use crate::base::row_order::RowOrder;

pub(super) const ROW: Row = Row {
    model_types: &["mixtral"],
    gguf_architecture: "llama",
    class_stems: &["Mixtral"],
    row_order: RowOrder::Norm,
    defaults: Defaults {
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: Some(8),
        head_dim: None,
        hidden_size: 4_096,
        intermediate_size: 14_336,
        vocab_size: 32_000,
        context_length: 131_072,
        rms_eps: 1e-5,
        rope_theta: 1_000_000.0,
        tied_embeddings: false,
    },
    norms: Norms::BEFORE,
    query_key_norm: None,
    biases: BiasRules {
        query_key_value: BiasRule::Never,
        attention_output: BiasRule::Never,
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: Some(ExpertNames {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        matrices: ["w1", "w3", "w2"],
    }),
    layers: layers::window_if_stated,
    ropes: one_rope,
    read_folder: |fields, config| {
        let (name, n_experts) = mixture::count(fields, &["num_local_experts", "num_experts"], 8)?;
        let experts = Experts {
            n_experts,
            n_per_token: fields.count_or("num_experts_per_tok", 2)?,
            renormalise: true,
            intermediate_size: config.intermediate_size,
            shared_intermediate_size: None,
        };
        mixture::put(fields, config, name, experts, |_| true)
    },
    own_keys: mixture::KEYS,
    read_gguf: super::no_more_keys,
    write_gguf: |config, put| mixture::write_gguf(config, true, put),
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: true, feed_forward: false },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: false,
        applies_windows: false,
        rope_tensors: RopeTensors::ByType,
        is_70b: |_| false,
    },
};
