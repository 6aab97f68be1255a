use std::path::PathBuf;

use clap::CommandFactory as _;
use serde_json::json;

use super::Cli;
use super::ui::{Status, Ui};
use crate::error::{Error, Result, escape};
use crate::format::output::{OutputFile, Overwrite};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  ptplus man ~/.local/share/man/man1")]
pub struct Arguments {
    /// Folder for the pages, made if it is not there: ptplus.1 and one for each command
    folder: PathBuf,
    /// Replace existing pages
    #[arg(short, long)]
    force: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let made =
        tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "cannot make a temporary folder", e))?;
    clap_mangen::generate_to(Cli::command(), made.path()).map_err(|e| Error::io(made.path(), "cannot write", e))?;
    std::fs::create_dir_all(&a.folder).map_err(|e| Error::io(&a.folder, "cannot create", e))?;
    let overwrite = if a.force { Overwrite::Force } else { Overwrite::Never };
    let entries = std::fs::read_dir(made.path()).map_err(|e| Error::io(made.path(), "cannot list", e))?;
    let mut pages: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    pages.sort();
    let mut staged = Vec::new();
    for page in &pages {
        let text = std::fs::read(page).map_err(|e| Error::io(page, "cannot read", e))?;
        let out = OutputFile::create(&a.folder.join(page.file_name().unwrap_or_default()), overwrite, &[])?;
        out.write_all_at(0, &text)?;
        staged.push(out);
    }
    staged.into_iter().try_for_each(OutputFile::commit)?;
    let names: Vec<_> = pages.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
    let text = format!("wrote {} pages to {}\n", names.len(), escape(&a.folder.to_string_lossy()));
    ui.result(Status::Ok, json!({ "folder": a.folder.to_string_lossy(), "pages": names }), &text)?;
    Ok(0)
}
