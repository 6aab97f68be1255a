//! The command-line tool; everything is in the library.

fn main() -> std::process::ExitCode {
    // SAFETY: nothing has started a thread.
    unsafe { ptplus::cli::main() }
}
