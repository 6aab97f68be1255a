//! What outputs of every kind record of their source.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::{OutputTensor, file_type};
use crate::adapter::lora::gguf_keys::CONFIG_HEAD_DIM;
use crate::adapter::{Slot, gguf_names as names};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Metadata, Value};
use crate::format::{json, limits};
use crate::import::foreign;
use crate::import::stated::{BASE_FINGERPRINT, OWN_KEYS, TOOL_VERSION, WIDENED_FROM};
use crate::tensor::DType;
use crate::validate::Validated;

/// Placeholder for the source digest until the tensors have been read; as long as the digest.
pub(super) const DIGEST_PENDING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The metadata of a GGUF adapter: what every kind has, around the kind's `own` keys. `config` is what of its configuration has
/// no key; see `docs/FORMAT.md`.
///
/// # Errors
///
/// [`Code::JsonTooLarge`] for a configuration that no reader of the file would take: numbers may be longer than they were.
pub(super) fn gguf_metadata(
    source: &Validated,
    architecture: &str,
    tensors: &[OutputTensor],
    own: Vec<(String, Value)>,
    config: Map<String, Json>,
) -> Result<Metadata> {
    let adapter = source.adapter();
    let about_base = foreign::about_base(adapter.extra());
    let mut m = Metadata::default();
    let mut put = |k: &str, v: Value| m.insert(k, v);
    put("general.architecture", architecture.into());
    put("general.type", names::GENERAL_TYPE.into());
    put(foreign::NAME, about_base.get(foreign::NAME).cloned().expect("every adapter gets a name"));
    let is_main = |t: &&OutputTensor| Slot::parse_canonical_name(&t.label).is_some_and(|slot| slot.part.is_main());
    let main = main_type(tensors.iter().filter(is_main).map(|t| (t.dtype, t.source.n_elements())));
    put(gguf::FILE_TYPE, Value::U32(file_type::of(main)));
    if tensors.iter().any(|t| t.dtype.is_quantized()) {
        put(gguf::QUANTIZATION_VERSION, Value::U32(2));
    }
    for (name, value) in about_base.iter().filter(|(name, _)| *name != foreign::NAME) {
        put(name, value.clone());
    }
    put("adapter.type", adapter.kind().name().into());
    own.into_iter().for_each(|(key, value)| put(&key, value));
    put(names::TOOL_VERSION, env!("CARGO_PKG_VERSION").into());
    put(names::SOURCE_SHA256, DIGEST_PENDING.into());
    if let Some(fingerprint) = source.base_fingerprint() {
        put(names::BASE_FINGERPRINT, fingerprint.into());
    }
    if let Some(command) = &source.command {
        put(names::COMMAND, command.as_str().into());
    }
    let config = json::as_python_writes(&Json::Object(config).to_string());
    if config.len() as u64 > limits::CONFIG_BYTES {
        let message = format!("expected at most {} bytes of JSON, found {}", limits::CONFIG_BYTES, config.len());
        return Err(Error::new(Code::JsonTooLarge, message).field(names::SOURCE_CONFIG));
    }
    put(names::SOURCE_CONFIG, config.as_str().into());
    put(names::SOURCE_DTYPES, source_dtypes(source).as_str().into());
    for (name, value) in foreign::of_config(adapter.extra())?.iter() {
        put(name, value.clone());
    }
    Ok(m)
}

/// The type that most elements have, of tensors' types and elements.
pub(crate) fn main_type(tensors: impl Iterator<Item = (DType, usize)>) -> DType {
    let mut n: BTreeMap<DType, usize> = BTreeMap::new();
    tensors.for_each(|(dtype, n_elements)| *n.entry(dtype).or_default() += n_elements);
    n.into_iter().max_by_key(|(_, n)| *n).map_or(DType::F32, |(dtype, _)| dtype)
}

/// Each tensor's type in the first source, as compact JSON.
fn source_dtypes(source: &Validated) -> String {
    let recorded = &source.origin.recorded_dtypes;
    let map: Map<String, Json> = source
        .adapter()
        .tensors()
        .map(|(slot, t)| {
            let name = slot.canonical_name();
            let dtype = recorded.get(&name).copied().unwrap_or(t.dtype());
            (name, dtype.name().into())
        })
        .collect();
    Json::Object(map).to_string()
}

/// The type that the weights were in, where every tensor is written in a finer one.
pub(super) fn widened_from(source: &Validated, tensors: &[OutputTensor]) -> Option<DType> {
    let coarsest = source.coarsest_dtype();
    tensors.iter().all(|t| t.dtype.fineness() > coarsest.fineness()).then_some(coarsest)
}

/// PEFT's configuration without what has a key of its own in GGUF.
pub(super) fn without_gguf_keys(config: &Map<String, Json>) -> Map<String, Json> {
    let own = [foreign::KEY, BASE_FINGERPRINT, CONFIG_HEAD_DIM];
    let recorded = config.iter().filter(|(key, _)| !own.contains(&key.as_str()));
    recorded.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// PEFT's configuration without what only ptplus knows, which is in the [metadata](own_metadata) of the weights.
pub(super) fn without_own_keys(mut config: Map<String, Json>) -> Map<String, Json> {
    config.retain(|key, _| !key.starts_with(OWN_KEYS));
    config
}

/// What ptplus itself has to say, as metadata of a safetensors file of PEFT's: older versions of PEFT refuse a configuration with keys
/// that they do not know.
pub(super) fn own_metadata(source: &Validated, tensors: &[OutputTensor]) -> BTreeMap<String, String> {
    let text = |v: &Json| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let own = source.adapter().extra().iter().filter(|(key, _)| key.starts_with(OWN_KEYS));
    let mut out: BTreeMap<String, String> = own.map(|(key, v)| (key.clone(), text(v))).collect();
    if let Some(coarsest) = widened_from(source, tensors) {
        out.insert(WIDENED_FROM.to_owned(), coarsest.name().to_owned());
    }
    out.insert(TOOL_VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    out.insert("format".to_owned(), "pt".to_owned());
    out
}
