//! Arguments to options, one library call, then text or JSON. One file per command.
//!
//! Results go to stdout, everything else to stderr. Exit codes are those of [`crate::error::Kind`].

mod convert;
mod demo;
mod inspect;
mod quantize;
mod reading;
mod types;
mod ui;
mod validate;
mod verify;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::{Code, Error, Result};
use ui::Ui;

/// Take Prefix-Tuning+ adapters anywhere, and prove that they still work.
#[derive(Parser)]
#[command(name = "ptplus", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Args, Clone, Copy)]
struct Global {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Print results only: no notes, no progress
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print the causes of an error, and more detail in reports
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a file or folder is: adapter, base model, GGUF or safetensors
    Inspect(inspect::Arguments),
    /// Check an adapter against its base model, listing every mismatch
    Validate(validate::Arguments),
    /// Convert an adapter between safetensors and GGUF
    Convert(convert::Arguments),
    /// Quantize an adapter to GGUF, bit for bit as ggml does, and say what it cost
    Quantize(quantize::Arguments),
    /// Prove that an adapter computes what it should
    Verify(verify::Arguments),
    /// Convert and verify a built-in example, showing each step
    Demo(demo::Arguments),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Command::Inspect(_) => "inspect",
            Command::Validate(_) => "validate",
            Command::Convert(_) => "convert",
            Command::Quantize(_) => "quantize",
            Command::Verify(_) => "verify",
            Command::Demo(_) => "demo",
        }
    }
}

/// Runs the tool.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results, and go to stdout with exit code 0; the rest is a usage error.
            let _ = e.print();
            if e.use_stderr() && std::env::args_os().any(|a| a == "--json") {
                let first_line =
                    e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
                Ui::new("ptplus", true, false, false).error_document(&Error::new(Code::Usage, first_line));
            }
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    watch_signals();
    let ui = Ui::new(cli.command.name(), cli.global.json, cli.global.quiet, cli.global.verbose);
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            ui.error(&e);
            ExitCode::from(e.kind().exit_code())
        }
    }
}

/// Runs one command; the result is its exit code.
fn dispatch(cli: Cli) -> Result<u8> {
    let ui = Ui::new(cli.command.name(), cli.global.json, cli.global.quiet, cli.global.verbose);
    match cli.command {
        Command::Inspect(a) => inspect::run(&a, &ui),
        Command::Validate(a) => validate::run(&a, &ui),
        Command::Convert(a) => convert::run(&a, &ui),
        Command::Quantize(a) => quantize::run(&a, &ui),
        Command::Verify(a) => verify::run(&a, &ui),
        Command::Demo(a) => demo::run(&a, &ui),
    }
}

/// Exit code after a signal, as shells count: 128 + number.
const SIGNAL_BASE: i32 = 128;

/// Removes staged files when the user interrupts: an output appears whole or not at all.
fn watch_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // Without a handler the default applies: the process dies, and the next run removes what it left.
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            crate::format::output::discard_all();
            eprintln!("ptplus: interrupted; nothing was written [{}]", Code::Interrupted.slug());
            std::process::exit(SIGNAL_BASE + signal);
        }
    });
}

fn usage(flag: &str, message: impl Into<String>) -> Error {
    Error::new(Code::Usage, message).field(flag)
}
