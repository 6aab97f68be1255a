//! The meaning of every tensor of a source, by its name.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::{Draft, Gate, Order, StoredPart};
use crate::adapter::{Part, Slot};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::{Finding, Findings};
use crate::format::pickle::Objects;
use crate::import::axes::{Axes, Axis};
use crate::import::base_weights::BaseWeights;
use crate::import::gate_map::GateMap;
use crate::import::ledger::{Entry, Fate};
use crate::import::mapping::{Mapped, Mapping, Reader};
use crate::import::rules::{self, Meaning, Rows};
use crate::import::source::SourceTensor;
use crate::import::stated::PEFT_TYPE;
use crate::tensor::{LazyTensor, shape};

/// Most tensors of an adapter in a source: one for each part in each of 128 heads of 128 layers, rarer than any in use.
pub(super) const MAX_PARTS: usize = 1 << 16;

/// Whether any name is that of an adapter's part, layout files aside.
pub(crate) fn has_parts(tensors: &[SourceTensor]) -> bool {
    tensors.iter().any(|t| matches!(rules::read(&t.name), Meaning::Part { .. }))
}

/// Whether a name is that of an adapter's part, or of a factor of it.
pub(crate) fn is_part(name: &str) -> bool {
    matches!(rules::read(name), Meaning::Part { .. } | Meaning::Scale { .. })
}

/// A tensor of `rank` dimensions, where leaving out some of length 1 makes it one and it makes no difference which.
fn without_ones(tensor: LazyTensor, rank: usize) -> LazyTensor {
    let shape = tensor.shape();
    let ones: Vec<usize> = (0..shape.len()).filter(|&i| shape[i] == 1).collect();
    let n_over = shape.len().saturating_sub(rank);
    if n_over == 0 || ones.len() < n_over {
        return tensor;
    }
    let (first, last) = (&ones[..n_over], &ones[ones.len() - n_over..]);
    let rest =
        |without: &[usize]| (0..shape.len()).filter(|i| !without.contains(i)).map(|i| shape[i]).collect::<Vec<_>>();
    if rest(first) != rest(last) {
        return tensor;
    }
    first.iter().rev().fold(tensor.clone(), |t, &axis| t.squeeze(axis))
}

impl Draft {
    /// Finds every tensor's meaning. Bytes are touched (checksums) for the adapter's parts alone.
    pub(super) fn classify(
        &mut self,
        tensors: Vec<SourceTensor>,
        objects: Objects,
        mapping: Option<&Mapping>,
        base: Option<&BaseModel>,
    ) -> Result<()> {
        self.refuse_hidden_parts(&objects, mapping)?;
        self.ledger.objects = objects;
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
        let mut layout = Reader::of(mapping);
        let mut base_weights = BaseWeights::of(base);
        let mut findings = Findings::from(std::mem::take(&mut self.findings));
        for t in tensors {
            let mapped = layout.read(&t.name)?;
            let mut entry = Entry::new(&t.name, t.dtype(), t.shape());
            let mut gate = None;
            let part = match mapped {
                Some(Mapped::Gate { layer, head, axes, map, is_scale }) => {
                    gate = Some((layer, head, axes, map, is_scale));
                    None
                }
                Some(Mapped::Ignored(reason)) => {
                    entry.fate = Fate::Ignored { reason };
                    None
                }
                Some(Mapped::Part { part, layer, head, axes }) => {
                    self.agrees_with_axes(part, axes.as_ref()).map_err(|e| e.file(&self.path).field(&t.name))?;
                    Some((part, layer, head, axes.map_or(Order::Open, Order::Stated), None))
                }
                None => match rules::read(&t.name) {
                    Meaning::Part { rule, layer, head, adapter } => {
                        let order = match (rule.rows, rule.part, self.transpose_memory) {
                            (Rows::Open, ..) | (_, Part::Memory, Some(_)) => Order::Open,
                            _ => Order::Canonical,
                        };
                        Some((rule.part, layer, head, order, Some(adapter)))
                    }
                    Meaning::Scale { layer, head } => {
                        gate = Some((layer, head, None, GateMap::Identity, true));
                        None
                    }
                    Meaning::Ignored(reason) => {
                        is_whole_model = true;
                        if reason == rules::BASE_WEIGHTS {
                            findings.extend(base_weights.difference(&t).map_err(|e| e.file(&self.path))?);
                        }
                        entry.fate = Fate::Ignored { reason: reason.into() };
                        None
                    }
                    Meaning::Unknown { .. } if base_names.contains(t.name.as_str()) => {
                        entry.fate = Fate::Ignored { reason: rules::BASE_WEIGHTS.into() };
                        findings.extend(base_weights.difference(&t).map_err(|e| e.file(&self.path))?);
                        None
                    }
                    Meaning::Unknown { looks_like_adapter } => {
                        unknown.push((self.ledger.entries.len(), looks_like_adapter));
                        None
                    }
                },
            };
            if let Some((layer, head, axes, map, is_scale)) = gate {
                if is_scale {
                    self.scale_is_learned(&t.name)?;
                }
                if self.gates.len() == MAX_PARTS {
                    let message = format!("expected at most {MAX_PARTS} gates, found more");
                    return Err(Error::new(Code::AdapterShape, message).file(&self.path).field(&entry.name));
                }
                shape::len_bytes(&entry.shape, entry.dtype).map_err(|e| e.file(&self.path).field(&entry.name))?;
                let tensor = t.open().map_err(|e| e.file(&self.path))?;
                entry.tensor = Some(tensor.clone());
                entry.fate = Fate::Folded { layers: layer.into_iter().collect() };
                self.gates.push(Gate { name: t.name.clone(), layer, head, axes, map, tensor });
            }
            if let Some((part, layer, head, order, adapter)) = part {
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
                // The canonical layout has one shape; whoever else stores axes of length 1 wrote them for broadcasting.
                let tensor = match order {
                    Order::Stated(_) => tensor,
                    _ if Slot::parse_canonical_name(&t.name).is_some() => tensor,
                    _ => without_ones(tensor, Self::own_axes(part, layer, head).len()),
                };
                entry.fate =
                    Fate::Consumed { slots: layer.into_iter().map(|layer| Slot::attention(layer, part)).collect() };
                self.parts.push(StoredPart { name: t.name.clone(), part, layer, head, order, tensor });
            }
            self.ledger.entries.push(entry);
        }
        self.notes.extend(base_weights.note());
        self.one_adapter_name(&suffixes, &mut unknown);
        if self.parts.is_empty() {
            let names = self.ledger.entries.iter().filter(|e| e.fate == Fate::LeftOver).map(|e| e.name.as_str());
            return Err(self.no_part(names, is_whole_model));
        }
        // A file that holds nothing but an adapter has no business with other weights.
        let left_over = unknown.iter().filter(|(_, looks_like_adapter)| *looks_like_adapter || !is_whole_model);
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

    /// A tensor is `memory_scale`: nobody may state another number.
    fn scale_is_learned(&mut self, name: &str) -> Result<()> {
        match self.stated.conventions.memory_scale {
            Some(1.0) => {}
            Some(stated) => {
                let message = format!("expected 1 or none stated beside the learned scale in {name:?}, found {stated}");
                return Err(Error::new(Code::ConventionContradiction, message).file(&self.path).field("memory_scale"));
            }
            None => {
                self.stated.conventions.memory_scale = Some(1.0);
                self.settled.insert("memory_scale".into(), "tensor".into());
            }
        }
        Ok(())
    }

    /// What is stated about the orientation of memories, against a layout file's axes of one.
    fn agrees_with_axes(&self, part: Part, axes: Option<&Axes>) -> Result<()> {
        let (Part::Memory, Some(axes), Some(stated)) = (part, axes, self.transpose_memory) else { return Ok(()) };
        let at = |axis| axes.axes().position(|a| a == axis);
        let found = at(Axis::Value) < at(Axis::Feature);
        if found == stated {
            return Ok(());
        }
        let message =
            format!("expected {found}, as the axes {axes} of the layout file say, found {stated}: state one of them");
        Err(Error::new(Code::ConventionContradiction, format!("transpose_memory: {message}")))
    }

    /// The refusal of a source without any part of an adapter; `names` are those that nothing claims.
    fn no_part<'a>(&self, names: impl Iterator<Item = &'a str>, is_whole_model: bool) -> Error {
        let is_suspect = |name: &&str| match rules::read(name) {
            Meaning::Unknown { looks_like_adapter } => looks_like_adapter || !is_whole_model,
            // Of one of several adapters, none of which is the default.
            Meaning::Part { .. } | Meaning::Scale { .. } => true,
            Meaning::Ignored(_) => false,
        };
        let suspects: Vec<&str> = names.filter(is_suspect).take(5).collect();
        let found = match suspects[..] {
            [] => "none".into(),
            _ => format!("none that a rule knows, but {}", suspects.join(", ")),
        };
        if let Some(object) = self.ledger.objects.listed.iter().find(|o| o.holds_numbers() || o.name.is_empty()) {
            return self.in_object(object, &object.name);
        }
        let kind = self.config.get("peft_type").and_then(Value::as_str).filter(|k| *k != PEFT_TYPE);
        let kind = kind.map_or(String::new(), |kind| format!(", and the configuration says peft_type {kind:?}"));
        let message = format!(
            "expected tensors of a Prefix-Tuning+ adapter (layers.{{i}}.memory or another known layout), found {found}{kind}; a layout file can say what they are: ptplus inspect --suggest-layout"
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_of_length_1_go_where_it_makes_no_difference_which() {
        for (shape, rank, expected) in [
            (&[1, 2, 3][..], 2, &[2, 3][..]),
            (&[2, 1, 3, 1], 2, &[2, 3]),
            (&[1, 1, 2, 3], 3, &[1, 2, 3]),
            (&[2, 1, 1, 3], 3, &[2, 1, 3]),
            (&[1, 2, 3], 3, &[1, 2, 3]),
            (&[2, 3, 4], 2, &[2, 3, 4]),
            // [2, 3, 1] or [1, 2, 3]
            (&[1, 2, 3, 1], 3, &[1, 2, 3, 1]),
        ] {
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let t = without_ones(LazyTensor::from_f32(&values, shape), rank);
            assert_eq!((t.shape(), t.to_bytes()), (expected, LazyTensor::from_f32(&values, shape).to_bytes()));
        }
    }
}
