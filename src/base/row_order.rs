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
