use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::base_check::{self, BaseCheck};
use super::progress::Unit;
use super::ui::{self, Status, Ui};
use super::usage;
use crate::base::fingerprint::{Depth, Identity};
use crate::bundle::claims;
use crate::error::{ErrorKind, Result, escape};
use crate::format::bundle::check::{Checked, Demands, Signature, check_reporting};
use crate::format::bundle::signature::{self, PublicKey};
use crate::format::bundle::tar::Strictness;
use crate::format::bundle::{Bundle, MANIFEST_FILE, MODEL_FILE, container, model_signing};
use crate::format::mmap::map_file;
use crate::inspect::{Content, content_of};
use crate::pipeline::read_adapter;
use crate::validate::BaseMismatch;

#[derive(clap::Args)]
#[command(
    after_help = "Every rule, size and SHA-256 of the manifest; no other files, no links; of a tar archive every byte. Texts for people are their owner's to edit: README.md, LICENSE*, NOTICE*, .gitattributes, images in assets; --strict counts them too. A SHA-256 proves that nothing changed, not who made it: --trusted-key wants a signature by that key.\n\nExamples:\n  ptplus check bundle/\n  ptplus check bundle.tar --base model/ --trusted-key publisher.pub"
)]
pub struct Arguments {
    /// Bundle: folder or tar archive
    bundle: PathBuf,
    /// Also check that this is the base that the adapter was made for
    #[arg(long)]
    base: Option<PathBuf>,
    /// Require a signature by this public key: a file (minisign's, or PEM for model.sig), or minisign's key itself in base64
    #[arg(long, value_name = "KEY")]
    trusted_key: Option<String>,
    /// Also refuse texts for people that are not as packed (README.md, LICENSE, images), and whatever else was added (.git)
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    base_check: BaseCheck,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let keys = Keys::read(a.trusted_key.as_deref())?;
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let bundle = Bundle::open(&a.bundle).map_err(|e| e.hints(not_a_bundle(&a.bundle)))?;
    let demands = Demands { is_strict: a.strict, ..keys.demands() };
    let mut checked = check_reporting(&bundle, demands, &|done, total| ui.progress(done, total, Unit::Bytes));
    let mut identity = None;
    let is_model = bundle.files.contains_key(MODEL_FILE);
    if is_model && base.is_some() {
        return Err(usage("--base", "expected none beside a bundle of a model, which is a base itself"));
    }
    if let Some(manifest) = checked.manifest.as_ref().filter(|_| checked.pass() && is_model) {
        checked.findings = claims::compare_contents(manifest, &bundle)?;
    }
    if let Some(manifest) = checked.manifest.as_ref().filter(|_| checked.pass() && !is_model) {
        // What is inside must also be an adapter, fit, and be the one that the manifest describes.
        let adapter = read_adapter(&a.bundle, base.as_ref())?;
        checked.findings = claims::compare(manifest, &bundle, &adapter);
        if let Some(base) = base.as_ref().filter(|_| checked.pass()) {
            if a.base_check.mismatch() == BaseMismatch::Refuse {
                claims::confirm_base(manifest, &adapter, base)?;
            }
            identity = adapter.confirm_base(base, Depth::Weights, a.base_check.mismatch())?;
            if identity.is_none() {
                checked.notes.push(
                    "the adapter does not say which base it was made for: that it is this one is not known".into(),
                );
            }
        }
    }
    if !checked.pass() {
        checked.notes.extend(not_a_bundle(&a.bundle).or_else(|| of_another_program(&a.bundle, &bundle)));
    }
    let status = if checked.pass() { Status::Ok } else { Status::Failed };
    let document = json!({
        "bundle": a.bundle.to_string_lossy(),
        "pass": checked.pass(),
        "findings": checked.findings,
        "n_files": bundle.files.len(),
        "signature": checked.signature,
        "model_signature": checked.model_signature,
        "has_self_sha256": checked.manifest.as_ref().map(|m| m.has_self_digest),
        "base_identity": identity,
        "notes": checked.notes,
    });
    ui.result(status, document, text(a, &bundle, &checked, identity.as_ref()))?;
    checked.notes.iter().for_each(|n| ui.note(n));
    base_check::note(ui, identity.as_ref());
    Ok(if checked.pass() { 0 } else { ErrorKind::Integrity.exit_code() })
}

/// A trusted key, of either kind.
#[derive(Default)]
pub struct Keys {
    minisign: Option<PublicKey>,
    model: Option<model_signing::PublicKey>,
}

impl Keys {
    /// From the file that is named, or minisign's key itself.
    pub fn read(text_or_path: Option<&str>) -> Result<Keys> {
        let Some(text) = text_or_path else { return Ok(Keys::default()) };
        let path = Path::new(text);
        match map_file(path).ok().filter(|bytes| model_signing::is_pem(bytes)) {
            Some(bytes) => {
                let key =
                    model_signing::PublicKey::from_pem(&String::from_utf8_lossy(&bytes)).map_err(|e| e.file(path))?;
                Ok(Keys { model: Some(key), ..Keys::default() })
            }
            None => Ok(Keys { minisign: Some(signature::public_key(text)?), ..Keys::default() }),
        }
    }

    /// The signature that is wanted.
    pub fn demands(&self) -> Demands<'_> {
        Demands { trusted: self.minisign.as_ref(), trusted_model: self.model.as_ref(), is_strict: false }
    }
}

/// What helps where an adapter is given that nobody has packed.
pub fn not_a_bundle(path: &Path) -> Option<String> {
    let is_adapter = !container::is_bundle(path) && content_of(path) == Some(Content::Adapter);
    let shown = path.to_string_lossy();
    is_adapter.then(|| {
        format!(
            "{shown} is an adapter, not a bundle: `ptplus validate` checks it, and `ptplus pack` makes a bundle of it"
        )
    })
}

/// What helps where an archive holds a bundle, and is not written as `pack` does.
fn of_another_program(path: &Path, bundle: &Bundle) -> Option<String> {
    let unpacked = Bundle::open_as(path, Strictness::Unpack).ok()?;
    let is_whole = unpacked.findings.is_empty() && unpacked.files.contains_key(MANIFEST_FILE);
    (bundle.is_tar && is_whole && (!bundle.findings.is_empty() || !unpacked.files.keys().eq(bundle.files.keys()))).then(
        || {
            "this archive is not as `ptplus pack` writes it: `ptplus unpack` takes it, and checks every file in it"
                .to_owned()
        },
    )
}

fn text(a: &Arguments, bundle: &Bundle, checked: &Checked, identity: Option<&Identity>) -> String {
    let mut out = String::new();
    for f in &checked.findings {
        let _ = writeln!(out, "failed: {}", f.line());
    }
    let words = |signature: &Signature| match signature {
        Signature::None => "not signed".to_owned(),
        Signature::Trusted { key_id } => format!("signed by the trusted key {key_id}"),
        Signature::Valid { key_id } => format!("signed by key {key_id}"),
        Signature::Unchecked => "signature not checked".into(),
        Signature::Invalid => "signature does not hold".into(),
    };
    let signed = match (&checked.signature, &checked.model_signature) {
        (one, Signature::None) => words(one),
        (Signature::None, one) => format!("{} (model.sig)", words(one)),
        (one, other) => format!("{}, {} (model.sig)", words(one), words(other)),
    };
    let base = match identity {
        Some(Identity::Same) => ", made for this base",
        _ => "",
    };
    let name = escape(&a.bundle.to_string_lossy());
    let _ = writeln!(out, "{} {name}: {} files, {signed}{base}", ui::verdict(checked.pass()), bundle.files.len());
    out
}
