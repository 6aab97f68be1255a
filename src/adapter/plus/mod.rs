//! Prefix-Tuning+ as plain values: a term `memory_scale * phi(query_scale * q) M` beside the attention of some blocks.

use std::collections::BTreeMap;

use super::field::{Field, FieldValue, Get, SettledBy};
use super::{Part, Slot};
use crate::base::BaseConfig;
use crate::named::named_enum;
use crate::tensor::LazyTensor;

mod conventions;
mod feature_map;
mod fields;
mod geometry;
pub mod gguf_names;
mod partial;
mod parts;
pub use conventions::{Conventions, StatedConventions};
pub use feature_map::FeatureMap;
pub use fields::{FIELDS, VALUE_LENGTH, find as find_field};
pub use geometry::{Geometry, KnownGeometry};
pub use parts::{Axis, PARTS, PartSpec};

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
pub struct Config {
    /// How its numbers are to be read.
    pub conventions: Conventions,
    /// Sizes.
    pub geometry: Geometry,
    /// `layers_to_transform` as the source states it, if it does; [`Plus::layers`] is what counts.
    pub layers_to_transform: Option<StatedLayers>,
    /// The base's `model_type`, where stated.
    pub base_model_type: Option<String>,
    /// Every other key of `adapter_config.json`, in its order; carried along, never interpreted.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Config {
    /// The sizes in which this adapter and a base of `config` differ: of each the field, the base's size and the adapter's.
    pub fn other_sizes<'a>(
        &'a self,
        config: &'a BaseConfig,
    ) -> impl Iterator<Item = (&'static Field<Config>, usize, usize)> + 'a {
        let sizes = FIELDS.iter().filter_map(|field| match (&field.settled_by, &field.get) {
            (SettledBy::Base(of_base), Get::Count(get)) => Some((field, of_base(config), get(self))),
            _ => None,
        });
        sizes.filter(|(_, base_has, has)| base_has != has)
    }

    /// The length of an axis of a layer's tensors.
    fn len_of(&self, axis: Axis) -> usize {
        let g = &self.geometry;
        match axis {
            Axis::Layer => 1,
            Axis::Head => g.n_memories(self.conventions.memory_sharing),
            Axis::Feature => g.n_features,
            Axis::Value => g.value_head_dim,
            Axis::Query => g.head_dim,
        }
    }
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
pub struct Layer {
    /// M `[H', F, D_v]`
    pub memory: LazyTensor,
    /// W `[H', F, D]`
    pub feature_weight: Option<LazyTensor>,
    /// b `[H', F]`
    pub feature_bias: Option<LazyTensor>,
    /// N `[H', F]`
    pub normalizer: Option<LazyTensor>,
}

impl Layer {
    /// The tensor that plays `part`, if the layer has it.
    pub fn get(&self, part: Part) -> Option<&LazyTensor> {
        match part {
            Part::Memory => Some(&self.memory),
            Part::FeatureWeight => self.feature_weight.as_ref(),
            Part::FeatureBias => self.feature_bias.as_ref(),
            Part::Normalizer => self.normalizer.as_ref(),
            Part::A | Part::B | Part::Magnitude | Part::Bias | Part::Whole => None,
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => None,
        }
    }

    /// The tensors that the layer has, in the order of [`PARTS`].
    pub fn tensors(&self) -> impl Iterator<Item = (Part, &LazyTensor)> {
        PARTS.iter().filter_map(|spec| Some((spec.part, self.get(spec.part)?)))
    }

    /// The tensor that plays `part`, to be replaced; `None` for a part that the layer lacks.
    pub fn get_mut(&mut self, part: Part) -> Option<&mut LazyTensor> {
        match part {
            Part::Memory => Some(&mut self.memory),
            Part::FeatureWeight => self.feature_weight.as_mut(),
            Part::FeatureBias => self.feature_bias.as_mut(),
            Part::Normalizer => self.normalizer.as_mut(),
            Part::A | Part::B | Part::Magnitude | Part::Bias | Part::Whole => None,
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => None,
        }
    }
}

/// A Prefix-Tuning+ adapter, not yet checked.
#[derive(Debug, Clone)]
pub struct Plus {
    /// What it states.
    pub config: Config,
    /// The adapted layers.
    pub layers: BTreeMap<usize, Layer>,
}

/// Name of a tensor in the canonical layout: `layers.{i}.memory`, `layers.{i}.feature.weight`, ...
pub(super) fn canonical_name(slot: Slot) -> String {
    format!("layers.{}.{}", slot.in_block(), slot.part)
}

/// The slot whose [`canonical_name`] this is.
pub(super) fn parse_canonical_name(name: &str) -> Option<Slot> {
    let (number, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let (layer, part) = (number.parse::<usize>().ok()?, Part::parse(part)?);
    (PARTS.iter().any(|spec| spec.part == part) && layer.to_string() == number).then_some(Slot::attention(layer, part))
}

impl Plus {
    /// Every tensor with its slot, layers ascending.
    pub fn tensors(&self) -> impl Iterator<Item = (Slot, &LazyTensor)> {
        self.layers.iter().flat_map(|(&i, l)| l.tensors().map(move |(part, t)| (Slot::attention(i, part), t)))
    }

    /// The tensor in `slot`, if the adapter has it.
    pub fn get(&self, slot: Slot) -> Option<&LazyTensor> {
        self.layers.get(&slot.layer?)?.get(slot.part)
    }

    /// [`get`](Self::get), to be replaced.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut LazyTensor> {
        self.layers.get_mut(&slot.layer?)?.get_mut(slot.part)
    }

    /// The shape that `part` must have, outermost first.
    pub fn expected_shape(&self, part: Part) -> Vec<usize> {
        PartSpec::of(part).shape(&self.config)
    }

    /// Every field with its value, in the order of [`FIELDS`].
    pub fn fields(&self) -> impl Iterator<Item = (&'static Field<Config>, FieldValue)> {
        FIELDS.iter().map(|field| (field, field.of(&self.config)))
    }
}
