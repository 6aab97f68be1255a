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
    let mut header = String::from("{");
    let mut n = 0;
    for name in names {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(
            header,
            "{comma}\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1,1,1,1],\"data_offsets\":[{},{}]}}",
            4 * n,
            4 * n + 4
        );
        n += 1;
    }
    safetensors::file(&(header + "}"), 4 * n)
}

pub fn cases() -> Vec<Case> {
    vec![
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

pub fn cases_with_layout() -> Vec<Case> {
    vec![large(
        "255 patterns on 60,000 long names",
        || named((0..60_000).map(|i| format!("{}{i:05}", "qz".repeat(110)))),
        Some(Code::LayoutSyntax),
    )]
}
