//! Axes of plots: their ranges, and the words at their marks.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Exponents of ten around all positive finite values, at least two decades.
pub(super) fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for v in values.filter(|v| *v > 0.0 && v.is_finite()) {
        low = low.min(v.log10().floor());
        high = high.max(v.log10().ceil());
    }
    if low > high {
        return -2.0..0.0;
    }
    low - if high - low < 2.0 { 1.0 } else { 0.0 }..high.max(low + 1.0)
}

/// An axis with labels at these places and nowhere else.
pub(super) struct Labelled {
    pub range: Range<f64>,
    pub labels: Vec<f64>,
}

impl Ranged for Labelled {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.labels.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Labelled {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

/// An axis of exponents of ten, with at most nine labels.
pub(super) fn with_decades(range: &Range<f64>) -> Labelled {
    let n = (range.end - range.start).round().max(1.0);
    let step = (n / 8.0).ceil();
    let labels = (0..=(n / step) as usize).map(|i| range.start + i as f64 * step).collect();
    Labelled { range: range.clone(), labels }
}

/// The least and the largest of them, or 0 and 1.
pub(super) fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}

/// Only whole numbers get a label.
pub(super) fn whole(x: &f64) -> String {
    let n = x.round();
    // Ticks are sums of steps, and so near a whole number or below 0.
    if (x - n).abs() < 1e-6 { (n as i64).to_string() } else { String::new() }
}

/// `1e-3` for -3.
pub(super) fn power(exponent: &f64) -> String {
    format!("1e{exponent:.0}")
}

/// `4.4 MB`
pub(super) fn bytes(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.0} kB", n / 1e3),
        n => format!("{n:.0} B"),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
