//! Learned factors of the memories' output, a number for all or one for each layer, head or both: `memory_scale`, gates.
//! They are multiplied into M, which computes the same, since the term is linear in it.

use std::collections::BTreeMap;

use super::Draft;
use super::layers::MAX_STACKED;
use crate::adapter::plus;
use crate::error::{Code, Result};
use crate::finding::Findings;
use crate::import::axes::{Axes, Axis, Sizes};
use crate::import::gate_map::GateMap;
use crate::quant;
use crate::tensor::LazyTensor;

/// The factor of each layer and memory.
type Factors = Vec<((usize, usize), f64)>;

/// A tensor of factors.
#[derive(Debug, Clone)]
pub(in crate::import) struct Gate {
    pub name: String,
    pub layer: Option<usize>,
    pub head: Option<usize>,
    /// Absent: what the shape leaves.
    pub axes: Option<Axes>,
    pub map: GateMap,
    pub tensor: LazyTensor,
}

impl Draft {
    /// Multiplies every gate into the memories of `layers`.
    ///
    /// # Errors
    ///
    /// Those of views; a gate that fits no axis is a finding.
    pub(super) fn fold_gates(&self, layers: &mut BTreeMap<usize, plus::Layer>, findings: &mut Findings) -> Result<()> {
        if self.gates.is_empty() {
            return Ok(());
        }
        let numbers: Vec<usize> = layers.keys().copied().collect();
        // For each layer a factor for each of its memories.
        let mut factors: BTreeMap<usize, Vec<f64>> =
            layers.iter().map(|(i, l)| (*i, vec![1.0; l.memory.shape()[0]])).collect();
        for gate in &self.gates {
            let n_heads = numbers.first().map_or(0, |i| factors[i].len());
            match self.factors_of(gate, &numbers, n_heads)? {
                Some(of_gate) => {
                    for ((layer, head), factor) in of_gate {
                        if let Some(f) = factors.get_mut(&layer).and_then(|heads| heads.get_mut(head)) {
                            *f *= factor;
                        }
                    }
                }
                None => findings.add(
                    Code::AdapterShape,
                    &gate.name,
                    format!(
                        "a factor for all, or for each of {} layers or {n_heads} memories (axes in a layout file)",
                        numbers.len()
                    ),
                    format!("shape {:?}", gate.tensor.shape()),
                ),
            }
        }
        for (i, layer) in layers {
            let factors = &factors[i];
            if factors.iter().all(|f| *f == 1.0) || !quant::can_decode(layer.memory.stored_dtype()) {
                continue;
            }
            let mut values = values(&layer.memory);
            let per_head = (values.len() / factors.len().max(1)).max(1);
            for (head, factor) in values.chunks_exact_mut(per_head).zip(factors) {
                head.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            }
            layer.memory = LazyTensor::from_f32(&values, layer.memory.shape());
        }
        Ok(())
    }

    /// The factor of each layer and memory that a gate says; `None` where its shape fits neither.
    fn factors_of(&self, gate: &Gate, layers: &[usize], n_heads: usize) -> Result<Option<Factors>> {
        if !gate.tensor.dtype().is_float() {
            return Ok(None);
        }
        let shape = gate.tensor.shape();
        let Some(axes) = gate.axes.clone().or_else(|| by_shape(gate, layers.len(), n_heads)) else { return Ok(None) };
        let known: Sizes = [(Axis::Layer, layers.len()), (Axis::Head, n_heads)].into();
        let Some(sizes) = axes.solve(shape, &known) else { return Ok(None) };
        let t = axes.apply(gate.tensor.clone(), &sizes)?;
        let [n_layers, n_of_heads] = t.shape()[..] else { return Ok(None) };
        let own_layers: Vec<usize> = match (gate.layer, axes.axes().any(|a| a == Axis::Layer)) {
            (Some(layer), _) => vec![layer],
            (None, false) => layers.to_vec(),
            (None, true) if n_layers == layers.len() => layers.to_vec(),
            // One for each layer of the model, adapted or not.
            (None, true) if layers.iter().all(|i| *i < n_layers) && n_layers <= MAX_STACKED => (0..n_layers).collect(),
            (None, true) => return Ok(None),
        };
        let has_heads = axes.axes().any(|a| a == Axis::Head);
        if has_heads && n_of_heads != n_heads {
            return Ok(None);
        }
        let values: Vec<f64> = values(&t).into_iter().map(|v| gate.map.of(v.into())).collect();
        let mut out = Vec::new();
        for (k, &layer) in own_layers.iter().enumerate() {
            for head in 0..n_heads {
                let (row, column) = (if n_layers == 1 { 0 } else { k }, if has_heads { head } else { 0 });
                if gate.head.is_none_or(|only| only == head) {
                    out.push(((layer, head), values[row * n_of_heads + column]));
                }
            }
        }
        Ok(Some(out))
    }
}

/// The axes that the lengths beyond 1 can only be.
fn by_shape(gate: &Gate, n_layers: usize, n_heads: usize) -> Option<Axes> {
    let len = |axis: Axis| if axis == Axis::Layer { n_layers } else { n_heads };
    let free: Vec<Axis> = [(Axis::Layer, gate.layer), (Axis::Head, gate.head)]
        .into_iter()
        .filter(|(_, named)| named.is_none())
        .map(|(axis, _)| axis)
        .collect();
    let shape = gate.tensor.shape();
    let long: Vec<usize> = shape.iter().copied().filter(|n| *n != 1).collect();
    let orders: Vec<Vec<Axis>> = match long.len() {
        0 => vec![Vec::new()],
        1 => free.iter().map(|a| vec![*a]).collect(),
        _ => vec![free.clone(), free.iter().rev().copied().collect()],
    };
    let fits = |order: &&Vec<Axis>| order.len() == long.len() && order.iter().zip(&long).all(|(a, n)| len(*a) == *n);
    let found: Vec<&Vec<Axis>> = orders.iter().filter(fits).collect();
    // [L, H] before [H, L] where both fit, as for memories.
    let order = match found[..] {
        [one] => one,
        [first, ..] if long.len() == 2 => first,
        _ => return None,
    };
    let mut axes = order.iter();
    Some(Axes::new(
        shape.iter().map(|n| if *n == 1 { Vec::new() } else { axes.next().copied().into_iter().collect() }).collect(),
    ))
}

fn values(t: &LazyTensor) -> Vec<f32> {
    let mut out = vec![0.0; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut out);
    out
}
