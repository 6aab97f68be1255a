//! `adapter_config.json` of a LoRA: which of PEFT's options change what is computed.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::adapter::lora::{Rules, module_name};
use crate::base::{BaseModel, Weight, describe};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::names::shorten;

/// Options that change what is computed in a way that is not computed here, and what they do. Off is null, false or empty.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("alora_invocation_tokens", "an activated LoRA is added only after its invocation tokens"),
    ("arrow_config", "Arrow mixes adapters anew for every token"),
    ("kasa_config", "KaSA changes the base's weights"),
    ("layer_replication", "layers of the base are used several times, each with additions of its own"),
    ("megatron_config", "the layers are Megatron's"),
    ("monteclora_config", "MonteCLoRA samples its additions"),
    ("target_parameters", "it adds to parameters that are no linear layer's, such as stacked experts"),
    ("trainable_token_indices", "rows of the embedding were trained by themselves"),
    ("use_bdlora", "the factors are block-diagonal"),
    ("use_qalora", "QA-LoRA averages groups of inputs"),
    ("velora_config", "VeLoRA projects its inputs"),
];

/// Ways to begin training that take what they begin with away from the base's weights, so that the adapter belongs to another
/// base than the one that it names. PEFT writes `true` here when it saves the converted form. Beginnings of names.
const CHANGE_THE_BASE: [&str; 7] = ["pissa", "olora", "loftq", "corda", "eva", "lora_ga", "mica"];
/// Ways that leave the base as it is.
const KEEP_THE_BASE: [&str; 2] = ["gaussian", "orthogonal"];

/// What a configuration says beside ranks and scales.
#[derive(Debug)]
pub(super) struct Stated {
    pub rules: Rules,
    pub use_dora: bool,
    pub lora_bias: bool,
    pub modules_to_save: Vec<String>,
    pub layers: Option<Vec<usize>>,
    targets: Targets,
    excluded: Targets,
}

/// Names of modules, as PEFT matches them.
#[derive(Debug)]
enum Targets {
    /// Ends of names.
    Ends(Vec<String>),
    /// The whole name.
    Pattern(Regex),
    /// Every linear layer but the head.
    AllLinear,
    /// Nothing is said.
    Unstated,
}

impl Targets {
    fn of(config: &Map<String, Value>, key: &str) -> Result<Targets> {
        match config.get(key) {
            None | Some(Value::Null) => Ok(Targets::Unstated),
            Some(Value::String(text)) if text == "all-linear" => Ok(Targets::AllLinear),
            Some(Value::String(text)) => {
                match RegexBuilder::new(&format!("^(?:{text})$")).size_limit(1 << 20).build() {
                    Ok(pattern) => Ok(Targets::Pattern(pattern)),
                    Err(e) => {
                        let message =
                            format!("expected a regular expression without look-around or back-references: {e}");
                        Err(Error::new(Code::ConfigUnsupported, message).field(key))
                    }
                }
            }
            Some(_) => strings(config, key).map(Targets::Ends),
        }
    }

    /// Whether the module of `weight` is one of them; `None` where nothing is said.
    fn has(&self, weight: Weight) -> Option<bool> {
        let name = module_name(weight);
        match self {
            Targets::Ends(ends) => Some(ends.iter().any(|end| is_end(&name, end))),
            Targets::Pattern(pattern) => Some(pattern.is_match(&name)),
            Targets::AllLinear => Some(matches!(weight, Weight::Block(..))),
            Targets::Unstated => None,
        }
    }
}

/// Whether `end` is the name or its last words.
fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Stated {
    /// # Errors
    ///
    /// [`Code::ConfigField`] for a value of the wrong type; [`Code::ConfigUnsupported`] for a pattern that is none here.
    pub fn of(config: &Map<String, Value>) -> Result<Stated> {
        initialisation(config)?;
        bias(config)?;
        for (key, fits) in [
            ("task_type", Value::is_string as fn(&Value) -> bool),
            ("base_model_name_or_path", Value::is_string),
            ("revision", Value::is_string),
            ("inference_mode", Value::is_boolean),
            ("fan_in_fan_out", Value::is_boolean),
        ] {
            if let Some(v) = config.get(key).filter(|v| !v.is_null() && !fits(v)) {
                let message = format!("expected another type of value, found {}", describe(v));
                return Err(Error::new(Code::ConfigField, message).field(key));
            }
        }
        Ok(Stated {
            rules: Rules::of(config)?,
            use_dora: flag(config, "use_dora")?,
            lora_bias: flag(config, "lora_bias")?,
            modules_to_save: strings(config, "modules_to_save")?,
            layers: layers(config)?,
            targets: Targets::of(config, "target_modules")?,
            excluded: Targets::of(config, "exclude_modules")?,
        })
    }

    /// The weights of `base` that PEFT would add to; `None` where the configuration does not say.
    pub fn targets(&self, base: &BaseModel) -> Option<Vec<Weight>> {
        let is_target = |w: &Weight| {
            let is_chosen = match *w {
                Weight::Block(i, _) => self.layers.as_ref().is_none_or(|layers| layers.contains(&i)),
                _ => self.layers.is_none(),
            };
            let is_saved = self.is_saved(*w);
            Some(self.targets.has(*w)? && is_chosen && !is_saved && self.excluded.has(*w) != Some(true))
        };
        let linear = base.weights().filter(|w| w.is_linear());
        linear
            .map(|w| Some((w, is_target(&w)?)))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.into_iter().filter(|(_, is_target)| *is_target).map(|(w, _)| w).collect())
    }

    /// Whether the configuration says that the module of `weight` was trained as a whole.
    pub fn is_saved(&self, weight: Weight) -> bool {
        let name = module_name(weight);
        let module = name.strip_suffix(".bias").unwrap_or(&name);
        self.modules_to_save.iter().any(|m| is_end(module, m) || module.contains(&format!("{m}.")))
    }
}

/// Whether an option is not in use.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// The options that change what is computed in a way that is not computed here.
pub(super) fn unsupported(config: &Map<String, Value>) -> Vec<Finding> {
    let is_on = |(key, what): (&str, &str)| {
        let value = config.get(key).filter(|v| !is_off(v))?;
        let expected = format!("null, since {what}");
        Some(Finding::new(Code::ConfigUnsupported, key, expected, describe(value)))
    };
    let mut out: Vec<Finding> = UNSUPPORTED.into_iter().filter_map(is_on).collect();
    if let Some(text) = config.get(INITIALISATION).and_then(Value::as_str) {
        let name = text.to_ascii_lowercase();
        let why = match CHANGE_THE_BASE.iter().any(|known| name.starts_with(known)) {
            true => "such an adapter was trained on a base whose weights it had changed",
            false => "what an unknown way to begin training does to the base is not known",
        };
        if !KEEP_THE_BASE.contains(&name.as_str()) {
            let expected = format!(
                "true, since {why} (save_pretrained with path_initial_model_for_weight_conversion writes the form that fits the \
                 base itself)"
            );
            out.push(Finding::new(Code::ConfigUnsupported, INITIALISATION, expected, format!("{:?}", shorten(text))));
        }
    }
    out
}

const INITIALISATION: &str = "init_lora_weights";

fn initialisation(config: &Map<String, Value>) -> Result<()> {
    match config.get(INITIALISATION) {
        None | Some(Value::Null | Value::Bool(_) | Value::String(_)) => Ok(()),
        Some(other) => {
            let message = format!("expected true, false or a name, found {}", describe(other));
            Err(Error::new(Code::ConfigField, message).field(INITIALISATION))
        }
    }
}

fn bias(config: &Map<String, Value>) -> Result<()> {
    match config.get("bias") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) if matches!(text.as_str(), "none" | "all" | "lora_only") => Ok(()),
        Some(other) => {
            let message = format!("expected none, all or lora_only, found {}", describe(other));
            Err(Error::new(Code::ConfigField, message).field("bias"))
        }
    }
}

fn flag(config: &Map<String, Value>, key: &str) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => {
            let message = format!("expected true or false, found {}", describe(other));
            Err(Error::new(Code::ConfigField, message).field(key))
        }
    }
}

fn strings(config: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
    let wrong = |v: &Value| {
        let message = format!("expected a list of names, found {}", describe(v));
        Error::new(Code::ConfigField, message).field(key)
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(v @ Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(v))).collect()
        }
        Some(other) => Err(wrong(other)),
    }
}

/// `layers_to_transform`: an index or a list of them; an empty list is none, as PEFT has it.
fn layers(config: &Map<String, Value>) -> Result<Option<Vec<usize>>> {
    const KEY: &str = "layers_to_transform";
    let index = |v: &Value| {
        v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
            let message = format!("expected layer numbers, found {}", describe(v));
            Error::new(Code::ConfigField, message).field(KEY)
        })
    };
    match config.get(KEY) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(Value::Array(items)) => items.iter().map(index).collect::<Result<Vec<_>>>().map(Some),
        Some(one) => Ok(Some(vec![index(one)?])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockWeight;
    use serde_json::json;

    fn of(config: Value) -> Result<Stated> {
        Stated::of(config.as_object().unwrap())
    }

    #[test]
    fn options_that_are_not_computed_are_refused_by_name() {
        for (config, place) in [
            (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens"),
            (json!({"target_parameters": ["mlp.experts.gate_up_proj"]}), "target_parameters"),
            (json!({"trainable_token_indices": {"embed_tokens": [3]}}), "trainable_token_indices"),
            (json!({"layer_replication": [[0, 2], [1, 3]]}), "layer_replication"),
            (json!({"megatron_config": {"a": 1}}), "megatron_config"),
            (json!({"use_qalora": true}), "use_qalora"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
            (json!({"init_lora_weights": "pissa_niter_16"}), "init_lora_weights"),
            (json!({"init_lora_weights": "olora"}), "init_lora_weights"),
            (json!({"init_lora_weights": "loftq"}), "init_lora_weights"),
            (json!({"init_lora_weights": "corda"}), "init_lora_weights"),
            (json!({"init_lora_weights": "eva"}), "init_lora_weights"),
            (json!({"init_lora_weights": "something new"}), "init_lora_weights"),
        ] {
            let found = unsupported(config.as_object().unwrap());
            let found: Vec<_> = found.iter().map(|f| (f.code, f.place.as_str())).collect();
            assert_eq!(found, [(Code::ConfigUnsupported, place)], "{config}");
        }
        for config in [
            json!({}),
            json!({"alora_invocation_tokens": null, "target_parameters": [], "use_qalora": false}),
            json!({"init_lora_weights": true}),
            json!({"init_lora_weights": false}),
            json!({"init_lora_weights": "gaussian"}),
            json!({"fan_in_fan_out": true, "bias": "lora_only", "layers_to_transform": 1}),
        ] {
            assert!(of(config.clone()).is_ok() && unsupported(config.as_object().unwrap()).is_empty(), "{config}");
        }
    }

    #[test]
    fn modules_are_matched_as_peft_does() {
        let query = Weight::Block(1, BlockWeight::Query);
        for (targets, has) in [
            (json!(["q_proj"]), Some(true)),
            (json!(["self_attn.q_proj", "x"]), Some(true)),
            (json!(["proj"]), Some(false)),
            (json!(["model.layers.1.self_attn.q_proj"]), Some(true)),
            (json!(r".*\.(q|v)_proj"), Some(true)),
            (json!("q_proj"), Some(false)),
            (json!("all-linear"), Some(true)),
            (json!([]), Some(false)),
            (Value::Null, None),
        ] {
            let stated = of(json!({"target_modules": targets})).unwrap();
            assert_eq!(stated.targets.has(query), has, "{targets}");
        }
        let saved = of(json!({"modules_to_save": ["lm_head", "norm"]})).unwrap();
        assert!(saved.is_saved(Weight::Output) && saved.is_saved(Weight::OutputNorm) && !saved.is_saved(query));
    }
}
