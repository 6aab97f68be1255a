//! The layers that the parts of a draft make under a reading of their axes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::names::MAX_PARTS;
use super::{Draft, Orientation};
use crate::adapter::plus::{self, MemorySharing, PARTS, StatedLayers};
use crate::adapter::{Part, Slot};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::Findings;
use crate::import::assemble::{self, Pieces};
use crate::import::axes::{Axes, Axis};
use crate::import::ledger::Fate;
use crate::tensor::LazyTensor;

/// Most layers of a stacked tensor, as many as a model may have.
pub(super) const MAX_STACKED: usize = 1 << 12;

/// Bytes that shared parts may have once they are repeated for each head, beyond as many as all memories have: as a
/// checkpoint's own repetitions may. Whoever scans them takes as long as they are large.
const MAX_REPEATED_BYTES: usize = 320 << 20;

/// Which stored head serves which query head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum HeadOrder {
    /// As docs/METHOD.md says: memory `j` serves the query heads `j*g .. j*g+g-1`.
    #[default]
    InOrder,
    /// Memory `j` of a key/value head serves query heads `j, j + H_kv, ..` (`repeat` where the method has `repeat_interleave`);
    /// with one memory per query head, those of a group lie `H_kv` apart.
    Strided,
}

impl Draft {
    /// The layers that a stacked tensor's axis L counts.
    pub(super) fn layers_of_stack(&self, base: Option<&BaseModel>) -> Option<Vec<usize>> {
        let mut stacks = self.parts.iter().filter(|p| p.layer.is_none()).peekable();
        stacks.peek()?;
        // Where L shares a dimension with other axes, the shape does not say it.
        let found = stacks.find_map(|p| self.plain_len(p, Axis::Layer));
        let n_layers = self.stated.sizes.or_base(base).n_layers;
        match &self.stated.layers_to_transform {
            Some(StatedLayers::List(list)) => found.is_none_or(|n| n == list.len()).then(|| list.clone()),
            _ => {
                let n = found.or(n_layers)?;
                (n_layers.is_none_or(|all| all == n) && n <= MAX_STACKED).then(|| (0..n).collect())
            }
        }
    }

    pub(super) fn enter_parts(&mut self) {
        let Some(list) = &self.stacked_layers else { return };
        let of_part = |part: Part| -> (Part, Arc<[Slot]>) {
            (part, list.iter().map(|layer| Slot::attention(*layer, part)).collect())
        };
        let slots: HashMap<Part, Arc<[Slot]>> = PARTS.iter().map(|spec| of_part(spec.part)).collect();
        let stacked = self.parts.iter().filter(|p| p.layer.is_none());
        let parts: HashMap<&str, Part> = stacked.map(|p| (p.name.as_str(), p.part)).collect();
        for e in &mut self.ledger.entries {
            if let Some(part) = parts.get(e.name.as_str()) {
                e.fate = Fate::Consumed { slots: slots[part].clone() };
            }
        }
    }

    /// The layers under a reading, with what is missing or claimed twice.
    pub(in crate::import) fn layers(
        &self,
        o: Orientation,
        heads: HeadOrder,
        sharing: Option<MemorySharing>,
        base: Option<&BaseModel>,
        findings: &mut Findings,
    ) -> Result<BTreeMap<usize, plus::Layer>> {
        let mut layers = self.stored_layers(o, sharing, base, findings)?;
        self.fold_gates(&mut layers, findings).map_err(|e| e.file(&self.path))?;
        if heads == HeadOrder::Strided {
            let (n, n_kv) = self.heads(base).unwrap_or((1, 1));
            for layer in layers.values_mut() {
                for part in PARTS.iter().map(|spec| spec.part) {
                    if let Some(t) = layer.get_mut(part) {
                        *t = strided_heads(t, n, n_kv).map_err(|e| e.file(&self.path))?;
                    }
                }
            }
        }
        Ok(layers)
    }

    /// The layers as they are stored: heads in their order, without gates.
    pub(super) fn stored_layers(
        &self,
        o: Orientation,
        sharing: Option<MemorySharing>,
        base: Option<&BaseModel>,
        findings: &mut Findings,
    ) -> Result<BTreeMap<usize, plus::Layer>> {
        let known = self.sizes(sharing, base);
        /// The pieces of one tensor by head, each with its name in the source.
        type Heads<'a> = BTreeMap<Option<usize>, (&'a str, LazyTensor)>;
        let mut slots: BTreeMap<Slot, Heads<'_>> = BTreeMap::new();
        let mut stacks: HashMap<(Part, Option<usize>), &str> = HashMap::new();
        let mut n_pieces = 0;
        // Where one tensor has the layer in its name and no head, its heads may be one for all.
        let mut by_layer: HashSet<Slot> = HashSet::new();
        for p in &self.parts {
            let Some((axes, sizes)) = Self::stored_axes(p, o, &known) else {
                findings.add(
                    Code::AdapterShape,
                    &p.name,
                    format!(
                        "axes {} of this role, heads perhaps flattened into rows",
                        Axes::new(p.own_axes().into_iter().map(|a| vec![a]).collect())
                    ),
                    format!("shape {:?}", p.tensor.shape()),
                );
                continue;
            };
            let all = axes.apply(p.tensor.clone(), &sizes).map_err(|e| e.file(&self.path).field(&p.name))?;
            let layers = match p.layer {
                Some(layer) => vec![layer],
                None => self.stacked_layers.clone().filter(|l| l.len() == all.shape()[0]).unwrap_or_default(),
            };
            if p.layer.is_none() && layers.is_empty() {
                findings.add(
                    Code::AdapterShape,
                    &p.name,
                    "as many layers in this tensor as are adapted (--layers says which)",
                    format!("{} in shape {:?}", all.shape()[0], p.tensor.shape()),
                );
                continue;
            }
            if p.layer.is_none()
                && let Some(other) = stacks.insert((p.part, p.head), &p.name)
            {
                let found = format!("{other:?} and {:?}", p.name);
                findings.add(Code::AdapterDuplicate, p.part.name(), "one tensor of all layers", found);
                continue;
            }
            for (k, layer) in layers.into_iter().enumerate() {
                let slot = Slot::attention(layer, p.part);
                let heads = slots.entry(slot).or_default();
                // All of a slot have a head, or none has.
                let mixed = || heads.first_key_value().filter(|(h, _)| h.is_none() != p.head.is_none()).map(|(_, v)| v);
                if let Some((other, _)) = heads.get(&p.head).or_else(mixed) {
                    findings.add(
                        Code::AdapterDuplicate,
                        slot.canonical_name(),
                        "one tensor",
                        format!("{other:?} and {:?}", p.name),
                    );
                    // In all layers of a stack alike.
                    break;
                }
                n_pieces += 1;
                if p.layer.is_some() && p.head.is_none() {
                    by_layer.insert(slot);
                }
                if n_pieces > MAX_PARTS {
                    let message = format!("expected at most {MAX_PARTS} parts (layers, heads, roles), found more");
                    return Err(Error::new(Code::AdapterShape, message).file(&self.path).field(&p.name));
                }
                heads.insert(p.head, (&p.name, all.select(k)));
            }
        }
        let mut pieces = Pieces::new();
        for (slot, heads) in slots {
            if let Some(missing) = heads.keys().flatten().enumerate().find(|(i, h)| i != *h).map(|(i, _)| i) {
                findings.add(
                    Code::AdapterMissing,
                    slot.canonical_name(),
                    format!("heads from 0 to {}", heads.len().max(missing + 1) - 1),
                    format!("no tensor for head {missing}"),
                );
                continue;
            }
            let place = |e: Error| e.file(&self.path).field(slot.canonical_name());
            let tensors: Vec<LazyTensor> = heads.into_values().map(|(_, t)| t).collect();
            let joined = LazyTensor::concat(tensors).map_err(place)?;
            pieces.insert(slot, joined);
        }
        let mut layers = assemble::layers(pieces, findings);
        if !self.is_canonical() {
            let memories: usize = layers.values().map(|l| l.memory.len_bytes()).fold(0, usize::saturating_add);
            let mut left = memories.saturating_add(MAX_REPEATED_BYTES);
            for (&i, layer) in &mut layers {
                let may = |part| by_layer.contains(&Slot::attention(i, part));
                repeat_shared(layer, may, &mut left)
                    .map_err(|(part, e)| e.file(&self.path).field(Slot::attention(i, part).canonical_name()))?;
            }
        }
        Ok(layers)
    }

    /// H and H_kv.
    pub(in crate::import) fn heads(&self, base: Option<&BaseModel>) -> Option<(usize, usize)> {
        self.stated.sizes.or_base(base).heads()
    }
}

/// A feature map or normaliser that all heads of a memory share, as broadcasting has it, once for each: the canonical form
/// has one number of heads. `left` are the bytes that may yet be made so.
fn repeat_shared(layer: &mut plus::Layer, may: impl Fn(Part) -> bool, left: &mut usize) -> Result<(), (Part, Error)> {
    let n_heads = layer.memory.shape().first().copied().unwrap_or(0);
    for part in PARTS.iter().map(|spec| spec.part).filter(|part| *part != Part::Memory) {
        let is_shared = |t: &&mut LazyTensor| n_heads > 1 && may(part) && t.shape().first() == Some(&1);
        let Some(t) = layer.get_mut(part).filter(is_shared) else { continue };
        // What is empty takes no bytes and may still be more elements than there are numbers.
        let most = t.shape().iter().fold(t.len_bytes().max(1), |n, &len| if len == 0 { usize::MAX } else { n });
        let rest = most.checked_mul(n_heads).and_then(|n| left.checked_sub(n));
        *left = rest.ok_or_else(|| {
            let message =
                format!("expected one for each of {n_heads} heads, found one for all, and too large to repeat");
            (part, Error::new(Code::AdapterShape, message))
        })?;
        let repeated = if t.is_one_view() {
            t.clone().repeat0(n_heads)
        } else {
            LazyTensor::concat(vec![t.clone(); n_heads]).map_err(|e| (part, e))?
        };
        *t = repeated;
    }
    Ok(())
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
