//! Adapters inside the real llama.cpp.

#[path = "../common/mod.rs"]
mod common;

mod agreement;
mod contexts;
mod engine;
mod lora;
mod prefix;
mod programs;
mod refusals;
mod variants;
