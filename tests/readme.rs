//! The README's console blocks are what the tool prints. Measured figures differ in their last digits from processor to
//! processor, so numbers with an exponent and long decimals compare as equal; everything else must match.
//! `PTPLUS_WRITE_DOCS=1 cargo test --test readme` writes the real output into the README.

mod common;

use std::fmt::Write as _;
use std::path::Path;
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
                let measured = bare.contains('e') || bare.split_once('.').is_some_and(|(_, d)| d.len() > 3);
                if measured && bare.parse::<f64>().is_ok() { w.replace(bare, "#") } else { w.to_owned() }
            })
            .filter(|w| !w.is_empty()) // columns move with the width of the figures
            .collect();
        let _ = writeln!(out, "{}", words.join(" "));
    }
    out
}

fn run(command: &str, dir: &Path) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let out = match words[0] {
        "ptplus" => Command::new(env!("CARGO_BIN_EXE_ptplus")).args(&words[1..]).current_dir(dir).output(),
        other => Command::new(other).args(&words[1..]).current_dir(dir).output(),
    }
    .unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(out.status.success(), "{command}: {}", common::stderr(&out));
    common::stdout(&out)
}

#[test]
fn the_readme_shows_what_the_tool_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let temp = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.join("fixtures"), temp.path().join("fixtures")).unwrap();
    let text = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut written = String::new();
    let mut wrong = String::new();
    let (mut in_console, mut n_commands, mut skipped) = (false, 0, false);
    let mut expected: Option<(String, String)> = None; // command, output so far
    let mut finish = |expected: &mut Option<(String, String)>, written: &mut String| {
        let Some((command, shown)) = expected.take() else { return };
        let real = command.contains("fetched") || command.contains("fetch-smollm2");
        if real && common::smollm2().is_none() {
            skipped = true;
            written.push_str(&shown);
            return;
        }
        n_commands += 1;
        let found = run(&command, temp.path());
        if masked(&found) != masked(&shown) {
            let _ = writeln!(wrong, "$ {command}\n--- README\n{shown}--- found\n{found}");
        }
        written.push_str(&found);
    };
    for line in text.lines() {
        let fence = line.starts_with("```");
        if fence || (in_console && line.starts_with("$ ")) {
            finish(&mut expected, &mut written);
        }
        if fence {
            in_console = line == "```console";
        } else if in_console {
            match (line.strip_prefix("$ "), &mut expected) {
                (Some(command), _) => expected = Some((command.to_owned(), String::new())),
                (None, Some((_, shown))) => {
                    let _ = writeln!(shown, "{line}");
                    continue;
                }
                (None, None) => {}
            }
        }
        let _ = writeln!(written, "{line}");
    }
    if skipped {
        eprintln!("SKIPPED in part: the real base is not there; fixtures/fetch-smollm2.sh fetches it");
    }
    if std::env::var_os("PTPLUS_WRITE_DOCS").is_some() {
        std::fs::write(root.join("README.md"), &written).unwrap();
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
    assert!(n_commands >= 1);
}
