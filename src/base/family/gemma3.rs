//! Gemma 3, the language model: Gemma 2 with norms of query and key instead of capped scores, and a RoPE of its own for layers
//! with a window.

use serde_json::{Map, Value as Json};

use super::gemma;
use crate::base::config::{
    Activation, BaseConfig, BiasRule, BiasRules, Biases, Defaults, Family, GivenEmbeddings, Head, Layer, LlamaCpp,
    Norms, QueryKeyNorm, RopeTensors, Row,
};
use crate::base::fields::Fields;
use crate::base::hf::rope;
use crate::base::keys::Keys;
use crate::base::rope::{Rope, RopeScaling};
use crate::base::row_order::RowOrder;
use crate::error::{Code, Error, Result};
use crate::format::gguf::Value;

pub(super) const ROW: Row = Row {
    model_types: &["gemma3", "gemma3_text"],
    gguf_architecture: "gemma3",
    class_stems: &["Gemma3", "Gemma3Text"],
    row_order: RowOrder::Neox,
    defaults: Defaults {
        n_layers: 26,
        n_heads: 8,
        n_kv_heads: Some(4),
        head_dim: Some(256),
        hidden_size: 2_304,
        intermediate_size: 9_216,
        vocab_size: 262_208,
        context_length: 131_072,
        rms_eps: 1e-6,
        rope_theta: 1_000_000.0,
        tied_embeddings: true,
    },
    norms: Norms::AROUND_LESS_ONE,
    query_key_norm: Some(QueryKeyNorm::PerHead),
    biases: BiasRules {
        query_key_value: BiasRule::Stated("attention_bias"),
        attention_output: BiasRule::Stated("attention_bias"),
        feed_forward: BiasRule::Never,
    },
    fused_projections: false,
    embeddings_from_elsewhere: GivenEmbeddings::AsTheyAre,
    activation: ("hidden_activation", Activation::GeluTanh),
    experts: None,
    layers,
    ropes,
    read_folder: read,
    own_keys: &["final_logit_softcapping", "attention.sliding_window_pattern"],
    read_gguf,
    write_gguf,
    llama_cpp: LlamaCpp {
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
        head: Head::Either,
        attention_scale: Some(|c| gemma::llama_cpp_scale(c, 62)),
        derives_head_dim: false,
        applies_windows: true,
        rope_tensors: RopeTensors::None,
        is_70b: |_| false,
    },
};

/// Every sixth layer sees everything.
const PATTERN: usize = 6;

/// The base of the frequencies in layers with a window, where none is stated.
const LOCAL_THETA: f64 = 10_000.0;

/// Which of [`ropes`] a layer takes.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn choose_ropes(layers: &mut [Layer]) {
    for layer in layers {
        layer.rope = Some(if layer.window.is_some() { LOCAL } else { GLOBAL });
    }
}

fn layers(fields: &Fields, _: Family, n_layers: usize) -> Result<Vec<Layer>> {
    let pattern = fields.count_or("sliding_window_pattern", PATTERN)?;
    if pattern == 0 {
        return Err(fields.invalid("sliding_window_pattern", "expected at least 1, found 0"));
    }
    let mut layers = gemma::layers(fields, n_layers, pattern)?;
    choose_ropes(&mut layers);
    Ok(layers)
}

/// transformers 5 has parameters for each type of layer; transformers 4 scales those of the layers that see everything, and
/// `rope_local_base_freq` is the base of the others.
fn ropes(fields: &Fields, default_theta: f64, rotary_dim: usize) -> Result<Vec<Rope>> {
    let of_types = fields.object("rope_parameters")?.value();
    if of_types.as_ref().is_some_and(|p| !p.is_empty() && p.nested().is_none()) {
        let message = "expected parameters for sliding_attention and full_attention, found one set";
        return Err(fields.unsupported("rope_parameters", message));
    }
    let of_type = |name| of_types.as_ref().and_then(|p| p.get(name).value()).cloned();
    let one = |theta: &str, scaling: Option<Json>, parameters: Option<Json>, default: f64| -> Result<Rope> {
        let mut map = Map::new();
        let outer = |name: &str| fields.get(name).value().cloned();
        for name in ["max_position_embeddings", "original_max_position_embeddings", "partial_rotary_factor"] {
            map.extend(outer(name).map(|v| (name.to_owned(), v)));
        }
        for (name, value) in [("rope_theta", outer(theta)), ("rope_scaling", scaling), ("rope_parameters", parameters)]
        {
            map.extend(value.map(|v| (name.to_owned(), v)));
        }
        rope::parse(&Fields::new(fields.file(), &Json::Object(map))?, default, rotary_dim)
    };
    let scaling = fields.get("rope_scaling").value().cloned();
    Ok(vec![
        one("rope_theta", scaling, of_type("full_attention"), default_theta)?,
        one("rope_local_base_freq", None, of_type("sliding_attention"), LOCAL_THETA)?,
    ])
}

/// The class has a cap of the scores in its configuration, and does not apply it.
fn read(fields: &Fields, c: &mut BaseConfig) -> Result<()> {
    gemma::scales(fields, c)?;
    c.final_softcap = gemma::softcap(fields, "final_logit_softcapping", None)?;
    Ok(())
}

fn read_gguf(keys: &Keys, c: &mut BaseConfig) -> Result<()> {
    // Without a window there is no pattern either.
    let window = c.windows().next();
    for (layer, slides) in c.layers.iter_mut().zip(gemma::gguf_pattern(keys, c.n_layers, PATTERN)?) {
        layer.window = window.filter(|_| slides);
    }
    let theta = keys.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
    c.ropes.push(Rope::plain(theta));
    choose_ropes(&mut c.layers);
    if c.windows().next().is_some() {
        check_global(&c.ropes[GLOBAL]).map_err(|message| keys.unsupported("rope.scaling.type", message))?;
    }
    c.attention_scale = gemma::llama_cpp_scale(c, 62);
    c.embedding_multiplier = gemma::embedding_multiplier(c);
    let capped = keys.number("final_logit_softcapping")?.is_some_and(|x| x != 0.0);
    c.final_softcap = if capped { gemma::gguf_softcap(keys, "final_logit_softcapping", None)? } else { None };
    Ok(())
}

/// Whatever else llama.cpp scales, it does in layers with a window, too.
fn check_global(rope: &Rope) -> std::result::Result<(), String> {
    match rope.scaling {
        RopeScaling::None | RopeScaling::Linear { .. } if rope.attention_factor == 1.0 => Ok(()),
        _ => Err(format!("expected linear scaling or none beside layers with a window, found {rope}")),
    }
}

fn write_gguf(c: &BaseConfig, put: &mut dyn FnMut(&str, Value)) -> Result<()> {
    if let Some(cap) = c.final_softcap {
        put("final_logit_softcapping", Value::F32(cap as f32));
    }
    if c.windows().next().is_some() {
        let local = &c.ropes[LOCAL];
        if local.scaling != RopeScaling::None {
            let message =
                format!("expected no scaling in layers with a window, which llama.cpp does not scale, found {local}");
            return Err(Error::new(Code::ConfigUnsupported, message).field("rope_parameters.sliding_attention"));
        }
        check_global(&c.ropes[GLOBAL])
            .map_err(|message| Error::new(Code::ConfigUnsupported, message).field("rope_parameters.full_attention"))?;
        put("rope.freq_base_swa", Value::F32(local.theta as f32));
        gemma::put_pattern(c, put);
    }
    Ok(())
}
