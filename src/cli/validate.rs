use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::reading::Reading;
use super::ui::{Status, Ui};
use crate::base::BaseModel;
use crate::error::{Result, escape};
use crate::finding::Finding;
use crate::{import, validate};

#[derive(clap::Args)]
#[command(
    after_help = "Reads headers, configuration and every adapter tensor; of the base only headers and configuration, unless --deep.\n\nExample:\n  ptplus validate fixtures/models/llama-gqa/adapter --base fixtures/models/llama-gqa/base"
)]
pub struct Arguments {
    /// Adapter: canonical folder, GGUF, or a checkpoint of another training code
    adapter: PathBuf,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// Also read the base's weights, looking for NaN and Inf
    #[arg(long, requires = "base")]
    deep: bool,
    #[command(flatten)]
    reading: Reading,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(BaseModel::open).transpose()?;
    let imported = import::read(&a.adapter, &a.reading.options()?, base.as_ref())?;
    let (mut findings, mut notes, mut exit) = match validate::check(imported, base.as_ref()) {
        Ok(mut v) => {
            if base.is_some() && !v.states_its_base() {
                v.notes.push("the adapter does not state its base's model_type: that it fits this base in more than its shapes, only `ptplus verify` can tell".into());
            }
            (Vec::new(), v.notes, 0)
        }
        Err(r) => {
            let exit = r.kind().exit_code();
            (r.findings, r.notes, exit)
        }
    };
    if let Some(base) = base.as_ref().filter(|_| a.deep) {
        let bad = base.non_finite_weights()?;
        if !bad.is_empty() {
            exit = crate::error::Kind::Corrupt.exit_code();
        }
        findings.extend(bad);
    }
    if base.is_none() {
        notes.push("checked against its own configuration only; --base checks that it fits its model".into());
    }
    let status = if exit == 0 { Status::Ok } else { Status::Failed };
    let document = json!({ "adapter": a.adapter.to_string_lossy(), "base": a.base.as_ref().map(|b| b.to_string_lossy()), "pass": exit == 0, "findings": findings, "notes": notes });
    ui.result(status, document, &text(a, &findings))?;
    notes.iter().for_each(|n| ui.note(n));
    Ok(exit)
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
