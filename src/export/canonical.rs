//! The canonical folder: `adapter_model.safetensors` and `adapter_config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan};
use crate::adapter::{Adapter, StatedLayers};
use crate::error::Result;
use crate::format::{TensorSpec, safetensors};
use crate::import::stated::{PEFT_TYPE, WIDENED_FROM};
use crate::validate::Validated;

/// Plans `adapter_model.safetensors`: layers ascending, roles in their order, Hugging Face component order.
///
/// Errors: those of the rules; [`Code::Usage`](crate::error::Code::Usage) for block types.
pub fn plan(source: &Validated, rules: &TypeRules) -> Result<Plan> {
    let mut types = Chooser::new(source, rules, Format::Safetensors)?;
    let tensors: Vec<OutputTensor> = source
        .adapter()
        .tensors()
        .map(|(layer, role, t)| {
            let choice = types.choose(layer, role, &Adapter::canonical_name(layer, role), t)?;
            let (source, canonical, label) = (t.clone(), t.clone(), Adapter::canonical_name(layer, role));
            Ok(OutputTensor { label, source, canonical, dtype: choice.dtype, unfit: choice.unfit })
        })
        .collect::<Result<_>>()?;
    types.finish()?;
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|t| TensorSpec { name: t.label.clone(), dtype: t.dtype, shape: t.source.shape().to_vec() })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(Plan { file: safetensors::plan(&metadata, &specs)?, tensors })
}

/// The text of `adapter_config.json`: the canonical keys in their order, then every other key that was carried.
pub fn config_json(source: &Validated, plan: &Plan, base_model_type: Option<&str>) -> String {
    let adapter = source.adapter();
    let c = &adapter.config;
    let g = &c.geometry;
    let mut extra = c.extra.clone();
    let mut out = Map::new();
    extra.shift_remove("peft_type");
    out.insert("peft_type".into(), PEFT_TYPE.into());
    for key in ["task_type", "base_model_name_or_path", "revision", "inference_mode"] {
        if let Some(v) = extra.shift_remove(key) {
            out.insert(key.into(), v);
        }
    }
    out.insert("feature_map".into(), c.feature_map.name().into());
    out.insert("query_tap".into(), c.query_tap.name().into());
    out.insert("query_scale".into(), c.query_scale.into());
    out.insert("memory_scale".into(), c.memory_scale.into());
    out.insert("memory_sharing".into(), c.memory_sharing.name().into());
    out.insert("num_layers".into(), g.n_layers.into());
    out.insert("num_attention_heads".into(), g.n_heads.into());
    out.insert("num_key_value_heads".into(), g.n_kv_heads.into());
    out.insert("head_dim".into(), g.head_dim.into());
    out.insert("num_features".into(), g.n_features.into());
    out.insert("layers_to_transform".into(), layers_json(adapter));
    if let Some(model_type) = c.base_model_type.as_deref().or(base_model_type) {
        out.insert("base_model_type".into(), model_type.into());
    }
    let coarsest = source.coarsest_dtype();
    if plan.tensors.iter().all(|t| t.dtype.fineness() > coarsest.fineness()) {
        extra.insert(WIDENED_FROM.into(), coarsest.name().into());
    }
    out.extend(extra);
    let mut text = serde_json::to_string_pretty(&Value::Object(out)).expect("JSON values serialise");
    text.push('\n');
    text
}

/// `layers_to_transform` as the source stated it, else null for every layer, else the list.
pub(super) fn layers_json(adapter: &Adapter) -> Value {
    match &adapter.config.layers_to_transform {
        Some(StatedLayers::All) => Value::Null,
        Some(StatedLayers::List(list)) => list.clone().into(),
        None if adapter.layers.len() == adapter.config.geometry.n_layers => Value::Null,
        None => adapter.layers.keys().copied().collect::<Vec<_>>().into(),
    }
}
