//! The sizes of an adapter.

use super::MemorySharing;
use super::partial::with_partial;
use crate::base::BaseModel;

with_partial! {
    /// The sizes that an adapter and its base must agree on.
    #[derive(Eq)]
    Geometry,
    /// The sizes that are known.
    KnownGeometry {
        /// L: blocks of the base, adapted or not.
        n_layers: usize,
        /// H: query heads.
        n_heads: usize,
        /// H_kv: key/value heads; divides H.
        n_kv_heads: usize,
        /// D: length of a query head.
        head_dim: usize,
        /// D_v: length of a value head.
        value_head_dim: usize,
        /// F: features; D unless there is a learned feature map.
        n_features: usize,
    }
}

impl Geometry {
    /// H': the number of memories per layer.
    pub fn n_memories(&self, sharing: MemorySharing) -> usize {
        sharing.n_memories(self.n_heads, self.n_kv_heads)
    }
}

impl KnownGeometry {
    /// With what `base` says of the sizes that are not known. How many features there are, none says.
    pub fn or_base(self, base: Option<&BaseModel>) -> KnownGeometry {
        let Some(BaseModel { config: c, .. }) = base else { return self };
        let n_features = self.n_features;
        let (n_layers, n_heads, n_kv_heads) = (c.n_layers, c.n_heads, c.n_kv_heads);
        let (head_dim, value_head_dim) = (c.head_dim, c.value_head_dim);
        let of_base = Geometry { n_layers, n_heads, n_kv_heads, head_dim, value_head_dim, n_features: 0 };
        KnownGeometry { n_features, ..self.or(of_base) }
    }

    /// How many heads there are, and key/value heads, which divide them.
    pub fn heads(&self) -> Option<(usize, usize)> {
        let (n, n_kv) = (self.n_heads?, self.n_kv_heads?);
        (n_kv > 0 && n.is_multiple_of(n_kv)).then_some((n, n_kv))
    }
}
