//! What `config.json` says of single layers, in the ways that several families share.

use serde_json::Value;

use crate::base::config::{Family, Layer};
use crate::base::fields::{Fields, describe};
use crate::error::Result;

/// Every layer attends to everything.
pub(super) fn full(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<Layer>> {
    uniform(fields, family, n_layers, None)
}

/// One window for all layers, or none where it is null.
pub(super) fn same_window(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<Layer>> {
    uniform(fields, family, n_layers, window(fields)?)
}

/// The same, where none is stated either.
pub(super) fn window_if_stated(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<Layer>> {
    let is_stated = fields.count("sliding_window")?.value().is_some();
    uniform(fields, family, n_layers, if is_stated { window(fields)? } else { None })
}

/// One window for all layers, if `use_sliding_window` says so.
pub(super) fn window_if_used(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<Layer>> {
    let is_used = fields.flag("use_sliding_window", false)?;
    uniform(fields, family, n_layers, if is_used { window(fields)? } else { None })
}

/// One window for the layers that `layer_types` names, or else for every other one below `max_window_layers`, from the first
/// on, and only if `use_sliding_window` says so.
pub(super) fn alternating_windows(fields: &Fields, _: Family, n_layers: usize) -> Result<Vec<Layer>> {
    rotate_all(fields)?;
    let window = if fields.flag("use_sliding_window", false)? { window(fields)? } else { None };
    match types(fields, n_layers)? {
        Some(types) => by_types(fields, &types, window),
        None => {
            let end = fields.count_or("max_window_layers", 28)?;
            Ok((0..n_layers).map(|i| Layer::with_window(window.filter(|_| i % 2 == 0 && i < end))).collect())
        }
    }
}

/// One window for the layers that `layer_types` names, or else for those from `max_window_layers` on, and only if
/// `use_sliding_window` says so.
pub(super) fn later_ones_with_window(fields: &Fields, _: Family, n_layers: usize) -> Result<Vec<Layer>> {
    rotate_all(fields)?;
    let window = if fields.flag("use_sliding_window", false)? { window(fields)? } else { None };
    match types(fields, n_layers)? {
        Some(types) => by_types(fields, &types, window),
        None => {
            let first = fields.count_or("max_window_layers", 28)?;
            Ok((0..n_layers).map(|i| Layer::with_window(window.filter(|_| i >= first))).collect())
        }
    }
}

/// These classes do not read `layer_types`; where it says something else, the file means another model.
fn uniform(fields: &Fields, family: Family, n_layers: usize, window: Option<usize>) -> Result<Vec<Layer>> {
    rotate_all(fields)?;
    let fits = |sliding: &bool| *sliding == window.is_some();
    if types(fields, n_layers)?.is_some_and(|t| !t.iter().all(fits)) {
        return Err(fields.unsupported("layer_types", format!("expected the same attention in all {family} layers")));
    }
    Ok(vec![Layer::with_window(window); n_layers])
}

/// `sliding_window`, with the default that all classes have which know one.
pub(super) fn window(fields: &Fields) -> Result<Option<usize>> {
    match fields.count("sliding_window")?.or_absent(4_096) {
        Some(0) => Err(fields.invalid("sliding_window", "expected at least 1 or null, found 0")),
        window => Ok(window),
    }
}

/// A layer for each type: those that slide have the window.
pub(super) fn by_types(fields: &Fields, types: &[bool], window: Option<usize>) -> Result<Vec<Layer>> {
    let layer = |sliding: &bool| match (sliding, window) {
        (false, _) => Ok(Layer::FULL),
        (true, Some(_)) => Ok(Layer::with_window(window)),
        (true, None) => Err(fields.invalid("layer_types", "found sliding_attention, but no sliding window")),
    };
    types.iter().map(layer).collect()
}

/// Per layer whether it has a window; `None` where the file does not say.
pub(super) fn types(fields: &Fields, n_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(items) = fields.list("layer_types")?.value() else { return Ok(None) };
    if items.len() != n_layers {
        let message = format!("expected one entry for each of {n_layers} layers, found {}", items.len());
        return Err(fields.invalid("layer_types", message));
    }
    let parse = |v: &Value| match v.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some(other) => {
            let message = format!("expected full_attention or sliding_attention, found {other:?}");
            Err(fields.unsupported("layer_types", message))
        }
        None => Err(fields.invalid("layer_types", format!("expected strings, found {}", describe(v)))),
    };
    items.iter().map(parse).collect::<Result<_>>().map(Some)
}

/// `no_rope_layers` of SmolLM3 and Llama 4 has, against its name, a 0 for each layer whose queries are not rotated.
pub(super) fn rotate_all(fields: &Fields) -> Result<()> {
    let name = "no_rope_layers";
    let layers = fields.list(name)?.value().unwrap_or_default();
    match layers.iter().find(|v| v.as_u64() != Some(1)) {
        Some(v) => Err(fields.unsupported(name, format!("expected 1 for every layer, found {}", describe(v)))),
        None => Ok(()),
    }
}
