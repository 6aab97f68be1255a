//! OLMo 2: norms behind attention and feed-forward network alone, and of all heads of query and key at once.

use super::{layers, no_more_fields, nothing_to_write, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, GivenEmbeddings, Head, LlamaCpp, Norms,
    QueryKeyNorm, RopeTensors, Row,
};
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::Result;

pub(super) const ROW: Row = Row {
    model_types: &["olmo2"],
    gguf_architecture: "olmo2",
    class_stems: &["Olmo2"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: None,
        head_dim: None,
        hidden_size: 4_096,
        intermediate_size: 11_008,
        vocab_size: 50_304,
        context_length: 2_048,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied_embeddings: false,
    },
    norms: Norms::AFTER,
    query_key_norm: Some(QueryKeyNorm::PerRow),
    biases: BiasRules {
        query_key_value: BiasRule::Stated("attention_bias"),
        attention_output: BiasRule::Stated("attention_bias"),
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::full,
    ropes: one_rope,
    read_folder: no_more_fields,
    own_keys: &[],
    read_gguf,
    write_gguf: nothing_to_write,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
        head: Head::Own,
        attention_scale: None,
        derives_head_dim: true,
        applies_windows: false,
        rope_tensors: RopeTensors::None,
        is_70b: |_| false,
    },
};

/// A file with a window is OLMo 3's, which has the same architecture there.
fn read_gguf(keys: &Keys, c: &mut BaseConfig) -> Result<()> {
    match c.windows().next() {
        Some(window) => {
            let message = format!("expected no window: OLMo 3 is not computed here, found {window}");
            Err(keys.unsupported("attention.sliding_window", message))
        }
        None => Ok(()),
    }
}
