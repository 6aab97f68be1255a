//! Names of a LoRA's tensors. The base's table has the names of the weights that they belong to.

use crate::base::{Dialect, Weight};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockWeight;

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
