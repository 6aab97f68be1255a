//! Text from a model: what an engine must be able to do, whichever computes, and the loop around it.
//!
//! ```text
//!   conversation -> Template -> text -> Tokenizer -> tokens -> Engine -> logits -> Sampler -> token -> TextStream -> text
//!                                                                ^                              |
//!                                                                +------------------------------+
//! ```

mod candle;
mod chat;
mod sampler;
mod template;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::vocab::tokenizer::{TextStream, Tokenizer};

pub use candle::Candle;
pub use chat::{BaseText, Prompt};
pub use sampler::{Sampler, Sampling};
pub use template::{Message, Role, Template, Tokens, template_panic};

/// One sequence of a loaded base model, with adapters that are switched without a reload.
pub trait Engine {
    /// Logits per position.
    fn vocab_size(&self) -> usize;

    /// Appends `tokens` to the sequence; the result is the logits `[V]` of the last position.
    ///
    /// # Errors
    ///
    /// The engine's own; a sequence longer than the engine's context.
    fn append(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;

    /// Forgets the sequence.
    ///
    /// # Errors
    ///
    /// The engine's own.
    fn clear(&mut self) -> Result<()>;

    /// Which of the adapters that were given at the start are on, `(number, strength)`; their terms add up. Forgets
    /// the sequence, whose keys and values the former adapters made.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterMismatch`] for an adapter that does not fit the base; the engine's own.
    fn switch_adapters(&mut self, on: &[(usize, f32)]) -> Result<()>;
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stop {
    /// The model ended it.
    End,
    /// As many tokens as were asked for.
    Limit,
    /// The context is full.
    Context,
    /// Nobody reads on.
    Unread,
}

/// What may be generated.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens of the answer; `None` for as many as fit.
    pub n_predict: Option<usize>,
    /// Tokens of prompt and answer.
    pub n_context: usize,
}

/// An answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answer {
    /// The generated tokens, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Time for the prompt, up to the first logits.
    pub prompt_time: Duration,
    /// Time for everything after the first token.
    pub decode_time: Duration,
}

/// Tokens of a prompt that are computed between two reports of progress.
const PIECE: usize = 256;

/// Answers `prompt` from the beginning of a sequence, handing out text as it comes, until `show` breaks off; `progress` is called with tokens of
/// the prompt that are done and all of them.
///
/// # Errors
///
/// [`Code::ContextFull`] for a prompt that leaves no room; [`Code::Usage`] for an empty one; those of the engine,
/// of [`Sampler::choose`] and of `show`.
pub fn answer(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    sampling: Sampling,
    limits: Limits,
    show: &mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
    progress: &dyn Fn(usize, usize),
) -> Result<Answer> {
    if prompt.is_empty() {
        return Err(Error::new(Code::Usage, "expected a prompt of at least one token, found none"));
    }
    if prompt.len() >= limits.n_context {
        let message = format!(
            "expected a prompt of fewer than {} tokens, found {}; --ctx-size makes room",
            limits.n_context,
            prompt.len()
        );
        return Err(Error::new(Code::ContextFull, message));
    }
    let mut sampler = Sampler::new(sampling);
    prompt.iter().for_each(|t| sampler.accept(*t));
    let mut stream = TextStream::default();
    let mut answer = Answer {
        tokens: Vec::new(),
        text: String::new(),
        stop: Stop::Limit,
        n_prompt: prompt.len(),
        prompt_time: Duration::ZERO,
        decode_time: Duration::ZERO,
    };
    engine.clear()?;
    let start = Instant::now();
    let mut logits = Vec::new();
    for (i, piece) in prompt.chunks(PIECE).enumerate() {
        progress(i * PIECE, prompt.len());
        logits = engine.append(piece)?;
    }
    progress(prompt.len(), prompt.len());
    answer.prompt_time = start.elapsed();
    let start = Instant::now();
    while limits.n_predict.is_none_or(|n| answer.tokens.len() < n) {
        // A model may have more logits than its vocabulary has tokens: rows that only fill up its matrix.
        logits.truncate(tokenizer.len());
        let token = sampler.choose(&logits)?;
        answer.tokens.push(token);
        if tokenizer.is_end(token) {
            answer.stop = Stop::End;
            break;
        }
        let text = stream.push(&tokenizer.bytes(token));
        answer.text.push_str(&text);
        if show(&text)?.is_break() {
            answer.stop = Stop::Unread;
            break;
        }
        if prompt.len() + answer.tokens.len() >= limits.n_context {
            answer.stop = Stop::Context;
            break;
        }
        if limits.n_predict.is_none_or(|n| answer.tokens.len() < n) {
            logits = engine.append(&[token])?;
        }
    }
    answer.decode_time = start.elapsed();
    let rest = stream.finish();
    answer.text.push_str(&rest);
    if answer.stop != Stop::Unread && show(&rest)?.is_break() {
        answer.stop = Stop::Unread;
    }
    Ok(answer)
}

/// Whether each adapter, alone and at its strength, changes the logits of `tokens` at all; engines start and end with
/// none on.
///
/// # Errors
///
/// Those of the engine.
pub fn effects(engine: &mut dyn Engine, tokens: &[u32], adapters: &[(usize, f32)]) -> Result<Vec<bool>> {
    /// A term of 0 is 0 at every position; a few are enough to see another.
    const POSITIONS: usize = 16;
    let tokens = &tokens[..tokens.len().min(POSITIONS)];
    engine.switch_adapters(&[])?;
    let base = engine.append(tokens)?;
    let mut changed = Vec::with_capacity(adapters.len());
    for adapter in adapters {
        engine.switch_adapters(&[*adapter])?;
        changed.push(engine.append(tokens)? != base);
    }
    engine.switch_adapters(&[])?;
    Ok(changed)
}
