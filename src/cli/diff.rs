use std::fmt::Write as _;
#[cfg(feature = "report")]
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

use super::base_check;
use super::table;
use super::ui::{Status, Ui};
use crate::bundle::diff::{Difference, MetadataDifference, TensorDifference, diff};
use crate::error::{ErrorKind, Result, escape};
#[cfg(feature = "report")]
use crate::format::bundle::{Bundle, VERIFICATION_REPORT, container::is_bundle};
#[cfg(feature = "report")]
use crate::format::json;
#[cfg(feature = "report")]
use crate::format::limits::{MANIFEST_BYTES, MANIFEST_VALUES};
use crate::pipeline::read_adapter;
#[cfg(feature = "report")]
use crate::report::{Side, difference};

#[derive(clap::Args)]
#[command(
    after_help = "Compares what the adapters are, not how their files lie: a safetensors folder and the GGUF made of it are the same. Exit code 0: the same, 5: different.\n\nExamples:\n  ptplus diff adapter/ adapter-q8_0.gguf\n  ptplus diff bundle/ adapter-q8_0.gguf --report diff.html"
)]
pub struct Arguments {
    /// Adapter or bundle
    a: PathBuf,
    /// Adapter or bundle
    b: PathBuf,
    /// Base model of both: for a LoRA in GGUF whose file does not say in which order its rows are
    #[arg(long)]
    base: Option<PathBuf>,
    /// Write both side by side as one HTML page: what they are, say and were proved to compute, and each tensor's difference
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Replace an existing report
    #[cfg(feature = "report")]
    #[arg(short, long, requires = "report")]
    force: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    #[cfg(feature = "report")]
    let file = {
        let inputs = [Some(a.a.as_path()), Some(a.b.as_path()), a.base.as_deref()];
        let others = super::report::Others { inputs: &inputs, bases: &[base.as_ref()], output: None };
        super::report::create(a.report.as_deref(), a.force, &others)?
    };
    let (left, right) = (read_adapter(&a.a, base.as_ref())?, read_adapter(&a.b, base.as_ref())?);
    let d = diff(&left, &right)?;
    #[cfg(feature = "report")]
    if let Some(file) = file {
        let side = |path, adapter| Side { path, adapter, verification: verification(path) };
        file.write(&difference(&side(&a.a, &left), &side(&a.b, &right), &d), ui)?;
    }
    let status = if d.same { Status::Ok } else { Status::Failed };
    ui.result(status, serde_json::json!(d), text(a, &d, ui.is_verbose()))?;
    Ok(if d.same { 0 } else { ErrorKind::Differs.exit_code() })
}

/// What a bundle's own report says; of the same bundle that was just read and checked.
#[cfg(feature = "report")]
fn verification(path: &Path) -> Option<Value> {
    if !is_bundle(path) {
        return None;
    }
    let bundle = Bundle::open(path).ok()?;
    let text = bundle.files.get(VERIFICATION_REPORT).filter(|text| text.len() <= MANIFEST_BYTES)?;
    json::parse_of(text, MANIFEST_VALUES).ok()
}

fn text(a: &Arguments, d: &Difference, verbose: bool) -> String {
    let mut out = String::new();
    for m in &d.metadata {
        metadata_line(&mut out, m, "");
    }
    for m in &d.provenance {
        metadata_line(&mut out, m, " (origin; does not count)");
    }
    let shown: Vec<&TensorDifference> = d.tensors.iter().filter(|t| verbose || !t.is_same()).collect();
    if !shown.is_empty() {
        let rows: Vec<Vec<String>> = shown.iter().map(|t| row(t)).collect();
        out.push_str(&table::table(
            &["tensor", "type", "shape", "differ", "max |d|", "RMSE", "relative", "cosine"],
            &rows,
        ));
    }
    let n_same = d.tensors.iter().filter(|t| t.is_same()).count();
    let verdict = match (d.same, d.only_types) {
        (true, _) => "the same adapter",
        (false, true) => "the same values, stored as other types",
        (false, false) => "different",
    };
    let _ = writeln!(
        out,
        "{} and {}: {verdict}; {n_same} of {} tensors are equal, {} of the metadata differ",
        escape(&a.a.to_string_lossy()),
        escape(&a.b.to_string_lossy()),
        d.tensors.len(),
        d.metadata.len()
    );
    out
}

fn metadata_line(out: &mut String, m: &MetadataDifference, what: &str) {
    let value = |v: &Value| if v.is_null() { "none".to_owned() } else { escape(&v.to_string()) };
    let _ = writeln!(out, "{}: {} -> {}{what}", escape(&m.key), value(&m.a), value(&m.b));
}

fn row(t: &TensorDifference) -> Vec<String> {
    let pair = |a: Option<String>, b: Option<String>| match (a, b) {
        (Some(a), Some(b)) if a == b => a,
        (a, b) => format!("{} -> {}", a.unwrap_or("none".into()), b.unwrap_or("none".into())),
    };
    let shape = |s: &Option<Vec<usize>>| s.as_ref().map(|s| format!("{s:?}"));
    let mut cells =
        vec![escape(&t.name), pair(t.dtype_a.clone(), t.dtype_b.clone()), pair(shape(&t.shape_a), shape(&t.shape_b))];
    if let Some(v) = &t.values {
        let figure = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2e}"));
        cells.extend([
            format!("{} of {}", v.n_differ, v.n_elements),
            format!("{:.2e}", v.max_abs),
            format!("{:.2e}", v.rmse),
            figure(v.relative),
            v.cosine.map_or("-".into(), |x| format!("{x:.7}")),
        ]);
    }
    cells
}
