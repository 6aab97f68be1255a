//! SmolLM3: Llama without RoPE in every fourth layer.

use super::{layers, no_more_fields, one_rope};
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, Family, GivenEmbeddings, Head, Layer, LlamaCpp,
    Norms, RopeTensors, Row,
};
use crate::base::fields::{Fields, describe};
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::{Code, Error, Result};
use crate::format::gguf::Value;

pub(super) const ROW: Row = Row {
    model_types: &["smollm3"],
    gguf_architecture: "smollm3",
    class_stems: &["SmolLM3"],
    row_order: RowOrder::Norm,
    defaults: Defaults {
        n_layers: 36,
        n_heads: 16,
        n_kv_heads: Some(4),
        head_dim: None,
        hidden_size: 2_048,
        intermediate_size: 11_008,
        vocab_size: 128_256,
        context_length: 32_768,
        rms_eps: 1e-6,
        rope_theta: 2_000_000.0,
        tied_embeddings: true,
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
    layers,
    ropes: one_rope,
    read_folder: no_more_fields,
    own_keys: &[],
    read_gguf,
    write_gguf,
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

/// Every fourth layer does not rotate; llama.cpp knows no other pattern.
const INTERVAL: usize = 4;

fn rotates(layer: usize, interval: usize) -> bool {
    !(layer + 1).is_multiple_of(interval)
}

/// `no_rope_layers` has, against its name, a 0 for each layer that does not rotate. Those have the window, if there is one and
/// `layer_types` does not say otherwise.
fn layers(fields: &Fields, _: Family, n_layers: usize) -> Result<Vec<Layer>> {
    let rotated = rotated(fields, n_layers)?;
    let is_used = fields.flag("use_sliding_window", false)?;
    let window = fields.count("sliding_window")?.value().filter(|_| is_used);
    if window == Some(0) {
        return Err(fields.invalid("sliding_window", "expected at least 1 or null, found 0"));
    }
    let slides = match layers::types(fields, n_layers)? {
        Some(types) => types,
        None => rotated.iter().map(|r| !r && window.is_some()).collect(),
    };
    let mut layers = layers::by_types(fields, &slides, window)?;
    for (layer, rotated) in layers.iter_mut().zip(rotated) {
        layer.rope = layer.rope.filter(|_| rotated);
    }
    Ok(layers)
}

fn rotated(fields: &Fields, n_layers: usize) -> Result<Vec<bool>> {
    let name = "no_rope_layers";
    let Some(items) = fields.list(name)?.value() else {
        let interval = fields.count_or("no_rope_layer_interval", INTERVAL)?;
        if interval == 0 {
            return Err(fields.invalid("no_rope_layer_interval", "expected at least 1, found 0"));
        }
        return Ok((0..n_layers).map(|i| rotates(i, interval)).collect());
    };
    if items.len() < n_layers {
        let message = format!("expected an entry for each of {n_layers} layers, found {}", items.len());
        return Err(fields.invalid(name, message));
    }
    let rotated = items[..n_layers].iter().map(|v| match v.as_u64() {
        Some(n @ (0 | 1)) => Ok(n == 1),
        _ => Err(fields.invalid(name, format!("expected 0 or 1 for each layer, found {}", describe(v)))),
    });
    rotated.collect()
}

fn read_gguf(_: &Keys, c: &mut BaseConfig) -> Result<()> {
    for (i, layer) in c.layers.iter_mut().enumerate() {
        layer.rope = layer.rope.filter(|_| rotates(i, INTERVAL));
    }
    Ok(())
}

fn write_gguf(c: &BaseConfig, _: &mut dyn FnMut(&str, Value)) -> Result<()> {
    match c.layers.iter().enumerate().find(|(i, l)| l.rope.is_some() != rotates(*i, INTERVAL)) {
        Some((i, _)) => {
            let message = format!(
                "expected every {INTERVAL}th layer alone to be without RoPE, as llama.cpp has it, found another in layer {i}"
            );
            Err(Error::new(Code::ConfigUnsupported, message).field("no_rope_layers"))
        }
        None => Ok(()),
    }
}
