//! A context: sequences, their keys and values, and the adapters in its graphs.

use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as llama;

use super::model::{Adapter, Adapters, Model, c_path, failed};
use crate::error::{Code, Error, Result};

/// The type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// For comparisons.
    F32,
    /// llama.cpp's default.
    F16,
    /// With flash attention only.
    Q8_0,
    /// With flash attention only.
    Q4_0,
}

/// Whether llama.cpp computes attention with its fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashAttention {
    /// Matrix products and a softmax.
    Off,
    /// The fused kernel.
    On,
}

/// What a context is made with.
#[derive(Debug, Clone, Copy)]
pub struct ContextOptions {
    /// Positions, of all sequences together.
    pub n_positions: usize,
    /// Largest number of tokens in one [`Context::decode`].
    pub n_batch: usize,
    /// Largest number of tokens that llama.cpp computes at once.
    pub n_ubatch: usize,
    /// Sequences side by side.
    pub n_sequences: usize,
    /// Threads.
    pub n_threads: usize,
    /// The kernel.
    pub flash_attention: FlashAttention,
    /// Keys and values.
    pub cache_type: CacheType,
}

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// Position in its sequence.
    pub position: usize,
    /// Sequence number.
    pub sequence: usize,
    /// Whether its logits are wanted.
    pub logits: bool,
}

/// Threads that stay, as llama.cpp's own programs have them. A context without starts its threads anew for each graph.
struct Threads(NonNull<llama::ggml_threadpool>);

impl Threads {
    fn new(n: i32) -> Result<Threads> {
        // SAFETY: plain values, copied by the pool.
        let pool = unsafe {
            let mut params = llama::ggml_threadpool_params_default(n);
            llama::ggml_threadpool_new(&mut params)
        };
        NonNull::new(pool).map(Threads).ok_or_else(|| failed("llama.cpp cannot start threads"))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: ours, and the context that used it is gone: fields are dropped after `Context::drop`.
        unsafe { llama::ggml_threadpool_free(self.0.as_ptr()) };
    }
}

/// A context of a model, with adapters that start with scale 1.
pub struct Context {
    context: NonNull<llama::llama_context>,
    adapters: Option<Adapters>,
    loras: Loras,
    /// Where each adapter's scale is kept.
    places: Vec<Place>,
    _threads: Threads,
    batch: llama::llama_batch,
    n_batch: usize,
    n_positions: usize,
    vocab_size: usize,
    _model: Rc<Model>,
}

/// One adapter among those of its kind.
#[derive(Clone, Copy)]
enum Place {
    Graft(usize),
    Lora(usize),
}

/// What llama.cpp adds itself, with a scale each.
struct Loras {
    pointers: Vec<*mut llama::llama_adapter_lora>,
    scales: Vec<f32>,
    _held: Vec<Rc<Adapter>>,
}

impl Loras {
    fn of(model: &Rc<Model>, adapters: &[Rc<Adapter>]) -> Result<Loras> {
        let held: Vec<Rc<Adapter>> = adapters.iter().filter(|a| a.lora().is_some()).cloned().collect();
        let pointers: Vec<_> = held
            .iter()
            .filter_map(|a| a.lora())
            .map(|l| l.pointer_for(model).map(NonNull::as_ptr))
            .collect::<Result<_>>()?;
        Ok(Loras { scales: vec![1.0; pointers.len()], pointers, _held: held })
    }

    fn apply(&mut self, context: NonNull<llama::llama_context>) {
        let (adapters, scales) = (self.pointers.as_mut_ptr(), self.scales.as_mut_ptr());
        // SAFETY: the context is live; both arrays have as many entries as stated, and llama.cpp copies them. The adapters are
        // of the context's model and held with it.
        unsafe { llama::llama_set_adapters_lora(context.as_ptr(), adapters, self.pointers.len(), scales) };
    }
}

impl Context {
    /// Makes a context. Without adapters it is stock llama.cpp.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] where the graft refuses; [`Code::LlamaCpp`] where llama.cpp does.
    pub fn new(model: &Rc<Model>, adapters: &[Rc<Adapter>], options: &ContextOptions) -> Result<Context> {
        let count = |n: usize| u32::try_from(n).map_err(|_| failed("expected a count that fits 32 bits"));
        let n_batch = i32::try_from(options.n_batch).map_err(|_| failed("expected a batch that fits 31 bits"))?;
        // SAFETY: plain values.
        let mut params = unsafe { llama::llama_context_default_params() };
        params.n_ctx = count(options.n_positions)?;
        params.n_batch = count(options.n_batch)?;
        params.n_ubatch = count(options.n_ubatch)?;
        params.n_seq_max = count(options.n_sequences)?;
        params.kv_unified = true;
        params.n_threads = count(options.n_threads)? as i32;
        params.n_threads_batch = params.n_threads;
        params.no_perf = true;
        params.flash_attn_type = match options.flash_attention {
            FlashAttention::Off => llama::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => llama::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        params.type_k = match options.cache_type {
            CacheType::F32 => llama::GGML_TYPE_F32,
            CacheType::F16 => llama::GGML_TYPE_F16,
            CacheType::Q8_0 => llama::GGML_TYPE_Q8_0,
            CacheType::Q4_0 => llama::GGML_TYPE_Q4_0,
        };
        params.type_v = params.type_k;
        let mut loras = Loras::of(model, adapters)?;
        let (mut n_grafted, mut n_loras) = (0, 0);
        let places: Vec<Place> = adapters
            .iter()
            .map(|a| {
                let n = if a.lora().is_some() { &mut n_loras } else { &mut n_grafted };
                *n += 1;
                if a.lora().is_some() { Place::Lora(*n - 1) } else { Place::Graft(*n - 1) }
            })
            .collect();
        let held = if n_grafted == 0 { None } else { Some(Adapters::load(model, adapters)?) };
        // SAFETY: the model is loaded and outlives the context, which holds it; so do the adapters.
        let context = Adapters::while_active(held.as_ref(), || unsafe {
            llama::llama_init_from_model(model.pointer.as_ptr(), params)
        });
        let context = NonNull::new(context).ok_or_else(|| failed("llama.cpp cannot make a context"))?;
        let threads = match Threads::new(params.n_threads) {
            Ok(threads) => threads,
            Err(e) => {
                // SAFETY: made above, used by nobody yet.
                unsafe { llama::llama_free(context.as_ptr()) };
                return Err(e);
            }
        };
        // SAFETY: both are live; the pool is freed after the context.
        unsafe { llama::llama_attach_threadpool(context.as_ptr(), threads.0.as_ptr(), threads.0.as_ptr()) };
        if n_loras > 0 {
            loras.apply(context);
        }
        // SAFETY: a batch of token ids with one sequence for each token, freed in `drop`.
        let batch = unsafe { llama::llama_batch_init(n_batch, 0, 1) };
        Ok(Context {
            context,
            adapters: held,
            loras,
            places,
            _threads: threads,
            batch,
            n_batch: options.n_batch,
            n_positions: options.n_positions,
            vocab_size: model.vocab_size(),
            _model: model.clone(),
        })
    }

    /// Changes the factor on adapter number `index`; 0 switches it off. No reload; the cached keys and values stay.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for a number that is not there; [`Code::LlamaCppAdapter`] for a scale that is not finite.
    pub fn set_scale(&mut self, index: usize, scale: f32) -> Result<()> {
        match (self.places.get(index), &mut self.adapters) {
            (Some(Place::Graft(i)), Some(adapters)) => adapters.set_scale(*i, scale),
            (Some(Place::Lora(_)), _) if !scale.is_finite() => {
                Err(Error::new(Code::LlamaCppAdapter, format!("expected a finite scale, found {scale}")))
            }
            (Some(Place::Lora(i)), _) => {
                self.loras.scales[*i] = scale;
                self.loras.apply(self.context);
                Ok(())
            }
            _ => {
                let message = format!("expected an adapter below {}, found {index}", self.places.len());
                Err(Error::new(Code::Usage, message))
            }
        }
    }

    /// Computes `tokens`, at most [`ContextOptions::n_batch`].
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for none, too many or an id outside the vocabulary; [`Code::LlamaCpp`] where llama.cpp
    /// fails; [`Code::LlamaCppAdapter`] where an adapter was not applied.
    pub fn decode(&mut self, tokens: &[Token]) -> Result<()> {
        if tokens.is_empty() || tokens.len() > self.n_batch {
            let message = format!("expected 1 to {} tokens, found {}", self.n_batch, tokens.len());
            return Err(Error::new(Code::Usage, message));
        }
        for (i, t) in tokens.iter().enumerate() {
            if t.id as usize >= self.vocab_size {
                let message = format!("expected ids below the vocabulary of {}, found {}", self.vocab_size, t.id);
                return Err(Error::new(Code::Usage, message));
            }
            // SAFETY: the batch has room for `n_batch` tokens with one sequence each, and `i` is below that.
            unsafe {
                *self.batch.token.add(i) = t.id as i32;
                *self.batch.pos.add(i) = t.position as i32;
                *self.batch.n_seq_id.add(i) = 1;
                **self.batch.seq_id.add(i) = t.sequence as i32;
                *self.batch.logits.add(i) = i8::from(t.logits);
            }
        }
        self.batch.n_tokens = tokens.len() as i32;
        // SAFETY: the context is live, and llama.cpp checks positions and sequences itself.
        let decode = || unsafe { llama::llama_decode(self.context.as_ptr(), self.batch) };
        let status = Adapters::while_active(self.adapters.as_ref(), decode);
        if let Some(adapters) = &mut self.adapters {
            adapters.check()?;
        }
        if status != 0 {
            return Err(failed(&format!("llama_decode returned {status}")));
        }
        Ok(())
    }

    /// The logits `[V]` of token `index` of the last batch.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] if they were not asked for.
    pub fn logits(&self, index: usize) -> Result<&[f32]> {
        let index_c = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: llama.cpp gives null for a token without logits, else V values that live until the next decode,
        // which wants `&mut self`. Negative numbers, which count from the end, cannot occur.
        unsafe {
            let logits = llama::llama_get_logits_ith(self.context.as_ptr(), index_c);
            if logits.is_null() {
                return Err(Error::new(Code::Usage, format!("expected logits of token {index}, which asked for none")));
            }
            Ok(std::slice::from_raw_parts(logits, self.vocab_size))
        }
    }

    /// Gives a sequence the state of a file, in the place of what it had, and says how many tokens that is.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] where llama.cpp refuses the file; its log says why.
    pub fn restore(&mut self, file: &Path, sequence: usize) -> Result<usize> {
        let (path, n_context) = (c_path(file)?, self.n_positions);
        let (mut tokens, mut n) = (vec![0i32; n_context], 0usize);
        // SAFETY: the context is live; the path ends in NUL; the array has the room that is stated, and both outlive the call.
        let n_read = unsafe {
            llama::llama_state_seq_load_file(
                self.context.as_ptr(),
                path.as_ptr(),
                sequence as i32,
                tokens.as_mut_ptr(),
                tokens.len(),
                &mut n,
            )
        };
        match n_read {
            0 => {
                Err(Error::new(Code::LlamaCppAdapter, "llama.cpp cannot load the state of the virtual tokens")
                    .file(file))
            }
            _ => Ok(n),
        }
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context is live and owns its memory.
        unsafe { llama::llama_memory_clear(llama::llama_get_memory(self.context.as_ptr()), true) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once; the adapters go after it.
        unsafe {
            llama::llama_batch_free(self.batch);
            llama::llama_free(self.context.as_ptr());
        }
    }
}
