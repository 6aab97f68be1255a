//! llama.cpp as an engine of text generation.

use std::rc::Rc;

use super::context::{CacheType, Context, ContextOptions, FlashAttention, Token};
use super::inputs::{Readable, load, readable_adapter, readable_state, runnable_base};
use super::model::Model;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::format::llama_state::Cache;
use crate::generate::Engine;
use crate::validate::Validated;

/// Tokens given to llama.cpp at once.
const N_BATCH: usize = 512;

/// One sequence in llama.cpp.
pub struct LlamaCpp {
    context: Context,
    _file: Readable,
    /// Where each adapter is.
    places: Vec<Place>,
    /// The virtual tokens that every sequence begins with, if some are on.
    front: Option<Rc<(Readable, usize)>>,
    vocab_size: usize,
    n_positions: usize,
    len: usize,
}

/// Where an adapter is.
enum Place {
    /// In the context's graphs, under this number.
    Graph(usize),
    /// In the state that a sequence begins with: a file, and how many tokens it has.
    State(Rc<(Readable, usize)>),
}

impl LlamaCpp {
    /// Loads base and adapters, all of them off, for sequences of up to `n_positions` tokens.
    ///
    /// # Errors
    ///
    /// [`Code::BaseArchitecture`]; [`Code::LlamaCpp`], [`Code::LlamaCppAdapter`]; those of writing a folder as GGUF.
    pub fn open(base: &BaseModel, adapters: &[&Validated], n_positions: usize, n_threads: usize) -> Result<LlamaCpp> {
        let file = runnable_base(base)?;
        let model = Rc::new(Model::load(&file.path)?);
        // Written files are read again when the context is made, and kept until then.
        let (mut files, mut in_graph, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for a in adapters {
            places.push(match readable_state(a, base, &Cache::default())? {
                Some(state) => Place::State(Rc::new(state)),
                None => {
                    files.push(readable_adapter(a, base)?);
                    in_graph.push(*a);
                    Place::Graph(in_graph.len() - 1)
                }
            });
        }
        let adapters: Vec<_> = in_graph.iter().zip(&files).map(|(a, f)| load(a, f, &model)).collect::<Result<_>>()?;
        let options = ContextOptions {
            n_positions,
            n_batch: N_BATCH.min(n_positions),
            n_ubatch: N_BATCH.min(n_positions),
            n_sequences: 1,
            n_threads,
            flash_attention: FlashAttention::On,
            cache_type: CacheType::F16,
        };
        let mut context = Context::new(&model, &adapters, &options)?;
        for i in 0..adapters.len() {
            context.set_scale(i, 0.0)?;
        }
        Ok(LlamaCpp { context, _file: file, places, front: None, vocab_size: model.vocab_size(), n_positions, len: 0 })
    }
}

impl Engine for LlamaCpp {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn append(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.n_positions - self.len {
            let message = format!(
                "expected 1 to {} more tokens in a context of {}, found {}",
                self.n_positions - self.len,
                self.n_positions,
                tokens.len()
            );
            return Err(Error::new(Code::Usage, message));
        }
        let last = tokens.len() - 1;
        let mut index_of_last = 0;
        for (first, chunk) in tokens.chunks(N_BATCH).enumerate().map(|(i, c)| (i * N_BATCH, c)) {
            let batch: Vec<Token> = (first..)
                .zip(chunk)
                .map(|(i, &id)| Token { id, position: self.len + i, sequence: 0, logits: i == last })
                .collect();
            self.context.decode(&batch)?;
            index_of_last = chunk.len() - 1;
        }
        self.len += tokens.len();
        self.context.logits(index_of_last).map(<[f32]>::to_vec)
    }

    fn clear(&mut self) -> Result<()> {
        self.context.clear();
        self.len = match &self.front {
            Some(front) => self.context.restore(&front.0.path, 0)?,
            None => 0,
        };
        Ok(())
    }

    fn switch_adapters(&mut self, on: &[(usize, f32)]) -> Result<()> {
        let n_in_graph = self.places.iter().filter(|p| matches!(p, Place::Graph(_))).count();
        let (mut scales, mut front) = (vec![0.0; n_in_graph], None);
        for &(index, strength) in on {
            match self.places.get(index) {
                Some(Place::Graph(i)) => scales[*i] += strength,
                Some(Place::State(_)) if strength != 1.0 || on.len() > 1 => {
                    let message = "expected virtual tokens alone and with a scale of 1: they are there or not";
                    return Err(Error::new(Code::Usage, message));
                }
                Some(Place::State(state)) => front = Some(state.clone()),
                None => {
                    let message = format!("expected an adapter below {}, found {index}", self.places.len());
                    return Err(Error::new(Code::Usage, message));
                }
            }
        }
        for (index, scale) in scales.into_iter().enumerate() {
            self.context.set_scale(index, scale)?;
        }
        self.front = front;
        self.clear()
    }
}
