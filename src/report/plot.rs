//! Plots as SVG. The backend writes colours as attributes; the page's style sheet repeats them, and replaces each by
//! its counterpart where the reader prefers dark.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::axis::{Labelled, bytes, decades, number, power, span, whole, with_decades};

/// Text and axes.
const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Lines behind the data.
const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// Series, in their order; each has a shape of its own too.
const SERIES: [(RGBColor, &str, &str); 2] =
    [(RGBColor(0x09, 0x69, 0xda), "first", "\u{25cf}"), (RGBColor(0xbc, 0x4c, 0x00), "second", "\u{25b2}")];

/// What values must not exceed, in the order of their series.
const LIMITS: [Limit; 2] = [
    Limit { colour: RGBColor(0xcf, 0x22, 0x2e), class: "limit", dash: 6, mark: "\u{254c}" },
    Limit { colour: RGBColor(0x82, 0x50, 0xdf), class: "limit-2", dash: 2, mark: "\u{2508}" },
];
/// Pixels between two dashes.
const GAP: i32 = 4;

/// How a line of limits is drawn. Whoever sees no colours tells two by their dashes.
struct Limit {
    colour: RGBColor,
    class: &'static str,
    /// Pixels.
    dash: i32,
    /// In the legend.
    mark: &'static str,
}

/// Points that a plot shows at most; of more, the largest of each group of neighbours.
const MAX_POINTS: usize = 1500;

/// A page shows one of two drawings, so that text keeps its size on a narrow screen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Wide,
    Narrow,
}

impl Size {
    pub fn class(self) -> &'static str {
        match self {
            Size::Wide => "wide",
            Size::Narrow => "narrow",
        }
    }

    fn width(self) -> u32 {
        match self {
            Size::Wide => 860,
            Size::Narrow => 340,
        }
    }
}

/// A plot. The values of points are on a logarithmic axis, which has no place for 0: that and what is no number is left
/// out.
pub(super) struct Chart {
    pub title: String,
    pub description: String,
    pub x_name: &'static str,
    pub y_name: &'static str,
    pub marks: Marks,
}

pub(super) enum Marks {
    /// Series over a whole number, joined by lines where `joined`; a dashed line of limits for some.
    Points { series: Vec<Series>, joined: bool },
    /// A horizontal bar for each name, from 0.
    Bars(Vec<(String, f64)>),
    /// Named points, and others to be told from them: bytes, and an error on a logarithmic axis.
    Scatter(Group, Group),
}

/// Points of one kind: what they are, and name and place of each.
pub(super) struct Group {
    pub name: &'static str,
    pub points: Vec<Named>,
}

pub(super) struct Series {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    pub limit: Option<(&'static str, Vec<(f64, f64)>)>,
    /// Whether each point has its whole number beside it, where there is room.
    pub is_labelled: bool,
}

impl Chart {
    /// Name, class and mark of everything drawn.
    pub fn legend(&self) -> Vec<(&str, &'static str, &'static str)> {
        let series = match &self.marks {
            Marks::Points { series, .. } => series,
            Marks::Bars(_) => return Vec::new(),
            Marks::Scatter(first, second) => {
                let shown = [first, second].into_iter().zip(SERIES).filter(|(g, _)| !g.points.is_empty());
                return shown.map(|(g, (_, class, mark))| (g.name, class, mark)).collect();
            }
        };
        let shown = series.iter().zip(SERIES).filter(|(s, _)| !s.points.is_empty());
        let mut out: Vec<_> = shown.map(|(s, (_, class, mark))| (s.name, class, mark)).collect();
        out.extend(
            series.iter().zip(LIMITS).filter_map(|(s, line)| Some((s.limit.as_ref()?.0, line.class, line.mark))),
        );
        out
    }

    /// What a reader who counts the marks would miss; `None` where everything is drawn.
    pub fn left_out(&self) -> Option<String> {
        let n_zero = self.values().filter(|v| *v == 0.0).count();
        let n_wrong = self.values().filter(|v| !v.is_finite()).count();
        let zero = (n_zero > 0).then(|| format!("exactly 0, which a logarithmic axis cannot show ({n_zero})"));
        let wrong = (n_wrong > 0).then(|| format!("NaN or infinite ({n_wrong})"));
        let parts: Vec<String> = zero.into_iter().chain(wrong).collect();
        (!parts.is_empty()).then(|| format!("Not drawn: {}.", parts.join("; ")))
    }

    /// Whether nothing would be drawn.
    pub fn is_empty(&self) -> bool {
        !matches!(self.marks, Marks::Bars(_)) && !self.values().any(can_be_drawn)
    }

    /// What is on a logarithmic axis.
    fn values(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        match &self.marks {
            Marks::Points { series, .. } => Box::new(series.iter().flat_map(|s| &s.points).map(|p| p.1)),
            Marks::Bars(_) => Box::new(std::iter::empty()),
            Marks::Scatter(first, second) => Box::new(first.points.iter().chain(&second.points).map(|p| p.2)),
        }
    }

    pub fn svg(&self, size: Size) -> String {
        let mut svg = String::new();
        let height = match &self.marks {
            Marks::Bars(bars) => 64 + 20 * bars.len() as u32,
            _ => 300,
        };
        let area = SVGBackend::with_string(&mut svg, (size.width(), height)).into_drawing_area();
        self.draw(&area, size).expect("drawing into a string does not fail");
        area.present().expect("drawing into a string does not fail");
        drop(area);
        svg
    }

    fn draw(&self, area: &Area<'_>, size: Size) -> Drawn {
        match &self.marks {
            Marks::Points { series, joined } => self.points(area, size, series, *joined),
            Marks::Bars(bars) => self.bars(area, size, bars),
            Marks::Scatter(first, second) => self.scatter(area, size, &first.points, &second.points),
        }
    }

    fn points(&self, area: &Area<'_>, size: Size, series: &[Series], joined: bool) -> Drawn {
        let all = || series.iter().flat_map(|s| s.points.iter().chain(s.limit.iter().flat_map(|l| &l.1)));
        let y = decades(all().map(|p| p.1));
        let (x0, x1) = span(all().map(|p| p.0));
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x0 - 0.5..x1 + 0.5, with_decades(&y))?;
        // Positions and layers are whole: more labels than there are of them would fall between.
        let n_labels = (if size == Size::Wide { 12 } else { 5 }).min((x1 - x0) as usize + 2);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(text())
            .axis_desc_style(text())
            .x_labels(n_labels)
            .x_label_formatter(&whole)
            .y_label_formatter(&power)
            .x_desc(self.x_name)
            .y_desc(self.y_name)
            .draw()?;
        let mut drawn: Vec<(i32, i32)> = Vec::new();
        for ((s, (colour, ..)), of_limit) in series.iter().zip(SERIES).zip(LIMITS) {
            if let Some((_, limit)) = &s.limit {
                let line = limit.iter().filter(|p| can_be_drawn(p.1)).map(|p| (p.0, p.1.log10()));
                chart.draw_series(DashedLineSeries::new(line, of_limit.dash, GAP, of_limit.colour.stroke_width(1)))?;
            }
            let points: Vec<(f64, f64)> = thinned(&s.points).into_iter().map(|p| (p.0, p.1.log10())).collect();
            if joined {
                chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(1)))?;
            }
            if colour == SERIES[0].0 {
                chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
            } else {
                chart.draw_series(points.iter().map(|p| TriangleMarker::new(*p, 5, colour.filled())))?;
            }
            let at: Vec<(i32, i32)> = points.iter().map(|p| chart.backend_coord(p)).collect();
            drawn.extend(&at);
            if s.is_labelled {
                let labels: Vec<String> = points.iter().map(|p| whole(&p.0)).collect();
                let offsets = label_offsets(&at, labels.iter().map(String::len), &drawn, size.width() as i32);
                let placed = points.iter().zip(labels).zip(offsets).filter_map(|(p, offset)| Some((p, offset?)));
                chart.draw_series(
                    placed.map(|((place, label), offset)| EmptyElement::at(*place) + Text::new(label, offset, text())),
                )?;
            }
        }
        Ok(())
    }

    fn bars(&self, area: &Area<'_>, size: Size, bars: &[(String, f64)]) -> Drawn {
        let longest = bars.iter().map(|b| b.1).filter(|v| v.is_finite()).fold(0.0, f64::max);
        let n = bars.len();
        let names = bars.iter().map(|b| b.0.chars().count()).max().unwrap_or(0);
        let labels: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(16 + 8 * names as u32)
            // Downwards: the first tensor is the topmost.
            .build_cartesian_2d(
                0.0..if longest > 0.0 { longest * 1.05 } else { 1.0 },
                Labelled { range: n as f64 - 0.5..-0.5, labels },
            )?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(text())
            .axis_desc_style(text())
            .x_labels(if size == Size::Wide { 8 } else { 4 })
            .y_labels(n)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|i| bars.get(i.round() as usize).map_or(String::new(), |b| b.0.clone()))
            .x_desc(self.x_name)
            .draw()?;
        chart.draw_series(bars.iter().enumerate().filter(|(_, b)| b.1.is_finite()).map(|(i, b)| {
            let i = i as f64;
            Rectangle::new([(0.0, i - 0.32), (b.1, i + 0.32)], SERIES[0].0.filled())
        }))?;
        Ok(())
    }

    fn scatter(&self, area: &Area<'_>, size: Size, first: &[Named], second: &[Named]) -> Drawn {
        let all = || first.iter().chain(second);
        let y = decades(all().map(|p| p.2));
        let largest = all().map(|p| p.1).fold(0.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..largest.max(1.0), with_decades(&y))?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(text())
            .axis_desc_style(text())
            .x_labels(if size == Size::Wide { 10 } else { 4 })
            .x_label_formatter(&|n| bytes(*n))
            .y_label_formatter(&power)
            .x_desc(self.x_name)
            .y_desc(self.y_name)
            .draw()?;
        let place = |p: &Named| (p.1, p.2.log10());
        let shown = |points: &'_ [Named]| points.iter().filter(|p| can_be_drawn(p.2)).map(place).collect::<Vec<_>>();
        chart.draw_series(shown(first).into_iter().map(|p| Circle::new(p, 4, SERIES[0].0.filled())))?;
        chart.draw_series(shown(second).into_iter().map(|p| TriangleMarker::new(p, 6, SERIES[1].0.filled())))?;
        let labelled: Vec<&Named> = all().filter(|p| can_be_drawn(p.2)).collect();
        let at: Vec<(i32, i32)> = labelled.iter().map(|p| chart.backend_coord(&place(p))).collect();
        let offsets = label_offsets(&at, labelled.iter().map(|p| p.0.len()), &at, size.width() as i32);
        chart.draw_series(labelled.iter().zip(offsets).map(|(p, offset)| {
            EmptyElement::at(place(p)) + Text::new(p.0.clone(), offset.unwrap_or(BESIDE), text())
        }))?;
        Ok(())
    }
}

/// A name, bytes and an error.
type Named = (String, f64, f64);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn text() -> TextStyle<'static> {
    ("sans-serif", 15).into_font().color(&INK)
}

/// Right of a point.
const BESIDE: (i32, i32) = (8, -6);

/// Whether a logarithmic axis has a place for it.
fn can_be_drawn(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// Where each point's label goes, so that it covers neither a mark of `drawn` nor another label; `None` where there is no
/// such place.
fn label_offsets(
    points: &[(i32, i32)],
    lens: impl Iterator<Item = usize>,
    drawn: &[(i32, i32)],
    width: i32,
) -> Vec<Option<(i32, i32)>> {
    const LETTER: (i32, i32) = (9, 14);
    type Box = (i32, i32, i32, i32); // left, top, right, bottom
    let overlap = |a: &Box, b: &Box| a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3;
    let mut taken: Vec<Box> = drawn.iter().map(|p| (p.0 - 4, p.1 - 4, p.0 + 4, p.1 + 4)).collect();
    let mut out = Vec::new();
    for (p, len) in points.iter().zip(lens) {
        let w = LETTER.0 * len as i32;
        let place = |o: &(i32, i32)| (p.0 + o.0, p.1 + o.1, p.0 + o.0 + w, p.1 + o.1 + LETTER.1);
        let mut sides =
            [BESIDE.1, 6, -18, 18, -30, 30].into_iter().flat_map(|dy| [(BESIDE.0, dy), (-BESIDE.0 - w, dy)]);
        let offset = sides.find(|o| {
            let b = place(o);
            b.0 >= 0 && b.1 >= 0 && b.2 <= width && !taken.iter().any(|t| overlap(t, &b))
        });
        taken.extend(offset.as_ref().map(place));
        out.push(offset);
    }
    out
}

/// The points that can be drawn; of too many, the largest of each group of neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let shown: Vec<_> = points.iter().copied().filter(|p| can_be_drawn(p.1)).collect();
    let group = shown.len().div_ceil(MAX_POINTS).max(1);
    shown.chunks(group).filter_map(|g| g.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(marks: Marks) -> Chart {
        Chart { title: "t".into(), description: "d".into(), x_name: "x", y_name: "y", marks }
    }

    fn points(values: &[f64]) -> Chart {
        let points = values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
        chart(Marks::Points {
            series: vec![Series { name: "s", points, limit: None, is_labelled: false }],
            joined: true,
        })
    }

    #[test]
    fn every_value_is_drawn_or_said_to_be_left_out() {
        for (values, n, left_out) in [
            (&[1e-7, 2e-6, 0.0][..], 2, "Not drawn: exactly 0, which a logarithmic axis cannot show (1)."),
            (&[f64::NAN, 1.0, f64::INFINITY], 1, "Not drawn: NaN or infinite (2)."),
            (
                &[0.0, f64::NAN],
                0,
                "Not drawn: exactly 0, which a logarithmic axis cannot show (1); NaN or infinite (1).",
            ),
            (&[], 0, ""),
            (&[1e-300, 1e300], 2, ""),
        ] {
            let chart = points(values);
            let svg = chart.svg(Size::Wide);
            assert_eq!(svg.matches("<circle").count(), n, "{values:?}");
            assert_eq!(chart.is_empty(), n == 0, "{values:?}");
            assert_eq!(chart.left_out().unwrap_or_default(), left_out, "{values:?}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn every_layer_of_a_few_has_its_number() {
        for n in 1..=5 {
            for size in [Size::Wide, Size::Narrow] {
                let svg = points(&vec![1e-3; n]).svg(size);
                let labels: Vec<&str> = svg.lines().map(str::trim).filter(|l| l.parse::<u32>().is_ok()).collect();
                let expected: Vec<String> = (0..n).map(|i| i.to_string()).collect();
                assert_eq!(labels, expected, "{svg}");
            }
        }
    }

    #[test]
    fn of_too_many_points_the_peaks_stay() {
        let mut values = vec![1e-9; 10_000];
        values[7_777] = 1.0;
        let kept = thinned(&values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect::<Vec<_>>());
        assert!(kept.len() <= MAX_POINTS);
        assert!(kept.contains(&(7_777.0, 1.0)));
    }

    #[test]
    fn labels_of_neighbours_do_not_cover_each_other() {
        let points = [(100, 50), (102, 52), (104, 50), (330, 50)];
        let offsets = label_offsets(&points, [4, 4, 4, 3].into_iter(), &points, 340);
        let corners: Vec<_> =
            points.iter().zip(offsets.iter().flatten()).map(|(p, o)| (p.0 + o.0, p.1 + o.1)).collect();
        for (i, a) in corners.iter().enumerate() {
            for b in &corners[i + 1..] {
                assert!((a.0 - b.0).abs() >= 27 || (a.1 - b.1).abs() >= 14, "{corners:?}");
            }
        }
        assert!(corners[3].0 < 330, "at the right edge the label is on the left");
        let crowd: Vec<(i32, i32)> = (0..60).flat_map(|x| (0..20).map(move |y| (x * 6, y * 6))).collect();
        assert_eq!(label_offsets(&crowd[..1], [2].into_iter(), &crowd, 340), [None], "no room, no label");
    }

    #[test]
    fn every_colour_has_a_dark_counterpart() {
        let style = include_str!("style.css");
        let (_, dark) = style.split_once("prefers-color-scheme: dark").unwrap();
        let limited = chart(Marks::Points {
            series: vec![
                Series {
                    name: "a",
                    points: vec![(0.0, 1.0)],
                    limit: Some(("l", vec![(0.0, 2.0), (1.0, 2.0)])),
                    is_labelled: true,
                },
                Series { name: "b", points: vec![(0.0, 1.0)], limit: None, is_labelled: false },
            ],
            joined: true,
        });
        let bars = chart(Marks::Bars(vec![("<b>".into(), 0.1)]));
        let scatter = chart(Marks::Scatter(
            Group { name: "types", points: vec![("q8_0".into(), 10.0, 0.1)] },
            Group { name: "own", points: vec![("<b>".into(), 9.0, 0.1)] },
        ));
        for svg in [limited, bars, scatter].map(|c| c.svg(Size::Narrow)) {
            assert!(!svg.contains("<b>"));
            for attribute in ["fill", "stroke"] {
                for part in svg.split(&format!(" {attribute}=\"#")).skip(1) {
                    let rule = format!("[{attribute}=\"#{}\"]", &part[..6]);
                    assert!(dark.contains(&rule), "{rule}");
                }
            }
        }
    }
}
