//! `--report`, the same for every command that has it.

use std::path::{Path, PathBuf};

use super::ui::Ui;
use super::usage;
use crate::base::BaseModel;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::format::bundle::place;
use crate::format::output::{Overwrite, resolved};
use crate::report::ReportFile;

/// A report to come, refused before the long work where it cannot be written.
pub struct Pending {
    file: ReportFile,
    path: PathBuf,
}

/// What a command reads and writes, none of which its report may replace.
pub struct Others<'a> {
    /// Files and folders.
    pub inputs: &'a [Option<&'a Path>],
    /// Bases, which may lie in several files.
    pub bases: &'a [Option<&'a BaseModel>],
    /// The command's own output.
    pub output: Option<&'a Path>,
}

/// # Errors
///
/// Those of [`ReportFile::create`]; [`Code::Usage`] for a name that is none of a page; [`Code::OutputIsInput`] where the report would replace one of `others`, also
/// with `force`.
pub fn create(path: Option<&Path>, force: bool, others: &Others<'_>) -> Result<Option<Pending>> {
    let Some(path) = path else { return Ok(None) };
    let ending = path.extension().map(|e| e.to_ascii_lowercase());
    if ending.is_none_or(|e| e != "html" && e != "htm") {
        return Err(usage("--report", format!("expected a name that ends in .html or .htm, found {path:?}")));
    }
    place::refuse_inside_bundle(path)?;
    // By name, since the output need not exist yet.
    if let Some(output) = others.output
        && resolved(path).starts_with(resolved(output))
    {
        let message = format!("the report would lie in the place of the output {}", output.display());
        return Err(Error::new(Code::OutputIsInput, message).file(path));
    }
    let mut files: Vec<PathBuf> = others.inputs.iter().flatten().chain(&others.output).flat_map(|p| files(p)).collect();
    files.extend(others.bases.iter().flatten().flat_map(|base| base.files()));
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let overwrite = if force { Overwrite::Force } else { Overwrite::Never };
    Ok(Some(Pending { file: ReportFile::create(path, overwrite, &files)?, path: path.to_owned() }))
}

/// `path`, and what lies directly in it if it is a folder.
fn files(path: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    [path.to_owned()].into_iter().chain(inside).collect()
}

impl Pending {
    /// Writes the page; the command's result then says where it is. Before the result, which is the command's last word.
    pub fn write(self, html: &str, ui: &Ui) -> Result<()> {
        self.file.write(html)?;
        ui.wrote_report(self.path);
        Ok(())
    }
}

/// Writes the page of a command that failed with `e` because numbers differ; of other failures there is nothing to show.
/// That it cannot be written is only noted: the command ends with its own error.
pub fn write_failure(file: Option<Pending>, e: &Error, page: impl FnOnce() -> Result<String>, ui: &Ui) {
    let Some(file) = file.filter(|_| e.kind() == ErrorKind::Differs) else { return };
    if let Err(e) = page().and_then(|html| file.write(&html, ui)) {
        ui.note(&format!("no report was written: {e}"));
    }
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}
