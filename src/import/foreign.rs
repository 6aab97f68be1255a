//! Metadata of a GGUF adapter that is somebody else's (`general.license`, `general.author`, ...): kept with its types, on
//! the way through safetensors under one key of `adapter_config.json`.

use serde_json::{Map, Value as Json};

use crate::adapter::plus::FIELDS;
use crate::adapter::plus::gguf_names::key as own_key;
use crate::adapter::{gguf_names as names, lora, prefix};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Metadata, Value};
use crate::format::names::{check_name, shorten};

/// Key of `adapter_config.json`: each GGUF key with its type and value, in the file's order.
pub const KEY: &str = "ptplus_gguf_metadata";

pub(crate) const NAME: &str = "general.name";
pub(crate) const BASE_MODEL: &str = "general.base_model.";
pub(crate) const BASE_MODEL_COUNT: &str = "general.base_model.count";

/// Largest number of base models accepted. A merge has some ten.
const MAX_BASE_MODELS: u32 = 4096;

/// Keys that say what the file is: written anew from the adapter, so never carried.
const OWN: [&str; 19] = [
    "general.architecture",
    "general.type",
    "general.alignment",
    gguf::FILE_TYPE,
    gguf::QUANTIZATION_VERSION,
    "adapter.type",
    "split.no",
    "split.count",
    "split.tensors.count",
    names::TOOL_VERSION,
    names::SOURCE_SHA256,
    names::BASE_FINGERPRINT,
    names::COMMAND,
    names::SOURCE_CONFIG,
    names::SOURCE_DTYPES,
    lora::gguf_keys::ALPHA,
    lora::gguf_keys::HEAD_DIM,
    lora::gguf_keys::FOLDED,
    lora::gguf_keys::KEY_FACTOR,
];

fn is_own(key: &str) -> bool {
    let fields = FIELDS.iter().map(|field| field.gguf).chain(["version", "layers", "query_order"]);
    OWN.contains(&key)
        || fields.into_iter().any(|field| own_key(field) == key)
        || prefix::gguf_keys::FIELDS.into_iter().any(|field| prefix::gguf_keys::key(field) == key)
}

/// What of a file's metadata is to be carried, for [`KEY`]; `None` if nothing. `config` is what the file records of its
/// configuration: a name that follows from it is not carried but made again.
pub(crate) fn carried(meta: &Metadata, config: &Map<String, Json>) -> Option<Json> {
    let made = about_base(config);
    let carried: Map<String, Json> = meta
        .iter()
        .filter(|(key, value)| !is_own(key) && made.get(key) != Some(*value))
        .map(|(key, value)| (key.to_owned(), value.to_typed_json()))
        .collect();
    (!carried.is_empty()).then(|| Json::Object(carried))
}

/// The metadata that `config` carries under [`KEY`].
///
/// # Errors
///
/// [`Code::ConfigField`], [`Code::NameInvalid`] for what is no metadata, or not somebody else's.
pub(crate) fn of_config(config: &Map<String, Json>) -> Result<Metadata> {
    let mut out = Metadata::new();
    let wrong =
        |name: &str, message: String| Err(Error::new(Code::ConfigField, message).field(format!("{KEY}: {name}")));
    let entries = match config.get(KEY) {
        None => return Ok(out),
        Some(Json::Object(entries)) => entries,
        Some(other) => {
            let message = format!("expected an object, found {}", shorten(&other.to_string()));
            return Err(Error::new(Code::ConfigField, message).field(KEY));
        }
    };
    for (name, entry) in entries {
        check_name(name).map_err(|e| e.field(KEY))?;
        if is_own(name) {
            return wrong(name, "expected only keys that ptplus does not write itself".into());
        }
        match Value::from_typed_json(entry) {
            Some(value) => out.insert(name, value),
            None => {
                let message = format!("expected a GGUF type and a value of it, found {}", shorten(&entry.to_string()));
                return wrong(name, message);
            }
        }
    }
    // As they will stand in a GGUF file.
    let mut whole = about_base(config);
    for (name, value) in out.iter() {
        whole.insert(name, value.clone());
    }
    check_about_base(&whole).map_err(|e| {
        let place = format!("{KEY}: {}", e.field_name().unwrap_or_default());
        Error::new(Code::ConfigField, e.message()).field(place)
    })?;
    Ok(out)
}

/// The rules for name and base models: nothing is computed from them, but a wrong type says that they are damaged.
///
/// # Errors
///
/// [`Code::GgufKey`], [`Code::ConfigField`], with the key.
pub(crate) fn check_about_base(meta: &Metadata) -> Result<()> {
    meta.str(NAME)?;
    let count_key = BASE_MODEL_COUNT;
    let count = meta.u32(count_key)?;
    if let Some(n) = count.filter(|n| *n > MAX_BASE_MODELS) {
        let message = format!("expected at most {MAX_BASE_MODELS}, found {n}");
        return Err(Error::new(Code::ConfigField, message).field(count_key));
    }
    for (key, _) in meta.iter() {
        let Some((number, field)) = key.strip_prefix(BASE_MODEL).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        if ["name", "organization", "version", "repo_url"].contains(&field) {
            meta.str(key)?;
        }
        if let (Ok(i), Some(n)) = (number.parse::<u32>(), count)
            && i >= n
        {
            return Err(
                Error::new(Code::ConfigField, format!("expected only base models below {count_key} = {n}")).field(key)
            );
        }
    }
    Ok(())
}

/// `general.name` and the `general.base_model` keys as they follow from a configuration.
pub(crate) fn about_base(config: &Map<String, Json>) -> Metadata {
    let base = BaseName::of(config);
    let mut m = Metadata::new();
    m.insert(NAME, base.adapter_name());
    let Some(name) = &base.name else { return m };
    m.insert(BASE_MODEL_COUNT, Value::U32(1));
    m.insert(format!("{BASE_MODEL}0.name"), name.as_str());
    if let Some(organization) = &base.organization {
        m.insert(format!("{BASE_MODEL}0.organization"), organization.as_str());
        m.insert(format!("{BASE_MODEL}0.repo_url"), format!("https://huggingface.co/{organization}/{name}"));
    }
    if let Some(revision) = config.get("revision").and_then(Json::as_str) {
        m.insert(format!("{BASE_MODEL}0.version"), revision);
    }
    m
}

/// What `base_model_name_or_path` says about the base's name. It is data: shown, never opened, never fetched.
struct BaseName {
    method: &'static str,
    organization: Option<String>,
    name: Option<String>,
}

impl BaseName {
    fn of(config: &Map<String, Json>) -> BaseName {
        let kind = config.get("peft_type").and_then(Json::as_str);
        let method = match kind {
            Some(lora::PEFT_TYPE) => "LoRA",
            Some(kind) => prefix::Method::parse(kind).map_or("Prefix-Tuning+", prefix::Method::title),
            None => "Prefix-Tuning+",
        };
        let text = config.get("base_model_name_or_path").and_then(Json::as_str).unwrap_or_default();
        // `organization/name` is a hub name. Anything else is a path of the trainer's machine: keep its last part.
        let is_part = |s: &str| {
            !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match text.split_once('/') {
            Some((organization, name)) if is_part(organization) && is_part(name) => {
                BaseName { method, organization: Some(organization.into()), name: Some(name.into()) }
            }
            _ => {
                let last = text.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
                BaseName {
                    method,
                    organization: None,
                    name: (!last.is_empty() && !last.contains('\0')).then(|| last.to_owned()),
                }
            }
        }
    }

    fn adapter_name(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} {}", self.method),
            None => format!("{} adapter", self.method),
        }
    }
}
