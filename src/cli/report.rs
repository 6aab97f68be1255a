//! `--report`, the same for every command that has it.

use std::path::{Path, PathBuf};

use super::ui::Ui;
use crate::error::{Result, escape};
use crate::format::output::Overwrite;
use crate::report::ReportFile;

/// A report to come, refused before the long work where it cannot be written.
pub struct Pending {
    file: ReportFile,
    path: PathBuf,
}

pub fn create(path: Option<&Path>, force: bool, inputs: &[Option<&PathBuf>]) -> Result<Option<Pending>> {
    let Some(path) = path else { return Ok(None) };
    let inputs: Vec<&Path> = inputs.iter().flatten().map(|p| p.as_path()).collect();
    let overwrite = if force { Overwrite::Force } else { Overwrite::Never };
    Ok(Some(Pending { file: ReportFile::create(path, overwrite, &inputs)?, path: path.to_owned() }))
}

impl Pending {
    pub fn write(self, html: &str, ui: &Ui) -> Result<()> {
        self.file.write(html)?;
        ui.note(&format!("report written to {}", escape(&self.path.to_string_lossy())));
        Ok(())
    }
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}
