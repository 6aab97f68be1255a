//! What a manifest says of an adapter or a model, as `pack` writes it and [`claims`](super::claims) expects it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::digest::AdapterDigest;
use crate::adapter::lora::Module;
use crate::adapter::{Adapter, Plus};
use crate::base::BaseModel;
use crate::export;
use crate::import::RECORD_KEY;
use crate::tensor::DType;
use crate::validate::Validated;

/// The manifest's `adapter`, but for the name under which it is offered.
pub(super) fn of_adapter(adapter: &Validated, digest: &AdapterDigest) -> Map<String, Value> {
    let layers = || ("layers", adapter.adapter().layer_numbers().collect());
    let own: Vec<(&str, Value)> = match adapter.adapter() {
        Adapter::Plus(plus) => {
            let fields = plus.fields().filter(|(field, _)| field.is_in_config);
            fields.map(|(field, value)| (field.key, value.json())).chain([layers()]).collect()
        }
        Adapter::Lora(lora) => {
            let ranks: BTreeSet<usize> = lora.modules.values().map(Module::rank).collect();
            let (targets, n_modules) = (lora.kinds().into_iter().collect(), lora.modules.len().into());
            vec![layers(), ("targets", targets), ("ranks", json!(ranks)), ("num_modules", n_modules)]
        }
        Adapter::Prefix(prefix) => prefix.fields().into_iter().map(|(key, value)| (key, value.json())).collect(),
    };
    let first = [("type", adapter.adapter().kind().name().into()), ("digest", json!(digest))];
    let last = [
        ("gguf_architecture", adapter.origin.gguf_architecture.as_deref().into()),
        ("row_order", adapter.origin.row_order.name().into()),
    ];
    let settled_by = |plus: &Plus| plus.config.extra.get(RECORD_KEY).cloned().unwrap_or_default();
    let settled_by = adapter.adapter().as_plus().map(|plus| ("conventions_settled_by", settled_by(plus)));
    let all = first.into_iter().chain(own).chain(last).chain(settled_by);
    all.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// An entry of the manifest's `forms`.
#[cfg(feature = "runner")]
pub(super) fn of_form(form: &super::form::PackedForm) -> Value {
    let mut out = json!({ "name": form.name, "file": form.file, "type": form.dtype, "report": form.report, "digest": form.digest });
    if form.digest.is_none() {
        out.as_object_mut().map(|form| form.shift_remove("digest"));
    }
    out
}

/// The manifest's `model`, but for the name under which it is offered.
pub(super) fn of_model(model: &BaseModel) -> Map<String, Value> {
    let n_parameters: u64 = model.tensors().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum();
    let described = json!({
        "type": "merged",
        "architecture": model.gguf_architecture(),
        "row_order": model.row_order().name(),
        "num_layers": model.config.n_layers,
        "num_parameters": n_parameters,
        "dtype": main_type_of_model(model).name(),
    });
    match described {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The type that most elements of M have, of a LoRA those of A and B.
pub(super) fn main_type(adapter: &Validated) -> DType {
    let tensors = adapter.adapter().tensors().filter(|(slot, _)| slot.part.is_main());
    export::main_type(tensors.map(|(_, t)| (t.stored_dtype(), t.n_elements())))
}

/// The type that most elements of a model's matrices have.
pub(super) fn main_type_of_model(model: &BaseModel) -> DType {
    let matrices = model.tensors().filter(|t| t.shape.len() > 1);
    export::main_type(matrices.map(|t| (t.dtype, t.shape.iter().product())))
}
