//! A GGUF adapter: keys from the configuration, tensors in the architecture's row order.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::canonical::layers_json;
use super::recorded::{DIGEST_PENDING, source_dtypes};
use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan, Written, file_type};
use crate::adapter::field::{FieldValue, Get};
use crate::adapter::gguf_names as names;
use crate::adapter::plus::gguf_names::{VERSION, key};
use crate::adapter::plus::{PartSpec, Plus, StatedLayers};
use crate::adapter::{Adapter, Kind, Part, Slot};
use crate::base::{BaseModel, RowOrder};
use crate::digest::source_sha256;
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Array, Metadata, Value};
use crate::format::{TensorSpec, json, limits, output::StagedFile};
use crate::import::foreign;
use crate::import::stated::BASE_FINGERPRINT;
use crate::tensor::DType;
use crate::transform::row_order;
use crate::validate::Validated;

/// Plans the file for a base of this GGUF architecture; `base`, where there is one, says what the architecture does not.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] where the row order is not established; [`Code::GgufWrite`] for what the format
/// cannot hold; those of the rules.
pub fn plan(source: &Validated, architecture: &str, base: Option<&BaseModel>, rules: &TypeRules) -> Result<Plan> {
    let order = RowOrder::of_gguf_architecture(architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(architecture))?;
    let adapter = match source.adapter() {
        Adapter::Plus(plus) => plus,
        Adapter::Lora(lora) => return super::lora::plan_gguf(source, lora, architecture, base, rules),
    };
    let base_model_type = base.and_then(|b| b.config.model_type.as_deref());
    let mut reordered = adapter.clone();
    for (i, layer) in &reordered.layers {
        if !row_order::fits(layer, order) {
            return Err(Error::new(Code::GgufWrite, format!("expected an even head_dim, as row order {order} needs"))
                .field(Slot::attention(*i, Part::Memory).canonical_name()));
        }
    }
    row_order::apply_all(&mut reordered, order);
    let mut types = Chooser::new(source, rules, Format::Gguf)?;
    let tensors: Vec<OutputTensor> = reordered
        .tensors()
        .zip(adapter.tensors())
        .map(|((slot, t), (_, canonical))| {
            let source = PartSpec::of(slot.part).in_gguf(t.clone());
            let choice = types.choose(slot, &slot.gguf_name(), &source)?;
            Ok(OutputTensor::new(slot.canonical_name(), source, canonical.clone(), choice))
        })
        .collect::<Result<_>>()?;
    types.finish()?;
    let specs: Vec<TensorSpec> = (adapter.tensors().zip(&tensors))
        .map(|((slot, _), t)| TensorSpec { name: slot.gguf_name(), dtype: t.dtype, shape: t.source.shape().to_vec() })
        .collect();
    let metadata = metadata(source, adapter, architecture, order, base_model_type, &tensors)?;
    Ok(Plan { file: gguf::plan(&metadata, &specs)?, tensors })
}

/// Writes the source digest, now known, over its placeholder.
///
/// # Errors
///
/// [`Code::Io`] where the file cannot be written.
pub fn patch_source_digest(plan: &Plan, source: &Validated, written: &Written, out: &StagedFile) -> Result<()> {
    let digest = source_sha256(&source.origin.config_digest_text, written.sources.clone());
    let offset = plan.file.value_offset(names::SOURCE_SHA256).expect("every plan has a place for the digest");
    assert_eq!(digest.len(), DIGEST_PENDING.len());
    out.write_all_at(offset, digest.as_bytes())
}

fn metadata(
    source: &Validated,
    adapter: &Plus,
    architecture: &str,
    order: RowOrder,
    base_model_type: Option<&str>,
    tensors: &[OutputTensor],
) -> Result<Metadata> {
    let c = &adapter.config;
    let about_base = foreign::about_base(&c.extra);
    let mut m = Metadata::default();
    let mut put = |k: &str, v: Value| m.insert(k, v);
    put("general.architecture", architecture.into());
    put("general.type", names::GENERAL_TYPE.into());
    put(foreign::NAME, about_base.get(foreign::NAME).cloned().expect("every adapter gets a name"));
    put(gguf::FILE_TYPE, Value::U32(file_type(adapter, tensors)));
    if tensors.iter().any(|t| t.dtype.is_quantized()) {
        put(gguf::QUANTIZATION_VERSION, Value::U32(2));
    }
    for (name, value) in about_base.iter().filter(|(name, _)| *name != foreign::NAME) {
        put(name, value.clone());
    }
    put("adapter.type", Kind::Plus.name().into());
    put(&key("version"), Value::U32(VERSION));
    let mut fields: Vec<_> = adapter.fields().collect();
    fields.sort_by_key(|(field, _)| match field.get {
        Get::Name(_) => 0,
        Get::Scale(_) => 1,
        Get::Count(_) => 2,
    });
    for (field, value) in fields {
        let value = match value {
            FieldValue::Name(name) => name.into(),
            FieldValue::Scale(x) => Value::F32(x as f32),
            FieldValue::Count(n) => Value::U32(to_u32(field.gguf, n)?),
        };
        put(&key(field.gguf), value);
    }
    let layers = adapter.layers.keys().map(|&i| to_u32("layers", i)).collect::<Result<Vec<u32>>>()?;
    put(&key("layers"), Value::Array(Array::from_u32(&layers)));
    put(&key("query_order"), order.name().into());
    put(names::TOOL_VERSION, env!("CARGO_PKG_VERSION").into());
    put(names::SOURCE_SHA256, DIGEST_PENDING.into());
    if let Some(fingerprint) = source.base_fingerprint() {
        put(names::BASE_FINGERPRINT, fingerprint.into());
    }
    if let Some(command) = &source.command {
        put(names::COMMAND, command.as_str().into());
    }
    put(names::SOURCE_CONFIG, source_config(adapter, base_model_type)?.into());
    put(names::SOURCE_DTYPES, source_dtypes(source).as_str().into());
    for (name, value) in foreign::of_config(&c.extra)?.iter() {
        put(name, value.clone());
    }
    Ok(m)
}

fn to_u32(field: &str, n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| Error::new(Code::GgufWrite, format!("expected at most {}, found {n}", u32::MAX)).field(key(field)))
}

/// What the configuration states beyond the keys, as compact JSON; see `docs/FORMAT.md`.
///
/// # Errors
///
/// [`Code::JsonTooLarge`] for what no reader of the file would take: numbers may be longer than they were.
fn source_config(adapter: &Plus, base_model_type: Option<&str>) -> Result<String> {
    let c = &adapter.config;
    let recorded = c.extra.iter().filter(|(key, _)| *key != foreign::KEY);
    let mut out: Map<String, Json> = recorded.map(|(key, value)| (key.clone(), value.clone())).collect();
    if out.get(BASE_FINGERPRINT).is_some_and(Json::is_string) {
        out.shift_remove(BASE_FINGERPRINT);
    }
    for (field, value) in adapter.fields() {
        // The key holds F32. Its shortest decimal gives most scales back (0.1); keep the others as they were.
        if let FieldValue::Scale(exact) = value
            && value.text().parse() != Ok(exact)
        {
            out.insert(field.key.into(), exact.into());
        }
    }
    let implied = if adapter.layers.len() == c.geometry.n_layers {
        StatedLayers::All
    } else {
        StatedLayers::List(adapter.layers.keys().copied().collect())
    };
    if c.layers_to_transform.as_ref().is_some_and(|stated| *stated != implied) {
        out.insert("layers_to_transform".into(), layers_json(adapter));
    }
    if let Some(model_type) = c.base_model_type.as_deref().or(base_model_type) {
        out.insert("base_model_type".into(), model_type.into());
    }
    let text = json::as_python_writes(&Json::Object(out).to_string());
    if text.len() as u64 > limits::CONFIG_BYTES {
        let message = format!("expected at most {} bytes of JSON, found {}", limits::CONFIG_BYTES, text.len());
        return Err(Error::new(Code::JsonTooLarge, message).field(names::SOURCE_CONFIG));
    }
    Ok(text)
}

/// `general.file_type`: the number of the type that most elements of M have.
fn file_type(adapter: &Plus, tensors: &[OutputTensor]) -> u32 {
    let mut n_elements: BTreeMap<DType, usize> = BTreeMap::new();
    for ((slot, _), t) in adapter.tensors().zip(tensors) {
        if slot.part == Part::Memory {
            *n_elements.entry(t.dtype).or_default() += t.source.n_elements();
        }
    }
    let largest = n_elements.into_iter().max_by_key(|(_, n)| *n);
    file_type::of(largest.map_or(DType::F32, |(dtype, _)| dtype))
}
