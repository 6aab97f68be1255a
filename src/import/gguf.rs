//! A GGUF adapter: metadata keys to a configuration, tensors back to canonical shapes and Hugging Face order.

use std::path::Path;

use super::assemble::{self, Pieces};
use super::ledger::{Entry, Fate, Ledger};
use super::statements::{self, Sizes};
use super::{Imported, Options};
use crate::adapter::plus::gguf_names::{VERSION, in_gguf_terms, key, parse_tensor_name, place_in_gguf};
use crate::adapter::plus::{PartSpec, Plus};
use crate::adapter::{Kind, Part, Slot};
use crate::base::{BaseModel, RowOrder, gguf_architecture_of};
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::format::gguf::{self, Gguf};
use crate::tensor::{DType, LazyTensor};
use crate::transform::row_order;

pub(super) mod keys;
use keys::{required, stated_layers};

pub(super) fn import(path: &Path, file: &Gguf, options: &Options, base: Option<&BaseModel>) -> Result<Imported> {
    let mut imported = read(path, file, base).map_err(|e| in_gguf_terms(e).file(path))?;
    imported.findings.iter_mut().for_each(place_in_gguf);
    agree(options, file, path)?;
    Ok(imported)
}

/// A GGUF adapter states everything; what the caller states can only agree.
fn agree(options: &Options, file: &Gguf, path: &Path) -> Result<()> {
    let refuse = |flag: &str| {
        Err(Error::new(Code::ConventionContradiction, "expected nothing: a GGUF adapter has one layout").field(flag))
    };
    if options.layout.is_some() {
        return refuse("--layout");
    }
    if options.transpose_memory == Some(true) {
        return refuse("--transpose-memory");
    }
    let meta = &file.metadata;
    let count = |field: &str| meta.u32(&key(field)).map(|n| n.unwrap_or_default() as usize);
    let sizes = Sizes {
        n_layers: count("block_count")?,
        n_heads: count("head_count")?,
        n_kv_heads: count("head_count_kv")?,
        // Each layer has tensors of its own, which name it.
        are_layers_stacked: false,
    };
    for (name, asked) in &options.stated {
        let field = if name == "layers_to_transform" { "layers" } else { name.as_str() };
        let has = meta.get(&key(field)).map(|v| v.to_json(None)).unwrap_or_default();
        if !statements::say_the_same(name, &has, asked, &sizes) {
            let flag = statements::flag_of(name).unwrap_or(name);
            return Err(Error::new(
                Code::ConventionContradiction,
                format!("expected {has}, as the file says, found {asked}"),
            )
            .file(path)
            .field(flag));
        }
    }
    Ok(())
}

fn read(path: &Path, file: &Gguf, base: Option<&BaseModel>) -> Result<Imported> {
    let meta = &file.metadata;
    if super::gguf_kind(meta)? != Some(Kind::Plus) {
        let found = match (meta.str("general.type")?, meta.str("adapter.type")?) {
            (Some("adapter"), Some(other)) => format!("an adapter of type {other:?}"),
            (Some(kind), _) => format!("a file of general.type {kind:?}"),
            (None, _) => "a file that states no general.type".to_owned(),
        };
        return Err(Error::new(Code::AdapterKind, format!("expected a {} adapter, found {found}", Kind::Plus)));
    }
    let architecture = keys::check_file(file)?;
    let version = required(meta.u32(&key("version"))?, "version")?;
    if version != VERSION {
        return Err(Error::new(Code::ConfigUnsupported, format!("expected version {}, found {version}", VERSION))
            .field(key("version")));
    }
    let order = keys::architecture_order(meta, &architecture, &key("query_order"))?;
    let (stated, value_length) = keys::stated(meta)?;

    let mut findings = Findings::default();
    let mut pieces = Pieces::new();
    let mut ledger = Ledger::default();
    check_quantization_version(file)?;
    for t in &file.tensors {
        let tensor = t.lazy()?;
        let slot = parse_tensor_name(&t.name);
        if slot.is_some_and(|slot| slot.part.stays_f32()) && t.dtype != DType::F32 {
            let expected = "F32, as biases and normalisers are in every GGUF file";
            findings.add(Code::AdapterShape, &t.name, expected, t.dtype);
        }
        let fate = match slot {
            Some(slot) => {
                pieces.insert(slot, canonical_axes(slot.part, tensor.clone()));
                Fate::Consumed { slots: [slot].into() }
            }
            None => {
                findings.add(
                    Code::AdapterLeftOver,
                    &t.name,
                    "only tensors of a Prefix-Tuning+ adapter",
                    "a tensor that belongs to no part of the adapter",
                );
                Fate::LeftOver
            }
        };
        ledger.entries.push(Entry { tensor: Some(tensor), fate, ..Entry::new(&t.name, t.dtype, &t.shape) });
    }
    let mut layers = assemble::layers(pieces, &mut findings);
    for (&i, layer) in &mut layers {
        if !row_order::fits(layer, order) {
            return Err(Error::new(
                Code::AdapterShape,
                format!("expected a tensor of 3 dimensions whose query axis is even, as row order {order} needs, found {:?}", layer.memory.shape()),
            )
            .field(Slot::attention(i, Part::Memory).gguf_name()));
        }
        row_order::undo(layer, order);
    }
    let mut config = {
        let open = stated.conventions.open();
        assemble::config(stated, &layers, base, &open)?
    };
    config.geometry.value_head_dim = value_length;
    // The list of this file, and what its first source stated, where that says something else.
    let n_layers = config.geometry.n_layers;
    let listed = std::mem::replace(&mut config.layers_to_transform, stated_layers(meta)?);
    assemble::check_stated_layers(listed.as_ref(), n_layers, &layers, &mut findings);
    if config.layers_to_transform != listed {
        assemble::check_stated_layers(config.layers_to_transform.as_ref(), n_layers, &layers, &mut findings);
    }
    if let Some(stated) = config.base_model_type.as_deref()
        && gguf_architecture_of(stated).is_some_and(|a| a != architecture)
    {
        let expected = format!("a model type of architecture {architecture:?}");
        findings.add(Code::AdapterMismatch, "base_model_type", expected, format!("{stated:?}"));
    }
    let adapter = Plus { config, layers }.into();
    let origin = keys::origin(path, file, "GGUF", (architecture, order), &adapter, true)?;
    Ok(Imported { adapter, ledger, findings: findings.into_vec(), notes: Vec::new(), origin })
}

/// GGUF axes (outermost first) to canonical ones: the heads of M are stored transposed.
fn canonical_axes(part: Part, t: LazyTensor) -> LazyTensor {
    let spec = PartSpec::of(part);
    // Writers drop a trailing dimension of 1: what all heads share may come without its head axis.
    let t = if t.shape().len() + 1 == spec.axes().len() { t.unsqueeze0() } else { t };
    if t.shape().len() == spec.axes().len() { spec.in_gguf(t) } else { t }
}

/// The refusal of an architecture whose row order nobody has established.
pub(crate) fn unlisted(architecture: &str) -> Error {
    let known: Vec<_> = RowOrder::known_architectures().collect();
    Error::new(
        Code::BaseArchitecture,
        format!("expected an architecture of known row order ({}), found {architecture:?}", known.join(", ")),
    )
    .field("general.architecture")
}

/// Every writer of these adapters states the version, so a file with blocks that does not is damaged.
fn check_quantization_version(file: &Gguf) -> Result<()> {
    let has_blocks = file.tensors.iter().any(|t| t.dtype.is_quantized());
    match gguf::quantization_version(&file.metadata, has_blocks)? {
        None if has_blocks => {
            let message = "expected 2 in a file with quantized tensors, found none";
            Err(Error::new(Code::ConfigUnsupported, message).field(gguf::QUANTIZATION_VERSION))
        }
        _ => Ok(()),
    }
}
