//! A layout file (`--layout FILE.toml`): what a name means, for layouts that no rule knows. `docs/IMPORT.md` has the
//! format with an example.

use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::axes::{Axes, Axis};
use super::rules::Rule;
use crate::adapter::Role;
use crate::error::{Code, Error, Result};

/// Largest layout file read. A line for every tensor of the largest model stays below that.
const MAX_BYTES: u64 = 1 << 20;
/// Largest compiled regular expression; the regex crate's matching time is linear in it.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// A layout file.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// What the file states for `adapter_config.json`.
    pub constants: Map<String, Value>,
    rules: Vec<MappingRule>,
    ignore: Vec<(Regex, String)>,
}

#[derive(Debug, Clone)]
struct MappingRule {
    name: Regex,
    role: Role,
    axes: Option<Axes>,
}

/// What a layout file says about a name.
pub enum Mapped {
    /// A tensor of the adapter.
    Part {
        /// What it is.
        role: Role,
        /// The layer in the name.
        layer: Option<usize>,
        /// The head in the name.
        head: Option<usize>,
        /// The stored order of its axes; absent leaves the orientation open.
        axes: Option<Axes>,
    },
    /// Not the adapter's, with the reason.
    Ignored(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    constants: toml::Table,
    #[serde(default)]
    tensor: Vec<TensorRule>,
    #[serde(default)]
    ignore: Vec<IgnoreRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorRule {
    name: String,
    role: String,
    axes: Option<String>,
    #[serde(default)]
    transpose: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IgnoreRule {
    name: String,
    reason: String,
}

impl Mapping {
    /// Reads a layout file. Errors: [`Code::LayoutFile`], naming what is wrong; [`Code::NotFound`].
    pub fn open(path: &Path) -> Result<Mapping> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot open the layout file", e))?.len();
        if size > MAX_BYTES {
            return Err(fault(format!("expected at most {MAX_BYTES} bytes, found {size}")).file(path));
        }
        let text = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the layout file", e))?;
        let text = String::from_utf8(text).map_err(|_| fault("expected UTF-8").file(path))?;
        Mapping::parse(&text).map_err(|e| e.file(path))
    }

    /// Reads the text of a layout file. Errors: [`Code::LayoutFile`].
    pub fn parse(text: &str) -> Result<Mapping> {
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text[..s.start].lines().count().max(1));
            let place = line.map_or(String::new(), |n| format!("line {n}: "));
            fault(format!("{place}{}", e.message()))
        })?;
        if file.tensor.is_empty() {
            return Err(fault("expected at least one [[tensor]], found none"));
        }
        let mut constants = Map::new();
        for (key, value) in file.constants {
            let value = serde_json::to_value(&value).map_err(|e| fault(e.to_string()).field(&key))?;
            constants.insert(key, value);
        }
        Ok(Mapping {
            constants,
            rules: file.tensor.into_iter().map(MappingRule::new).collect::<Result<_>>()?,
            ignore: file.ignore.into_iter().map(|i| Ok((whole(&i.name)?, i.reason))).collect::<Result<_>>()?,
        })
    }

    /// What the file says about `name`; `None` for nothing, which leaves the name to the rules.
    ///
    /// Errors: [`Code::LayoutFile`] where two entries match, or the number in a name is none.
    pub fn read(&self, name: &str) -> Result<Option<Mapped>> {
        let parts = self.rules.iter().filter(|r| r.name.is_match(name));
        let ignored = self.ignore.iter().filter(|(r, _)| r.is_match(name));
        let mut patterns: Vec<&str> = parts.map(|r| r.name.as_str()).collect();
        patterns.extend(ignored.map(|(r, _)| r.as_str()));
        if let [first, second, ..] = patterns[..] {
            return Err(fault(format!("expected one entry for a name, found two: {first} and {second}")).field(name));
        }
        if let Some((_, reason)) = self.ignore.iter().find(|(r, _)| r.is_match(name)) {
            return Ok(Some(Mapped::Ignored(reason.clone())));
        }
        let Some((rule, captures)) = self.rules.iter().find_map(|r| Some((r, r.name.captures(name)?))) else {
            return Ok(None);
        };
        let number = |group: &str| {
            captures.name(group).map(|m| {
                m.as_str().parse::<usize>().map_err(|_| {
                    fault(format!("expected a number in the group {group:?}, found {:?}", m.as_str())).field(name)
                })
            })
        };
        Ok(Some(Mapped::Part {
            role: rule.role,
            layer: number("layer").transpose()?,
            head: number("head").transpose()?,
            axes: rule.axes.clone(),
        }))
    }
}

impl MappingRule {
    fn new(t: TensorRule) -> Result<MappingRule> {
        let pattern = t.name.clone();
        let place = |e: Error| e.field(&pattern);
        let name = whole(&t.name).map_err(place)?;
        let role = Role::parse(&t.role).ok_or_else(|| {
            let known: Vec<&str> = Role::ALL.iter().map(|r| r.name()).collect();
            place(fault(format!("expected a role among {}, found {:?}", known.join(", "), t.role)))
        })?;
        let has = |group: &str| name.capture_names().flatten().any(|n| n == group);
        if let Some(other) = name.capture_names().flatten().find(|n| !matches!(*n, "layer" | "head")) {
            return Err(place(fault(format!("expected the groups \"layer\" and \"head\", found {other:?}"))));
        }
        let axes = t.axes.as_deref().map(Axes::parse).transpose().map_err(place)?;
        if let Some(axes) = &axes {
            for axis in axes.axes() {
                if !Rule::axes(role).contains(&axis) {
                    return Err(place(fault(format!("{role} has no axis such as in {axes}"))));
                }
            }
            for needed in Rule::axes(role).iter().filter(|a| !matches!(a, Axis::Layer | Axis::Head)) {
                if !axes.axes().any(|a| a == *needed) {
                    return Err(place(fault(format!("the axes {axes} lack one that {role} has"))));
                }
            }
            for (axis, group) in [(Axis::Layer, "layer"), (Axis::Head, "head")] {
                if has(group) && axes.axes().any(|a| a == axis) {
                    return Err(place(fault(format!("the {group} is both in the name and among the axes {axes}"))));
                }
            }
            if !has("layer") && !axes.axes().any(|a| a == Axis::Layer) {
                return Err(place(fault("the layer is neither a group (?<layer>[0-9]+) of the name nor an axis L")));
            }
        }
        if t.transpose && axes.is_none() {
            return Err(place(fault("transpose needs axes: it exchanges the last two stored dimensions")));
        }
        let axes = axes.map(|a| if t.transpose { a.transposed() } else { a });
        Ok(MappingRule { name, role, axes })
    }
}

/// A regular expression that matches whole names only.
fn whole(pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|e| fault(format!("{pattern:?} is no regular expression: {e}")))
}

fn fault(message: impl Into<String>) -> Error {
    Error::new(Code::LayoutFile, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_the_file_says() {
        let m = Mapping::parse(
            r#"
            [constants]
            feature_map = "elu"
            query_scale = 1.0
            [[tensor]]
            name = 'blocks_(?<layer>\d+)_mem(?<head>\d+)'
            role = "memory"
            axes = "F V"
            transpose = true
            [[ignore]]
            name = 'ema\..*'
            reason = "averaged copy"
            "#,
        )
        .unwrap();
        assert_eq!(m.constants["feature_map"], "elu");
        match m.read("blocks_3_mem1").unwrap() {
            Some(Mapped::Part { role: Role::Memory, layer: Some(3), head: Some(1), axes: Some(axes) }) => {
                assert_eq!(axes.to_string(), "V F");
            }
            _ => panic!(),
        }
        assert!(matches!(m.read("ema.x").unwrap(), Some(Mapped::Ignored(_))));
        assert!(m.read("xblocks_3_mem1").unwrap().is_none(), "whole names only");
    }

    #[test]
    fn every_mistake_is_refused() {
        let tensor = |body: &str| format!("[[tensor]]\n{body}");
        let cases = [
            "".to_owned(),
            "x = 1".to_owned(),
            tensor("name = 'a'\nrole = 'memory'\naxes = 'H F V'"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\naxes = 'H F'"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\naxes = 'H F D'"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\naxes = 'L H F V'"),
            tensor("name = '(?<layer>x)(?<head>y)'\nrole = 'memory'\naxes = 'H F V'"),
            tensor("name = '(?<block>x)'\nrole = 'memory'"),
            tensor("name = '(?<layer>x)'\nrole = 'Memory'"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\ntranspose = true"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\nshape = [1]"),
            tensor("name = '('\nrole = 'memory'"),
            tensor("role = 'memory'"),
        ];
        for text in cases {
            assert_eq!(Mapping::parse(&text).map(|_| ()).unwrap_err().code(), Code::LayoutFile, "{text}");
        }
        let both = Mapping::parse(&format!(
            "{}\n{}",
            tensor("name = 'a(?<layer>\\d+)'\nrole = 'memory'"),
            tensor("name = 'a(?<layer>[0-9]+)'\nrole = 'normalizer'")
        ))
        .unwrap();
        assert!(both.read("a1").is_err());
    }
}
