//! How many threads compute, said to rayon and to candle by the variable that both read.
//!
//! Candle would read `/proc/cpuinfo` before each matrix product, which takes 8% of a small model's time on two cores, and would
//! heed neither `--threads` nor a container's limit.

use std::process::Command;
use std::sync::OnceLock;

const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Set where the variable is ours and not that of whoever started the program.
static IS_OURS: OnceLock<()> = OnceLock::new();

/// Says it: `stated` threads, else as many as the environment says, else as many as the process may use.
///
/// # Safety
///
/// No other thread may run: this writes the environment.
pub unsafe fn set(stated: Option<u16>) {
    let n = match stated {
        Some(n) => usize::from(n),
        None if std::env::var_os(VARIABLE).is_some() => return,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    // SAFETY: the caller's promise.
    unsafe { std::env::set_var(VARIABLE, n.to_string()) }
    IS_OURS.get_or_init(|| ());
}

/// Leaves it out of what a program of somebody else gets, unless it was there.
pub fn forget(command: &mut Command) {
    if IS_OURS.get().is_some() {
        command.env_remove(VARIABLE);
    }
}
