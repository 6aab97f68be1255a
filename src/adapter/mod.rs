//! The adapter as plain values: what Prefix-Tuning+ is, whatever file it came from.
//!
//! In memory everything is in *Hugging Face component order*; row order is applied when an adapter is written to
//! GGUF and undone when it is read (see [`crate::transform::row_order`]), and nowhere else.
//!
//! Other adapter kinds (a learned K/V prefix, LoRA) come in as further variants beside [`Adapter`].

use std::collections::BTreeMap;

use crate::tensor::LazyTensor;

mod feature_map;
pub mod gguf_names;
pub mod lora;
mod row_order;
pub use feature_map::FeatureMap;
pub use row_order::RowOrder;

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// The name in both file formats.
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text,)* } }
            /// The value with this name.
            pub fn parse(text: &str) -> Option<Self> { Self::ALL.iter().copied().find(|v| v.name() == text) }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }
    };
}
pub(crate) use named_enum;

named_enum! {
    /// Where the query is taken from.
    QueryTap {
        /// The query exactly as attention uses it: after bias, query norm and RoPE.
        PostRope = "post_rope",
        /// After the query's bias and norm, before RoPE.
        PreRope = "pre_rope",
    }
}

named_enum! {
    /// How many memories a layer has: H'.
    MemorySharing {
        /// One per query head.
        PerHead = "per_head",
        /// One per key/value head; memory `j` serves query heads `j*g .. j*g+g-1`, `g = heads / kv_heads`.
        PerKvHead = "per_kv_head",
        /// One for all heads.
        Shared = "shared",
    }
}

/// The sizes that an adapter and its base must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// L: blocks of the base, adapted or not.
    pub n_layers: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: key/value heads; divides H.
    pub n_kv_heads: usize,
    /// D: length of a query head.
    pub head_dim: usize,
    /// D_v: length of a value head.
    pub value_head_dim: usize,
    /// F: features; D unless there is a learned feature map.
    pub n_features: usize,
}

impl Geometry {
    /// H': the number of memories per layer.
    pub fn n_memories(&self, sharing: MemorySharing) -> usize {
        sharing.n_memories(self.n_heads, self.n_kv_heads)
    }
}

impl MemorySharing {
    /// H' for these numbers of query heads and key/value heads.
    pub fn n_memories(self, n_heads: usize, n_kv_heads: usize) -> usize {
        match self {
            MemorySharing::PerHead => n_heads,
            MemorySharing::PerKvHead => n_kv_heads,
            MemorySharing::Shared => 1,
        }
    }
}

/// What an adapter states about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// phi's activation.
    pub feature_map: FeatureMap,
    /// Where the query is taken from.
    pub query_tap: QueryTap,
    /// Factor on the query, before phi.
    pub query_scale: f64,
    /// Factor on the term.
    pub memory_scale: f64,
    /// How many memories a layer has.
    pub memory_sharing: MemorySharing,
    /// Sizes.
    pub geometry: Geometry,
    /// `layers_to_transform` as the source states it, if it does; [`Adapter::layers`] is what counts.
    pub layers_to_transform: Option<StatedLayers>,
    /// The base's `model_type`, where stated.
    pub base_model_type: Option<String>,
    /// Every other key of `adapter_config.json`, in its order; carried along, never interpreted.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// What a configuration says about the adapted layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatedLayers {
    /// `null`: every layer of the base.
    All,
    /// These, in the order given.
    List(Vec<usize>),
}

/// The tensors of one adapted layer, in Hugging Face component order.
#[derive(Debug, Clone)]
pub struct AdapterLayer {
    /// M `[H', F, D_v]`
    pub memory: LazyTensor,
    /// W `[H', F, D]`
    pub feature_weight: Option<LazyTensor>,
    /// b `[H', F]`
    pub feature_bias: Option<LazyTensor>,
    /// N `[H', F]`
    pub normalizer: Option<LazyTensor>,
}

named_enum! {
    /// The part that a tensor plays in a layer.
    Role {
        /// M
        Memory = "memory",
        /// W
        FeatureWeight = "feature.weight",
        /// b
        FeatureBias = "feature.bias",
        /// N
        Normalizer = "normalizer",
    }
}

impl AdapterLayer {
    /// The tensor that plays `role`, if the layer has it.
    pub fn get(&self, role: Role) -> Option<&LazyTensor> {
        match role {
            Role::Memory => Some(&self.memory),
            Role::FeatureWeight => self.feature_weight.as_ref(),
            Role::FeatureBias => self.feature_bias.as_ref(),
            Role::Normalizer => self.normalizer.as_ref(),
        }
    }

    /// The tensors that the layer has, in the order of [`Role::ALL`].
    pub fn tensors(&self) -> impl Iterator<Item = (Role, &LazyTensor)> {
        Role::ALL.iter().filter_map(|&r| Some((r, self.get(r)?)))
    }

    /// A mutable slot for `role`; `None` for a part that the layer lacks.
    pub fn get_mut(&mut self, role: Role) -> Option<&mut LazyTensor> {
        match role {
            Role::Memory => Some(&mut self.memory),
            Role::FeatureWeight => self.feature_weight.as_mut(),
            Role::FeatureBias => self.feature_bias.as_mut(),
            Role::Normalizer => self.normalizer.as_mut(),
        }
    }
}

/// An imported adapter: configuration and tensors, not yet checked against each other or against a base.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// What it states.
    pub config: AdapterConfig,
    /// The adapted layers.
    pub layers: BTreeMap<usize, AdapterLayer>,
}

impl Adapter {
    /// Name of a tensor in the canonical layout: `layers.{i}.memory`, `layers.{i}.feature.weight`, ...
    pub fn canonical_name(layer: usize, role: Role) -> String {
        format!("layers.{layer}.{role}")
    }

    /// Layer and role of a [`canonical_name`](Self::canonical_name), if it is one.
    pub fn parse_canonical_name(name: &str) -> Option<(usize, Role)> {
        let (number, role) = name.strip_prefix("layers.")?.split_once('.')?;
        let (layer, role) = (number.parse::<usize>().ok()?, Role::parse(role)?);
        (layer.to_string() == number).then_some((layer, role))
    }

    /// Whether `name` is a [`canonical_name`](Self::canonical_name).
    pub fn is_canonical_name(name: &str) -> bool {
        Self::parse_canonical_name(name).is_some()
    }

    /// Every tensor with its layer and role, layers ascending.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, Role, &LazyTensor)> {
        self.layers.iter().flat_map(|(&i, l)| l.tensors().map(move |(r, t)| (i, r, t)))
    }

    /// The shape that `role` must have, outermost first.
    pub fn expected_shape(&self, role: Role) -> Vec<usize> {
        let g = &self.config.geometry;
        let h = g.n_memories(self.config.memory_sharing);
        match role {
            Role::Memory => vec![h, g.n_features, g.value_head_dim],
            Role::FeatureWeight => vec![h, g.n_features, g.head_dim],
            Role::FeatureBias | Role::Normalizer => vec![h, g.n_features],
        }
    }
}
