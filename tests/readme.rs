//! The console blocks of the README and of the pages in `docs` are what the tool prints, and the commands of `sh` blocks succeed. Measured figures differ in their
//! last digits from processor to processor, so numbers with an exponent and long decimals compare as equal; everything
//! else must match.
//! `PTPLUS_WRITE_DOCS=1 cargo test --test readme` writes the real output into the pages.

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `3.755e-6` and `-9.2154045` become `#`.
fn masked(text: &str) -> String {
    let mut out = String::new();
    // Where the largest of tiny differences lies depends on the processor too.
    for line in text.lines().map(|l| if l.starts_with("worst: ") || l.starts_with("layers: ") { "worst" } else { l }) {
        let words: Vec<String> = line
            .split(' ')
            .map(|w| {
                let bare = w.trim_matches(['(', ')', ',']);
                // A key made a moment ago, and its number.
                let is_key = bare.len() == 56 && bare.starts_with("RW")
                    || bare.len() == 16 && bare.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
                let measured = bare.contains('e') || bare.split_once('.').is_some_and(|(_, d)| d.len() > 3);
                if is_key || measured && bare.parse::<f64>().is_ok() { w.replace(bare, "#") } else { w.to_owned() }
            })
            .filter(|w| !w.is_empty()) // columns move with the width of the figures
            .collect();
        let _ = writeln!(out, "{}", words.join(" "));
    }
    out
}

/// As a shell splits it: quotes hold words together.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (i, part) in command.split('\'').enumerate() {
        if i % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        let mut pieces = part.split(' ');
        words.last_mut().unwrap().push_str(pieces.next().unwrap());
        words.extend(pieces.map(str::to_owned));
    }
    words.retain(|w| !w.is_empty());
    words
}

fn run(command: &str, dir: &Path) -> String {
    let words = words(command);
    let out = match words[0].as_str() {
        "ptplus" => Command::new(env!("CARGO_BIN_EXE_ptplus")).args(&words[1..]).current_dir(dir).output(),
        other => Command::new(other).args(&words[1..]).current_dir(dir).output(),
    }
    .unwrap_or_else(|e| panic!("{command}: {e}"));
    // A page may show a failure; what it shows must then be the refusal.
    if out.status.success() { common::stdout(&out) } else { common::stdout(&out) + &common::stderr(&out) }
}

/// The README and every page below `docs`.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("docs")];
    let mut out = vec![root.join("README.md")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.extension() {
                _ if entry.is_dir() => folders.push(entry),
                Some(e) if e == "md" => out.push(entry),
                _ => {}
            }
        }
    }
    out.sort();
    out
}

/// A page with the real output in its console blocks.
struct Checked {
    written: String,
    wrong: String,
    n_commands: usize,
    skipped: bool,
}

/// Runs a page's commands, one after the other, in a folder of its own that has `fixtures` and `docs` in it.
fn check(page: &Path) -> Checked {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let temp = tempfile::tempdir().unwrap();
    for name in ["fixtures", "docs"] {
        std::os::unix::fs::symlink(root.join(name), temp.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(page).unwrap();
    // A page may run its commands in a folder of the fixtures: <!-- commands run in FOLDER -->
    let place = text.split_once("<!-- commands run in ").and_then(|(_, rest)| rest.split_once(" -->"));
    for entry in place.into_iter().flat_map(|(folder, _)| std::fs::read_dir(root.join(folder)).unwrap()) {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), temp.path().join(entry.file_name())).unwrap();
    }
    let needs_real_base = text.contains("fixtures/fetched");
    let mut out = Checked { written: String::new(), wrong: String::new(), n_commands: 0, skipped: false };
    if needs_real_base && common::smollm2().is_none() {
        out.skipped = true;
    }
    let mut in_console = false;
    let mut shown: Option<(String, String)> = None; // command, output so far
    let finish = |shown: &mut Option<(String, String)>, out: &mut Checked| {
        let Some((command, text)) = shown.take() else { return };
        let real = command.contains("fetched") || command.contains("fetch-smollm2") || command.contains("pirate");
        // What only a build with llama.cpp can print is checked by such a build.
        let not_built_in = command.contains("--engine llama.cpp") && cfg!(not(feature = "llama-cpp"));
        if real && out.skipped || not_built_in {
            out.written.push_str(&text);
            return;
        }
        out.n_commands += 1;
        let found = run(&command, temp.path());
        if masked(&found) != masked(&text) {
            let _ = writeln!(out.wrong, "{}: $ {command}\n--- page\n{text}--- found\n{found}", page.display());
        }
        out.written.push_str(&found);
    };
    for line in text.lines() {
        let fence = line.starts_with("```");
        if fence || (in_console && line.starts_with("$ ")) {
            finish(&mut shown, &mut out);
        }
        if fence {
            in_console = line == "```console";
        } else if in_console {
            match (line.strip_prefix("$ "), &mut shown) {
                (Some(command), _) => shown = Some((command.to_owned(), String::new())),
                (None, Some((_, text))) => {
                    let _ = writeln!(text, "{line}");
                    continue;
                }
                (None, None) => {}
            }
        }
        let _ = writeln!(out.written, "{line}");
    }
    out
}

#[test]
fn the_pages_show_what_the_tool_prints() {
    let mut wrong = String::new();
    let mut n_commands = 0;
    for page in pages() {
        let checked = check(&page);
        if checked.skipped {
            eprintln!("SKIPPED in part: {}: fixtures/fetch-smollm2.sh fetches the real base", page.display());
        }
        n_commands += checked.n_commands;
        wrong.push_str(&checked.wrong);
        if std::env::var_os("PTPLUS_WRITE_DOCS").is_some() && !checked.wrong.is_empty() {
            std::fs::write(&page, &checked.written).unwrap();
        }
    }
    assert!(n_commands >= 1);
    assert!(std::env::var_os("PTPLUS_WRITE_DOCS").is_some() || wrong.is_empty(), "{wrong}");
}

/// Commands of `sh` blocks show no output; they must succeed all the same. Without a GPU, they do on the CPU.
#[test]
fn commands_without_output_succeed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run_here = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        for line in blocks.flat_map(str::lines) {
            let arguments = match line.strip_prefix("cargo ") {
                // What runs this test, and what installs the program.
                Some("test" | "install --path . --features cuda") => continue,
                Some(rest) => rest.strip_prefix("run --release -- "),
                None => line.strip_prefix("ptplus "),
            };
            let arguments = arguments.unwrap_or_else(|| panic!("{}: no rule to run {line:?}", page.display()));
            let arguments = if cfg!(feature = "cuda") { arguments.into() } else { arguments.replace("cuda", "cpu") };
            let out =
                Command::new(env!("CARGO_BIN_EXE_ptplus")).args(words(&arguments)).current_dir(root).output().unwrap();
            // Without a GPU both devices are the CPU, and nothing is compared.
            let is_alone = line.contains("--against-device") && cfg!(not(feature = "cuda"));
            let expected = if is_alone { 7 } else { 0 };
            assert_eq!(common::exit(&out), expected, "{}: {line}\n{}", page.display(), common::stderr(&out));
            run_here.push(line.to_owned());
        }
    }
    assert!(run_here.iter().any(|line| line == "cargo run --release -- demo"), "{run_here:?}");
}

#[test]
fn the_demo_is_one_document_with_json() {
    let (code, document) = common::json(["demo"]);
    assert_eq!((code, document["status"].as_str()), (0, Some("ok")), "{document}");
    let steps = document["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 5);
    for step in steps {
        assert_eq!((step["exit_code"].as_u64(), step["result"]["status"].as_str()), (Some(0), Some("ok")), "{step}");
        assert!(step["title"].as_str().is_some_and(|t| !t.is_empty()), "{step}");
    }
}

/// Every page and file that a page links to exists.
#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = target.contains("://") || target.is_empty();
            if !outside && !page.parent().unwrap().join(target).exists() {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}
