//! The words that the rules know: of wrappers, trainers, quantizers, base models.

/// Words that wrappers and containers put into names, wherever they stand.
pub(super) const WRAPPERS: &[&str] = &[
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_model",
    "model",
    "state_dict",
    "model_state_dict",
    "adapter",
    "adapter_state_dict",
    "adapters",
];
/// What a training code's own modules put before a part's name: `attn_memory` is the `memory` of an attention module.
pub(super) const QUALIFIERS: &[&str] = &[
    "attn_",
    "attention_",
    "self_attn_",
    "self_attention_",
    "ptplus_",
    "pt_plus_",
    "prefix_tuning_",
    "prefix_tuning_plus_",
    "learned_",
    "trainable_",
];
/// PEFT's copy of a module that is trained, before the adapter's name; and the module as it was.
pub(super) const TRAINED_COPY: &str = "modules_to_save";
pub(super) const UNTRAINED: &str = "original_module";
/// What quantizers keep beside a weight of the base, as the last word: bitsandbytes, GPTQ and AWQ, compressed-tensors,
/// FP8.
pub(super) const QUANTIZED_PARTS: &[&str] = &[
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "bitsandbytes__nf4",
    "bitsandbytes__fp4",
    "SCB",
    "weight_format",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_shape",
    "weight_g_idx",
    "weight_zero_point",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "input_scale",
    "output_scale",
    "k_scale",
    "v_scale",
];
/// Words before a layer's number.
pub(super) const LAYER_WORDS: &[&str] = &["layers", "layer", "h", "blocks", "block", "blk", "decoder_layers"];
/// Words before a head's number.
pub(super) const HEAD_WORDS: &[&str] = &["heads", "head", "h"];
/// Containers of a training checkpoint that hold no weights, in the singular: `optimizers` and `optimizer_0` are known,
/// too.
pub(super) const TRAINER_STATE: &[&str] = &[
    "optimizer",
    "optimizer_state_dict",
    "optimizer_state",
    "optim",
    "optim_state_dict",
    "optim_state",
    "opt",
    "opt_state_dict",
    "opt_state",
    "lr_scheduler",
    "scheduler",
    "scheduler_state_dict",
    "lr_scheduler_state_dict",
    "scaler",
    "grad_scaler",
    "scaler_state_dict",
    "amp",
    "rng_state",
    "random_state",
    "cuda_rng_state",
    "callback",
];
/// What optimizers keep of a tensor.
pub(super) const MOMENTS: &[&str] =
    &["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"];
/// Modules of base models, by the last word before `weight` or `bias`.
pub(super) const BASE_MODULES: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "out_proj",
    "query_key_value",
    "c_attn",
    "c_proj",
    "c_fc",
    "wq",
    "wk",
    "wv",
    "wo",
    "w1",
    "w2",
    "w3",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "fc1",
    "fc2",
    "fc_in",
    "fc_out",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "lm_head",
    "embed_tokens",
    "embed_positions",
    "wte",
    "wpe",
    "embed_in",
    "embed_out",
    "tok_embeddings",
    "word_embeddings",
    "q_norm",
    "k_norm",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "attention_norm",
    "ffn_norm",
    "ln_1",
    "ln_2",
    "ln_f",
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "output",
];
/// Parts of words that no base model's weights have.
pub(super) const SUSPECT: &[&str] = &["prefix", "memor", "feature", "normali", "prompt", "lora", "adapter", "ptplus"];
