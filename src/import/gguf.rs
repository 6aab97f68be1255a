//! A GGUF adapter: metadata keys to a configuration, tensors back to canonical shapes and Hugging Face order.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::assemble::{self, Pieces};
use super::ledger::{Entry, Fate, Ledger};
use super::stated::{BASE_FINGERPRINT, Stated};
use super::{Imported, Options, Origin};
use crate::adapter::gguf_names::{self as names, key};
use crate::adapter::{Adapter, Role, RowOrder, StatedLayers};
use crate::base::{BaseModel, gguf_architecture_of};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::gguf::{self, Gguf, Metadata};
use crate::format::names::shorten;
use crate::format::{json, limits};
use crate::tensor::{DType, LazyTensor};
use crate::transform::row_order;

pub(super) fn import(path: &Path, file: &Gguf, options: &Options, base: Option<&BaseModel>) -> Result<Imported> {
    let imported = read(path, file, base).map_err(|e| e.file(path))?;
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
    for (name, asked) in &options.stated {
        let field = if name == "layers_to_transform" { "layers" } else { name.as_str() };
        let has = meta.get(&key(field)).map(|v| v.to_json(None)).unwrap_or_default();
        let equal = match (has.as_f64(), asked.as_f64()) {
            // The file keeps F32.
            (Some(a), Some(b)) => a as f32 == b as f32,
            _ => has == *asked,
        };
        if !equal {
            let flag = super::statements::flag_of(name).unwrap_or(name);
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

/// Whether a GGUF file says that it is an adapter of this kind.
pub(crate) fn is_adapter(metadata: &Metadata) -> Result<bool> {
    Ok(metadata.str("general.type")? == Some(names::GENERAL_TYPE)
        && metadata.str("adapter.type")? == Some(names::ADAPTER_TYPE))
}

fn read(path: &Path, file: &Gguf, base: Option<&BaseModel>) -> Result<Imported> {
    let meta = &file.metadata;
    if !is_adapter(meta)? {
        let found = match (meta.str("general.type")?, meta.str("adapter.type")?) {
            (Some("adapter"), Some(other)) => format!("an adapter of type {other:?}"),
            (Some(kind), _) => format!("a file of general.type {kind:?}"),
            (None, _) => "a file that states no general.type".to_owned(),
        };
        return Err(Error::new(
            Code::AdapterKind,
            format!("expected a {} adapter, found {found}", names::ADAPTER_TYPE),
        ));
    }
    bound(meta)?;
    let version = required(meta.u32(&key("version"))?, "version")?;
    if version != names::VERSION {
        return Err(Error::new(
            Code::ConfigUnsupported,
            format!("expected version {}, found {version}", names::VERSION),
        )
        .field(key("version")));
    }
    let architecture = meta.str("general.architecture")?.ok_or_else(|| missing("general.architecture"))?.to_owned();
    let order = row_order(meta, &architecture)?;
    let (stated, value_length) = stated(meta)?;
    let config_digest_text = config_digest_text(file)?;

    let mut findings = Vec::new();
    let mut pieces = Pieces::new();
    let mut ledger = Ledger::default();
    check_quantization_version(file)?;
    for t in &file.tensors {
        let tensor = t.lazy()?;
        if let Some((_, Role::FeatureBias | Role::Normalizer)) = names::parse_tensor_name(&t.name)
            && t.dtype != DType::F32
        {
            let expected = "F32, as biases and normalisers are in every GGUF file";
            findings.push(Finding::new(Code::AdapterShape, &t.name, expected, t.dtype));
        }
        let fate = match names::parse_tensor_name(&t.name) {
            Some((layer, role)) => {
                pieces.insert((layer, role), canonical_axes(role, tensor.clone()));
                Fate::Consumed { layers: vec![layer], role }
            }
            None => {
                findings.push(Finding::new(
                    Code::AdapterLeftOver,
                    &t.name,
                    "only tensors of a Prefix-Tuning+ adapter",
                    "a tensor that belongs to no part of the adapter",
                ));
                Fate::LeftOver
            }
        };
        ledger.entries.push(Entry {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            tensor: Some(tensor),
            fate,
        });
    }
    let mut layers = assemble::layers(pieces, &mut findings);
    for (&i, layer) in &mut layers {
        if !row_order::fits(layer, order) {
            return Err(Error::new(
                Code::AdapterShape,
                format!("expected a tensor of 3 dimensions whose query axis is even, as row order {order} needs, found {:?}", layer.memory.shape()),
            )
            .field(names::tensor_name(i, Role::Memory)));
        }
        row_order::undo(layer, order);
    }
    let mut config = {
        let open = stated.open_conventions();
        assemble::config(stated, &layers, base, &open)?
    };
    config.geometry.value_head_dim = value_length;
    assemble::check_stated_layers(
        config.layers_to_transform.as_ref(),
        config.geometry.n_layers,
        &layers,
        &mut findings,
    );
    config.layers_to_transform = stated_layers(meta)?;
    assemble::check_stated_layers(
        config.layers_to_transform.as_ref(),
        config.geometry.n_layers,
        &layers,
        &mut findings,
    );
    if let Some(stated) = config.base_model_type.as_deref()
        && gguf_architecture_of(stated).is_some_and(|a| a != architecture)
    {
        let expected = format!("a model type of architecture {architecture:?}");
        findings.push(Finding::new(Code::AdapterMismatch, "base_model_type", expected, format!("{stated:?}")));
    }
    let recorded_dtypes = recorded_dtypes(meta)?;
    // They loosen the limits of a verification, so they must be about this adapter.
    let is_ours = |name: &str| {
        layers.iter().any(|(&i, layer)| layer.tensors().any(|(role, _)| Adapter::canonical_name(i, role) == name))
    };
    if let Some(name) = recorded_dtypes.keys().find(|name| !is_ours(name)) {
        let message = format!("expected names of this adapter's tensors, found {:?}", shorten(name));
        return Err(Error::new(Code::ConfigField, message).field(names::SOURCE_DTYPES));
    }
    Ok(Imported {
        adapter: Adapter { config, layers },
        ledger,
        findings,
        origin: Origin {
            path: path.to_owned(),
            files: file.files.iter().map(|f| f.to_path_buf()).collect(),
            layout: "GGUF".into(),
            gguf_architecture: Some(architecture),
            row_order: order,
            recorded_dtypes,
            recorded_source_sha256: meta.str(names::SOURCE_SHA256)?.map(str::to_owned),
            config_digest_text,
        },
    })
}

/// All of the metadata becomes JSON ([`config_digest_text`]), which costs many times what it takes in the file.
fn bound(meta: &Metadata) -> Result<()> {
    let (mut len_bytes, mut n_elements) = (0, 0);
    for (key, value) in meta.iter() {
        match value {
            gguf::Value::String(text) => len_bytes += text.len(),
            gguf::Value::Array(a) => {
                len_bytes += a.len_bytes();
                n_elements += a.len();
            }
            _ => {}
        }
        if len_bytes > limits::ADAPTER_METADATA_BYTES || n_elements > limits::ADAPTER_METADATA_ELEMENTS {
            let message = format!(
                "expected at most {} bytes and {} array elements in an adapter's metadata, found more",
                limits::ADAPTER_METADATA_BYTES,
                limits::ADAPTER_METADATA_ELEMENTS
            );
            return Err(Error::new(Code::GgufLimit, message).field(key));
        }
    }
    Ok(())
}

/// GGUF axes (outermost first) to canonical ones: the heads of M are stored transposed.
fn canonical_axes(role: Role, t: LazyTensor) -> LazyTensor {
    match (role, t.shape().len()) {
        (Role::Memory, 3) => t.transpose(1, 2), // [H', D_v, F] -> [H', F, D_v]
        // Writers drop a trailing dimension of 1: one shared memory may come without its head axis.
        (Role::Memory, 2) => t.unsqueeze0().transpose(1, 2),
        (Role::FeatureWeight, 2) | (Role::FeatureBias | Role::Normalizer, 1) => t.unsqueeze0(),
        _ => t,
    }
}

fn row_order(meta: &Metadata, architecture: &str) -> Result<RowOrder> {
    let field = key("query_order");
    let by_architecture = RowOrder::of_gguf_architecture(architecture).ok_or_else(|| unlisted(architecture))?;
    let text = meta.str(&field)?.ok_or_else(|| missing(&field))?;
    let order = RowOrder::parse(text).ok_or_else(|| {
        Error::new(Code::ConfigUnsupported, format!("expected norm or neox, found {text:?}")).field(&field)
    })?;
    if order != by_architecture {
        // A runtime keeps q in its architecture's order; a file in the other order would give wrong numbers there.
        return Err(Error::new(
            Code::AdapterMismatch,
            format!("expected {by_architecture}, the row order of architecture {architecture:?}, found {order}"),
        )
        .field(&field));
    }
    Ok(order)
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

/// The configuration as its keys state it, and the value length, which `adapter_config.json` has no key for.
fn stated(meta: &Metadata) -> Result<(Stated, usize)> {
    let size = |field: &str| required(meta.u32(&key(field))?, field).map(|n| n as usize);
    let text = |field: &str| required(meta.str(&key(field))?, field);
    let scale = |field: &str| required(meta.f32(&key(field))?, field);
    let mut source = source_config(meta)?;
    // A scale that F32 cannot hold exactly is also kept as the source wrote it; the two must agree.
    let mut exact = |field: &str, stored: f32| match source.shift_remove(field) {
        // The shortest decimal that is this F32: 0.1, not 0.10000000149011612.
        None if stored.is_finite() => Ok(stored.to_string().parse::<f64>().map_or(Value::Null, Value::from)),
        None => {
            Err(Error::new(Code::ConfigField, format!("expected a finite number, found {stored}")).field(key(field)))
        }
        Some(v) if v.as_f64().is_some_and(|x| x as f32 == stored) => Ok(v),
        Some(v) => Err(Error::new(Code::ConfigField, format!("expected {stored}, as {} says, found {v}", key(field)))
            .field(format!("{}: {field}", names::SOURCE_CONFIG))),
    };
    let query_scale = exact("query_scale", scale("query_scale")?)?;
    let memory_scale = exact("memory_scale", scale("memory_scale")?)?;
    source.shift_remove("layers_to_transform");
    let mut config = source;
    for (name, value) in [
        ("feature_map", Value::from(text("feature_map")?)),
        ("query_tap", text("query_tap")?.into()),
        ("query_scale", query_scale),
        ("memory_scale", memory_scale),
        ("memory_sharing", text("memory_sharing")?.into()),
        ("num_layers", size("block_count")?.into()),
        ("num_attention_heads", size("head_count")?.into()),
        ("num_key_value_heads", size("head_count_kv")?.into()),
        ("head_dim", size("key_length")?.into()),
        ("num_features", size("feature_length")?.into()),
        ("layers_to_transform", layer_list(meta)?.into()),
        (BASE_FINGERPRINT, meta.str(names::BASE_FINGERPRINT)?.map_or(Value::Null, Value::from)),
    ] {
        if value.is_null() {
            continue;
        }
        if config.insert(name.to_owned(), value).is_some() {
            return Err(Error::new(
                Code::ConfigField,
                format!("expected only what has no key of its own, found {name:?}"),
            )
            .field(names::SOURCE_CONFIG));
        }
    }
    let stated = Stated::from_json(Value::Object(config))?;
    Ok((stated, size("value_length")?))
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

fn layer_list(meta: &Metadata) -> Result<Vec<u32>> {
    required(meta.u32_array(&key("layers"))?, "layers")
}

/// `layers_to_transform` as the first source stated it, where that is recorded; else as the list implies.
fn stated_layers(meta: &Metadata) -> Result<Option<StatedLayers>> {
    match source_config(meta)?.shift_remove("layers_to_transform") {
        None => Ok(None),
        Some(v) => {
            let only: serde_json::Map<_, _> = [("layers_to_transform".to_owned(), v)].into_iter().collect();
            Ok(Stated::from_json(Value::Object(only))?.layers_to_transform)
        }
    }
}

fn source_config(meta: &Metadata) -> Result<serde_json::Map<String, Value>> {
    let Some(text) = meta.str(names::SOURCE_CONFIG)? else { return Ok(Default::default()) };
    match json::parse(text.as_bytes()).map_err(|e| e.field(names::SOURCE_CONFIG))? {
        Value::Object(map) => Ok(map),
        other => {
            Err(Error::new(Code::ConfigField, format!("expected a JSON object, found {other}"))
                .field(names::SOURCE_CONFIG))
        }
    }
}

fn recorded_dtypes(meta: &Metadata) -> Result<BTreeMap<String, DType>> {
    let Some(text) = meta.str(names::SOURCE_DTYPES)? else { return Ok(BTreeMap::new()) };
    let wrong = |found: String| {
        Error::new(Code::ConfigField, format!("expected a JSON object of type names, found {found}"))
            .field(names::SOURCE_DTYPES)
    };
    let Value::Object(map) = json::parse(text.as_bytes()).map_err(|e| e.field(names::SOURCE_DTYPES))? else {
        return Err(wrong(text.chars().take(40).collect()));
    };
    map.into_iter()
        .map(|(name, v)| match v.as_str().and_then(DType::from_safetensors_name).filter(|d| d.is_float()) {
            Some(dtype) => Ok((name, dtype)),
            None => Err(wrong(format!("{name}: {v}"))),
        })
        .collect()
}

/// The metadata that defines the adapter, as text for the source digest.
fn config_digest_text(file: &Gguf) -> Result<String> {
    let mut map = serde_json::Map::new();
    for (k, v) in file.metadata.iter() {
        map.insert(k.to_owned(), v.to_json(None));
    }
    Ok(crate::digest::sorted_compact_json(&Value::Object(map)))
}

fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| missing(&key(field)))
}

fn missing(key: &str) -> Error {
    Error::new(Code::GgufKey, "expected this key, found none").field(key)
}
