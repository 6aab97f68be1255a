//! Every reading of a draft that computes another function: what a probe has to choose from.
//!
//! Combinations that are the same function count once, under one canonical representative: `per_head` before
//! `per_kv_head` before `shared` where the numbers of heads coincide; `query_scale` 1 before `memory_scale` 1 for an
//! activation with `act(c x) = c act(x)`; orders of axes that differ only in axes of length 1. Scales are numbers, so they
//! are not listed: a candidate says which of them are [`Unknown`].

use std::collections::BTreeMap;

use serde_json::Value;

use super::draft::{Draft, HeadOrder, Orientation};
use super::stated::Stated;
use super::{Imported, assemble};
use crate::adapter::plus::{self, Conventions, FeatureMap, MemorySharing, QueryTap, StatedConventions};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::Findings;

/// A reading of the draft.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What it takes each convention for; a scale that is unknown is 1 until it is found.
    pub conventions: Conventions,
    /// How the axes of a memory are stored.
    pub orientation: Orientation,
    /// How its heads are.
    pub head_order: HeadOrder,
    /// Which scales are to be found.
    pub unknown: Unknown,
    layout: usize,
}

/// Which scales of a candidate nothing states and no symmetry settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of adapter_config.json
pub struct Unknown {
    pub query_scale: bool,
    pub memory_scale: bool,
}

/// The candidates, with the tensors that each layout of them means.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// One for each function, or family of functions that differ in their scales.
    pub list: Vec<Candidate>,
    /// Combinations of the other conventions, the same function counted as often as it occurs.
    pub n_combinations: usize,
    layouts: Vec<BTreeMap<usize, plus::Layer>>,
}

impl Candidates {
    /// The layers as `c` reads them.
    pub fn layers(&self, c: &Candidate) -> &BTreeMap<usize, plus::Layer> {
        &self.layouts[c.layout]
    }

    /// Whether `c` with the other sign of the query scale is a candidate of its own.
    pub fn has_both_signs(&self, c: &Candidate) -> bool {
        let mut other = *c;
        other.conventions.query_scale = -c.conventions.query_scale;
        self.list.contains(&other)
    }
}

impl Candidate {
    /// Every convention with its key (for keys that `adapter_config.json` does not have, the flag's) and value.
    pub fn values(&self) -> [(&'static str, String); 7] {
        let c = &self.conventions;
        [
            ("feature_map", c.feature_map.to_string()),
            ("query_tap", c.query_tap.to_string()),
            ("query_scale", c.query_scale.to_string()),
            ("memory_scale", c.memory_scale.to_string()),
            ("memory_sharing", self.sharing_text()),
            ("transpose_memory", self.orientation.transposed.to_string()),
            (
                "flattening_order",
                if self.orientation.heads_inner { "heads innermost" } else { "heads outermost" }.into(),
            ),
        ]
    }

    fn sharing_text(&self) -> String {
        match self.head_order {
            HeadOrder::InOrder => self.conventions.memory_sharing.to_string(),
            HeadOrder::Strided => format!("{} (heads of a group stored apart)", self.conventions.memory_sharing),
        }
    }
}

impl Draft {
    /// Every reading that statements, shapes and `base` allow, each function once.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] and its like where no reading fits the base; [`Code::ConventionOpen`] for a stack of layers that
    /// nothing numbers.
    pub fn candidates(&self, base: &BaseModel) -> Result<Candidates> {
        let b = Some(base);
        let stated = &self.stated.conventions;
        if self.open(b).contains(&"layers_to_transform") {
            let message =
                "expected the layers of a stacked tensor, found them stated nowhere, and no probe tells: --layers";
            return Err(Error::new(Code::ConventionOpen, message).field("layers_to_transform"));
        }
        let (n_heads, n_kv_heads) = self.heads(b).ok_or_else(|| {
            Error::new(Code::AdapterMismatch, "expected a number of heads that the key/value heads divide")
                .field("num_key_value_heads")
        })?;
        let count = |s: MemorySharing| s.n_memories(n_heads, n_kv_heads);
        let sharing_is_open = stated.memory_sharing.is_none();
        let mut sharings = options(stated.memory_sharing, MemorySharing::ALL);
        let n_sharings = sharings.len();
        let mut counts = Vec::new();
        sharings.retain(|s| {
            let new = !counts.contains(&count(*s));
            counts.push(count(*s));
            new
        });

        // The layouts: which tensors each combination of sharing, orientation and head order means.
        let mut layouts = Vec::new();
        let mut keys: Vec<(MemorySharing, Orientation, HeadOrder)> = Vec::new();
        let mut refusal = None;
        for &sharing in &sharings {
            for orientation in self.orientations(Some(sharing), b) {
                let mut findings = Findings::default();
                let layers = self.layers(orientation, HeadOrder::InOrder, Some(sharing), b, &mut findings)?;
                if let Some(f) = findings.into_vec().into_iter().next() {
                    refusal.get_or_insert(f.to_error());
                    continue;
                }
                let fits = |l: &plus::Layer| {
                    let shape = l.memory.shape();
                    shape[0] == count(sharing)
                        && shape[2] == base.config.value_head_dim
                        && (l.feature_weight.is_some() || shape[1] == base.config.head_dim)
                };
                if let Some((last, _)) = layers.last_key_value().filter(|(i, _)| **i >= base.config.n_layers) {
                    let message = format!("expected layers below the base's {}, found {last}", base.config.n_layers);
                    return Err(Error::new(Code::AdapterMismatch, message).field(format!("layers.{last}")));
                }
                if let Some((i, l)) = layers.iter().find(|(_, l)| !fits(l)) {
                    refusal.get_or_insert_with(|| {
                        let message = format!("expected a memory that fits the base's {n_heads} heads, {n_kv_heads} key/value heads and head length {}, found {:?}", base.config.head_dim, l.memory.shape());
                        Error::new(Code::AdapterShape, message).field(format!("layers.{i}.memory"))
                    });
                    continue;
                }
                let groups = n_kv_heads > 1 && n_kv_heads < n_heads && count(sharing) > 1;
                if sharing_is_open && groups {
                    let strided =
                        self.layers(orientation, HeadOrder::Strided, Some(sharing), b, &mut Findings::default())?;
                    layouts.push(strided);
                    keys.push((MemorySharing::PerHead, orientation, HeadOrder::Strided));
                }
                layouts.push(layers);
                keys.push((sharing, orientation, HeadOrder::InOrder));
            }
        }
        if layouts.is_empty() {
            return Err(refusal.unwrap_or_else(|| {
                Error::new(
                    Code::AdapterShape,
                    "expected memories whose shapes fit the base in some order of their axes, found none",
                )
            }));
        }
        let any = |f: fn(&plus::Layer) -> bool| layouts.iter().flat_map(BTreeMap::values).any(f);
        let (has_bias, has_normalizer) = (any(|l| l.feature_bias.is_some()), any(|l| l.normalizer.is_some()));

        let maps = options(stated.feature_map, FeatureMap::ALL);
        let taps = options(stated.query_tap, QueryTap::ALL);
        let mut list: Vec<Candidate> = Vec::new();
        for (layout, &(memory_sharing, orientation, head_order)) in keys.iter().enumerate() {
            for &feature_map in &maps {
                for &query_tap in &taps {
                    let scales = Scales { homogeneous: feature_map.is_homogeneous() && !has_bias, has_normalizer };
                    for (query_scale, unknown) in scales.options(stated, feature_map) {
                        let conventions = Conventions {
                            feature_map,
                            query_tap,
                            query_scale,
                            memory_scale: stated.memory_scale.unwrap_or(1.0),
                            memory_sharing,
                        };
                        list.push(Candidate { conventions, orientation, head_order, unknown, layout });
                    }
                }
            }
        }
        let n_layouts = keys.len() / sharings.len().max(1) * n_sharings;
        let n_combinations = n_layouts.max(keys.len()) * maps.len() * taps.len();
        Ok(Candidates { list, n_combinations, layouts })
    }

    /// The configuration as `c` reads it.
    ///
    /// # Errors
    ///
    /// [`Code::ConfigField`] where sizes are missing or contradict each other.
    pub fn config_of(
        &self,
        c: &Conventions,
        layers: &BTreeMap<usize, plus::Layer>,
        base: &BaseModel,
    ) -> Result<plus::Config> {
        let stated = Stated { conventions: (*c).into(), ..self.stated.clone() };
        assemble::config(stated, layers, Some(base), &[])
    }

    /// The adapter as `c` reads it, recording that a probe chose it; `facts` are kept beside.
    ///
    /// # Errors
    ///
    /// Those of [`config_of`](Self::config_of); [`Code::AdapterShape`].
    pub fn settle(
        mut self,
        c: &Candidate,
        candidates: &Candidates,
        facts: BTreeMap<String, Value>,
        base: &BaseModel,
    ) -> Result<Imported> {
        for key in self.open_to_probe(Some(base)) {
            self.settled.insert(key.into(), "probe".into());
        }
        if self.settled.contains_key("transpose_memory") && c.orientation.transposed {
            self.settled.insert("stored_memory".into(), "each head transposed".into());
        }
        self.settled.extend(facts);
        self.stated.conventions = c.conventions.into();
        let findings = std::mem::take(&mut self.findings);
        self.finish(candidates.layers(c).clone(), findings.into(), &[], Some(base))
    }
}

/// What decides which scales of a candidate are independent numbers.
struct Scales {
    /// Whether phi(c x) = c phi(x) for c > 0.
    homogeneous: bool,
    has_normalizer: bool,
}

impl Scales {
    /// The query scale to begin with, and what is unknown; one for each sign where both signs are functions of their own.
    fn options(&self, stated: &StatedConventions, map: FeatureMap) -> Vec<(f64, Unknown)> {
        let memory_scale = stated.memory_scale.is_none();
        if let Some(query_scale) = stated.query_scale {
            return vec![(query_scale, Unknown { query_scale: false, memory_scale })];
        }
        // phi's factor cancels against the denominator's, or is a factor of the term like the memory scale.
        let query_scale = !self.homogeneous || !self.has_normalizer && !memory_scale;
        let unknown = Unknown { query_scale, memory_scale };
        let sign_matters = self.homogeneous && map != FeatureMap::Identity;
        if sign_matters { vec![(1.0, unknown), (-1.0, unknown)] } else { vec![(1.0, unknown)] }
    }
}

/// What is stated, or everything that it may be.
fn options<T: Copy>(stated: Option<T>, all: &[T]) -> Vec<T> {
    stated.map_or_else(|| all.to_vec(), |v| vec![v])
}
