//! Two adapters, or bundles, side by side.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::axis::number;
use super::identity::{Subjects, identity};
use super::name;
use super::page::{Page, Section, Table};
use super::plot::{Chart, Marks};
use super::sections::{MAX_BARS, MAX_ROWS, capped, environment, short};
use crate::about::About;
use crate::bundle::diff::{Difference, TensorDifference};
use crate::import::foreign;
use crate::validate::Validated;

/// One of the two.
pub struct Side<'a> {
    /// What was given.
    pub path: &'a Path,
    /// The adapter at it.
    pub adapter: &'a Validated,
    /// Of a bundle, the report on its verification.
    pub verification: Option<Value>,
}

/// The page of a comparison: what each is, says, and was proved to compute, and where they differ.
pub fn difference(a: &Side<'_>, b: &Side<'_>, d: &Difference) -> String {
    let n_same = d.tensors.iter().filter(|t| t.is_same()).count();
    let verdict = match (d.same, d.only_types) {
        (true, _) => "The same adapter",
        (false, true) => "The same values, stored as other types",
        (false, false) => "Different",
    };
    let lead = format!(
        "{verdict}: {n_same} of {} tensors are equal, {} of the metadata differ. A is {}, B is {}.",
        d.tensors.len(),
        d.metadata.len(),
        name(a.path),
        name(b.path)
    );
    let mut notes = Vec::new();
    let adapters = [("A", a.adapter), ("B", b.adapter)];
    let subjects = Subjects { adapters: &adapters, base: None, probe: None, source_sha256: None };
    let sections = vec![
        what_they_are(a, b, d),
        side_by_side("What they say", said(a), said(b), "Neither says anything beside its numbers."),
        side_by_side("What was proved", proved(a), proved(b), "Neither is a bundle, which brings a report."),
        tensors(&d.tensors),
        identity(&subjects, &mut notes),
        environment(None, &notes),
    ];
    Page {
        title: format!("{} and {}", name(a.path), name(b.path)),
        pass: Some(d.same),
        within: Vec::new(),
        lead: vec![lead],
        figures: Vec::new(),
        sections,
    }
    .html()
}

type Facts = Vec<(String, String)>;

fn what_they_are(a: &Side<'_>, b: &Side<'_>, d: &Difference) -> Section {
    let facts = |side: &Side<'_>| {
        let adapter = side.adapter.adapter();
        let layers: Vec<String> = adapter.layer_numbers().map(|i| i.to_string()).collect();
        let mut facts: Facts = vec![
            ("kind".into(), adapter.kind().name().into()),
            ("form".into(), side.adapter.origin.layout.clone()),
            ("row order".into(), side.adapter.origin.row_order.name().into()),
            ("layers".into(), layers.join(", ")),
        ];
        facts.extend(adapter.conventions().map(|(key, value)| (key.to_owned(), value)));
        facts
    };
    let (mut of_a, mut of_b) = (facts(a), facts(b));
    // What is carried for others comes below, as what they say.
    for m in d.metadata.iter().chain(&d.provenance).filter(|m| m.key != foreign::KEY) {
        if !of_a.iter().chain(&of_b).any(|(key, _)| *key == m.key) {
            of_a.push((m.key.clone(), shown(&m.a)));
            of_b.push((m.key.clone(), shown(&m.b)));
        }
    }
    side_by_side("What they are", of_a, of_b, "")
}

fn said(side: &Side<'_>) -> Facts {
    let said = About::of(side.adapter.adapter()).map(|about| about.to_json()).unwrap_or_default();
    said.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), shown(value))).collect()
}

/// Figures of a bundle's report.
fn proved(side: &Side<'_>) -> Facts {
    let Some(report) = &side.verification else { return Vec::new() };
    let found = [
        ("compared with", "/reference"),
        ("positions", "/metrics/n_positions"),
        ("max |\u{394}logit|", "/metrics/max_abs"),
        ("limit of it", "/limits/max_abs"),
        ("mean KL, nats", "/metrics/mean_kl"),
        ("top-1 agreement", "/metrics/top1_agreement"),
        ("effect on the logits", "/found_effect"),
    ];
    let fact = |(what, pointer): (&str, &str)| Some((what.to_owned(), shown(report.pointer(pointer)?)));
    found.into_iter().filter_map(fact).collect()
}

/// A row for each fact of either, and whether they differ.
fn side_by_side(title: &'static str, a: Facts, b: Facts, none: &str) -> Section {
    if a.is_empty() && b.is_empty() {
        return Section { title, text: vec![none.into()], ..Section::default() };
    }
    let mut seen = BTreeSet::new();
    let keys = a.iter().chain(&b).map(|(key, _)| key).filter(|key| seen.insert((*key).clone()));
    let of = |facts: &Facts, key: &str| facts.iter().find(|(k, _)| k == key).map_or("-".to_owned(), |(_, v)| v.clone());
    let row = |key: &String| {
        let (a, b) = (of(&a, key), of(&b, key));
        let differs = if a == b { "" } else { "differ" };
        vec![key.clone(), a, b, differs.into()]
    };
    let table = Table {
        caption: title.into(),
        header: vec!["what", "A", "B", "difference"],
        n_text: 4,
        rows: keys.map(row).collect(),
    };
    Section { title, table: Some(table), ..Section::default() }
}

fn tensors(all: &[TensorDifference]) -> Section {
    let relative = |t: &TensorDifference| t.values.and_then(|v| v.relative).filter(|x| *x > 0.0);
    let mut bars: Vec<(String, f64)> = all.iter().filter_map(|t| Some((short(&t.name), relative(t)?))).collect();
    bars.sort_by(|x, y| y.1.total_cmp(&x.1));
    bars.truncate(MAX_BARS);
    let pair = |a: Option<String>, b: Option<String>| match (a.unwrap_or("none".into()), b.unwrap_or("none".into())) {
        (a, b) if a == b => a,
        (a, b) => format!("{a} -> {b}"),
    };
    let shape = |s: &Option<Vec<usize>>| s.as_ref().map(|s| format!("{s:?}"));
    let figure = |x: Option<f64>| x.map_or("-".into(), number);
    let rows = all.iter().take(MAX_ROWS).map(|t| {
        let v = t.values;
        vec![
            t.name.clone(),
            pair(t.dtype_a.clone(), t.dtype_b.clone()),
            pair(shape(&t.shape_a), shape(&t.shape_b)),
            v.map_or("-".into(), |v| format!("{} of {}", v.n_differ, v.n_elements)),
            figure(v.map(|v| v.max_abs)),
            figure(v.and_then(|v| v.relative)),
            figure(v.map(|v| v.rms[0])),
            figure(v.map(|v| v.rms[1])),
        ]
    });
    Section {
        title: "Tensors",
        text: vec![if bars.is_empty() { "No tensor of both has other values.".into() } else { String::new() }],
        chart: (!bars.is_empty()).then(|| Chart {
            title: "Relative difference per tensor".into(),
            description: format!("{} tensors whose values differ, the largest first; logarithmic axis.", bars.len()),
            x_name: "relative difference",
            y_name: "tensor",
            marks: Marks::Bars(bars),
        }),
        table: Some(Table {
            caption: capped("Every tensor of either", all.len()),
            header: vec!["tensor", "type", "shape", "differ", "max |\u{394}|", "relative", "RMS of A", "RMS of B"],
            n_text: 4,
            rows: rows.collect(),
        }),
        ..Section::default()
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
