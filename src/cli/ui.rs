//! Where output goes and how it looks: stdout for results, stderr for the rest; colour only where it helps.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use super::hints::hints;
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
    /// When the first step was reported.
    started: OnceLock<Instant>,
}

/// What takes less time than this shows no progress: it would only flicker.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Whether the command found what it should.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
}

impl Ui {
    pub fn new(command: &'static str, json: bool, quiet: bool, verbose: bool) -> Self {
        Ui { command, json, quiet, verbose, bar: Mutex::new(None), started: OnceLock::new() }
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
        let mut text =
            serde_json::to_string_pretty(&Value::Object(self.envelope(status, document))).unwrap_or_default();
        text.push('\n');
        write_stdout(&text)
    }

    /// Prints one of many results, whole and on a line of its own: `document` with `--json`, else `text`; a failure's text
    /// goes to stderr. Called from any thread. Errors: as [`result`](Self::result).
    pub fn batch_line(&self, (status, document): (Status, Value), text: &str) -> Result<()> {
        let bar = self.bar();
        let print = || match (self.json, status) {
            (true, _) => write_stdout(&format!("{}\n", Value::Object(self.envelope(status, document)))),
            (false, Status::Ok) if self.quiet => Ok(()),
            (false, Status::Ok) => write_stdout(text),
            (false, Status::Failed) => {
                eprint!("{text}");
                Ok(())
            }
        };
        match &*bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Prints what became of all. Errors: as [`result`](Self::result).
    pub fn batch_end(&self, status: Status, document: Value, text: &str) -> Result<()> {
        self.clear_progress();
        if self.json {
            return write_stdout(&format!("{}\n", Value::Object(self.envelope(status, document))));
        }
        write_stdout(text)
    }

    fn envelope(&self, status: Status, document: Value) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("schema_version".into(), SCHEMA_VERSION.into());
        out.insert("command".into(), self.command.into());
        out.insert("status".into(), if status == Status::Ok { "ok" } else { "failed" }.into());
        if let Value::Object(fields) = document {
            out.extend(fields);
        }
        out
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
        hints(e).iter().for_each(|line| eprintln!("{}: {line}", paint_stderr("hint", "36")));
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
        // The error itself is what matters, and it is on stderr.
        let _ = self.result(Status::Failed, error_fields(e), "");
    }

    /// Shows progress on a terminal; elsewhere nothing. Called from any thread.
    pub fn progress(&self, done: u64, total: u64, unit_is_bytes: bool) {
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            return;
        }
        let started = *self.started.get_or_init(Instant::now);
        let mut slot = self.bar();
        if slot.is_none() && started.elapsed() < SHOW_AFTER {
            return;
        }
        let bar = slot.get_or_insert_with(|| {
            let template = if unit_is_bytes {
                "{bar:30} {percent} % {bytes}/{total_bytes} {bytes_per_sec} {eta} left"
            } else {
                "{bar:30} {percent} % {pos}/{len} {per_sec} {eta} left"
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_elapsed(started.elapsed())
                .with_style(style)
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

/// An error as a document.
pub fn error_fields(e: &Error) -> Value {
    json!({ "error": {
        "code": e.code().slug(),
        "exit_code": e.kind().exit_code(),
        "file": e.path().map(|p| p.to_string_lossy()),
        "field": e.field_name(),
        "offset": e.offset(),
        "message": e.message(),
        "details": e.detail_lines(),
        "hints": hints(e),
    }})
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

/// Left-aligned columns, two spaces apart, within the width of the terminal if stdout is one. Cells come escaped.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    table_within(header, rows, terminal.map(|(width, _)| width.0.into()))
}

/// The narrowest that a column is cut to.
const MIN_COLUMN: usize = 8;

/// Takes from the widest column until the table fits; what does not even fit so is left to the terminal to wrap.
fn narrowed(widths: &mut [usize], total: usize) {
    let spaces = 2 + 2 * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + spaces > total {
        match widths.iter_mut().max() {
            Some(widest) if *widest > MIN_COLUMN => *widest -= 1,
            _ => return,
        }
    }
}

/// The start and the end of a cell that is too wide: names differ at either.
fn cut(cell: &str, width: usize) -> String {
    let n = cell.chars().count();
    if n <= width {
        return cell.to_owned();
    }
    let tail = (width - 1) / 2;
    let head = width - 1 - tail;
    cell.chars().take(head).chain(['\u{2026}']).chain(cell.chars().skip(n - tail)).collect()
}

fn table_within(header: &[&str], rows: &[Vec<String>], total: Option<usize>) -> String {
    let n = header.len();
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    if let Some(total) = total {
        narrowed(&mut widths, total);
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from(" ");
        for (i, (cell, w)) in cells.zip(&widths).enumerate() {
            let cell = cut(cell, *w);
            text.push(' ');
            text.push_str(&cell);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_the_width_and_keeps_both_ends_of_names() {
        let rows =
            vec![vec!["blk.12.attn_prefix_memory.weight".to_owned(), "f32 -> q5_0".to_owned(), "4.5e-2".to_owned()]];
        let header = ["tensor", "type", "relative"];
        let wide = table_within(&header, &rows, None);
        assert!(wide.contains("blk.12.attn_prefix_memory.weight"));
        assert_eq!(table_within(&header, &rows, Some(80)), wide);
        let narrow = table_within(&header, &rows, Some(40));
        assert!(narrow.lines().all(|l| l.chars().count() <= 40), "{narrow}");
        assert!(narrow.contains("blk.") && narrow.contains("eight") && narrow.contains("4.5e-2"), "{narrow}");
        let tiny = table_within(&header, &rows, Some(3));
        assert!(tiny.lines().all(|l| l.chars().count() <= 2 + 2 * 2 + 3 * MIN_COLUMN), "{tiny}");
    }
}
