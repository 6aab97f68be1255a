use std::path::PathBuf;

use serde_json::json;

use super::ui::{Status, Ui};
use super::usage;
use crate::error::{Result, escape};
use crate::exec::control::{Control, scale_of};

#[derive(clap::Args)]
#[command(
    after_help = "The program sees a change before its next token. What it has in its cache was computed with the old scales. Scale 0 is off.\n\nExamples:\n  ptplus adapters scales\n  ptplus adapters scales --set pirate=0.5 --set 2=0"
)]
pub struct Arguments {
    /// The file that `ptplus exec --control` made
    path: PathBuf,
    /// Change a scale; NAME as the file has it, or the adapter's number
    #[arg(long, value_name = "NAME=SCALE")]
    set: Vec<String>,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let changes: Vec<(String, f32)> = a.set.iter().map(|text| change(text)).collect::<Result<_>>()?;
    let control = if changes.is_empty() { Control::read(&a.path)? } else { Control::change(&a.path, &changes)? };
    let adapters: Vec<serde_json::Value> =
        control.adapters.iter().map(|(name, scale)| json!({ "name": name, "scale": scale })).collect();
    let text: String = control.adapters.iter().map(|(name, scale)| format!("{} {scale}\n", escape(name))).collect();
    ui.result(Status::Ok, json!({ "control": a.path.to_string_lossy(), "adapters": adapters }), text)?;
    Ok(0)
}

fn change(text: &str) -> Result<(String, f32)> {
    let wrong = || usage("--set", format!("expected NAME=SCALE, found {text:?}"));
    let (name, scale) = text.rsplit_once('=').ok_or_else(wrong)?;
    match scale_of(scale) {
        Some(scale) if !name.is_empty() => Ok((name.to_owned(), scale)),
        _ => Err(wrong()),
    }
}
