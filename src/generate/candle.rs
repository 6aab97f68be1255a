//! The runner as an [`Engine`].

use super::Engine;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::runner::{Cache, Device, Logits, Model};
use crate::validate::Validated;

/// A model on candle with one sequence.
pub struct Candle {
    model: Model,
    cache: Cache,
    adapters: Vec<Validated>,
    n_context: usize,
}

/// Tokens that are computed at a time, as in llama.cpp: bounds the memory of attention in long prompts.
const CHUNK: usize = 512;

impl Candle {
    /// Prepares the model; no adapter is on.
    ///
    /// # Errors
    ///
    /// Those of [`Model::load`].
    pub fn new(base: &BaseModel, adapters: Vec<Validated>, device: &Device, n_context: usize) -> Result<Self> {
        let model = Model::load(base, device)?;
        let cache = model.new_cache(n_context);
        Ok(Candle { model, cache, adapters, n_context })
    }
}

impl Engine for Candle {
    fn vocab_size(&self) -> usize {
        self.model.base().config.vocab_size
    }

    fn append(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let len = self.cache.len() + tokens.len();
        if len > self.n_context {
            let message = format!("expected at most {} tokens, found {len}", self.n_context);
            return Err(Error::new(Code::ContextFull, message));
        }
        let mut logits = Vec::new();
        for chunk in tokens.chunks(CHUNK) {
            logits = self.model.forward(&mut self.cache, &[chunk.to_vec()], Logits::Last)?;
        }
        Ok(logits)
    }

    fn clear(&mut self) -> Result<()> {
        self.cache = self.model.new_cache(self.n_context);
        Ok(())
    }

    fn switch_adapters(&mut self, on: &[(usize, f32)]) -> Result<()> {
        let on: Vec<_> =
            on.iter().map(|(i, strength)| (self.adapters[*i].adapter().into(), f64::from(*strength))).collect();
        self.model.set_adapters(&on)?;
        self.clear()
    }
}
