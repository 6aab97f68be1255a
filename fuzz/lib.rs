//! The entry points and what they need, shared by the targets.

#[path = "../tests/hostile/pickle/assembler.rs"]
#[allow(dead_code)]
mod assembler;
pub mod entry;
