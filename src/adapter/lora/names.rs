//! Names of a LoRA's tensors. The base's table has the names of the weights that they belong to.

use super::super::{Part, Slot};
use crate::base::{BlockWeight, Dialect, RowOrder, Weight};
use crate::named::named_enum;

named_enum! {
    /// One of the two factors of an addition.
    Half {
        /// `[r, columns]`
        A = "lora_A",
        /// `[rows, r]`
        B = "lora_B",
    }
}

/// The module that holds `weight` in transformers: `model.layers.0.self_attn.q_proj`.
pub fn module_name(weight: Weight) -> String {
    let name = weight.name(Dialect::HuggingFace);
    name.strip_suffix(".weight").unwrap_or(&name).to_owned()
}

/// The tensor's name in PEFT's files: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. An embedding's halves
/// are those of the matrix that a one-hot row is multiplied with, `[hidden, V]`: what is B here is A there, transposed.
pub fn peft_name(weight: Weight, half: Half) -> String {
    let module = module_name(weight);
    match (weight, half) {
        (Weight::TokenEmbedding, Half::A) => format!("base_model.model.{module}.lora_embedding_B"),
        (Weight::TokenEmbedding, Half::B) => format!("base_model.model.{module}.lora_embedding_A"),
        _ => format!("base_model.model.{module}.{half}.weight"),
    }
}

/// The tensor's name in llama.cpp's files: `blk.0.attn_q.weight.lora_a`. An embedding's halves have PEFT's names there, too; its
/// `lora_a` is transposed, so that rows can be looked up in it.
pub fn gguf_name(weight: Weight, half: Half) -> String {
    let suffix = match (weight, half) {
        (Weight::TokenEmbedding, Half::A) => "lora_b",
        (Weight::TokenEmbedding, Half::B) => "lora_a",
        (_, Half::A) => "lora_a",
        (_, Half::B) => "lora_b",
    };
    format!("{}.{suffix}", weight.name(Dialect::Gguf))
}

/// The name in PEFT's files of whatever is in a slot of a weight.
pub(in super::super) fn canonical_name(slot: Slot) -> String {
    let weight = slot.weight().expect("a LoRA's slots are about weights");
    let module = || format!("base_model.model.{}", module_name(weight));
    match slot.part {
        Part::B => peft_name(weight, Half::B),
        Part::Magnitude => format!("{}.lora_magnitude_vector", module()),
        Part::Bias => format!("{}.lora_B.bias", module()),
        Part::Whole => format!("base_model.model.{}", weight.name(Dialect::HuggingFace)),
        Part::A => peft_name(weight, Half::A),
        Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => no_part_of_a_lora(slot),
        Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => no_part_of_a_lora(slot),
    }
}

/// The slot whose [`canonical_name`] this is.
pub(in super::super) fn parse_canonical_name(name: &str) -> Option<Slot> {
    let own = name.strip_prefix("base_model.model.")?;
    let (module, part) = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".lora_embedding_B", Part::A),
        (".lora_embedding_A", Part::B),
        (".lora_magnitude_vector", Part::Magnitude),
        (".lora_B.bias", Part::Bias),
    ]
    .into_iter()
    .find_map(|(suffix, part)| Some((format!("{}.weight", own.strip_suffix(suffix)?), part)))
    .unwrap_or_else(|| (own.to_owned(), Part::Whole));
    let weight = Weight::parse(&module, Dialect::HuggingFace).filter(|w| !matches!(w, Weight::Rope(_)))?;
    let slot = Slot::of_weight(weight, part);
    (slot.canonical_name() == name).then_some(slot)
}

/// The name in llama.cpp's files; what they have no place for has the weight's.
pub(in super::super) fn gguf_tensor_name(slot: Slot) -> String {
    let weight = slot.weight().expect("a LoRA's slots are about weights");
    match slot.part {
        Part::A => gguf_name(weight, Half::A),
        Part::B => gguf_name(weight, Half::B),
        Part::Magnitude | Part::Bias | Part::Whole => weight.name(Dialect::Gguf),
        Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer => no_part_of_a_lora(slot),
        Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens => no_part_of_a_lora(slot),
    }
}

/// Our own bug: a name that is made up for it would pass for another tensor's.
fn no_part_of_a_lora(slot: Slot) -> ! {
    unreachable!("{slot:?} is no part of a LoRA")
}

/// Whether the rows of this half are in the architecture's order.
pub fn is_reordered(weight: Weight, part: Part, order: RowOrder) -> bool {
    order == RowOrder::Norm
        && part == Part::B
        && matches!(weight, Weight::Block(_, BlockWeight::Query | BlockWeight::Key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_names_are_read_as_they_are_written() {
        let parts = [Part::A, Part::B, Part::Magnitude, Part::Bias];
        let linear = Weight::all(2).filter(|w| w.is_linear()).flat_map(|w| parts.map(|part| Slot::of_weight(w, part)));
        let whole = Weight::all(2).filter(|w| !matches!(w, Weight::Rope(_))).map(|w| Slot::of_weight(w, Part::Whole));
        for slot in linear.chain(whole) {
            assert_eq!(parse_canonical_name(&slot.canonical_name()), Some(slot), "{}", slot.canonical_name());
        }
    }

    #[test]
    fn every_file_has_its_own_names() {
        let query = Weight::Block(3, BlockWeight::Query);
        assert_eq!(peft_name(query, Half::B), "base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight");
        assert_eq!(gguf_name(query, Half::A), "blk.3.attn_q.weight.lora_a");
        assert_eq!(peft_name(Weight::TokenEmbedding, Half::B), "base_model.model.model.embed_tokens.lora_embedding_A");
        assert_eq!(gguf_name(Weight::Output, Half::B), "output.weight.lora_b");
        assert_eq!(gguf_name(Weight::TokenEmbedding, Half::B), "token_embd.weight.lora_a");
    }
}
