//! Row order: in which order a runtime keeps the components of a query inside one head.
//!
//! For architectures whose RoPE rotates neighbouring pairs (NORM), the Hugging Face-to-GGUF conversion reorders the
//! rows of `q_proj` and `k_proj` inside each head: GGUF row `2j+t` is Hugging Face row `t*D/2 + j`. Whatever
//! multiplies q must follow. Source: llama.cpp `convert_hf_to_gguf.py` (`LlamaModel.permute`), measured on
//! SmolLM2-135M: with the right order the logits agree to 1.5e-4, with the wrong one the KL divergence is 4.5.

use crate::named::named_enum;

named_enum! {
    /// The order of q's components inside a head.
    RowOrder {
        /// Interleaved pairs, as llama.cpp keeps q for RoPE type NORM.
        Norm = "norm",
        /// Two halves, as Hugging Face keeps q; llama.cpp does not reorder RoPE type NEOX.
        Neox = "neox",
    }
}

/// GGUF architectures whose row order is known, one by one: the RoPE type alone does not decide it (cohere and glm4
/// are NORM natively, so nothing is reordered).
const GGUF_ARCHITECTURES: &[(&str, RowOrder)] = &[
    ("llama", RowOrder::Norm),
    ("qwen2", RowOrder::Neox),
    ("qwen3", RowOrder::Neox),
    ("gemma", RowOrder::Neox),
    ("gemma2", RowOrder::Neox),
    ("gemma3", RowOrder::Neox),
    ("phi3", RowOrder::Neox),
];

impl RowOrder {
    /// The order that GGUF files of this architecture keep q in; `None` for an architecture that is not listed,
    /// which callers refuse.
    pub fn of_gguf_architecture(architecture: &str) -> Option<RowOrder> {
        GGUF_ARCHITECTURES.iter().find(|(a, _)| *a == architecture).map(|(_, order)| *order)
    }

    /// The listed architectures, for messages.
    pub fn known_architectures() -> impl Iterator<Item = &'static str> {
        GGUF_ARCHITECTURES.iter().map(|(a, _)| *a)
    }
}
