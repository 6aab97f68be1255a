//! The map of the code in docs/ARCHITECTURE.md: it names every module, in an order in which each uses those above it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::pages::ROOT;

/// A module's path below the crate, a file's: `["format", "gguf", "read"]`.
type Module = Vec<String>;

/// The rows of the map, in order, each as the modules that it names. The first is what the text above the table says that
/// all use.
struct Map(Vec<BTreeSet<Module>>);

impl Map {
    fn parse(text: &str) -> Map {
        let names = |text: &str| text.split('`').skip(1).step_by(2).filter_map(module).collect();
        let (_, text) = text.split_once("Used by all:").expect("what all modules use");
        let (of_all, table) = text.split_once("\n|").expect("a table");
        let cells = table.lines().skip(2).filter_map(|row| row.strip_prefix("| ")?.split(" |").next());
        Map([names(of_all.split(". ").next().unwrap_or_default())].into_iter().chain(cells.map(names)).collect())
    }

    /// The row that names `module` or, most closely, what it lies in.
    fn row_of(&self, module: &Module) -> Option<usize> {
        (1..=module.len()).rev().find_map(|n| self.0.iter().position(|row| row.contains(&module[..n])))
    }

    fn name(&self, row: usize) -> String {
        self.0[row].iter().map(|m| m.join("/")).collect::<Vec<_>>().join(", ")
    }
}

/// A crate of its own below `src`: what its files call `crate`.
const INNER: &str = "quant";

/// `format/gguf/mod.rs`, `format/gguf/` or `format/gguf.rs`, and `lib.rs` of a crate in a folder; nothing else is a module.
fn module(path: &str) -> Option<Module> {
    let path = ["/mod.rs", "/lib.rs", ".rs", "/"].iter().find_map(|end| path.strip_suffix(end))?;
    Some(path.split('/').map(str::to_owned).collect())
}

/// The files of a crate: by module, path below `src` and text.
type Files = BTreeMap<Module, (String, String)>;

/// A use of another file: by which, `FILE:LINE` of it, of which.
struct Use {
    by: Module,
    place: String,
    of: Module,
}

/// The uses between the files of a crate, by paths that begin with `crate` or `super`, tests left out. A module and what it
/// lies in are not told apart: children see what their parents import and re-export.
fn uses(files: &Files) -> Vec<Use> {
    let mut out = Vec::new();
    for (by, (name, text)) in files {
        let code = code(text);
        for (line, path) in paths(&code) {
            let up = path.iter().take_while(|p| *p == "super").count();
            let root = usize::from(by[0] == INNER);
            let from = &by[..if up > 0 { by.len().saturating_sub(up) } else { root }];
            let rest = &path[up.max(1)..];
            let found = (0..=rest.len()).rev().map(|n| [from, &rest[..n]].concat()).find(|m| files.contains_key(m));
            let is_other = |of: &Module| !by.starts_with(of) && !of.starts_with(by);
            let place = format!("src/{name}:{line}");
            out.extend(found.filter(is_other).map(|of| Use { by: by.clone(), place, of }));
        }
    }
    out
}

/// `text` with spaces for comments, strings and the module of tests; lines stay.
fn code(text: &str) -> String {
    let pattern = concat!(
        r"(?s)//[^\n]*|/\*.*?\*/",
        r####"|r###".*?"###|r##".*?"##|r#".*?"#|r"[^"]*""####,
        r#"|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\[^']+)'|b'\\''"#
    );
    let blank =
        |found: &regex::Captures<'_>| found[0].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    let code = regex::Regex::new(pattern).unwrap().replace_all(text, blank).into_owned();
    match code.find("#[cfg(test)]\nmod tests {") {
        Some(start) => code[..start].to_owned(),
        None => code,
    }
}

/// Every path in `code` that begins with `crate` or `super`, with its line; those of braces one by one.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let token = regex::Regex::new(r"\w+|::|[{},*]|\S").unwrap();
    let tokens: Vec<(usize, &str)> = token.find_iter(code).map(|t| (t.start(), t.as_str())).collect();
    let line = |at: usize| 1 + code[..at].matches('\n').count();
    let mut out = Vec::new();
    for (i, (at, word)) in tokens.iter().enumerate() {
        let is_start = matches!(*word, "crate" | "super") && (i == 0 || tokens[i - 1].1 != "::");
        if is_start && tokens.get(i + 1).is_some_and(|t| t.1 == "::") {
            let mut leaves = Vec::new();
            leaves_of(&tokens[i..], &mut 0, &[], &mut leaves);
            out.extend(leaves.into_iter().map(|path| (line(*at), path)));
        }
    }
    out
}

/// The paths of the tree of uses that begins at `tokens[*i]`.
fn leaves_of(tokens: &[(usize, &str)], i: &mut usize, before: &[String], out: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    while let Some((_, word)) = tokens.get(*i) {
        *i += 1;
        if *word == "{" {
            while !matches!(tokens.get(*i), None | Some((_, "}"))) {
                if tokens[*i].1 == "," { *i += 1 } else { leaves_of(tokens, i, &path, out) }
            }
            *i += 1;
            return;
        }
        path.push((*word).to_owned());
        if tokens.get(*i).is_none_or(|t| t.1 != "::") {
            // `as NAME`
            while tokens.get(*i).is_some_and(|t| !before.is_empty() && !matches!(t.1, "," | "}")) {
                *i += 1;
            }
            break;
        }
        *i += 1;
    }
    out.push(path);
}

/// Uses of what stands further down in the map, and modules that it does not name.
fn upwards(map: &Map, files: &Files) -> Vec<String> {
    let unnamed = files.iter().filter(|(m, _)| map.row_of(m).is_none());
    let mut out: Vec<String> = unnamed.map(|(_, (name, _))| format!("src/{name} is in no row")).collect();
    for u in uses(files) {
        if let (Some(own), Some(other)) = (map.row_of(&u.by), map.row_of(&u.of))
            && other > own
        {
            let of = u.of.join("::");
            out.push(format!("{}: crate::{of} of the row {}, below {}", u.place, map.name(other), map.name(own)));
        }
    }
    out
}

/// Files that use each other, round about: a circle, where there is one.
fn circle(files: &Files) -> Option<Vec<String>> {
    let uses = uses(files);
    let mut left: BTreeSet<&Module> = files.keys().collect();
    // Whoever uses nobody that is left is in no circle.
    while let Some(done) = left.iter().find(|m| !uses.iter().any(|u| u.by == ***m && left.contains(&u.of))).copied() {
        left.remove(done);
    }
    let mut steps: Vec<&Use> = Vec::new();
    let mut at = *left.first()?;
    while !steps.iter().any(|u| u.by == *at) {
        let step = uses.iter().find(|u| u.by == *at && left.contains(&u.of))?;
        (at, _) = (&step.of, steps.push(step));
    }
    let steps = steps.iter().skip_while(|u| u.by != *at);
    Some(steps.map(|u| format!("{} uses {}", u.place, u.of.join("::"))).collect())
}

/// Every file of the crate but those that declare it and those of tests.
fn files() -> Files {
    fn add(folder: &Path, out: &mut Files) {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.strip_prefix(Path::new(ROOT).join("src")).unwrap().to_str().unwrap();
            match module(name).filter(|_| path.is_file()) {
                _ if path.is_dir() => add(&path, out),
                Some(m) if !matches!(m.last().map(String::as_str), Some("lib" | "main" | "tests")) => {
                    out.insert(m, (name.to_owned(), std::fs::read_to_string(&path).unwrap()));
                }
                _ => {}
            }
        }
    }
    let mut out = Files::new();
    add(&Path::new(ROOT).join("src"), &mut out);
    out
}

/// The section of the page.
fn section() -> String {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/ARCHITECTURE.md")).unwrap();
    let (_, map) = text.split_once("\n## Map\n").unwrap();
    map.split_once("\n## ").unwrap().0.to_owned()
}

#[test]
fn the_map_names_what_there_is() {
    let text = section();
    let named: BTreeSet<&str> = text.split('`').skip(1).step_by(2).collect();
    for path in named.iter().filter(|n| n.contains('/') || n.ends_with(".rs")) {
        let exists = ["", "src"].iter().any(|folder| Path::new(ROOT).join(folder).join(path).exists());
        assert!(exists, "docs/ARCHITECTURE.md: there is no {path}");
    }
}

#[test]
fn a_row_of_the_map_uses_rows_above_it() {
    let (map, files) = (Map::parse(&section()), files());
    assert!(files.len() > 200 && uses(&files).len() > 1000, "{} files", files.len());
    let wrong = upwards(&map, &files);
    assert!(wrong.is_empty(), "docs/ARCHITECTURE.md: {wrong:#?}");
}

#[test]
fn no_files_use_each_other_round_about() {
    assert_eq!(circle(&files()), None);
}

#[test]
fn a_use_upwards_and_a_circle_are_found() {
    let map = "Used by all: `error.rs` (codes). Text with `other.rs`.\n\n| module | what |\n|---|---|\n| `low/` | `high/` uses it |\n\
               | `high/a.rs`, `mid.rs` | |\n| `high/` | |\n";
    let map = Map::parse(map);
    let files = |texts: &[(&str, &str)]| {
        let all = ["error.rs", "low/mod.rs", "low/b.rs", "mid.rs", "high/mod.rs", "high/a.rs", "high/b.rs"];
        let text = |name: &str| texts.iter().find(|(n, _)| *n == name).map_or(String::new(), |(_, t)| (*t).to_owned());
        all.iter().map(|name| (module(name).unwrap(), ((*name).to_owned(), text(name)))).collect::<Files>()
    };
    for (name, text, expected) in [
        ("low/b.rs", "use crate::mid::X;", "src/low/b.rs:1: crate::mid of the row high/a, mid, below low"),
        (
            "low/b.rs",
            "fn f() {\n    let x = crate::high::b::f(1);\n}",
            "src/low/b.rs:2: crate::high::b of the row high, below low",
        ),
        (
            "low/b.rs",
            "use crate::{\n    error::E as F,\n    high::{a::Y, X},\n};",
            "src/low/b.rs:1: crate::high::a of the row high/a, mid, below low",
        ),
        ("low/mod.rs", "use super::high;", "src/low/mod.rs:1: crate::high of the row high, below low"),
        ("high/a.rs", "use super::b::{self, X};", "src/high/a.rs:1: crate::high::b of the row high, below high/a, mid"),
        ("error.rs", "use crate::low::X;", "src/error.rs:1: crate::low of the row low, below error"),
    ] {
        let wrong = upwards(&map, &files(&[(name, text)]));
        assert_eq!(wrong.first().map(String::as_str), Some(expected), "{text}: {wrong:?}");
    }
    for text in [
        "// crate::high::X\nlet x = \"crate::high::X\"; /* crate::high */ let y = r#\"crate::high\"#;",
        "use crate::error::X;\nuse super::low;\n#[cfg(test)]\nmod tests {\n    use crate::high::X;\n}",
    ] {
        assert_eq!(upwards(&map, &files(&[("low/b.rs", text)])), [""; 0], "{text}");
    }
    assert_eq!(upwards(&Map::parse("Used by all:\n| a |\n"), &files(&[])).len(), 7);
    assert_eq!(
        circle(&files(&[("high/b.rs", "use super::a::X; use crate::low::Y;"), ("mid.rs", "use crate::high::b::Z;")])),
        None
    );
    let found = circle(&files(&[
        ("high/b.rs", "use super::a::X;"),
        ("high/a.rs", "use crate::mid::Y;"),
        ("mid.rs", "use crate::high::b::Z;"),
    ]));
    let circle = ["src/high/a.rs:1 uses mid", "src/mid.rs:1 uses high::b", "src/high/b.rs:1 uses high::a"];
    assert_eq!(found.unwrap(), circle);
}

#[test]
fn a_crate_in_a_folder_has_files_of_its_own() {
    let texts = [
        ("quant/lib.rs", ""),
        ("quant/a.rs", "use crate::b::X;"),
        ("quant/b.rs", ""),
        ("b.rs", "use crate::quant::a::X;"),
    ];
    let files: Files = texts.map(|(name, text)| (module(name).unwrap(), (name.to_owned(), text.to_owned()))).into();
    let found: Vec<_> = uses(&files).into_iter().map(|u| (u.by.join("::"), u.of.join("::"))).collect();
    let expected = [("b", "quant::a"), ("quant::a", "quant::b")];
    assert_eq!(found, expected.map(|(by, of)| (by.to_owned(), of.to_owned())));
}
