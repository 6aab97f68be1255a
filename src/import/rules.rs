//! The layout rules: what a tensor's name says. One table; the canonical layout is rows of it like every other.
//!
//! ```text
//!   _orig_mod.module.base_model.model.model . layers.3 . self_attn . heads.1 . prefix_memory . default.weight
//!   wrappers, dropped wherever they stand     layer 3                head 1    phrase          PEFT's adapter name
//! ```
//!
//! What is left of a name after that ends in a phrase of the table, or the name is none of the adapter's.

mod words;

use crate::adapter::Part;
use words::{
    BASE_MODULES, HEAD_WORDS, LAYER_WORDS, MOMENTS, QUALIFIERS, QUANTIZED_PARTS, SUSPECT, TRAINED_COPY, TRAINER_STATE,
    UNTRAINED, WRAPPERS,
};

/// What the stored axis order is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// The name fixes it: rows are features.
    Features,
    /// The weight of a linear layer: either `[.., F, V]` or each head transposed.
    Open,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The end of the name, words joined by dots.
    pub phrase: &'static str,
    /// The part that such a tensor plays.
    pub part: Part,
    /// What is known about the order of its axes.
    pub rows: Rows,
}

macro_rules! rules {
    ($($role:ident $rows:ident: $($phrase:literal)*;)*) => {
        /// Every rule. An axis that the name gives (layer, head) is not stored; heads may be flattened into rows.
        pub const RULES: &[Rule] = &[$($(Rule { phrase: $phrase, part: Part::$role, rows: Rows::$rows },)*)*];
    };
}

rules! {
    // `layers.{i}.memory` is the canonical name; `M` the paper's.
    Memory Features: "memory" "prefix_memory" "prefix_memories" "memories" "memory_matrix" "M" "prefix_M" "memory_M";
    Memory Open: "memory.weight" "prefix_memory.weight" "memory_proj" "memory_proj.weight" "prefix_memory_proj"
        "prefix_memory_proj.weight" "memory_projection.weight" "memory_linear.weight" "memory_layer.weight"
        "prefix_proj.weight" "prefix_projection.weight" "prefix_linear.weight" "M.weight" "prefix_M.weight" "mem_proj.weight"
        "mem" "prefix_mem" "mem.weight" "mem_matrix" "memory_mat" "memory_bank" "memory_bank.weight" "memory_table"
        "memory_table.weight" "memory_param" "memory_parameter" "memory_tensor";
    FeatureWeight Features: "feature.weight" "feature_weight" "prefix_feature.weight" "prefix_feature_weight"
        "features.weight" "feature_proj.weight" "prefix_feature_proj.weight" "feature_map.weight" "feature_map_weight"
        "prefix_feature_map.weight" "W" "prefix_W" "feature_W" "phi.weight";
    FeatureBias Features: "feature.bias" "feature_bias" "prefix_feature.bias" "prefix_feature_bias" "features.bias"
        "feature_proj.bias" "prefix_feature_proj.bias" "feature_map.bias" "feature_map_bias" "prefix_feature_map.bias"
        "b" "prefix_b" "feature_b" "phi.bias";
    Normalizer Features: "normalizer" "prefix_normalizer" "normaliser" "prefix_normaliser" "memory_normalizer" "N"
        "prefix_N" "normalizer.weight" "prefix_normalizer.weight";
}

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A tensor of the adapter.
    Part {
        /// The row of the table.
        rule: Rule,
        /// The layer in the name.
        layer: Option<usize>,
        /// The head in the name.
        head: Option<usize>,
        /// PEFT's adapter name in the name.
        adapter: Option<String>,
    },
    /// A factor of the term, such as [`SCALES`] are.
    Scale {
        /// The layer in the name.
        layer: Option<usize>,
        /// The head in the name.
        head: Option<usize>,
    },
    /// Known, and none of the adapter's.
    Ignored(&'static str),
    /// Nothing knows it.
    Unknown {
        /// Whether somebody should look at it before the rest is believed.
        looks_like_adapter: bool,
    },
}

/// Names of a learned `memory_scale`: a plain factor by its name. What else is called a gate has an activation, or has not,
/// and a layout file must say.
pub const SCALES: &[&str] = &["memory_scale", "prefix_memory_scale", "memory_scales"];

/// Words at the end of a name that a phrase can have.
const LAST_WORDS: usize = 4;

/// The reason for leaving out a weight of the base.
pub const BASE_WEIGHTS: &str = "weights of the base model";

/// Reads a name.
pub fn read(name: &str) -> Meaning {
    let words = trained(name);
    if words.contains(&UNTRAINED) {
        return Meaning::Ignored("a module as it was before it was trained");
    }
    if words.last().is_some_and(|w| MOMENTS.contains(w)) {
        return Meaning::Ignored("state of the optimizer or trainer");
    }
    if let Some(container) = words.iter().take(2).find(|w| is_trainer_state(w)) {
        // Optimizers keep something for each parameter, callbacks copies; in the others a part of an adapter is lost.
        let keeps_parameters = container.starts_with("opt") || container.starts_with("callback");
        return match keeps_parameters || part(&words).is_none() {
            true => Meaning::Ignored("state of the optimizer or trainer"),
            false => Meaning::Unknown { looks_like_adapter: true },
        };
    }
    if is_base(&words) {
        return Meaning::Ignored(BASE_WEIGHTS);
    }
    part(&words)
        .or_else(|| scale(&words))
        .unwrap_or_else(|| Meaning::Unknown { looks_like_adapter: looks_like_adapter(&places(&words).words) })
}

/// Whether a name is one of a module as it was before PEFT trained its copy.
pub fn is_untrained(name: &str) -> bool {
    split(name).any(|w| w == UNTRAINED)
}

/// The part of an adapter whose name these words are.
fn part(words: &[&str]) -> Option<Meaning> {
    // `layers.00`: a number that no writer prints so.
    if words.iter().any(|w| w.bytes().all(|b| b.is_ascii_digit()) && number(w).is_none()) {
        return None;
    }
    let Places { mut words, numbers } = places(words);
    if numbers.len() > 2 {
        return None;
    }
    // No phrase has more words, PEFT's included.
    words.iter_mut().rev().take(LAST_WORDS).for_each(|word| *word = unqualified(word));
    let (layer, head) = layer_and_head(&numbers)?;
    phrases(&words).into_iter().find_map(|(phrase, adapter)| {
        let ends = |rule: &&Rule| {
            phrase.strip_suffix(rule.phrase).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let rule = RULES.iter().filter(ends).max_by_key(|r| r.phrase.len())?;
        Some(Meaning::Part { rule: *rule, layer, head, adapter })
    })
}

fn unqualified(word: &str) -> &str {
    let rests = QUALIFIERS.iter().filter_map(|q| word.strip_prefix(q));
    // A letter (`attn_b`) may be anything.
    rests.filter(|rest| rest.len() > 2).min_by_key(|rest| rest.len()).unwrap_or(word)
}

/// The words of a name, without those by which PEFT marks its trained copy of a module.
fn trained(name: &str) -> Vec<&str> {
    let mut words: Vec<&str> = split(name).collect();
    if let Some(at) = words.iter().position(|w| *w == TRAINED_COPY) {
        words.drain(at..words.len().min(at + 2));
    }
    words
}

/// A learned scale whose name these words are.
fn scale(words: &[&str]) -> Option<Meaning> {
    if !words.iter().rev().take(LAST_WORDS).any(|w| w.contains("memory_scale")) {
        return None;
    }
    let Places { words, numbers } = places(words);
    let (layer, head) = layer_and_head(&numbers)?;
    let phrases = [words.last(), words.iter().rev().nth(1).filter(|_| words.last() == Some(&"default"))];
    let is_scale = phrases.into_iter().flatten().any(|word| SCALES.contains(&unqualified(word)));
    is_scale.then_some(Meaning::Scale { layer, head })
}

/// A name without the words of wrappers, and without the one that PEFT puts before a layer that it wraps.
pub fn unwrapped(name: &str) -> Vec<&str> {
    trained(name).into_iter().filter(|w| !WRAPPERS.contains(w) && *w != "base_layer").collect()
}

fn split(name: &str) -> impl Iterator<Item = &str> {
    name.split(['.', '/', '|', ':']).filter(|w| !w.is_empty())
}

struct Places<'a> {
    /// The words that are neither wrapper nor number nor the word that says what a number counts.
    words: Vec<&'a str>,
    /// Each number with the word before it, if that is a word for layers or heads.
    numbers: Vec<(Option<&'a str>, usize)>,
}

fn places<'a>(all: &[&'a str]) -> Places<'a> {
    let mut words: Vec<&str> = Vec::new();
    let mut numbers = Vec::new();
    for &word in all {
        // `layer_3`, `prefix_memory_3`: a word and a number.
        let (word, n) = match word.rsplit_once('_') {
            _ if number(word).is_some() => (None, number(word)),
            Some((w, digits)) if !w.is_empty() && number(digits).is_some() => (Some(w), number(digits)),
            _ => (Some(word), None),
        };
        words.extend(word.filter(|w| !WRAPPERS.contains(w)));
        if let Some(n) = n {
            let counted = words.last().copied().filter(|w| LAYER_WORDS.contains(w) || HEAD_WORDS.contains(w));
            if counted.is_some() {
                words.pop();
            }
            numbers.push((counted, n));
        }
    }
    Places { words, numbers }
}

/// A plain decimal number, as `str` prints it.
fn number(word: &str) -> Option<usize> {
    let is_plain = word == "0" || !word.starts_with(['0', '+']);
    word.parse::<usize>().ok().filter(|_| is_plain)
}

/// The first number counts layers and the second heads, unless the words before them say otherwise. `None` where they
/// say nonsense.
fn layer_and_head(numbers: &[(Option<&str>, usize)]) -> Option<(Option<usize>, Option<usize>)> {
    let (mut layer, mut head) = (None, None);
    for &(word, n) in numbers {
        let says_layer = word.is_none_or(|w| LAYER_WORDS.contains(&w));
        let says_head = word.is_none_or(|w| HEAD_WORDS.contains(&w));
        let slot = match (says_layer, says_head) {
            (true, _) if layer.is_none() => &mut layer,
            (_, true) if head.is_none() => &mut head,
            _ => return None,
        };
        *slot = Some(n);
    }
    Some((layer, head))
}

/// The name's words joined, as they are and without what PEFT appends: `.default`, `.default.weight`, `.default.bias`.
fn phrases(words: &[&str]) -> Vec<(String, Option<String>)> {
    /// Last words that are parts of modules, never names of adapters.
    const PARTS: &[&str] =
        &["weight", "bias", "scale", "gate", "alpha", "norm", "magnitude", "running_mean", "running_var"];
    let mut out = vec![(words.join("."), None)];
    match words {
        [rest @ .., adapter, last @ ("weight" | "bias")] if !PARTS.contains(adapter) && !rest.is_empty() => {
            let adapter = Some((*adapter).to_owned());
            if *last == "weight" {
                out.push((rest.join("."), adapter.clone()));
            }
            out.push((format!("{}.{last}", rest.join(".")), adapter));
        }
        [rest @ .., adapter] if !PARTS.contains(adapter) && !rest.is_empty() => {
            out.push((rest.join("."), Some((*adapter).to_owned())));
        }
        _ => {}
    }
    out
}

/// Whether the words end as a weight of a transformer does: `self_attn.q_proj.weight`. A LoRA in there is none.
fn is_base(words: &[&str]) -> bool {
    if words.iter().any(|w| !WRAPPERS.contains(w) && contains_any(w, SUSPECT)) {
        return false;
    }
    match words {
        _ if is_buffer(words) => true,
        [before @ .., "weight" | "bias"] => is_base_module(before),
        [before @ .., last] if QUANTIZED_PARTS.contains(last) => {
            let is_part = |w: &&str| matches!(*w, "weight" | "quant_state");
            is_base_module(&before[..before.len() - before.iter().rev().take_while(|w| is_part(w)).count()])
        }
        _ => false,
    }
}

/// Whether the words end as something that a model computes anew and was saved all the same: frequencies of RoPE, and masks
/// that older releases of transformers saved.
pub fn is_buffer(words: &[&str]) -> bool {
    matches!(
        words,
        [.., "inv_freq"] | [.., "rotary_emb", _] | [.., "attn" | "self_attn" | "attention", "bias" | "masked_bias"]
    )
}

/// Whether words end with a module of a base model.
fn is_base_module(words: &[&str]) -> bool {
    matches!(words, [.., module, "base_layer"] | [.., module] if BASE_MODULES.contains(module))
}

/// Whether a word is a container of the trainer's state.
fn is_trainer_state(word: &str) -> bool {
    let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let word = word.strip_suffix('_').unwrap_or(word);
    TRAINER_STATE.iter().any(|state| word.strip_prefix(state).is_some_and(|rest| matches!(rest, "" | "s")))
}

fn looks_like_adapter(words: &[&str]) -> bool {
    words.iter().any(|w| {
        contains_any(w, SUSPECT)
            || contains_any(w, &["attn", "attention"])
            || matches!(*w, "M" | "N" | "W" | "mem" | "phi")
    })
}

/// Whether the word has one of these parts, in whatever case.
fn contains_any(word: &str, parts: &[&str]) -> bool {
    let lower = word.to_ascii_lowercase();
    parts.iter().any(|part| lower.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_role_layer_and_head() {
        use Part::*;
        use Rows::*;
        let cases = [
            ("layers.0.memory", Memory, Features, Some(0), None),
            ("layers.12.feature.weight", FeatureWeight, Features, Some(12), None),
            ("layers.1.feature.bias", FeatureBias, Features, Some(1), None),
            ("layers.1.normalizer", Normalizer, Features, Some(1), None),
            ("base_model.model.model.layers.2.self_attn.prefix_memory", Memory, Features, Some(2), None),
            ("base_model.model.model.layers.2.self_attn.prefix_feature_weight", FeatureWeight, Features, Some(2), None),
            ("prefix_memory", Memory, Features, None, None),
            ("prefix_memory_3", Memory, Features, Some(3), None),
            ("layers.4.heads.1.M", Memory, Features, Some(4), Some(1)),
            ("heads.1.layers.4.M", Memory, Features, Some(4), Some(1)),
            ("model.layers.0.self_attn.M", Memory, Features, Some(0), None),
            ("layers.0.memory_proj.weight", Memory, Open, Some(0), None),
            ("layers.0.memory_proj.default.weight", Memory, Open, Some(0), None),
            (
                "_fsdp_wrapped_module._orig_mod.module.base_model.model.model.layers.1.self_attn.prefix_memory",
                Memory,
                Features,
                Some(1),
                None,
            ),
            (
                "model_state_dict.model.layers.1._fsdp_wrapped_module.self_attn.prefix_memory",
                Memory,
                Features,
                Some(1),
                None,
            ),
            ("transformer.h.7.attn.prefix_memory", Memory, Features, Some(7), None),
            ("encoder.layers.7.attn.h.2.memory", Memory, Features, Some(7), Some(2)),
            ("layers.3.prefix.M.default.weight", Memory, Features, Some(3), None),
            ("layers.3.prefix.M.default", Memory, Features, Some(3), None),
            ("layers.3.prefix.M.weight", Memory, Open, Some(3), None),
            ("layers.3.feature.default.weight", FeatureWeight, Features, Some(3), None),
            ("layers.3.feature.default.bias", FeatureBias, Features, Some(3), None),
            ("prefix_M.5", Memory, Features, Some(5), None),
            ("memories.5.2", Memory, Features, Some(5), Some(2)),
            ("tensors.0|memory", Memory, Features, Some(0), None),
            ("layer_3.head_1.M", Memory, Features, Some(3), Some(1)),
            ("prefix_feature.weight", FeatureWeight, Features, None, None),
            ("model.layers.3.self_attn.memory", Memory, Features, Some(3), None),
            ("model.layers.3.self_attn.attn_memory", Memory, Features, Some(3), None),
            ("model.layers.3.attn_prefix_memory", Memory, Features, Some(3), None),
            ("model.layers.3.self_attn.self_attn_memory.weight", Memory, Open, Some(3), None),
            ("model.layers.3.self_attn.attn_feature.bias", FeatureBias, Features, Some(3), None),
            ("model.layers.3.self_attn.mem", Memory, Open, Some(3), None),
            ("model.layers.3.self_attn.prefix.modules_to_save.default.memory", Memory, Features, Some(3), None),
            ("model.layers.3.self_attn.memory.modules_to_save.default.weight", Memory, Open, Some(3), None),
        ];
        for (name, role, rows, layer, head) in cases {
            match read(name) {
                Meaning::Part { rule, layer: l, head: h, .. } => {
                    assert_eq!((rule.part, rule.rows, l, h), (role, rows, layer, head), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_weights_are_recognised_and_suspects_pointed_out() {
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model_state_dict.model.layers.0.input_layernorm.weight",
            "transformer.h.0.ln_1.bias",
            "lm_head.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "optimizer.state.0.exp_avg",
            "optimizer_state_dict.state.0.step",
            "state.0.exp_avg_sq",
            "optim_state_dict.state.layers.0.prefix_memory.step",
            "optimizer_state_dicts.0.state.0.step",
            "optimizer_0.state.0.step",
            "callbacks.EMA.layers.0.memory",
            "optimizer.state.layers.0.memory",
            "model.layers.0.self_attn.q_proj.weight.absmax",
            "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4",
            "model.layers.0.self_attn.q_proj.base_layer.weight.quant_map",
            "model.layers.0.self_attn.q_proj.SCB",
            "model.layers.0.self_attn.o_proj.qweight",
            "model.layers.0.self_attn.k_proj.weight_scale_inv",
            "transformer.h.0.attn.bias",
            "transformer.h.0.attn.masked_bias",
            "base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.model.layers.0.self_attn.prefix.original_module.memory",
        ] {
            assert!(matches!(read(name), Meaning::Ignored(_)), "{name}: {:?}", read(name));
        }
        for (name, layer) in [
            ("layers.3.memory_scale", Some(3)),
            ("model.layers.3.self_attn.prefix.memory_scale.default", Some(3)),
            ("attn_memory_scale", None),
        ] {
            assert_eq!(read(name), Meaning::Scale { layer, head: None }, "{name}");
        }
        for (name, suspect) in [
            ("layers.0.memory.scale", true),
            ("layers.00.memory", true),
            ("layers.1.2.3.memory", true),
            ("amp.layers.0.memory", true),
            ("scaler.3.M", true),
            ("layers.0.self_attn.q_proj.lora_A.default.weight", true),
            ("layers.0.self_attn.rotations", true),
            ("layers.+1.prefix", true),
            ("value_head.weight", false),
            ("epoch", false),
        ] {
            assert_eq!(read(name), Meaning::Unknown { looks_like_adapter: suspect }, "{name}");
        }
    }

    #[test]
    fn no_phrase_is_in_the_table_twice() {
        let mut phrases: Vec<_> = RULES.iter().map(|r| r.phrase).collect();
        phrases.sort();
        phrases.dedup();
        assert_eq!(phrases.len(), RULES.len());
    }
}
