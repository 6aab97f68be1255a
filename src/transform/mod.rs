//! Changes of representation that keep what an adapter computes: row order and element type.

pub mod cast;
pub mod loss;
pub mod row_order;
