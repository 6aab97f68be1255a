//! The canonical folder: `adapter_model.safetensors` and `adapter_config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::recorded::widened_from;
use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan};
use crate::adapter::Adapter;
use crate::adapter::plus::{Plus, StatedLayers};
use crate::error::{Code, Error, Result};
use crate::format::{TensorSpec, json, limits, safetensors};
use crate::import::stated::{PEFT_TYPE, WIDENED_FROM};
use crate::validate::Validated;

/// Plans `adapter_model.safetensors`: layers ascending, parts in their order, Hugging Face component order.
///
/// # Errors
///
/// Those of the rules; [`Code::Usage`] for block types.
pub fn plan(source: &Validated, rules: &TypeRules) -> Result<Plan> {
    match source.adapter() {
        Adapter::Plus(_) => {}
        Adapter::Lora(lora) => return super::lora::plan_peft(source, lora, rules),
        Adapter::Prefix(prefix) => return super::prefix::plan_peft(source, prefix, rules),
    }
    let mut types = Chooser::new(source, rules, Format::Safetensors)?;
    let tensors: Vec<OutputTensor> = source
        .adapter()
        .tensors()
        .map(|(slot, t)| {
            let label = slot.canonical_name();
            let choice = types.choose(slot, &label, t)?;
            Ok(OutputTensor::new(label, t.clone(), t.clone(), choice))
        })
        .collect::<Result<_>>()?;
    types.finish()?;
    let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec(t.label.clone())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(Plan { file: safetensors::plan(&metadata, &specs)?, tensors })
}

/// The text of `adapter_config.json`: the canonical keys in their order, then every other key that was carried.
///
/// # Errors
///
/// [`Code::JsonTooLarge`] for what no reader of the file would take, naming the largest key.
pub fn config_json(source: &Validated, plan: &Plan, base_model_type: Option<&str>) -> Result<String> {
    let adapter = match source.adapter() {
        Adapter::Plus(plus) => plus,
        Adapter::Lora(lora) => return text_of(super::lora::config(source, lora)),
        Adapter::Prefix(prefix) => return text_of(super::prefix::config(prefix)),
    };
    let c = &adapter.config;
    let mut extra = c.extra.clone();
    let mut out = Map::new();
    extra.shift_remove("peft_type");
    out.insert("peft_type".into(), PEFT_TYPE.into());
    for key in ["task_type", "base_model_name_or_path", "revision", "inference_mode"] {
        if let Some(v) = extra.shift_remove(key) {
            out.insert(key.into(), v);
        }
    }
    let fields = adapter.fields().filter(|(field, _)| field.is_in_config);
    out.extend(fields.map(|(field, value)| (field.key.to_owned(), value.json())));
    out.insert("layers_to_transform".into(), layers_json(adapter));
    if let Some(model_type) = c.base_model_type.as_deref().or(base_model_type) {
        out.insert("base_model_type".into(), model_type.into());
    }
    if let Some(coarsest) = widened_from(source, &plan.tensors) {
        extra.insert(WIDENED_FROM.into(), coarsest.name().into());
    }
    out.extend(extra);
    text_of(out)
}

/// A configuration as the text of its file.
fn text_of(out: Map<String, Value>) -> Result<String> {
    check_size(&out)?;
    let out = Value::Object(out);
    let mut text = serde_json::to_string_pretty(&out).expect("JSON values serialise");
    if text.len() as u64 >= limits::CONFIG_BYTES {
        text = out.to_string(); // without the indentation it fits
    }
    text.push('\n');
    Ok(json::as_python_writes(&text))
}

/// Holds a configuration to the limits of [`json::read_config`](crate::format::json::read_config) before it becomes text,
/// which may be six times as long as what it escapes.
fn check_size(config: &Map<String, Value>) -> Result<()> {
    let sizes: Vec<(u64, usize, &String)> = config.iter().map(|(key, v)| (len_bytes(v), n_values(v), key)).collect();
    // Each key with colon and comma, the braces, the newline.
    let n_bytes = config.iter().map(|(key, _)| len_bytes(&key.as_str().into()) + 2).sum::<u64>()
        + sizes.iter().map(|(n, ..)| n).sum::<u64>()
        + 3;
    let n_values = sizes.iter().map(|(_, n, _)| n).sum::<usize>() + 1;
    if n_bytes <= limits::CONFIG_BYTES && n_values <= limits::CONFIG_VALUES {
        return Ok(());
    }
    let message = format!(
        "expected an adapter_config.json of at most {} bytes and {} values, found {n_bytes} and {n_values}",
        limits::CONFIG_BYTES,
        limits::CONFIG_VALUES
    );
    let largest = sizes.iter().max().map_or("", |(.., key)| key);
    Err(Error::new(Code::JsonTooLarge, message).field(largest))
}

/// Bytes of the value as compact JSON.
fn len_bytes(value: &Value) -> u64 {
    struct Counter(u64);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value).expect("counting does not fail");
    counter.0
}

/// The value itself and all values in it. It came through a reader with a depth limit, so recursion is bounded.
fn n_values(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(n_values).sum(),
        Value::Array(items) => items.iter().map(n_values).sum(),
        _ => 0,
    }
}

/// `layers_to_transform` as the source stated it, else null for every layer, else the list.
pub(super) fn layers_json(adapter: &Plus) -> Value {
    match &adapter.config.layers_to_transform {
        Some(StatedLayers::All) => Value::Null,
        Some(StatedLayers::List(list)) => list.clone().into(),
        None if adapter.layers.len() == adapter.config.geometry.n_layers => Value::Null,
        None => adapter.layers.keys().copied().collect::<Vec<_>>().into(),
    }
}
