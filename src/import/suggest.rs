//! A first draft of a layout file, from the names and shapes found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::axes::{Axes, Axis};
use super::draft::KnownSizes;
use super::model_config;
use super::rules::{self, Meaning, Rule};
use super::source::{self, Source, SourceTensor, TensorSource};
use super::stated::Stated;
use crate::adapter::Part;
use crate::adapter::plus::PartSpec;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result, is_hidden};
use crate::format::limits::LAYOUT_PATTERNS;
use crate::tensor::shape;

/// Names with the same pattern.
struct Group {
    pattern: String,
    example: String,
    n_tensors: usize,
    n_numbers: usize,
    shape: Vec<usize>,
    same_shape: bool,
    dtype: String,
    meaning: Meaning,
}

/// The text of a layout file for the tensors at `path`: one entry for each pattern of names, with roles and axes as far
/// as names and shapes suggest them, and the rest to fill in. It always parses.
///
/// # Errors
///
/// Those of the formats; [`Code::AdapterKind`] for GGUF, which has one layout.
pub fn suggest_layout(path: &Path, base: Option<&BaseModel>) -> Result<String> {
    let Source::Tensors(source) = source::open(path)? else {
        return Err(
            Error::new(Code::AdapterKind, "expected a checkpoint, found GGUF, which needs no layout file").file(path)
        );
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut n_left_out = 0;
    let varying = varying(source.tensors.iter().map(|t| t.name.as_str()));
    for t in &source.tensors {
        let meaning = rules::read(&t.name);
        let (pattern, n_numbers) = pattern(&t.name, &varying);
        match places.get(&pattern) {
            Some(&i) => {
                groups[i].n_tensors += 1;
                groups[i].same_shape &= groups[i].shape == t.shape();
            }
            None if groups.len() == LAYOUT_PATTERNS => n_left_out += 1,
            None => {
                places.insert(pattern.clone(), groups.len());
                groups.push(group(t, pattern, n_numbers, meaning));
            }
        }
    }
    let mut out = text(&groups, &known(&source, base));
    if n_left_out > 0 {
        let _ = writeln!(out, "\n# {n_left_out} more tensors: a layout file has at most {LAYOUT_PATTERNS} entries.");
    }
    Ok(out)
}

/// The sizes that base and configuration say, as far as the latter can be read.
fn known(source: &TensorSource, base: Option<&BaseModel>) -> KnownSizes {
    let config = match (&source.config, &source.model_config) {
        (Some((_, config)), _) => config.clone(),
        (None, Some((_, model))) => model_config::statements(model).into(),
        (None, None) => Value::Object(Default::default()),
    };
    let stated = Stated::from_json(config).unwrap_or_default().sizes;
    let known = stated.or_base(base);
    KnownSizes {
        n_layers: known.n_layers,
        n_heads: known.n_heads.into_iter().chain(known.n_kv_heads).chain(known.n_heads.map(|_| 1)).collect(),
        features: known.n_features,
        value: stated.head_dim.or(known.value_head_dim),
        query: known.head_dim,
    }
}

fn group(t: &SourceTensor, pattern: String, n_numbers: usize, meaning: Meaning) -> Group {
    Group {
        pattern,
        example: t.name.clone(),
        n_tensors: 1,
        n_numbers,
        shape: t.shape().to_vec(),
        same_shape: true,
        dtype: t.dtype().name().into(),
        meaning,
    }
}

/// The name cut at its numbers: text, number, text, ...
fn cut(name: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[start..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |e| start + e);
        out.extend([&rest[..start], &rest[start..end]]);
        rest = &rest[end..];
    }
    out.push(rest);
    out
}

/// The numbers that differ between names which are otherwise alike: by the name without its numbers, each place's values.
type Varying<'a> = BTreeMap<String, Vec<Place<'a>>>;

/// A number's first value, and whether another name has another.
struct Place<'a> {
    first: &'a str,
    varies: bool,
}

/// Numbers of a name that are looked at: layer, head, and a few that count something else.
const MAX_NUMBERS: usize = 8;

fn varying<'a>(names: impl Iterator<Item = &'a str>) -> Varying<'a> {
    let mut out = Varying::new();
    for name in names {
        let pieces = cut(name);
        let numbers = || pieces.iter().skip(1).step_by(2).take(MAX_NUMBERS);
        let places = out
            .entry(skeleton(&pieces))
            .or_insert_with(|| numbers().map(|first| Place { first, varies: false }).collect());
        for (place, number) in places.iter_mut().zip(numbers()) {
            place.varies |= place.first != *number;
        }
    }
    out
}

fn skeleton(pieces: &[&str]) -> String {
    pieces.iter().step_by(2).copied().collect::<Vec<_>>().join("0")
}

/// The name as a regular expression: the first number in it is the layer, the second the head. And how many there are.
fn pattern(name: &str, varying: &Varying) -> (String, usize) {
    let pieces = cut(name);
    let values = varying.get(&skeleton(&pieces));
    let mut out = String::new();
    let mut n = 0;
    for (i, pair) in pieces.chunks(2).enumerate() {
        for c in regex::escape(pair[0]).chars() {
            if c.is_control() || is_hidden(c) {
                let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
            } else {
                out.push(c);
            }
        }
        let Some(number) = pair.get(1) else { break };
        // A digit in a word (`fc1`) counts nothing, unless other names have another one there.
        let in_word = pair[0].ends_with(char::is_alphabetic) && !ends_with_counter(pair[0]);
        let varies = values.and_then(|v| v.get(i)).is_some_and(|place| place.varies);
        match n {
            _ if in_word && !varies => {
                out.push_str(number);
                continue;
            }
            0 => out.push_str("(?<layer>[0-9]+)"),
            1 => out.push_str("(?<head>[0-9]+)"),
            _ => out.push_str("[0-9]+"),
        }
        n += 1;
    }
    (out, n)
}

/// `layer3`, `head12`, `block7`, `h0`: words that people write against their number.
fn ends_with_counter(text: &str) -> bool {
    let word = text.rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or("");
    matches!(
        word.to_ascii_lowercase().as_str(),
        "layer" | "layers" | "l" | "head" | "heads" | "h" | "block" | "blocks" | "mem" | "memory" | "m"
    )
}

fn text(groups: &[Group], known: &KnownSizes) -> String {
    let mut out = String::from(
        "# A first draft. Check every role and every order of axes: they were guessed from names and shapes.\n\
         #   name  regular expression for whole names; the groups layer and head count from 0\n\
         #   role  memory, feature.weight, feature.bias, normalizer; gate or memory_scale for factors\n\
         #   axes  stored order, outermost first: L layer, H head, F feature, V value, D query; (H F) is one stored axis,\n\
         #         1 one of length 1 that is none of these.\n\
         #         Without axes the orientation stays open, and a flag or a probe must settle it.\n\n\
         # What adapter_config.json does not state; without it a flag or a probe must.\n\
         [constants]\n\
         # feature_map = \"elu\"\n# query_tap = \"post_rope\"\n# query_scale = 1.0\n# memory_scale = 1.0\n\
         # memory_sharing = \"per_head\"\n",
    );
    // The names that nothing knows, if no rule knows any: something among them must be the memories.
    let no_memory =
        !groups.iter().any(|g| matches!(g.meaning, Meaning::Part { rule: Rule { part: Part::Memory, .. }, .. }));
    let mut n_tensors = 0;
    for g in groups {
        let (role, sure) = match &g.meaning {
            Meaning::Part { rule, .. } => (Some(rule.part), true),
            Meaning::Ignored(reason) => {
                entry(&mut out, g, "ignore", &[format!("reason = {}", quoted(reason))]);
                continue;
            }
            Meaning::Scale { .. } => {
                entry(&mut out, g, "tensor", &["role = \"memory_scale\"".into()]);
                n_tensors += 1;
                continue;
            }
            Meaning::Unknown { .. } if is_gate(g) => {
                let lines = [
                    "role = \"gate\"   # guessed",
                    "# activation = \"sigmoid\"   # or tanh, exp, where the code has one",
                ];
                entry(&mut out, g, "tensor", &lines.map(String::from));
                n_tensors += 1;
                continue;
            }
            Meaning::Unknown { .. } => (guess(g, no_memory), false),
        };
        match role {
            Some(role) => {
                n_tensors += 1;
                let mut lines =
                    vec![format!("role = {}{}", quoted(role.name()), if sure { "" } else { "   # guessed" })];
                match axes(role, g, known) {
                    Some(axes) => lines.push(format!("axes = {}   # check", quoted(&axes))),
                    None => lines.push("# axes = \"...\"   # no order fits this role; fill in".into()),
                }
                entry(&mut out, g, "tensor", &lines);
            }
            None => entry(&mut out, g, "ignore", &[format!("reason = {}   # check", quoted("not the adapter's"))]),
        }
    }
    if n_tensors == 0 {
        out.push_str("\n# Nothing looks like a memory. One entry must say where they are:\n[[tensor]]\nname = 'layers\\.(?<layer>[0-9]+)\\.FILL_IN'\nrole = \"memory\"\naxes = \"H F V\"\n");
    }
    out
}

fn entry(out: &mut String, g: &Group, kind: &str, lines: &[String]) {
    let more = if g.same_shape { "" } else { " and other shapes" };
    let example = crate::error::escape(&g.example);
    let _ = write!(
        out,
        "\n# {} such as {example}: {} {}{more}\n[[{kind}]]\nname = {}\n",
        g.n_tensors,
        g.dtype,
        shape::display(&g.shape),
        quoted(&g.pattern)
    );
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

/// Whether a few numbers have the name of a factor.
fn is_gate(g: &Group) -> bool {
    let lower = g.example.to_ascii_lowercase();
    let n_long = g.shape.iter().filter(|n| **n != 1).count();
    n_long <= 2
        && g.shape.iter().all(|n| *n <= 128)
        && ["gate", "scale", "alpha"].iter().any(|word| lower.contains(word))
}

/// What an unknown name may be, by its words and rank.
fn guess(g: &Group, no_memory: bool) -> Option<Part> {
    let lower = g.example.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    let is_matrix = g.shape.len() + g.n_numbers.min(2) >= 3;
    if has(&["optim", "exp_avg", "lora"]) {
        None
    } else if has(&["normali", "denom"]) {
        Some(Part::Normalizer)
    } else if has(&["feature", "phi", "proj_q"]) {
        Some(if has(&["bias"]) { Part::FeatureBias } else { Part::FeatureWeight })
    } else if is_matrix && (has(&["mem", "prefix", "ptplus"]) || (no_memory && g.shape.len() >= 2)) {
        Some(Part::Memory)
    } else {
        None
    }
}

/// The order of what the name leaves to be stored, as far as sizes tell, else the canonical one; heads flattened where one
/// dimension is missing.
fn axes(role: Part, g: &Group, known: &KnownSizes) -> Option<String> {
    let own = &PartSpec::of(role).stacked_axes[g.n_numbers.min(2)..];
    let single = |axes: &[Axis]| Axes::new(axes.iter().map(|a| vec![*a]).collect());
    if own.len() == g.shape.len() {
        return Some(single(&known.order(own, &g.shape).unwrap_or_else(|| own.to_vec())).to_string());
    }
    if own.len() < g.shape.len() {
        // Some dimensions of length 1 are none of the role's.
        let mut n_over = g.shape.len() - own.len();
        let mut axes = own.iter();
        let place = |&n: &usize| {
            if n == 1 && n_over > 0 {
                n_over -= 1;
                return Some(Vec::new());
            }
            axes.next().map(|a| vec![*a])
        };
        return g.shape.iter().map(place).collect::<Option<Vec<_>>>().map(|axes| Axes::new(axes).to_string());
    }
    if own.len() != g.shape.len() + 1 || !own.contains(&Axis::Head) {
        return None;
    }
    let kept: Vec<Axis> = own.iter().copied().filter(|a| *a != Axis::Head).collect();
    let at = match &g.shape[..] {
        // The heads are in the dimension that is too long.
        [.., rows, columns] if PartSpec::of(role).is_matrix() => {
            let last = kept.len() - 1;
            let fits = known.allows(kept[last], *columns);
            let is_last = if fits && known.allows(kept[last - 1], *rows) { columns > rows } else { !fits };
            if is_last { last } else { last - 1 }
        }
        _ => kept.iter().position(|a| *a == Axis::Feature)?,
    };
    let group = |(i, a): (usize, &Axis)| if i == at { vec![Axis::Head, *a] } else { vec![*a] };
    Some(Axes::new(kept.iter().enumerate().map(group).collect()).to_string())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::mapping::Mapping;

    #[test]
    fn drafts_parse_and_cover_every_name() {
        let file = |name: &str, shape: &[usize]| {
            let (pattern, n) = pattern(name, &Varying::new());
            Group {
                pattern,
                example: name.into(),
                n_tensors: 1,
                n_numbers: n,
                shape: shape.to_vec(),
                same_shape: true,
                dtype: "F32".into(),
                meaning: rules::read(name),
            }
        };
        let names: [(&str, &[usize]); 7] = [
            ("blocks_3_mem1", &[4, 4]),
            ("net[2].ctrl \"x\"\n.kernel", &[3, 4, 4]),
            ("optimizer.state.0.exp_avg", &[4]),
            ("model.layers.0.mlp.fc1.weight", &[4, 4]),
            ("layer7.head2.W'", &[4, 4]),
            ("plain", &[2, 3, 4, 4]),
            ("layers.0.mem\u{61c}ory\u{202e}", &[3, 4, 4]),
        ];
        let unknown = KnownSizes { n_layers: None, n_heads: Vec::new(), features: None, value: None, query: None };
        let text = text(&names.map(|(n, s)| file(n, s)), &unknown);
        assert!(!text.contains(is_hidden), "{text}");
        let mapping = Mapping::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for (name, _) in names {
            assert!(mapping.read(name, &mut mapping.matching()).unwrap().is_some(), "{name}\n{text}");
        }
        assert_eq!(pattern("layer7.head2.fc1", &Varying::new()).0, r"layer(?<layer>[0-9]+)\.head(?<head>[0-9]+)\.fc1");
        let seen = varying(["b_0_c0", "b_0_c1", "b_1_c0"].into_iter());
        assert_eq!(pattern("b_0_c1", &seen).0, "b_(?<layer>[0-9]+)_c(?<head>[0-9]+)");
        assert!(Mapping::parse(&super::text(&[], &unknown)).is_ok());
        // Of heads that are flattened, the dimension that is too long has them.
        let known =
            KnownSizes { n_layers: Some(2), n_heads: vec![7, 1], features: None, value: Some(32), query: Some(32) };
        for (name, shape, order, by_size) in [
            ("layers.0.mem", &[32, 96][..], "F (H V)", "F (H V)"),
            ("layers.0.mem", &[96, 32], "(H F) V", "(H F) V"),
            ("layers.0.mem", &[224, 224], "(H F) V", "F (H V)"),
            ("layers.0.mem", &[32, 32], "(H F) V", "(H F) V"),
            ("mem", &[7, 2, 32, 32], "L H F V", "H L F V"),
            ("layers.0.phi.weight", &[224, 32], "(H F) D", "(H F) D"),
            ("layers.0.normalizer", &[224], "(H F)", "(H F)"),
        ] {
            let role = guess(&file(name, shape), true).unwrap();
            assert_eq!(axes(role, &file(name, shape), &unknown).unwrap(), order, "{name} {shape:?}");
            assert_eq!(axes(role, &file(name, shape), &known).unwrap(), by_size, "{name} {shape:?}");
        }
    }
}
