use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::ui::{Status, Ui};
use crate::doctor::{Caller, Diagnosis, Verdict, diagnose};
use crate::error::{ErrorKind, Result, escape};

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 0: `ptplus exec` can bring adapters into it; 7: it cannot, or that cannot be told. Nothing is run.\n\nExamples:\n  ptplus doctor /usr/bin/llama-server\n  ptplus doctor venv/\n  ptplus doctor node_modules/"
)]
pub struct Arguments {
    /// Program, script, library, or a folder of libraries such as a venv or node_modules
    program: PathBuf,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let found = diagnose(&a.program)?;
    let works = found.verdict == Verdict::Graftable;
    ui.result(if works { Status::Ok } else { Status::Failed }, json!(found), text(&found))?;
    Ok(if works { 0 } else { ErrorKind::Unsupported.exit_code() })
}

fn text(d: &Diagnosis) -> String {
    let mut out = String::new();
    let path = |p: &PathBuf| escape(&p.to_string_lossy());
    let answer = match d.verdict {
        Verdict::Graftable => "can take adapters",
        Verdict::Undecided => "cannot be told",
        Verdict::Bound | Verdict::Static | Verdict::None | Verdict::Foreign => "cannot take adapters",
    };
    let _ = writeln!(out, "{}: {answer}", path(&d.program));
    for interpreter in &d.interpreters {
        let _ = writeln!(out, "run by: {}", path(interpreter));
    }
    if let Some(object) = &d.object {
        let _ = writeln!(out, "object: {}", caller(object));
    }
    let _ = writeln!(out, "reason: {}", escape(&d.reason));
    for other in &d.others {
        let _ = writeln!(out, "also: {}", caller(other));
    }
    if !d.not_found.is_empty() {
        let names: Vec<String> = d.not_found.iter().map(|n| escape(n)).collect();
        let _ = writeln!(out, "not found: {}", names.join(", "));
    }
    if let Some(advice) = d.advice {
        let _ = writeln!(out, "{advice}");
    }
    out
}

fn caller(c: &Caller) -> String {
    let mut out = format!("{} ({})", escape(&c.path.to_string_lossy()), c.machine);
    if c.through.len() > 1 {
        let names: Vec<String> = c.through.iter().map(|n| escape(n)).collect();
        let _ = write!(out, ", through {}", names.join(" > "));
    }
    out
}
