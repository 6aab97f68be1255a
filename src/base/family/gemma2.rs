//! Gemma 2: norms before and behind, capped scores and logits, a window in every other layer.

use super::{gemma, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, Family, GivenEmbeddings, Head, Layer, LlamaCpp,
    Norms, RopeTensors, Row,
};
use crate::base::fields::Fields;
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::Result;
use crate::format::gguf::Value;

pub(super) const ROW: Row = Row {
    model_types: &["gemma2"],
    gguf_architecture: "gemma2",
    class_stems: &["Gemma2"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 26,
        n_heads: 8,
        n_kv_heads: Some(4),
        head_dim: Some(256),
        hidden_size: 2_304,
        intermediate_size: 9_216,
        vocab_size: 256_000,
        context_length: 8_192,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        tied_embeddings: true,
    },
    norms: Norms::AROUND_LESS_ONE,
    query_key_norm: None,
    biases: BiasRules {
        query_key_value: BiasRule::Stated("attention_bias"),
        attention_output: BiasRule::Stated("attention_bias"),
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::DependsOnVersion,
    activation: ("hidden_activation", Activation::GeluTanh),
    experts: None,
    layers,
    ropes: one_rope,
    read_folder: read,
    own_keys: &["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window_pattern"],
    read_gguf,
    write_gguf,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
        head: Head::Embedding,
        attention_scale: Some(|c| gemma::llama_cpp_scale(c, 46)),
        derives_head_dim: false,
        applies_windows: true,
        rope_tensors: RopeTensors::None,
        is_70b: |_| false,
    },
};

/// Every other layer has the window, the first among them.
const PATTERN: usize = 2;

/// The caps of a file that states none.
const ATTENTION_SOFTCAP: f64 = 50.0;
const FINAL_SOFTCAP: f64 = 30.0;

fn layers(fields: &Fields, _: Family, n_layers: usize) -> Result<Vec<Layer>> {
    gemma::layers(fields, n_layers, PATTERN)
}

fn read(fields: &Fields, c: &mut BaseConfig) -> Result<()> {
    gemma::scales(fields, c)?;
    c.attention_softcap = gemma::softcap(fields, "attn_logit_softcapping", Some(ATTENTION_SOFTCAP))?;
    c.final_softcap = gemma::softcap(fields, "final_logit_softcapping", Some(FINAL_SOFTCAP))?;
    Ok(())
}

fn read_gguf(keys: &Keys, c: &mut BaseConfig) -> Result<()> {
    let name = "attention.sliding_window";
    let window = match keys.count(name)? {
        Some(0) => return Err(keys.invalid(name, "expected at least 1, found 0")),
        stated => stated.unwrap_or(4_096),
    };
    for (layer, slides) in c.layers.iter_mut().zip(gemma::gguf_pattern(keys, c.n_layers, PATTERN)?) {
        layer.window = slides.then_some(window);
    }
    c.attention_scale = gemma::llama_cpp_scale(c, 46);
    c.embedding_multiplier = gemma::embedding_multiplier(c);
    c.attention_softcap = gemma::gguf_softcap(keys, "attn_logit_softcapping", Some(ATTENTION_SOFTCAP))?;
    c.final_softcap = gemma::gguf_softcap(keys, "final_logit_softcapping", Some(FINAL_SOFTCAP))?;
    Ok(())
}

fn write_gguf(c: &BaseConfig, put: &mut dyn FnMut(&str, Value)) -> Result<()> {
    gemma::put_softcap("attn_logit_softcapping", c.attention_softcap, put);
    gemma::put_softcap("final_logit_softcapping", c.final_softcap, put);
    gemma::put_pattern(c, put);
    Ok(())
}
