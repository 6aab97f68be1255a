//! PEFT's folder, a checkpoint of its `Trainer`, or the state of a whole model with virtual tokens in it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::config::{self, Stated};
use crate::adapter::prefix::{Method, PROMPT_EMBEDDINGS, Prefix, VirtualTokens, of_prompt_embeddings};
use crate::adapter::{Adapter, Slot};
use crate::base::{BaseModel, describe};
use crate::digest::sorted_compact_json;
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::import::base_weights::BaseWeights;
use crate::import::ledger::{Entry, Fate, Ledger};
use crate::import::rules;
use crate::import::source::{CONFIG_FILE, SourceTensor, TensorSource};
use crate::import::stated::with_own_keys;
use crate::import::{Imported, Origin};
use crate::tensor::{LazyTensor, shape};

/// The module that makes the embeddings while they are trained.
const ENCODER: &str = "prompt_encoder";
/// Factors of tasks in multitask prompt tuning.
const TASKS: &str = "prefix_task_";

/// What a name says.
enum Meaning {
    /// What goes in front, as PEFT saves it.
    Computed,
    /// The encoder's own embedding, which is what goes in front where no network follows.
    Embedding,
    /// The network that follows.
    Network,
    /// Of a kind that is not read.
    Task,
    /// None of these.
    Other,
}

fn meaning(name: &str) -> Meaning {
    let words: Vec<&str> = name.split('.').collect();
    if words.last() == Some(&PROMPT_EMBEDDINGS) {
        return Meaning::Computed;
    }
    if words.last().is_some_and(|w| w.starts_with(TASKS)) {
        return Meaning::Task;
    }
    // `prompt_encoder.{adapter}.embedding.weight`
    match words.iter().position(|w| *w == ENCODER).map(|at| &words[at + 1..]) {
        Some([.., "embedding", "weight"]) => Meaning::Embedding,
        Some(_) => Meaning::Network,
        None => Meaning::Other,
    }
}

/// Whether the tensors are virtual tokens: by the configuration, or by their names where it does not say.
pub(in crate::import) fn is_prefix(source: &TensorSource) -> bool {
    let kind = source.config.as_ref().and_then(|(_, config)| config.get("peft_type")).filter(|v| !v.is_null());
    match kind.map(Value::as_str) {
        Some(Some(kind)) => config::is_method(kind),
        Some(None) => false,
        None => source.tensors.iter().any(|t| !matches!(meaning(&t.name), Meaning::Other)),
    }
}

/// # Errors
///
/// [`Code::ConventionOpen`] without `adapter_config.json`, and where it leaves sizes open that `base` does not give;
/// [`Code::ConfigField`], [`Code::ConfigUnsupported`] about what it says; those of opening the tensor.
pub(in crate::import) fn read(path: &Path, source: TensorSource, base: Option<&BaseModel>) -> Result<Imported> {
    let Some((config_path, config)) = source.config else {
        let message = format!(
            "expected {CONFIG_FILE} beside the weights, found none: whether {PROMPT_EMBEDDINGS} are embeddings, or keys and \
             values and of which sizes, is stated nowhere else"
        );
        return Err(Error::new(Code::ConventionOpen, message).file(path).field("peft_type"));
    };
    let Value::Object(config) = config else {
        let message = format!("expected a JSON object, found {}", describe(&config));
        return Err(Error::new(Code::ConfigField, message).file(&config_path));
    };
    let stated = Stated::of(&config).map_err(|e| e.file(&config_path))?;
    let mut ledger = Ledger { entries: Vec::with_capacity(source.tensors.len()), objects: source.objects };
    let mut findings = Findings::default();
    let mut weights = BaseWeights::of(base);
    let mut found: Option<(String, LazyTensor, usize)> = None;
    for t in &source.tensors {
        let mut entry = Entry::new(&t.name, t.dtype(), t.shape());
        match role(t, stated.is_projected) {
            Role::Tokens => {
                // An impossible shape must not be opened: its size may overflow.
                shape::len_bytes(t.shape(), t.dtype()).map_err(|e| e.field(&t.name).file(path))?;
                let tensor = t.open().map_err(|e| e.file(path))?;
                entry.tensor = Some(tensor.clone());
                match &found {
                    None => found = Some((t.name.clone(), tensor, ledger.entries.len())),
                    Some((other, ..)) => {
                        let (expected, found) = ("one tensor of virtual tokens", format!("{other} and this"));
                        findings.add(Code::AdapterDuplicate, &t.name, expected, found);
                    }
                }
            }
            Role::Refused { expected, found } => {
                findings.add(Code::ConfigUnsupported, &t.name, expected, found);
            }
            Role::Other => match rules::read(&t.name) {
                rules::Meaning::Ignored(reason) => {
                    entry.fate = Fate::Ignored { reason: reason.into() };
                    if reason == rules::BASE_WEIGHTS {
                        findings.extend(weights.difference(t).map_err(|e| e.file(path))?);
                    }
                }
                _ => {
                    let (expected, found) = ("only virtual tokens and weights of the base", "a tensor of another name");
                    findings.add(Code::AdapterLeftOver, &t.name, expected, found);
                }
            },
        }
        ledger.entries.push(entry);
    }
    let tokens = match &found {
        None => {
            if findings.is_empty() {
                let (expected, found) = ("the tensor of virtual tokens", "none");
                findings.add(Code::AdapterMissing, PROMPT_EMBEDDINGS, expected, found);
            }
            None
        }
        Some((name, tensor, at)) => {
            let tokens = tokens(&stated, name, tensor, base, &mut findings)
                .map_err(|e| if e.code() == Code::ConventionOpen { e.file(path) } else { e.file(&config_path) })?;
            ledger.entries[*at].fate = Fate::Consumed { slots: slots(&tokens) };
            Some(tokens)
        }
    };
    let carried = with_own_keys(&config, &source.metadata).map_err(|e| e.file(path))?;
    let tokens = tokens.unwrap_or_else(|| VirtualTokens::KeysValues(BTreeMap::new()));
    Ok(Imported {
        adapter: Prefix { config: carried, method: stated.method, tokens }.into(),
        ledger,
        findings: findings.into_vec(),
        notes: weights.note().into_iter().collect(),
        origin: Origin::of_tensors(
            path.to_owned(),
            source.files,
            format!("virtual tokens of PEFT, {}", source.format),
            sorted_compact_json(&Value::Object(config)),
        ),
    })
}

enum Role {
    Tokens,
    Refused { expected: &'static str, found: &'static str },
    Other,
}

fn role(t: &SourceTensor, is_projected: bool) -> Role {
    let saved = "prompt_embeddings, as save_pretrained computes them";
    match meaning(&t.name) {
        Meaning::Computed => Role::Tokens,
        Meaning::Embedding if !is_projected => Role::Tokens,
        Meaning::Embedding => Role::Refused { expected: saved, found: "what a network turns into them" },
        Meaning::Network => Role::Refused { expected: saved, found: "the network that makes them" },
        Meaning::Task => Role::Refused { expected: "one task", found: "factors of multitask prompt tuning" },
        Meaning::Other => Role::Other,
    }
}

/// The slots of what was read, ascending.
fn slots(tokens: &VirtualTokens) -> std::sync::Arc<[Slot]> {
    let adapter: Adapter =
        Prefix { config: Default::default(), method: Method::PrefixTuning, tokens: tokens.clone() }.into();
    adapter.tensors().map(|(slot, _)| slot).collect()
}

/// The tensor in the form that the method has; sizes that disagree are findings.
///
/// # Errors
///
/// [`Code::ConventionOpen`] for sizes that nothing states; [`Code::ConfigField`] for heads that do not divide.
fn tokens(
    stated: &Stated,
    name: &str,
    tensor: &LazyTensor,
    base: Option<&BaseModel>,
    findings: &mut Findings,
) -> Result<VirtualTokens> {
    let wrong = |expected: String, findings: &mut Findings| {
        findings.add(Code::AdapterShape, name, expected, format!("{:?}", tensor.shape()));
    };
    let n_tokens = tensor.shape().first().copied();
    if let Some(n) = stated.n_tokens.filter(|n| Some(*n) != n_tokens) {
        wrong(format!("{n} rows, as num_virtual_tokens says"), findings);
    }
    if stated.method != Method::PrefixTuning {
        match (tensor.shape(), stated.token_dim) {
            (&[_, found], Some(dim)) if found != dim => wrong(format!("rows of {dim}, as token_dim says"), findings),
            (&[_, _], _) => {}
            _ => wrong("[tokens, hidden_size]".into(), findings),
        }
        return Ok(VirtualTokens::Embeddings(tensor.clone()));
    }
    let open = |key: &str| {
        let message = format!(
            "expected {key} or a base (--base), found neither: the tensor's rows can be divided in several ways"
        );
        Error::new(Code::ConventionOpen, message).field(key)
    };
    let c = base.map(|b| &b.config);
    let n_layers = stated.n_layers.or(c.map(|c| c.n_layers)).ok_or_else(|| open("num_layers"))?;
    let n_heads = stated.n_heads.or(c.map(|c| c.n_kv_heads)).ok_or_else(|| open("num_attention_heads"))?;
    let width = stated.token_dim.or(c.map(|c| c.n_kv_heads * c.head_dim)).ok_or_else(|| open("token_dim"))?;
    if !width.is_multiple_of(n_heads) {
        let message = format!("expected a multiple of num_attention_heads = {n_heads}, found {width}");
        return Err(Error::new(Code::ConfigField, message).field("token_dim"));
    }
    Ok(VirtualTokens::KeysValues(of_prompt_embeddings(tensor, n_layers, n_heads, width / n_heads).unwrap_or_else(
        || {
            let row_len = n_layers.checked_mul(2).and_then(|n| n.checked_mul(width));
            let expected = match row_len {
                Some(n) => format!("rows of {n} = num_layers {n_layers} * 2 * token_dim {width}"),
                None => "sizes below 2^64".into(),
            };
            wrong(expected, findings);
            BTreeMap::new()
        },
    )))
}
