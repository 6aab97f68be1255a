use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::base_check;
use super::table;
use super::ui::{Status, Ui};
use crate::bundle::diff::{Difference, MetadataDifference, TensorDifference, diff};
use crate::error::{Kind, Result, escape};
use crate::pipeline::read_adapter;

#[derive(clap::Args)]
#[command(
    after_help = "Compares what the adapters are, not how their files lie: a safetensors folder and the GGUF made of it are the same. Exit code 0: the same, 5: different.\n\nExample:\n  ptplus diff adapter/ adapter-q8_0.gguf"
)]
pub struct Arguments {
    /// Adapter or bundle
    a: PathBuf,
    /// Adapter or bundle
    b: PathBuf,
    /// Base model of both: for a LoRA in GGUF whose file does not say in which order its rows are
    #[arg(long)]
    base: Option<PathBuf>,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let (left, right) = (read_adapter(&a.a, base.as_ref())?, read_adapter(&a.b, base.as_ref())?);
    let d = diff(&left, &right)?;
    let status = if d.same { Status::Ok } else { Status::Failed };
    ui.result(status, json!(d), text(a, &d, ui.is_verbose()))?;
    Ok(if d.same { 0 } else { Kind::Differs.exit_code() })
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
