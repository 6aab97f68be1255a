//! Where a tensor of an adapter belongs: the key by which import, export and comparison know it.

use super::{lora, plus, prefix};
use crate::base::{BlockWeight, Weight};
use crate::named::named_enum;

/// Where a tensor of an adapter belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The block of the base; none for what stands outside of the blocks.
    pub layer: Option<usize>,
    /// What of the base it changes.
    pub site: Site,
    /// Which of the tensors there it is.
    pub part: Part,
}

/// What of a base an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The output of the attention heads.
    Attention,
    /// A weight of a block.
    Linear(BlockWeight),
    /// The token embedding.
    Embedding,
    /// The output head.
    Head,
    /// The norm before the output head.
    OutputNorm,
    /// The sequence that goes into the first block.
    Input,
}

named_enum! {
    /// One of the tensors that an adapter has in one place. The names are those of messages, layout files and the canonical
    /// layout.
    Part {
        /// M of Prefix-Tuning+.
        Memory = "memory",
        /// W of Prefix-Tuning+.
        FeatureWeight = "feature.weight",
        /// b of Prefix-Tuning+.
        FeatureBias = "feature.bias",
        /// N of Prefix-Tuning+.
        Normalizer = "normalizer",
        /// A of LoRA.
        A = "lora_A",
        /// B of LoRA.
        B = "lora_B",
        /// The magnitudes of DoRA.
        Magnitude = "lora_magnitude_vector",
        /// `lora_bias`
        Bias = "lora_bias",
        /// A weight that stands in the place of the base's.
        Whole = "weight",
        /// Keys of virtual tokens.
        PrefixKeys = "prefix_keys",
        /// Values of virtual tokens.
        PrefixValues = "prefix_values",
        /// Embeddings of virtual tokens.
        VirtualTokens = "virtual_tokens",
    }
}

impl Part {
    /// Whether a file is called after its type.
    pub fn is_main(self) -> bool {
        match self {
            Part::Memory | Part::A | Part::B => true,
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => true,
            Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => false,
            Part::Magnitude | Part::Bias | Part::Whole => false,
        }
    }

    /// Whether it is F32 in every GGUF file, and never narrowed elsewhere.
    pub fn stays_f32(self) -> bool {
        match self {
            Part::FeatureBias | Part::Normalizer => true,
            Part::Memory | Part::FeatureWeight => false,
            Part::A | Part::B | Part::Magnitude | Part::Bias | Part::Whole => false,
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => false,
        }
    }
}

impl Slot {
    /// A part beside the attention of block `layer`.
    pub fn attention(layer: usize, part: Part) -> Slot {
        Slot { layer: Some(layer), site: Site::Attention, part }
    }

    /// The embeddings of virtual tokens.
    pub fn virtual_tokens() -> Slot {
        Slot { layer: None, site: Site::Input, part: Part::VirtualTokens }
    }

    /// A part of what is added to a weight of the base.
    pub fn of_weight(weight: Weight, part: Part) -> Slot {
        let (layer, site) = match weight {
            Weight::Block(layer, weight) => (Some(layer), Site::Linear(weight)),
            Weight::TokenEmbedding => (None, Site::Embedding),
            Weight::Output => (None, Site::Head),
            Weight::OutputNorm => (None, Site::OutputNorm),
            Weight::Rope(_) => unreachable!("RoPE's divisors are no weights that an adapter changes"),
        };
        Slot { layer, site, part }
    }

    /// The weight of the base that the slot is about; none beside attention.
    pub fn weight(self) -> Option<Weight> {
        match (self.site, self.layer) {
            (Site::Linear(weight), Some(layer)) => Some(Weight::Block(layer, weight)),
            (Site::Embedding, None) => Some(Weight::TokenEmbedding),
            (Site::Head, None) => Some(Weight::Output),
            (Site::OutputNorm, None) => Some(Weight::OutputNorm),
            (Site::Attention | Site::Linear(_) | Site::Embedding | Site::Head | Site::OutputNorm | Site::Input, _) => {
                None
            }
        }
    }

    /// The tensor's name in the safetensors files that are written.
    pub fn canonical_name(self) -> String {
        match self.part {
            Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => plus::canonical_name(self),
            Part::A | Part::B | Part::Magnitude | Part::Bias | Part::Whole => lora::canonical_name(self),
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => prefix::canonical_name(self),
        }
    }

    /// The slot whose [`canonical_name`](Self::canonical_name) this is.
    pub fn parse_canonical_name(name: &str) -> Option<Slot> {
        let others = || lora::parse_canonical_name(name).or_else(|| prefix::parse_canonical_name(name));
        plus::parse_canonical_name(name).or_else(others)
    }

    /// The tensor's name in GGUF.
    pub fn gguf_name(self) -> String {
        match self.part {
            Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => {
                plus::gguf_names::tensor_name(self)
            }
            Part::A | Part::B | Part::Magnitude | Part::Bias | Part::Whole => lora::gguf_tensor_name(self),
            Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => prefix::gguf_name(self),
        }
    }

    /// The block, of a slot that is in one.
    pub(super) fn in_block(self) -> usize {
        self.layer.expect("a term is beside the attention of a block")
    }
}
