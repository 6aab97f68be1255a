//! PyTorch checkpoints: what is right is read as PyTorch reads it, what is wrong is refused, nothing is executed.

mod archives;
pub mod assembler;
mod bombs;
mod bytes;
mod legacy;
mod objects;
mod programs;
mod tensors;
mod torch;
