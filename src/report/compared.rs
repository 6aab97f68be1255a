//! Two adapters run on a base, on a page: figures, layers, positions.

use super::axis::number;
use super::page::{Figure, Section, Table};
use super::plot::{Chart, Marks, Series};
use super::sections::{MAX_ROWS, capped};
use super::tokens::Tokens;
use crate::pipeline::OutputError;
use crate::verify::stats::{Metrics, Row};
use crate::verify::tolerance::{LAYER_FLOOR, Limits};
use crate::verify::{self, LayerReport};

/// Worst positions that are marked and named.
const WORST: usize = 10;
/// Tokens shown before a position.
const CONTEXT: usize = 12;

/// A verification, or an output that was run beside its source.
pub(super) struct Compared<'a> {
    pub metrics: &'a Metrics,
    pub limits: Limits,
    pub effect: f64,
    pub found_effect: f64,
    pub layers: &'a [LayerReport],
    pub positions: &'a [Row],
}

impl<'a> From<&'a verify::Report> for Compared<'a> {
    fn from(r: &'a verify::Report) -> Self {
        Compared {
            metrics: &r.metrics,
            limits: r.limits,
            effect: r.effect,
            found_effect: r.found_effect,
            layers: &r.layers,
            positions: &r.positions,
        }
    }
}

impl<'a> From<&'a OutputError> for Compared<'a> {
    fn from(e: &'a OutputError) -> Self {
        Compared {
            metrics: &e.metrics,
            limits: Limits::default(),
            effect: e.effect,
            found_effect: e.found_effect,
            layers: &e.layers,
            positions: &e.positions,
        }
    }
}

impl Compared<'_> {
    pub fn figures(&self) -> Vec<Figure> {
        let (m, limits) = (self.metrics, &self.limits);
        let figure = |name, found: f64, limit: Option<f64>| Figure {
            name,
            value: number(found),
            context: limit.map_or("no limit".into(), |l| format!("limit {}", number(l))),
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
                context: format!("of {} positions", m.n_positions),
                beyond: limits.top1_agreement.is_some_and(|l| m.top1_agreement < l),
            },
            Figure {
                name: "effect on the logits",
                value: number(self.found_effect),
                context: format!("reference {}", number(self.effect)),
                beyond: self.found_effect <= 0.0 || self.found_effect.is_nan(),
            },
        ]
    }

    pub fn sections(&self, input_ids: &[Vec<u32>], tokens: &Tokens) -> Vec<Section> {
        vec![
            layers(self.layers, self.limits.layer_relative),
            positions(self.positions, &self.limits, input_ids, tokens),
        ]
    }
}

fn layers(layers: &[LayerReport], relative: Option<f64>) -> Section {
    if layers.is_empty() {
        let text = "No layer was compared, so there is no plot of them: the reference holds neither queries (q.N) nor terms \
                    (term.N), which a probe may leave out.";
        return Section { title: "Layers", text: vec![text.into()], ..Section::default() };
    }
    let series = |name, limit_name, value: fn(&LayerReport) -> Option<f64>, size: fn(&LayerReport) -> Option<f64>| {
        let points: Vec<_> = layers.iter().filter_map(|l| Some((l.layer as f64, value(l)?))).collect();
        let limits = layers.iter().filter_map(|l| Some((l.layer as f64, LAYER_FLOOR + relative? * size(l)?)));
        let limits: Vec<_> = limits.collect();
        Series { name, points, limit: (!limits.is_empty()).then_some((limit_name, limits)), is_labelled: false }
    };
    let term = series("term, max |\u{394}|", "limit of the term", |l| l.term_max_abs, |l| l.term_size);
    let q = series("query, max |\u{394}|", "limit of the query", |l| l.q_max_abs, |l| l.q_size);
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
        lines: Vec::new(),
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

/// A position is named by its number among those compared, as the axis counts them, and by its row and place there.
fn positions(rows: &[Row], limits: &Limits, input_ids: &[Vec<u32>], tokens: &Tokens) -> Section {
    let mut worst: Vec<usize> = (0..rows.len()).collect();
    // NaN counts as larger than any number.
    worst.sort_by(|a, b| rows[*b].kl.total_cmp(&rows[*a].kl).then(a.cmp(b)));
    worst.truncate(WORST);
    worst.retain(|i| rows[*i].kl != 0.0);
    let points = |is_worst: bool| -> Vec<(f64, f64)> {
        let these = (0..rows.len()).filter(|i| worst.contains(i) == is_worst);
        these.map(|i| (i as f64, rows[i].kl)).collect()
    };
    // A limit of 0 has no place on a logarithmic axis.
    let limit = limits.max_kl.filter(|l| *l > 0.0).zip(rows.len().checked_sub(1));
    let limit = limit.map(|(l, last)| ("limit", vec![(0.0, l), (last as f64, l)]));
    let series = vec![
        Series { name: "KL divergence", points: points(false), limit, is_labelled: false },
        Series { name: "the largest, with their numbers", points: points(true), limit: None, is_labelled: true },
    ];
    let context = |r: &Row| {
        let ids = input_ids.get(r.batch).map_or(&[][..], |ids| &ids[..ids.len().min(r.position + 1)]);
        let start = ids.len().saturating_sub(CONTEXT);
        format!("{}{}", if start > 0 { "\u{2026}" } else { "" }, tokens.text(&ids[start..]))
    };
    let place = |r: &Row| format!("{}:{}", r.batch, r.position);
    let named = worst.iter().map(|i| {
        let r = &rows[*i];
        vec![
            i.to_string(),
            place(r),
            context(r),
            tokens.one(r.expected_token as u32),
            if r.expected_token == r.found_token { "same".into() } else { tokens.one(r.found_token as u32) },
            number(r.kl),
            number(r.max_abs),
        ]
    });
    let all = rows.iter().enumerate().take(MAX_ROWS).map(|(i, r)| {
        let id = input_ids.get(r.batch).and_then(|ids| ids.get(r.position));
        vec![i.to_string(), place(r), id.map_or(String::new(), |id| tokens.one(*id)), number(r.kl), number(r.max_abs)]
    });
    let mut text = vec![
        "How far the predicted distribution is from the reference's after each token, as KL divergence in nats. Positions are numbered from 0, row after row."
            .to_owned(),
    ];
    if tokens.is_empty() {
        text.push("The base comes without a vocabulary, so tokens are shown by their ids.".into());
    }
    let named = Table {
        caption: "The positions that differ most, marked in the plot".into(),
        header: vec!["no.", "row:position", "after", "most likely next", "found", "KL", "max |\u{394}logit|"],
        n_text: 5,
        rows: named.collect(),
    };
    Section {
        title: "Positions",
        text,
        lines: Vec::new(),
        chart: Some(Chart {
            title: "KL divergence per position".into(),
            description: format!("{} positions, row after row; logarithmic axis.", rows.len()),
            x_name: "no. of the position",
            y_name: "KL, nats",
            marks: Marks::Points { series, joined: false },
        }),
        table: (!named.rows.is_empty()).then_some(named),
        data: Some(Table {
            caption: capped("Every position", rows.len()),
            header: vec!["no.", "row:position", "token", "KL", "max |\u{394}logit|"],
            n_text: 3,
            rows: all.collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(layer: usize) -> LayerReport {
        LayerReport { layer, q_max_abs: Some(1e-3), q_size: Some(4.0), term_max_abs: Some(1e-4), term_size: Some(1.0) }
    }

    fn row(batch: usize, position: usize, kl: f64) -> Row {
        Row { batch, position, max_abs: kl, kl, expected_token: 1, found_token: 1 }
    }

    fn series(section: &Section) -> &[Series] {
        match &section.chart.as_ref().expect("a chart").marks {
            Marks::Points { series, .. } => series,
            _ => panic!("expected points"),
        }
    }

    #[test]
    fn terms_and_queries_have_a_limit_each() {
        let section = layers(&[layer(0), layer(3)], Some(1e-3));
        let limits: Vec<_> = series(&section).iter().map(|s| s.limit.clone().unwrap()).collect();
        assert_eq!(limits[0].1, [(0.0, LAYER_FLOOR + 1e-3), (3.0, LAYER_FLOOR + 1e-3)]);
        assert_eq!(limits[1], ("limit of the query", vec![(0.0, LAYER_FLOOR + 4e-3), (3.0, LAYER_FLOOR + 4e-3)]));
        assert!(series(&layers(&[layer(0)], None)).iter().all(|s| s.limit.is_none()));
    }

    #[test]
    fn a_reference_without_layers_leaves_a_word() {
        assert!(layers(&[], Some(1e-3)).text[0].contains("term.N"));
    }

    #[test]
    fn the_worst_positions_are_marked_where_the_table_says() {
        let rows: Vec<Row> = (0..32)
            .map(|i| row(i / 16, i % 16, if i == 20 { 0.5 } else { 1e-6 * (1 + i) as f64 }))
            .chain([row(2, 0, 0.0), row(2, 1, f64::NAN)])
            .collect();
        let section = positions(&rows, &Limits::default(), &[], &Tokens::default());
        let table = section.table.as_ref().unwrap();
        assert_eq!(table.rows[0][..2], ["33", "2:1"], "NaN is the worst");
        assert_eq!(table.rows[1][..2], ["20", "1:4"]);
        let [others, worst] = series(&section) else { panic!("two series") };
        let mut numbers: Vec<usize> = table.rows.iter().map(|r| r[0].parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(worst.points.iter().map(|p| p.0 as usize).collect::<Vec<_>>(), numbers);
        assert!(worst.is_labelled && worst.points.contains(&(20.0, 0.5)));
        assert_eq!(others.points.len() + worst.points.len(), rows.len(), "each position is drawn once");
    }

    #[test]
    fn where_nothing_differs_nothing_is_marked() {
        let rows = [row(0, 0, 0.0), row(0, 1, 0.0)];
        let section = positions(&rows, &Limits::default(), &[], &Tokens::default());
        assert!(section.table.is_none() && section.chart.as_ref().unwrap().is_empty());
    }
}
