use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use super::Cli;
use super::ui::{Status, Ui};
use crate::error::Result;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ptplus completions bash > ~/.local/share/bash-completion/completions/ptplus\n  ptplus completions zsh > ~/.zfunc/_ptplus\n  ptplus completions fish > ~/.config/fish/completions/ptplus.fish"
)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "ptplus", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    ui.result(Status::Ok, json!({ "shell": a.shell.to_string(), "script": text }), text)?;
    Ok(0)
}
