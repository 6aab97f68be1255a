//! What the documentation shows is what the tool does: the blocks of the README and of every page in `docs`, the examples
//! of help, the commands of a bundle's card, the code for the library.
//!
//! `console` blocks show what their commands print; measured figures differ in their last digits from processor to
//! processor, so numbers with an exponent and long decimals compare as equal, and everything else must match. Commands of
//! `sh` blocks must succeed. All pages are run one after the other in one folder, in the order in which the README lists
//! them, as somebody reads them. What needs the real base is run by the tests with
//! `real_base` in their names, which are ignored, what needs a feature in a build with it; `shell::rule` has all rules.
//! `PTPLUS_WRITE_DOCS=1 cargo test --test readme` writes the real output into the pages.

#[path = "../common/mod.rs"]
mod common;

mod card;
mod families;
mod help;
mod library;
mod licence;
#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
mod llama_cpp;
mod map;
mod pages;
mod shell;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pages::{Page, Part, ROOT};
use shell::{Machine, Rule, Shell, rule, this_machine};

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

/// What a command of a console block prints. A page may show a failure; what it shows must then be the refusal.
fn printed(out: &std::process::Output) -> String {
    if out.status.success() { common::stdout(out) } else { common::stdout(out) + &common::stderr(out) }
}

/// Runs a console block; returns it with the real output, and what differs.
fn console(page: &Page, block: &pages::Block, shell: &Shell, machine: Machine) -> (String, String) {
    let (mut real, mut wrong) = (String::new(), String::new());
    let mut shown: Vec<(&str, String)> = Vec::new();
    for line in &block.lines {
        match (line.strip_prefix("$ "), shown.last_mut()) {
            (Some(command), _) => shown.push((command, String::new())),
            (None, Some((_, text))) => _ = writeln!(text, "{line}"),
            (None, None) => panic!("{}:{}: a console block begins with a command", page.name, block.line_number),
        }
    }
    for (command, shown) in shown {
        let place = format!("{}: $ {command}", page.name);
        let found = match rule(command, machine).unwrap_or_else(|e| panic!("{place}: {e}")) {
            Rule::Run(command) | Rule::RunTo(command, _) => printed(&shell.run(&command)),
            Rule::Skip => shown.clone(),
        };
        if masked(&found) != masked(&shown) {
            let _ = writeln!(wrong, "{place}\n--- page\n{shown}--- found\n{found}");
        }
        let _ = write!(real, "$ {command}\n{found}");
    }
    (real, wrong)
}

/// Runs the commands of an `sh` block; returns what failed.
fn sh(page: &Page, block: &pages::Block, shell: &Shell, machine: Machine) -> String {
    let mut wrong = String::new();
    for command in block.commands() {
        let place = format!("{}: {command}", page.name);
        let (to_run, expected) = match rule(&command, machine).unwrap_or_else(|e| panic!("{place}: {e}")) {
            Rule::Run(command) => (command, 0),
            Rule::RunTo(command, exit) => (command, exit),
            Rule::Skip => continue,
        };
        let out = shell.run(&to_run);
        if common::exit(&out) != expected {
            let _ = writeln!(wrong, "{place}: exit {}\n{}", common::exit(&out), common::stderr(&out));
        }
    }
    wrong
}

/// Every file below `folder`, but not what the script fetches.
fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut out = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() && !path.ends_with("fixtures/fetched") {
                folders.push(path.clone());
            }
            out.insert(path);
        }
    }
    out
}

#[test]
fn the_pages_work_one_after_the_other() {
    run_the_pages(this_machine(false));
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_pages_work_one_after_the_other_on_the_real_base() {
    run_the_pages(this_machine(true));
}

fn run_the_pages(machine: Machine) {
    let fixtures = common::fixtures();
    let fixtures_before = files_below(&fixtures);
    let shown = ["csrc", "docs", "fixtures", "include"];
    let shell = Shell::new(&shown);
    let write = std::env::var_os("PTPLUS_WRITE_DOCS").is_some();
    let mut wrong = String::new();
    for page in pages::all() {
        if pages::is_run_in_python(&page.name) {
            // python/tests/training/test_pages.py runs it, which needs torch.
            continue;
        }
        let mut real = String::new();
        for part in &page.parts {
            let block = match part {
                Part::Block(b) => b,
                Part::Line(l) => {
                    let _ = writeln!(real, "{l}");
                    continue;
                }
            };
            let (text, differs) = match block.language.as_str() {
                "console" => console(&page, block, &shell, machine),
                "sh" => (block.text(), sh(&page, block, &shell, machine)),
                _ => (block.text(), String::new()),
            };
            real.push_str(&text);
            wrong.push_str(&differs);
        }
        if write {
            std::fs::write(page.path(), real).unwrap();
        }
    }
    assert!(write || wrong.is_empty(), "{wrong}");
    // What readers are told to make lies in `work`, which git ignores.
    let here: BTreeSet<String> =
        std::fs::read_dir(shell.folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(here, shown.into_iter().chain(["work"]).map(str::to_owned).collect());
    assert_eq!(files_below(&fixtures), fixtures_before, "a page writes into fixtures");
    let ignored = std::fs::read_to_string(Path::new(ROOT).join(".gitignore")).unwrap();
    assert!(ignored.lines().any(|l| l == "/work") && ignored.lines().any(|l| l == "/fixtures/fetched"));
}

#[test]
fn the_readme_lists_every_page_once() {
    let mut listed = pages::listed();
    assert_eq!(listed.first().map(String::as_str), Some("docs/TUTORIAL.md"), "first, the README says");
    listed.sort();
    assert_eq!(listed, pages::files());
}

#[test]
fn commands_stand_where_they_are_run() {
    let wrong: Vec<String> = pages::all().iter().flat_map(pages::misplaced_commands).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let readme = Page::read("README.md");
    let has = |command: &str| readme.blocks().any(|b| b.language == "sh" && b.commands().iter().any(|c| c == command));
    assert!(has("cargo run --release -- demo") && has("cargo test"), "the two commands");
}

#[test]
fn a_command_that_no_test_would_run_is_found() {
    let wrong = |text: &str| pages::misplaced_commands(&Page::parse("docs/X.md", text));
    for text in [
        "```bash\nptplus demo\n```\n",
        "```\nptplus demo\n```\n",
        "```text\n$ ptplus demo\n```\n",
        "```text\n  cargo test\n```\n",
        "```python\nprint()\n```\n",
        "```console\nptplus demo\n```\n",
        "Text.\n\n    ptplus demo\n",
        "Text.\n    cargo test\n",
        "- item\n    $ ls\n",
    ] {
        assert_eq!(wrong(text).len(), 1, "{text}: {:?}", wrong(text));
    }
    assert!(wrong("```console\n$ ptplus demo\n```\n\n- an item\n  that goes on\n").is_empty());
    let machine =
        shell::Machine { has_real_base: true, has_llama_cpp: true, has_shared_llama_cpp: true, has_cuda: true };
    for command in ["curl example.org", "cargo build", "rm -r work", "PTPLUS_ADAPTER=a llama-server"] {
        assert!(rule(command, machine).is_err(), "{command}");
    }
}

/// Code for other programs that no test here runs; that it parses is checked.
#[test]
fn python_code_parses() {
    for page in pages::all() {
        for block in page.blocks().filter(|b| b.language == "python") {
            let place = format!("{}:{}", page.name, block.line_number);
            let parse = ["-c", "import ast, sys; ast.parse(sys.argv[1])", &block.text()];
            match std::process::Command::new("python3").args(parse).output() {
                Ok(out) => assert!(out.status.success(), "{place}: {}", common::stderr(&out)),
                Err(e) => panic!("{place}: python3: {e}"),
            }
        }
    }
}

/// Of the table of types: bytes and errors, as the command above it gives them. (tests/run.rs has the answers.)
#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_table_of_types_is_what_quantize_gives_on_the_real_base() {
    let base = common::smollm2();
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/howto/quantize.md")).unwrap();
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("`ptplus quantize work/pirate.gguf -o work/pirate-TYPE.gguf TYPE`"));
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (adapter, source) = (common::fixtures().join("smollm2-pirate/adapter"), path("pirate.gguf"));
    let args = ["convert", adapter.to_str().unwrap(), "-o", &source, "--base", base.to_str().unwrap()];
    assert_eq!(common::exit(&common::ptplus(args)), 0);
    let rows =
        page.lines().skip_while(|l| !l.starts_with("| type | bytes |")).skip(2).take_while(|l| l.starts_with('|'));
    let mut n_types = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let types = cells[0].split([' ', ',', '(', ')']).filter(|t| !t.is_empty());
        for dtype in types.map(str::to_lowercase) {
            let (code, document) =
                common::json(["quantize", &source, "-o", &path(&format!("pirate-{dtype}.gguf")), &dtype]);
            assert_eq!(code, 0, "{document}");
            let bytes: u64 = cells[1].replace(' ', "").parse().unwrap();
            assert_eq!(document["len_bytes"], bytes, "{row}");
            let tensors = document["tensors"].as_array().unwrap();
            let relative = tensors.iter().filter_map(|t| t["loss"]["relative"].as_f64()).fold(0.0, f64::max);
            let shown: f64 = cells[2].parse().unwrap();
            assert!((relative / shown - 1.0).abs() < 0.05, "{row}: {relative}");
            n_types += 1;
        }
    }
    assert_eq!(n_types, 12);
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
    for page in pages::all().iter().map(Page::path) {
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
