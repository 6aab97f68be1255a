//! Prefix-Tuning+ adapters: read, check, convert and prove them.
pub mod adapter;
pub mod error;
pub mod format;
pub mod quant;
pub mod tensor;
