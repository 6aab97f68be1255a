//! Where output goes and how it looks: stdout for results, stderr for the rest; colour only where it helps.

use std::error::Error as _;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;
use serde_json::{Value, json};

use super::hints::{Given, hints};
use super::progress::{Progress, Unit};
use crate::error::{Code, Error, Result, escape};

/// Version of the JSON documents; it grows when a field changes its meaning or goes away.
const SCHEMA_VERSION: u32 = 1;

/// One command's output.
pub struct Ui {
    command: &'static str,
    json: bool,
    quiet: bool,
    verbose: bool,
    progress: Progress,
    /// For hints below errors.
    given: Given,
    /// Where a report was written, for the result.
    report: OnceLock<PathBuf>,
}

type Stdout = BufWriter<io::StdoutLock<'static>>;

/// Whether the command found what it should.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
}

impl Ui {
    pub fn new(command: &'static str, json: bool, quiet: bool, verbose: bool) -> Self {
        Ui {
            command,
            json,
            quiet,
            verbose,
            progress: Progress::new(!json && !quiet),
            given: Given::default(),
            report: OnceLock::new(),
        }
    }

    /// With the paths of the command line, for hints below errors.
    pub fn with_given(self, given: Given) -> Self {
        Ui { given, ..self }
    }

    /// A report is at `path`: the result, or the error, says so.
    #[cfg(feature = "report")]
    pub fn wrote_report(&self, path: PathBuf) {
        self.report.set(path).expect("a command writes one report");
    }

    /// `report FILE`, if there is one.
    fn report_line(&self) -> String {
        self.report.get().map_or(String::new(), |path| format!("report {}\n", escape(&path.to_string_lossy())))
    }

    /// Its name.
    pub fn command(&self) -> &'static str {
        self.command
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Prints the result: `document`'s fields with `--json`, else `text`. Either is written as it is made, since a table
    /// of many tensors is large.
    ///
    /// # Errors
    ///
    /// [`Code::Io`] where stdout cannot be written; a reader that closes the pipe early (`| head`) is none.
    pub fn result(&self, status: Status, document: impl Serialize, text: impl Display) -> Result<()> {
        self.progress.clear();
        to_stdout(|out| match self.json {
            true => {
                serde_json::to_writer_pretty(&mut *out, &self.envelope(status, document))?;
                out.write_all(b"\n")
            }
            false => write!(out, "{text}{}", self.report_line()),
        })
        .map(drop)
    }

    /// [`result`](Self::result) of a command whose output is in its place: that it cannot be told is only noted.
    pub fn made(&self, document: impl Serialize, text: impl Display) {
        self.note_unprinted(self.result(Status::Ok, document, text));
    }

    /// Prints one of many results, whole and on a line of its own: `document` with `--json`, else `text`; a failure's text
    /// goes to stderr. Called from any thread. The outputs are in their places, so that nothing here is an error.
    pub fn batch_line(&self, (status, document): (Status, Value), text: &str) {
        let print = || match (self.json, status) {
            (true, _) => self.json_line(status, document),
            (false, Status::Ok) if self.quiet => Ok(()),
            (false, Status::Ok) => write_stdout(text),
            (false, Status::Failed) => {
                to_stderr(text);
                Ok(())
            }
        };
        self.note_unprinted(self.progress.suspend(print));
    }

    /// Prints what became of all.
    pub fn batch_end(&self, status: Status, document: Value, text: &str) {
        self.progress.clear();
        self.note_unprinted(if self.json { self.json_line(status, document) } else { write_stdout(text) });
    }

    fn note_unprinted(&self, printed: Result<()>) {
        if let Err(e) = printed {
            self.note(&format!("the output is in its place, but {}", e.message()));
        }
    }

    fn json_line(&self, status: Status, document: Value) -> Result<()> {
        // Made first: threads write whole lines.
        let mut line = serde_json::to_string(&self.envelope(status, document)).unwrap_or_default();
        line.push('\n');
        write_stdout(&line)
    }

    fn envelope<D: Serialize>(&self, status: Status, document: D) -> Envelope<D> {
        Envelope {
            schema_version: SCHEMA_VERSION,
            command: self.command,
            status: if status == Status::Ok { "ok" } else { "failed" },
            document,
            report: self.report.get().map(|path| path.to_string_lossy().into_owned()),
        }
    }

    /// Text between the results of several steps, on stdout.
    pub fn heading(&self, text: &str) -> Result<()> {
        self.stream(text).map(drop)
    }

    /// Text as it is made, on stdout; breaks off once the reader has closed it.
    pub fn stream(&self, text: &str) -> Result<ControlFlow<()>> {
        self.progress.clear();
        if self.json { Ok(ControlFlow::Continue(())) } else { to_stdout(|out| out.write_all(text.as_bytes())) }
    }

    /// A line for people, on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.progress.clear();
            to_stderr(&format!("{}: {}\n", paint_stderr("note", "36"), escape(text)));
        }
    }

    /// Reports an error: one line, the causes with `-v`, and the document with `--json`.
    pub fn error(&self, e: &Error) {
        self.progress.clear();
        let mut text = format!("{}: {e}\n", paint_stderr("error", "31;1"));
        e.detail_lines().iter().for_each(|line| text += &format!("  {}\n", escape(line)));
        hints(e, &self.given)
            .iter()
            .for_each(|line| text += &format!("{}: {}\n", paint_stderr("hint", "36"), escape(line)));
        if self.verbose {
            let mut cause = e.source();
            while let Some(c) = cause {
                text += &format!("  caused by: {}\n", escape(&c.to_string()));
                cause = c.source();
            }
        }
        to_stderr(&text);
        if self.json {
            self.error_document(e);
        } else {
            // The error itself is what matters, and it is on stderr.
            let _ = write_stdout(&self.report_line());
        }
    }

    /// The document of a command that failed.
    pub fn error_document(&self, e: &Error) {
        // The error itself is what matters, and it is on stderr.
        let _ = self.result(Status::Failed, error_fields(e, &self.given), "");
    }

    /// Shows how far the work is, on a terminal; see [`Progress::report`].
    pub fn progress(&self, done: u64, total: u64, unit: Unit) {
        self.progress.report(done, total, unit);
    }
}

/// What every JSON document has around its own fields.
#[derive(Serialize)]
struct Envelope<D> {
    schema_version: u32,
    command: &'static str,
    status: &'static str,
    #[serde(flatten)]
    document: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<String>,
}

/// An error as a document.
pub fn error_fields(e: &Error, given: &Given) -> Value {
    json!({ "error": {
        "code": e.code().slug(),
        "exit_code": e.code().exit_code(),
        "file": e.path().map(|p| p.to_string_lossy()),
        "field": e.field_name(),
        "offset": e.offset(),
        "message": e.message(),
        "details": e.detail_lines(),
        "hints": hints(e, given),
    }})
}

/// Notes and errors: that nobody can read them changes nothing about what was done.
pub fn to_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn write_stdout(text: &str) -> Result<()> {
    to_stdout(|out| out.write_all(text.as_bytes())).map(drop)
}

/// Breaks off where the reader has closed the pipe, which is no error.
fn to_stdout(write: impl FnOnce(&mut Stdout) -> io::Result<()>) -> Result<ControlFlow<()>> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(e) => Err(Error::new(Code::Io, format!("cannot write to stdout: {e}")).caused_by(e)),
    }
}

fn colour_wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn paint_stderr(text: &str, ansi: &str) -> String {
    if colour_wanted(io::stderr().is_terminal()) { format!("\x1b[{ansi}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `PASS` or `FAIL`, the word always, the colour where there is one.
pub fn verdict(pass: bool) -> String {
    let (word, ansi) = if pass { ("PASS", "32;1") } else { ("FAIL", "31;1") };
    if colour_wanted(io::stdout().is_terminal()) { format!("\x1b[{ansi}m{word}\x1b[0m") } else { word.to_owned() }
}
