//! Bounds that a conversion was held to, with the figures that were within them: beyond one there is no output.

use crate::pipeline::Converted;
use crate::transform::loss::{Bound, Loss, Metric};

/// One bound.
pub(super) struct Held {
    what: &'static str,
    limit: f64,
    found: f64,
    /// Smallest instead of largest accepted value.
    is_lower: bool,
}

/// Those of `--auto` and of `bounds`.
pub(super) fn held(done: &Converted, bounds: &[Bound]) -> Vec<Held> {
    let auto = done.auto.iter().map(|d| Held { what: "mean KL", limit: d.kl_bound, found: d.kl, is_lower: false });
    auto.chain(bounds.iter().filter_map(|b| of(done, b))).collect()
}

fn of(done: &Converted, bound: &Bound) -> Option<Held> {
    let losses = || done.tensors.iter().filter_map(|t| t.loss);
    let largest = |figure: fn(Loss) -> f64| losses().map(figure).fold(0.0, f64::max);
    let (what, found) = match bound.metric {
        Metric::Rmse => ("RMSE of each tensor", largest(|l| l.rmse)),
        Metric::MaxAbs => ("max |\u{394}| of each tensor", largest(|l| l.max_abs)),
        Metric::Relative => ("relative error of each tensor", largest(|l| l.relative)),
        Metric::Cosine => ("cosine of each tensor", losses().map(|l| l.cosine).fold(1.0, f64::min)),
        Metric::Kl => ("mean KL", done.output_error.as_ref()?.metrics.mean_kl),
    };
    Some(Held { what, limit: bound.limit, found, is_lower: bound.metric == Metric::Cosine })
}

impl Held {
    /// `mean KL <= 1e-3`, with the sign of mathematics.
    pub fn bound(&self) -> String {
        match self.is_lower {
            true => format!("{} \u{2265} {}", self.what, self.limit),
            false => format!("{} \u{2264} {:e}", self.what, self.limit),
        }
    }

    /// The bound and what was found.
    pub fn line(&self) -> String {
        match self.is_lower {
            true => format!("{}, smallest found {:.7}", self.bound(), self.found),
            false => format!("{}, found {:.2e}", self.bound(), self.found),
        }
    }
}

/// The tightest bound on the mean KL divergence.
pub(super) fn tightest_kl(done: &Converted, bounds: &[Bound]) -> Option<f64> {
    let stated = bounds.iter().filter(|b| b.metric == Metric::Kl).map(|b| b.limit);
    stated.chain(done.auto.as_ref().map(|d| d.kl_bound)).min_by(f64::total_cmp)
}
