//! A case, and how tables of them are run: code, message, time and memory of each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ptplus::error::{Code, Error, Result};

/// What no file may exceed, whatever it says.
pub const TIME: Duration = Duration::from_secs(2);
pub const MEMORY_MIB: usize = 256;
/// Bytes of an error's line; it may name a file, a field and what stands there, each shortened.
const LINE_BYTES: usize = 5_000;

/// A reader, checking that what it accepts hangs together.
pub type Read = fn(Vec<u8>) -> Result<()>;

pub struct Case {
    pub name: String,
    file: Build,
    /// `None`: the file is right.
    want: Option<Code>,
}

#[cfg(all(feature = "cli", feature = "runner"))]
impl Case {
    /// File and code, where it is to be refused and not large.
    pub fn refused(self) -> Option<(Vec<u8>, Code)> {
        match self.file {
            Build::Bytes(bytes) => Some((bytes, self.want?)),
            Build::Later(_) => None,
        }
    }
}

/// Large files are built one at a time.
enum Build {
    Bytes(Vec<u8>),
    Later(fn() -> Vec<u8>),
}

pub fn refused(name: impl Into<String>, file: impl Into<Vec<u8>>, code: Code) -> Case {
    Case { name: name.into(), file: Build::Bytes(file.into()), want: Some(code) }
}

pub fn accepted(name: impl Into<String>, file: impl Into<Vec<u8>>) -> Case {
    Case { name: name.into(), file: Build::Bytes(file.into()), want: None }
}

pub fn large(name: &str, file: fn() -> Vec<u8>, want: Option<Code>) -> Case {
    Case { name: name.into(), file: Build::Later(file), want }
}

/// Memory is that of the process, so that tests which need much, or measure it, take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs a table; what comes back is what went wrong.
pub fn check(table: &str, cases: Vec<Case>, read: Read) -> Vec<String> {
    let mut failures = Vec::new();
    for Case { name, file, want } in cases {
        let file = match file {
            Build::Bytes(bytes) => bytes,
            Build::Later(build) => build(),
        };
        let cost = measured(|| catch_unwind(AssertUnwindSafe(|| read(file))));
        let found = match &cost.result {
            Err(_) => "a panic".to_owned(),
            Ok(Ok(())) => "accepted".to_owned(),
            Ok(Err(e)) => e.to_string(),
        };
        if std::env::var_os("PTPLUS_SHOW").is_some() {
            println!("{table}: {name}: {found} ({:?}, {} MiB)", cost.time, cost.memory_mib);
        }
        let mut fail = |what: String| failures.push(format!("{table}: {name}: {what}"));
        match (&cost.result, want) {
            (Ok(Ok(())), None) => {}
            (Ok(Err(e)), Some(code)) if e.code() == code => fault_of_message(e).into_iter().for_each(&mut fail),
            (_, want) => fail(format!("expected {}, found {found}", want.map_or("acceptance", Code::slug))),
        }
        if cost.time > TIME || cost.memory_mib > MEMORY_MIB {
            fail(format!("took {:?} and {} MiB", cost.time, cost.memory_mib));
        }
    }
    failures
}

/// What every refusal must be: one short line without control characters that names the file.
fn fault_of_message(e: &Error) -> Option<String> {
    let line = e.to_string();
    let fault = if line.chars().any(char::is_control) {
        "the message is not one plain line"
    } else if line.len() > LINE_BYTES {
        "the message is long"
    } else if e.path().is_none() {
        "the message names no file"
    } else {
        return None;
    };
    Some(format!("{fault}: {}", &line[..line.len().min(300)]))
}

pub struct Cost<T> {
    pub result: T,
    pub time: Duration,
    pub memory_mib: usize,
}

/// The computing time of this thread (other builds run beside it) and the growth of the process's memory.
pub fn measured<T>(work: impl FnOnce() -> T) -> Cost<T> {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux forgets a peak when asked to");
    let (before, start) = (status_mib("VmRSS"), time_on_cpu());
    let result = work();
    let (time, peak) = (time_on_cpu() - start, status_mib("VmHWM"));
    Cost { result, time, memory_mib: peak.saturating_sub(before) }
}

fn status_mib(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|l| l.starts_with(field)).expect("Linux has it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("KiB") / 1024
}

fn time_on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    Duration::from_nanos(stat.split_whitespace().next().and_then(|n| n.parse().ok()).expect("nanoseconds"))
}
