//! The ledger: what became of every tensor of a source. Nothing is dropped silently.

use std::sync::Arc;

use crate::adapter::{Part, Slot};
use crate::base::Dialect;
use crate::format::pickle::Objects;
use crate::tensor::{DType, LazyTensor};

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is the adapter's in these slots; one, unless layers are stacked in one tensor.
    Consumed {
        /// All of one site and part.
        slots: Arc<[Slot]>,
    },
    /// It is multiplied into the memories of these layers.
    Folded {
        /// Layer numbers; none are all.
        layers: Arc<[usize]>,
    },
    /// It is not the adapter's, for a known reason.
    Ignored {
        /// Why, for people.
        reason: String,
    },
    /// Nothing knows it. If it looks like adapter weights, that is a finding.
    LeftOver,
}

/// One line of the ledger.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name in the source.
    pub name: String,
    /// Type in the source.
    pub dtype: DType,
    /// Shape in the source, outermost first.
    pub shape: Vec<usize>,
    /// The tensor as the source has it, for the source's digest; of the consumed ones only, so that bytes of a training
    /// checkpoint that are not the adapter's are never read.
    pub tensor: Option<LazyTensor>,
    /// What became of it.
    pub fate: Fate,
}

impl Entry {
    /// Of a tensor that nothing has looked at yet: left over, so far.
    pub(super) fn new(name: &str, dtype: DType, shape: &[usize]) -> Entry {
        Entry { name: name.to_owned(), dtype, shape: shape.to_vec(), tensor: None, fate: Fate::LeftOver }
    }

    /// Bytes that the elements occupy, 0 for a shape beyond any memory.
    pub fn len_bytes(&self) -> u64 {
        crate::tensor::shape::len_bytes(&self.shape, self.dtype).unwrap_or(0) as u64
    }

    /// What became of it, for people.
    pub fn fate_text(&self) -> String {
        match &self.fate {
            Fate::Consumed { slots } => {
                let part = slots.first().map_or("", |slot| slot.part.name());
                if let Some(weight) = slots.first().and_then(|slot| slot.weight()) {
                    let name = weight.name(Dialect::HuggingFace);
                    return match slots.first().map(|slot| slot.part) {
                        Some(Part::Whole) => name,
                        _ => format!("{part} of {name}"),
                    };
                }
                let part = match slots.first().map(|slot| slot.part) {
                    Some(Part::VirtualTokens) => return "embeddings of virtual tokens".into(),
                    Some(Part::PrefixKeys) if slots.len() > 1 => "prefix keys and values",
                    _ => part,
                };
                let mut layers: Vec<usize> = slots.iter().filter_map(|slot| slot.layer).collect();
                layers.dedup();
                match layers[..] {
                    [layer] => format!("{part} of layer {layer}"),
                    ref layers => format!("{part} of layers {}", ranges(layers)),
                }
            }
            Fate::Folded { layers } if layers.is_empty() => "multiplied into the memories".into(),
            Fate::Folded { layers } => match layers[..] {
                [layer] => format!("multiplied into the memory of layer {layer}"),
                _ => format!("multiplied into the memories of layers {}", ranges(layers)),
            },
            Fate::Ignored { reason } => format!("ignored: {reason}"),
            Fate::LeftOver => "left over".into(),
        }
    }
}

/// `0-3, 5`
fn ranges(numbers: &[usize]) -> String {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match out.last_mut() {
            Some(last) if last.1 + 1 == n => last.1 = n,
            _ => out.push((n, n)),
        }
    }
    /// A list that is longer says little, and every tensor of a file may have it.
    const SHOWN: usize = 16;
    let text = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let shown = out.iter().take(SHOWN).map(text).collect::<Vec<_>>().join(", ");
    if out.len() > SHOWN { format!("{shown}, ...") } else { shown }
}

/// Every tensor of a source, in the source's order.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The lines.
    pub entries: Vec<Entry>,
    /// What a checkpoint holds beside plain values and tensors, none of which is read.
    pub objects: Objects,
}

impl Ledger {
    /// The tensors that became part of the adapter.
    pub fn consumed(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| matches!(e.fate, Fate::Consumed { .. } | Fate::Folded { .. }))
    }

    /// The tensors that nothing knows.
    pub fn left_over(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.fate == Fate::LeftOver)
    }
}
