//! Flags about how an adapter is read; the same for every command that reads one.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::hints::closest;
use super::suggested::Suggested;
use super::usage;
use crate::adapter::plus::{FeatureMap, MemorySharing, QueryTap};
use crate::error::Result;
use crate::import::{Options, flag_of};

/// What the user states about a checkpoint of another training code.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "How a checkpoint is to be read (docs/IMPORT.md)")]
pub struct Reading {
    /// Layout file: what tensor names mean that no rule knows
    #[arg(long, value_name = "FILE.toml")]
    layout: Option<PathBuf>,
    /// phi's activation
    #[arg(long, value_name = "NAME", value_parser = Suggested(FeatureMap::NAMES.to_vec()))]
    feature_map: Option<String>,
    /// Where the query is taken: after RoPE or before it
    #[arg(long, value_name = "TAP", value_parser = Suggested(QueryTap::NAMES.to_vec()))]
    query_tap: Option<String>,
    /// Factor on the query
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    query_scale: Option<f64>,
    /// Factor on the term
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    memory_scale: Option<f64>,
    /// One memory for each query head, for each key/value head, or for all
    #[arg(long, value_name = "SHARING", value_parser = Suggested(MemorySharing::NAMES.to_vec()))]
    memory_sharing: Option<String>,
    /// Each head of the memories is stored transposed, as a linear layer keeps it ("=false": it is not)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    transpose_memory: Option<bool>,
    /// The adapted layers: all, or numbers and ranges such as 0,2,5-7
    #[arg(long, value_name = "LIST")]
    layers: Option<String>,
    /// Of a bundle that has its adapter in several forms: which one, by its name (q8_0, safetensors) or its file's; by
    /// default the first
    #[arg(long, value_name = "NAME")]
    form: Option<String>,
}

impl Reading {
    /// As the library wants it.
    pub fn options(&self) -> Result<Options> {
        let mut stated = Map::new();
        let flag = |key| flag_of(key).unwrap_or(key);
        for (key, value, known) in [
            ("feature_map", &self.feature_map, FeatureMap::NAMES),
            ("query_tap", &self.query_tap, QueryTap::NAMES),
            ("memory_sharing", &self.memory_sharing, MemorySharing::NAMES),
        ] {
            let Some(value) = value.as_deref() else { continue };
            if !known.contains(&value) {
                let hint = closest(value, known.iter().copied()).map(|c| format!("did you mean {c}?"));
                let message = format!("expected one of {}, found {value:?}", known.join(", "));
                return Err(usage(flag(key), message).hints(hint));
            }
            stated.insert(key.into(), value.into());
        }
        for (key, value) in [("query_scale", self.query_scale), ("memory_scale", self.memory_scale)] {
            let Some(x) = value else { continue };
            if !(x as f32).is_finite() {
                return Err(usage(flag(key), format!("expected a finite number within F32, found {x}")));
            }
            stated.insert(key.into(), x.into());
        }
        if let Some(text) = &self.layers {
            stated.insert("layers_to_transform".into(), layers(text)?);
        }
        Ok(Options {
            stated,
            transpose_memory: self.transpose_memory,
            layout: self.layout.clone(),
            form: self.form.clone(),
        })
    }
}

fn layers(text: &str) -> Result<Value> {
    /// More layers than any model has.
    const MAX: u32 = 4096;
    let wrong = || usage("--layers", format!("expected all, or numbers and ranges such as 0,2,5-7, found {text:?}"));
    if text == "all" {
        return Ok(Value::Null);
    }
    let mut list: Vec<u32> = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| *n < MAX).ok_or_else(wrong);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        list.extend(first..=last);
    }
    Ok(list.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_lists_are_numbers_and_ranges() {
        assert_eq!(layers("0,2,5-7").unwrap(), serde_json::json!([0, 2, 5, 6, 7]));
        assert_eq!(layers("all").unwrap(), Value::Null);
        for text in ["", "1-", "-1", "3-1", "a", "1,,2", "0-4294967295"] {
            assert!(layers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_name_is_a_usage_error() {
        let reading = Reading { feature_map: Some("elu2".into()), ..Reading::default() };
        assert_eq!(reading.options().unwrap_err().code(), crate::error::Code::Usage);
    }
}
