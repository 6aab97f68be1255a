use std::path::PathBuf;

use serde_json::json;

use super::check::{Keys, not_a_bundle};
use super::progress::Unit;
use super::ui::Ui;
use crate::bundle::claims;
use crate::error::{Result, escape};
use crate::format::bundle::check::check_reporting;
use crate::format::bundle::tar::Strictness;
use crate::format::bundle::{Bundle, place};
use crate::format::output::{OutputFolder, Replace};

#[derive(clap::Args)]
#[command(
    after_help = "The bundle is checked first, and nothing is written where anything is wrong. Archives that other programs made of a bundle are taken too (any order, owner, time; folders; a leading ./ or one folder around them).\n\nExample:\n  ptplus unpack bundle.tar -o bundle"
)]
pub struct Arguments {
    /// Bundle: tar archive or folder
    bundle: PathBuf,
    /// Folder to write
    #[arg(short, long, visible_alias = "outfile", value_name = "FOLDER")]
    output: PathBuf,
    /// Require a signature by this public key: a file (minisign's, or PEM for model.sig), or minisign's key itself in base64
    #[arg(long, value_name = "KEY")]
    trusted_key: Option<String>,
    /// Replace an existing bundle: what its manifest lists, unless anything else lies there
    #[arg(short, long)]
    force: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let keys = Keys::read(a.trusted_key.as_deref())?;
    let help = || not_a_bundle(&a.bundle);
    let bundle = Bundle::open_as(&a.bundle, Strictness::Unpack).map_err(|e| e.hints(help()))?;
    let checked = check_reporting(&bundle, keys.demands(), &|done, total| ui.progress(done, total, Unit::Bytes));
    if let Some(e) = checked.to_error() {
        return Err(e.file(&a.bundle).hints(help()));
    }
    // What is inside must also be an adapter or a model, and the one that the manifest describes.
    let claims = checked.manifest.as_ref().map(|m| claims::compare_contents(m, &bundle)).transpose()?;
    if let Some(first) = claims.iter().flatten().next() {
        return Err(first.to_error().file(&a.bundle));
    }
    place::refuse_inside_bundle(&a.output)?;
    let replace = if a.force { Replace::Files(place::files_of_bundle(&a.output)) } else { Replace::Nothing };
    let folder = OutputFolder::create(&a.output, replace, &[&a.bundle])?;
    for (path, bytes) in &bundle.files {
        let file = folder.file(path)?;
        file.write_all_at(0, bytes)?;
        bytes.release();
    }
    folder.commit()?;
    let document = json!({
        "output": a.output.to_string_lossy(),
        "files": bundle.files.keys().collect::<Vec<_>>(),
        "signature": checked.signature,
        "model_signature": checked.model_signature,
    });
    let text = format!(
        "unpacked {} -> {}: {} files\n",
        escape(&a.bundle.to_string_lossy()),
        escape(&a.output.to_string_lossy()),
        bundle.files.len()
    );
    ui.made(document, text);
    checked.notes.iter().for_each(|n| ui.note(n));
    Ok(0)
}
