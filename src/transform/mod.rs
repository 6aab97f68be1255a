//! Changes of representation that keep what an adapter computes: row order, element type, low-rank additions merged into the
//! weights that they are added to.

pub mod cast;
pub mod loss;
pub mod low_rank;
pub mod pairs;
pub mod row_order;
