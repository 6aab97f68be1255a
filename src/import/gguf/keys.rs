//! The metadata of a GGUF adapter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

use crate::adapter::field::Get;
use crate::adapter::plus::gguf_names::key;
use crate::adapter::plus::{FIELDS, StatedLayers};
use crate::adapter::{Adapter, Slot, gguf_names as names};
use crate::base::RowOrder;
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Gguf, Metadata};
use crate::format::names::shorten;
use crate::format::{json, limits};
use crate::import::stated::{BASE_FINGERPRINT, Stated, TRANSPOSE_MEMORY};
use crate::import::{Origin, foreign};
use crate::tensor::DType;

/// Keys about the file: nothing is computed from them, but a wrong type says that they are damaged.
///
/// # Errors
///
/// [`Code::GgufKey`], [`Code::ConfigField`].
pub(in crate::import) fn check_general(meta: &Metadata) -> Result<()> {
    for key in [names::TOOL_VERSION, names::COMMAND] {
        meta.str(key)?;
    }
    meta.u32(gguf::FILE_TYPE)?;
    if let Some(digest) = meta.str(names::SOURCE_SHA256)?
        && !(digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    {
        let message = format!("expected 64 lower-case hex digits, found {:?}", shorten(digest));
        return Err(Error::new(Code::ConfigField, message).field(names::SOURCE_SHA256));
    }
    foreign::check_about_base(meta)
}

/// The limits of an adapter's file, its general keys, and the architecture that it states.
///
/// # Errors
///
/// [`Code::GgufLimit`], [`Code::GgufKey`], [`Code::ConfigField`].
pub(in crate::import) fn check_file(file: &Gguf) -> Result<String> {
    bound(&file.metadata)?;
    if file.tensors.len() > limits::ADAPTER_TENSORS {
        let message =
            format!("expected at most {} tensors in an adapter, found {}", limits::ADAPTER_TENSORS, file.tensors.len());
        return Err(Error::new(Code::GgufLimit, message));
    }
    check_general(&file.metadata)?;
    Ok(file.metadata.str("general.architecture")?.ok_or_else(|| missing("general.architecture"))?.to_owned())
}

/// The row order that the key `field` states, which must be that of the architecture: a runtime keeps q in that, and a file in the
/// other order would give wrong numbers there.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] for an architecture that is not listed; [`Code::GgufKey`], [`Code::ConfigUnsupported`],
/// [`Code::AdapterMismatch`].
pub(in crate::import) fn architecture_order(meta: &Metadata, architecture: &str, field: &str) -> Result<RowOrder> {
    let by_architecture = RowOrder::of_gguf_architecture(architecture).ok_or_else(|| super::unlisted(architecture))?;
    let text = meta.str(field)?.ok_or_else(|| missing(field))?;
    let order = RowOrder::parse(text).ok_or_else(|| {
        Error::new(Code::ConfigUnsupported, format!("expected norm or neox, found {text:?}")).field(field)
    })?;
    if order != by_architecture {
        let message =
            format!("expected {by_architecture}, the row order of architecture {architecture:?}, found {order}");
        return Err(Error::new(Code::AdapterMismatch, message).field(field));
    }
    Ok(order)
}

/// Where an adapter came from, with what its file records of an earlier source.
///
/// # Errors
///
/// [`Code::ConfigField`] for types that are recorded of other tensors than this adapter's, where it `is_whole`: they loosen the limits
/// of a verification.
pub(in crate::import) fn origin(
    path: &Path,
    file: &Gguf,
    layout: &str,
    (architecture, row_order): (String, RowOrder),
    adapter: &Adapter,
    is_whole: bool,
) -> Result<Origin> {
    let recorded_dtypes = recorded_dtypes(&file.metadata)?;
    let is_ours = |name: &str| Slot::parse_canonical_name(name).is_some_and(|slot| adapter.get(slot).is_some());
    if let Some(name) = recorded_dtypes.keys().find(|name| is_whole && !is_ours(name)) {
        let message = format!("expected names of this adapter's tensors, found {:?}", shorten(name));
        return Err(Error::new(Code::ConfigField, message).field(names::SOURCE_DTYPES));
    }
    Ok(Origin {
        path: path.to_owned(),
        files: file.files.iter().map(|f| f.to_path_buf()).collect(),
        layout: layout.into(),
        gguf_architecture: Some(architecture),
        row_order,
        recorded_dtypes,
        recorded_source_sha256: file.metadata.str(names::SOURCE_SHA256)?.map(str::to_owned),
        config_digest_text: config_digest_text(file),
    })
}

/// Bytes of a string in JSON, where a control character takes six.
fn len_as_json(text: &str) -> usize {
    let cost = |b: u8| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(cost).sum::<usize>() + 2
}

/// All of the metadata becomes JSON ([`config_digest_text`]), which costs many times what it takes in the file.
pub(in crate::import) fn bound(meta: &Metadata) -> Result<()> {
    let (mut len_bytes, mut n_elements) = (0, 0);
    for (key, value) in meta.iter() {
        // An entry costs as much as eight elements, whatever it holds.
        n_elements += 8;
        len_bytes += key.len();
        match value {
            gguf::Value::String(text) => len_bytes += len_as_json(text),
            gguf::Value::Array(a) => {
                len_bytes += a.strs().map_or(a.len_bytes(), |strs| strs.map(len_as_json).sum());
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

/// The configuration as its keys state it, and the value length, which `adapter_config.json` has no key for.
pub(super) fn stated(meta: &Metadata) -> Result<(Stated, usize)> {
    let mut source = source_config(meta)?;
    source.shift_remove("layers_to_transform");
    // A folder's own reader would heed it: true there of the checkpoint that this adapter came from, not of this file.
    if let Some(v) = source.get(TRANSPOSE_MEMORY).filter(|v| !matches!(v, Value::Null | Value::Bool(false))) {
        let message =
            format!("expected nothing, since a GGUF adapter has one order of axes, found {}", shorten(&v.to_string()));
        return Err(
            Error::new(Code::ConfigField, message).field(format!("{}: {TRANSPOSE_MEMORY}", names::SOURCE_CONFIG))
        );
    }
    if source.contains_key(foreign::KEY) {
        let message = format!("expected the keys themselves in a GGUF file, found {:?}", foreign::KEY);
        return Err(Error::new(Code::ConfigField, message).field(names::SOURCE_CONFIG));
    }
    let mut config = Map::new();
    for field in FIELDS.iter().filter(|field| field.is_in_config) {
        let key = key(field.gguf);
        let value = match field.get {
            Get::Name(_) => meta.str(&key)?.map(Value::from),
            Get::Scale(_) => meta.f32(&key)?.map(|x| exact_scale(field.key, x, &mut source)).transpose()?,
            Get::Count(_) => meta.u32(&key)?.map(Value::from),
        };
        config.insert(field.key.to_owned(), value.ok_or_else(|| missing(&key))?);
    }
    config.insert("layers_to_transform".to_owned(), layer_list(meta)?.into());
    config.extend(meta.str(names::BASE_FINGERPRINT)?.map(|text| (BASE_FINGERPRINT.to_owned(), text.into())));
    if let Some(name) = config.keys().find(|name| source.contains_key(*name)) {
        let message = format!("expected only what has no key of its own, found {name:?}");
        return Err(Error::new(Code::ConfigField, message).field(names::SOURCE_CONFIG));
    }
    // What is carried along keeps its order, in front.
    source.extend(config);
    let mut config = source;
    if let Some(carried) = foreign::carried(meta, &config) {
        config.insert(foreign::KEY.to_owned(), carried);
    }
    let stated = Stated::from_json(Value::Object(config))?;
    let value_length = required(meta.u32(&key("value_length"))?, "value_length")?;
    Ok((stated, value_length as usize))
}

/// A scale. One that F32 cannot hold exactly is also kept as the source wrote it; the two must agree.
fn exact_scale(field: &str, stored: f32, source: &mut Map<String, Value>) -> Result<Value> {
    match source.shift_remove(field) {
        // The shortest decimal that is this F32: 0.1, not 0.10000000149011612.
        None if stored.is_finite() => Ok(stored.to_string().parse::<f64>().map_or(Value::Null, Value::from)),
        None => {
            Err(Error::new(Code::ConfigField, format!("expected a finite number, found {stored}")).field(key(field)))
        }
        Some(v) if v.as_f64().is_some_and(|x| x as f32 == stored) => Ok(v),
        Some(v) => Err(Error::new(Code::ConfigField, format!("expected {stored}, as {} says, found {v}", key(field)))
            .field(format!("{}: {field}", names::SOURCE_CONFIG))),
    }
}

fn layer_list(meta: &Metadata) -> Result<Vec<u32>> {
    required(meta.u32_array(&key("layers"))?, "layers")
}

/// `layers_to_transform` as the first source stated it, where that is recorded; else as the list implies.
pub(super) fn stated_layers(meta: &Metadata) -> Result<Option<StatedLayers>> {
    match source_config(meta)?.shift_remove("layers_to_transform") {
        None => Ok(None),
        Some(v) => {
            let only: serde_json::Map<_, _> = [("layers_to_transform".to_owned(), v)].into_iter().collect();
            Ok(Stated::from_json(Value::Object(only))?.layers_to_transform)
        }
    }
}

pub(in crate::import) fn source_config(meta: &Metadata) -> Result<serde_json::Map<String, Value>> {
    let Some(text) = meta.str(names::SOURCE_CONFIG)? else { return Ok(Default::default()) };
    match json::parse_config(text.as_bytes()).map_err(|e| e.field(names::SOURCE_CONFIG))? {
        Value::Object(map) => Ok(map),
        other => {
            Err(Error::new(Code::ConfigField, format!("expected a JSON object, found {other}"))
                .field(names::SOURCE_CONFIG))
        }
    }
}

/// `adapter_config.json` of an adapter of PEFT's own: what the file records of the first source's, and what has a key of its own.
///
/// # Errors
///
/// [`Code::GgufKey`], [`Code::ConfigField`].
pub(in crate::import) fn peft_config(
    meta: &Metadata,
    peft_type: &str,
    own: Option<(&str, Value)>,
) -> Result<Map<String, Value>> {
    let mut config = source_config(meta)?;
    let fingerprint = meta.str(names::BASE_FINGERPRINT)?.map(|text| (BASE_FINGERPRINT, text.into()));
    for (key, value) in [("peft_type", peft_type.into())].into_iter().chain(own).chain(fingerprint) {
        config.insert(key.into(), value);
    }
    if let Some(carried) = foreign::carried(meta, &config) {
        config.insert(foreign::KEY.to_owned(), carried);
    }
    Ok(config)
}

pub(in crate::import) fn recorded_dtypes(meta: &Metadata) -> Result<BTreeMap<String, DType>> {
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
fn config_digest_text(file: &Gguf) -> String {
    let mut entries: Vec<_> = file.metadata.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    // One value at a time: as JSON an array costs many times what it takes in the file.
    let mut text = String::from("{");
    for (i, (key, value)) in entries.into_iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(text, "{comma}{}:{}", Value::from(key), value.to_json(None)).expect("a String takes everything");
    }
    text.push('}');
    text
}

pub(super) fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| missing(&key(field)))
}

pub(in crate::import) fn missing(key: &str) -> Error {
    Error::new(Code::GgufKey, "expected this key, found none").field(key)
}
