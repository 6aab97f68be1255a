//! The parts of a Prefix-Tuning+ adapter, as a table.

use super::Config;
use crate::adapter::Part;
use crate::tensor::LazyTensor;

/// An axis of a part, in canonical order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    /// L; only of a tensor that stacks layers.
    Layer,
    /// H'
    Head,
    /// F
    Feature,
    /// D_v
    Value,
    /// D
    Query,
}

impl Axis {
    /// Each with its letter in layout files and its symbol.
    pub const ALL: [(Axis, char, &'static str); 5] = [
        (Axis::Layer, 'L', "L"),
        (Axis::Head, 'H', "H'"),
        (Axis::Feature, 'F', "F"),
        (Axis::Value, 'V', "D_v"),
        (Axis::Query, 'D', "D"),
    ];

    fn named(self) -> (char, &'static str) {
        let (_, letter, symbol) = Self::ALL.iter().find(|(axis, ..)| *axis == self).expect("every axis has a name");
        (*letter, symbol)
    }

    /// Its letter in layout files.
    pub fn letter(self) -> char {
        self.named().0
    }

    /// Its symbol in messages.
    pub fn symbol(self) -> &'static str {
        self.named().1
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct PartSpec {
    /// The part. Its name is the suffix in the canonical layout.
    pub part: Part,
    /// The suffix in GGUF.
    pub gguf: &'static str,
    /// Canonical axes, with the layers that a stack of them has in front.
    pub stacked_axes: &'static [Axis],
    /// Whether GGUF has the last two axes exchanged, so that a matrix product contracts over F.
    pub is_transposed_in_gguf: bool,
}

/// Every part, in the order of a layer's tensors.
pub const PARTS: [PartSpec; 4] = [
    PartSpec {
        part: Part::Memory,
        gguf: "attn_prefix_memory.weight",
        stacked_axes: &[Axis::Layer, Axis::Head, Axis::Feature, Axis::Value],
        is_transposed_in_gguf: true,
    },
    PartSpec {
        part: Part::FeatureWeight,
        gguf: "attn_prefix_feature.weight",
        stacked_axes: &[Axis::Layer, Axis::Head, Axis::Feature, Axis::Query],
        is_transposed_in_gguf: false,
    },
    vector(Part::FeatureBias, "attn_prefix_feature.bias"),
    vector(Part::Normalizer, "attn_prefix_normalizer.weight"),
];

const fn vector(part: Part, gguf: &'static str) -> PartSpec {
    let stacked_axes = &[Axis::Layer, Axis::Head, Axis::Feature];
    PartSpec { part, gguf, stacked_axes, is_transposed_in_gguf: false }
}

impl PartSpec {
    /// The row of a part of this kind.
    ///
    /// # Panics
    ///
    /// For a part of another kind of adapter.
    pub fn of(part: Part) -> &'static PartSpec {
        PARTS.iter().find(|spec| spec.part == part).expect("a part of Prefix-Tuning+")
    }

    /// Canonical axes of one layer's tensor.
    pub fn axes(&self) -> &'static [Axis] {
        &self.stacked_axes[1..]
    }

    /// Whether it is a matrix for each head.
    pub fn is_matrix(&self) -> bool {
        self.axes().len() == 3
    }

    /// The axes by their symbols: `[H', F, D_v]`.
    pub fn symbols(&self) -> String {
        format!("[{}]", self.axes().iter().map(|axis| axis.symbol()).collect::<Vec<_>>().join(", "))
    }

    /// The shape that an adapter of this configuration must have, outermost first.
    pub fn shape(&self, config: &Config) -> Vec<usize> {
        self.axes().iter().map(|axis| config.len_of(*axis)).collect()
    }

    /// The axis that holds q's components, if any. Without a learned feature map phi is elementwise, so F *is* the component
    /// axis of q; with one, W mixes the components away.
    pub fn component_axis(&self, has_feature_map: bool) -> Option<usize> {
        let components = if has_feature_map { Axis::Query } else { Axis::Feature };
        self.axes().iter().position(|axis| *axis == components)
    }

    /// Canonical axes to those of GGUF, and back.
    pub fn in_gguf(&self, t: LazyTensor) -> LazyTensor {
        if self.is_transposed_in_gguf { t.transpose(1, 2) } else { t }
    }
}
