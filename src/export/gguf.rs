//! A GGUF adapter: keys from the configuration, tensors in the architecture's row order.

use serde_json::{Map, Value as Json};

use super::canonical::layers_json;
use super::recorded::{DIGEST_PENDING, gguf_metadata};
use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan, Written};
use crate::adapter::field::{FieldValue, Get};
use crate::adapter::gguf_names as names;
use crate::adapter::plus::gguf_names::{VERSION, key};
use crate::adapter::plus::{PartSpec, Plus, StatedLayers};
use crate::adapter::{Adapter, Part, Slot};
use crate::base::{BaseModel, RowOrder};
use crate::digest::source_sha256;
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Array, Value};
use crate::format::{TensorSpec, output::StagedFile};
use crate::import::foreign;
use crate::import::stated::BASE_FINGERPRINT;
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
        Adapter::Prefix(prefix) => return super::prefix::plan_gguf(source, prefix, architecture, rules),
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
    let specs: Vec<TensorSpec> =
        adapter.tensors().zip(&tensors).map(|((slot, _), t)| t.spec(slot.gguf_name())).collect();
    let (own, config) = (own_keys(adapter, order)?, source_config(adapter, base_model_type));
    let metadata = gguf_metadata(source, architecture, &tensors, own, config)?;
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

/// The kind's own keys.
fn own_keys(adapter: &Plus, order: RowOrder) -> Result<Vec<(String, Value)>> {
    let mut own = vec![(key("version"), Value::U32(VERSION))];
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
        own.push((key(field.gguf), value));
    }
    let layers = adapter.layers.keys().map(|&i| to_u32("layers", i)).collect::<Result<Vec<u32>>>()?;
    own.push((key("layers"), Value::Array(Array::from_u32(&layers))));
    own.push((key("query_order"), order.name().into()));
    Ok(own)
}

fn to_u32(field: &str, n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| Error::new(Code::GgufWrite, format!("expected at most {}, found {n}", u32::MAX)).field(key(field)))
}

/// What the configuration states beyond the keys.
fn source_config(adapter: &Plus, base_model_type: Option<&str>) -> Map<String, Json> {
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
    out
}
