//! Element types, shapes and lazy tensor bytes. Knows no file format and no model.

pub mod dtype;
pub mod lazy;
pub mod shape;

pub use dtype::DType;
pub use lazy::{Bytes, LazyTensor};
