//! The configuration of a base model from GGUF metadata, with the defaults of llama.cpp's `llama-model.cpp`.

use std::path::Path;

use super::config::{
    BaseConfig, BiasRule, Biases, Family, Layer, Row, SizeNames, Sizes, check_rotary_dim, derived_head_dim,
};
use super::family;
use super::keys::Keys;
use super::names::{BlockWeight, Weight};
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::format::gguf::{Array, FILE_TYPE, Metadata};
use crate::format::names::shorten;
use crate::vocab::to_gguf;

mod rope;
#[cfg(test)]
mod tests;

const NAMES: SizeNames = [
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
];

/// Reads the configuration; `tensor` finds a tensor of the file by name.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] for an architecture that is not on the list, [`Code::ConfigUnsupported`] for
/// what is not computed here, [`Code::ConfigField`] and [`Code::GgufKey`] for what is wrong in itself.
pub(super) fn parse<'t>(
    file: &Path,
    metadata: &Metadata,
    tensor: impl Fn(&str) -> Option<&'t StoredTensor>,
) -> Result<BaseConfig> {
    let architecture = metadata.str("general.architecture").map_err(|e| e.file(file))?;
    let family = family(file, architecture)?;
    let keys = Keys { file, architecture: family.gguf_architecture(), metadata };
    if let Some(kind) = keys.text("general.type")?.filter(|t| *t != "model") {
        return Err(Error::new(Code::BaseArchitecture, format!("expected a model, found {:?}", shorten(kind)))
            .file(file)
            .field("general.type"));
    }
    // A hint for people: its number decides nothing here, but text is no number.
    metadata.u32(FILE_TYPE).map_err(|e| e.file(file))?;
    refuse_what_changes_the_computation(&keys, family.0)?;

    let n_layers = keys.required_count("block_count")?;
    let hidden_size = keys.required_count("embedding_length")?;
    let required =
        |name| -> Result<usize> { keys.count_of_every_layer(name, n_layers)?.ok_or_else(|| keys.missing(name)) };
    let n_heads = required("attention.head_count")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(d) => d,
        None => derived_head_dim(hidden_size, n_heads).map_err(|message| keys.invalid("embedding_length", message))?,
    };
    let sizes = Sizes {
        n_layers,
        n_heads,
        n_kv_heads: keys.count_of_every_layer("attention.head_count_kv", n_layers)?.unwrap_or(n_heads),
        head_dim,
        hidden_size,
        intermediate_size: required("feed_forward_length")?,
        vocab_size: vocab_size(&keys, &tensor)?,
    };
    sizes.check(&NAMES).map_err(|(name, message)| keys.invalid(name, message))?;
    let rotary_dim = match keys.count(Row::ROTARY_DIM)? {
        Some(n) if family.0.rotates_in_part() => {
            check_rotary_dim(n, head_dim).map_err(|message| keys.invalid(Row::ROTARY_DIM, message))?
        }
        _ => head_dim,
    };
    for (name, expected) in [("attention.value_length", head_dim), (Row::ROTARY_DIM, rotary_dim)] {
        if let Some(found) = keys.count(name)?.filter(|&n| n != expected) {
            return Err(keys.unsupported(name, format!("expected the head length {head_dim}, found {found}")));
        }
    }
    let rms_eps = match keys.number("attention.layer_norm_rms_epsilon")? {
        Some(eps) if (0.0..1.0).contains(&eps) => eps, // an F32
        Some(eps) => {
            let message = format!("expected a number of at least 0 and below 1, found {eps}");
            return Err(keys.invalid("attention.layer_norm_rms_epsilon", message));
        }
        None => return Err(keys.missing("attention.layer_norm_rms_epsilon")),
    };
    let window = match keys.count("attention.sliding_window")? {
        // llama.cpp's way to say "none"
        Some(0) | None => None,
        window => window,
    };
    let has = |weight: BlockWeight| tensor(&Weight::Block(0, weight).gguf_name()).is_some();
    let mut config = BaseConfig {
        context_length: context_length(&keys)?,
        rms_eps,
        ropes: vec![rope::parse(&keys, family, &tensor, rotary_dim)?],
        rotary_dim,
        layers: vec![Layer::with_window(window); n_layers],
        tied_embeddings: tensor(&Weight::Output.gguf_name()).is_none(),
        // No key says so: llama.cpp looks whether the tensors are there. Every layer is then held to what the first has.
        biases: Biases {
            query_key_value: matches!(family.0.biases.query_key_value, BiasRule::Always)
                || [BlockWeight::QueryBias, BlockWeight::QueryKeyValueBias].into_iter().any(has),
            attention_output: has(BlockWeight::AttentionOutputBias),
            feed_forward: has(BlockWeight::GateBias),
        },
        ..BaseConfig::plain(family, &sizes)
    };
    (family.0.read_gguf)(&keys, &mut config)?;
    if family.llama_cpp().attention_scale.is_some() {
        config.key_factor = key_factor(metadata, KEY_FACTOR).map_err(|e| e.file(file))?;
    }
    Ok(config)
}

/// The key for [`BaseConfig::key_factor`], which only files from here have: llama.cpp's own converter does not look.
pub(crate) const KEY_FACTOR: &str = "ptplus.attention_key_factor";

/// What keys are multiplied with, as the key `field` says.
///
/// # Errors
///
/// [`Code::GgufKey`]; [`Code::ConfigField`] for what is no number above 0.
pub(crate) fn key_factor(metadata: &Metadata, field: &str) -> Result<f64> {
    match metadata.f32(field)? {
        None => Ok(1.0),
        Some(x) if x.is_normal() && x > 0.0 => Ok(f64::from(x)),
        Some(x) => Err(Error::new(Code::ConfigField, format!("expected a number above 0, found {x}")).field(field)),
    }
}

fn family(file: &Path, architecture: Option<&str>) -> Result<Family> {
    architecture.and_then(Family::from_gguf_architecture).ok_or_else(|| {
        let found = architecture.map_or("no such key".to_owned(), |a| format!("{:?}", shorten(a)));
        let mut known: Vec<&str> = Family::ALL.iter().map(|f| f.gguf_architecture()).collect();
        known.dedup();
        Error::new(Code::BaseArchitecture, format!("expected one of {}, found {found}", known.join(", ")))
            .file(file)
            .field("general.architecture")
            .hints(architecture.and_then(family::missing))
    })
}

fn refuse_what_changes_the_computation(keys: &Keys, row: &Row) -> Result<()> {
    let is_own = |name: &str| row.own_keys.contains(&name);
    if let Some(n) = keys.count("expert_count")?.filter(|&n| n > 0 && !is_own("expert_count")) {
        return Err(keys.unsupported("expert_count", format!("expected no mixture of experts, found {n}")));
    }
    // llama.cpp ends the program, or takes blocks away.
    for name in ["expert_used_count", "expert_group_count", "nextn_predict_layers"] {
        if let Some(n) = keys.count(name)?.filter(|&n| n > 0 && !is_own(name)) {
            return Err(keys.unsupported(name, format!("expected 0, found {n}")));
        }
    }
    // llama.cpp takes 0 for "not stated".
    for (name, neutral) in [
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
    ] {
        if let Some(x) = keys.number(name)?.filter(|&x| x != neutral && x != 0.0 && !is_own(name)) {
            return Err(keys.unsupported(name, format!("expected {neutral}, found {x}")));
        }
    }
    if keys.metadata.bool(&keys.key("attention.causal"))? == Some(false) {
        return Err(keys.unsupported("attention.causal", "expected causal attention, found false"));
    }
    for name in ["attention.sliding_window_pattern", "rope.dimension_sections"] {
        if keys.metadata.get(&keys.key(name)).is_some() && !is_own(name) {
            return Err(keys.unsupported(name, "expected no such key: this is not computed here"));
        }
    }
    Ok(())
}

fn context_length(keys: &Keys) -> Result<Option<usize>> {
    match keys.count("context_length")? {
        Some(0) => Err(keys.invalid("context_length", "expected at least 1, found 0")),
        stated => Ok(stated),
    }
}

fn vocab_size<'t>(keys: &Keys, tensor: &impl Fn(&str) -> Option<&'t StoredTensor>) -> Result<usize> {
    let name = Weight::TokenEmbedding.gguf_name();
    let embedding = tensor(&name)
        .ok_or_else(|| Error::new(Code::BaseTensor, "expected a tensor, found none").file(keys.file).field(&name))?;
    let rows = embedding.shape.first().copied().unwrap_or(0);
    match keys.count("vocab_size")? {
        Some(stated) if stated != rows => {
            return Err(keys.invalid("vocab_size", format!("expected {rows}, the rows of {name}, found {stated}")));
        }
        _ => {}
    }
    // llama.cpp counts the tokens where there are any, and wants as many rows.
    let without = matches!(keys.text(to_gguf::MODEL)?, Some(to_gguf::NO_MODEL | "no_vocab"));
    let key = "tokenizer.ggml.tokens";
    match keys.metadata.array(key).map_err(|e| e.file(keys.file))?.map(Array::len).filter(|_| !without) {
        Some(n) if n != rows => {
            let message = format!("expected {rows} tokens, as many as {name} has rows, found {n}");
            Err(Error::new(Code::TokenizerInvalid, message).file(keys.file).field(key))
        }
        _ => Ok(rows),
    }
}
