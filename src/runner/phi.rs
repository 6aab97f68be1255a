//! The term of Prefix-Tuning+: `memory_scale * phi(query_scale * q) M`, optionally over `phi(..) . N`.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};

use super::candle;
use super::device::Device;
use super::kernels::activation::activate;
use crate::adapter::plus::{self, Conventions};
use crate::adapter::{Part, Slot};
use crate::error::{Code, Error, Result};
use crate::quant;
use crate::tensor::LazyTensor;

/// One layer of one adapter, decoded and on the device.
pub(super) struct Term {
    layer: usize,
    /// With the strength at which the adapter is applied in `memory_scale`.
    pub conventions: Conventions,
    /// `[H', F, D_v]`
    memory: Tensor,
    /// `[H', F, D]`
    feature_weight: Option<Tensor>,
    /// `[H', 1, F]`
    feature_bias: Option<Tensor>,
    /// `[H', F, 1]`
    normalizer: Option<Tensor>,
}

impl Term {
    /// Decodes a layer. `strength` multiplies the term.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] for tensors that do not have the shapes that the configuration implies,
    /// [`Code::ConfigUnsupported`] for an element type that is not decoded here.
    pub fn new(
        config: &plus::Config,
        layer: &plus::Layer,
        index: usize,
        strength: f64,
        device: &Device,
    ) -> Result<Self> {
        let (g, conventions) = (&config.geometry, config.conventions);
        let (h, f) = (g.n_memories(conventions.memory_sharing), g.n_features);
        let load = |part: Part, shape: &[usize], as_shape: [usize; 3]| {
            layer
                .get(part)
                .map(|t| tensor(t, shape, as_shape, device))
                .transpose()
                .map_err(|e| e.field(Slot::attention(index, part).canonical_name()))
        };
        let memory = load(Part::Memory, &[h, f, g.value_head_dim], [h, f, g.value_head_dim])?;
        if layer.feature_weight.is_none() && f != g.head_dim {
            let message =
                format!("expected a feature weight, since {f} features are not the head length {}", g.head_dim);
            return Err(Error::new(Code::AdapterShape, message).field(format!("layers.{index}")));
        }
        Ok(Term {
            layer: index,
            conventions: Conventions { memory_scale: conventions.memory_scale * strength, ..conventions },
            memory: memory.expect("a layer always has its memory"),
            feature_weight: load(Part::FeatureWeight, &[h, f, g.head_dim], [h, f, g.head_dim])?,
            feature_bias: load(Part::FeatureBias, &[h, f], [h, 1, f])?,
            normalizer: load(Part::Normalizer, &[h, f], [h, f, 1])?,
        })
    }

    /// `q` `[B, H, T, D]`, at the term's tap, of positions from `start` on: `[B, H, T, D_v]`.
    ///
    /// # Errors
    ///
    /// [`Code::DenominatorZero`] naming layer, head and position.
    pub fn apply(&self, q: &Tensor, start: usize) -> Result<Tensor> {
        let (n_batches, h, t, d) = q.dims4().map_err(candle)?;
        let n_memories = self.memory.dim(0).map_err(candle)?;
        // The heads that share a memory follow each other: their queries are rows of one matrix.
        let rows = h / n_memories * t;
        let mut terms = Vec::with_capacity(n_batches);
        for batch in 0..n_batches {
            let q = q.get(batch).and_then(|q| q.contiguous()?.reshape((n_memories, rows, d))).map_err(candle)?;
            let phi = self.phi(&q).map_err(candle)?;
            let numerator = phi.matmul(&self.memory).map_err(candle)?;
            let term = match &self.normalizer {
                None => numerator,
                Some(n) => {
                    let denominator = phi.matmul(n).map_err(candle)?;
                    self.refuse_zero(&denominator, t, start)?;
                    numerator.broadcast_div(&denominator).map_err(candle)?
                }
            };
            let d_v = term.dim(2).map_err(candle)?;
            terms.push(
                scaled(&term, self.conventions.memory_scale).and_then(|x| x.reshape((h, t, d_v))).map_err(candle)?,
            );
        }
        Tensor::stack(&terms, 0).map_err(candle)
    }

    /// `[H', R, D]` to `[H', R, F]`.
    fn phi(&self, q: &Tensor) -> CandleResult<Tensor> {
        let mut x = scaled(q, self.conventions.query_scale)?;
        if let Some(w) = &self.feature_weight {
            x = x.matmul(&w.transpose(1, 2)?)?;
        }
        if let Some(b) = &self.feature_bias {
            x = x.broadcast_add(b)?;
        }
        activate(self.conventions.feature_map, &x)
    }

    /// `denominator` `[H', H/H' * T, 1]`.
    fn refuse_zero(&self, denominator: &Tensor, n_positions: usize, start: usize) -> Result<()> {
        let values: Vec<f32> = denominator.flatten_all().and_then(|d| d.to_vec1()).map_err(candle)?;
        let Some(row) = values.iter().position(|x| *x == 0.0) else { return Ok(()) };
        // Rows are heads times positions, in this order, across the memories too.
        let (head, position) = (row / n_positions, start + row % n_positions);
        let message = format!("expected phi(q) . N other than 0, found 0 at head {head}, position {position}");
        Err(Error::new(Code::DenominatorZero, message)
            .field(Slot::attention(self.layer, Part::Normalizer).canonical_name()))
    }
}

/// Multiplication by 1 is left out, so that it costs nothing.
fn scaled(x: &Tensor, factor: f64) -> CandleResult<Tensor> {
    if factor == 1.0 { Ok(x.clone()) } else { x.affine(factor, 0.0) }
}

fn tensor(t: &LazyTensor, expected: &[usize], as_shape: [usize; 3], device: &Device) -> Result<Tensor> {
    if t.shape() != expected {
        return Err(Error::new(Code::AdapterShape, format!("expected shape {expected:?}, found {:?}", t.shape())));
    }
    if !quant::can_decode(t.stored_dtype()) {
        let message = format!("expected a float or quantized type that ptplus decodes, found {}", t.stored_dtype());
        return Err(Error::new(Code::ConfigUnsupported, message));
    }
    let mut values = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut values);
    Tensor::from_vec(values, &as_shape[..], &device.0).map_err(candle)
}

/// The term of one layer for given queries, on the CPU: `q` `[B, H, T, D]` at the adapter's tap, positions from 0 on;
/// the result is `[B, H, T, D_v]`.
///
/// # Errors
///
/// [`Code::AdapterMismatch`] for queries that do not have the adapter's heads; [`Code::AdapterShape`],
/// [`Code::DenominatorZero`] and [`Code::ConfigUnsupported`] about the adapter. Asserts that `q` has `shape`.
pub fn term_f32(
    q: &[f32],
    shape: [usize; 4],
    config: &plus::Config,
    layer: &plus::Layer,
    index: usize,
) -> Result<Vec<f32>> {
    ScaledTerm::new(q, shape, config, layer, index)?.at(config.conventions.query_scale, config.conventions.memory_scale)
}

/// [`term_f32`] as a function of the two scales: the layer is decoded once.
pub struct ScaledTerm {
    term: Term,
    /// `[B, H, T, D]`
    q: Tensor,
}

impl ScaledTerm {
    /// Arguments as those of [`term_f32`]; the scales of `config` do not count.
    ///
    /// # Errors
    ///
    /// As [`term_f32`], about shapes and types.
    pub fn new(q: &[f32], shape: [usize; 4], config: &plus::Config, layer: &plus::Layer, index: usize) -> Result<Self> {
        assert_eq!(q.len(), shape.iter().product::<usize>());
        let device = Device::cpu();
        let g = &config.geometry;
        if shape[1] != g.n_heads || shape[3] != g.head_dim {
            let message = format!(
                "expected queries of {} heads of length {}, found {} of length {}",
                g.n_heads, g.head_dim, shape[1], shape[3]
            );
            return Err(Error::new(Code::AdapterMismatch, message).field(format!("layers.{index}")));
        }
        let q = Tensor::from_slice(q, &shape[..], &device.0).map_err(candle)?;
        Ok(ScaledTerm { term: Term::new(config, layer, index, 1.0, &device)?, q })
    }

    /// `[B, H, T, D_v]` with these scales.
    ///
    /// # Errors
    ///
    /// [`Code::DenominatorZero`].
    pub fn at(&mut self, query_scale: f64, memory_scale: f64) -> Result<Vec<f32>> {
        let conventions = &mut self.term.conventions;
        (conventions.query_scale, conventions.memory_scale) = (query_scale, memory_scale);
        self.term.apply(&self.q, 0)?.flatten_all().and_then(|t| t.to_vec1()).map_err(candle)
    }
}

/// The terms of one layer with the batch rows that each applies to; `None` is all of them.
pub(super) type Terms = Vec<(Option<Range<usize>>, Term)>;
