//! The real llama.cpp, with Prefix-Tuning+ adapters applied inside its graph.
//!
//! The work is done by `csrc/ptplus_graft.c`, the graft that other programs use as well; this module is its safe Rust
//! face. All `unsafe` that concerns llama.cpp is here.
//!
//! ```text
//!   Model --+-> Context (adapters in its graphs, switched by scale) -> logits
//!   Adapter-+       |-> engine::LlamaCpp    generation
//!                   '-> evaluate::LlamaCpp  verification
//! ```

mod context;
#[cfg(feature = "generate")]
pub mod engine;
#[cfg(feature = "runner")]
pub mod evaluate;
mod ffi;
pub mod inputs;
mod model;

pub use context::{CacheType, Context, ContextOptions, FlashAttention, Token};
pub use model::{Adapter, Model, decode_to_f32, show_log};

use crate::error::{Code, Error};

/// Refuses architectures that were not run against PyTorch.
///
/// # Errors
///
/// [`Code::BaseArchitecture`].
pub fn check_architecture(architecture: &str) -> crate::error::Result<()> {
    if model::supports(architecture) {
        return Ok(());
    }
    let message = format!(
        "expected an architecture that was tested with llama.cpp (docs/LLAMA_CPP.md lists them), found {architecture:?}"
    );
    Err(Error::new(Code::BaseArchitecture, message).field("general.architecture"))
}
