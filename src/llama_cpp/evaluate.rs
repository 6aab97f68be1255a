//! llama.cpp as an engine of verification: prompts in, logits of every lane out.

use std::rc::Rc;

use super::context::{CacheType, Context, ContextOptions, FlashAttention, Token};
use super::inputs::{exact_base, load, readable_adapter, readable_state};
use super::model::Model;
use crate::base::{BaseModel, Rope};
use crate::error::{Code, Error, Result};
use crate::format::llama_state::Cache;
use crate::runner::Sink;
use crate::tensor::DType;
use crate::validate::Validated;

/// Logits held at a time, in values: 64 MiB.
const LOGITS_VALUES: usize = 1 << 24;

/// RoPE that depends on the length of a text is chosen by llama.cpp for its context, which it makes a whole multiple of 256 positions.
fn check_rope(base: &BaseModel, n_positions: usize) -> Result<()> {
    const CONTEXT_STEP: usize = 256;
    let n_context = n_positions.next_multiple_of(CONTEXT_STEP);
    let mut limits = base.config.ropes.iter().filter_map(Rope::changes_beyond);
    match limits.find(|limit| n_positions <= *limit && n_context > *limit) {
        Some(limit) => {
            let message = format!(
                "expected rows of more than {limit} positions, for which llama.cpp would compute with a context of {n_context}, found {n_positions}"
            );
            Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field("rope_scaling"))
        }
        None => Ok(()),
    }
}

/// Runs the base, plain and with one adapter, in llama.cpp and gives the logits at `positions` to `sink`: lane 0 is
/// the base, lane 1 the adapter. Layers are not reported. F32 weights, F32 cache, no flash attention.
///
/// # Errors
///
/// Those of [`exact_base`] and [`readable_adapter`]; [`Code::LlamaCpp`], [`Code::LlamaCppAdapter`]; whatever
/// `sink` returns.
pub fn run(
    base: &BaseModel,
    adapter: &Validated,
    input_ids: &[Vec<u32>],
    positions: &[usize],
    sink: &mut dyn Sink,
) -> Result<()> {
    let base_file = exact_base(base)?;
    let cache = Cache { flash_attention: false, k_type: DType::F32, v_type: DType::F32, ..Cache::default() };
    let front = readable_state(adapter, base, &cache)?;
    let n_virtual = front.as_ref().map_or(0, |(_, n)| *n);
    let adapter_file = if front.is_some() { None } else { Some(readable_adapter(adapter, base)?) };
    let model = Rc::new(Model::load(&base_file.path)?);
    let vocab_size = base.config.vocab_size;
    if model.vocab_size() != vocab_size {
        let message = format!("expected a vocabulary of {vocab_size}, llama.cpp found {}", model.vocab_size());
        return Err(Error::new(Code::LlamaCpp, message).file(&base.path));
    }
    let adapters: Vec<_> = adapter_file.iter().map(|file| load(adapter, file, &model)).collect::<Result<_>>()?;
    let length = input_ids.iter().map(Vec::len).max().unwrap_or(0);
    check_rope(base, length)?;
    let chunk_len = (LOGITS_VALUES / vocab_size / 2).clamp(1, length.max(1));
    let options = ContextOptions {
        n_positions: length + n_virtual,
        n_batch: chunk_len,
        n_ubatch: chunk_len.min(512),
        n_sequences: 1,
        n_threads: std::thread::available_parallelism().map_or(1, usize::from),
        flash_attention: FlashAttention::Off,
        cache_type: CacheType::F32,
    };
    let mut lanes = [Context::new(&model, &[], &options)?, Context::new(&model, &adapters, &options)?];
    for (row, ids) in input_ids.iter().enumerate() {
        lanes.iter_mut().for_each(Context::clear);
        if let Some((file, _)) = &front {
            lanes[1].restore(&file.path, 0)?;
        }
        for (first, chunk) in ids.chunks(chunk_len).enumerate().map(|(i, c)| (i * chunk_len, c)) {
            let batch: Vec<Token> = (first..)
                .zip(chunk)
                .map(|(position, &id)| Token { id, position, sequence: 0, logits: positions.contains(&position) })
                .collect();
            lanes[0].decode(&batch)?;
            let behind: Vec<Token> = batch.iter().map(|t| Token { position: t.position + n_virtual, ..*t }).collect();
            lanes[1].decode(&behind)?;
            for (i, t) in batch.iter().enumerate().filter(|(_, t)| t.logits) {
                sink.logits(row, t.position, &[lanes[0].logits(i)?, lanes[1].logits(i)?])?;
            }
        }
        sink.progress(row + 1, input_ids.len())?;
    }
    Ok(())
}
