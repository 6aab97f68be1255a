//! An adapter whose tensors are known by their part while some conventions may still be open.
//!
//! ```text
//!   TensorSource -> names (layout file, then rules) -> Draft { parts, ledger, statements } -> read as a Reading -> Imported
//! ```

mod gate;
mod hidden;
mod layers;
mod names;
mod orientation;
mod read;
mod settled_axes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::assemble;
use super::axes::{Axes, Axis};
use super::ledger::Ledger;
use super::stated::{Stated, WIDENED_FROM};
use super::statements::{self, Doubt, Settled};
use super::{Imported, Origin};
use crate::adapter::plus::{self, FeatureMap, MemorySharing, Plus, QueryTap};
use crate::adapter::{Part, Slot};
use crate::base::BaseModel;
use crate::digest::sorted_compact_json;
use crate::error::{Error, Result};
use crate::finding::{Finding, Findings};
use crate::format::json;
use crate::tensor::coarsest;
use crate::tensor::{DType, LazyTensor};
use gate::Gate;
pub use layers::HeadOrder;
pub(crate) use names::{has_parts, is_part};
pub use orientation::Orientation;
pub(super) use read::read;
pub(super) use settled_axes::KnownSizes;

/// Key of `adapter_config.json`.
const MEMORY_SHARING: &str = "memory_sharing";

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What everybody states.
    pub stated: Stated,
    /// Who settled what, for the conventions that the configuration does not state.
    pub settled: Settled,
    /// Statements that agree only for certain sizes.
    doubts: Vec<Doubt>,
    /// What became of every tensor.
    pub ledger: Ledger,
    /// Missing, left-over and doubly claimed tensors.
    pub findings: Vec<Finding>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// `adapter_config.json` as read, with what flags and the layout file add.
    pub config: Map<String, Value>,
    /// For people: `safetensors of another training code`, ...
    pub layout: String,
    path: PathBuf,
    config_path: Option<PathBuf>,
    transpose_memory: Option<bool>,
    parts: Vec<StoredPart>,
    gates: Vec<Gate>,
    /// The layers of a tensor that stacks this many; absent where nothing says them.
    stacked_layers: Option<Vec<usize>>,
}

/// A tensor of the source that is a part of the adapter.
#[derive(Debug, Clone)]
struct StoredPart {
    name: String,
    part: Part,
    layer: Option<usize>,
    head: Option<usize>,
    order: Order,
    tensor: LazyTensor,
}

impl StoredPart {
    /// [`Draft::own_axes`] of this part.
    fn own_axes(&self) -> Vec<Axis> {
        Draft::own_axes(self.part, self.layer, self.head)
    }
}

/// What is known about the order of a part's axes.
#[derive(Debug, Clone)]
enum Order {
    /// A layout file states it.
    Stated(Axes),
    /// The name fixes it.
    Canonical,
    /// The name fixes it, but the heads lie side by side in longer rows, `F (H V)` or `F (V H)`.
    Columns,
    /// Open.
    Open,
}

impl Draft {
    /// Whether all names are those of the canonical layout, which has one shape for each, and no layout file says otherwise.
    fn is_canonical(&self) -> bool {
        self.parts.iter().all(|p| Slot::parse_canonical_name(&p.name).is_some() && !matches!(p.order, Order::Stated(_)))
    }

    /// What nothing states, by its key; empty where the adapter can be read.
    pub fn open(&self, base: Option<&BaseModel>) -> Vec<&'static str> {
        let mut open = self.stated.conventions.open();
        if self.sharing_by_shapes(base).is_some() {
            open.retain(|key| *key != MEMORY_SHARING);
        }
        let orientations = self.orientations(self.stated.conventions.memory_sharing, base);
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

    /// What a probe should settle: what is [open](Self::open), and the sharing where shapes alone say it, since a training
    /// code may have stored the heads of a group apart.
    pub fn open_to_probe(&self, base: Option<&BaseModel>) -> Vec<&'static str> {
        let mut open = self.open(base);
        if self.sharing_by_shapes(base).is_some() {
            open.push(MEMORY_SHARING);
        }
        open
    }

    /// The sharing that has as many memories as there are, where nobody states one and the base says the numbers of heads.
    fn sharing_by_shapes(&self, base: Option<&BaseModel>) -> Option<MemorySharing> {
        let (n, n_kv) =
            base.and_then(|_| self.heads(base)).filter(|_| self.stated.conventions.memory_sharing.is_none())?;
        let mut counts = self.orientations(None, base).into_iter().flat_map(|o| {
            let layers = self.stored_layers(o, None, base, &mut Findings::default()).unwrap_or_default();
            layers.into_values().map(|l| l.memory.shape()[0]).collect::<Vec<_>>()
        });
        let count = counts.next()?;
        let found = MemorySharing::ALL.iter().find(|s| s.n_memories(n, n_kv) == count)?;
        counts.all(|other| other == count).then_some(*found)
    }

    /// The adapter, where nothing is open.
    ///
    /// # Errors
    ///
    /// [`Code::ConventionOpen`](crate::error::Code::ConventionOpen), listing all that is.
    pub fn into_imported(mut self, base: Option<&BaseModel>) -> Result<Imported> {
        let open = self.open(base);
        if let Some(sharing) = self.sharing_by_shapes(base) {
            self.stated.conventions.memory_sharing = Some(sharing);
            self.settled.insert(MEMORY_SHARING.into(), "shapes".into());
        }
        let orientation =
            self.orientations(self.stated.conventions.memory_sharing, base).first().copied().unwrap_or_default();
        let mut findings = Findings::from(std::mem::take(&mut self.findings));
        let layers =
            self.layers(orientation, HeadOrder::InOrder, self.stated.conventions.memory_sharing, base, &mut findings)?;
        self.finish(layers, findings, &open, base)
    }

    /// The adapter as it would be with some value for everything that is open: what is wrong about it is so whatever the
    /// values. The layers are those of the first reading that fits.
    ///
    /// # Errors
    ///
    /// [`Code::ConventionOpen`](crate::error::Code::ConventionOpen) where sizes are, or the layers of a stack; those of assembling layers.
    pub(crate) fn provisional(mut self, base: Option<&BaseModel>) -> Result<Imported> {
        let sharings = self.stated.conventions.memory_sharing.map_or_else(|| MemorySharing::ALL.to_vec(), |s| vec![s]);
        let mut best: Option<(bool, MemorySharing, BTreeMap<usize, plus::Layer>, Findings)> = None;
        for sharing in sharings {
            let n_memories = match (sharing, self.heads(base)) {
                (MemorySharing::PerHead, Some((n, _))) => Some(n),
                (MemorySharing::PerKvHead, Some((_, n))) => Some(n),
                (MemorySharing::Shared, _) => Some(1),
                (_, None) => None,
            };
            for orientation in self.orientations(Some(sharing), base) {
                let mut findings = Findings::default();
                let layers = self.layers(orientation, HeadOrder::InOrder, Some(sharing), base, &mut findings)?;
                let has = |l: &plus::Layer| n_memories.is_none_or(|n| l.memory.shape().first() == Some(&n));
                let fits = findings.is_empty() && layers.values().all(has);
                if best.is_none() || fits && best.as_ref().is_some_and(|b| !b.0) {
                    best = Some((fits, sharing, layers, findings));
                }
            }
        }
        let mut findings = Findings::from(std::mem::take(&mut self.findings));
        let (sharing, layers) = match best {
            Some((_, sharing, layers, found)) => {
                findings.extend(found.into_vec());
                (sharing, layers)
            }
            None => {
                let (o, sharing) = (Orientation::default(), self.stated.conventions.memory_sharing);
                let layers = self.layers(o, HeadOrder::InOrder, sharing, base, &mut findings)?;
                (sharing.unwrap_or(MemorySharing::PerHead), layers)
            }
        };
        let s = &mut self.stated.conventions;
        s.memory_sharing = Some(sharing);
        s.feature_map.get_or_insert(FeatureMap::Identity);
        s.query_tap.get_or_insert(QueryTap::PostRope);
        s.query_scale.get_or_insert(1.0);
        s.memory_scale.get_or_insert(1.0);
        let stack_is_open = self.open(base).contains(&"layers_to_transform");
        let open = if stack_is_open { &["layers_to_transform"][..] } else { &[] };
        self.finish(layers, findings, open, base)
    }

    /// Everything that nothing states, sizes included.
    ///
    /// # Errors
    ///
    /// Those of assembling layers.
    pub(crate) fn all_open(&self, base: Option<&BaseModel>) -> Result<Vec<&'static str>> {
        let mut open = self.open(base);
        let sharing = self.stated.conventions.memory_sharing;
        let orientation = self.orientations(sharing, base).first().copied().unwrap_or_default();
        let layers = self.layers(orientation, HeadOrder::InOrder, sharing, base, &mut Findings::default())?;
        open.extend(assemble::open_sizes(&self.stated, &layers, base));
        Ok(open)
    }

    /// The refusal to guess any of `open`.
    pub(crate) fn still_open(&self, open: &[&str]) -> Error {
        statements::still_open(open).file(self.config_path.as_deref().unwrap_or(&self.path))
    }

    /// The tensors that play a part, by their names in the source.
    pub(crate) fn part_tensors(&self) -> impl Iterator<Item = (&str, &LazyTensor)> {
        self.parts.iter().map(|p| (p.name.as_str(), &p.tensor))
    }

    /// The adapter from layers that were settled on.
    pub(super) fn finish(
        self,
        layers: BTreeMap<usize, plus::Layer>,
        mut findings: Findings,
        open: &[&'static str],
        base: Option<&BaseModel>,
    ) -> Result<Imported> {
        let mut stated = self.stated;
        if let Some(n) = self.stacked_layers.as_ref().filter(|_| base.is_none() && stated.layers_to_transform.is_none())
        {
            stated.sizes.n_layers.get_or_insert(n.len());
        }
        if !self.gates.is_empty() {
            // They were multiplied in F32, and are as coarse as they were.
            let coarsest = coarsest(self.ledger.consumed().map(|e| e.dtype));
            if coarsest.fineness() < DType::F32.fineness() {
                stated.extra.entry(WIDENED_FROM).or_insert_with(|| coarsest.name().into());
            }
        }
        if !self.settled.is_empty() {
            stated.extra.insert(statements::RECORD_KEY.into(), statements::record(&self.settled));
        }
        let place = |e: Error| e.file(self.config_path.as_deref().unwrap_or(&self.path));
        let config = assemble::config(stated, &layers, base, open).map_err(place)?;
        let sizes = statements::Sizes {
            n_layers: config.geometry.n_layers,
            n_heads: config.geometry.n_heads,
            n_kv_heads: config.geometry.n_kv_heads,
            are_layers_stacked: self.parts.iter().any(|p| p.layer.is_none()),
        };
        self.doubts.iter().try_for_each(|doubt| doubt.settle(&sizes))?;
        assemble::check_stated_layers(
            config.layers_to_transform.as_ref(),
            config.geometry.n_layers,
            &layers,
            &mut findings,
        );
        Ok(Imported {
            adapter: Plus { config, layers }.into(),
            ledger: self.ledger,
            findings: findings.into_vec(),
            notes: self.notes,
            origin: Origin::of_tensors(
                self.path,
                self.files,
                self.layout,
                json::as_python_writes(&sorted_compact_json(&Value::Object(self.config))),
            ),
        })
    }
}
