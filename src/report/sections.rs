//! The parts of a page, each from one kind of result.

use super::Alternative;
use super::axis::number;
use super::page::{Section, Table};
use super::plot::{Chart, Group, Marks};
use crate::adapter::Adapter;
use crate::adapter::field::Field;
use crate::adapter::plus::find_field;
use crate::import::RECORD_KEY;
use crate::search::Settlement;
use crate::transform::loss::Loss;
use crate::validate::Validated;
use crate::version;

/// Rows of a table of positions or tensors at most; a page of a long prompt would otherwise be all table.
pub(super) const MAX_ROWS: usize = 400;
/// Bars in one plot.
pub(super) const MAX_BARS: usize = 64;

/// Sections with something in them.
pub(super) fn shown(sections: Vec<Section>) -> Vec<Section> {
    sections.into_iter().filter(|s| !s.title.is_empty()).collect()
}

pub(super) fn tensors(losses: &[(String, String, u64, Loss)], none: &str) -> Section {
    if losses.is_empty() {
        return Section { title: "Tensors", text: vec![none.into()], ..Section::default() };
    }
    let mut largest: Vec<usize> = (0..losses.len()).collect();
    largest.sort_by(|a, b| losses[*b].3.relative.total_cmp(&losses[*a].3.relative).then(a.cmp(b)));
    largest.truncate(MAX_BARS);
    largest.sort_unstable();
    let bars = largest.iter().map(|i| (short(&losses[*i].0), losses[*i].3.relative)).collect();
    let rows = losses.iter().take(MAX_ROWS).map(|(name, types, len_bytes, l)| {
        vec![
            name.clone(),
            types.clone(),
            len_bytes.to_string(),
            number(l.relative),
            number(l.rmse),
            number(l.max_abs),
            format!("{:.7}", l.cosine),
        ]
    });
    let is_exact = losses.iter().all(|l| l.3 == Loss::NONE);
    let text = match is_exact {
        true => format!("All {} tensors hold the same values as the source.", losses.len()),
        false => "What the type of each tensor cost: the root mean square of the error over that of the values.".into(),
    };
    Section {
        title: "Tensors",
        text: vec![text],
        lines: Vec::new(),
        chart: (!is_exact).then(|| Chart {
            title: "Relative error per tensor".into(),
            description: match losses.len() > MAX_BARS {
                true => format!("The {MAX_BARS} largest of {} tensors; logarithmic axis.", losses.len()),
                false => format!("{} tensors; logarithmic axis.", losses.len()),
            },
            x_name: "relative error",
            y_name: "tensor",
            marks: Marks::Bars(bars),
        }),
        table: None,
        data: Some(Table {
            caption: capped("Error per tensor", losses.len()),
            header: vec!["tensor", "type", "bytes", "relative", "RMSE", "max |\u{394}|", "cosine"],
            n_text: 2,
            rows: rows.collect(),
        }),
    }
}

/// `blk.3.memory` for `blk.3.attn_prefix_memory.weight`: room for the bar.
pub(super) fn short(name: &str) -> String {
    const SHOWN_CHARS: usize = 24;
    let name = name.replace("attn_prefix_", "");
    let name = name.strip_suffix(".weight").map(str::to_owned).unwrap_or(name);
    if name.chars().count() > SHOWN_CHARS {
        name.chars().take(SHOWN_CHARS - 1).chain(['\u{2026}']).collect()
    } else {
        name
    }
}

/// `own` is the output that the page is about, under its name.
pub(super) fn size_against_error(alternatives: &[Alternative], own: Alternative) -> Section {
    if alternatives.is_empty() {
        return Section::default();
    }
    let has_kl = alternatives.iter().all(|c| c.mean_kl.is_some());
    let error = |c: &Alternative| if has_kl { c.mean_kl } else { Some(c.relative) };
    let point = |c: &Alternative| Some((c.name.clone(), c.len_bytes as f64, error(c)?));
    let types = Group { name: "one type for all tensors", points: alternatives.iter().filter_map(point).collect() };
    let drawn = Group { name: "this output", points: point(&own).into_iter().collect() };
    let rows = alternatives.iter().chain([&own]).map(|c| {
        vec![c.name.clone(), c.len_bytes.to_string(), number(c.relative), c.mean_kl.map_or("-".into(), number)]
    });
    Section {
        title: "Size against error",
        text: vec!["The same adapter in every type that its rows take, measured the same way. A type whose blocks do not fit is drawn once, as what it falls back to.".into()],
        lines: Vec::new(),
        chart: Some(Chart {
            title: "Size against error".into(),
            description: format!("{} types; the error is on a logarithmic axis.", alternatives.len()),
            x_name: "size of the file",
            y_name: if has_kl { "mean KL, nats" } else { "largest relative error" },
            marks: Marks::Scatter(types, drawn),
        }),
        table: None,
        data: Some(Table {
            caption: "Size against error".into(),
            header: vec!["type", "bytes", "largest relative error", "mean KL"],
            n_text: 1,
            rows: rows.collect(),
        }),
    }
}

pub(super) fn conventions(adapter: &Validated, settlement: Option<&Settlement>) -> Section {
    let record = adapter.adapter().extra().get(RECORD_KEY);
    let by = |key: &str| match (settlement.and_then(|s| s.found.get(key)), record.and_then(|r| r.get(key))) {
        (Some(_), _) => "the probe, in this run".to_owned(),
        (None, Some(who)) => {
            format!("{} (recorded at import)", who.as_str().map_or_else(|| who.to_string(), str::to_owned))
        }
        (None, None) => "stated by the adapter".to_owned(),
    };
    let row = |key: &str, value: String| vec![key.to_owned(), value, by(key)];
    let mut rows = match adapter.adapter() {
        Adapter::Plus(plus) => {
            let conventions = plus.fields().filter(|(field, _)| field.is_convention());
            conventions.map(|(field, value)| row(field.key, value.to_string())).collect()
        }
        Adapter::Lora(_) | Adapter::Prefix(_) => {
            adapter.adapter().conventions().map(|(key, value)| row(key, value)).collect::<Vec<_>>()
        }
    };
    let order_by = match &adapter.origin.gguf_architecture {
        Some(architecture) => format!("the file's architecture, {architecture}"),
        None => "its form: only GGUF has another".into(),
    };
    rows.push(vec!["row_order".into(), adapter.origin.row_order.name().into(), order_by]);
    let others = settlement.into_iter().flat_map(|s| &s.found);
    let is_in_rows = |key: &str| find_field(key).is_some_and(Field::is_convention);
    rows.extend(others.filter(|(k, _)| !is_in_rows(k)).map(|(k, v)| row(k, v.clone())));
    Section {
        title: "Conventions",
        text: settlement.map(|s| s.line()).into_iter().collect(),
        table: Some(Table {
            caption: "How the numbers are to be read, and who says so".into(),
            header: vec!["convention", "value", "settled by"],
            n_text: 3,
            rows,
        }),
        ..Section::default()
    }
}

/// `device` is where something was computed, if anything was.
pub(super) fn environment(device: Option<&str>, notes: &[String]) -> Section {
    let mut rows = vec![vec!["ptplus".to_owned(), version::long()]];
    rows.push(vec!["platform".into(), format!("{} {}", std::env::consts::ARCH, std::env::consts::OS)]);
    rows.extend(device.map(|d| vec!["device".into(), d.into()]));
    Section {
        title: "Environment",
        text: notes.iter().map(|n| format!("Note: {n}")).collect(),
        table: Some(Table { caption: "What computed this".into(), header: vec!["what", "value"], n_text: 2, rows }),
        ..Section::default()
    }
}

pub(super) fn capped(what: &str, n: usize) -> String {
    if n > MAX_ROWS { format!("{what}: the first {MAX_ROWS} of {n}") } else { what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::page::Page;
    use super::*;

    #[test]
    fn names_are_shortened_and_never_cut_a_character() {
        assert_eq!(short("blk.3.attn_prefix_memory.weight"), "blk.3.memory");
        assert_eq!(short(&"\u{e9}".repeat(40)).chars().count(), 24);
    }

    #[test]
    fn what_a_file_says_cannot_become_markup() {
        let page = Page {
            title: "</title><script>x</script>".into(),
            pass: None,
            within: vec!["<b>".into()],
            lead: vec!["<img src=x onerror=y>\u{202e}".into()],
            figures: Vec::new(),
            sections: vec![tensors(
                &[("\"><svg onload=z>".into(), "<b>".into(), 1, Loss { relative: 0.1, ..Loss::NONE })],
                "",
            )],
        };
        let html = page.html();
        for bad in ["<script", "<img", "<svg onload", "<b>", "\u{202e}"] {
            assert!(!html.contains(bad), "{bad}");
        }
    }
}
