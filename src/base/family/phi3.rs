//! Llama with query, key and value in one matrix, gate and up in another, and heads that may be rotated in part.

use super::{layers, no_more_keys, nothing_to_write, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, GivenEmbeddings, Head, LlamaCpp, Norms, RopeTensors,
    Row,
};
use crate::base::fields::Fields;
use crate::base::rope::RopeScaling;
use crate::base::row_order::RowOrder;
use crate::error::Result;

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
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::window_if_stated,
    ropes: one_rope,
    read_folder: read,
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

/// The original context that the class assumes for files that do not state it beside RoPE's parameters, whatever these say.
const ORIGINAL_POSITIONS: usize = 4_096;

/// The class has no other scaling than longrope, and took `yarn` for a name of it once.
fn read(fields: &Fields, c: &mut BaseConfig) -> Result<()> {
    let name = "original_max_position_embeddings";
    for rope in &c.ropes {
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::LongRope { original_max_positions: n, .. } => {
                if *n != ORIGINAL_POSITIONS && fields.count(name)?.value().is_none() {
                    let message =
                        format!("expected {n} beside RoPE's parameters, where Phi3Config looks for it, found none");
                    return Err(fields.invalid(name, message));
                }
            }
            _ => return Err(fields.unsupported("rope_scaling", format!("expected longrope or none, found {rope}"))),
        }
    }
    Ok(())
}
