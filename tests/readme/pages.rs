//! The pages: in which order they are read, and what blocks they have.

use std::path::{Path, PathBuf};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A page's lines: text, and blocks between fences.
pub enum Part {
    /// A line outside of blocks, or a fence.
    Line(String),
    Block(Block),
}

pub struct Block {
    pub language: String,
    /// Of its first line, counted from 1.
    pub line_number: usize,
    pub lines: Vec<String>,
}

impl Block {
    pub fn text(&self) -> String {
        self.lines.iter().map(|l| format!("{l}\n")).collect()
    }

    /// Commands of an `sh` block, lines that end in `\` joined with the next.
    pub fn commands(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for line in self.lines.iter().map(|l| l.trim()).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            match out.last_mut() {
                Some(last) if last.ends_with('\\') => {
                    last.pop();
                    last.push_str(line);
                }
                _ => out.push(line.to_owned()),
            }
        }
        out
    }
}

pub struct Page {
    /// From the root of the repository.
    pub name: String,
    pub parts: Vec<Part>,
}

impl Page {
    pub fn read(name: &str) -> Page {
        let text = std::fs::read_to_string(Path::new(ROOT).join(name)).unwrap();
        Page::parse(name, &text)
    }

    pub fn parse(name: &str, text: &str) -> Page {
        let mut parts = Vec::new();
        let mut block: Option<Block> = None;
        for (i, line) in text.lines().enumerate() {
            if let Some(language) = line.strip_prefix("```") {
                match block.take() {
                    Some(b) => parts.push(Part::Block(b)),
                    None => {
                        let language = language.to_owned();
                        block = Some(Block { language, line_number: i + 2, lines: Vec::new() });
                    }
                }
                parts.push(Part::Line(line.to_owned()));
            } else if let Some(b) = &mut block {
                b.lines.push(line.to_owned());
            } else {
                parts.push(Part::Line(line.to_owned()));
            }
        }
        assert!(block.is_none(), "{name}: a block does not end");
        Page { name: name.to_owned(), parts }
    }

    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.parts.iter().filter_map(|p| match p {
            Part::Block(b) => Some(b),
            Part::Line(_) => None,
        })
    }

    /// Lines outside of blocks.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|p| match p {
            Part::Line(l) => Some(l.as_str()),
            Part::Block(_) => None,
        })
    }

    pub fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }
}

/// Every page below `docs`, sorted.
pub fn files() -> Vec<String> {
    let mut folders = vec![PathBuf::from("docs")];
    let mut out = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).unwrap().map(Result::unwrap) {
            let name = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(name);
            } else if name.extension().is_some_and(|e| e == "md") {
                out.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    out.sort();
    out
}

/// The pages that the README's last section lists, in its order.
pub fn listed() -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let (_, section) = text.split_once("\n## Read on\n").expect("the README says what to read on");
    let targets = section.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    targets.filter(|t| t.starts_with("docs/") && t.ends_with(".md")).map(str::to_owned).collect()
}

/// The README and all pages, in the order in which the README lists them.
pub fn all() -> Vec<Page> {
    ["README.md".to_owned()].into_iter().chain(listed()).map(|name| Page::read(&name)).collect()
}

/// Pages whose commands need what their Python code makes: `python/tests/training/test_pages.py` runs them from top to bottom.
pub fn is_run_in_python(name: &str) -> bool {
    ["docs/howto/python.md", "docs/howto/trainer-checkpoint.md", "docs/howto/training-loop.md"].contains(&name)
}

/// What is wrong with the blocks of a page: commands where no test looks for them.
pub fn misplaced_commands(page: &Page) -> Vec<String> {
    let is_command = |l: &str| ["ptplus ", "cargo ", "$ "].iter().any(|start| l.trim_start().starts_with(start));
    let mut out = Vec::new();
    let mut before = "";
    for line in page.lines() {
        let is_indented = line.starts_with("    ") || line.starts_with('\t');
        if is_indented && (before.is_empty() || is_command(line)) {
            out.push(format!("{}: an indented block, which no test runs: {line}", page.name));
        }
        before = line;
    }
    for block in page.blocks() {
        let place = format!("{}:{}", page.name, block.line_number);
        match block.language.as_str() {
            // Run as they stand.
            "console" => {
                if !block.lines.first().is_some_and(|l| l.starts_with("$ ")) {
                    out.push(format!("{place}: a console block begins with a command"));
                }
            }
            "sh" => {}
            // What help prints; its examples are run by the test of help.
            "text" if page.name == "docs/CLI.md" => {}
            "text" => {
                let commands = block.lines.iter().filter(|l| is_command(l));
                out.extend(commands.map(|l| format!("{place}: a command in a block of text: {l}")));
            }
            // Each of these has a test of its own, for these pages alone.
            "rust" | "toml" if page.name == "docs/howto/library.md" => {}
            "c" if ["docs/LLAMA_CPP.md", "docs/howto/virtual-tokens.md"].contains(&page.name.as_str()) => {}
            "python"
                if ["README.md", "docs/TUTORIAL.md", "docs/LLAMA_CPP.md", "docs/howto/virtual-tokens.md"]
                    .contains(&page.name.as_str()) => {}
            "python" if is_run_in_python(&page.name) => {}
            // Run by tests/clients/run, with programs from the registries; units are of other machines.
            "python" | "js" | "ini" if page.name == "docs/howto/exec.md" => {}
            other => out.push(format!("{place}: no rule for a block of {other:?}")),
        }
    }
    out
}
