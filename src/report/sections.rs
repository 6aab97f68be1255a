//! The parts of a page, each from one kind of result.

use super::page::{Figure, Section, Table};
use super::plot::{Chart, Marks, Series};
use super::{Candidate, Tokens};
use crate::adapter::AdapterConfig;
use crate::import::RECORD_KEY;
use crate::search::Settlement;
use crate::transform::loss::Loss;
use crate::verify::stats::{Metrics, Row};
use crate::verify::tolerance::Limits;
use crate::verify::{self, LayerReport};
use crate::version;

/// Rows of a table of positions or tensors at most; a page of a long prompt would otherwise be all table.
pub(super) const MAX_ROWS: usize = 400;
/// Worst positions that are named.
const WORST: usize = 10;
/// Tokens shown before a position.
const CONTEXT: usize = 12;
/// Bars in one plot.
const MAX_BARS: usize = 64;

/// Sections with something in them.
pub(super) fn shown(sections: Vec<Section>) -> Vec<Section> {
    sections.into_iter().filter(|s| !s.title.is_empty()).collect()
}

pub(super) fn figures(m: &Metrics, limits: &Limits, effect: f64, found_effect: f64) -> Vec<Figure> {
    let figure = |name, found: f64, limit: Option<f64>| Figure {
        name,
        value: number(found),
        beside: limit.map_or("no limit".into(), |l| format!("limit {}", number(l))),
        // NaN is within no limit.
        beyond: limit.is_some_and(|l| found.is_nan() || found > l),
    };
    vec![
        figure("max |\u{394}logit|", m.max_abs, limits.max_abs),
        figure("mean KL, nats", m.mean_kl, limits.mean_kl),
        figure("max KL, nats", m.max_kl, limits.max_kl),
        Figure {
            name: "same top token",
            value: format!("{:.1} %", m.top1_agreement * 100.0),
            beside: format!("of {} positions", m.n_positions),
            beyond: limits.top1_agreement.is_some_and(|l| m.top1_agreement < l),
        },
        Figure {
            name: "effect on the logits",
            value: number(found_effect),
            beside: format!("reference {}", number(effect)),
            beyond: found_effect <= 0.0 || found_effect.is_nan(),
        },
    ]
}

pub(super) fn layers(layers: &[LayerReport], relative: Option<f64>) -> Section {
    if layers.is_empty() {
        return Section::default();
    }
    let series = |name, limit_name, value: fn(&LayerReport) -> Option<f64>, size: fn(&LayerReport) -> Option<f64>| {
        let points: Vec<_> = layers.iter().filter_map(|l| Some((l.layer as f64, value(l)?))).collect();
        let limits =
            layers.iter().filter_map(|l| Some((l.layer as f64, verify::tolerance::LAYER_FLOOR + relative? * size(l)?)));
        let limits: Vec<_> = limits.collect();
        Series { name, points, limit: (!limits.is_empty()).then_some((limit_name, limits)) }
    };
    let term = series("term, max |\u{394}|", "limit of the term", |l| l.term_max_abs, |l| l.term_size);
    let q = Series { limit: None, ..series("query, max |\u{394}|", "", |l| l.q_max_abs, |l| l.q_size) };
    let shown = |x: Option<f64>| x.map_or("-".into(), number);
    let rows = layers.iter().map(|l| {
        vec![l.layer.to_string(), shown(l.term_max_abs), shown(l.term_size), shown(l.q_max_abs), shown(l.q_size)]
    });
    let worst = layers.iter().filter_map(|l| Some((l, l.term_max_abs?))).max_by(|a, b| a.1.total_cmp(&b.1)).map_or(
        String::new(),
        |(l, d)| {
            format!(
                " The largest difference of a term is {} of {}, in layer {}.",
                number(d),
                shown(l.term_size),
                l.layer
            )
        },
    );
    Section {
        title: "Layers",
        text: vec![format!("How far each adapted layer's query and term are from the reference's.{worst}")],
        chart: Some(Chart {
            title: "Error per layer".into(),
            description: format!("{} layers; logarithmic axis.{worst}", layers.len()),
            x_name: "layer",
            y_name: "max |difference|",
            marks: Marks::Points { series: vec![term, q], joined: true },
        }),
        table: None,
        data: Some(Table {
            caption: "Error per layer".into(),
            header: vec!["layer", "max |\u{394}term|", "max |term|", "max |\u{394}q|", "max |q|"],
            n_text: 1,
            rows: rows.collect(),
        }),
    }
}

pub(super) fn positions(rows: &[Row], limits: &Limits, input_ids: &[Vec<u32>], tokens: &Tokens) -> Section {
    let one_row = rows.iter().all(|r| r.batch == 0);
    let place = |i: usize| if one_row { rows[i].position as f64 } else { i as f64 };
    let points: Vec<_> = rows.iter().enumerate().map(|(i, r)| (place(i), r.kl)).collect();
    let limit =
        limits.max_kl.zip(rows.len().checked_sub(1)).map(|(l, last)| ("limit", vec![(place(0), l), (place(last), l)]));
    let mut worst: Vec<&Row> = rows.iter().collect();
    // NaN counts as larger than any number.
    worst.sort_by(|a, b| b.kl.total_cmp(&a.kl).then((a.batch, a.position).cmp(&(b.batch, b.position))));
    let context = |r: &Row| {
        let ids = input_ids.get(r.batch).map_or(&[][..], |ids| &ids[..ids.len().min(r.position + 1)]);
        let start = ids.len().saturating_sub(CONTEXT);
        format!("{}{}", if start > 0 { "\u{2026}" } else { "" }, tokens.text(&ids[start..]))
    };
    let named = worst.iter().take(WORST).map(|r| {
        vec![
            format!("{}:{}", r.batch, r.position),
            context(r),
            tokens.one(r.expected_token as u32),
            if r.expected_token == r.found_token { "same".into() } else { tokens.one(r.found_token as u32) },
            number(r.kl),
            number(r.max_abs),
        ]
    });
    let all = rows.iter().take(MAX_ROWS).map(|r| {
        let id = input_ids.get(r.batch).and_then(|ids| ids.get(r.position));
        vec![
            format!("{}:{}", r.batch, r.position),
            id.map_or(String::new(), |id| tokens.one(*id)),
            number(r.kl),
            number(r.max_abs),
        ]
    });
    let mut text = vec![
        "How far the predicted distribution is from the reference's after each token, as KL divergence in nats."
            .to_owned(),
    ];
    if tokens.is_empty() {
        text.push("The base comes without a vocabulary, so tokens are shown by number.".into());
    }
    let n_bad = rows.iter().filter(|r| !r.kl.is_finite()).count();
    if n_bad > 0 {
        text.push(format!("{n_bad} positions are NaN or infinite, and are not drawn."));
    }
    Section {
        title: "Positions",
        text,
        chart: Some(Chart {
            title: "KL divergence per position".into(),
            description: format!("{} positions, rows one after the other; logarithmic axis.", rows.len()),
            x_name: if one_row { "position" } else { "position, rows one after the other" },
            y_name: "KL, nats",
            marks: Marks::Points { series: vec![Series { name: "KL divergence", points, limit }], joined: false },
        }),
        table: Some(Table {
            caption: "The positions that differ most (row:position)".into(),
            header: vec!["place", "after", "most likely next", "found", "KL", "max |\u{394}logit|"],
            n_text: 4,
            rows: named.collect(),
        }),
        data: Some(Table {
            caption: capped("Every position", rows.len()),
            header: vec!["place", "token", "KL", "max |\u{394}logit|"],
            n_text: 2,
            rows: all.collect(),
        }),
    }
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
fn short(name: &str) -> String {
    const SHOWN_CHARS: usize = 24;
    let name = name.replace("attn_prefix_", "");
    let name = name.strip_suffix(".weight").map(str::to_owned).unwrap_or(name);
    if name.chars().count() > SHOWN_CHARS {
        name.chars().take(SHOWN_CHARS - 1).chain(['\u{2026}']).collect()
    } else {
        name
    }
}

pub(super) fn size_against_error(candidates: &[Candidate]) -> Section {
    if candidates.is_empty() {
        return Section::default();
    }
    let has_kl = candidates.iter().all(|c| c.mean_kl.is_some());
    let error = |c: &Candidate| c.mean_kl.filter(|_| has_kl).unwrap_or(c.relative);
    let points = candidates.iter().map(|c| (c.name.clone(), c.len_bytes as f64, error(c))).collect();
    let rows = candidates.iter().map(|c| {
        vec![c.name.clone(), c.len_bytes.to_string(), number(c.relative), c.mean_kl.map_or("-".into(), number)]
    });
    Section {
        title: "Size against error",
        text: vec!["The same adapter in every type that its rows take, measured the same way. A type whose blocks do not fit is drawn once, as what it falls back to.".into()],
        chart: Some(Chart {
            title: "Size against error".into(),
            description: format!("{} types; the error is on a logarithmic axis.", candidates.len()),
            x_name: "size of the file",
            y_name: if has_kl { "mean KL, nats" } else { "largest relative error" },
            marks: Marks::Scatter(points),
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

pub(super) fn conventions(config: &AdapterConfig, settlement: Option<&Settlement>) -> Section {
    let record = config.extra.get(RECORD_KEY);
    let by = |key: &str| match (settlement.and_then(|s| s.found.get(key)), record.and_then(|r| r.get(key))) {
        (Some(_), _) => "the probe, in this run".to_owned(),
        (None, Some(who)) => {
            format!("{} (recorded at import)", who.as_str().map_or_else(|| who.to_string(), str::to_owned))
        }
        (None, None) => "stated by the adapter".to_owned(),
    };
    let row = |key: &str, value: String| vec![key.to_owned(), value, by(key)];
    let mut rows = vec![
        row("feature_map", config.feature_map.to_string()),
        row("query_tap", config.query_tap.to_string()),
        row("query_scale", config.query_scale.to_string()),
        row("memory_scale", config.memory_scale.to_string()),
        row("memory_sharing", config.memory_sharing.to_string()),
    ];
    let others = settlement.into_iter().flat_map(|s| &s.found);
    rows.extend(others.filter(|(k, _)| !rows_have(k)).map(|(k, v)| row(k, v.clone())));
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

fn rows_have(key: &str) -> bool {
    matches!(key, "feature_map" | "query_tap" | "query_scale" | "memory_scale" | "memory_sharing")
}

pub(super) fn environment(facts: &[(&str, String)], notes: &[String]) -> Section {
    let mut rows = vec![vec!["ptplus".to_owned(), version::long()]];
    rows.push(vec!["platform".into(), format!("{} {}", std::env::consts::ARCH, std::env::consts::OS)]);
    rows.extend(facts.iter().map(|(k, v)| vec![(*k).to_owned(), v.clone()]));
    Section {
        title: "Environment",
        text: notes.iter().map(|n| format!("Note: {n}")).collect(),
        table: Some(Table { caption: "What computed this".into(), header: vec!["what", "value"], n_text: 2, rows }),
        ..Section::default()
    }
}

/// Three significant digits; an exponent only where it saves zeros.
pub(super) fn number(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let text = format!("{x:.2e}");
    match text.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()) {
        Some(exponent @ -3..=4) => format!("{x:.*}", (2 - exponent).max(0) as usize),
        _ => text,
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
    fn numbers_have_three_digits_and_few_zeros() {
        for (x, text) in [
            (0.0, "0"),
            (7.2512, "7.25"),
            (0.045, "0.0450"),
            (0.001234, "0.00123"),
            (1.5e-5, "1.50e-5"),
            (12345.6, "12346"),
            (9.999, "10.0"),
            (1e5, "1.00e5"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(x), text);
        }
    }

    #[test]
    fn what_a_file_says_cannot_become_markup() {
        let page = Page {
            title: "</title><script>x</script>".into(),
            pass: None,
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
