use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::ui::{Status, Ui};
use crate::doctor::{Diagnosis, Linking, diagnose, wrapped};
use crate::error::{Kind, Result, escape};

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 0: the preload library works for this program; 7: it does not. The program is not run.\n\nExample:\n  ptplus doctor /usr/bin/llama-cli"
)]
pub struct Arguments {
    /// Program file
    program: PathBuf,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let found = diagnose(&a.program)?;
    let works = found.linking == Linking::Dynamic;
    ui.result(if works { Status::Ok } else { Status::Failed }, json!(found), text(&found))?;
    Ok(if works { 0 } else { Kind::Unsupported.exit_code() })
}

fn text(d: &Diagnosis) -> String {
    let mut out = String::new();
    let linking: String = match d.linking {
        Linking::Dynamic => "llama.cpp is a shared library".into(),
        Linking::Static => format!("names {}: linked statically, or opened by name", wrapped()),
        Linking::None => "no llama.cpp".into(),
        Linking::Script => "a script".into(),
        Linking::Foreign => "no 64-bit Linux program".into(),
    };
    let _ = writeln!(out, "{}: {linking}", escape(&d.program.to_string_lossy()));
    if !d.needs.is_empty() {
        let _ = writeln!(out, "needs: {}", d.needs.iter().map(|n| escape(n)).collect::<Vec<_>>().join(", "));
    }
    if let Some(name) = &d.called_from {
        let _ = writeln!(out, "called from: {}", escape(name));
    }
    let _ = writeln!(out, "{}", d.advice);
    out
}
