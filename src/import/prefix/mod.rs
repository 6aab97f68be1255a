//! Virtual tokens as PEFT saves them, and as ptplus writes them to GGUF.

mod config;
mod gguf;
mod peft;

pub(super) use gguf::import as import_gguf;
pub(super) use peft::{is_prefix, read};
