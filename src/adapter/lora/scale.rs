//! The factor on B A, as PEFT computes it: `alpha / r`, with `use_rslora` `alpha / sqrt(r)`; r and alpha of each module from
//! `rank_pattern` and `alpha_pattern`. Source: PEFT's `tuners/lora/layer.py` (`update_layer`), `tuners/lora/model.py`
//! (`_create_and_replace`) and `utils/other.py` (`get_pattern_key`).

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::base::describe;
use crate::error::{Code, Error, Result};

/// The largest rank that is read: wider than any layer in use.
pub const MAX_RANK: usize = 1 << 16;

/// A module's factor and what it was made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// alpha, as the file states it for this module.
    pub alpha: f64,
    /// The factor on B A.
    pub factor: f64,
}

/// What a configuration says about ranks and scales.
#[derive(Debug, Clone)]
pub struct Rules {
    rank: usize,
    alpha: f64,
    is_rank_stabilized: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

/// A key of `rank_pattern` or `alpha_pattern`: PEFT asks for `re.match(rf"(.*\.)?({key})$", name)`.
#[derive(Debug, Clone)]
enum Pattern {
    /// Nothing special in it but points, each of which is any character. So are the names of modules, of which there may be
    /// hundreds.
    Plain(Vec<char>),
    /// Anything else.
    Regex(Regex),
}

/// Most patterns of each kind: one for every linear layer of 500 blocks.
const MAX_PATTERNS: usize = 4096;
/// Most of them that are more than names; people write those by hand.
const MAX_EXPRESSIONS: usize = 64;
/// Bytes of a compiled expression. `.*layers\.(1|2)[0-9]\..*proj` takes a tenth.
const EXPRESSION_BYTES: usize = 256 << 10;

impl Pattern {
    fn of(key: &str) -> Result<Pattern, regex::Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        if key.chars().all(is_plain) {
            return Ok(Pattern::Plain(key.chars().collect()));
        }
        let text = format!(r"^(?:(?:.*\.)?(?:{key}))$");
        RegexBuilder::new(&text)
            .size_limit(EXPRESSION_BYTES)
            .dfa_size_limit(EXPRESSION_BYTES)
            .build()
            .map(Pattern::Regex)
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Regex(regex) => regex.is_match(name),
            Pattern::Plain(key) => {
                let mut rest = name.chars().rev();
                let is_end = key.iter().rev().all(|k| rest.next().is_some_and(|c| *k == c || *k == '.'));
                is_end && matches!(rest.next(), None | Some('.'))
            }
        }
    }
}

/// What PEFT's `LoraConfig` has for a key that is not there.
const DEFAULT: usize = 8;

impl Rules {
    /// Of a parsed `adapter_config.json`.
    ///
    /// # Errors
    ///
    /// [`Code::ConfigField`] for a rank or an alpha that is none; [`Code::ConfigUnsupported`] for a pattern that is written in
    /// more than regular expressions.
    pub fn of(config: &Map<String, Value>) -> Result<Rules> {
        let rank = config.get("r").map_or(Ok(DEFAULT), |v| rank_of("r", v))?;
        let alpha = config.get("lora_alpha").map_or(Ok(DEFAULT as f64), |v| alpha_of("lora_alpha", v))?;
        let is_rank_stabilized = match config.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(other) => return Err(field("use_rslora", "true or false", other)),
        };
        Ok(Rules {
            rank,
            alpha,
            is_rank_stabilized,
            ranks: patterns(config, "rank_pattern", rank_of)?,
            alphas: patterns(config, "alpha_pattern", alpha_of)?,
        })
    }

    /// The rank of the module of this name, without PEFT's own words in front: `model.layers.0.self_attn.q_proj`.
    pub fn rank(&self, module: &str) -> usize {
        of_module(&self.ranks, module).unwrap_or(self.rank)
    }

    /// The factor of the module of this name, for the rank that it has.
    pub fn scale(&self, module: &str, rank: usize) -> Scale {
        let alpha = of_module(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.is_rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Scale { alpha, factor: alpha / divisor }
    }
}

/// The value of the first pattern that matches; the order is the file's.
fn of_module<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, value)| *value)
}

fn patterns<T>(
    config: &Map<String, Value>,
    key: &str,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(Pattern, T)>> {
    let entries = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(field(key, "an object", other)),
    };
    if entries.len() > MAX_PATTERNS {
        let message = format!("expected at most {MAX_PATTERNS} patterns, found {}", entries.len());
        return Err(Error::new(Code::ConfigField, message).field(key));
    }
    let mut n_expressions = 0;
    let one = |(pattern, value): (&String, &Value)| {
        let place = format!("{key}.{pattern}");
        let value = read(&place, value)?;
        let pattern = Pattern::of(pattern).map_err(|e| {
            let message = format!("expected a short regular expression without look-around or back-references: {e}");
            Error::new(Code::ConfigUnsupported, message).field(place)
        })?;
        n_expressions += usize::from(matches!(pattern, Pattern::Regex(_)));
        if n_expressions > MAX_EXPRESSIONS {
            let message = format!("expected at most {MAX_EXPRESSIONS} regular expressions, found more");
            return Err(Error::new(Code::ConfigUnsupported, message).field(key));
        }
        Ok((pattern, value))
    };
    entries.iter().map(one).collect()
}

fn rank_of(place: &str, value: &Value) -> Result<usize> {
    let rank = value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=MAX_RANK).contains(r));
    rank.ok_or_else(|| field(place, &format!("a rank of 1 to {MAX_RANK}"), value))
}

/// Zero is a scale of zero, as PEFT has it; that nothing is added is a finding of its own.
fn alpha_of(place: &str, value: &Value) -> Result<f64> {
    let alpha = value.as_f64().filter(|a| a.is_finite());
    alpha.ok_or_else(|| field(place, "a finite number", value))
}

fn field(place: &str, expected: &str, found: &Value) -> Error {
    Error::new(Code::ConfigField, format!("expected {expected}, found {}", describe(found))).field(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scales_are_those_of_peft() {
        const Q: &str = "model.layers.1.self_attn.q_proj";
        const DOWN: &str = "model.layers.11.mlp.down_proj";
        // Computed by PEFT 0.21.2 for the same configurations.
        for (config, module, rank, factor) in [
            (json!({}), Q, 8, 1.0),
            (json!({"r": 4, "lora_alpha": 8}), Q, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 0}), Q, 4, 0.0),
            (json!({"r": 16, "lora_alpha": 0.5}), Q, 16, 0.03125),
            (json!({"r": 9, "lora_alpha": 6, "use_rslora": true}), Q, 9, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "rank_pattern": null, "alpha_pattern": null}), Q, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 20}}), Q, 4, 5.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 20}}), DOWN, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"proj": 20}}), Q, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {".*proj": 20}}), Q, 4, 5.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj|v_proj": 20}}), Q, 4, 5.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"self_attn": 20}}), Q, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"layers.1.self_attn.q_proj": 1}}), Q, 4, 0.25),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"1.mlp.down_proj": 1}}), DOWN, 4, 2.0),
            // A point is any character.
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"mlp_down.proj": 1}}), DOWN, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"mlp.down.proj": 1}}), DOWN, 4, 0.25),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"": 1}}), DOWN, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"model.layers.11.mlp.down_proj": 1}}), DOWN, 4, 0.25),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"x.model.layers.11.mlp.down_proj": 1}}), DOWN, 4, 2.0),
            (json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 1}}), Q, 4, 0.25),
            (json!({"r": 4, "lora_alpha": 8, "rank_pattern": {"down_proj": 2}}), DOWN, 2, 4.0),
            // The first that matches.
            (json!({"r": 4, "lora_alpha": 8, "rank_pattern": {"mlp.down_proj": 1, "down_proj": 2}}), DOWN, 1, 8.0),
            (
                json!({"r": 8, "lora_alpha": 16, "use_rslora": true, "rank_pattern": {"layers.1.self_attn.q_proj": 4},
                       "alpha_pattern": {"q_proj": 3}}),
                Q,
                4,
                1.5,
            ),
        ] {
            let rules = Rules::of(config.as_object().unwrap()).unwrap();
            let found = (rules.rank(module), rules.scale(module, rules.rank(module)).factor);
            assert_eq!(found, (rank, factor), "{config}: {module}");
        }
    }

    #[test]
    fn what_is_no_rank_or_alpha_is_refused_by_name() {
        for (config, place) in [
            (json!({"r": 0}), "r"),
            (json!({"r": -1}), "r"),
            (json!({"r": 4.5}), "r"),
            (json!({"r": null}), "r"),
            (json!({"r": 1_000_000_000_000_u64}), "r"),
            (json!({"lora_alpha": "8"}), "lora_alpha"),
            (json!({"lora_alpha": null}), "lora_alpha"),
            (json!({"use_rslora": 1}), "use_rslora"),
            (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern.q_proj"),
            (json!({"alpha_pattern": {"q_proj": "x"}}), "alpha_pattern.q_proj"),
            (json!({"alpha_pattern": [1]}), "alpha_pattern"),
        ] {
            let e = Rules::of(config.as_object().unwrap()).unwrap_err();
            assert_eq!((e.code(), e.field_name()), (Code::ConfigField, Some(place)), "{config}");
        }
        // As Python writes it, not as it is kept here.
        let config = crate::format::json::parse_config(br#"{"lora_alpha": NaN}"#).unwrap();
        let e = Rules::of(config.as_object().unwrap()).unwrap_err();
        assert!(e.message().ends_with("found NaN"), "{}", e.message());
        let e = Rules::of(json!({"alpha_pattern": {"(?=q)q_proj": 1}}).as_object().unwrap()).unwrap_err();
        assert_eq!(e.code(), Code::ConfigUnsupported);
    }
}
