//! Every example of every command's help, run where files with those names are.

use std::path::Path;

use crate::common::{self, exit, fixtures, model, ptplus, stderr, stdout};
use crate::shell::{Machine, Rule, Shell, rule, this_machine};

/// Lines below `Examples:`; those that the width of the page has cut are whole again.
fn examples(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| !["Example:", "Examples:"].contains(l)).skip(1);
    let mut out: Vec<String> = Vec::new();
    for line in lines.take_while(|l| !l.is_empty()).map(str::trim) {
        match out.last_mut() {
            Some(last) if !line.starts_with("ptplus ") => {
                // As a shell reads a line that ends so.
                last.truncate(last.trim_end_matches([' ', '\\']).len());
                last.push(' ');
                last.push_str(line);
            }
            _ => out.push(line.to_owned()),
        }
    }
    out
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

fn must(args: &[&str]) {
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{args:?}: {}", stderr(&out));
}

/// The files that examples name, made from a fixture.
fn make_files(at: &Path) {
    let m = model("llama-mha");
    let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
    for (from, to) in [
        ("adapter", "adapter"),
        ("base", "model"),
        ("probe.safetensors", "probe.safetensors"),
        ("foreign/training-checkpoint/checkpoint.pt", "checkpoint.pt"),
        ("foreign/flat", "adapters/flat"),
        ("foreign/peft", "adapters/peft"),
    ] {
        copy(&m.join(from), &at.join(to));
    }
    copy(&common::base_gguf("llama-mha"), &at.join("model.gguf"));
    std::fs::write(at.join("password"), "correct horse\n").unwrap();
    std::fs::write(at.join("template.jinja"), "{{ messages }}").unwrap();
    must(&["convert", &path("adapter"), "-o", &path("adapter.gguf"), "--base", &path("model")]);
    must(&["quantize", &path("adapter"), "-o", &path("adapter-q8_0.gguf"), "q8_0", "--base", &path("model")]);
    let lora = fixtures().join("lora/llama-rslora-patterns");
    let of_lora = |name: &str| lora.join(name).to_str().unwrap().to_owned();
    copy(&lora.join("probe.safetensors"), &at.join("merged-probe.safetensors"));
    must(&["convert", &of_lora("base"), "--merge", &of_lora("adapter"), "-o", &path("merged.gguf")]);
    must(&["pack", &of_lora("base"), "--merge", &of_lora("adapter"), "-o", &path("merged-bundle")]);
    copy(&lora.join("base"), &at.join("base"));
    copy(&lora.join("adapter"), &at.join("lora"));
    must(&["keygen", &path("publisher.key"), "--password-file", &path("password")]);
    for bundle in ["bundle", "bundle.tar"] {
        let sign = ["--sign", &path("publisher.key"), "--password-file", &path("password")];
        must(&[&["pack", &path("adapter"), "--base", &path("model"), "-o", &path(bundle)], &sign[..]].concat());
    }
}

/// Removes what the example makes: it was made from the others.
fn remove_outputs(command: &str, at: &Path) {
    let words: Vec<&str> = command.split(' ').collect();
    let mut outputs: Vec<String> =
        words.windows(2).filter(|w| w[0] == "-o").map(|w| w[1].trim_end_matches('/').to_owned()).collect();
    if words[1] == "keygen" {
        outputs.extend([words[2].to_owned(), words[2].replace(".key", ".pub")]);
    }
    for path in outputs.iter().map(|o| at.join(o)) {
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn the_examples_of_help_work() {
    let n_run = run_the_examples(this_machine(false));
    assert!(n_run > 20, "{n_run}");
    assert_eq!(
        examples("Text\n\nExample:\n  ptplus a b \\\n      c\n  ptplus d\n\nMore\n"),
        ["ptplus a b c", "ptplus d"]
    );
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_examples_of_help_work_on_the_real_base() {
    run_the_examples(this_machine(true));
}

/// How many were run. Text needs a tokenizer, which only the real base has.
fn run_the_examples(machine: Machine) -> usize {
    let files = tempfile::tempdir().unwrap();
    make_files(files.path());
    let list = stdout(&ptplus(["help"]));
    let commands = list.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names = commands.filter_map(|l| l.strip_prefix("  ")?.split(' ').next().filter(|n| !n.is_empty()));
    let mut n_run = 0;
    for name in [None].into_iter().chain(names.filter(|n| *n != "help").map(Some)) {
        let found = examples(&stdout(&ptplus(["help"].into_iter().chain(name))));
        assert!(!found.is_empty(), "{name:?}: help without examples");
        let shell = Shell::new(&["fixtures"]);
        copy(files.path(), shell.folder());
        for folder in
            [".local/share/bash-completion/completions", ".local/share/man", ".zfunc", ".config/fish/completions"]
        {
            std::fs::create_dir_all(shell.home().join(folder)).unwrap();
        }
        for example in found {
            let place = format!("help: {example}");
            let mut command = example.clone();
            if name == Some("run") {
                if !machine.has_real_base {
                    continue;
                }
                let base = common::smollm2();
                command = command.replace("model.gguf", base.to_str().unwrap());
                for adapter in ["adapter.gguf", "style.gguf", "facts.gguf"] {
                    let pirate = fixtures().join("smollm2-pirate/adapter");
                    command = command.replace(adapter, pirate.to_str().unwrap());
                }
                // A few tokens show that it runs; debug builds are slow.
                let words: Vec<&str> = command.split(' ').collect();
                command = match words.iter().position(|w| *w == "-n") {
                    Some(i) => [&words[..=i], &["2"], &words[i + 2..]].concat().join(" "),
                    None => command + " -n 2",
                };
            }
            let command = command.replace("/usr/bin/llama-cli", "$(command -v llama-cli)");
            let (to_run, expected) = match rule(&command, machine).unwrap_or_else(|e| panic!("{place}: {e}")) {
                Rule::Run(command) => (command, 0),
                Rule::RunTo(command, exit) => (command, exit),
                Rule::Skip => continue,
            };
            remove_outputs(&to_run, shell.folder());
            let out = shell.run(&to_run);
            // `diff` says by its exit code that two adapters differ.
            let expected = if name == Some("diff") { 5 } else { expected };
            assert_eq!(exit(&out), expected, "{place}: {}", stderr(&out));
            n_run += 1;
        }
    }
    n_run
}
