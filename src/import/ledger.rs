//! The ledger: what became of every tensor of a source. Nothing is dropped silently.

use crate::adapter::Role;
use crate::tensor::{DType, LazyTensor};

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It plays this role in this layer.
    Consumed {
        /// Layer number.
        layer: usize,
        /// Part of the layer.
        role: Role,
    },
    /// It is not the adapter's, for a known reason.
    Ignored {
        /// Why, for people.
        reason: &'static str,
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
    /// The tensor as the source has it, for the source's digest.
    pub tensor: LazyTensor,
    /// What became of it.
    pub fate: Fate,
}

/// Every tensor of a source, in the source's order.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The lines.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// The tensors that became part of the adapter.
    pub fn consumed(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| matches!(e.fate, Fate::Consumed { .. }))
    }

    /// The tensors that nothing knows.
    pub fn left_over(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.fate == Fate::LeftOver)
    }
}
