//! LoRA to PEFT's folder and to llama.cpp's GGUF.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::recorded::{gguf_metadata, own_metadata, without_gguf_keys, without_own_keys};
use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan};
use crate::adapter::lora::gguf_keys::{ALPHA, CONFIG_HEAD_DIM, FOLDED, HEAD_DIM, KEY_FACTOR};
use crate::adapter::lora::{Lora, common_alpha, fold, is_reordered, turned_for_gguf, turned_for_peft};
use crate::adapter::{Part, Slot};
use crate::base::{BaseModel, Dialect, Family, RowOrder, Weight};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Value};
use crate::format::{TensorSpec, safetensors};
use crate::tensor::{DType, LazyTensor};
use crate::transform::{cast, row_order};
use crate::validate::Validated;

/// What B of key projections is multiplied with, as the keys of the base's GGUF file are. Without the base, a GGUF file's stays.
fn key_factor(lora: &Lora, architecture: &str, base: Option<&BaseModel>) -> Result<f64> {
    let Some(&weight) = lora.modules.keys().find(|w| w.makes_keys()) else { return Ok(1.0) };
    if let Some(c) = base.map(|b| &b.config) {
        // As the file will say it.
        return Ok(f64::from(c.addition_factor(weight, c.gguf_key_factor()) as f32));
    }
    match lora.key_factor {
        Some(factor) => Ok(factor),
        None if Family::from_gguf_architecture(architecture).is_some_and(Family::multiplies_keys) => {
            let message = "expected --base: whether its GGUF file holds keys multiplied, nothing says";
            Err(Error::new(Code::ConfigUnsupported, message).field(Slot::of_weight(weight, Part::B).canonical_name()))
        }
        None => Ok(1.0),
    }
}

/// Plans llama.cpp's file for a base of this GGUF architecture.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for what such a file cannot say, naming what can; [`Code::RowOrderUnknown`] where the length of a
/// head is not known; [`Code::BaseArchitecture`], those of the rules.
pub(super) fn plan_gguf(
    source: &Validated,
    lora: &Lora,
    architecture: &str,
    base: Option<&BaseModel>,
    rules: &TypeRules,
) -> Result<Plan> {
    let order = RowOrder::of_gguf_architecture(architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(architecture))?;
    refuse_what_no_file_says(lora)?;
    refuse_tied(lora, base)?;
    let key_factor = key_factor(lora, architecture, base)?;
    let head_dim = head_dim(lora, base);
    let alpha = alpha(lora, key_factor);
    let mut types = Chooser::new(source, rules, Format::Gguf)?;
    let mut tensors = Vec::new();
    let mut specs = Vec::new();
    let mut folded: BTreeMap<Weight, f64> = lora.folded.clone();
    for (&weight, module) in &lora.modules {
        let multiplier = if weight.makes_keys() { key_factor } else { 1.0 };
        let factor = fold(module.scale.factor * multiplier, module.rank(), alpha);
        if factor != 1.0 {
            *folded.entry(weight).or_insert(1.0) *= factor;
        }
        for (part, t) in [(Part::A, &module.a), (Part::B, &module.b)] {
            let slot = Slot::of_weight(weight, part);
            let in_file = match is_reordered(weight, part, order) {
                true => {
                    let d = head_dim.ok_or_else(|| {
                        let message =
                            "expected --base: the order of B's rows depends on how many a head has, which nothing says";
                        Error::new(Code::RowOrderUnknown, message).field(slot.canonical_name())
                    })?;
                    if d < 2 || !d.is_multiple_of(2) || !t.shape()[0].is_multiple_of(d) {
                        let message = format!("expected rows of whole heads of {d}, found {}", t.shape()[0]);
                        return Err(Error::new(Code::AdapterShape, message).field(slot.canonical_name()));
                    }
                    row_order::rows_to_norm(t.clone(), d)
                }
                false => turned_for_gguf(weight, part, t.clone()),
            };
            let name = slot.gguf_name();
            let mut choice = types.choose(slot, &name, &in_file)?;
            let factor = if part == Part::B { factor } else { 1.0 };
            // Kept in its type, a product would lose bits that nobody asked to lose.
            if factor != 1.0 && types.keeps(&name) {
                choice.dtype = DType::F32;
            }
            let output = OutputTensor::new(slot.canonical_name(), in_file, t.clone(), choice);
            specs.push(output.spec(name));
            tensors.push(OutputTensor { factor, ..output });
        }
    }
    types.finish()?;
    let mut own = own_keys(alpha, head_dim.filter(|_| order == RowOrder::Norm), &folded);
    if key_factor != 1.0 {
        own.push((KEY_FACTOR.to_owned(), Value::F32(key_factor as f32)));
    }
    let metadata = gguf_metadata(source, architecture, &tensors, own, without_gguf_keys(&lora.config))?;
    Ok(Plan { file: gguf::plan(&metadata, &specs)?, tensors })
}

/// The alpha of the file. Keys that are multiplied have no say in it: their factor belongs into B.
fn alpha(lora: &Lora, key_factor: f64) -> f32 {
    let others = lora.modules.iter().filter(|(w, _)| key_factor == 1.0 || !w.makes_keys());
    let stated = || lora.modules.values().map(|m| m.scale.alpha as f32).find(|alpha| alpha.is_normal());
    match others.clone().next() {
        Some(_) => common_alpha(others.map(|(_, m)| m)),
        None => stated().unwrap_or(1.0),
    }
}

/// What llama.cpp's form has no place for.
fn refuse_what_no_file_says(lora: &Lora) -> Result<()> {
    let merged = "ptplus convert BASE --merge ADAPTER -o OUT.gguf writes a model that has it";
    let refuse = |what: &str, place: String| {
        let message = format!("expected A and B alone: no LoRA file in GGUF says {what}; {merged}");
        Err(Error::new(Code::ConfigUnsupported, message).field(place))
    };
    for (&weight, module) in &lora.modules {
        if module.magnitude.is_some() {
            return refuse("DoRA's magnitudes", Slot::of_weight(weight, Part::Magnitude).canonical_name());
        }
        if module.bias.is_some() {
            return refuse("lora_bias", Slot::of_weight(weight, Part::Bias).canonical_name());
        }
    }
    match lora.saved.keys().next() {
        None => Ok(()),
        Some(&weight) => {
            let name = Slot::of_weight(weight, Part::Whole).canonical_name();
            refuse("weights that were trained as a whole, or that nothing has compared with the base's (--base)", name)
        }
    }
}

/// llama.cpp has one tensor for an embedding that is also the head: it finds no head to add to, and would add the embedding's
/// addition to the head as well.
fn refuse_tied(lora: &Lora, base: Option<&BaseModel>) -> Result<()> {
    let of = |w: Weight| lora.modules.contains_key(&w).then_some(w);
    let Some(weight) = of(Weight::TokenEmbedding).or(of(Weight::Output)) else { return Ok(()) };
    let message = match base {
        None => "expected --base: whether the embedding is also the head, nothing says",
        Some(base) if base.config.tied_embeddings || base.tensor(Weight::Output).is_none() => {
            "expected a base whose head is a tensor of its own: here llama.cpp has one for embedding and head, and cannot add to \
             one of them; ptplus convert BASE --merge ADAPTER -o OUT.gguf writes a model that has it"
        }
        Some(_) => return Ok(()),
    };
    Err(Error::new(Code::ConfigUnsupported, message).field(Slot::of_weight(weight, Part::A).canonical_name()))
}

/// Rows of a head: the base's, or as an earlier conversion recorded them.
fn head_dim(lora: &Lora, base: Option<&BaseModel>) -> Option<usize> {
    let recorded = || lora.config.get(CONFIG_HEAD_DIM)?.as_u64().and_then(|d| usize::try_from(d).ok());
    base.map(|b| b.config.head_dim).or_else(recorded)
}

/// The kind's own keys.
fn own_keys(alpha: f32, head_dim: Option<usize>, folded: &BTreeMap<Weight, f64>) -> Vec<(String, Value)> {
    let mut own = vec![(ALPHA.to_owned(), Value::F32(alpha))];
    if let Some(d) = head_dim.and_then(|d| u32::try_from(d).ok()) {
        own.push((HEAD_DIM.to_owned(), Value::U32(d)));
    }
    if !folded.is_empty() {
        let map: Map<String, Json> = folded.iter().map(|(w, x)| (w.name(Dialect::Gguf), Json::from(*x))).collect();
        own.push((FOLDED.to_owned(), Json::Object(map).to_string().as_str().into()));
    }
    own
}

/// Plans `adapter_model.safetensors` with PEFT's names; what an earlier conversion has folded into B is taken out again where that
/// gives the first source's values back.
///
/// # Errors
///
/// Those of the rules; [`Code::Usage`] for block types.
pub(super) fn plan_peft(source: &Validated, lora: &Lora, rules: &TypeRules) -> Result<Plan> {
    let unfolded = unfolded(source, lora);
    let mut types = Chooser::new(source, rules, Format::Safetensors)?;
    let mut tensors = Vec::new();
    for (slot, t) in source.adapter().tensors() {
        let in_file = match slot.weight() {
            Some(weight) => turned_for_peft(weight, slot.part, t.clone()),
            None => t.clone(),
        };
        let label = slot.canonical_name();
        let mut choice = types.choose(slot, &label, &in_file)?;
        let inverse = slot.weight().filter(|_| slot.part == Part::B).and_then(|w| unfolded.get(&w));
        let mut factor = 1.0;
        if let Some((ratio, dtype)) = inverse {
            factor = 1.0 / ratio;
            if types.keeps(&label) {
                choice.dtype = *dtype;
            }
        }
        tensors.push(OutputTensor { factor, ..OutputTensor::new(label, in_file, t.clone(), choice) });
    }
    types.finish()?;
    let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec(t.label.clone())).collect();
    let metadata = own_metadata(source, &tensors);
    Ok(Plan { file: safetensors::plan(&metadata, &specs)?, tensors })
}

/// `adapter_config.json` of a plan by [`plan_peft`].
pub(super) fn config(source: &Validated, lora: &Lora) -> Map<String, Json> {
    let mut lora = lora.clone();
    for (weight, (ratio, _)) in unfolded(source, &lora) {
        if let Some(module) = lora.modules.get_mut(&weight) {
            module.scale.factor *= ratio;
        }
    }
    without_own_keys(lora.stated_config())
}

/// What was folded and can be taken out exactly, with the type that the first source had: where rounding the quotients to that
/// type and folding again gives the file's values. Of keys that were multiplied it is taken out in any case, in F32.
fn unfolded(source: &Validated, lora: &Lora) -> BTreeMap<Weight, (f64, DType)> {
    let are_keys_multiplied = lora.key_factor.is_some_and(|factor| factor != 1.0);
    let undone = |(&weight, &ratio): (&Weight, &f64)| {
        let b = &lora.modules.get(&weight)?.b;
        let name = Slot::of_weight(weight, Part::B).canonical_name();
        let dtype = source.origin.recorded_dtypes.get(&name).copied().unwrap_or(b.dtype());
        let is_exact = ratio != 0.0 && can_be_undone(b, ratio, dtype);
        let is_wanted = ratio != 0.0 && are_keys_multiplied && weight.makes_keys();
        (is_exact || is_wanted).then_some((weight, (ratio, if is_exact { dtype } else { DType::F32 })))
    };
    lora.folded.iter().filter_map(undone).collect()
}

fn can_be_undone(b: &LazyTensor, ratio: f64, dtype: DType) -> bool {
    let is_power_of_two = |x: f64| x.abs().to_bits() & ((1 << 52) - 1) == 0;
    // Many F32 values have one product; the quotient's bits beyond the type's say which a coarser one was.
    if b.dtype() != DType::F32 || (dtype == DType::F32 && !is_power_of_two(ratio)) {
        return false;
    }
    let mut is_exact = true;
    b.for_each_part(1 << 20, &mut |bytes| {
        let Ok(values) = cast::to_f32(DType::F32, bytes) else { return is_exact = false };
        let quotients: Vec<f32> = values.iter().map(|v| (f64::from(*v) / ratio) as f32).collect();
        let rounded = match cast::from_f32(&quotients, dtype, cast::Overflow::Error) {
            Ok((bytes, _)) => cast::to_f32(dtype, &bytes).unwrap_or_default(),
            Err(_) => return is_exact = false,
        };
        let again = rounded.iter().map(|v| (f64::from(*v) * ratio) as f32);
        is_exact &= again.eq(values.iter().copied());
    });
    is_exact
}
