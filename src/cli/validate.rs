use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::base_check::{self, BaseCheck};
use super::progress::Unit;
use super::reading::Reading;
use super::ui::{Status, Ui};
use crate::base::fingerprint::{Depth, Identity};
use crate::error::{Code, Result, escape};
use crate::finding::Finding;
use crate::validate::BaseMismatch;
use crate::{import, validate};

#[derive(clap::Args)]
#[command(
    after_help = "Reads headers, configuration and every adapter tensor; of the base only headers and configuration, unless --deep.\n\nExample:\n  ptplus validate fixtures/models/llama-gqa/adapter \\\n      --base fixtures/models/llama-gqa/base"
)]
pub struct Arguments {
    /// Adapter: canonical folder, GGUF, or a checkpoint of another training code
    adapter: PathBuf,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// Also read the base's weights: NaN and Inf, and whether they are those that the adapter was made for
    #[arg(long, requires = "base")]
    deep: bool,
    #[command(flatten)]
    base_check: BaseCheck,
    #[command(flatten)]
    reading: Reading,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let opened = import::open(&a.adapter, &a.reading.options()?, base.as_ref())?;
    let mut identity = None;
    let (mut findings, mut notes, mut exit) = match validate::check_opened(opened, base.as_ref())? {
        Ok(mut v) => {
            if base.is_some() && !v.states_its_base() {
                v.notes.push("the adapter does not state its base's model_type: that it fits this base in more than its shapes, only `ptplus verify` can tell".into());
            }
            let mut findings = Vec::new();
            if let Some(base) = &base {
                let depth = if a.deep { Depth::Weights } else { Depth::Headers };
                identity = v.confirm_base(base, depth, BaseMismatch::Ignore)?;
                if let (Some(Identity::Different(reason)), BaseMismatch::Refuse) = (&identity, a.base_check.mismatch())
                {
                    let expected = "the base that the adapter was made for";
                    findings.push(Finding::new(Code::BaseDiffers, "base", expected, format!("another: {reason}")));
                }
            }
            let exit = findings.first().map_or(0, |f| f.code.kind().exit_code());
            (findings, v.notes, exit)
        }
        Err(r) => {
            let exit = r.kind().exit_code();
            (r.findings, [r.notes, r.hints].concat(), exit)
        }
    };
    if let Some(base) = base.as_ref().filter(|_| a.deep) {
        let bad = base.bad_weights(&|done, total| ui.progress(done, total, Unit::Bytes))?;
        if !bad.is_empty() {
            exit = crate::error::ErrorKind::Corrupt.exit_code();
        }
        findings.extend(bad);
    }
    if base.is_none() {
        notes.push("checked against its own configuration only; --base checks that it fits its model".into());
    }
    let status = if exit == 0 { Status::Ok } else { Status::Failed };
    let document = Document {
        adapter: a.adapter.to_string_lossy(),
        base: a.base.as_ref().map(|b| b.to_string_lossy()),
        pass: exit == 0,
        findings: &findings,
        notes: &notes,
        base_identity: identity.as_ref(),
    };
    ui.result(status, document, text(a, &findings))?;
    notes.iter().for_each(|n| ui.note(n));
    base_check::note(ui, identity.as_ref());
    Ok(exit)
}

#[derive(Serialize)]
struct Document<'a> {
    adapter: Cow<'a, str>,
    base: Option<Cow<'a, str>>,
    pass: bool,
    findings: &'a [Finding],
    notes: &'a [String],
    base_identity: Option<&'a Identity>,
}

fn text(a: &Arguments, findings: &[Finding]) -> String {
    let name = escape(&a.adapter.to_string_lossy());
    if findings.is_empty() {
        let fits = a.base.as_ref().map_or(String::new(), |b| format!(" and fits {}", escape(&b.to_string_lossy())));
        return format!("{name}: valid{fits}\n");
    }
    let mut out = format!("{name}: {} finding{}\n", findings.len(), if findings.len() == 1 { "" } else { "s" });
    for f in findings {
        let _ = writeln!(out, "  {}", f.line());
    }
    out
}
