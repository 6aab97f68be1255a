//! A source's tensors and configuration as a draft.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Draft, names};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::import::ledger::Ledger;
use crate::import::mapping::{Mapped, Mapping, Reader};
use crate::import::source::{CONFIG_FILE, TensorSource};
use crate::import::stated::{MODULES_TO_SAVE, Stated, TRANSPOSE_MEMORY};
use crate::import::statements::{self, Settled};
use crate::import::{Options, model_config, rules};

pub(in crate::import) fn read(
    path: &Path,
    source: TensorSource,
    options: &Options,
    base: Option<&BaseModel>,
) -> Result<Draft> {
    let mapping = options.layout.as_deref().map(Mapping::open).transpose()?;
    let (config_path, config) = match (source.config, source.model_config) {
        (Some((path, Value::Object(map))), _) => (Some(path), map),
        (Some((path, other)), _) => return Err(Stated::from_json(other).map(|_| ()).unwrap_err().file(&path)),
        (None, Some((path, model))) => (Some(path), model_config::statements(&model)),
        (None, None) => (None, Map::new()),
    };
    let config_name = config_path.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let by_model: Settled = match &*config_name == CONFIG_FILE {
        true => Settled::new(),
        false => {
            let conventions = config.keys().filter(|key| model_config::is_convention(key));
            conventions.map(|key| (key.clone(), config_name.as_ref().into())).collect()
        }
    };
    let layout_fault = |e: Error| match (&options.layout, e.code()) {
        (Some(p), Code::LayoutFile | Code::LayoutSyntax) => e.file(p),
        _ => e,
    };
    let names = source.tensors.iter().map(|t| t.name.as_str());
    if let Some(m) = &mapping {
        m.check_work(names.clone().map(str::len).sum()).map_err(layout_fault)?;
    }
    let config = without_own_modules(config, names, mapping.as_ref()).map_err(layout_fault)?;
    // The configuration alone first, so that its own mistakes are reported as such.
    Stated::from_json(Value::Object(config.clone())).map_err(|e| match &config_path {
        Some(p) => e.file(p),
        None => e,
    })?;
    let (config, mut settled, doubts) =
        statements::merge(config, &config_name, mapping.as_ref().map(|m| &m.constants), &options.stated)?;
    settled.extend(by_model);
    let of_layout = |e: Error| match &options.layout {
        Some(p) => e.file(p),
        None => e,
    };
    let by_layout = settled.get(TRANSPOSE_MEMORY).and_then(Value::as_str) == Some("layout file");
    let transpose_memory = transposition(&config, options.transpose_memory).map_err(|e| match &config_path {
        _ if by_layout => of_layout(e),
        Some(p) => e.file(p),
        None => e,
    })?;
    // It says how this file lies, not what the adapter is: an output in the canonical layout must not say it again.
    let mut about_adapter = config.clone();
    about_adapter.shift_remove(TRANSPOSE_MEMORY);
    let stated = Stated::from_json(Value::Object(about_adapter)).map_err(|e| {
        let who = e.field_name().and_then(|f| settled.get(f)).and_then(Value::as_str);
        if who == Some("layout file") { of_layout(e) } else { e }
    })?;
    let mut draft = Draft {
        stated,
        settled,
        doubts,
        ledger: Ledger::default(),
        findings: Vec::new(),
        notes: Vec::new(),
        files: source.files.into_iter().chain(options.layout.clone()).collect(),
        config,
        path: path.to_owned(),
        config_path,
        layout: String::new(),
        transpose_memory,
        parts: Vec::new(),
        gates: Vec::new(),
        stacked_layers: None,
    };
    if options.transpose_memory.is_some() {
        draft.settled.insert("transpose_memory".into(), "flag".into());
    }
    draft.classify(source.tensors, source.objects, mapping.as_ref(), base).map_err(layout_fault)?;
    draft.settle_axes(base);
    draft.stacked_layers = draft.layers_of_stack(base);
    draft.enter_parts();
    draft.layout = match (&mapping, draft.is_canonical()) {
        (Some(_), _) => format!("{} read as the layout file says", source.format),
        (None, true) => format!("canonical {}", source.format),
        (None, false) => format!("{} of another training code", source.format),
    };
    Ok(draft)
}

/// The configuration without those of `modules_to_save` that hold the adapter itself: a training code may have PEFT save its
/// memories so. Others are weights of the base that were trained, too.
fn without_own_modules<'a>(
    mut config: Map<String, Value>,
    names: impl Iterator<Item = &'a str> + Clone,
    mapping: Option<&Mapping>,
) -> Result<Map<String, Value>> {
    let Some(Value::Array(modules)) = config.get_mut(MODULES_TO_SAVE) else { return Ok(config) };
    let mut layout = Reader::of(mapping);
    let mut is_part = |name: &str| -> Result<bool> {
        match layout.read(name)? {
            Some(mapped) => Ok(matches!(mapped, Mapped::Part { .. })),
            None => Ok(names::is_part(name)),
        }
    };
    let mut others = Vec::new();
    for module in std::mem::take(modules) {
        let inside = module.as_str().map(|module| format!(".{module}."));
        let is_inside = |name: &&str| inside.as_deref().is_some_and(|m| format!(".{name}.").contains(m));
        let (mut n_parts, mut n_others) = (0, 0);
        for name in names.clone().filter(is_inside).filter(|name| !rules::is_untrained(name)) {
            *(if is_part(name)? { &mut n_parts } else { &mut n_others }) += 1;
        }
        if n_parts == 0 || n_others > 0 {
            others.push(module);
        }
    }
    *modules = others;
    Ok(config)
}

/// What configuration and flag say about the orientation of the memories.
///
/// # Errors
///
/// [`Code::ConfigField`];
/// [`Code::ConventionContradiction`].
fn transposition(config: &Map<String, Value>, flag: Option<bool>) -> Result<Option<bool>> {
    let stated = match config.get(TRANSPOSE_MEMORY) {
        None | Some(Value::Null) => None,
        Some(Value::Bool(b)) => Some(*b),
        Some(other) => {
            return Err(
                Error::new(Code::ConfigField, format!("expected true or false, found {other}")).field(TRANSPOSE_MEMORY)
            );
        }
    };
    match (stated, flag) {
        (Some(a), Some(b)) if a != b => {
            let message =
                format!("expected {a}, as configuration or layout file says, found {b} in the flag: state one of them");
            Err(Error::new(Code::ConventionContradiction, message).field("--transpose-memory"))
        }
        _ => Ok(stated.or(flag)),
    }
}
