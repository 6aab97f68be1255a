//! Receivers of what the runner computes. They compare and drop: no logits of a whole prompt are kept, but where two
//! bases run one after the other.

use std::collections::BTreeMap;

use super::LayerReport;
use super::probe::Probe;
use super::stats::{Comparison, max_abs_difference, worse};
use crate::error::Result;
use crate::runner::Sink;

type Progress<'a> = &'a dyn Fn(usize, usize);

fn size(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |m, v| f64::max(m, f64::from(v.abs())))
}

/// Lanes: base, adapter. Compares with a probe.
pub(super) struct AgainstProbe<'a> {
    probe: &'a Probe,
    progress: Progress<'a>,
    pub adapter: Comparison,
    pub base: Comparison,
    /// `max |base_logits|` of the reference.
    pub base_size: f64,
    pub layers: Vec<LayerReport>,
    pub reference_effect: Option<f64>,
    pub found_effect: f64,
}

impl<'a> AgainstProbe<'a> {
    pub fn new(probe: &'a Probe, progress: Progress<'a>) -> Self {
        AgainstProbe {
            probe,
            progress,
            adapter: Comparison::default(),
            base: Comparison::default(),
            base_size: 0.0,
            layers: Vec::new(),
            reference_effect: None,
            found_effect: 0.0,
        }
    }
}

impl Sink for AgainstProbe<'_> {
    fn wants_layer(&self, layer: usize) -> bool {
        self.probe.has_layer(layer)
    }

    fn layer(&mut self, lane: usize, layer: usize, q: &[f32], term: &[f32]) -> Result<()> {
        if lane == 1 {
            let reference = (self.probe.q(layer), self.probe.term(layer));
            self.layers.extend(compare_layer(layer, reference.0.as_deref(), reference.1.as_deref(), q, term));
        }
        Ok(())
    }

    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let p = self
            .probe
            .positions
            .iter()
            .position(|x| *x == position)
            .expect("only the probe's positions were asked for");
        let (base, adapter) = (lanes[0], lanes[1]);
        let reference = self.probe.logits(batch, p);
        self.adapter.add(batch, position, &reference, adapter);
        self.found_effect = worse(self.found_effect, max_abs_difference(adapter, base));
        if let Some(reference_base) = self.probe.base_logits(batch, p) {
            self.base.add(batch, position, &reference_base, base);
            self.base_size = self.base_size.max(size(&reference_base));
            self.reference_effect =
                Some(worse(self.reference_effect.unwrap_or(0.0), max_abs_difference(&reference, &reference_base)));
        }
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}

fn compare_layer(
    layer: usize,
    q_ref: Option<&[f32]>,
    term_ref: Option<&[f32]>,
    q: &[f32],
    term: &[f32],
) -> Option<LayerReport> {
    if q_ref.is_none() && term_ref.is_none() {
        return None;
    }
    Some(LayerReport {
        layer,
        q_max_abs: q_ref.map(|r| max_abs_difference(r, q)),
        q_size: q_ref.map(size),
        term_max_abs: term_ref.map(|r| max_abs_difference(r, term)),
        term_size: term_ref.map(size),
    })
}

/// Lanes: base, adapter. Keeps everything, as the reference of a run on another base.
pub(super) struct Collect<'a> {
    progress: Progress<'a>,
    layers: BTreeMap<usize, (Vec<f32>, Vec<f32>)>,
    rows: BTreeMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
}

impl<'a> Collect<'a> {
    pub fn new(progress: Progress<'a>) -> Self {
        Collect { progress, layers: BTreeMap::new(), rows: BTreeMap::new() }
    }

    /// The logits `[V]` of both lanes at a position.
    #[cfg(feature = "llama-cpp")]
    pub fn row(&self, batch: usize, position: usize) -> Option<&(Vec<f32>, Vec<f32>)> {
        self.rows.get(&(batch, position))
    }
}

impl Sink for Collect<'_> {
    fn wants_layer(&self, _layer: usize) -> bool {
        true
    }

    fn layer(&mut self, lane: usize, layer: usize, q: &[f32], term: &[f32]) -> Result<()> {
        if lane == 1 {
            self.layers.insert(layer, (q.to_vec(), term.to_vec()));
        }
        Ok(())
    }

    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        self.rows.insert((batch, position), (lanes[0].to_vec(), lanes[1].to_vec()));
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}

/// Compares two adapters. Lanes: base, reference, adapter; or base, adapter with the reference collected before.
pub(super) struct SideBySide<'a> {
    progress: Progress<'a>,
    collected: Option<Collect<'a>>,
    /// The reference lane's query and term of the layer in progress.
    pending: BTreeMap<usize, (Vec<f32>, Vec<f32>)>,
    pub adapter: Comparison,
    pub base: Comparison,
    /// `max |base_logits|` of the reference.
    pub base_size: f64,
    pub layers: Vec<LayerReport>,
    pub reference_effect: f64,
    pub found_effect: f64,
}

impl<'a> SideBySide<'a> {
    pub fn new(progress: Progress<'a>) -> Self {
        SideBySide {
            progress,
            collected: None,
            pending: BTreeMap::new(),
            adapter: Comparison::default(),
            base: Comparison::default(),
            base_size: 0.0,
            layers: Vec::new(),
            reference_effect: 0.0,
            found_effect: 0.0,
        }
    }

    pub fn with_reference(reference: Collect<'a>, progress: Progress<'a>) -> Self {
        SideBySide { collected: Some(reference), ..Self::new(progress) }
    }
}

impl Sink for SideBySide<'_> {
    fn wants_layer(&self, _layer: usize) -> bool {
        true
    }

    fn layer(&mut self, lane: usize, layer: usize, q: &[f32], term: &[f32]) -> Result<()> {
        let reference = match (&mut self.collected, lane) {
            (Some(c), _) => c.layers.remove(&layer),
            (None, 1) => {
                self.pending.insert(layer, (q.to_vec(), term.to_vec()));
                return Ok(());
            }
            (None, _) => self.pending.remove(&layer),
        };
        if let Some((q_ref, term_ref)) = reference {
            self.layers.extend(compare_layer(layer, Some(&q_ref), Some(&term_ref), q, term));
        }
        Ok(())
    }

    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let base = lanes[0];
        let adapter = lanes[lanes.len() - 1];
        let collected = self
            .collected
            .as_mut()
            .map(|c| c.rows.remove(&(batch, position)).expect("both runs have the same positions"));
        let (reference_base, reference) = match &collected {
            Some((b, r)) => (&b[..], &r[..]),
            None => (base, lanes[1]),
        };
        if collected.is_some() {
            self.base.add(batch, position, reference_base, base);
            self.base_size = self.base_size.max(size(reference_base));
        }
        self.adapter.add(batch, position, reference, adapter);
        self.reference_effect = worse(self.reference_effect, max_abs_difference(reference, reference_base));
        self.found_effect = worse(self.found_effect, max_abs_difference(adapter, base));
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}
