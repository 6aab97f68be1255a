//! Weights with very many tensors of an adapter, as a safetensors file without a configuration: reading takes no more
//! than a look at each.

use std::fmt::Write as _;

use ptplus::error::{Code, Result};
use ptplus::import::{self, Options};

use crate::case::{Case, large};
use crate::safetensors;

pub fn read(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, weights).expect("a file");
    import::read(&path, &Options::default(), None).map(drop)
}

/// The same, beside a layout file of the most patterns.
pub fn read_with_layout(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, weights).expect("a file");
    let layout = dir.path().join("layout.toml");
    let rule =
        |i: usize| format!("[[tensor]]\nname='(.*q.*z){{1,15}}{i}(?<layer>[0-9]+)'\nrole='memory'\naxes='H F V'\n");
    std::fs::write(&layout, (0..255).map(rule).collect::<String>()).expect("a file");
    import::read(&path, &Options { layout: Some(layout), ..Options::default() }, None).map(drop)
}

/// Tensors of one F32 element each.
fn named(names: impl Iterator<Item = String>) -> Vec<u8> {
    shaped(names, &[1, 1, 1, 1])
}

fn shaped(names: impl Iterator<Item = String>, shape: &[usize]) -> Vec<u8> {
    mixed(names.map(|name| (name, shape)))
}

fn mixed<'a>(tensors: impl Iterator<Item = (String, &'a [usize])>) -> Vec<u8> {
    let mut header = String::from("{");
    let mut end = 0;
    for (name, shape) in tensors {
        let (begin, comma) = (end, if end == 0 { "" } else { "," });
        end += 4 * shape.iter().product::<usize>();
        let _ = write!(
            header,
            "{comma}\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{},{}]}}",
            begin, end
        );
    }
    safetensors::file(&(header + "}"), end)
}

/// What `inspect --suggest-layout` reads.
pub fn read_for_suggestion(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, weights).expect("a file");
    let draft = import::suggest_layout(&path, None)?;
    // Whatever the names are, a draft is a layout file that can be read.
    import::mapping::Mapping::parse(&draft).map(drop)
}

pub fn cases_of_suggestion() -> Vec<Case> {
    vec![
        large("60,000 names of 50 numbers", || named((0..60_000).map(numbers)), None),
        large("60,000 names that are nothing alike", || named((0..60_000).map(letters)), None),
    ]
}

/// 50 numbers with letters between.
fn numbers(i: usize) -> String {
    (0..50).map(|k| (i * (k + 1)).to_string()).collect::<Vec<_>>().join("g").chars().take(250).collect()
}

/// A number in letters.
fn letters(i: usize) -> String {
    (0..6).map(|k| char::from(b'g' + ((i >> (4 * k)) & 15) as u8)).collect::<String>().repeat(30)
}

pub fn cases() -> Vec<Case> {
    vec![
        large(
            "65,536 heads of one layer",
            || shaped((0..65_536).map(|i| format!("layers.0.heads.{i}.memory")), &[1, 1]),
            Some(Code::ConventionOpen),
        ),
        large(
            "1,000 stacks of 4,096 layers",
            || shaped((0..1_000).map(|i| format!("x{i}q.memory")), &[4096, 1, 1, 1]),
            Some(Code::ConventionOpen),
        ),
        large(
            "a stack of 4,096 layers, and 1,000 of heads",
            || {
                let heads = (0..1_000).map(|i| (format!("heads.{i}.memory"), &[4096, 1, 1][..]));
                mixed(std::iter::once(("memory".to_owned(), &[4096, 1, 1, 1][..])).chain(heads))
            },
            Some(Code::ConventionOpen),
        ),
        large(
            "65 stacks of heads of 1,024 layers",
            || shaped((0..65).map(|i| format!("heads.{i}.memory")), &[1024, 1, 1]),
            Some(Code::AdapterShape),
        ),
        large(
            "two names of adapters, 32,768 tensors of each",
            || {
                let name = |i: usize, end: &str| format!("layers.{}.heads.{}.memory{end}", i / 256, i % 256);
                named((0..32_768).flat_map(|i| [name(i, ""), name(i, ".other")]))
            },
            Some(Code::ConventionOpen),
        ),
        large(
            "65,536 stacked tensors",
            || named((0..65_536).map(|i| format!("x{i}q.memory"))),
            Some(Code::ConventionOpen),
        ),
    ]
}

/// The same, beside a layout file whose pattern is in a state of its own after every byte.
pub fn read_with_slow_layout(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, weights).expect("a file");
    let layout = dir.path().join("layout.toml");
    let rule = "[[tensor]]\nname='[ab]*a[ab]{120}y?(?<layer>[0-9]+)'\nrole='memory'\naxes='H F V'\n";
    std::fs::write(&layout, rule).expect("a file");
    import::read(&path, &Options { layout: Some(layout), ..Options::default() }, None).map(drop)
}

pub fn cases_with_slow_layout() -> Vec<Case> {
    vec![large(
        "60,000 long names",
        || named((0..60_000).map(|i| letters_a_and_b(i) + &i.to_string())),
        Some(Code::LayoutSyntax),
    )]
}

/// 240 letters without a period.
fn letters_a_and_b(seed: usize) -> String {
    let mut state = seed as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 0 { 'a' } else { 'b' }
    };
    (0..240).map(|_| next()).collect()
}

pub fn cases_with_layout() -> Vec<Case> {
    vec![large(
        "255 patterns on 60,000 long names",
        || named((0..60_000).map(|i| format!("{}{i:05}", "qz".repeat(110)))),
        Some(Code::LayoutSyntax),
    )]
}
