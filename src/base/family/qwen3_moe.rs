//! Qwen3 with a mixture of experts.

use super::{layers, mixture, one_rope};
use crate::base::config::{
    Activation, BiasRule, BiasRules, Biases, Defaults, ExpertNames, Experts, GivenEmbeddings, Head, LlamaCpp, Norms,
    QueryKeyNorm, RopeTensors, Row,
};
use crate::base::row_order::RowOrder;

pub(super) const ROW: Row = Row {
    model_types: &["qwen3_moe"],
    gguf_architecture: "qwen3moe",
    class_stems: &["Qwen3Moe"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 24,
        n_heads: 32,
        n_kv_heads: Some(4),
        head_dim: None,
        hidden_size: 2_048,
        intermediate_size: 6_144,
        vocab_size: 151_936,
        context_length: 32_768,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        tied_embeddings: false,
    },
    norms: Norms::BEFORE,
    query_key_norm: Some(QueryKeyNorm::PerHead),
    biases: BiasRules {
        query_key_value: BiasRule::Stated("attention_bias"),
        attention_output: BiasRule::Stated("attention_bias"),
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: Some(ExpertNames::QWEN),
    layers: layers::window_if_used,
    ropes: one_rope,
    read_folder: |fields, config| {
        let (name, n_experts) = mixture::count(fields, &["num_local_experts", "num_experts"], 128)?;
        let experts = Experts {
            n_experts,
            n_per_token: fields.count_or("num_experts_per_tok", 8)?,
            renormalise: fields.flag("norm_topk_prob", false)?,
            intermediate_size: fields.count_or("moe_intermediate_size", 768)?,
            shared_intermediate_size: None,
        };
        let sparse = mixture::sparse_layers(fields, n_experts)?;
        mixture::put(fields, config, name, experts, sparse)
    },
    own_keys: mixture::KEYS,
    read_gguf: |keys, config| {
        let inner = config.intermediate_size;
        mixture::read_gguf(keys, config, |n_per_token| Experts {
            n_experts: 0,
            n_per_token,
            renormalise: true,
            intermediate_size: inner / n_per_token,
            shared_intermediate_size: None,
        })
    },
    write_gguf: |config, put| mixture::write_gguf(config, true, put),
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: false,
        applies_windows: false,
        rope_tensors: RopeTensors::None,
        is_70b: |_| false,
    },
};
