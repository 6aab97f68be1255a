//! Qwen2 with a mixture of experts, and one expert more that every position gets through a gate.

use super::{layers, mixture, one_rope};
use crate::base::config::{
    Activation, BiasRule, BiasRules, Biases, Defaults, ExpertNames, Experts, GivenEmbeddings, Head, LlamaCpp, Norms,
    RopeTensors, Row,
};
use crate::base::row_order::RowOrder;

pub(super) const ROW: Row = Row {
    model_types: &["qwen2_moe"],
    gguf_architecture: "qwen2moe",
    class_stems: &["Qwen2Moe"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 24,
        n_heads: 16,
        n_kv_heads: Some(16),
        head_dim: None,
        hidden_size: 2_048,
        intermediate_size: 5_632,
        vocab_size: 151_936,
        context_length: 32_768,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        tied_embeddings: false,
    },
    norms: Norms::BEFORE,
    query_key_norm: None,
    biases: BiasRules {
        // Unless `qkv_bias` says no.
        query_key_value: BiasRule::Never,
        attention_output: BiasRule::Never,
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: Some(ExpertNames::QWEN),
    layers: layers::alternating_windows,
    ropes: one_rope,
    read_folder: |fields, config| {
        config.biases.query_key_value = fields.flag("qkv_bias", true)?;
        let n_experts = fields.count_or("num_experts", 60)?;
        let experts = Experts {
            n_experts,
            n_per_token: fields.count_or("num_experts_per_tok", 4)?,
            renormalise: fields.flag("norm_topk_prob", false)?,
            intermediate_size: fields.count_or("moe_intermediate_size", 1_408)?,
            shared_intermediate_size: Some(fields.count_or("shared_expert_intermediate_size", 5_632)?),
        };
        let sparse = mixture::sparse_layers(fields, n_experts)?;
        mixture::put(fields, config, "num_experts", experts, sparse)
    },
    own_keys: mixture::KEYS,
    read_gguf: |keys, config| {
        let inner = config.intermediate_size;
        mixture::read_gguf(keys, config, |n_per_token| Experts {
            n_experts: 0,
            n_per_token,
            renormalise: false,
            intermediate_size: inner / n_per_token,
            shared_intermediate_size: Some(inner),
        })
    },
    write_gguf: |config, put| mixture::write_gguf(config, false, put),
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: true,
        applies_windows: false,
        rope_tensors: RopeTensors::None,
        is_70b: |_| false,
    },
};
