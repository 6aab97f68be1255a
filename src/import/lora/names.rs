//! What a tensor of PEFT's is, by its name.
//!
//! ```text
//!   base_model.model . model.layers.0.self_attn.q_proj . lora_A . default . weight
//!   wrappers           the module, as patterns see it    word     adapter's name, in state dicts only
//! ```

use crate::adapter::Part;
use crate::base::{Dialect, Weight};

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A tensor of PEFT's beside a module.
    Part {
        /// The module's name without PEFT's words.
        module: String,
        /// What of the addition it is, as the file calls it.
        part: Part,
        /// Whether it is called one of an embedding: `lora_embedding_A`.
        is_embedding: bool,
        /// The adapter's name, where the tensor's has it.
        adapter: Option<String>,
    },
    /// A weight of the model itself: trained and saved as a whole, or a copy of the base's.
    Whole {
        /// The weight, if it is one that a family's forward pass uses.
        weight: Option<Weight>,
        /// Whether PEFT's words say that it was trained as a whole.
        is_trained: bool,
        /// The adapter's name, where the tensor's has it.
        adapter: Option<String>,
    },
    /// Known, and no weight of the adapter.
    Ignored(&'static str),
    /// Words of PEFT's that nothing here knows.
    Unknown,
}

/// Words that wrappers put anywhere.
const WRAPPERS: [&str; 5] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "module"];
/// Keys of checkpoints above the weights.
const CONTAINERS: [&str; 6] =
    ["state_dict", "model_state_dict", "adapter", "adapter_state_dict", "adapters", "weights"];
/// PEFT's copy of a module that is trained, before the adapter's name.
const TRAINED_COPY: &str = "modules_to_save";
/// The module as it was before.
const UNTRAINED: &str = "original_module";

/// The weight that a module's name, without PEFT's words and wrappers', belongs to.
pub(super) fn weight_of(module: &str) -> Option<Weight> {
    let name = if module.starts_with("layers.") || matches!(module, "embed_tokens" | "norm") {
        format!("model.{module}.weight")
    } else {
        format!("{module}.weight")
    };
    Weight::parse(&name, Dialect::HuggingFace)
}

pub(super) fn read(name: &str) -> Meaning {
    let words: Vec<&str> = name.split('.').filter(|w| !w.is_empty() && !WRAPPERS.contains(w)).collect();
    let is_state = |w: &&str| w.starts_with("optim") || w.contains("scheduler") || w.starts_with("callback");
    if words.iter().take(2).any(is_state) || words.last().is_some_and(|w| matches!(*w, "exp_avg" | "exp_avg_sq")) {
        return Meaning::Ignored("state of the optimizer or trainer");
    }
    if words.contains(&UNTRAINED) {
        return Meaning::Ignored("a module as it was before it was trained");
    }
    let own = without_holders(&words);
    if let Some(at) = own.iter().position(|w| w.starts_with("lora_")) {
        return part(&own[..at], own[at], &own[at + 1..]);
    }
    if own.iter().any(|w| w.starts_with("trainable_tokens") || *w == "token_adapter") {
        return Meaning::Unknown;
    }
    match own.iter().position(|w| *w == TRAINED_COPY) {
        Some(at) => {
            let adapter = own.get(at + 1).map(|a| (*a).to_owned());
            let rest: Vec<&str> = own[..at].iter().chain(own.iter().skip(at + 2)).copied().collect();
            whole(&rest, true, adapter)
        }
        None => whole(own, false, None),
    }
}

/// The words without those of the containers and models that hold the model: `base_model.model.` is PEFT's.
fn without_holders<'a, 'b>(words: &'a [&'b str]) -> &'a [&'b str] {
    let mut own = words;
    while let [first, rest @ ..] = own
        && CONTAINERS.contains(first)
    {
        own = rest;
    }
    match own {
        ["base_model", "model", rest @ ..] => rest,
        // A key of the checkpoint's, above the model.
        ["model", "base_model", "model", rest @ ..] => rest,
        _ => own,
    }
}

fn part(module: &[&str], word: &str, rest: &[&str]) -> Meaning {
    let is_embedding = word.starts_with("lora_embedding_");
    let half = if word.ends_with('A') { Part::A } else { Part::B };
    let (part, adapter) = match (word, rest) {
        ("lora_A" | "lora_B", ["weight"]) | ("lora_embedding_A" | "lora_embedding_B", []) => (half, None),
        ("lora_A" | "lora_B", [adapter, "weight"]) => (half, Some(*adapter)),
        ("lora_embedding_A" | "lora_embedding_B", [adapter]) => (half, Some(*adapter)),
        ("lora_B", ["bias"]) => (Part::Bias, None),
        ("lora_B", [adapter, "bias"]) => (Part::Bias, Some(*adapter)),
        ("lora_magnitude_vector", [] | ["weight"]) => (Part::Magnitude, None),
        ("lora_magnitude_vector", [adapter] | [adapter, "weight"]) => (Part::Magnitude, Some(*adapter)),
        _ => return Meaning::Unknown,
    };
    Meaning::Part { module: module.join("."), part, is_embedding, adapter: adapter.map(str::to_owned) }
}

fn whole(words: &[&str], is_trained: bool, adapter: Option<String>) -> Meaning {
    if words.contains(&"rotary_emb") {
        return Meaning::Ignored("a table that models compute anew");
    }
    let name = match words {
        ["layers" | "embed_tokens" | "norm", ..] => format!("model.{}", words.join(".")),
        _ => words.join("."),
    };
    let weight = Weight::parse(&name, Dialect::HuggingFace).filter(|w| !matches!(w, Weight::Rope(_)));
    Meaning::Whole { weight, is_trained, adapter }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockWeight;

    #[test]
    fn names_say_module_part_and_adapter() {
        const Q: &str = "model.layers.0.self_attn.q_proj";
        for (name, module, part, adapter) in [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", Q, Part::A, None),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", Q, Part::B, Some("default")),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", Q, Part::A, None),
            ("_orig_mod.module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", Q, Part::A, None),
            (
                "model.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
                Q,
                Part::A,
                None,
            ),
            ("state_dict.base_model.model.lm_head.lora_B.bias", "lm_head", Part::Bias, None),
            ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "layers.0.self_attn.q_proj", Part::A, None),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "model.embed_tokens", Part::A, None),
            (
                "base_model.model.model.embed_tokens.lora_embedding_B.pirate",
                "model.embed_tokens",
                Part::B,
                Some("pirate"),
            ),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", Q, Part::Magnitude, None),
            (
                "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
                Q,
                Part::Magnitude,
                Some("default"),
            ),
        ] {
            let (module, adapter) = (module.to_owned(), adapter.map(str::to_owned));
            let is_embedding = name.contains("lora_embedding_");
            let expected = Meaning::Part { module, part, is_embedding, adapter };
            assert_eq!(read(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_part_is_a_weight_of_the_model_or_unknown() {
        let query = Weight::Block(3, BlockWeight::Query);
        for (name, weight, is_trained, adapter) in [
            ("base_model.model.lm_head.weight", Some(Weight::Output), false, None),
            ("base_model.model.lm_head.base_layer.weight", Some(Weight::Output), false, None),
            ("base_model.model.lm_head.modules_to_save.default.weight", Some(Weight::Output), true, Some("default")),
            ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight", Some(query), false, None),
            ("layers.3.self_attn.q_proj.weight", Some(query), false, None),
            ("base_model.model.model.norm.weight", Some(Weight::OutputNorm), false, None),
            ("base_model.model.score.weight", None, false, None),
        ] {
            let expected = Meaning::Whole { weight, is_trained, adapter: adapter.map(str::to_owned) };
            assert_eq!(read(name), expected, "{name}");
        }
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_E",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A",
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        ] {
            assert_eq!(read(name), Meaning::Unknown, "{name}");
        }
        for name in ["optimizer.state.0.exp_avg", "base_model.model.lm_head.original_module.weight"] {
            assert!(matches!(read(name), Meaning::Ignored(_)), "{name}");
        }
    }

    #[test]
    fn modules_of_models_without_a_head_are_found() {
        for (module, weight) in [
            ("model.layers.3.self_attn.q_proj", Some(Weight::Block(3, BlockWeight::Query))),
            ("layers.3.self_attn.q_proj", Some(Weight::Block(3, BlockWeight::Query))),
            ("embed_tokens", Some(Weight::TokenEmbedding)),
            ("lm_head", Some(Weight::Output)),
            ("model.layers.3.self_attn.qkv_proj", Some(Weight::Block(3, BlockWeight::QueryKeyValue))),
            ("model.layers.3.self_attn.c_attn", None),
            ("language_model.model.layers.3.self_attn.q_proj", None),
        ] {
            assert_eq!(weight_of(module), weight, "{module}");
        }
    }
}
