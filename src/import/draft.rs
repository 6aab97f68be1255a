//! An adapter whose tensors are known by role while some conventions may still be open.
//!
//! ```text
//!   TensorSource -> names (layout file, then rules) -> Draft { parts, ledger, statements } -> read as a Reading -> Imported
//! ```

mod orientation;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use super::assemble::{self, Pieces};
use super::axes::{Axes, Axis};
use super::ledger::{Entry, Fate, Ledger};
use super::mapping::{Mapped, Mapping};
use super::rules::{self, Meaning, Rows};
use super::source::{SourceTensor, TensorSource};
use super::stated::Stated;
use super::statements::{self, Settled};
use super::{Imported, Options, Origin};
use crate::adapter::{Adapter, AdapterLayer, MemorySharing, Role, RowOrder, StatedLayers};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::{Finding, Findings};
use crate::format::limits::LAYOUT_TIME;
use crate::tensor::{LazyTensor, shape};
pub use orientation::Orientation;

/// Most tensors of an adapter in a source: one for each role in each of 128 heads of 128 layers, rarer than any in use.
const MAX_PARTS: usize = 1 << 16;
/// Most layers of a stacked tensor, as many as a model may have.
const MAX_STACKED: usize = 1 << 12;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What everybody states.
    pub stated: Stated,
    /// Who settled what, for the conventions that the configuration does not state.
    pub settled: Settled,
    /// What became of every tensor.
    pub ledger: Ledger,
    /// Missing, left-over and doubly claimed tensors.
    pub findings: Vec<Finding>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// `adapter_config.json` as read, with what flags and the layout file add.
    pub config: Map<String, Value>,
    /// For people: `safetensors of another training code`, ...
    pub layout: String,
    path: PathBuf,
    config_path: Option<PathBuf>,
    transpose_memory: Option<bool>,
    parts: Vec<Part>,
    /// The layers of a tensor that stacks this many; absent where nothing says them.
    stacked_layers: Option<Vec<usize>>,
}

/// A tensor with a role.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    role: Role,
    layer: Option<usize>,
    head: Option<usize>,
    order: Order,
    tensor: LazyTensor,
}

/// What is known about the order of a part's axes.
#[derive(Debug, Clone)]
enum Order {
    /// A layout file states it.
    Stated(Axes),
    /// The name fixes it.
    Canonical,
    /// Open.
    Open,
}

/// Which stored head serves which query head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum HeadOrder {
    /// As SPEC says: memory `j` serves the query heads `j*g .. j*g+g-1`.
    #[default]
    InOrder,
    /// Memory `j` of a key/value head serves query heads `j, j + H_kv, ..` (`repeat` where SPEC has `repeat_interleave`);
    /// with one memory per query head, those of a group lie `H_kv` apart.
    Strided,
}

pub(super) fn read(path: &Path, source: TensorSource, options: &Options, base: Option<&BaseModel>) -> Result<Draft> {
    let mapping = options.layout.as_deref().map(Mapping::open).transpose()?;
    let (config_path, config) = match source.config {
        Some((path, Value::Object(map))) => (Some(path), map),
        Some((path, other)) => return Err(Stated::from_json(other).map(|_| ()).unwrap_err().file(&path)),
        None => (None, Map::new()),
    };
    // The configuration alone first, so that its own mistakes are reported as such.
    Stated::from_json(Value::Object(config.clone())).map_err(|e| match &config_path {
        Some(p) => e.file(p),
        None => e,
    })?;
    let (config, settled) = statements::merge(config, mapping.as_ref().map(|m| &m.constants), &options.stated)?;
    let of_layout = |e: Error| match &options.layout {
        Some(p) => e.file(p),
        None => e,
    };
    let transpose_memory = transposition(&config, options.transpose_memory).map_err(|e| match &config_path {
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
        ledger: Ledger::default(),
        findings: Vec::new(),
        files: source.files.into_iter().chain(options.layout.clone()).collect(),
        config,
        path: path.to_owned(),
        config_path,
        layout: String::new(),
        transpose_memory,
        parts: Vec::new(),
        stacked_layers: None,
    };
    if options.transpose_memory.is_some() {
        draft.settled.insert("transpose_memory".into(), "flag".into());
    }
    draft
        .classify(source.tensors, mapping.as_ref(), base)
        .map_err(|e| if matches!(e.code(), Code::LayoutFile | Code::LayoutSyntax) { of_layout(e) } else { e })?;
    draft.stacked_layers = draft.layers_of_stack(base);
    draft.enter_parts();
    draft.layout = match (&mapping, draft.parts.iter().all(|p| Adapter::is_canonical_name(&p.name))) {
        (Some(_), _) => format!("{} read as the layout file says", source.format),
        (None, true) => format!("canonical {}", source.format),
        (None, false) => format!("{} of another training code", source.format),
    };
    Ok(draft)
}

/// Key of `adapter_config.json` for `--transpose-memory`.
const TRANSPOSE_MEMORY: &str = "transpose_memory";

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
                format!("expected {a}, as adapter_config.json says, found {b} in the flag: state one of them");
            Err(Error::new(Code::ConventionContradiction, message).field("--transpose-memory"))
        }
        _ => Ok(stated.or(flag)),
    }
}

/// Whether any name is that of an adapter's part, layout files aside.
pub(crate) fn has_parts(tensors: &[SourceTensor]) -> bool {
    tensors.iter().any(|t| matches!(rules::read(&t.name), Meaning::Part { .. }))
}

impl Draft {
    /// Finds every tensor's meaning. Bytes are touched (checksums) for the adapter's parts alone.
    fn classify(
        &mut self,
        tensors: Vec<SourceTensor>,
        mapping: Option<&Mapping>,
        base: Option<&BaseModel>,
    ) -> Result<()> {
        if let Some(m) = mapping {
            m.check_work(tensors.iter().map(|t| t.name.len()).sum())?;
        }
        let names = tensors.iter().map(|t| t.name.as_str());
        if mapping.is_none() && !has_parts(&tensors) {
            let is_whole_model = names.clone().any(|name| matches!(rules::read(name), Meaning::Ignored(_)));
            return Err(self.no_part(names, is_whole_model));
        }
        let base_names: HashSet<&str> = base.into_iter().flat_map(|b| b.tensors()).map(|t| t.name.as_str()).collect();
        let mut suffixes: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut is_whole_model = false;
        self.ledger.entries.reserve(tensors.len());
        let start = Instant::now();
        for t in tensors {
            let mapped = match mapping {
                Some(_) if start.elapsed() > LAYOUT_TIME => {
                    let message = format!("the patterns took more than {LAYOUT_TIME:?} to match names");
                    return Err(Error::new(Code::LayoutSyntax, message).field(&t.name));
                }
                Some(m) => m.read(&t.name)?,
                None => None,
            };
            let mut entry = Entry {
                name: t.name.clone(),
                dtype: t.dtype(),
                shape: t.shape().to_vec(),
                tensor: None,
                fate: Fate::LeftOver,
            };
            let part = match mapped {
                Some(Mapped::Ignored(reason)) => {
                    entry.fate = Fate::Ignored { reason };
                    None
                }
                Some(Mapped::Part { role, layer, head, axes }) => {
                    Some((role, layer, head, axes.map_or(Order::Open, Order::Stated), None))
                }
                None => match rules::read(&t.name) {
                    Meaning::Part { rule, layer, head, adapter } => {
                        let order = match (rule.rows, rule.role, self.transpose_memory) {
                            (Rows::Open, ..) | (_, Role::Memory, Some(_)) => Order::Open,
                            _ => Order::Canonical,
                        };
                        Some((rule.role, layer, head, order, Some(adapter)))
                    }
                    Meaning::Ignored(reason) => {
                        is_whole_model = true;
                        entry.fate = Fate::Ignored { reason: reason.into() };
                        None
                    }
                    Meaning::Unknown { .. } if base_names.contains(t.name.as_str()) => {
                        entry.fate = Fate::Ignored { reason: "weights of the base model".into() };
                        None
                    }
                    Meaning::Unknown { looks_like_adapter } => {
                        unknown.push((self.ledger.entries.len(), looks_like_adapter));
                        None
                    }
                },
            };
            if let Some((role, layer, head, order, adapter)) = part {
                if self.parts.len() == MAX_PARTS {
                    let message = format!("expected at most {MAX_PARTS} tensors of an adapter, found more");
                    return Err(Error::new(Code::AdapterShape, message).file(&self.path).field(&entry.name));
                }
                if let Some(adapter) = adapter {
                    suffixes.entry(adapter).or_default().push(self.parts.len());
                }
                // An impossible shape must not be opened: its size may overflow.
                shape::len_bytes(&entry.shape, entry.dtype).map_err(|e| e.file(&self.path).field(&entry.name))?;
                let tensor = t.open().map_err(|e| e.file(&self.path))?;
                entry.tensor = Some(tensor.clone());
                entry.fate = Fate::Consumed { layers: layer.into_iter().collect(), role };
                self.parts.push(Part { name: t.name.clone(), role, layer, head, order, tensor });
            }
            self.ledger.entries.push(entry);
        }
        self.one_adapter_name(&suffixes, &mut unknown);
        if self.parts.is_empty() {
            let names = self.ledger.entries.iter().filter(|e| e.fate == Fate::LeftOver).map(|e| e.name.as_str());
            return Err(self.no_part(names, is_whole_model));
        }
        // A file that holds nothing but an adapter has no business with other weights.
        let left_over = unknown.iter().filter(|(_, looks_like_adapter)| *looks_like_adapter || !is_whole_model);
        let mut findings = Findings::from(std::mem::take(&mut self.findings));
        findings.extend(left_over.map(|(i, _)| {
            Finding::new(
                Code::AdapterLeftOver,
                &self.ledger.entries[*i].name,
                "a tensor that a rule knows (or an entry of a layout file, --layout)",
                "a tensor that belongs to no part of the adapter",
            )
        }));
        self.findings = findings.into_vec();
        Ok(())
    }

    /// The refusal of a source without any part of an adapter; `names` are those that nothing claims.
    fn no_part<'a>(&self, names: impl Iterator<Item = &'a str>, is_whole_model: bool) -> Error {
        let is_suspect = |name: &&str| match rules::read(name) {
            Meaning::Unknown { looks_like_adapter } => looks_like_adapter || !is_whole_model,
            _ => false,
        };
        let suspects: Vec<&str> = names.filter(is_suspect).take(5).collect();
        let found = match suspects[..] {
            [] => "none".into(),
            _ => format!("none that a rule knows, but {}", suspects.join(", ")),
        };
        let message = format!(
            "expected tensors of a Prefix-Tuning+ adapter (layers.{{i}}.memory or another known layout), found {found}; a layout file can say what they are: ptplus inspect --suggest-layout"
        );
        Error::new(Code::AdapterKind, message).file(&self.path)
    }

    /// Words after a rule's phrase are taken for PEFT's adapter name only where every part has the same.
    fn one_adapter_name(&mut self, suffixes: &BTreeMap<Option<String>, Vec<usize>>, unknown: &mut Vec<(usize, bool)>) {
        if suffixes.len() < 2 {
            return;
        }
        // Plain names count; without any, `default`, PEFT's own. The others are left over.
        let default = Some("default".to_owned());
        let kept = if suffixes.contains_key(&None) { None } else { default };
        let dropped: HashSet<usize> =
            suffixes.iter().filter(|(s, _)| **s != kept).flat_map(|(_, parts)| parts.iter().copied()).collect();
        let mut names = HashSet::new();
        let mut i = 0;
        self.parts.retain(|part| {
            let is_dropped = dropped.contains(&i);
            i += 1;
            if is_dropped {
                names.insert(part.name.clone());
            }
            !is_dropped
        });
        for (k, entry) in self.ledger.entries.iter_mut().enumerate().filter(|(_, e)| names.contains(&e.name)) {
            (entry.fate, entry.tensor) = (Fate::LeftOver, None);
            unknown.push((k, true));
        }
        unknown.sort_unstable();
    }

    /// The layers that a stacked tensor's axis L counts.
    fn layers_of_stack(&self, base: Option<&BaseModel>) -> Option<Vec<usize>> {
        let n = self.parts.iter().filter(|p| p.layer.is_none()).find_map(|p| self.plain_len(p, Axis::Layer))?;
        let n_layers = self.stated.num_layers.or(base.map(|b| b.config.n_layers));
        match &self.stated.layers_to_transform {
            Some(StatedLayers::List(list)) => (list.len() == n).then(|| list.clone()),
            _ => (n_layers.is_none_or(|all| all == n) && n <= MAX_STACKED).then(|| (0..n).collect()),
        }
    }

    fn enter_parts(&mut self) {
        let Some(list) = &self.stacked_layers else { return };
        let list: Arc<[usize]> = list.as_slice().into();
        let stacked = self.parts.iter().filter(|p| p.layer.is_none());
        let roles: HashMap<&str, Role> = stacked.map(|p| (p.name.as_str(), p.role)).collect();
        for e in &mut self.ledger.entries {
            if let Some(role) = roles.get(e.name.as_str()) {
                e.fate = Fate::Consumed { layers: list.clone(), role: *role };
            }
        }
    }

    /// The layers under a reading, with what is missing or claimed twice.
    pub(super) fn layers(
        &self,
        o: Orientation,
        heads: HeadOrder,
        sharing: Option<MemorySharing>,
        base: Option<&BaseModel>,
        findings: &mut Findings,
    ) -> Result<BTreeMap<usize, AdapterLayer>> {
        let known = self.sizes(sharing, base);
        /// The pieces of one tensor by head, each with its name in the source.
        type Heads<'a> = BTreeMap<Option<usize>, (&'a str, LazyTensor)>;
        let mut slots: BTreeMap<(usize, Role), Heads<'_>> = BTreeMap::new();
        let mut stacks: HashMap<(Role, Option<usize>), &str> = HashMap::new();
        let mut n_pieces = 0;
        for p in &self.parts {
            let Some((axes, sizes)) = Self::stored_axes(p, o, &known) else {
                findings.push(Finding::new(
                    Code::AdapterShape,
                    &p.name,
                    format!(
                        "axes {} of this role, heads perhaps flattened into rows",
                        Axes::new(Self::own_axes(p).into_iter().map(|a| vec![a]).collect())
                    ),
                    format!("shape {:?}", p.tensor.shape()),
                ));
                continue;
            };
            let all = axes.apply(p.tensor.clone(), &sizes).map_err(|e| e.file(&self.path).field(&p.name))?;
            let layers = match p.layer {
                Some(layer) => vec![layer],
                None => self.stacked_layers.clone().filter(|l| l.len() == all.shape()[0]).unwrap_or_default(),
            };
            if p.layer.is_none() && layers.is_empty() {
                findings.push(Finding::new(
                    Code::AdapterShape,
                    &p.name,
                    "as many layers in this tensor as are adapted (--layers says which)",
                    format!("{} in shape {:?}", all.shape()[0], p.tensor.shape()),
                ));
                continue;
            }
            if p.layer.is_none()
                && let Some(other) = stacks.insert((p.role, p.head), &p.name)
            {
                let found = format!("{other:?} and {:?}", p.name);
                findings.push(Finding::new(Code::AdapterDuplicate, p.role.name(), "one tensor of all layers", found));
                continue;
            }
            for (k, layer) in layers.into_iter().enumerate() {
                let slot = slots.entry((layer, p.role)).or_default();
                // All of a slot have a head, or none has.
                let mixed = || slot.first_key_value().filter(|(h, _)| h.is_none() != p.head.is_none()).map(|(_, v)| v);
                if let Some((other, _)) = slot.get(&p.head).or_else(mixed) {
                    findings.push(Finding::new(
                        Code::AdapterDuplicate,
                        Adapter::canonical_name(layer, p.role),
                        "one tensor",
                        format!("{other:?} and {:?}", p.name),
                    ));
                    continue;
                }
                n_pieces += 1;
                if n_pieces > MAX_PARTS {
                    let message = format!("expected at most {MAX_PARTS} parts (layers, heads, roles), found more");
                    return Err(Error::new(Code::AdapterShape, message).file(&self.path).field(&p.name));
                }
                slot.insert(p.head, (&p.name, all.select(k)));
            }
        }
        let mut pieces = Pieces::new();
        for ((layer, role), heads) in slots {
            if let Some(missing) = heads.keys().flatten().enumerate().find(|(i, h)| i != *h).map(|(i, _)| i) {
                findings.push(Finding::new(
                    Code::AdapterMissing,
                    Adapter::canonical_name(layer, role),
                    format!("heads from 0 to {}", heads.len().max(missing + 1) - 1),
                    format!("no tensor for head {missing}"),
                ));
                continue;
            }
            let place = |e: Error| e.file(&self.path).field(Adapter::canonical_name(layer, role));
            let tensors: Vec<LazyTensor> = heads.into_values().map(|(_, t)| t).collect();
            let joined = LazyTensor::concat(tensors).map_err(place)?;
            pieces.insert((layer, role), joined);
        }
        let mut layers = assemble::layers(pieces, findings);
        if heads == HeadOrder::Strided {
            let (n, n_kv) = self.heads(base).unwrap_or((1, 1));
            for layer in layers.values_mut() {
                for role in Role::ALL {
                    if let Some(t) = layer.get_mut(*role) {
                        *t = strided_heads(t, n, n_kv).map_err(|e| e.file(&self.path))?;
                    }
                }
            }
        }
        Ok(layers)
    }

    /// H and H_kv.
    pub(super) fn heads(&self, base: Option<&BaseModel>) -> Option<(usize, usize)> {
        let n = self.stated.num_attention_heads.or(base.map(|b| b.config.n_heads))?;
        let n_kv = self.stated.num_key_value_heads.or(base.map(|b| b.config.n_kv_heads))?;
        (n_kv > 0 && n.is_multiple_of(n_kv)).then_some((n, n_kv))
    }

    /// What nothing states, by its key; empty where the adapter can be read.
    pub fn open(&self, base: Option<&BaseModel>) -> Vec<&'static str> {
        let mut open = self.stated.open_conventions();
        let orientations = self.orientations(self.stated.memory_sharing, base);
        let differ = |f: fn(&Orientation) -> bool| orientations.iter().any(|o| f(o) != f(&orientations[0]));
        if !orientations.is_empty() && differ(|o| o.transposed) {
            open.push("transpose_memory");
        }
        if !orientations.is_empty() && differ(|o| o.heads_inner) {
            open.push("flattening_order");
        }
        let stacked = self.parts.iter().any(|p| p.layer.is_none());
        if stacked && self.stacked_layers.is_none() && self.stated.layers_to_transform.is_none() {
            open.push("layers_to_transform");
        }
        open
    }

    /// The adapter, where nothing is open.
    ///
    /// # Errors
    ///
    /// [`Code::ConventionOpen`], listing all that is.
    pub fn into_imported(mut self, base: Option<&BaseModel>) -> Result<Imported> {
        let open = self.open(base);
        let orientation = self.orientations(self.stated.memory_sharing, base).first().copied().unwrap_or_default();
        let mut findings = Findings::from(std::mem::take(&mut self.findings));
        let layers = self.layers(orientation, HeadOrder::InOrder, self.stated.memory_sharing, base, &mut findings)?;
        self.finish(layers, findings, &open, base)
    }

    /// The adapter from layers that were settled on.
    pub(super) fn finish(
        self,
        layers: BTreeMap<usize, AdapterLayer>,
        mut findings: Findings,
        open: &[&'static str],
        base: Option<&BaseModel>,
    ) -> Result<Imported> {
        let mut stated = self.stated;
        if let Some(n) = self.stacked_layers.as_ref().filter(|_| base.is_none() && stated.layers_to_transform.is_none())
        {
            stated.num_layers.get_or_insert(n.len());
        }
        if !self.settled.is_empty() {
            stated.extra.insert(statements::RECORD_KEY.into(), statements::record(&self.settled));
        }
        let place = |e: Error| e.file(self.config_path.as_deref().unwrap_or(&self.path));
        let config = assemble::config(stated, &layers, base, open).map_err(place)?;
        assemble::check_stated_layers(
            config.layers_to_transform.as_ref(),
            config.geometry.n_layers,
            &layers,
            &mut findings,
        );
        Ok(Imported {
            adapter: Adapter { config, layers },
            ledger: self.ledger,
            findings: findings.into_vec(),
            origin: Origin {
                path: self.path,
                files: self.files,
                layout: self.layout,
                gguf_architecture: None,
                row_order: RowOrder::Neox,
                recorded_dtypes: Default::default(),
                recorded_source_sha256: None,
                config_digest_text: crate::digest::sorted_compact_json(&Value::Object(self.config)),
            },
        })
    }
}

/// One memory per query head, from heads that are stored [`HeadOrder::Strided`].
fn strided_heads(t: &LazyTensor, n_heads: usize, n_kv_heads: usize) -> Result<LazyTensor> {
    let stored = t.shape()[0];
    let group = n_heads / n_kv_heads;
    let index = |head: usize| {
        if stored == n_heads { (head % group) * n_kv_heads + head / group } else { head % n_kv_heads }
    };
    if stored != n_heads && stored != n_kv_heads {
        return Ok(t.clone());
    }
    if t.is_one_view() {
        // As strides, since a view for each head of each layer is many.
        return Ok(match stored == n_heads {
            true => t.clone().regroup(0, n_kv_heads),
            false => t.clone().repeat0(group),
        });
    }
    LazyTensor::concat((0..n_heads).map(|h| t.narrow(index(h), 1)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_heads_are_those_of_the_query_heads_that_they_serve() {
        let (n, n_kv) = (6, 3);
        for stored in [n, n_kv] {
            let heads: Vec<f32> = (0..stored).map(|h| h as f32).collect();
            let whole = LazyTensor::from_f32(&heads, &[stored, 1]);
            let pieces = (0..stored).map(|h| whole.narrow(h, 1)).collect();
            let expected: Vec<f32> = match stored == n {
                // The two heads of a group lie three apart.
                true => vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0],
                false => vec![0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
            };
            for t in [whole.clone(), LazyTensor::concat(pieces).unwrap()] {
                let found = strided_heads(&t, n, n_kv).unwrap();
                assert_eq!(found.to_bytes(), LazyTensor::from_f32(&expected, &[n, 1]).to_bytes(), "{stored} stored");
            }
        }
    }
}
