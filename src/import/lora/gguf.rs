//! llama.cpp's LoRA: pairs of tensors, one alpha. Source: `llama_adapter_lora_init_impl` in llama-adapter.cpp.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{Pieces, insert, modules, slot};
use crate::adapter::lora::gguf_keys::{ALPHA, CONFIG_HEAD_DIM, FOLDED, HEAD_DIM, KEY_FACTOR};
use crate::adapter::lora::{Lora, PEFT_TYPE, Scale, is_reordered, runtime_factor, turned_for_gguf};
use crate::adapter::{Part, Slot};
use crate::base::{BaseModel, Family, RowOrder, Weight, key_factor};
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::format::gguf::{Gguf, Metadata};
use crate::format::json;
use crate::import::Imported;
use crate::import::gguf::keys;
use crate::import::ledger::{Entry, Fate, Ledger};

/// Keys of an activated LoRA.
const ALORA: &str = "adapter.alora.invocation_tokens";

/// # Errors
///
/// [`Code::GgufKey`], [`Code::ConfigField`], [`Code::ConfigUnsupported`] about the keys; those of opening the tensors.
pub(in crate::import) fn import(path: &Path, file: &Gguf, base: Option<&BaseModel>) -> Result<Imported> {
    read(path, file, base).map_err(|e| e.file(path))
}

fn read(path: &Path, file: &Gguf, base: Option<&BaseModel>) -> Result<Imported> {
    let meta = &file.metadata;
    let architecture = keys::check_file(file)?;
    if meta.get(ALORA).is_some() {
        let message = "expected none: an activated LoRA is added only after its invocation tokens";
        return Err(Error::new(Code::ConfigUnsupported, message).field(ALORA));
    }
    let order = RowOrder::of_gguf_architecture(&architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(&architecture))?;
    // Without the key llama.cpp reads 0, and of 0 it makes a factor of 1.
    let alpha = meta.f32(ALPHA)?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return Err(Error::new(Code::ConfigField, format!("expected a finite number, found {alpha}")).field(ALPHA));
    }
    let head_dim_key = meta.u32(HEAD_DIM)?.map(|d| (CONFIG_HEAD_DIM, d.into()));
    let config = keys::peft_config(meta, PEFT_TYPE, head_dim_key)?;
    let folded = folded(meta)?;
    // Other converters' files are for bases with the model's own keys.
    let key_factor = key_factor(meta, KEY_FACTOR)?;
    let head_dim = match (order, base, meta.u32(HEAD_DIM)?) {
        (RowOrder::Neox, ..) => None,
        (RowOrder::Norm, Some(base), _) => Some(base.config.head_dim),
        (RowOrder::Norm, None, stated) => stated.map(|d| d as usize),
    };

    let mut findings = Findings::default();
    let mut pieces = Pieces::new();
    let mut saved = BTreeMap::new();
    let mut ledger = Ledger::default();
    let mut is_told = false;
    for t in &file.tensors {
        let tensor = t.lazy()?;
        let mut fate = Fate::LeftOver;
        match place(&t.name, &architecture) {
            Some((weight, Some(part))) => {
                let turned = turned_for_gguf(weight, part, tensor.clone());
                let in_order = match is_reordered(weight, part, order) {
                    true => in_hugging_face_order(turned, head_dim, &t.name, &mut is_told, &mut findings),
                    false => turned,
                };
                insert(&mut pieces, (weight, part), &t.name, in_order, &mut findings);
                fate = Fate::Consumed { slots: [slot(weight, part)].into() };
            }
            Some((weight, None)) => {
                if !weight.is_linear()
                    && !Family::from_gguf_architecture(&architecture).is_some_and(Family::has_plain_norms)
                {
                    let message = format!(
                        "expected trained norms of a family that has them where Llama does and as they multiply, found one of {architecture:?}: \
                         take PEFT's own files"
                    );
                    return Err(Error::new(Code::ConfigUnsupported, message).field(&t.name));
                }
                saved.insert(weight, tensor.clone());
                fate = Fate::Consumed { slots: [slot(weight, Part::Whole)].into() };
            }
            None => {
                let expected = "a linear weight of the model with .lora_a or .lora_b behind it";
                findings.add(Code::AdapterLeftOver, &t.name, expected, "another name");
            }
        }
        ledger.entries.push(Entry { tensor: Some(tensor), fate, ..Entry::new(&t.name, t.dtype, &t.shape) });
    }
    if pieces.is_empty() && findings.is_empty() {
        findings.add(Code::AdapterMissing, "lora_a", "tensors of a LoRA", "none");
    }
    let scale = |weight: Weight, rank: usize| {
        let multiplier = if weight.makes_keys() { key_factor } else { 1.0 };
        let factor = f64::from(runtime_factor(alpha, rank)) / multiplier;
        Scale { alpha: f64::from(alpha), factor }
    };
    let modules = modules(pieces, |_| None, scale, Slot::gguf_name, &mut findings);
    let mut lora = Lora { config, modules, saved, folded: BTreeMap::new(), key_factor: Some(key_factor) };
    for (name, ratio) in folded {
        match Weight::parse_gguf(&name, &architecture).filter(|w| lora.modules.contains_key(w)) {
            Some(weight) => drop(lora.folded.insert(weight, ratio)),
            None => {
                let message = format!("expected names of weights that this file adds to, found {name:?}");
                return Err(Error::new(Code::ConfigField, message).field(FOLDED));
            }
        }
    }
    let adapter = lora.into();
    let origin =
        keys::origin(path, file, "LoRA of llama.cpp, GGUF", (architecture, order), &adapter, findings.is_empty())?;
    Ok(Imported { adapter, ledger, findings: findings.into_vec(), notes: Vec::new(), origin })
}

/// The weight that a tensor belongs to, and which part of the addition it is; none for a weight as a whole. llama.cpp's converter
/// writes trained norms so, and llama.cpp leaves them out.
fn place(name: &str, architecture: &str) -> Option<(Weight, Option<Part>)> {
    let halves = [(".lora_a", Part::A, Part::B), (".lora_b", Part::B, Part::A)];
    let half = halves.iter().find_map(|(suffix, part, swapped)| Some((name.strip_suffix(suffix)?, *part, *swapped)));
    let Some((name, part, swapped)) = half else {
        return Weight::parse_gguf(name, architecture).filter(|w| !matches!(w, Weight::Rope(_))).map(|w| (w, None));
    };
    // An embedding's halves are called after the matrix that a one-hot row is multiplied with.
    let weight = Weight::parse_gguf(name, architecture).filter(|w| w.is_linear())?;
    Some((weight, Some(if weight == Weight::TokenEmbedding { swapped } else { part })))
}

/// Undoes the order of the rows inside each head.
fn in_hugging_face_order(
    t: crate::tensor::LazyTensor,
    head_dim: Option<usize>,
    name: &str,
    is_told: &mut bool,
    findings: &mut Findings,
) -> crate::tensor::LazyTensor {
    let Some(d) = head_dim else {
        // Said of the first: the others are no news.
        if !std::mem::replace(is_told, true) {
            let expected =
                "--base: how many rows a head has, by which those of q's and k's B are ordered, the file does not say";
            findings.add(Code::RowOrderUnknown, name, expected, "none");
        }
        return t;
    };
    let rows = t.shape().first().copied().unwrap_or(0);
    if d == 0 || !d.is_multiple_of(2) || !rows.is_multiple_of(d) || t.shape().len() != 2 {
        findings.add(Code::AdapterShape, name, format!("rows of whole heads of {d}"), format!("{:?}", t.shape()));
        return t;
    }
    crate::transform::row_order::rows_to_hugging_face(t, d)
}

/// What B of some modules was multiplied with, by the weights' names.
fn folded(meta: &Metadata) -> Result<BTreeMap<String, f64>> {
    let Some(text) = meta.str(FOLDED)? else { return Ok(BTreeMap::new()) };
    let wrong =
        || Error::new(Code::ConfigField, "expected a JSON object of finite numbers by weights' names").field(FOLDED);
    let Value::Object(map) = json::parse(text.as_bytes()).map_err(|e| e.field(FOLDED))? else { return Err(wrong()) };
    map.into_iter().map(|(name, v)| v.as_f64().filter(|x| x.is_finite()).map(|x| (name, x)).ok_or_else(wrong)).collect()
}
