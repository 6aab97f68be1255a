//! A layout file (`--layout FILE.toml`): what a name means, for layouts that no rule knows. `docs/IMPORT.md` has the
//! format with an example.

mod limits;

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::axes::{Axes, Axis};
use super::gate_map::GateMap;
use super::patterns::{Matching, Pattern};
use crate::adapter::Part;
use crate::adapter::plus::{PARTS, PartSpec};
use crate::error::{Code, Error, Result};
use crate::format::limits::*;
use crate::format::mmap::open_regular;
use crate::format::recognize;
use limits::{deepest_line, not_json};

/// A layout file.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// What the file states for `adapter_config.json`.
    pub constants: Map<String, Value>,
    rules: Vec<MappingRule>,
    ignore: Vec<(Pattern, String)>,
}

/// What a layout file may call a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MappedRole {
    Part(Part),
    Gate { map: GateMap, is_scale: bool },
}

/// A gate, and the one that is all of `memory_scale`.
const GATE: &str = "gate";
const SCALE: &str = "memory_scale";

#[derive(Debug, Clone)]
struct MappingRule {
    name: Pattern,
    role: MappedRole,
    axes: Option<Axes>,
}

/// What a layout file says about a name.
pub enum Mapped {
    /// A tensor of the adapter.
    Part {
        /// What it is.
        part: Part,
        /// The layer in the name.
        layer: Option<usize>,
        /// The head in the name.
        head: Option<usize>,
        /// The stored order of its axes; absent leaves the orientation open.
        axes: Option<Axes>,
    },
    /// A factor of the term.
    Gate {
        /// The layer in the name.
        layer: Option<usize>,
        /// The head in the name.
        head: Option<usize>,
        /// The stored order of its axes; absent where the shape tells.
        axes: Option<Axes>,
        /// What becomes of it before it is multiplied.
        map: GateMap,
        /// Whether it is what `memory_scale` would state.
        is_scale: bool,
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
    activation: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IgnoreRule {
    name: String,
    reason: String,
}

impl Mapping {
    /// Reads a layout file.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), with the file's name; those of [`open_regular`].
    pub fn open(path: &Path) -> Result<Mapping> {
        let mut text = Vec::new();
        // One byte more than allowed, rather than trusting the size: a file may grow, and /proc reports 0.
        open_regular(path)?
            .take(LAYOUT_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::io(path, "cannot read the layout file", e))?;
        let read = std::str::from_utf8(&text).map_err(|_| broken("expected UTF-8")).and_then(Mapping::parse);
        read.map_err(|e| recognize::named(path, &text, e).file(path))
    }

    /// Reads the text of a layout file.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutSyntax`] for what is no TOML or beyond a limit, [`Code::LayoutFile`] for what is no layout.
    pub fn parse(text: &str) -> Result<Mapping> {
        if text.len() as u64 > LAYOUT_BYTES {
            return Err(broken(format!("expected at most {LAYOUT_BYTES} bytes, found more")));
        }
        if deepest_line(text) > LAYOUT_DEPTH {
            return Err(broken(format!("more than {LAYOUT_DEPTH} levels of tables and lists in a line")));
        }
        let located = |new: fn(String) -> Error, e: toml::de::Error| {
            let start = e.span().and_then(|s| text.get(..s.start));
            let place = start.map_or(String::new(), |s| format!("line {}: ", s.lines().count().max(1)));
            new(format!("{place}{}", e.message()))
        };
        let document = toml::de::Deserializer::parse(text).map_err(|e| located(broken, e))?;
        let file = File::deserialize(document).map_err(|e| located(fault, e))?;
        if file.tensor.is_empty() && file.ignore.is_empty() && file.constants.is_empty() {
            return Err(fault("expected [constants], [[tensor]] or [[ignore]], found none of them"));
        }
        let n_patterns = file.tensor.len() + file.ignore.len();
        if n_patterns > LAYOUT_PATTERNS {
            return Err(fault(format!("expected at most {LAYOUT_PATTERNS} entries, found {n_patterns}")));
        }
        let mut constants = Map::new();
        for (key, value) in file.constants {
            if let Some(what) = not_json(&value) {
                return Err(fault(format!("expected a value that JSON has, found {what}")).field(&key));
            }
            let value = serde_json::to_value(&value).map_err(|e| fault(e.to_string()).field(&key))?;
            constants.insert(key, value);
        }
        Ok(Mapping {
            constants,
            rules: file.tensor.into_iter().map(MappingRule::new).collect::<Result<_>>()?,
            ignore: file.ignore.into_iter().map(ignored).collect::<Result<_>>()?,
        })
    }

    /// Refuses more matching than a layout needs, before it is begun; `names_bytes` are those of all names together.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutSyntax`].
    pub fn check_work(&self, names_bytes: usize) -> Result<()> {
        let work = names_bytes.saturating_mul(self.rules.len() + self.ignore.len());
        if work > LAYOUT_WORK_BYTES {
            let n = self.rules.len() + self.ignore.len();
            let message = format!(
                "expected at most {LAYOUT_WORK_BYTES} bytes to match (names times patterns), found {names_bytes} of names times {n} patterns"
            );
            return Err(broken(message));
        }
        Ok(())
    }

    /// To read names with.
    pub fn matching(&self) -> Matching {
        Matching::with(self.patterns())
    }

    fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.rules.iter().map(|r| &r.name).chain(self.ignore.iter().map(|(p, _)| p))
    }

    /// What the file says about `name`; `None` for nothing, which leaves the name to the rules.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutFile`] where two entries match, or the number in a name is none; [`Code::LayoutSyntax`] where matching
    /// takes more than its limits allow, `matching` being what the names before took.
    pub fn read(&self, name: &str, matching: &mut Matching) -> Result<Option<Mapped>> {
        let mut found = Vec::new();
        for (i, pattern) in self.patterns().enumerate() {
            if matching.is_match(i, pattern, name)? {
                found.push((i, pattern));
            }
        }
        let (i, pattern) = match found[..] {
            [] => return Ok(None),
            [one] => one,
            [(_, first), (_, second), ..] => {
                let (first, second) = (first.as_str(), second.as_str());
                let message = format!("expected one entry for a name, found two: {first} and {second}");
                return Err(fault(message).field(name));
            }
        };
        let Some(rule) = self.rules.get(i) else {
            return Ok(Some(Mapped::Ignored(self.ignore[i - self.rules.len()].1.clone())));
        };
        let Some(captures) = pattern.captures(name, matching)? else { return Ok(None) };
        let number = |group: &str| {
            captures.name(group).map(|m| {
                m.as_str().parse::<usize>().map_err(|_| {
                    fault(format!("expected a number in the group {group:?}, found {:?}", m.as_str())).field(name)
                })
            })
        };
        let (layer, head, axes) = (number("layer").transpose()?, number("head").transpose()?, rule.axes.clone());
        Ok(Some(match rule.role {
            MappedRole::Part(part) => Mapped::Part { part, layer, head, axes },
            MappedRole::Gate { map, is_scale } => Mapped::Gate { layer, head, axes, map, is_scale },
        }))
    }
}

/// A layout file, or none, on the way through names.
pub struct Reader<'m>(Option<(&'m Mapping, Matching)>);

impl<'m> Reader<'m> {
    /// Before the first name.
    pub fn of(mapping: Option<&'m Mapping>) -> Self {
        Reader(mapping.map(|m| (m, m.matching())))
    }

    /// [`Mapping::read`]; nothing without a layout file.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read(&mut self, name: &str) -> Result<Option<Mapped>> {
        self.0.as_mut().map_or(Ok(None), |(mapping, matching)| mapping.read(name, matching))
    }
}

impl MappingRule {
    fn role(t: &TensorRule) -> Result<MappedRole> {
        let map = match &t.activation {
            None => GateMap::Identity,
            Some(_) if t.role != GATE => return Err(fault("only a gate has an activation")),
            Some(name) => GateMap::parse(name).ok_or_else(|| {
                let known: Vec<&str> = GateMap::ALL.iter().map(|m| m.name()).collect();
                fault(format!("expected an activation among {}, found {name:?}", known.join(", ")))
            })?,
        };
        if t.role == GATE || t.role == SCALE {
            return Ok(MappedRole::Gate { map, is_scale: t.role == SCALE });
        }
        let spec = PARTS.iter().find(|spec| spec.part.name() == t.role);
        spec.map(|spec| MappedRole::Part(spec.part)).ok_or_else(|| {
            let known: Vec<&str> = PARTS.iter().map(|spec| spec.part.name()).chain([GATE, SCALE]).collect();
            fault(format!("expected a role among {}, found {:?}", known.join(", "), t.role))
        })
    }

    fn new(t: TensorRule) -> Result<MappingRule> {
        let pattern = t.name.clone();
        let place = |e: Error| e.field(&pattern);
        let name = Pattern::new(&t.name).map_err(place)?;
        let role = MappingRule::role(&t).map_err(place)?;
        let has = |group: &str| name.groups().any(|n| n == group);
        if let Some(other) = name.groups().find(|n| !matches!(*n, "layer" | "head")) {
            return Err(place(fault(format!("expected the groups \"layer\" and \"head\", found {other:?}"))));
        }
        let axes = t.axes.as_deref().map(Axes::parse).transpose().map_err(place)?;
        let of_role: &[Axis] = match role {
            MappedRole::Part(part) => PartSpec::of(part).stacked_axes,
            MappedRole::Gate { .. } => &[Axis::Layer, Axis::Head],
        };
        if let Some(axes) = &axes {
            for axis in axes.axes() {
                if !of_role.contains(&axis) {
                    return Err(place(fault(format!("{} has no axis such as in {axes}", t.role))));
                }
            }
            for needed in of_role.iter().filter(|a| !matches!(a, Axis::Layer | Axis::Head)) {
                if !axes.axes().any(|a| a == *needed) {
                    return Err(place(fault(format!("the axes {axes} lack one that {} has", t.role))));
                }
            }
            for (axis, group) in [(Axis::Layer, "layer"), (Axis::Head, "head")] {
                if has(group) && axes.axes().any(|a| a == axis) {
                    return Err(place(fault(format!("the {group} is both in the name and among the axes {axes}"))));
                }
            }
            let is_part = matches!(role, MappedRole::Part(_));
            if is_part && !has("layer") && !axes.axes().any(|a| a == Axis::Layer) {
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

/// Said of every tensor that matches.
fn ignored(rule: IgnoreRule) -> Result<(Pattern, String)> {
    if rule.reason.len() > NAME_BYTES {
        let message = format!("expected a reason of at most {NAME_BYTES} bytes, found {}", rule.reason.len());
        return Err(fault(message).field(&rule.name));
    }
    Ok((Pattern::new(&rule.name)?, rule.reason))
}

fn fault(message: impl Into<String>) -> Error {
    Error::new(Code::LayoutFile, message)
}

/// Of a file that is no TOML, or more than is read.
fn broken(message: impl Into<String>) -> Error {
    Error::new(Code::LayoutSyntax, message)
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
        match m.read("blocks_3_mem1", &mut m.matching()).unwrap() {
            Some(Mapped::Part { part: Part::Memory, layer: Some(3), head: Some(1), axes: Some(axes) }) => {
                assert_eq!(axes.to_string(), "V F");
            }
            _ => panic!(),
        }
        assert!(matches!(m.read("ema.x", &mut m.matching()).unwrap(), Some(Mapped::Ignored(_))));
        assert!(m.read("xblocks_3_mem1", &mut m.matching()).unwrap().is_none(), "whole names only");
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
            tensor("name = 'a'\nrole = 'gate'\naxes = 'F'"),
            tensor("name = 'a'\nrole = 'gate'\nactivation = 'relu'"),
            tensor("name = '(?<layer>x)'\nrole = 'memory'\nactivation = 'tanh'"),
            tensor("name = 'a'\nrole = 'memory_scale'\nactivation = 'tanh'"),
            tensor("role = 'memory'"),
        ];
        for text in cases {
            assert_eq!(Mapping::parse(&text).map(|_| ()).unwrap_err().code(), Code::LayoutFile, "{text}");
        }
        assert_eq!(Mapping::parse("[[tensor").map(|_| ()).unwrap_err().code(), Code::LayoutSyntax);
        let both = Mapping::parse(&format!(
            "{}\n{}",
            tensor("name = 'a(?<layer>\\d+)'\nrole = 'memory'"),
            tensor("name = 'a(?<layer>[0-9]+)'\nrole = 'normalizer'")
        ))
        .unwrap();
        assert!(both.read("a1", &mut both.matching()).is_err());
    }
}
