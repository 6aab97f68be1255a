//! The table of weights: what a tensor is called in each dialect and what shape it has.

use std::borrow::Cow;

/// The dialect of the files that hold a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A folder with `config.json` and safetensors.
    HuggingFace,
    /// One GGUF file, possibly split.
    Gguf,
}

/// A weight of a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weight {
    /// `[V, hidden]`
    TokenEmbedding,
    /// `[hidden]`: RMS norm before the output head.
    OutputNorm,
    /// `[V, hidden]`: the output head; absent when tied to the token embedding.
    Output,
    /// `[D/2]`: divisors of RoPE's frequencies; GGUF only.
    Rope(RopeFactors),
    /// A weight of the block with this index.
    Block(usize, BlockWeight),
}

/// For which sequences divisors of RoPE's frequencies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RopeFactors {
    /// For all.
    All,
    /// For those longer than the original context.
    Long,
    /// For those up to the original context.
    Short,
}

impl RopeFactors {
    /// Every kind.
    pub const ALL: [RopeFactors; 3] = [RopeFactors::All, RopeFactors::Long, RopeFactors::Short];

    /// Not a tensor of a folder: there the configuration says it.
    fn gguf_name(self) -> &'static str {
        match self {
            RopeFactors::All => "rope_freqs.weight",
            RopeFactors::Long => "rope_factors_long.weight",
            RopeFactors::Short => "rope_factors_short.weight",
        }
    }
}

/// A matrix of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpertMatrix {
    /// `[intermediate of an expert, hidden]`
    Gate,
    /// `[intermediate of an expert, hidden]`
    Up,
    /// `[hidden, intermediate of an expert]`
    Down,
}

impl ExpertMatrix {
    /// All three.
    pub const ALL: [ExpertMatrix; 3] = [ExpertMatrix::Gate, ExpertMatrix::Up, ExpertMatrix::Down];

    pub(super) fn name(self) -> &'static str {
        match self {
            ExpertMatrix::Gate => "gate",
            ExpertMatrix::Up => "up",
            ExpertMatrix::Down => "down",
        }
    }
}

macro_rules! block_weights {
    ($($(#[$doc:meta])* $variant:ident = $hf:literal, $gguf:literal;)*) => {
        /// A weight of one block.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum BlockWeight {
            $($(#[$doc])* $variant,)*
            /// A matrix of the expert with this index.
            Expert(usize, ExpertMatrix),
        }

        impl BlockWeight {
            /// Every weight of a block but those of experts.
            pub const ALL: &'static [BlockWeight] = &[$(BlockWeight::$variant,)*];
            fn hf_name(self) -> Cow<'static, str> {
                match self {
                    $(BlockWeight::$variant => $hf.into(),)*
                    BlockWeight::Expert(i, matrix) => format!("mlp.experts.{i}.{}_proj.weight", matrix.name()).into(),
                }
            }
            fn gguf_name(self) -> Cow<'static, str> {
                match self {
                    $(BlockWeight::$variant => $gguf.into(),)*
                    BlockWeight::Expert(i, matrix) => format!("ffn_{}.{i}.weight", matrix.name()).into(),
                }
            }
        }
    };
}

block_weights! {
    /// `[hidden]`: RMS norm before attention.
    InputNorm = "input_layernorm.weight", "attn_norm.weight";
    /// `[(H+2*H_kv)*D, hidden]`: query, key and value in one matrix, where the family has it so.
    QueryKeyValue = "self_attn.qkv_proj.weight", "attn_qkv.weight";
    /// `[(H+2*H_kv)*D]`
    QueryKeyValueBias = "self_attn.qkv_proj.bias", "attn_qkv.bias";
    /// `[H*D, hidden]`
    Query = "self_attn.q_proj.weight", "attn_q.weight";
    /// `[H*D]`
    QueryBias = "self_attn.q_proj.bias", "attn_q.bias";
    /// `[H_kv*D, hidden]`
    Key = "self_attn.k_proj.weight", "attn_k.weight";
    /// `[H_kv*D]`
    KeyBias = "self_attn.k_proj.bias", "attn_k.bias";
    /// `[H_kv*D_v, hidden]`
    Value = "self_attn.v_proj.weight", "attn_v.weight";
    /// `[H_kv*D_v]`
    ValueBias = "self_attn.v_proj.bias", "attn_v.bias";
    /// `[D]` or `[H*D]`: RMS norm of queries, before RoPE.
    QueryNorm = "self_attn.q_norm.weight", "attn_q_norm.weight";
    /// `[D]` or `[H_kv*D]`: RMS norm of keys, before RoPE.
    KeyNorm = "self_attn.k_norm.weight", "attn_k_norm.weight";
    /// `[hidden, H*D_v]`
    AttentionOutput = "self_attn.o_proj.weight", "attn_output.weight";
    /// `[hidden]`
    AttentionOutputBias = "self_attn.o_proj.bias", "attn_output.bias";
    /// `[hidden]`: RMS norm before the feed-forward network, or, in families with norms behind, of what attention gives.
    PostAttentionNorm = "post_attention_layernorm.weight", "ffn_norm.weight";
    /// `[hidden]`: RMS norm before the feed-forward network in families where the one above is another. `ffn_norm` in their GGUF
    /// files, see [`Weight::name_in`].
    PreFeedForwardNorm = "pre_feedforward_layernorm.weight", "pre_ffw_norm.weight";
    /// `[hidden]`: RMS norm of what the feed-forward network gives.
    PostFeedForwardNorm = "post_feedforward_layernorm.weight", "post_ffw_norm.weight";
    /// `[intermediate, hidden]`
    Gate = "mlp.gate_proj.weight", "ffn_gate.weight";
    /// `[intermediate]`
    GateBias = "mlp.gate_proj.bias", "ffn_gate.bias";
    /// `[intermediate, hidden]`
    Up = "mlp.up_proj.weight", "ffn_up.weight";
    /// `[2*intermediate, hidden]`: gate and up in one matrix, where the family has it so. In GGUF it has the name of up.
    GateUp = "mlp.gate_up_proj.weight", "ffn_up.weight";
    /// `[intermediate]`
    UpBias = "mlp.up_proj.bias", "ffn_up.bias";
    /// `[hidden, intermediate]`
    Down = "mlp.down_proj.weight", "ffn_down.weight";
    /// `[hidden]`
    DownBias = "mlp.down_proj.bias", "ffn_down.bias";
    /// `[E, hidden]`: what chooses experts.
    Router = "mlp.gate.weight", "ffn_gate_inp.weight";
    /// `[1, hidden]`: how much of the expert that every position gets.
    SharedExpertGate = "mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight";
    /// `[intermediate of that expert, hidden]`
    SharedGate = "mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight";
    /// `[intermediate of that expert, hidden]`
    SharedUp = "mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight";
    /// `[hidden, intermediate of that expert]`
    SharedDown = "mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight";
}

/// Words that wrappers put into the names of a folder's tensors, wherever they stand: those of `torch.compile` and FSDP, and
/// the one that PEFT puts behind a layer that it wraps.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"];

/// Words that models which hold the model put before its names: `DataParallel`, PEFT, a module of one's own.
const HOLDERS: [&str; 3] = ["module", "base_model", "model"];

/// The name that the family's own class for generation has for a tensor of a Hugging Face folder. Classes without a head
/// write no `model.`; names that are not the family's stay as they are.
fn canonical(name: &str) -> Cow<'_, str> {
    let words: Vec<&str> = name.split('.').filter(|word| !WRAPPERS.contains(word)).collect();
    let n_holders = words.iter().take_while(|word| HOLDERS.contains(word)).count();
    let own = words[n_holders..].join(".");
    match words.get(n_holders) {
        Some(&"lm_head") => Cow::Owned(own),
        Some(&("layers" | "embed_tokens" | "norm")) => Cow::Owned(format!("model.{own}")),
        _ => Cow::Borrowed(name),
    }
}

impl Dialect {
    /// The name that the table has for a tensor that a file calls `name`.
    pub(super) fn canonical(self, name: &str) -> Cow<'_, str> {
        match self {
            Dialect::HuggingFace => canonical(name),
            Dialect::Gguf => Cow::Borrowed(name),
        }
    }
}

impl Weight {
    /// Every weight that a model of `n_layers` blocks can have.
    pub fn all(n_layers: usize) -> impl Iterator<Item = Weight> {
        let blocks = (0..n_layers).flat_map(|i| BlockWeight::ALL.iter().map(move |&w| Weight::Block(i, w)));
        Weight::outside_of_blocks().chain(blocks)
    }

    fn outside_of_blocks() -> impl Iterator<Item = Weight> {
        let own = [Weight::TokenEmbedding, Weight::OutputNorm, Weight::Output];
        own.into_iter().chain(RopeFactors::ALL.map(Weight::Rope))
    }

    /// The weight that [`name`](Self::name) calls so.
    pub fn parse(name: &str, dialect: Dialect) -> Option<Weight> {
        if let Some(weight) = Weight::outside_of_blocks().find(|w| w.name(dialect) == name) {
            return Some(weight);
        }
        let (blocks, suffix_of): (&str, fn(BlockWeight) -> Cow<'static, str>) = match dialect {
            Dialect::HuggingFace => ("model.layers.", BlockWeight::hf_name),
            Dialect::Gguf => ("blk.", BlockWeight::gguf_name),
        };
        let (number, suffix) = name.strip_prefix(blocks)?.split_once('.')?;
        let block = number.parse::<usize>().ok().filter(|n| n.to_string() == number)?;
        let weight = BlockWeight::ALL.iter().find(|w| suffix_of(**w) == suffix)?;
        Some(Weight::Block(block, *weight))
    }

    /// Whether it is what keys are projected with.
    pub fn makes_keys(self) -> bool {
        matches!(self, Weight::Block(_, BlockWeight::Key))
    }

    /// Whether it is a matrix that a linear layer or an embedding multiplies with, or looks rows up in.
    pub fn is_linear(self) -> bool {
        use BlockWeight::{AttentionOutput, Down, Gate, GateUp, Key, Query, QueryKeyValue, Up, Value};
        use BlockWeight::{SharedDown, SharedExpertGate, SharedGate, SharedUp};
        match self {
            Weight::TokenEmbedding | Weight::Output => true,
            Weight::OutputNorm | Weight::Rope(_) => false,
            // Experts and what chooses them are parameters of modules of their own.
            Weight::Block(_, w) => {
                matches!(w, QueryKeyValue | Query | Key | Value | AttentionOutput | GateUp | Gate | Up | Down)
                    || matches!(w, SharedExpertGate | SharedGate | SharedUp | SharedDown)
            }
        }
    }

    /// The weights whose rows those of this one are, one after the other; none for most.
    pub fn parts(self) -> Vec<Weight> {
        use BlockWeight::{Gate, GateUp, Key, Query, QueryKeyValue, Up, Value};
        let (block, parts): (usize, &[BlockWeight]) = match self {
            Weight::Block(i, QueryKeyValue) => (i, &[Query, Key, Value]),
            Weight::Block(i, GateUp) => (i, &[Gate, Up]),
            _ => return Vec::new(),
        };
        parts.iter().map(|w| Weight::Block(block, *w)).collect()
    }

    /// Whether it is the weight of an RMS norm.
    pub fn is_norm(self) -> bool {
        use BlockWeight::{InputNorm, KeyNorm, PostAttentionNorm, PostFeedForwardNorm, PreFeedForwardNorm, QueryNorm};
        match self {
            Weight::OutputNorm => true,
            Weight::TokenEmbedding | Weight::Output | Weight::Rope(_) => false,
            Weight::Block(_, w) => matches!(
                w,
                InputNorm | PostAttentionNorm | PreFeedForwardNorm | PostFeedForwardNorm | QueryNorm | KeyNorm
            ),
        }
    }

    /// The tensor's name in `dialect`, in GGUF for a family with norms where Llama has them; see
    /// [`name_in`](Self::name_in).
    pub fn name(self, dialect: Dialect) -> String {
        match dialect {
            Dialect::HuggingFace => self.hf_name(),
            Dialect::Gguf => self.gguf_name(),
        }
    }

    fn hf_name(self) -> String {
        match self {
            Weight::TokenEmbedding => "model.embed_tokens.weight".into(),
            Weight::OutputNorm => "model.norm.weight".into(),
            Weight::Output => "lm_head.weight".into(),
            Weight::Rope(factors) => factors.gguf_name().into(),
            Weight::Block(i, w) => format!("model.layers.{i}.{}", w.hf_name()),
        }
    }

    pub(super) fn gguf_name(self) -> String {
        match self {
            Weight::TokenEmbedding => "token_embd.weight".into(),
            Weight::OutputNorm => "output_norm.weight".into(),
            Weight::Output => "output.weight".into(),
            Weight::Rope(factors) => factors.gguf_name().into(),
            Weight::Block(i, w) => format!("blk.{i}.{}", w.gguf_name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for dialect in [Dialect::HuggingFace, Dialect::Gguf] {
            // In GGUF it has the name of its upper half.
            for weight in Weight::all(12).filter(|w| !matches!(w, Weight::Block(_, BlockWeight::GateUp))) {
                assert_eq!(Weight::parse(&weight.name(dialect), dialect), Some(weight));
            }
            for name in ["", "blk.0", "blk.01.attn_q.weight", "blk.-1.attn_q.weight", "model.layers.0.self_attn.q_proj"]
            {
                assert_eq!(Weight::parse(name, dialect), None, "{name}");
            }
        }
    }

    #[test]
    fn wrappers_and_holders_do_not_name_a_weight() {
        for (name, expected) in [
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("norm.weight", "model.norm.weight"),
            ("embed_tokens.weight", "model.embed_tokens.weight"),
            ("_orig_mod.model.norm.weight", "model.norm.weight"),
            ("module._orig_mod.lm_head.weight", "lm_head.weight"),
            ("model._orig_mod.layers.1._orig_mod.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
            ("base_model.model.model.norm.weight", "model.norm.weight"),
            ("base_model.model.layers.0.self_attn.q_proj.base_layer.weight", "model.layers.0.self_attn.q_proj.weight"),
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("model.model.embed_tokens.weight", "model.embed_tokens.weight"),
            (
                "model.layers.0.self_attn.q_proj.lora_A.default.weight",
                "model.layers.0.self_attn.q_proj.lora_A.default.weight",
            ),
            ("v_head.summary.weight", "v_head.summary.weight"),
            ("module.v_head.weight", "module.v_head.weight"),
            ("language_model.model.norm.weight", "language_model.model.norm.weight"),
            ("", ""),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }
}
