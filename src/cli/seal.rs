use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::password::PasswordArguments;
use super::ui::Ui;
use super::usage;
use crate::bundle::seal::{Change, Signers, seal};
use crate::error::{Result, escape};
use crate::format::bundle::model_signing;
use crate::format::bundle::signature::Signer;

#[derive(clap::Args)]
#[command(
    after_help = "For whoever has added or changed files beside the adapter and wants them under the manifest, or signs a bundle anew. The adapter, its reports and its provenance are never sealed again: what changed there is refused, since only `ptplus pack` proves an adapter. A card needs no sealing.\n\nExamples:\n  ptplus seal bundle/ --unsigned\n  ptplus seal bundle.tar --sign publisher.key --password-file password"
)]
pub struct Arguments {
    /// Bundle: folder or tar archive, sealed in place
    bundle: PathBuf,
    /// Sign the manifest with this secret key
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Sign all files with this secret key (P-256, PEM), as OpenSSF's model signing does: model.sig
    #[arg(long, value_name = "KEY")]
    sign_oms: Option<PathBuf>,
    #[command(flatten)]
    password: PasswordArguments,
    /// Drop signatures that no key is given for
    #[arg(long)]
    unsigned: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    if a.sign.is_none() && (a.password.file().is_some() || a.password.is_without()) {
        return Err(usage("--password-file", "expected it beside --sign"));
    }
    let signer = a.sign.as_deref().map(|key| Signer::open(key, a.password.for_key()?)).transpose()?;
    let model_signer = a.sign_oms.as_deref().map(model_signing::Signer::open).transpose()?;
    let signers = Signers { manifest: signer.as_ref(), model: model_signer.as_ref() };
    let sealed = seal(&a.bundle, signers, a.unsigned).map_err(|e| e.hints(super::check::not_a_bundle(&a.bundle)))?;
    let mut text = String::new();
    for (path, change) in &sealed.changes {
        let what = match change {
            Change::Added => "added",
            Change::Changed => "changed",
            Change::Removed => "removed",
        };
        let _ = writeln!(text, "{what} {}", escape(path));
    }
    sealed.dropped.iter().for_each(|file| {
        let _ = writeln!(text, "dropped {file}");
    });
    let signed = match sealed.signed.is_empty() {
        true => "not signed".to_owned(),
        false => format!("signed: {}", sealed.signed.join(", ")),
    };
    let _ = writeln!(text, "sealed {}: {} files, {signed}", escape(&a.bundle.to_string_lossy()), sealed.n_files);
    let mut document = json!(sealed);
    document["bundle"] = a.bundle.to_string_lossy().into();
    ui.made(document, text);
    Ok(0)
}
