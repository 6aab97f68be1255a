//! PEFT's folder, or tensors with PEFT's names beside `adapter_config.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::config::{Stated, unsupported};
use super::names::{self, Meaning, weight_of};
use super::{Pieces, insert, modules, slot};
use crate::adapter::lora::{Lora, PEFT_TYPE, module_name, turned_for_peft};
use crate::adapter::{Part, Slot};
use crate::base::{BaseModel, Dialect, Weight, describe};
use crate::digest::sorted_compact_json;
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::import::base_weights::{self, Against};
use crate::import::ledger::{Entry, Fate, Ledger};
use crate::import::rules;
use crate::import::source::{CONFIG_FILE, SourceTensor, TensorSource};
use crate::import::stated::with_own_keys;
use crate::import::{Imported, Origin};
use crate::tensor::{LazyTensor, shape};

/// Most tensors of a LoRA in a source: five for each of the seven linear layers of 1000 blocks, more than any model has.
const MAX_PARTS: usize = 1 << 16;

/// Whether the tensors are those of a LoRA: by their names, or since the configuration says so and no name says otherwise.
pub(in crate::import) fn is_lora(source: &TensorSource) -> bool {
    let kind = source.config.as_ref().and_then(|(_, config)| config.get("peft_type")).filter(|v| !v.is_null());
    match kind.map(Value::as_str) {
        Some(Some(PEFT_TYPE)) => true,
        Some(_) => false,
        None => source.tensors.iter().any(|t| matches!(names::read(&t.name), Meaning::Part { .. })),
    }
}

/// # Errors
///
/// [`Code::ConventionOpen`] without `adapter_config.json`; [`Code::ConfigField`], [`Code::ConfigUnsupported`] about what it says;
/// those of opening the tensors.
pub(in crate::import) fn read(path: &Path, source: TensorSource, base: Option<&BaseModel>) -> Result<Imported> {
    let Some((config_path, config)) = source.config else {
        let message = format!(
            "expected {CONFIG_FILE} beside the weights, found none: the factor of a LoRA, alpha / r, is stated nowhere else"
        );
        return Err(Error::new(Code::ConventionOpen, message).file(path).field("lora_alpha"));
    };
    let Value::Object(config) = config else {
        let message = format!("expected a JSON object, found {}", describe(&config));
        return Err(Error::new(Code::ConfigField, message).file(&config_path));
    };
    let stated = Stated::of(&config).map_err(|e| e.file(&config_path))?;
    let mut reading = Reading {
        stated: &stated,
        base,
        adapter: adapter_name(&source.tensors).map_err(|e| e.file(path))?,
        pieces: Pieces::new(),
        patterns: BTreeMap::new(),
        saved: BTreeMap::new(),
        whole: BTreeSet::new(),
        findings: unsupported(&config).into(),
        not_compared: BTreeMap::new(),
        n_parts: 0,
    };
    let mut ledger = Ledger { entries: Vec::with_capacity(source.tensors.len()), objects: source.objects };
    for t in source.tensors {
        let entry = reading.tensor(&t).map_err(|e| e.file(path))?;
        ledger.entries.push(entry);
    }
    let carried = with_own_keys(&config, &source.metadata).map_err(|e| e.file(path))?;
    let Reading { pieces, patterns, saved, whole, mut findings, not_compared, .. } = reading;
    if pieces.is_empty() && saved.is_empty() {
        findings.add(Code::AdapterMissing, "lora_A", "tensors of a LoRA", "none");
    }
    // PEFT's patterns are held against the name that the module has in the model that was trained.
    let pattern_name = |weight: Weight| patterns.get(&weight).cloned().unwrap_or_else(|| module_name(weight));
    let modules = modules(
        pieces,
        |weight| Some(stated.rules.rank(&pattern_name(weight))),
        |weight, rank| stated.rules.scale(&pattern_name(weight), rank),
        Slot::canonical_name,
        &mut findings,
    );
    let lora = Lora { config: carried, modules, saved, folded: BTreeMap::new(), key_factor: None };
    against_config(&lora, &stated, &whole, base, &mut findings);
    let mut notes = Vec::new();
    for (reason, n) in &not_compared {
        notes.push(format!(
            "{n} weights of the base model that lie beside the LoRA were not compared with it since {reason}"
        ));
    }
    if config.get("fan_in_fan_out") == Some(&Value::Bool(true)) {
        notes.push("fan_in_fan_out says nothing here: PEFT switches it off for linear layers, which these are".into());
    }
    Ok(Imported {
        adapter: lora.into(),
        ledger,
        findings: findings.into_vec(),
        notes,
        origin: Origin::of_tensors(
            path.to_owned(),
            source.files,
            format!("LoRA of PEFT, {}", source.format),
            sorted_compact_json(&Value::Object(config)),
        ),
    })
}

/// The adapter whose tensors count where names have one: plain names, or the only one, or PEFT's own `default`.
///
/// # Errors
///
/// [`Code::ConventionAmbiguous`] for several.
fn adapter_name(tensors: &[SourceTensor]) -> Result<Option<String>> {
    let mut found: BTreeSet<Option<String>> = BTreeSet::new();
    for t in tensors {
        if let Meaning::Part { adapter, .. } = names::read(&t.name) {
            found.insert(adapter);
        }
    }
    let default = Some("default".to_owned());
    if found.len() <= 1 {
        return Ok(found.into_iter().next().flatten());
    }
    if found.contains(&None) {
        return Ok(None);
    }
    if found.contains(&default) {
        return Ok(default);
    }
    let listed: Vec<String> = found.into_iter().flatten().take(5).collect();
    let message = format!("expected one adapter, found several: {}; save one of them by itself", listed.join(", "));
    Err(Error::new(Code::ConventionAmbiguous, message))
}

struct Reading<'a> {
    stated: &'a Stated,
    base: Option<&'a BaseModel>,
    adapter: Option<String>,
    pieces: Pieces,
    /// The names by which patterns know modules.
    patterns: BTreeMap<Weight, String>,
    saved: BTreeMap<Weight, LazyTensor>,
    /// Modules of which a whole weight is in the file, whatever became of it.
    whole: BTreeSet<String>,
    findings: Findings,
    not_compared: BTreeMap<&'static str, usize>,
    n_parts: usize,
}

impl Reading<'_> {
    fn tensor(&mut self, t: &SourceTensor) -> Result<Entry> {
        let mut entry = Entry::new(&t.name, t.dtype(), t.shape());
        match names::read(&t.name) {
            Meaning::Ignored(reason) => entry.fate = Fate::Ignored { reason: reason.into() },
            Meaning::Unknown => self.left_over(&t.name, "a tensor that PEFT's LoRA has", "one that nothing here knows"),
            Meaning::Part { adapter, .. } if adapter != self.adapter => {
                let expected = match &self.adapter {
                    Some(name) => format!("tensors of adapter {name:?}"),
                    None => "names without an adapter's".to_owned(),
                };
                self.left_over(&t.name, &expected, "one of another adapter");
            }
            Meaning::Part { module, part, is_embedding, .. } => {
                if let Some((weight, part)) = self.place(t, &module, part, is_embedding) {
                    let tensor = self.open(t)?;
                    let in_axes = turned_for_peft(weight, part, tensor.clone());
                    self.patterns.entry(weight).or_insert(module);
                    insert(&mut self.pieces, (weight, part), &t.name, in_axes, &mut self.findings);
                    entry.tensor = Some(tensor);
                    entry.fate = Fate::Consumed { slots: [slot(weight, part)].into() };
                }
            }
            Meaning::Whole { weight, is_trained, adapter } => {
                if adapter.is_some() && self.adapter.is_some() && adapter != self.adapter {
                    self.left_over(&t.name, "a module of the adapter that is read", "one of another adapter");
                } else {
                    self.whole(t, weight, is_trained, &mut entry)?;
                }
            }
        }
        Ok(entry)
    }

    fn left_over(&mut self, name: &str, expected: &str, found: &str) {
        self.findings.add(Code::AdapterLeftOver, name, expected, found);
    }

    fn open(&mut self, t: &SourceTensor) -> Result<LazyTensor> {
        self.n_parts += 1;
        if self.n_parts > MAX_PARTS {
            let message = format!("expected at most {MAX_PARTS} tensors of a LoRA, found more");
            return Err(Error::new(Code::AdapterShape, message).field(&t.name));
        }
        // An impossible shape must not be opened: its size may overflow.
        shape::len_bytes(t.shape(), t.dtype()).map_err(|e| e.field(&t.name))?;
        t.open()
    }

    /// Where a tensor beside `module` belongs; otherwise a finding.
    fn place(
        &mut self,
        t: &SourceTensor,
        module: &str,
        part: Part,
        is_called_embedding: bool,
    ) -> Option<(Weight, Part)> {
        let Some(weight) = weight_of(module).filter(|w| w.is_linear()) else {
            // Of a known base it is a mismatch; without one the family may be one that is not read here.
            let (code, expected) = match self.base {
                _ if is_of_a_mixture(module) => (
                    Code::ConfigUnsupported,
                    "no addition to experts and what chooses them, which ptplus does not compute",
                ),
                Some(_) => (Code::AdapterMismatch, "a linear weight that the base has"),
                None => (Code::ConfigUnsupported, "a linear weight of a family that ptplus reads"),
            };
            self.findings.add(code, &t.name, expected, format!("additions to {module:?}"));
            return None;
        };
        let part = match (part, is_called_embedding, weight == Weight::TokenEmbedding) {
            (part, false, false) => part,
            // What is B of the matrix that a one-hot row is multiplied with is A of the embedding, transposed.
            (Part::B, true, true) => Part::A,
            (Part::A, true, true) => Part::B,
            (Part::Magnitude, _, true) => {
                let expected = "DoRA of linear layers, whose magnitudes are those of rows";
                self.findings.add(Code::ConfigUnsupported, &t.name, expected, "DoRA of an embedding");
                return None;
            }
            _ => {
                self.left_over(
                    &t.name,
                    "lora_embedding_A and _B of an embedding, lora_A and _B of other layers",
                    "this",
                );
                return None;
            }
        };
        Some((weight, part))
    }

    /// A weight of the model itself: the base's, or one that stands in its place.
    fn whole(&mut self, t: &SourceTensor, weight: Option<Weight>, is_trained: bool, entry: &mut Entry) -> Result<()> {
        let Some(weight) = weight else {
            if let rules::Meaning::Ignored(reason) = rules::read(&t.name)
                && reason != rules::BASE_WEIGHTS
                && !is_trained
            {
                entry.fate = Fate::Ignored { reason: reason.into() };
                return Ok(());
            }
            let expected = "a weight that models have here";
            self.findings.add(Code::ConfigUnsupported, &t.name, expected, "a module of another kind");
            return Ok(());
        };
        self.whole.insert(module_name(weight));
        let is_trained = is_trained || self.stated.is_saved(weight);
        let against = match self.base {
            None => Against::Unknown("there is no base to compare with (--base)"),
            Some(base) => base_weights::against_base(t, base, weight)?,
        };
        match against {
            Against::Same => entry.fate = Fate::Ignored { reason: rules::BASE_WEIGHTS.into() },
            Against::Unknown(reason) if !is_trained && (self.base.is_some() || !t.dtype().is_float()) => {
                *self.not_compared.entry(reason).or_default() += 1;
                entry.fate = Fate::Ignored { reason: rules::BASE_WEIGHTS.into() };
            }
            Against::Unknown(_) | Against::Differs { .. } => {
                let tensor = self.open(t)?;
                if self.saved.insert(weight, tensor.clone()).is_some() {
                    let expected = format!("one tensor for {}", weight.name(Dialect::HuggingFace));
                    self.findings.add(Code::AdapterDuplicate, &t.name, expected, "two");
                }
                entry.tensor = Some(tensor);
                entry.fate = Fate::Consumed { slots: [slot(weight, Part::Whole)].into() };
            }
        }
        Ok(())
    }
}

/// What the configuration promises and the tensors do not have, or the other way round.
fn against_config(
    lora: &Lora,
    stated: &Stated,
    whole: &BTreeSet<String>,
    base: Option<&BaseModel>,
    findings: &mut Findings,
) {
    for (&weight, module) in &lora.modules {
        let name = module_name(weight);
        for (key, is_stated, is_there, what) in [
            ("use_dora", stated.use_dora, module.magnitude.is_some(), "lora_magnitude_vector"),
            ("lora_bias", stated.lora_bias, module.bias.is_some(), "lora_B.bias"),
        ] {
            let place = format!("{name}.{what}");
            match (is_stated, is_there) {
                (true, false) => {
                    let expected = format!("a tensor, as {key} says");
                    findings.add(Code::AdapterMissing, place, expected, "none");
                }
                (false, true) => {
                    findings.add(Code::AdapterLeftOver, place, format!("none without {key}"), "a tensor");
                }
                _ => {}
            }
        }
    }
    for module in &stated.modules_to_save {
        let is_there = whole.iter().any(|name| {
            name.strip_suffix(module.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                || name.contains(&format!("{module}."))
        });
        if !is_there {
            let expected = format!("the weights of {module:?}, as modules_to_save says");
            findings.add(Code::AdapterMissing, "modules_to_save", expected, "none");
        }
    }
    let Some(targets) = base.and_then(|base| stated.targets(base)) else { return };
    for weight in targets {
        if !lora.modules.contains_key(&weight) {
            let expected = "additions to every module that target_modules names";
            findings.add(Code::AdapterMissing, module_name(weight), expected, "none");
        }
    }
}
/// Whether a module is an expert's, as releases of transformers before 5 have them, or the router.
fn is_of_a_mixture(module: &str) -> bool {
    module.split('.').any(|word| matches!(word, "experts" | "block_sparse_moe")) || module.ends_with(".mlp.gate")
}
