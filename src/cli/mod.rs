//! Arguments to options, one library call, then text or JSON. One file per command.
//!
//! Results go to stdout, everything else to stderr. Exit codes are those of [`crate::error::ErrorKind`].

mod about;
mod adapters;
mod base_check;
mod batch;
mod check;
mod combine;
mod command;
mod completions;
mod convert;
mod demo;
mod diff;
mod doctor;
mod engine;
mod exec;
mod hash;
mod hints;
mod inspect;
mod job;
mod keygen;
mod llama_cpp_habits;
mod llama_state;
mod man;
mod pack;
mod password;
mod progress;
mod quantize;
mod reading;
#[cfg(feature = "report")]
mod report;
#[cfg(feature = "generate")]
mod run;
mod scaled;
mod seal;
mod suggested;
mod table;
mod text;
mod threads;
mod types;
mod ui;
mod units;
mod unpack;
mod validate;
mod verify;

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::error::{Code, Error, Result};
use ui::Ui;

/// Take Prefix-Tuning+ adapters anywhere, and prove that they still work.
#[derive(Parser)]
#[command(
    name = "ptplus",
    version,
    long_version = long_version(),
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:\n  ptplus demo\n  ptplus convert adapter/ -o adapter.gguf --base model/ \\\n      --probe probe.safetensors\n  ptplus help convert"
)]
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
    /// Convert an adapter between safetensors and GGUF, or a base model to GGUF
    Convert(convert::Arguments),
    /// Quantize an adapter or a base model to GGUF, bit for bit as ggml does, and say what it cost
    Quantize(quantize::Arguments),
    /// Prove that an adapter computes what it should
    Verify(verify::Arguments),
    /// Generate text with adapters, by the base's own tokenizer and chat template
    #[cfg(feature = "generate")]
    Run(run::Arguments),
    /// Make a bundle: a verified adapter with manifest, reports, model card and, if wanted, a signature
    Pack(Box<pack::Arguments>),
    /// Check that a bundle is whole, who signed it, and that a base is the one it was made for
    Check(check::Arguments),
    /// Write a bundle's manifest anew after files beside its adapter have changed, or sign it
    Seal(seal::Arguments),
    /// Extract a bundle after checking it
    Unpack(unpack::Arguments),
    /// Print digests of an adapter and of its tensors
    Hash(hash::Arguments),
    /// Show what differs between two adapters
    Diff(diff::Arguments),
    /// Add adapters of one kind up, each with a weight, to one adapter
    Combine(combine::Arguments),
    /// Make a key pair for signing bundles
    Keygen(keygen::Arguments),
    /// Start a llama.cpp program with adapters in it, as it is
    Exec(exec::Arguments),
    /// Show or change the scales of adapters in a running program
    Adapters(adapters::Arguments),
    /// Say whether a llama.cpp program can take adapters, and why
    Doctor(doctor::Arguments),
    /// Convert and verify a built-in example, showing each step
    Demo(demo::Arguments),
    /// Print a script that completes the command line in a shell
    Completions(completions::Arguments),
    /// Write the manual pages
    Man(man::Arguments),
}

fn long_version() -> &'static str {
    use crate::version as v;
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        format!(
            "{}\ncommit {}\nfeatures {}\nGGUF {}\nggml quantization {}",
            v::VERSION,
            v::commit().unwrap_or("not recorded (a debug build, or no git)"),
            v::features().join(" "),
            v::GGUF,
            v::GGML_QUANTIZATION
        )
    });
    &TEXT
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Command::Inspect(_) => "inspect",
            Command::Validate(_) => "validate",
            Command::Convert(_) => "convert",
            Command::Quantize(_) => "quantize",
            Command::Verify(_) => "verify",
            #[cfg(feature = "generate")]
            Command::Run(_) => "run",
            Command::Pack(_) => "pack",
            Command::Check(_) => "check",
            Command::Seal(_) => "seal",
            Command::Unpack(_) => "unpack",
            Command::Hash(_) => "hash",
            Command::Diff(_) => "diff",
            Command::Combine(_) => "combine",
            Command::Keygen(_) => "keygen",
            Command::Demo(_) => "demo",
            Command::Completions(_) => "completions",
            Command::Man(_) => "man",
            Command::Doctor(_) => "doctor",
            Command::Exec(_) => "exec",
            Command::Adapters(_) => "adapters",
        }
    }

    /// What `--threads` says.
    fn threads(&self) -> Option<u16> {
        match self {
            Command::Convert(a) => a.job.types.threads,
            Command::Quantize(a) => a.job.types.threads,
            Command::Pack(a) => a.types.threads,
            #[cfg(feature = "generate")]
            Command::Run(a) => a.threads,
            _ => None,
        }
    }
}

/// Runs the tool.
///
/// # Safety
///
/// No other thread may run: this writes the environment.
pub unsafe fn main() -> ExitCode {
    let is_json = std::env::args_os().any(|a| a == "--json");
    let mut command = Cli::command();
    let args = match llama_cpp_habits::translated(&command, std::env::args_os().collect()) {
        Ok(args) => args,
        Err(e) => {
            Ui::new(named_command(), is_json, false, false).error(&e);
            return ExitCode::from(e.kind().exit_code());
        }
    };
    let parsed = command.try_get_matches_from_mut(args).and_then(|m| Ok((Cli::from_arg_matches(&m)?, m)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            // Help and version are results, and go to stdout with exit code 0; the rest is a usage error.
            let printed = e.print();
            if let (false, Err(e)) = (e.use_stderr(), printed)
                && e.kind() != std::io::ErrorKind::BrokenPipe
            {
                let ui = Ui::new(named_command(), false, false, false);
                let e = Error::new(Code::Io, format!("cannot write to stdout: {e}")).caused_by(e);
                ui.error(&e);
                return ExitCode::from(e.kind().exit_code());
            }
            if e.use_stderr() && is_json {
                let first_line =
                    e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
                Ui::new(named_command(), true, false, false).error_document(&Error::new(Code::Usage, first_line));
            }
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    // SAFETY: the first thread is that of `watch_signals`, and the caller has none.
    unsafe { threads::set(cli.command.threads()) }
    watch_signals();
    end_at_panics(cli.command.name(), cli.global);
    let given = matches.subcommand().map(|(name, m)| hints::Given::of(name, m)).unwrap_or_default();
    let ui = Ui::new(cli.command.name(), cli.global.json, cli.global.quiet, cli.global.verbose).with_given(given);
    match dispatch(cli, &ui) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            ui.error(&e);
            ExitCode::from(e.code().exit_code())
        }
    }
}

/// The subcommand that a command line names which could not be read; else the program.
fn named_command() -> &'static str {
    let given = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let known =
        Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).find(|name| Some(name) == given.as_ref());
    // The process ends right after.
    known.map_or("ptplus", |name| String::leak(name))
}

/// Runs one command; the result is its exit code.
fn dispatch(cli: Cli, ui: &Ui) -> Result<u8> {
    match cli.command {
        Command::Inspect(a) => inspect::run(&a, ui),
        Command::Validate(a) => validate::run(&a, ui),
        Command::Convert(a) => convert::run(&a, ui),
        Command::Quantize(a) => quantize::run(&a, ui),
        Command::Verify(a) => verify::run(&a, ui),
        #[cfg(feature = "generate")]
        Command::Run(a) => run::run(&a, ui),
        Command::Pack(a) => pack::run(&a, ui),
        Command::Check(a) => check::run(&a, ui),
        Command::Seal(a) => seal::run(&a, ui),
        Command::Unpack(a) => unpack::run(&a, ui),
        Command::Hash(a) => hash::run(&a, ui),
        Command::Diff(a) => diff::run(&a, ui),
        Command::Combine(a) => combine::run(&a, ui),
        Command::Keygen(a) => keygen::run(&a, ui),
        Command::Demo(a) => demo::run(&a, cli.global, ui),
        Command::Completions(a) => completions::run(&a, ui),
        Command::Man(a) => man::run(&a, ui),
        Command::Doctor(a) => doctor::run(&a, ui),
        Command::Exec(a) => exec::run(&a, ui),
        Command::Adapters(a) => adapters::run(&a, ui),
    }
}

/// Exit code after a signal, as shells count: 128 + number.
const SIGNAL_BASE: i32 = 128;

/// Removes staged files when the user interrupts: an output appears whole or not at all.
fn watch_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // Without a handler the default applies: the process dies, and the next run removes what it left.
    let ignored = ignored_signals();
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| ignored >> (s - 1) & 1 == 0);
    let Ok(mut signals) = signal_hook::iterator::Signals::new(watched) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            crate::format::output::discard_all();
            let slug = Code::Interrupted.slug();
            ui::to_stderr(&format!("ptplus: interrupted; no unfinished output was kept [{slug}]\n"));
            std::process::exit(SIGNAL_BASE + signal);
        }
    });
}

/// A panic ends a release build where it happens (`panic = "abort"`), so what unwinding would do is done before: staged files go, and a
/// template that the engine stops at is an error like any other, in one line.
fn end_at_panics(command: &'static str, global: Global) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        #[cfg(feature = "generate")]
        if let Some(e) = crate::generate::template_panic(panic) {
            crate::format::output::discard_all();
            Ui::new(command, global.json, global.quiet, global.verbose).error(&e);
            std::process::exit(e.code().exit_code().into());
        }
        print(panic);
        crate::format::output::discard_all();
    }));
}

/// Signals that whoever started this process has it ignore (`nohup` does): they stay ignored, also in a program that takes
/// its place. Signal 1 is the lowest bit.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}

fn usage(flag: &str, message: impl Into<String>) -> Error {
    Error::new(Code::Usage, message).field(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples_that_parse() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            // Lines that a terminal of 80 columns would break are continued as a shell reads them.
            assert!(help.lines().all(|l| !l.starts_with("  ") || l.len() <= 78), "{help}");
            let help = help.replace(" \\\n", " ");
            let examples: Vec<&str> = help.lines().map(str::trim).filter(|l| l.starts_with("ptplus ")).collect();
            let own = format!("ptplus {} ", command.get_name());
            assert!(
                examples.iter().any(|e| format!("{e} ").starts_with(&own)),
                "{} has no example",
                command.get_name()
            );
            for example in examples {
                let example = example.split(" > ").next().unwrap_or_default();
                // Odd pieces between single quotes are one word each, spaces and all.
                let words: Vec<String> = (example.split('\'').enumerate())
                    .flat_map(|(i, piece)| match i % 2 {
                        0 => piece.split_whitespace().map(str::to_owned).collect(),
                        _ => vec![piece.to_owned()],
                    })
                    .collect();
                assert!(Cli::try_parse_from(&words).is_ok(), "{example}");
            }
        }
        Cli::command().debug_assert();
    }

    #[test]
    fn the_reference_page_is_what_help_prints() {
        const COLUMNS: usize = 100;
        let mut page = String::from(
            "# Command line\n\nWhat `ptplus help COMMAND` prints, for a build with the default features. Exit codes are in the \
             [README](../README.md), error codes in [ERRORS.md](ERRORS.md).\n",
        );
        let mut root = Cli::command().term_width(COLUMNS);
        root.build();
        let mut section = |title: &str, command: &mut clap::Command| {
            let help = command.render_long_help().to_string();
            let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
            page.push_str(&format!("\n## {title}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
        };
        section("ptplus", &mut root);
        let names: Vec<String> =
            root.get_subcommands().map(|c| c.get_name().to_owned()).filter(|n| n != "help").collect();
        for name in names {
            let command = root.find_subcommand_mut(&name).expect("a name of the list");
            section(&format!("ptplus {name}"), command);
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CLI.md");
        if std::env::var_os("PTPLUS_WRITE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        // Features add flags, and the page shows those of the default build.
        if cfg!(all(feature = "generate", feature = "report", not(feature = "cuda"), not(feature = "llama-cpp"))) {
            assert!(
                std::fs::read_to_string(&path).unwrap_or_default() == page,
                "docs/CLI.md is out of date: run the tests once with PTPLUS_WRITE_DOCS=1"
            );
        }
    }
}
