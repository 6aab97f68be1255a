//! Evaluation layer by layer, for verification: one layer is held at a time, for several adapters side by side.

use std::ops::Range;

use candle_core::Tensor;

use super::additions::{Addition, EmbeddingAddition, embed};
use super::block::{Block, BlockEffects, Head, Observed};
use super::candle;
use super::device::Device;
use super::effects::{Effects, front_of};
use super::front::VirtualCache;
use super::kernels::with_values;
use super::linear::Workspace;
use super::rope::{Ropes, Rotations};
use crate::base::{BaseModel, Weight};
use crate::error::{Code, Error, Result};

/// The base with some adapters, each with a strength that multiplies what it adds. Without any it is the plain base.
#[derive(Debug, Clone, Default)]
pub struct Lane<'a> {
    /// What they add, adds up.
    pub adapters: Vec<(Effects<'a>, f64)>,
}

impl<'a> Lane<'a> {
    /// The base with one adapter, as it is.
    pub fn of(adapter: impl Into<Effects<'a>>) -> Self {
        Lane { adapters: vec![(adapter.into(), 1.0)] }
    }
}

/// What to evaluate and where.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Positions whose logits are wanted, ascending; `None` for all.
    pub positions: Option<Vec<usize>>,
    /// Where to compute.
    pub device: Device,
}

/// Takes the results as they come.
pub trait Sink {
    /// Whether [`layer`](Self::layer) is to be called for this layer.
    fn wants_layer(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }

    /// Queries `[B, H, T, D]`, after RoPE and in Hugging Face order, and the sum of the terms `[B, H, T, D_v]`, of a
    /// lane that adapts this layer.
    ///
    /// # Errors
    ///
    /// The sink's own; it ends the evaluation.
    fn layer(&mut self, lane: usize, layer: usize, q: &[f32], term: &[f32]) -> Result<()> {
        let _ = (lane, layer, q, term);
        Ok(())
    }

    /// The logits of one position, `[V]` per lane. Positions ascend within a batch row, batch rows ascend.
    ///
    /// # Errors
    ///
    /// The sink's own; it ends the evaluation.
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()>;

    /// Called after each of `total` steps; an error ends the evaluation with that error.
    ///
    /// # Errors
    ///
    /// The sink's own; it ends the evaluation.
    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        let _ = (done, total);
        Ok(())
    }
}

/// Logits held at a time, in values: 128 MiB. The head is decoded again for each.
const LOGITS_VALUES: usize = 1 << 25;

/// Evaluates all `lanes` on `input_ids`, rows of equal length whose positions count from 0, or from behind virtual tokens.
///
/// The lanes are rows of one batch, so a weight is decoded once for all of them. Beside the memory map, this holds the
/// hidden states of all lanes, what one layer makes of them, and a few MiB of decoded weights.
///
/// # Errors
///
/// [`Code::ProbeInvalid`] for no or unequal rows; [`Code::ProbeMismatch`] for token ids or positions that are
/// not there; [`Code::AdapterMismatch`], [`Code::AdapterShape`] for adapters that do not fit the base;
/// [`Code::DenominatorZero`]; [`Code::Usage`] for virtual tokens beside another adapter; whatever `sink` returns.
pub fn stream(
    base: &BaseModel,
    input_ids: &[Vec<u32>],
    lanes: &[Lane],
    options: &StreamOptions,
    sink: &mut dyn Sink,
) -> Result<()> {
    let n_positions = check_input(input_ids)?;
    let wanted = wanted_positions(options, n_positions)?;
    for (effects, _) in lanes.iter().flat_map(|l| &l.adapters) {
        effects.check_fits(base)?;
    }
    if lanes.is_empty() {
        return Ok(());
    }
    let n_batches = input_ids.len();
    let device = &options.device;
    let mut groups = groups(base, lanes, input_ids, device)?;
    let mut workspace = Workspace::default();
    let total = base.config.n_layers + 1;
    for layer in 0..base.config.n_layers {
        let block = Block::load(base, layer, device)?;
        for group in &mut groups {
            let own = &lanes[group.lanes.clone()];
            let effects = effects_on_layer(base, own, layer, n_batches, device)?;
            let mut cache = match &group.front {
                Some(front) => Some(front.begin(layer, own.len() * n_batches)?),
                None => None,
            };
            // On a thread of the pool: every parallel loop that is started elsewhere waits for one to wake up.
            let (y, observed) =
                rayon::scope(|_| block.forward(&group.x, &group.rotations, cache.as_mut(), &effects, &mut workspace))?;
            group.x = y;
            if let Some(observed) = observed.filter(|_| sink.wants_layer(layer)) {
                report_layer(own, group.lanes.start, layer, n_batches, &observed, sink)?;
            }
        }
        sink.progress(layer + 1, total)?;
    }
    let x = Tensor::cat(&groups.into_iter().map(|g| g.x).collect::<Vec<_>>(), 0).map_err(candle)?;
    report_logits(base, &x, lanes, n_batches, &wanted, device, sink)?;
    sink.progress(total, total)
}

/// Lanes whose sequences begin alike, and so have the same positions: all without virtual tokens that follow each other, or one with.
struct Group {
    lanes: Range<usize>,
    front: Option<VirtualCache>,
    rotations: Rotations,
    /// Hidden states `[lanes * B, T, hidden]`.
    x: Tensor,
}

fn groups(base: &BaseModel, lanes: &[Lane], input_ids: &[Vec<u32>], device: &Device) -> Result<Vec<Group>> {
    let (n_batches, n_positions) = (input_ids.len(), input_ids[0].len());
    let mut out = Vec::new();
    let mut first = 0;
    while first < lanes.len() {
        let front = front_of(&lanes[first].adapters)?;
        let end = match front {
            Some(_) => first + 1,
            None => {
                let is_plain = |lane: &&Lane| lane.adapters.iter().all(|(effects, _)| effects.front.is_none());
                first + lanes[first..].iter().take_while(is_plain).count()
            }
        };
        let front = front.map(|front| VirtualCache::new(base, front, device)).transpose()?;
        let start = front.as_ref().map_or(0, |front| front.n_tokens);
        let n_sequences = (end - first) * n_batches;
        let ids = input_ids.concat().repeat(end - first);
        let embeddings = embed(base, &ids, &embedding_additions(&lanes[first..end], n_batches)?, n_positions)?;
        let shape = (n_sequences, n_positions, base.config.hidden_size);
        out.push(Group {
            lanes: first..end,
            front,
            rotations: Ropes::new(&base.config, start + n_positions).at(start..start + n_positions, device)?,
            x: Tensor::from_vec(embeddings, shape, &device.0).map_err(candle)?,
        });
        first = end;
    }
    Ok(out)
}

fn check_input(input_ids: &[Vec<u32>]) -> Result<usize> {
    let refuse = |message: String| Error::new(Code::ProbeInvalid, message).field("input_ids");
    let n = input_ids.first().ok_or_else(|| refuse("expected at least one row, found none".into()))?.len();
    if n == 0 {
        return Err(refuse("expected at least one token, found none".into()));
    }
    match input_ids.iter().position(|row| row.len() != n) {
        Some(i) => Err(refuse(format!("expected {n} tokens in every row, found {} in row {i}", input_ids[i].len()))),
        None => Ok(n),
    }
}

fn wanted_positions(options: &StreamOptions, n_positions: usize) -> Result<Vec<usize>> {
    let Some(positions) = &options.positions else { return Ok((0..n_positions).collect()) };
    match positions.iter().find(|p| **p >= n_positions) {
        Some(p) => Err(Error::new(Code::ProbeMismatch, format!("expected positions below {n_positions}, found {p}"))
            .field("positions")),
        None => Ok(positions.clone()),
    }
}

/// Every adapter with the number of its lane.
fn adapters<'a, 'b>(lanes: &'b [Lane<'a>]) -> impl Iterator<Item = (usize, &'b (Effects<'a>, f64))> {
    lanes.iter().enumerate().flat_map(|(i, lane)| lane.adapters.iter().map(move |a| (i, a)))
}

fn embedding_additions(lanes: &[Lane], n_batches: usize) -> Result<Vec<EmbeddingAddition>> {
    let mut additions = Vec::new();
    for (i, (effects, strength)) in adapters(lanes) {
        if let Some(effect) = effects.matrices.get(&Weight::TokenEmbedding) {
            additions.push(EmbeddingAddition::new(effect, *strength, Some(i * n_batches..(i + 1) * n_batches))?);
        }
    }
    Ok(additions)
}

fn effects_on_layer(
    base: &BaseModel,
    lanes: &[Lane],
    layer: usize,
    n_batches: usize,
    device: &Device,
) -> Result<BlockEffects> {
    let mut all = BlockEffects::default();
    for (i, (effects, strength)) in adapters(lanes) {
        all.add(base, layer, (effects, *strength), Some(i * n_batches..(i + 1) * n_batches), device)?;
    }
    Ok(all)
}

/// Each lane is one sequence here.
fn head_additions(base: &BaseModel, lanes: &[Lane], device: &Device) -> Result<Vec<Addition>> {
    let mut additions = Vec::new();
    for (i, (effects, strength)) in adapters(lanes) {
        if let Some(effect) = effects.matrices.get(&Weight::Output) {
            let place = (Some(i..i + 1), 0);
            additions.push(Addition::new(base, Weight::Output, effect, *strength, place, device)?);
        }
    }
    Ok(additions)
}

fn report_layer(
    lanes: &[Lane],
    first_lane: usize,
    layer: usize,
    n_batches: usize,
    observed: &Observed,
    sink: &mut dyn Sink,
) -> Result<()> {
    for (i, lane) in lanes.iter().enumerate() {
        if lane.adapters.iter().any(|(a, _)| a.terms.contains_key(&layer)) {
            let values = |t: &Tensor| -> Result<Vec<f32>> {
                t.narrow(0, i * n_batches, n_batches).and_then(|t| t.flatten_all()?.to_vec1()).map_err(candle)
            };
            sink.layer(first_lane + i, layer, &values(&observed.q)?, &values(&observed.term)?)?;
        }
    }
    Ok(())
}

fn report_logits(
    base: &BaseModel,
    x: &Tensor,
    lanes: &[Lane],
    n_batches: usize,
    wanted: &[usize],
    device: &Device,
    sink: &mut dyn Sink,
) -> Result<()> {
    let head = Head::load(base, device)?;
    let additions = head_additions(base, lanes, device)?;
    let n_lanes = lanes.len();
    let mut workspace = Workspace::default();
    let (_, n_positions, hidden) = x.dims3().map_err(candle)?;
    let vocab_size = base.config.vocab_size;
    let rows = x.reshape((n_lanes * n_batches * n_positions, hidden)).map_err(candle)?;
    let all: Vec<_> = (0..n_batches).flat_map(|b| wanted.iter().map(move |p| (b, *p))).collect();
    for chunk in all.chunks((LOGITS_VALUES / vocab_size / n_lanes).max(1)) {
        // Lane by lane, as additions to the head want them.
        let row = |lane: usize, (b, p): &(usize, usize)| ((lane * n_batches + b) * n_positions + p) as u32;
        let index: Vec<u32> = (0..n_lanes).flat_map(|lane| chunk.iter().map(move |at| row(lane, at))).collect();
        let n = index.len();
        let index = Tensor::from_vec(index, n, &device.0).map_err(candle)?;
        let x = rows.index_select(&index, 0).map_err(candle)?;
        let logits = rayon::scope(|_| head.forward(&x, &additions, chunk.len(), &mut workspace))?;
        let logits = logits.to_device(&Device::cpu().0).and_then(|l| l.contiguous()).map_err(candle)?;
        let report = |logits: &[f32]| {
            let of_lanes: Vec<&[f32]> = logits.chunks_exact(vocab_size * chunk.len()).collect();
            chunk.iter().enumerate().try_for_each(|(i, (b, p))| {
                let lanes: Vec<&[f32]> = of_lanes.iter().map(|l| &l[i * vocab_size..][..vocab_size]).collect();
                sink.logits(*b, *p, &lanes)
            })
        };
        with_values(&logits, report).map_err(candle)??;
    }
    Ok(())
}
