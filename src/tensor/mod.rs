//! Element types, shapes and lazy tensor bytes. Knows no file format and no model.

pub mod lazy;
pub mod shape;

pub use crate::quant::{DType, coarsest};
pub use lazy::{Bytes, LazyTensor};
