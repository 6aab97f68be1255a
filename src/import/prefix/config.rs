//! `adapter_config.json` of virtual tokens: how they were trained, and the sizes by which PEFT takes its one tensor apart.

use serde_json::{Map, Value};

use crate::adapter::prefix::Method;
use crate::base::describe;
use crate::error::{Code, Error, Result};

/// Kinds that PEFT keeps in the same tensor and that are not read, with what sets them apart.
const UNSUPPORTED: [(&str, &str); 3] = [
    (
        "MULTITASK_PROMPT_TUNING",
        "its embeddings are multiplied with factors of a task, which is chosen anew for every sequence",
    ),
    ("CPT", "its embeddings are parts of examples whose tokens count in the attention mask"),
    ("CARTRIDGE", "its keys and values are made from a document, and the first of them never change"),
];

/// What a configuration says.
#[derive(Debug)]
pub(super) struct Stated {
    pub method: Method,
    pub n_tokens: Option<usize>,
    pub n_layers: Option<usize>,
    /// Heads of the keys and values.
    pub n_heads: Option<usize>,
    /// Elements of a key of all heads, or of an embedding.
    pub token_dim: Option<usize>,
    /// Whether a network makes the embeddings while they are trained.
    pub is_projected: bool,
}

/// Whether the kind is one whose tensor is `prompt_embeddings`, read or not.
pub(super) fn is_method(peft_type: &str) -> bool {
    Method::parse(peft_type).is_some() || UNSUPPORTED.iter().any(|(name, _)| *name == peft_type)
}

impl Stated {
    /// # Errors
    ///
    /// [`Code::ConfigField`] for a value of the wrong type; [`Code::ConfigUnsupported`] for what is not computed here;
    /// [`Code::ConventionOpen`] where `peft_type` is not stated.
    pub fn of(config: &Map<String, Value>) -> Result<Stated> {
        let method = method(config)?;
        for (key, fits) in [
            ("task_type", Value::is_string as fn(&Value) -> bool),
            ("base_model_name_or_path", Value::is_string),
            ("base_model_type", Value::is_string),
            ("revision", Value::is_string),
            ("inference_mode", Value::is_boolean),
            ("prefix_projection", Value::is_boolean),
        ] {
            if let Some(v) = config.get(key).filter(|v| !v.is_null() && !fits(v)) {
                let message = format!("expected another type of value, found {}", describe(v));
                return Err(Error::new(Code::ConfigField, message).field(key));
            }
        }
        let unsupported = |key: &str, expected: &str, found: String| {
            Err(Error::new(Code::ConfigUnsupported, format!("expected {expected}, found {found}")).field(key))
        };
        if let Some(v) = config.get("task_type").filter(|v| *v == "SEQ_2_SEQ_LM") {
            return unsupported(
                "task_type",
                "a task of decoders, since bases of encoder and decoder are not read",
                describe(v),
            );
        }
        if let Some(n) = size(config, "num_transformer_submodules")?.filter(|n| *n != 1) {
            return unsupported(
                "num_transformer_submodules",
                "1, since bases of encoder and decoder are not read",
                n.to_string(),
            );
        }
        if let Some(v) =
            config.get("modules_to_save").filter(|v| !v.is_null() && v.as_array().is_none_or(|l| !l.is_empty()))
        {
            return unsupported(
                "modules_to_save",
                "none: weights trained beside virtual tokens are not read",
                describe(v),
            );
        }
        Ok(Stated {
            method,
            n_tokens: size(config, "num_virtual_tokens")?,
            n_layers: size(config, "num_layers")?,
            n_heads: size(config, "num_attention_heads")?,
            token_dim: size(config, "token_dim")?,
            is_projected: match method {
                Method::PrefixTuning => config.get("prefix_projection") == Some(&Value::Bool(true)),
                Method::PTuning => true,
                Method::PromptTuning => false,
            },
        })
    }
}

fn method(config: &Map<String, Value>) -> Result<Method> {
    let known = || Method::NAMES.join(", ");
    let text = match config.get("peft_type") {
        None | Some(Value::Null) => {
            let message = format!("expected one of {}, found none: the tensor alone does not say what it is", known());
            return Err(Error::new(Code::ConventionOpen, message).field("peft_type"));
        }
        Some(Value::String(text)) => text,
        Some(other) => {
            let message = format!("expected one of {}, found {}", known(), describe(other));
            return Err(Error::new(Code::ConfigField, message).field("peft_type"));
        }
    };
    Method::parse(text).ok_or_else(|| {
        let why =
            UNSUPPORTED.iter().find(|(name, _)| name == text).map_or_else(String::new, |(_, why)| format!(": {why}"));
        let message = format!("expected one of {}, found {text:?}{why}", known());
        Error::new(Code::ConfigUnsupported, message).field("peft_type")
    })
}

fn size(config: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1 << 32).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let message = format!("expected a size of at least 1, found {}", describe(v));
                Err(Error::new(Code::ConfigField, message).field(key))
            }
        },
    }
}
