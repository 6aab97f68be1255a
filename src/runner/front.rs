//! Virtual tokens as the blocks meet them: keys and values that every sequence's cache begins with.

use candle_core::Tensor;

use super::attention::LayerCache;
use super::block::{Block, BlockEffects};
use super::candle;
use super::device::Device;
use super::effects::Front;
use super::linear::Workspace;
use super::rope::Ropes;
use crate::base::{BaseModel, GivenEmbeddings};
use crate::error::{Code, Error, Result};
use crate::tensor::LazyTensor;
use crate::transform::low_rank::decoded;

/// Keys and values of virtual tokens, computed.
pub struct VirtualCache {
    /// By layer: keys after RoPE, multiplied as the base's are, and values, `[H_kv, P, D]` each, F32.
    layers: Vec<(Tensor, Tensor)>,
    /// P.
    pub n_tokens: usize,
}

impl VirtualCache {
    /// What `front`, which must fit the base, puts into its caches.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterMismatch`] where it does not fit;
    /// [`Code::ConfigUnsupported`] for embeddings where RoPE depends on the text's length; those of reading weights.
    pub fn new(base: &BaseModel, front: &Front<'_>, device: &Device) -> Result<Self> {
        front.check_fits(base)?;
        let layers = match front {
            Front::KeysValues(layers) => {
                let tensor = |t: &LazyTensor| Tensor::from_vec(decoded(t)?, t.shape(), &device.0).map_err(candle);
                // They are the model's own, among those that the base computes.
                let keys = |t| match base.config.key_factor {
                    1.0 => tensor(t),
                    factor => tensor(t)?.affine(factor, 0.0).map_err(candle),
                };
                layers.values().map(|l| Ok((keys(&l.keys)?, tensor(&l.values)?))).collect::<Result<_>>()?
            }
            Front::Embeddings(t) => through_base(base, t, device)?,
        };
        Ok(VirtualCache { layers, n_tokens: front.n_tokens() })
    }

    /// Keys and values of a layer, `[H_kv, P, D]` each, row-major, in Hugging Face order.
    ///
    /// # Errors
    ///
    /// [`Code::Runner`].
    pub fn layer(&self, index: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let values = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1()).map_err(candle);
        let (k, v) = &self.layers[index];
        Ok((values(k)?, values(v)?))
    }

    /// A cache of a layer that has seen the virtual tokens, for a batch of `n_sequences`.
    pub(super) fn begin(&self, layer: usize, n_sequences: usize) -> Result<LayerCache> {
        let (k, v) = &self.layers[layer];
        let of_all = |t: &Tensor| Tensor::cat(&vec![t; n_sequences], 0).map_err(candle);
        Ok(LayerCache::holding(of_all(k)?, of_all(v)?, self.n_tokens))
    }
}

/// The keys and values that the base makes of input embeddings, one block held at a time.
fn through_base(base: &BaseModel, embeddings: &LazyTensor, device: &Device) -> Result<Vec<(Tensor, Tensor)>> {
    let &[n_tokens, hidden] = embeddings.shape() else { unreachable!("the shape was checked") };
    let mut values = decoded(embeddings)?;
    let multiplier = multiplier(base)?;
    if multiplier != 1.0 {
        values.iter_mut().for_each(|v| *v *= multiplier);
    }
    let mut x = Tensor::from_vec(values, (1, n_tokens, hidden), &device.0).map_err(candle)?;
    if base.config.ropes.iter().any(|r| r.changes_beyond().is_some()) {
        let message = "expected a RoPE that is the same for texts of every length, since virtual tokens go through the base before the text is known";
        return Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field("rope_parameters"));
    }
    let rotations = Ropes::new(&base.config, n_tokens).at(0..n_tokens, device)?;
    let mut workspace = Workspace::default();
    let mut layers = Vec::with_capacity(base.config.n_layers);
    for i in 0..base.config.n_layers {
        let mut cache = LayerCache::new();
        let block = Block::load(base, i, device)?;
        x = block.forward(&x, &rotations, Some(&mut cache), &BlockEffects::default(), &mut workspace)?.0;
        layers.push(cache.contents().map_err(candle)?);
    }
    Ok(layers)
}

/// What the model multiplies embeddings with that come from elsewhere than its table.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] where that depends on the version of transformers that the embeddings were trained with.
fn multiplier(base: &BaseModel) -> Result<f32> {
    let of_table = base.config.embedding_multiplier as f32;
    match base.config.family.embeddings_from_elsewhere() {
        _ if of_table == 1.0 => Ok(1.0),
        GivenEmbeddings::Multiplied => Ok(of_table),
        GivenEmbeddings::AsTheyAre => Ok(1.0),
        GivenEmbeddings::DependsOnVersion => {
            let message = format!(
                "expected a base that treats embeddings alike in every version of transformers: of a {} version 4 multiplies virtual \
                 tokens by {of_table} and version 5 does not, and no file says which it was trained with",
                base.config.family
            );
            Err(Error::new(Code::ConfigUnsupported, message).file(&base.path))
        }
    }
}
