//! A base in which some weights are others, such as those that an adapter brings along.

use super::{BaseConfig, BaseModel, BlockWeight, Dialect, RowOrder, Weight};
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::quant;
use crate::tensor::LazyTensor;

impl BaseModel {
    /// This model with another configuration, and with `weights` (in Hugging Face order) in the place of its own or beside
    /// them. Nothing is copied that lies in one piece.
    ///
    /// # Errors
    ///
    /// [`Code::BaseTensor`] where the whole does not fit the configuration; [`Code::ConfigUnsupported`] for a weight that
    /// shares its tensor with others.
    pub fn with_weights(
        &self,
        config: BaseConfig,
        weights: impl IntoIterator<Item = (Weight, LazyTensor)>,
    ) -> Result<BaseModel> {
        let mut changed = self.clone();
        changed.config = config;
        // Those of the clone are this model's.
        changed.digests = Default::default();
        for (weight, t) in weights {
            let t = self.in_file_order(weight, t)?;
            let (dtype, bytes) = match t.whole_bytes() {
                Some(bytes) => (t.stored_dtype(), bytes),
                None => (t.dtype(), t.to_bytes().into()),
            };
            let name = self.tensor_of(weight)?;
            let beside = self.tensor(weight).or_else(|| self.tensor(Weight::TokenEmbedding));
            let file = beside.map_or_else(|| self.path.as_path().into(), |t| t.file.clone());
            let shape = t.shape().to_vec();
            let stored = StoredTensor { name: name.clone(), dtype, shape, file, file_offset: 0, bytes, storage: None };
            changed.tensors.insert(name, stored);
        }
        changed.find_weights()?;
        Ok(changed)
    }

    /// The name of the tensor that `weight` is all of.
    fn tensor_of(&self, weight: Weight) -> Result<String> {
        match self.layout.iter().find(|s| s.weights.contains(&weight)) {
            Some(stored) if stored.weights.len() > 1 => {
                let message = "expected a weight with a tensor of its own, found one that shares its tensor with others: \
                               merge into the Hugging Face folder";
                Err(Error::new(Code::ConfigUnsupported, message).file(&self.path).field(&stored.name))
            }
            Some(stored) => Ok(stored.name.clone()),
            None => Ok(self.name_of(weight)),
        }
    }

    /// A weight in Hugging Face order with its rows as the files of this dialect have them.
    fn in_file_order(&self, weight: Weight, t: LazyTensor) -> Result<LazyTensor> {
        match self.dialect {
            Dialect::Gguf if self.is_less_one(weight) => {
                let mut values = vec![0f32; t.shape().iter().product()];
                quant::decode(t.dtype(), &t.to_bytes(), &mut values);
                values.iter_mut().for_each(|v| *v += 1.0);
                Ok(LazyTensor::from_f32(&values, t.shape()))
            }
            Dialect::Gguf => Ok(self.in_gguf_order(weight, t.clone())?.map_or(t, |heads| heads.merge_axes(0))),
            Dialect::HuggingFace => Ok(t),
        }
    }

    /// Rows in Hugging Face order as a GGUF file of the architecture has them, split into heads `[heads, D, ...]`; `None`
    /// for a weight whose rows stay where they are. What belongs to the rows, such as an addition's B, follows them.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] for another number of rows than the heads have.
    pub fn in_gguf_order(&self, weight: Weight, t: LazyTensor) -> Result<Option<LazyTensor>> {
        use BlockWeight::{Key, KeyBias, Query, QueryBias};
        let n_heads = match weight {
            Weight::Block(_, Query | QueryBias) => self.config.n_heads,
            Weight::Block(_, Key | KeyBias) => self.config.n_kv_heads,
            _ => return Ok(None),
        };
        if self.row_order() != RowOrder::Norm {
            return Ok(None);
        }
        let d = self.config.head_dim;
        Ok(Some(t.split_axis(0, n_heads, d)?.regroup(1, d / 2)))
    }
}
