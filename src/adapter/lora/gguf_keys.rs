//! Keys of a LoRA in GGUF, beside those of every adapter.

/// llama.cpp's: one alpha, F32; the factor of a module is alpha / r, r the columns of its B.
pub const ALPHA: &str = "adapter.lora.alpha";
/// Ours: rows of a head in the query and key projections, by which B's rows are ordered; u32.
pub const HEAD_DIM: &str = "ptplus.lora.head_dim";
/// Ours: what B of some modules was multiplied with, as JSON: weights' names and numbers.
pub const FOLDED: &str = "ptplus.lora.folded";
/// Ours: what B of key projections was multiplied with as the base's keys are, f32; see [`Lora::key_factor`](super::Lora::key_factor).
pub const KEY_FACTOR: &str = "ptplus.lora.key_factor";

/// Key of `adapter_config.json`, written by us: [`HEAD_DIM`] of the base that the adapter was converted for.
pub const CONFIG_HEAD_DIM: &str = "ptplus_head_dim";
