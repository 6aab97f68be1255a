//! Where output goes and how it looks: stdout for results, stderr for the rest; colour only where it helps.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::error::{Code, Error, Result, escape};

/// Version of the JSON documents; it grows when a field changes its meaning or goes away.
const SCHEMA_VERSION: u32 = 1;

/// One command's output.
pub struct Ui {
    command: &'static str,
    json: bool,
    quiet: bool,
    verbose: bool,
    bar: Mutex<Option<ProgressBar>>,
}

/// Whether the command found what it should.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
}

impl Ui {
    pub fn new(command: &'static str, json: bool, quiet: bool, verbose: bool) -> Self {
        Ui { command, json, quiet, verbose, bar: Mutex::new(None) }
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Prints the result: `document`'s fields with `--json`, else `text`.
    ///
    /// Errors: [`Code::Io`] where stdout cannot be written; a reader that closes the pipe early (`| head`) is none.
    pub fn result(&self, status: Status, document: Value, text: &str) -> Result<()> {
        self.clear_progress();
        if !self.json {
            return write_stdout(text);
        }
        let mut out = Map::new();
        out.insert("schema_version".into(), SCHEMA_VERSION.into());
        out.insert("command".into(), self.command.into());
        out.insert("status".into(), if status == Status::Ok { "ok" } else { "failed" }.into());
        if let Value::Object(fields) = document {
            out.extend(fields);
        }
        let mut text = serde_json::to_string_pretty(&Value::Object(out)).unwrap_or_default();
        text.push('\n');
        write_stdout(&text)
    }

    /// Text between the results of several steps, on stdout.
    pub fn heading(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { write_stdout(text) }
    }

    /// A line for people, on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.clear_progress();
            eprintln!("{}: {}", paint_stderr("note", "36"), escape(text));
        }
    }

    /// Reports an error: one line, the causes with `-v`, and the document with `--json`.
    pub fn error(&self, e: &Error) {
        self.clear_progress();
        eprintln!("{}: {e}", paint_stderr("error", "31;1"));
        e.detail_lines().iter().for_each(|line| eprintln!("  {}", escape(line)));
        if self.verbose {
            let mut cause = e.source();
            while let Some(c) = cause {
                eprintln!("  caused by: {}", escape(&c.to_string()));
                cause = c.source();
            }
        }
        if self.json {
            self.error_document(e);
        }
    }

    /// The document of a command that failed.
    pub fn error_document(&self, e: &Error) {
        let document = json!({ "error": {
            "code": e.code().slug(),
            "exit_code": e.kind().exit_code(),
            "file": e.path().map(|p| p.to_string_lossy()),
            "field": e.field_name(),
            "offset": e.offset(),
            "message": e.message(),
            "details": e.detail_lines(),
        }});
        // The error itself is what matters, and it is on stderr.
        let _ = self.result(Status::Failed, document, "");
    }

    /// Shows progress on a terminal; elsewhere nothing. Called from any thread.
    pub fn progress(&self, done: u64, total: u64, unit_is_bytes: bool) {
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            return;
        }
        let mut slot = self.bar();
        let bar = slot.get_or_insert_with(|| {
            let template = if unit_is_bytes {
                "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
            } else {
                "{bar:30} {pos}/{len} {eta}"
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear_progress(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }
}

fn write_stdout(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(Code::Io, format!("cannot write to stdout: {e}")).caused_by(e))
        }
        _ => Ok(()),
    }
}

fn colour_wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn paint_stderr(text: &str, ansi: &str) -> String {
    if colour_wanted(std::io::stderr().is_terminal()) { format!("\x1b[{ansi}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `PASS` or `FAIL`, the word always, the colour where there is one.
pub fn verdict(pass: bool) -> String {
    let (word, ansi) = if pass { ("PASS", "32;1") } else { ("FAIL", "31;1") };
    if colour_wanted(std::io::stdout().is_terminal()) { format!("\x1b[{ansi}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Left-aligned columns, two spaces apart. Cells come escaped.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let n = header.len();
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from(" ");
        for (i, (cell, w)) in cells.zip(&widths).enumerate() {
            text.push(' ');
            text.push_str(cell);
            if i + 1 < n {
                text.extend(std::iter::repeat_n(' ', w + 1 - cell.chars().count()));
            }
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// `4.4 MB`, decimal units as disks and `ls -h --si` count.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
