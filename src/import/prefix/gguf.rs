//! Virtual tokens in GGUF, as ptplus writes them; the layout is in `docs/FORMAT.md`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::adapter::prefix::gguf_keys::{VERSION, key};
use crate::adapter::prefix::{KeysValues, Method, Prefix, VirtualTokens, parse_gguf_name};
use crate::adapter::{Part, Slot};
use crate::base::RowOrder;
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::format::gguf::{Gguf, Metadata};
use crate::import::Imported;
use crate::import::gguf::keys;
use crate::import::ledger::{Entry, Fate, Ledger};
use crate::tensor::LazyTensor;
use crate::transform::row_order;

/// # Errors
///
/// [`Code::GgufKey`], [`Code::ConfigField`], [`Code::ConfigUnsupported`] about the keys; those of opening the tensors.
pub(in crate::import) fn import(path: &Path, file: &Gguf) -> Result<Imported> {
    read(path, file).map_err(|e| e.file(path))
}

fn read(path: &Path, file: &Gguf) -> Result<Imported> {
    let meta = &file.metadata;
    let architecture = keys::check_file(file)?;
    let version = count(meta, "version")?;
    if version != VERSION as usize {
        let message = format!("expected version {VERSION}, found {version}");
        return Err(Error::new(Code::ConfigUnsupported, message).field(key("version")));
    }
    let method = method(meta)?;
    let order = match method {
        Method::PrefixTuning => keys::architecture_order(meta, &architecture, &key("key_order"))?,
        // Embeddings have one order everywhere.
        Method::PromptTuning | Method::PTuning => RowOrder::Neox,
    };
    let config = keys::peft_config(meta, method.name(), None)?;

    let mut findings = Findings::default();
    let mut ledger = Ledger::default();
    let mut parts: BTreeMap<Slot, LazyTensor> = BTreeMap::new();
    for t in &file.tensors {
        let tensor = t.lazy()?;
        let is_one = |slot: &Slot| (slot.part == Part::VirtualTokens) == (method != Method::PrefixTuning);
        let mut fate = Fate::LeftOver;
        match parse_gguf_name(&t.name).filter(is_one) {
            Some(slot) => {
                if let Some(tensor) = canonical(slot, tensor.clone(), meta, order, &t.name, &mut findings)? {
                    parts.insert(slot, tensor);
                }
                fate = Fate::Consumed { slots: [slot].into() };
            }
            None => {
                let expected = format!("only tensors of {method}");
                findings.add(Code::AdapterLeftOver, &t.name, expected, "another name");
            }
        }
        ledger.entries.push(Entry { tensor: Some(tensor), fate, ..Entry::new(&t.name, t.dtype, &t.shape) });
    }
    let tokens = match method {
        Method::PrefixTuning => VirtualTokens::KeysValues(layers(parts, count(meta, "block_count")?, &mut findings)),
        Method::PromptTuning | Method::PTuning => match parts.remove(&Slot::virtual_tokens()) {
            Some(t) => VirtualTokens::Embeddings(t),
            None => {
                missing(Slot::virtual_tokens(), &mut findings);
                VirtualTokens::KeysValues(BTreeMap::new())
            }
        },
    };
    let is_whole = findings.is_empty();
    let adapter = Prefix { config: stated_sizes(config, meta, method)?, method, tokens }.into();
    let origin = keys::origin(path, file, "virtual tokens, GGUF", (architecture, order), &adapter, is_whole)?;
    Ok(Imported { adapter, ledger, findings: findings.into_vec(), notes: Vec::new(), origin })
}

fn method(meta: &Metadata) -> Result<Method> {
    let field = key("method");
    let text = meta.str(&field)?.ok_or_else(|| keys::missing(&field))?;
    Method::parse(text).ok_or_else(|| {
        let message = format!("expected one of {}, found {text:?}", Method::NAMES.join(", "));
        Error::new(Code::ConfigUnsupported, message).field(&field)
    })
}

fn count(meta: &Metadata, field: &str) -> Result<usize> {
    let field = key(field);
    meta.u32(&field)?.map(|n| n as usize).ok_or_else(|| keys::missing(&field))
}

/// In Hugging Face order, and with its head axis; of another shape than the keys say, a finding.
fn canonical(
    slot: Slot,
    t: LazyTensor,
    meta: &Metadata,
    order: RowOrder,
    name: &str,
    findings: &mut Findings,
) -> Result<Option<LazyTensor>> {
    let n_tokens = count(meta, "token_count")?;
    let expected = match slot.part {
        Part::VirtualTokens => vec![n_tokens, count(meta, "embedding_length")?],
        _ => vec![count(meta, "head_count_kv")?, n_tokens, count(meta, "key_length")?],
    };
    // Writers drop an outermost dimension of 1.
    let t = if t.shape().len() + 1 == expected.len() { t.unsqueeze0() } else { t };
    if t.shape() != expected {
        let (expected, found) = (format!("{expected:?}, as the keys say"), format!("{:?}", t.shape()));
        findings.add(Code::AdapterShape, name, expected, found);
        return Ok(None);
    }
    if slot.part != Part::PrefixKeys || order == RowOrder::Neox {
        return Ok(Some(t));
    }
    let d = expected[2];
    if d == 0 || !d.is_multiple_of(2) {
        findings.add(Code::AdapterShape, name, format!("an even length, as row order {order} needs"), d);
        return Ok(None);
    }
    Ok(Some(row_order::components_to_hugging_face(t, 2)))
}

/// Keys and values of every layer; what is missing is a finding.
fn layers(
    mut parts: BTreeMap<Slot, LazyTensor>,
    n_layers: usize,
    findings: &mut Findings,
) -> BTreeMap<usize, KeysValues> {
    let mut out = BTreeMap::new();
    let is_whole = findings.is_empty();
    // However many there are said to be, those of a file are few.
    for i in 0..n_layers.min(parts.len() + 1) {
        let of = |part: Part| Slot::attention(i, part);
        match (parts.remove(&of(Part::PrefixKeys)), parts.remove(&of(Part::PrefixValues))) {
            (Some(keys), Some(values)) => drop(out.insert(i, KeysValues { keys, values })),
            (keys, values) if is_whole => {
                for (part, found) in [(Part::PrefixKeys, keys), (Part::PrefixValues, values)] {
                    if found.is_none() {
                        missing(of(part), findings);
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(slot) = parts.keys().next() {
        let expected = format!("layers below {n_layers}, as {} says", key("block_count"));
        findings.add(Code::AdapterMismatch, slot.gguf_name(), expected, "a layer beyond");
    } else if out.len() < n_layers && findings.is_empty() {
        missing(Slot::attention(out.len(), Part::PrefixKeys), findings);
    }
    out
}

fn missing(slot: Slot, findings: &mut Findings) {
    findings.add(Code::AdapterMissing, slot.gguf_name(), "a tensor of virtual tokens", "none");
}

/// The sizes that PEFT's configuration has, from the keys.
fn stated_sizes(mut config: Map<String, Value>, meta: &Metadata, method: Method) -> Result<Map<String, Value>> {
    config.insert("num_virtual_tokens".into(), count(meta, "token_count")?.into());
    if method == Method::PrefixTuning {
        let (n_heads, length) = (count(meta, "head_count_kv")?, count(meta, "key_length")?);
        for (name, n) in [
            ("num_layers", count(meta, "block_count")?),
            ("num_attention_heads", n_heads),
            ("token_dim", n_heads.saturating_mul(length)),
        ] {
            config.insert(name.into(), n.into());
        }
    } else {
        config.insert("token_dim".into(), count(meta, "embedding_length")?.into());
    }
    Ok(config)
}
