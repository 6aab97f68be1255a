//! What virtual tokens leave in a cache, as the state of a sequence for llama.cpp.

use super::device::Device;
use super::effects::Front;
use super::front::VirtualCache;
use crate::adapter::Prefix;
use crate::base::{BaseModel, RowOrder};
use crate::error::{Code, Error, Result};
use crate::format::llama_state::{Cache, Layer};

/// The token id of virtual tokens, which have none: programs that look for what a cache has in common with a prompt compare ids,
/// so they need one that every vocabulary has.
pub const TOKEN: u32 = 0;

/// The bytes of the state that sequences begin with in a context of this kind.
///
/// # Errors
///
/// [`Code::BaseArchitecture`]; [`Code::ConfigUnsupported`] for a base with windows that llama.cpp heeds, or one whose keys GGUF files
/// hold multiplied; those of [`VirtualCache::new`] and of [`Cache::file`].
pub fn sequence_state(prefix: &Prefix, base: &BaseModel, cache: &Cache, device: &Device) -> Result<Vec<u8>> {
    let architecture = base.gguf_architecture();
    let order = RowOrder::of_gguf_architecture(architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(architecture))?;
    if let Some(window) = base.config.windows().min().filter(|_| base.config.family.llama_cpp().applies_windows) {
        let message = format!(
            "expected a base without sliding windows, since llama.cpp keeps keys and values of such layers in a cache of their own (iSWA), \
             whose state has another form, found a window of {window} in architecture {architecture:?}"
        );
        return Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field("sliding_window"));
    }
    let c = &base.config;
    if c.gguf_key_factor() != c.key_factor {
        let message = format!(
            "expected a base whose GGUF file holds the model's own keys, found one where they are multiplied by {} (ptplus.attention_key_factor), \
             as those of its state would have to be",
            c.gguf_key_factor() / c.key_factor
        );
        return Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field("query_pre_attn_scalar"));
    }
    let virtual_cache = VirtualCache::new(base, &Front::of(prefix), device)?;
    let (n_heads, d, n) = (base.config.n_kv_heads, base.config.head_dim, prefix.n_tokens());
    let layers = (0..base.config.n_layers).map(|i| {
        let (keys, values) = virtual_cache.layer(i)?;
        Ok(Layer { keys: rows(&keys, n_heads, n, d, order), values: rows(&values, n_heads, n, d, RowOrder::Neox) })
    });
    cache.file(&vec![TOKEN; n], d, layers)
}

/// That llama.cpp does not heed the base's window, in which virtual tokens take places too.
pub fn window_note(base: &BaseModel, n_tokens: usize) -> Option<String> {
    let window = base.config.windows().min().filter(|_| !base.config.family.llama_cpp().applies_windows)?;
    Some(format!(
        "the base has a window of {window} positions, which llama.cpp ignores for architecture {:?}: behind {n_tokens} virtual tokens the \
         first {} tokens are computed as in PyTorch",
        base.gguf_architecture(),
        window.saturating_sub(n_tokens)
    ))
}

/// `[H_kv, P, D]` in Hugging Face order to `[P, H_kv * D]` in the architecture's.
fn rows(x: &[f32], n_heads: usize, n_tokens: usize, d: usize, order: RowOrder) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for token in 0..n_tokens {
        for head in 0..n_heads {
            let row = &x[(head * n_tokens + token) * d..][..d];
            match order {
                RowOrder::Neox => out.extend_from_slice(row),
                RowOrder::Norm => out.extend((0..d).map(|i| row[i % 2 * (d / 2) + i / 2])),
            }
        }
    }
    out
}
