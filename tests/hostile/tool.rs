//! A sample of every table through the tool: exit code, one escaped line on stderr, no output left.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ptplus::format::limits::{SAFETENSORS_TENSORS, TENSORS};

use crate::case::{Case, MEMORY_MIB};
use crate::gguf_file::Raw;
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
        if exit != Some(code.exit_code().into()) || !one_line || !escaped || !out.stdout.is_empty() {
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

/// Most tensors that a format may have, with long names.
fn most_tensors(dir: &Path) {
    let name = |i: usize| format!("{i:0>60}");
    let tensors = TENSORS as usize;
    let gguf = (0..tensors).fold(Raw::new(), |raw, i| raw.info(name(i).as_bytes(), &[1, 1, 1, 0], 0, 0)).build();
    std::fs::write(dir.join("most.gguf"), gguf).expect("a file");
    let shard = |start: usize, end: usize| {
        let entry =
            |i: usize| format!("\"{}\":{{\"dtype\":\"F32\",\"shape\":[1,1,1,0],\"data_offsets\":[0,0]}}", name(i));
        safetensors::file(&format!("{{{}}}", (start..end).map(entry).collect::<Vec<_>>().join(",")), 0)
    };
    let mut index = Vec::new();
    for start in (0..tensors).step_by(SAFETENSORS_TENSORS) {
        let end = (start + SAFETENSORS_TENSORS).min(tensors);
        std::fs::write(dir.join(format!("{start}.safetensors")), shard(start, end)).expect("a file");
        index.extend((start..end).map(|i| format!("\"{}\":\"{start}.safetensors\"", name(i))));
    }
    let index = format!("{{\"weight_map\":{{{}}}}}", index.join(","));
    std::fs::write(dir.join("most.safetensors.index.json"), index).expect("a file");
}

/// Runs the tool and reads what it prints piece by piece; bytes printed, and its memory while it lived.
fn memory_mib(args: &[&str], dir: &Path) -> (usize, usize) {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_ptplus"))
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool runs");
    let mut stdout = tool.stdout.take().expect("a pipe");
    let (mut piece, mut printed, mut peak) = (vec![0; 1 << 16], 0, 0);
    loop {
        let n = stdout.read(&mut piece).expect("a pipe");
        let status = std::fs::read_to_string(format!("/proc/{}/status", tool.id())).unwrap_or_default();
        let kib =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        peak = peak.max(kib.unwrap_or(0) / 1024);
        printed += n;
        if n == 0 {
            break;
        }
    }
    assert!(tool.wait().expect("the tool ends").success(), "{args:?}");
    (printed, peak)
}

fn check_tables(of: &[(&str, &[&str])]) {
    let dir = tempfile::tempdir().expect("a folder");
    {
        // What is measured is the tool's.
        most_tensors(dir.path());
    }
    for (file, command) in of {
        let args = [*command, &[file]].concat();
        let (printed, peak) = memory_mib(&args, dir.path());
        if std::env::var_os("PTPLUS_SHOW").is_some() {
            println!("{args:?}: {printed} bytes, {peak} MiB");
        }
        assert!(printed > TENSORS as usize * 60 && (10..=MEMORY_MIB).contains(&peak), "{args:?}: {peak} MiB");
    }
}

#[test]
fn tables_of_most_tensors_are_printed_within_the_memory() {
    check_tables(&[("most.gguf", &["inspect", "--json"]), ("most.safetensors.index.json", &["hash", "--tensors"])]);
}

#[test]
#[ignore = "a quarter of a minute"]
fn every_table_of_most_tensors_is_printed_within_the_memory() {
    let commands: [&[&str]; 4] = [&["inspect"], &["inspect", "--json"], &["hash", "--tensors"], &["hash", "--json"]];
    for file in ["most.gguf", "most.safetensors.index.json"] {
        check_tables(&commands.map(|command| (file, command)));
    }
}
