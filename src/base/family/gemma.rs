//! What Gemma 2 and 3 have in common.

use super::layers;
use crate::base::config::{BaseConfig, Layer};
use crate::base::fields::{Fields, Stated};
use crate::base::keys::Keys;
use crate::error::Result;
use crate::format::gguf::{Array, Value};

/// `layer_types`, or else a layer that sees everything after `pattern - 1` that have the window.
pub(super) fn layers(fields: &Fields, n_layers: usize, pattern: usize) -> Result<Vec<Layer>> {
    layers::rotate_all(fields)?;
    let types = match layers::types(fields, n_layers)? {
        Some(types) => types,
        None => (0..n_layers).map(|i| slides(i, pattern)).collect(),
    };
    layers::by_types(fields, &types, layers::window(fields)?)
}

fn slides(layer: usize, pattern: usize) -> bool {
    !(layer + 1).is_multiple_of(pattern)
}

/// `query_pre_attn_scalar`, and the embedding times the root of its length.
pub(super) fn scales(fields: &Fields, c: &mut BaseConfig) -> Result<()> {
    let name = "query_pre_attn_scalar";
    let scalar = if fields.is_absent(name) { 256.0 } else { fields.positive(name)? };
    c.attention_scale = scalar.sqrt().recip();
    c.embedding_multiplier = embedding_multiplier(c);
    Ok(())
}

/// In F32, as both PyTorch and llama.cpp have it where they compute in F32.
pub(super) fn embedding_multiplier(c: &BaseConfig) -> f64 {
    f64::from((c.hidden_size as f64).sqrt() as f32)
}

/// A softcap that may be null.
pub(super) fn softcap(fields: &Fields, name: &str, absent: Option<f64>) -> Result<Option<f64>> {
    match fields.get(name) {
        Stated::Absent => Ok(absent),
        Stated::Null => Ok(None),
        Stated::Is(_) => fields.positive(name).map(Some),
    }
}

/// The scale of llama.cpp: that of the 27B models, which it knows by their number of layers, is another.
pub(super) fn llama_cpp_scale(c: &BaseConfig, layers_of_27b: usize) -> f64 {
    let width = if c.n_layers == layers_of_27b { c.hidden_size / c.n_heads } else { c.head_dim };
    (width as f64).sqrt().recip()
}

/// Per layer whether it has a window: `attention.sliding_window_pattern`, a list or the distance of layers that have none.
pub(super) fn gguf_pattern(keys: &Keys, n_layers: usize, default: usize) -> Result<Vec<bool>> {
    let name = "attention.sliding_window_pattern";
    let key = keys.key(name);
    let slides: Vec<bool> = match keys.metadata.get(&key) {
        Some(Value::Array(_)) => {
            let of_bools = keys.metadata.bool_array(&key);
            let of_numbers =
                || keys.metadata.u32_array(&key).map(|list| list.map(|l| l.iter().map(|n| *n != 0).collect()));
            of_bools.or_else(|_| of_numbers()).map_err(|e| e.file(keys.file))?.unwrap_or_default()
        }
        _ => match keys.count(name)? {
            Some(0) => vec![true; n_layers],
            n => (0..n_layers).map(|i| slides(i, n.unwrap_or(default))).collect(),
        },
    };
    if slides.len() != n_layers {
        return Err(keys.invalid(name, format!("expected {n_layers} entries, found {}", slides.len())));
    }
    Ok(slides)
}

/// The list of [`gguf_pattern`].
pub(super) fn put_pattern(c: &BaseConfig, put: &mut dyn FnMut(&str, Value)) {
    let slides: Vec<bool> = c.layers.iter().map(|l| l.window.is_some()).collect();
    put("attention.sliding_window_pattern", Value::Array(Array::from_bools(&slides)));
}

/// Stands for no softcap where llama.cpp always has one: `c tanh(x / c)` of any score below a thousand is `x` in F32.
const NO_SOFTCAP: f64 = (1u32 << 24) as f64;

/// A softcap of a GGUF file.
pub(super) fn gguf_softcap(keys: &Keys, name: &str, absent: Option<f64>) -> Result<Option<f64>> {
    let stated = keys.positive(name)?.or(absent);
    Ok(stated.filter(|c| *c < NO_SOFTCAP))
}

pub(super) fn put_softcap(name: &str, softcap: Option<f64>, put: &mut dyn FnMut(&str, Value)) {
    put(name, Value::F32(softcap.unwrap_or(NO_SOFTCAP) as f32));
}
