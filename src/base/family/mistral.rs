//! Llama with a sliding window. GGUF has no architecture for it: such a file is a Llama's.

use super::{layers, no_more_fields, no_more_keys, nothing_to_write, one_rope};
use crate::base::config::{
    Activation, BiasRule, BiasRules, Biases, Defaults, GivenEmbeddings, Head, LlamaCpp, Norms, RopeTensors, Row,
};
use crate::base::row_order::RowOrder;

pub(super) const ROW: Row = Row {
    model_types: &["mistral"],
    gguf_architecture: "llama",
    class_stems: &["Mistral"],
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
        rms_eps: 1e-6,
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
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::same_window,
    ropes: one_rope,
    read_folder: no_more_fields,
    own_keys: &[],
    read_gguf: no_more_keys,
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
