//! Names of a LoRA's tensors. The base's table has the names of the weights that they belong to.

use super::super::{Part, Slot};
use crate::base::{BlockWeight, Dialect, RowOrder, Weight};
use crate::tensor::LazyTensor;

/// The module that holds `weight` in transformers: `model.layers.0.self_attn.q_proj`.
pub fn module_name(weight: Weight) -> String {
    let name = weight.name(Dialect::HuggingFace);
    name.strip_suffix(".weight").unwrap_or(&name).to_owned()
}

/// The name in PEFT's files: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. An embedding's halves are those of the
/// matrix that a one-hot row is multiplied with, `[hidden, V]`: what is B here is A there, transposed.
pub(in super::super) fn canonical_name(slot: Slot) -> String {
    let weight = slot.weight().expect("a LoRA's slots are about weights");
    let module = format!("base_model.model.{}", module_name(weight));
    match (slot.part, weight) {
        (Part::A, Weight::TokenEmbedding) => format!("{module}.lora_embedding_B"),
        (Part::B, Weight::TokenEmbedding) => format!("{module}.lora_embedding_A"),
        (half @ (Part::A | Part::B), _) => format!("{module}.{half}.weight"),
        (Part::Magnitude, _) => format!("{module}.lora_magnitude_vector"),
        (Part::Bias, _) => format!("{module}.lora_B.bias"),
        (Part::Whole, _) => format!("base_model.model.{}", weight.name(Dialect::HuggingFace)),
        (Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer, _) => no_part_of_a_lora(slot),
        (Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens, _) => no_part_of_a_lora(slot),
    }
}

/// A half of an addition as PEFT's files have it, or back: see `canonical_name`.
pub fn turned_for_peft(weight: Weight, part: Part, t: LazyTensor) -> LazyTensor {
    match (weight, part, t.shape().len()) {
        (Weight::TokenEmbedding, Part::A | Part::B, 2) => t.transpose(0, 1),
        _ => t,
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

/// The name in llama.cpp's files: `blk.0.attn_q.weight.lora_a`. An embedding's halves have PEFT's names there, too; what they have no
/// place for has the weight's.
pub(in super::super) fn gguf_tensor_name(slot: Slot) -> String {
    let weight = slot.weight().expect("a LoRA's slots are about weights");
    let name = weight.name(Dialect::Gguf);
    match (slot.part, weight == Weight::TokenEmbedding) {
        (Part::A, false) | (Part::B, true) => format!("{name}.lora_a"),
        (Part::A, true) | (Part::B, false) => format!("{name}.lora_b"),
        (Part::Magnitude | Part::Bias | Part::Whole, _) => name,
        (Part::Memory | Part::FeatureWeight | Part::FeatureBias | Part::Normalizer, _) => no_part_of_a_lora(slot),
        (Part::PrefixKeys | Part::PrefixValues | Part::VirtualTokens, _) => no_part_of_a_lora(slot),
    }
}

/// A half of an addition as llama.cpp's files have it, or back: an embedding's `lora_a` lies so that rows can be looked up in it, its
/// `lora_b` `[hidden, r]`.
pub fn turned_for_gguf(weight: Weight, part: Part, t: LazyTensor) -> LazyTensor {
    match (weight, part, t.shape().len()) {
        (Weight::TokenEmbedding, Part::A, 2) => t.transpose(0, 1),
        _ => t,
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
        let names = |weight, part| {
            let slot = Slot::of_weight(weight, part);
            (slot.canonical_name(), slot.gguf_name())
        };
        let query = "base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight";
        let of_query = names(Weight::Block(3, BlockWeight::Query), Part::B);
        assert_eq!(of_query, (query.into(), "blk.3.attn_q.weight.lora_b".into()));
        let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
        assert_eq!(names(Weight::TokenEmbedding, Part::B), (embedding.into(), "token_embd.weight.lora_a".into()));
        assert_eq!(names(Weight::Output, Part::B).1, "output.weight.lora_b");
    }
}
