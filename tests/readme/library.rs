//! The page about the library: its code is that of the examples, which are run; its features are those of the crate.

use std::path::Path;
use std::process::Command;

use crate::common::{self, model};
use crate::pages::{Page, ROOT};

#[allow(dead_code)] // `main`
#[path = "../../examples/convert.rs"]
mod convert;
#[allow(dead_code)]
#[path = "../../examples/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../examples/pack.rs"]
mod pack;
#[allow(dead_code)]
#[path = "../../examples/verify.rs"]
mod verify;

const PAGE: &str = "docs/howto/library.md";

#[test]
fn the_code_of_the_page_is_that_of_the_examples() {
    let page = Page::read(PAGE);
    let shown: Vec<String> = page.blocks().filter(|b| b.language == "rust").map(|b| b.text()).collect();
    let files = ["files", "convert", "verify", "pack"].map(|name| {
        let text = std::fs::read_to_string(Path::new(ROOT).join(format!("examples/{name}.rs"))).unwrap();
        let start = text.find("use std::path::Path;").unwrap();
        text[start..text.find("\nfn main()").unwrap()].to_owned()
    });
    assert!(shown.iter().map(String::as_str).eq(files.iter().map(String::as_str)), "{PAGE} and examples/ differ");
}

#[test]
fn the_examples_do_their_jobs() {
    let m = model("llama-gqa");
    let [adapter, base, probe] = ["adapter", "base", "probe.safetensors"].map(|name| m.join(name));
    let temp = tempfile::tempdir().unwrap();
    let (converted, bundle) = (temp.path().join("adapter.gguf"), temp.path().join("bundle"));
    let own = temp.path().join("own.gguf");
    files::run(&adapter, &base, &own).unwrap();
    let written = ptplus::format::gguf::open(&own).unwrap();
    assert!(!written.tensors.is_empty() && written.tensors.iter().all(|t| t.dtype == ptplus::tensor::DType::Q8_0));
    convert::run(&adapter, &base, &probe, &converted).unwrap();
    assert!(verify::run(&converted, &base, &probe).unwrap());
    pack::run(&adapter, &base, &probe, &bundle).unwrap();
    assert_eq!(common::exit(&common::ptplus(["check".as_ref(), bundle.as_os_str()])), 0);
    // Another probe's answer is not this adapter's.
    let other = model("llama-pre-rope").join("probe.safetensors");
    assert!(!matches!(verify::run(&converted, &base, &other), Ok(true)));
}

#[test]
fn the_page_has_every_feature() {
    let manifest = std::fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let (_, features) = manifest.split_once("\n[features]\n").unwrap();
    let lines = features.lines().take_while(|l| !l.starts_with('[')).filter_map(|l| l.split_once(" = "));
    let features: Vec<(&str, &str)> = lines.collect();
    let default = features.iter().find(|(name, _)| *name == "default").unwrap().1;
    let text = std::fs::read_to_string(Path::new(ROOT).join(PAGE)).unwrap();
    let mut expected = Vec::new();
    for (name, _) in features.iter().filter(|(name, _)| *name != "default") {
        let by_default = if default.contains(&format!("\"{name}\"")) { "yes" } else { "no" };
        expected.push(format!("| `{name}` | {by_default} | "));
    }
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| `")).collect();
    for row in &expected {
        assert!(rows.iter().any(|r| r.starts_with(row)), "{PAGE}: no row {row}");
    }
    assert_eq!(rows.len(), expected.len(), "{rows:?}");
}

/// Cargo resolves what the page says to write into `Cargo.toml`.
#[test]
fn the_dependency_of_the_page_resolves() {
    let page = Page::read(PAGE);
    let dependency = page.blocks().find(|b| b.language == "toml").unwrap().text();
    assert!(dependency.contains("path = \"../ptplus\""), "{dependency}");
    let temp = tempfile::tempdir().unwrap();
    let path = format!("path = {:?}", ROOT);
    let manifest = format!(
        "[package]\nname = \"mine\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n{}",
        dependency.replace("path = \"../ptplus\"", &path)
    );
    std::fs::write(temp.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::create_dir(temp.path().join("src")).unwrap();
    std::fs::write(temp.path().join("src/lib.rs"), "").unwrap();
    // The versions that are here already: the test needs no network.
    std::fs::copy(Path::new(ROOT).join("Cargo.lock"), temp.path().join("Cargo.lock")).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p} {f}"];
    let out = Command::new(cargo).args(args).current_dir(temp.path()).output().expect("cargo");
    let text = common::stdout(&out);
    assert_eq!(common::exit(&out), 0, "{}", common::stderr(&out));
    assert!(text.lines().any(|l| l.starts_with("ptplus v") && l.ends_with(" runner")), "{text}");
    assert!(text.contains("candle-core v") && !text.contains("clap v"), "{text}");
}
