//! A sample of every table through the tool: exit code, one escaped line on stderr, no output left.

use std::path::Path;
use std::process::{Command, Output};

use crate::case::Case;
use crate::{adapter, gguf, gguf_adapter, safetensors};

/// Every how manieth case; each costs a process.
const EVERY: usize = 12;

fn ptplus(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptplus")).args(args).current_dir(dir).output().expect("the tool runs")
}

/// Runs the refused cases of a sample: `place` puts a file into the folder, `args` read it and would write `out.gguf`.
fn check(table: &str, cases: Vec<Case>, place: fn(&Path, &[u8]), args: &[&str]) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases.into_iter().step_by(EVERY) {
        let name = case.name.clone();
        let Some((file, code)) = case.refused() else { continue };
        let dir = tempfile::tempdir().expect("a folder");
        place(dir.path(), &file);
        let out = ptplus(args, dir.path());
        let line = String::from_utf8(out.stderr).expect("UTF-8");
        let lines: Vec<&str> = line.lines().collect();
        // Some refusals list what would settle them, indented below.
        let one_line = matches!(&lines[..], [one, details @ ..]
            if one.ends_with(&format!("[{}]", code.slug())) && details.iter().all(|d| d.starts_with("  ")));
        let escaped = lines.iter().all(|l| !l.chars().any(char::is_control));
        let exit = out.status.code();
        if exit != Some(code.kind().exit_code().into()) || !one_line || !escaped || !out.stdout.is_empty() {
            failures.push(format!("{table}: {name}: expected [{}], found exit {exit:?}: {line}", code.slug()));
        }
        if dir.path().join("out.gguf").exists() {
            failures.push(format!("{table}: {name}: an output is there"));
        }
    }
    failures
}

#[test]
fn refusals_have_an_exit_code_and_one_line_and_leave_nothing() {
    let folder = |dir: &Path, config: &[u8]| {
        std::fs::write(dir.join("adapter_config.json"), config).expect("a file");
        std::fs::write(dir.join("adapter_model.safetensors"), adapter::right_weights()).expect("a file");
    };
    let convert = ["convert", ".", "-o", "out.gguf", "--arch", "llama", "-q"];
    let one = |from: &'static str| ["convert", from, "-o", "out.gguf", "--arch", "llama", "-q"];
    let failures = [
        check(
            "gguf",
            gguf::cases(),
            |dir, file| std::fs::write(dir.join("x.gguf"), file).unwrap(),
            &["inspect", "x.gguf"],
        ),
        check(
            "safetensors",
            safetensors::cases(),
            |dir, file| std::fs::write(dir.join("x.safetensors"), file).unwrap(),
            &["inspect", "x.safetensors"],
        ),
        check(
            "gguf adapter",
            gguf_adapter::cases(),
            |dir, file| std::fs::write(dir.join("x.gguf"), file).unwrap(),
            &one("x.gguf"),
        ),
        check("adapter_config.json", adapter::cases(), folder, &convert),
    ]
    .concat();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
