//! A stream that nobody reads, or that takes nothing more, changes nothing about what a command has done: no panic, outputs
//! in their places, and the exit code of the work.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{exit, model, ptplus, stderr};

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Whoever read it has gone.
    Broken,
    /// It takes nothing, as a full disk.
    Full,
    /// The process was started without it.
    Closed,
}

const FAULTS: [Fault; 3] = [Fault::Broken, Fault::Full, Fault::Closed];

fn stream(fault: Fault) -> Stdio {
    match fault {
        Fault::Broken => {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer.into()
        }
        Fault::Full => OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
        Fault::Closed => Stdio::inherit(),
    }
}

/// The exit code with these streams; `None` stands for one that is read.
fn run(args: &[String], stdout: Option<Fault>, stderr: Option<Fault>) -> Option<i32> {
    // A shell closes what is to be closed.
    let closed = |fault, number| if fault == Some(Fault::Closed) { format!(" {number}>&-") } else { String::new() };
    let line = format!("exec \"$@\"{}{}", closed(stdout, 1), closed(stderr, 2));
    let mut command = Command::new("sh");
    command.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_ptplus")]).args(args).stdin(Stdio::null());
    command.stdout(stdout.map_or_else(Stdio::null, stream)).stderr(stderr.map_or_else(Stdio::null, stream));
    command.status().unwrap().code()
}

struct Case {
    args: Vec<String>,
    /// What it makes; it is removed before each run.
    output: Option<String>,
    exit: i32,
}

fn cases(dir: &Path) -> Vec<Case> {
    let m = model("llama-pre-rope");
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let of = |name: &str| m.join(name).to_str().unwrap().to_owned();
    let (adapter, base, probe) = (of("adapter"), of("base"), of("probe.safetensors"));
    let packed = at("packed.tar");
    assert_eq!(exit(&ptplus(["pack", &adapter, "--base", &base, "-o", &packed])), 0);
    std::fs::write(at("bad.gguf"), b"GGUF").unwrap();
    let case = |args: &[&str], output: Option<&str>, exit| Case {
        args: args.iter().map(|s| (*s).to_owned()).collect(),
        output: output.map(at),
        exit,
    };
    vec![
        case(&["inspect", &adapter], None, 0),
        case(&["validate", &adapter, "--base", &base], None, 0),
        case(&["convert", &adapter, "--base", &base, "-o", &at("o.gguf")], Some("o.gguf"), 0),
        case(&["convert", &adapter, "--base", &base, "-o", &at("o.gguf"), "--json", "-v"], Some("o.gguf"), 0),
        case(&["convert", &adapter, "--to", "safetensors", "-o", &at("o")], Some("o"), 0),
        case(&["convert", "--jobs", "2", &adapter, &packed, "--to", "safetensors", "-o", &at("many")], Some("many"), 0),
        case(
            &["convert", &adapter, &at("none"), "--arch", "llama", "--to", "gguf", "-o", &at("many")],
            Some("many"),
            1,
        ),
        case(&["convert", &base, "-o", &at("b.gguf")], Some("b.gguf"), 0),
        case(&["quantize", &adapter, "q8_0", "--base", &base, "-o", &at("q.gguf")], Some("q.gguf"), 0),
        case(&["verify", &adapter, "--base", &base, "--probe", &probe], None, 0),
        case(&["pack", &adapter, "--base", &base, "-o", &at("bundle")], Some("bundle"), 0),
        case(&["check", &packed, "--base", &base], None, 0),
        case(&["unpack", &packed, "-o", &at("unpacked")], Some("unpacked"), 0),
        case(&["hash", &adapter, "--tensors"], None, 0),
        case(&["diff", &adapter, &packed], None, 0),
        case(&["keygen", &at("k.key"), "--no-password"], Some("k.key"), 0),
        case(&["demo"], None, 0),
        case(&["completions", "bash"], None, 0),
        case(&["man", &at("man")], Some("man"), 0),
        case(&["quantize", "--list-types"], None, 0),
        case(&["--help"], None, 0),
        case(&["help", "convert"], None, 0),
        case(&["--version"], None, 0),
        // Refusals keep their exit codes.
        case(&["inspect", &at("bad.gguf")], None, 3),
        case(&["inspect", &at("bad.gguf"), "--json", "-v"], None, 3),
        case(&["convert", &adapter, "--base", &at("none"), "-o", &at("x.gguf")], None, 1),
        case(&["nonsense"], None, 2),
        case(&["convert", "--json"], None, 2),
    ]
}

#[test]
fn no_fault_of_a_stream_changes_what_a_command_does() {
    check_faults(&[(true, false), (false, true)]);
}

#[test]
#[ignore = "seconds"]
fn more_faults_of_both_streams_change_nothing() {
    check_faults(&[(true, true)]);
}

/// Every command with every fault of these streams: stdout, stderr.
fn check_faults(streams: &[(bool, bool)]) {
    let dir = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for case in cases(dir.path()) {
        let faults =
            FAULTS.iter().flat_map(|f| streams.iter().map(|(out, err)| (out.then_some(*f), err.then_some(*f))));
        for (out, err) in faults {
            if let Some(output) = &case.output {
                let _ = std::fs::remove_dir_all(output);
                let _ = std::fs::remove_file(output);
                let _ = std::fs::remove_file(Path::new(output).with_extension("pub"));
            }
            let found = run(&case.args, out, err);
            // A result that is nowhere but on stdout, and cannot be written there, is a failure.
            let is_lost = out == Some(Fault::Full) && case.output.is_none() && case.exit == 0;
            let expected = if is_lost { 1 } else { case.exit };
            let made = case.output.as_ref().is_none_or(|o| Path::new(o).exists());
            if found != Some(expected) || !made {
                failures.push(format!("{:?} {out:?} {err:?}: exit {found:?}, expected {expected}, {made}", case.args));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_cannot_be_told_is_noted_where_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("o.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
    command.arg("convert").arg(model("llama-mha").join("adapter")).args(["--arch", "llama", "-o"]).arg(&output);
    let out = command.stdout(stream(Fault::Full)).output().unwrap();
    assert_eq!(exit(&out), 0);
    assert!(stderr(&out).contains("the output is in its place, but cannot write to stdout"), "{}", stderr(&out));
}
