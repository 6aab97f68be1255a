//! Checks an imported adapter against itself and its base: every finding at once, never only the first.
//!
//! [`Validated`] can be made only here, and everything that converts or runs an adapter wants one: skipping
//! validation does not compile.

mod lora;
mod plus;
mod prefix;
mod rejected;
mod values;

use serde_json::{Map, Value};

use crate::about::About;
use crate::adapter::Adapter;
use crate::adapter::lora::gguf_keys::CONFIG_HEAD_DIM;
use crate::adapter::plus::gguf_names;
use crate::base::fingerprint::{self, Depth, Fingerprint, Identity};
use crate::base::{BaseModel, gguf_architecture_of};
use crate::error::{Code, Error, Result};
use crate::finding::{Finding, Findings};
use crate::format::names::shorten;
use crate::import::ledger::{Entry, Fate, Ledger};
use crate::import::stated::{BASE_FINGERPRINT, BASE_MISMATCH_IGNORED, WIDENED_FROM};
use crate::import::{self, Draft, Imported, Opened, Origin, RECORD_KEY};
use crate::quant;
use crate::tensor::coarsest;
use crate::tensor::{DType, LazyTensor};
use rejected::one_of_copies;

pub use rejected::Rejected;

/// An adapter that passed [`check`].
#[derive(Debug, Clone)]
pub struct Validated {
    adapter: Adapter,
    /// What became of every tensor of the source.
    pub ledger: Ledger,
    /// Where it came from.
    pub origin: Origin,
    /// What a reader should know, though it is no mismatch.
    pub notes: Vec<String>,
    /// The command that is being carried out, for the output's provenance.
    pub command: Option<String>,
}

impl Validated {
    /// The adapter, in Hugging Face component order.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The coarsest type that the weights have ever been in: of the tensors, of the first source's as the file records
    /// them, and of a source whose values were widened since. Limits of a comparison follow it.
    pub fn coarsest_dtype(&self) -> DType {
        let stored = self.adapter.tensors().map(|(.., t)| t.stored_dtype());
        let recorded = self.origin.recorded_dtypes.values().copied();
        let widened = self.adapter.extra().get(WIDENED_FROM).and_then(|v| weight_type(v.as_str()?));
        coarsest(stored.chain(recorded).chain(widened))
    }

    /// The fingerprint of the base that the adapter was made for, where the file has one.
    pub fn base_fingerprint(&self) -> Option<&str> {
        self.adapter.extra().get(BASE_FINGERPRINT).and_then(Value::as_str)
    }

    /// Whether `base` is the one that the adapter was made for; `None` where the file does not say which that is.
    ///
    /// # Errors
    ///
    /// [`Code::BaseDiffers`] where it is not, unless `ignore` is [`BaseMismatch::Ignore`]; those of reading weights.
    pub fn confirm_base(&self, base: &BaseModel, depth: Depth, ignore: BaseMismatch) -> Result<Option<Identity>> {
        let Some(stated) = self.base_fingerprint() else { return Ok(None) };
        let identity = fingerprint::identify(stated, base, &self.adapter.touched(), depth)?;
        match &identity {
            Identity::Different(reason) if ignore == BaseMismatch::Refuse => {
                let message = format!(
                    "expected the base that the adapter was made for, found another: {reason} (--ignore-base-mismatch)"
                );
                Err(Error::new(Code::BaseDiffers, message).file(&base.path))
            }
            _ => Ok(Some(identity)),
        }
    }

    /// [`confirm_base`](Self::confirm_base), and has outputs of this adapter say what came of it: the fingerprint that the
    /// file has, or else that of `base`; and a difference that was ignored.
    ///
    /// # Errors
    ///
    /// Those of [`confirm_base`](Self::confirm_base); those of reading weights.
    pub fn record_base(&mut self, base: &BaseModel, ignore: BaseMismatch) -> Result<Option<Identity>> {
        let identity = self.confirm_base(base, Depth::Weights, ignore)?;
        if let Adapter::Lora(lora) = &mut self.adapter {
            lora.config.insert(CONFIG_HEAD_DIM.into(), base.config.head_dim.into());
        }
        match &identity {
            None => {
                let found = Fingerprint::of(base, &self.adapter.touched())?;
                self.adapter.extra_mut().insert(BASE_FINGERPRINT.into(), found.to_string().into());
            }
            Some(Identity::Different(_)) => {
                self.adapter.extra_mut().insert(BASE_MISMATCH_IGNORED.into(), true.into());
            }
            Some(_) => {}
        }
        Ok(identity)
    }

    /// Has outputs of this adapter say `about`.
    ///
    /// # Errors
    ///
    /// Those of [`About::write_into`].
    pub fn say(&mut self, about: &About) -> Result<()> {
        about.write_into(&mut self.adapter)
    }

    /// Whether the file says which kind of base it was made for. If not, a base whose sizes fit may still be the wrong
    /// one, and only `verify` can tell.
    pub fn states_its_base(&self) -> bool {
        self.adapter.base_model_type().is_some() || self.origin.gguf_architecture.is_some()
    }
}

/// What to do where a base is not the one that an adapter was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseMismatch {
    /// It is an error.
    Refuse,
    /// The user knows.
    Ignore,
}

/// Checks the adapter against its own configuration and, if given, against its base.
///
/// Reads every adapter tensor once (NaN, Inf), and of the base only what [`BaseModel::open`] read: headers.
///
/// ```
/// use ptplus::{base::BaseModel, error::ErrorKind, import, validate};
///
/// let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
/// let imported = import::read(&models.join("llama-mha/adapter"), &import::Options::default(), None)?;
/// let other = BaseModel::open(&models.join("qwen2/base"))?;
/// let rejected = validate::check(imported, Some(&other)).unwrap_err();
/// assert_eq!(rejected.kind(), ErrorKind::Mismatch);
/// assert!(rejected.findings.len() > 1); // all of them at once
/// # Ok::<(), ptplus::error::Error>(())
/// ```
///
/// # Errors
///
/// [`Rejected`], with every finding.
pub fn check(imported: Imported, base: Option<&BaseModel>) -> Result<Validated, Rejected> {
    let Imported { adapter, ledger, findings, mut notes, origin } = imported;
    let mut findings = Findings::from(findings);
    match &adapter {
        Adapter::Plus(memories) => {
            if memories.layers.is_empty() && findings.is_empty() {
                findings.add(Code::AdapterMissing, "layers", "at least one adapted layer", "none");
            }
            plus::against_itself(memories, &mut findings);
            plus::uneven(memories, &mut findings);
            if let Some(base) = base {
                plus::against_base(memories, base, &mut findings);
            }
        }
        Adapter::Lora(lora) => {
            lora::against_itself(lora, &mut findings);
            if let Some(base) = base {
                lora::against_base(lora, base, &mut findings);
            }
        }
        Adapter::Prefix(prefix) => {
            prefix::against_itself(prefix, &mut findings);
            if let Some(base) = base {
                prefix::against_base(prefix, base, &mut findings);
            }
        }
    }
    if let Some(base) = base {
        family_against_base(&adapter, &origin, base, &mut findings);
    }
    own_fields(adapter.extra(), &mut findings);
    findings.extend(values::check(&adapter));
    let mut findings = findings.into_vec();
    if origin.gguf_architecture.is_some() {
        findings.iter_mut().for_each(gguf_names::place_in_gguf);
    }
    for (slot, t) in adapter.tensors().filter(|(_, t)| t.stored_dtype() == DType::F64) {
        notes.push(format!("{} is F64 ({} elements); it is used as F32", slot.canonical_name(), t.n_elements()));
    }
    notes.extend(folded(&ledger));
    notes.extend(not_read(&ledger));
    if findings.is_empty() {
        Ok(Validated { adapter, ledger, origin, notes, command: None })
    } else {
        let other = |memories| base.and_then(|b| plus::other_base(memories, b));
        let hints = adapter.as_plus().and_then(other).into_iter().chain(one_of_copies(&findings)).collect();
        Err(Rejected { findings, notes, hints, open: None })
    }
}

/// [`check`], of whatever [`import::open`] opened. Where conventions are open, everything that is wrong whatever they are
/// is found beside them.
///
/// # Errors
///
/// Those of assembling layers.
///
/// [`import::open`]: crate::import::open
pub fn check_opened(opened: Opened, base: Option<&BaseModel>) -> Result<Result<Validated, Rejected>> {
    let mut draft = match opened {
        Opened::Adapter(imported) => return Ok(check(*imported, base)),
        Opened::Draft(draft) => *draft,
    };
    let open = draft.all_open(base)?;
    if open.is_empty() {
        return Ok(check(draft.into_imported(base)?, base));
    }
    let error = draft.still_open(&open);
    let mut rejected = whatever_is_open(&mut draft, base);
    rejected.findings.extend(open.iter().map(|key| {
        let expected = import::flag_usage(key).map_or_else(|| "a value".to_owned(), |flag| format!("a value ({flag})"));
        Finding::new(Code::ConventionOpen, *key, expected, "none")
    }));
    rejected.open = Some(error);
    Ok(Err(rejected))
}

/// The checks that need no conventions, before a probe is asked for them: a wrong tensor must not end as one that no
/// reading explains.
///
/// # Errors
///
/// The deciding finding.
pub fn check_before_settling(draft: &Draft, base: Option<&BaseModel>) -> Result<()> {
    let mut copy = draft.clone();
    let rejected = whatever_is_open(&mut copy, base);
    if rejected.findings.is_empty() { Ok(()) } else { Err(rejected.into_error()) }
}

/// What is wrong about a draft with any conventions. Takes its parts.
fn whatever_is_open(draft: &mut Draft, base: Option<&BaseModel>) -> Rejected {
    // Large, and the same either way.
    let ledger = std::mem::take(&mut draft.ledger);
    match draft.clone().provisional(base) {
        Ok(imported) => match check(Imported { ledger, ..imported }, base) {
            Ok(v) => Rejected { findings: Vec::new(), notes: v.notes, hints: Vec::new(), open: None },
            Err(rejected) => rejected,
        },
        // Sizes are open as well: the tensors by themselves.
        Err(_) => {
            let mut findings = Findings::from(std::mem::take(&mut draft.findings));
            findings.extend(values::check_tensors(draft.part_tensors()));
            let findings = findings.into_vec();
            let hints = one_of_copies(&findings).into_iter().collect();
            Rejected { findings, notes: std::mem::take(&mut draft.notes), hints, open: None }
        }
    }
}

/// Gates are in no output: what they did, the memories do.
fn folded(ledger: &Ledger) -> Option<String> {
    let is_folded = |e: &&Entry| matches!(e.fate, Fate::Folded { .. });
    let first = ledger.entries.iter().find(is_folded)?;
    let n = ledger.entries.iter().filter(is_folded).count();
    Some(format!("{n} learned factors, such as {}, are multiplied into the memories, in F32", shorten(&first.name)))
}

/// Beside the weights of a whole model, names that nothing knows are mostly the model's; one may still be a gate of the
/// adapter's, so they are named.
fn not_read(ledger: &Ledger) -> Option<String> {
    const SHOWN: usize = 3;
    let names: Vec<&str> = ledger.left_over().map(|e| e.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| shorten(name)).collect();
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    Some(format!(
        "{} tensors beside the model's are known by no rule and were not read: {}{more}; a layout file can say what they are",
        names.len(),
        shown.join(", ")
    ))
}

/// What the tool itself has written into the configuration: damage there must not switch a check off.
fn own_fields(extra: &Map<String, Value>, findings: &mut Findings) {
    let mut check = |field: &str, expected: &str, holds: fn(&str) -> bool| {
        if let Some(value) = extra.get(field).filter(|v| !v.as_str().is_some_and(holds)) {
            findings.add(Code::ConfigField, field, expected, shorten(&value.to_string()));
        }
    };
    check(WIDENED_FROM, "the name of a type that weights may have", |text| weight_type(text).is_some());
    check(BASE_FINGERPRINT, "the fingerprint of a base", fingerprint::is_well_formed);
    let mut check = |field: &str, expected: &str, holds: fn(&Value) -> bool| {
        if let Some(value) = extra.get(field).filter(|v| !holds(v)) {
            findings.add(Code::ConfigField, field, expected, shorten(&value.to_string()));
        }
    };
    check(BASE_MISMATCH_IGNORED, "true or false", Value::is_boolean);
    check(RECORD_KEY, "an object", Value::is_object);
}

/// The float or block type of this very name.
fn weight_type(name: &str) -> Option<DType> {
    DType::ALL.iter().copied().find(|d| d.name() == name && (d.is_float() || quant::can_decode(*d)))
}

/// Numbers of a type that can be computed with.
fn check_type(name: &str, t: &LazyTensor, findings: &mut Findings) {
    if !t.dtype().is_float() {
        findings.add(Code::AdapterShape, name, "a float type", t.dtype());
    } else if !quant::can_decode(t.stored_dtype()) {
        findings.add(Code::ConfigUnsupported, name, "a type that ptplus decodes", t.stored_dtype());
    }
}

/// What an adapter says of the family of its base.
fn family_against_base(adapter: &Adapter, origin: &Origin, base: &BaseModel, findings: &mut Findings) {
    let architecture = base.gguf_architecture();
    if let Some(stated) = &origin.gguf_architecture
        && stated != architecture
    {
        findings.add(
            Code::AdapterMismatch,
            "general.architecture",
            format!("{architecture:?}, as the base has"),
            format!("{stated:?}"),
        );
    }
    match (adapter.base_model_type(), &base.config.model_type) {
        (Some(stated), Some(has)) if stated != has => {
            findings.add(
                Code::AdapterMismatch,
                "base_model_type",
                format!("{has:?}, as the base has"),
                format!("{stated:?}"),
            );
        }
        // A GGUF base does not say which of the families that share an architecture it is.
        (Some(stated), None) if gguf_architecture_of(stated) != Some(architecture) => {
            findings.add(
                Code::AdapterMismatch,
                "base_model_type",
                format!("a model type of architecture {architecture:?}"),
                format!("{stated:?}"),
            );
        }
        _ => {}
    }
}

/// For tests and tools that build an adapter in memory: [`check`] without a file behind it.
///
/// # Errors
///
/// [`Rejected`], with every finding.
pub fn check_in_memory(adapter: Adapter, base: Option<&BaseModel>) -> Result<Validated, Rejected> {
    let origin = Origin::of_tensors("memory".into(), Vec::new(), "memory".into(), String::new());
    check(Imported { adapter, ledger: Ledger::default(), findings: Vec::new(), notes: Vec::new(), origin }, base)
}
