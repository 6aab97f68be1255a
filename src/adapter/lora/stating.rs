//! An `adapter_config.json` that says what the modules are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Lora, Module, Rules, module_name};
use crate::base::Weight;

/// `peft_type` of a LoRA.
pub const PEFT_TYPE: &str = "LORA";

impl Lora {
    /// The configuration where PEFT reads the modules' ranks and factors from it, else one in which ranks, alphas and targets are
    /// written anew and everything else is as it was.
    pub fn stated_config(&self) -> Map<String, Value> {
        if self.config.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE) && self.is_stated_by(&self.config) {
            return self.config.clone();
        }
        let mut out = Map::new();
        out.insert("peft_type".into(), PEFT_TYPE.into());
        out.extend(self.config.iter().filter(|(key, _)| *key != "peft_type").map(|(k, v)| (k.clone(), v.clone())));
        let ranks = |m: &Module| m.rank();
        let rank = most_common(self.modules.values().map(ranks)).unwrap_or(8);
        let alpha_bits = most_common(self.modules.values().map(|m| alpha_of(m).to_bits()));
        let alpha = alpha_bits.map_or(8.0, f64::from_bits);
        let mut rank_pattern = Map::new();
        let mut alpha_pattern = Map::new();
        for (&weight, module) in &self.modules {
            if module.rank() != rank {
                rank_pattern.insert(module_name(weight), module.rank().into());
            }
            if alpha_of(module) != alpha {
                alpha_pattern.insert(module_name(weight), number(alpha_of(module)));
            }
        }
        let (targets, layers) = self.targets();
        for (key, value) in [
            ("task_type", out.get("task_type").cloned().unwrap_or_else(|| "CAUSAL_LM".into())),
            ("base_model_name_or_path", out.get("base_model_name_or_path").cloned().unwrap_or(Value::Null)),
            ("r", rank.into()),
            ("lora_alpha", number(alpha)),
            ("use_rslora", false.into()),
            ("rank_pattern", rank_pattern.into()),
            ("alpha_pattern", alpha_pattern.into()),
            ("target_modules", targets.into()),
            ("layers_to_transform", layers.map_or(Value::Null, Value::from)),
            ("inference_mode", true.into()),
        ] {
            out.insert(key.into(), value);
        }
        out.shift_remove("layers_pattern");
        out
    }

    /// Whether PEFT would give every module the rank and the factor that it has.
    fn is_stated_by(&self, config: &Map<String, Value>) -> bool {
        let Ok(rules) = Rules::of(config) else { return false };
        self.modules.iter().all(|(&weight, module)| {
            let (name, rank) = (module_name(weight), module.rank());
            rules.rank(&name) == rank && rules.scale(&name, rank).factor as f32 == module.scale.factor as f32
        })
    }

    /// `target_modules` and `layers_to_transform`: kinds of layers and the blocks that all have them, or else every module by name.
    fn targets(&self) -> (Vec<String>, Option<Vec<usize>>) {
        let mut blocks: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        let mut are_all_in_blocks = true;
        for &weight in self.modules.keys() {
            match weight {
                Weight::Block(i, _) => {
                    let name = module_name(weight);
                    let kind = name.rsplit_once('.').map_or(name.as_str(), |(_, kind)| kind).to_owned();
                    blocks.entry(kind).or_default().insert(i);
                }
                _ => are_all_in_blocks = false,
            }
        }
        let mut sets = blocks.values();
        let first = sets.next();
        match first {
            Some(first) if are_all_in_blocks && sets.all(|other| other == first) => {
                (blocks.keys().cloned().collect(), Some(first.iter().copied().collect()))
            }
            _ => (self.modules.keys().map(|&w| module_name(w)).collect(), None),
        }
    }
}

/// The alpha that gives `alpha / r` the module's factor: the stated one if it does.
fn alpha_of(module: &Module) -> f64 {
    let rank = module.rank() as f64;
    let stated = module.scale.alpha;
    if stated / rank == module.scale.factor { stated } else { module.scale.factor * rank }
}

/// A whole number as one, as PEFT writes it.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    if value.fract() == 0.0 && value.abs() < EXACT { Value::from(value as i64) } else { Value::from(value) }
}

fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|v| *counts.entry(v).or_default() += 1);
    // Of several the first.
    counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(v, _)| v)
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::*;
    use crate::base::BlockWeight;
    use crate::tensor::LazyTensor;
    use serde_json::json;

    fn module(rank: usize, alpha: f64, factor: f64) -> Module {
        let half = |shape: &[usize]| LazyTensor::from_f32(&vec![0.0; shape.iter().product()], shape);
        let scale = Scale { alpha, factor };
        Module { a: half(&[rank, 2]), b: half(&[3, rank]), scale, magnitude: None, bias: None }
    }

    fn of(config: Value, modules: impl IntoIterator<Item = (Weight, Module)>) -> Lora {
        let config = config.as_object().unwrap().clone();
        let modules = modules.into_iter().collect();
        Lora { config, modules, saved: Default::default(), folded: Default::default(), key_factor: None }
    }

    #[test]
    fn what_says_it_already_is_kept() {
        let query = Weight::Block(0, BlockWeight::Query);
        let config = json!({"peft_type": "LORA", "r": 9, "lora_alpha": 6, "use_rslora": true, "a": 1});
        let lora = of(config.clone(), [(query, module(9, 6.0, 2.0))]);
        assert_eq!(Value::Object(lora.stated_config()), config);
        // Somebody changed the scale.
        let config = of(config, [(query, module(9, 9.0, 1.0))]).stated_config();
        assert_eq!((&config["lora_alpha"], &config["use_rslora"], &config["a"]), (&json!(9), &json!(false), &json!(1)));
    }

    #[test]
    fn what_no_configuration_says_is_written_as_patterns() {
        let at = |i| Weight::Block(i, BlockWeight::Query);
        let lora =
            of(json!({}), [(at(1), module(4, 8.0, 2.0)), (at(2), module(4, 8.0, 2.0)), (at(12), module(8, 0.0, 1.0))]);
        let config = lora.stated_config();
        assert_eq!(config["rank_pattern"], json!({"model.layers.12.self_attn.q_proj": 8}));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8)));
        assert_eq!(config["target_modules"], json!(["q_proj"]));
        assert_eq!(config["layers_to_transform"], json!([1, 2, 12]));
        let rules = Rules::of(&config).unwrap();
        for (&weight, module) in &lora.modules {
            let name = module_name(weight);
            assert_eq!(rules.rank(&name), module.rank(), "{name}");
            assert_eq!(rules.scale(&name, module.rank()).factor, module.scale.factor, "{name}");
        }
        let lora = of(json!({}), [(at(1), module(4, 8.0, 2.0)), (Weight::Output, module(4, 8.0, 2.0))]);
        let config = lora.stated_config();
        assert_eq!(config["target_modules"], json!(["lm_head", "model.layers.1.self_attn.q_proj"]));
        assert_eq!(config["layers_to_transform"], Value::Null);
    }
}
