//! What virtual tokens leave in a cache, as the state of a sequence for llama.cpp.

use super::device::Device;
use super::effects::Front;
use super::front::VirtualCache;
use crate::adapter::Prefix;
use crate::base::{BaseModel, RowOrder};
use crate::error::Result;
use crate::format::llama_state::{Cache, Layer};

/// The token id of virtual tokens, which have none: programs that look for what a cache has in common with a prompt compare ids,
/// so they need one that every vocabulary has.
pub const TOKEN: u32 = 0;

/// The bytes of the state that sequences begin with in a context of this kind, on the GGUF file that is written of `base`.
///
/// # Errors
///
/// [`Code::BaseArchitecture`](crate::error::Code::BaseArchitecture); those of [`VirtualCache::new`] and of [`Cache::file`].
pub fn sequence_state(prefix: &Prefix, base: &BaseModel, cache: &Cache, device: &Device) -> Result<Vec<u8>> {
    let architecture = base.gguf_architecture();
    let order = RowOrder::of_gguf_architecture(architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(architecture))?;
    let c = &base.config;
    let window = heeded_window(base);
    let virtual_cache = VirtualCache::new(base, &Front::of(prefix), device)?;
    let (n_heads, d, n) = (c.n_kv_heads, c.head_dim, prefix.n_tokens());
    let key_factor = added_key_factor(base) as f32;
    let layers = (0..c.n_layers).map(|i| {
        let (mut keys, values) = virtual_cache.layer(i)?;
        if key_factor != 1.0 {
            keys.iter_mut().for_each(|k| *k *= key_factor);
        }
        let (keys, values) = (rows(&keys, n_heads, n, d, order), rows(&values, n_heads, n, d, RowOrder::Neox));
        Ok(Layer { keys, values, has_window: c.layers[i].window.is_some() })
    });
    cache.file(&vec![TOKEN; n], d, window, layers)
}

/// The window of those layers that llama.cpp keeps in a cache of their own.
pub fn heeded_window(base: &BaseModel) -> Option<usize> {
    base.config.windows().next().filter(|_| base.config.family.llama_cpp().applies_windows)
}

/// What keys are multiplied with in the GGUF file that is written of a base, beyond what the base's own are.
fn added_key_factor(base: &BaseModel) -> f64 {
    base.config.gguf_key_factor() / base.config.key_factor
}

/// What a user should know of a state for `base`: for which GGUF file it is, and how far llama.cpp computes what PyTorch does.
pub fn state_notes(base: &BaseModel, n_tokens: usize) -> Vec<String> {
    let factor = added_key_factor(base);
    let multiplied = (factor != 1.0).then(|| {
        format!(
            "llama.cpp has a scale of attention scores of its own for {}: the state is for the GGUF file that ptplus writes of this base, whose keys \
             are multiplied with {factor:.6}, and for no other converter's",
            base.gguf_architecture()
        )
    });
    multiplied.into_iter().chain(window_note(base, n_tokens)).collect()
}

/// That llama.cpp does not heed the base's window, in which virtual tokens take places too.
fn window_note(base: &BaseModel, n_tokens: usize) -> Option<String> {
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
