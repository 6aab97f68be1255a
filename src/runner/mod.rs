//! Runs base models with adapters, on candle.
//!
//! Everything is computed in F32 on the decoded weights. On the CPU weights stay encoded in the memory map and are
//! decoded while they are used; on a GPU they are decoded once and kept there. [`Device::cpu_int8`] multiplies codes of block
//! formats with activations in 8 bits instead; what adapters add is computed in F32 there, too.
//!
//! ```text
//!   BaseModel          -> block::Block (one per layer) -+-> stream()  one layer at a time, no cache: for `verify`
//!   Adapter -> Effects -> BlockEffects (one per layer) -+-> Model     all layers, key/value cache: for generation
//!                      -> VirtualCache (in front)      -+
//! ```

use crate::error::{Code, Error};

mod additions;
mod attention;
mod block;
mod device;
mod effects;
mod experts;
mod front;
mod kernels;
mod linear;
mod model;
pub mod phi;
mod rope;
mod state;
mod stream;

pub use device::{Device, DeviceChoice};
pub use effects::{AttentionTerm, Effects, Front, MatrixEffect};
pub use front::VirtualCache;
pub use model::{Cache, Logits, Model};
pub use rope::before_rope;
pub use state::{TOKEN, heeded_window, sequence_state, state_notes};
pub use stream::{Lane, Sink, StreamOptions, stream};

/// A failure inside the tensor library: memory, the GPU, or a bug here.
fn candle(e: candle_core::Error) -> Error {
    Error::new(Code::Runner, e.to_string())
}
