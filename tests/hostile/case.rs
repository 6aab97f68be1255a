//! A case, and how tables of them are run: code, message, memory and work of each. Work is counted, in bytes that were
//! allocated, since how long it takes says more about the machine than about the reader.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ptplus::error::{Code, Error, Result};

/// What no file may exceed, whatever it says.
pub const MEMORY_MIB: usize = 256;
/// What it may make a reader allocate in all, freed again or not.
pub const ALLOCATED_MIB: u64 = 1024;
/// Processor time in a release build, for the benchmark.
const BENCHMARK_TIME: Duration = Duration::from_secs(2);
/// Bytes of an error's line; it may name a file, a field and what stands there, each shortened.
const LINE_BYTES: usize = 5_000;

/// A reader, checking that what it accepts hangs together.
pub type Read = fn(Vec<u8>) -> Result<()>;

/// A document of these keys and values with `key` as this text; `None` leaves it out.
pub fn json_with(right: &[(&str, &str)], key: &str, value: Option<&str>) -> String {
    let fields = right.iter().copied().filter(|(k, _)| *k != key).chain(value.map(|v| (key, v)));
    let fields: Vec<String> = fields.map(|(k, v)| format!("\"{k}\":{v}")).collect();
    format!("{{{}}}", fields.join(","))
}

pub struct Case {
    pub name: String,
    file: Build,
    /// `None`: the file is right.
    want: Option<Code>,
}

impl Case {
    /// Whether the file is built when it is needed.
    pub fn is_large(&self) -> bool {
        matches!(self.file, Build::Later(_))
    }
}

#[cfg(all(feature = "cli", feature = "runner"))]
impl Case {
    /// The file, right or not, where it is not large.
    pub fn small(&self) -> Option<&[u8]> {
        const BYTES: usize = 64 << 10;
        match &self.file {
            Build::Bytes(bytes) if bytes.len() <= BYTES => Some(bytes),
            _ => None,
        }
    }

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

/// Memory is that of the process: what measures it runs where no other test does, and all that is printed there is printed.
pub fn in_a_process_of_its_own(test: &str) {
    let mut process = Command::new(std::env::current_exe().expect("this program"));
    let show = std::env::var_os("PTPLUS_SHOW").map(|_| "--nocapture");
    let out = process.args([test, "--exact", "--ignored"]).args(show).output().expect("this program runs");
    let said = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    println!("{said}");
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

/// For tests that measure memory, where somebody runs several of them at once.
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
            println!("{table}: {name}: {found} ({cost})");
        }
        let mut fail = |what: String| failures.push(format!("{table}: {name}: {what}"));
        match (&cost.result, want) {
            (Ok(Ok(())), None) => {}
            (Ok(Err(e)), Some(code)) if e.code() == code => fault_of_message(e).into_iter().for_each(&mut fail),
            (_, want) => fail(format!("expected {}, found {found}", want.map_or("acceptance", Code::slug))),
        }
        if cost.is_too_much() {
            fail(format!("took {cost}"));
        }
    }
    failures
}

/// The cases that take more than [`BENCHMARK_TIME`], and what the dearest took.
pub fn slow(table: &str, cases: Vec<Case>, read: Read) -> Vec<String> {
    let mut slow = Vec::new();
    for Case { name, file, .. } in cases {
        let file = match file {
            Build::Bytes(bytes) => bytes,
            Build::Later(build) => build(),
        };
        let cost = measured(|| drop(read(file)));
        if cost.time > BENCHMARK_TIME {
            slow.push(format!("{table}: {name}: {cost}"));
        }
    }
    slow
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
    /// Processor time of this thread: shown, and judged by the benchmark alone.
    time: Duration,
    memory_mib: usize,
    allocated_mib: u64,
}

impl<T> Cost<T> {
    pub fn is_too_much(&self) -> bool {
        self.memory_mib > MEMORY_MIB || self.allocated_mib > ALLOCATED_MIB
    }
}

impl<T> std::fmt::Display for Cost<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} MiB, {} MiB allocated", self.time, self.memory_mib, self.allocated_mib)
    }
}

/// What `work` costs: memory of the process, so that nothing large may run beside it, the rest of this thread.
pub fn measured<T>(work: impl FnOnce() -> T) -> Cost<T> {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux forgets a peak when asked to");
    let (before, start, allocated) = (status_mib("VmRSS"), time_on_cpu(), ALLOCATED.get());
    let result = work();
    let (time, peak) = (time_on_cpu() - start, status_mib("VmHWM"));
    let allocated_mib = (ALLOCATED.get() - allocated) >> 20;
    Cost { result, time, memory_mib: peak.saturating_sub(before), allocated_mib }
}

thread_local! {
    /// Bytes that this thread has allocated so far.
    static ALLOCATED: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending counts no more.
    let _ = ALLOCATED.try_with(|n| n.set(n.get() + bytes as u64));
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator; only a number is kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(memory, layout) }
    }
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
