//! Llama with query, key and value in one matrix, gate and up in another, and heads that may be rotated in part.

use super::{layers, no_more_fields, no_more_keys, nothing_to_write, one_rope};
use crate::base::config::{Activation, BiasRule, BiasRules, Biases, Defaults, Head, LlamaCpp, Norms, RopeTensors, Row};
use crate::base::row_order::RowOrder;

pub(super) const ROW: Row = Row {
    model_types: &["phi3"],
    gguf_architecture: "phi3",
    class_stems: &["Phi3"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: None,
        head_dim: None,
        hidden_size: 3_072,
        intermediate_size: 8_192,
        vocab_size: 32_064,
        context_length: 4_096,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied_embeddings: false,
    },
    norms: Norms::BEFORE,
    query_key_norm: None,
    biases: BiasRules {
        query_key_value: BiasRule::Never,
        attention_output: BiasRule::Never,
        feed_forward: BiasRule::Never,
    },
    fused_projections: true,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::window_if_stated,
    ropes: one_rope,
    read_folder: no_more_fields,
    own_keys: &[Row::ROTARY_DIM],
    read_gguf: no_more_keys,
    write_gguf: nothing_to_write,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: false, attention_output: false, feed_forward: false },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: true,
        applies_windows: false,
        rope_tensors: RopeTensors::LongAndShort,
        is_70b: |_| false,
    },
};
