//! GGUF keys of a base model that comes from a Hugging Face folder. Source: `set_gguf_parameters` in llama.cpp's
//! converter (conversion/base.py, llama.py).

use super::rope::Stated as StatedRope;
use crate::base::{BaseModel, KEY_FACTOR};
use crate::error::{Code, Error, Result};
use crate::export::file_type;
use crate::format::gguf::{self, Metadata, Value};
use crate::format::{TensorSpec, hub};
use crate::tensor::DType;
use crate::vocab::{Vocabulary, to_gguf};

pub(super) fn of_folder(
    base: &BaseModel,
    rope: &StatedRope,
    vocabulary: Option<&Vocabulary>,
    file_type: Option<u32>,
    specs: &[TensorSpec],
    notes: &mut Vec<String>,
) -> Result<Metadata> {
    let c = &base.config;
    let n_positions = c.context_length.ok_or_else(|| {
        let message = "expected the number of positions, which llama.cpp needs to know, found null";
        Error::new(Code::ConfigUnsupported, message)
            .file(&base.path.join("config.json"))
            .field("max_position_embeddings")
    })?;
    let architecture = base.gguf_architecture();
    let mut m = Metadata::new();
    m.insert("general.architecture", architecture);
    m.insert("general.type", "model");
    m.insert("general.name", name(base));
    m.insert("general.size_label", size_label(specs));
    m.insert(gguf::FILE_TYPE, Value::U32(file_type.unwrap_or_else(|| file_type::of(commonest(specs)))));
    if specs.iter().any(|t| t.dtype.is_quantized()) {
        m.insert(gguf::QUANTIZATION_VERSION, Value::U32(2));
    }
    let key = |field: &str| format!("{architecture}.{field}");
    for (field, n) in [
        ("block_count", c.n_layers),
        ("context_length", n_positions),
        ("embedding_length", c.hidden_size),
        ("feed_forward_length", c.intermediate_size),
        ("attention.head_count", c.n_heads),
        ("attention.head_count_kv", c.n_kv_heads),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.value_head_dim),
        ("rope.dimension_count", c.rotary_dim),
        ("vocab_size", c.vocab_size),
    ] {
        m.insert(key(field), Value::U32(to_u32(base, field, n)?));
    }
    m.insert(key("attention.layer_norm_rms_epsilon"), Value::F32(c.rms_eps as f32));
    m.insert(key("rope.freq_base"), Value::F32(c.ropes[0].theta as f32));
    rope.put(architecture, &mut m)?;
    notes.extend(rope.note.clone());
    if let Some(window) = sliding_window(base)? {
        m.insert(key("attention.sliding_window"), Value::U32(to_u32(base, "sliding_window", window)?));
    }
    if let Some(window) = c.windows().next().filter(|_| !c.family.llama_cpp().applies_windows) {
        notes.push(format!(
            "the model has a sliding window of {window}, which llama.cpp ignores for architecture {architecture}: beyond the window llama.cpp computes something else than PyTorch"
        ));
    }
    c.family.own_gguf_keys(c, &mut |field, value| m.insert(key(field), value)).map_err(|e| e.file(&base.path))?;
    let key_factor = c.gguf_key_factor();
    if key_factor != 1.0 {
        m.insert(KEY_FACTOR, Value::F32(key_factor as f32));
        notes.push(format!(
            "llama.cpp has a scale of attention scores of its own for {architecture}: keys are multiplied with {key_factor:.6}, which makes it the model's"
        ));
    }
    match vocabulary {
        Some(v) => {
            to_gguf::put(v, &mut m);
            notes.extend(v.lost_in_gguf(&name(base)));
        }
        None => m.insert(to_gguf::MODEL, to_gguf::NO_MODEL),
    }
    Ok(m)
}

fn to_u32(base: &BaseModel, field: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| {
        Error::new(Code::GgufWrite, format!("expected at most {}, found {n}", u32::MAX)).file(&base.path).field(field)
    })
}

/// GGUF states one window for all layers.
fn sliding_window(base: &BaseModel) -> Result<Option<usize>> {
    let layers = &base.config.layers;
    let first = layers.first().and_then(|l| l.window);
    if layers.iter().all(|l| l.window == first) {
        return Ok(first);
    }
    if base.config.family.llama_cpp().applies_windows {
        return Ok(base.config.windows().next());
    }
    let message = "expected the same attention in all layers, since GGUF has no key for the layers of this family that have a sliding window";
    Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field("sliding_window"))
}

/// The folder's own name; of a snapshot in the Hugging Face cache the model's.
fn name(base: &BaseModel) -> String {
    let path = base.path.canonicalize().unwrap_or_else(|_| base.path.clone());
    let own_name = || path.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = hub::name_of_snapshot(&path).or_else(own_name);
    name.filter(|n| !n.contains('\0')).unwrap_or_else(|| "model".to_owned())
}

/// Number of parameters with two digits at least: `135M`, `1.1B`; of a mixture how many experts, and the number with one of
/// them: `8x7.2B`. Source: `size_label` in gguf-py.
fn size_label(specs: &[TensorSpec]) -> String {
    let n_experts = specs.iter().filter(|t| t.shape.len() == 3).map(|t| t.shape[0]).max();
    let with_one =
        |t: &TensorSpec| t.shape.iter().skip(usize::from(t.shape.len() == 3)).map(|d| *d as f64).product::<f64>();
    let n: f64 = specs.iter().map(with_one).sum();
    let experts = n_experts.map_or(String::new(), |n| format!("{n}x"));
    let (scaled, suffix) = match n {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let n_digits = if scaled.round() == 0.0 { 0 } else { format!("{}", scaled.round()).len() };
    format!("{experts}{scaled:.*}{suffix}", 2usize.saturating_sub(n_digits))
}

/// The type that most elements of the matrices have.
fn commonest(specs: &[TensorSpec]) -> DType {
    let mut n_elements = std::collections::BTreeMap::<DType, usize>::new();
    for t in specs.iter().filter(|t| t.shape.len() > 1) {
        *n_elements.entry(t.dtype).or_default() += t.shape.iter().product::<usize>();
    }
    n_elements.into_iter().max_by_key(|(_, n)| *n).map_or(DType::F32, |(dtype, _)| dtype)
}
