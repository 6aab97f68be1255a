//! Granite 3: Llama with multipliers of embedding, scores, residuals and logits.

use super::{layers, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, GivenEmbeddings, Head, LlamaCpp, Norms, RopeTensors,
    Row,
};
use crate::base::fields::Fields;
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::Result;
use crate::format::gguf::Value;

pub(super) const ROW: Row = Row {
    model_types: &["granite"],
    gguf_architecture: "granite",
    class_stems: &["Granite"],
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
    embeddings_from_elsewhere: GivenEmbeddings::Multiplied,
    activation: ("hidden_act", Activation::Silu),
    experts: None,
    layers: layers::full,
    ropes: one_rope,
    read_folder: read,
    own_keys: &["logit_scale", "residual_scale", "embedding_scale", "attention.scale"],
    read_gguf,
    write_gguf,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: true, feed_forward: true },
        head: Head::Either,
        attention_scale: None,
        derives_head_dim: false,
        applies_windows: false,
        rope_tensors: RopeTensors::ByType,
        is_70b: |_| false,
    },
};

fn read(fields: &Fields, c: &mut BaseConfig) -> Result<()> {
    let factor = |name| if fields.is_absent(name) { Ok(1.0) } else { fields.positive(name) };
    c.attention_scale = factor("attention_multiplier")?;
    c.embedding_multiplier = factor("embedding_multiplier")?;
    c.residual_multiplier = factor("residual_multiplier")?;
    c.logits_scaling = factor("logits_scaling")?;
    Ok(())
}

fn read_gguf(keys: &Keys, c: &mut BaseConfig) -> Result<()> {
    // llama.cpp takes 0 for "not stated", except that it divides logits.
    let factor = |name| match keys.number(name)? {
        Some(0.0) | None => Ok(None),
        Some(_) => keys.positive(name),
    };
    c.attention_scale = factor("attention.scale")?.unwrap_or(c.attention_scale);
    c.embedding_multiplier = factor("embedding_scale")?.unwrap_or(1.0);
    c.residual_multiplier = factor("residual_scale")?.unwrap_or(1.0);
    c.logits_scaling = keys.positive("logit_scale")?.ok_or_else(|| keys.missing("logit_scale"))?;
    let name = "rope.scaling.finetuned";
    if keys.metadata.bool(&keys.key(name)).map_err(|e| e.file(keys.file))? == Some(false) {
        c.layers.iter_mut().for_each(|l| l.rope = None);
    }
    Ok(())
}

fn write_gguf(c: &BaseConfig, put: &mut dyn FnMut(&str, Value)) -> Result<()> {
    put("attention.scale", Value::F32(c.attention_scale as f32));
    put("embedding_scale", Value::F32(c.embedding_multiplier as f32));
    put("residual_scale", Value::F32(c.residual_multiplier as f32));
    put("logit_scale", Value::F32(c.logits_scaling as f32));
    Ok(())
}
