//! The whole model, ready for generation: key/value cache, batches, adapters that come and go without a reload.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;

use super::additions::{Addition, EmbeddingAddition, embed};
use super::attention::LayerCache;
use super::block::{Block, BlockEffects, Head};
use super::candle;
use super::device::Device;
use super::effects::{Effects, front_of};
use super::front::VirtualCache;
use super::linear::{FEW_POSITIONS, Workspace};
use super::rope::Ropes;
use crate::base::{BaseModel, Weight};
use crate::error::{Code, Error, Result};

/// A base model, all layers ready, with the adapters that are switched on.
///
/// On the CPU the weights stay encoded in the memory map: loading is instant and takes no memory of its own.
pub struct Model {
    base: BaseModel,
    device: Device,
    blocks: Vec<Block>,
    head: Head,
    adapters: Adapters,
}

/// What the adapters that are on do.
struct Adapters {
    embedding: Vec<EmbeddingAddition>,
    /// By layer.
    blocks: Vec<BlockEffects>,
    head: Vec<Addition>,
    /// What stands in front of every sequence.
    front: Option<VirtualCache>,
}

impl Adapters {
    fn none(n_layers: usize) -> Self {
        let blocks = (0..n_layers).map(|_| BlockEffects::default()).collect();
        Adapters { embedding: Vec::new(), blocks, head: Vec::new(), front: None }
    }
}

/// Keys and values of one batch of sequences.
pub struct Cache {
    layers: Vec<LayerCache>,
    workspace: Workspace,
    ropes: Ropes,
    n_positions: usize,
    n_batches: Option<usize>,
    len: usize,
}

impl Cache {
    /// Number of positions seen, virtual tokens among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Which positions of an input get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last one of each row: what generation needs.
    Last,
    /// Every one.
    All,
}

impl Model {
    /// Prepares every layer.
    ///
    /// # Errors
    ///
    /// [`Code::ConfigUnsupported`] for element types that are not decoded here, [`Code::BaseTensor`] for a
    /// tied output head that differs from the embedding, [`Code::Runner`] when the device has too little memory.
    pub fn load(base: &BaseModel, device: &Device) -> Result<Self> {
        let n_layers = base.config.n_layers;
        Ok(Model {
            base: base.clone(),
            device: device.clone(),
            blocks: (0..n_layers).map(|i| Block::load(base, i, device)).collect::<Result<_>>()?,
            head: Head::load(base, device)?,
            adapters: Adapters::none(n_layers),
        })
    }

    /// The base model.
    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    /// Replaces the adapters that are on; each has a strength that multiplies what it adds. None is the plain base.
    /// On an error nothing changes.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterMismatch`], [`Code::AdapterShape`] for adapters that do not fit the base; [`Code::ConfigUnsupported`] for
    /// one that has to be merged; [`Code::Usage`] for virtual tokens that are not alone, or of another strength than 1.
    pub fn set_adapters(&mut self, adapters: &[(Effects<'_>, f64)]) -> Result<()> {
        let (base, device) = (&self.base, &self.device);
        let mut on = Adapters::none(self.blocks.len());
        if let Some(front) = front_of(adapters)? {
            on.front = Some(VirtualCache::new(base, front, device)?);
        }
        for (effects, strength) in adapters {
            effects.check_fits(base)?;
            for (i, block) in on.blocks.iter_mut().enumerate() {
                block.add(base, i, (effects, *strength), None, device)?;
            }
            if let Some(effect) = effects.matrices.get(&Weight::TokenEmbedding) {
                on.embedding.push(EmbeddingAddition::new(effect, *strength, None)?);
            }
            if let Some(effect) = effects.matrices.get(&Weight::Output) {
                on.head.push(Addition::new(base, Weight::Output, effect, *strength, (None, 0), device)?);
            }
        }
        self.adapters = on;
        Ok(())
    }

    /// A cache of sequences that have not begun, of up to `n_positions`, for the adapters that are on. Where RoPE depends on a
    /// sequence's length, it is that of this one: keys that are kept never meet queries that are turned by other frequencies.
    pub fn new_cache(&self, n_positions: usize) -> Cache {
        Cache {
            layers: self.blocks.iter().map(|_| LayerCache::new()).collect(),
            workspace: Workspace::default(),
            ropes: Ropes::new(&self.base.config, n_positions),
            n_positions,
            n_batches: None,
            len: self.adapters.front.as_ref().map_or(0, |front| front.n_tokens),
        }
    }

    /// Appends `input_ids`, rows of equal length, to the sequences in `cache` and gives logits, `[B, V]` for
    /// [`Logits::Last`], `[B, T, V]` for [`Logits::All`].
    ///
    /// # Errors
    ///
    /// [`Code::ProbeMismatch`] for token ids outside the vocabulary; [`Code::Usage`] for rows of unequal
    /// length or of another number than the cache holds, and beyond the positions that it is for; [`Code::DenominatorZero`] from an adapter. After an error
    /// the cache is spoilt.
    pub fn forward(&self, cache: &mut Cache, input_ids: &[Vec<u32>], logits: Logits) -> Result<Vec<f32>> {
        let (n_batches, t) = (input_ids.len(), input_ids.first().map_or(0, Vec::len));
        if t == 0 || input_ids.iter().any(|row| row.len() != t) || cache.n_batches.is_some_and(|n| n != n_batches) {
            let lens: Vec<_> = input_ids.iter().map(Vec::len).collect();
            let expected = cache.n_batches.map_or("rows".into(), |n| format!("{n} rows"));
            let message = format!("expected {expected} of the same length of at least 1, found lengths {lens:?}");
            return Err(Error::new(Code::Usage, message).field("input_ids"));
        }
        if t > cache.n_positions.saturating_sub(cache.len) {
            let message = format!("expected at most {} positions, found {}", cache.n_positions, cache.len + t);
            return Err(Error::new(Code::Usage, message).field("input_ids"));
        }
        if let Some(front) = self.adapters.front.as_ref().filter(|_| cache.n_batches.is_none()) {
            for (i, layer) in cache.layers.iter_mut().enumerate() {
                *layer = front.begin(i, n_batches)?;
            }
        }
        cache.n_batches = Some(n_batches);
        if n_batches * t > FEW_POSITIONS {
            // On a thread of the pool: every parallel loop that is started elsewhere waits for one to wake up.
            rayon::scope(|_| self.compute(cache, input_ids, logits))
        } else {
            with_threads_awake(|| self.compute(cache, input_ids, logits))
        }
    }

    fn compute(&self, cache: &mut Cache, input_ids: &[Vec<u32>], logits: Logits) -> Result<Vec<f32>> {
        let (n_batches, t) = (input_ids.len(), input_ids[0].len());
        let hidden = self.base.config.hidden_size;
        let embeddings = embed(&self.base, &input_ids.concat(), &self.adapters.embedding, t)?;
        let mut x = Tensor::from_vec(embeddings, (n_batches, t, hidden), &self.device.0).map_err(candle)?;
        let rotations = cache.ropes.at(cache.len..cache.len + t, &self.device)?;
        for ((block, layer), effects) in self.blocks.iter().zip(&mut cache.layers).zip(&self.adapters.blocks) {
            x = block.forward(&x, &rotations, Some(layer), effects, &mut cache.workspace)?.0;
        }
        cache.len += t;
        let x = match logits {
            Logits::Last => x.narrow(1, t - 1, 1).and_then(|x| x.reshape((n_batches, hidden))),
            Logits::All => x.reshape((n_batches * t, hidden)),
        };
        let n_rows = if logits == Logits::Last { 1 } else { t };
        let logits = self.head.forward(&x.map_err(candle)?, &self.adapters.head, n_rows, &mut cache.workspace)?;
        logits.flatten_all().and_then(|l| l.to_vec1()).map_err(candle)
    }
}

/// Runs `f` on a thread of the pool while the others look for work all the time: of the loops of a single position, each takes
/// less time than it takes to wake a thread.
fn with_threads_awake<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    /// Tells the others that `f` has returned or panicked.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let _done = Done(done);
        let own = rayon::current_thread_index();
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // Where the thread that waits for the others' part of a loop takes this up, nobody would be left to end it.
                while rayon::current_thread_index() != own && !done.load(Ordering::Acquire) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        f()
    })
}
