//! The statistics of a comparison, each with its formula; `docs/VERIFY.md` says what they mean.

use rayon::prelude::*;
use serde::Serialize;

/// Values that one thread compares: the rows of most models are one piece. No figure depends on the number of threads.
const PIECE: usize = 1 << 16;

/// What `of` makes of the pieces of `a` and `b`, and where each begins.
fn pieces<T: Send>(a: &[f32], b: &[f32], of: impl Fn(usize, &[f32], &[f32]) -> T + Sync) -> Vec<T> {
    if a.len() <= PIECE {
        return vec![of(0, a, b)];
    }
    let pairs = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).enumerate();
    pairs.map(|(i, (a, b))| of(i * PIECE, a, b)).collect()
}

/// Compares rows of logits, one position at a time.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    n_rows: usize,
    n_values: usize,
    max_abs: f64,
    sum_abs: f64,
    sum_kl: f64,
    max_kl: f64,
    n_top1_equal: usize,
    non_finite: bool,
    worst: Option<Worst>,
    rows: Vec<Row>,
}

/// The place of the largest difference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Worst {
    /// Row of the batch.
    pub batch: usize,
    /// Position in the prompt.
    pub position: usize,
    /// Token (index in the logits).
    pub token: usize,
    /// Reference value there.
    pub reference: f32,
    /// Value compared with it.
    pub found: f32,
}

/// One compared position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Row of the batch.
    pub batch: usize,
    /// Position in the prompt.
    pub position: usize,
    /// Largest absolute difference of the logits.
    pub max_abs: f64,
    /// KL divergence, nats.
    pub kl: f64,
    /// The most likely next token of the reference.
    pub expected_token: usize,
    /// The same of what is compared with it.
    pub found_token: usize,
}

/// The figures of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// `max |a - b|` over all logits compared.
    pub max_abs: f64,
    /// `mean |a - b|`
    pub mean_abs: f64,
    /// Mean over positions of `KL(softmax a || softmax b)`, nats, in f64.
    pub mean_kl: f64,
    /// Largest such divergence.
    pub max_kl: f64,
    /// Share of positions with the same largest logit.
    pub top1_agreement: f64,
    /// Positions compared.
    pub n_positions: usize,
}

impl Metrics {
    /// Whether every figure is a number. A NaN or Inf fails a verification.
    pub fn is_finite(&self) -> bool {
        [self.max_abs, self.mean_abs, self.mean_kl, self.max_kl].iter().all(|v| v.is_finite())
    }
}

impl Comparison {
    /// Adds one position: `reference` and `found` are logits `[V]` of the same length (asserted).
    pub fn add(&mut self, batch: usize, position: usize, reference: &[f32], found: &[f32]) {
        assert_eq!(reference.len(), found.len());
        let mut row_max = 0.0;
        for piece in pieces(reference, found, Differences::of) {
            self.non_finite |= piece.non_finite;
            self.sum_abs += piece.sum;
            if piece.max > row_max {
                row_max = piece.max;
                if row_max > self.max_abs {
                    self.max_abs = row_max;
                    let token = piece.at;
                    self.worst =
                        Some(Worst { batch, position, token, reference: reference[token], found: found[token] });
                }
            }
        }
        let kl = kl_divergence(reference, found);
        self.non_finite |= !kl.is_finite();
        self.sum_kl += kl;
        self.max_kl = self.max_kl.max(kl);
        let (expected_token, found_token) = (argmax(reference), argmax(found));
        self.n_top1_equal += usize::from(expected_token == found_token);
        self.n_rows += 1;
        self.n_values += reference.len();
        self.rows.push(Row { batch, position, max_abs: row_max, kl, expected_token, found_token });
    }

    /// The figures; `None` when nothing was compared.
    pub fn metrics(&self) -> Option<Metrics> {
        if self.n_values == 0 {
            return None;
        }
        let poison = if self.non_finite { f64::NAN } else { 0.0 };
        Some(Metrics {
            max_abs: self.max_abs + poison,
            mean_abs: self.sum_abs / self.n_values as f64 + poison,
            mean_kl: self.sum_kl / self.n_rows as f64 + poison,
            max_kl: self.max_kl + poison,
            top1_agreement: self.n_top1_equal as f64 / self.n_rows as f64,
            n_positions: self.n_rows,
        })
    }

    /// Where the largest difference is.
    pub fn worst(&self) -> Option<Worst> {
        self.worst
    }

    /// Every position compared, in order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// `|a - b|` of a piece of a row.
struct Differences {
    sum: f64,
    /// The largest, and the token that it is at first.
    max: f64,
    at: usize,
    non_finite: bool,
}

impl Differences {
    fn of(start: usize, a: &[f32], b: &[f32]) -> Self {
        let mut out = Differences { sum: 0.0, max: 0.0, at: start, non_finite: false };
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            let d = (f64::from(a) - f64::from(b)).abs();
            out.non_finite |= !d.is_finite();
            out.sum += d;
            if d > out.max {
                (out.max, out.at) = (d, start + i);
            }
        }
        out
    }
}

/// `KL(softmax a || softmax b) = sum_i p_i (log p_i - log q_i)`, in f64. NaN where an input is NaN or Inf.
pub fn kl_divergence(a: &[f32], b: &[f32]) -> f64 {
    let (la, lb) = (log_sum_exp(a), log_sum_exp(b));
    let sum = |_, a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&x, &y)| {
                let (lp, lq) = (f64::from(x) - la, f64::from(y) - lb);
                lp.exp() * (lp - lq)
            })
            .sum()
    };
    let kl: f64 = pieces(a, b, sum).into_iter().sum();
    // Rounding can leave a tiny negative sum; the divergence itself cannot be negative. NaN stays NaN.
    if kl < 0.0 { 0.0 } else { kl }
}

fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum = |_, x: &[f32], _: &[f32]| x.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>();
    max + pieces(x, x, sum).into_iter().sum::<f64>().ln()
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

/// `max(so_far, difference)`, where NaN wins.
pub(super) fn worse(so_far: f64, difference: f64) -> f64 {
    if so_far.is_nan() || difference.is_nan() { f64::NAN } else { so_far.max(difference) }
}

/// `max |a - b|`, NaN where one of them is.
pub fn max_abs_difference(a: &[f32], b: &[f32]) -> f64 {
    let of_piece = |_, a: &[f32], b: &[f32]| {
        a.iter().zip(b).fold(0.0, |max, (&x, &y)| worse(max, (f64::from(x) - f64::from(y)).abs()))
    };
    pieces(a, b, of_piece).into_iter().fold(0.0, worse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_agrees_with_the_closed_form_of_two_classes() {
        // p = sigmoid(1), q = sigmoid(-0.5)
        let (p, q) = (1.0 / (1.0 + (-1f64).exp()), 1.0 / (1.0 + 0.5f64.exp()));
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((kl_divergence(&[1.0, 0.0], &[-0.5, 0.0]) - expected).abs() < 1e-12);
        assert_eq!(kl_divergence(&[3.0, 1.0], &[13.0, 11.0]), 0.0, "a shift of all logits changes nothing");
    }

    #[test]
    fn a_nan_or_inf_anywhere_spoils_the_metrics() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (a, b) in [([1.0, bad], [1.0, 2.0]), ([1.0, 2.0], [bad, 2.0])] {
                let mut c = Comparison::default();
                c.add(0, 0, &[1.0, 2.0], &[1.0, 2.0]);
                c.add(0, 1, &a, &b);
                assert!(!c.metrics().unwrap().is_finite(), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn long_rows_are_compared_as_one() {
        let a: Vec<f32> = (0..2 * PIECE + 3).map(|i| (i as f32 * 0.1).sin()).collect();
        let mut b = a.clone();
        // The second is as large as the first, the third lies in the last piece.
        for (at, by) in [(5, 0.5), (PIECE + 7, -0.5), (2 * PIECE + 1, 0.25)] {
            b[at] += by;
        }
        let mut c = Comparison::default();
        c.add(0, 0, &a, &b);
        let m = c.metrics().unwrap();
        let differences = || a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        assert_eq!((m.max_abs, c.worst().unwrap().token), (differences().fold(0.0, f64::max), 5));
        assert!((m.mean_abs - differences().sum::<f64>() / a.len() as f64).abs() < 1e-18, "{m:?}");
        let z = |x: &[f32]| x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        let p = |x: f32, z: f64| (f64::from(x) - z).exp();
        let (za, zb) = (z(&a), z(&b));
        let kl: f64 = a.iter().zip(&b).map(|(a, b)| p(*a, za) * (f64::from(a - b) - za + zb)).sum();
        assert!((m.mean_kl - kl).abs() < 1e-9 * kl && kl > 0.0, "{m:?} {kl}");
        b[2 * PIECE + 2] = a[2 * PIECE + 2] + 0.75;
        c.add(0, 1, &a, &b);
        assert_eq!(c.worst().unwrap().token, 2 * PIECE + 2);
        b[2 * PIECE + 2] = f32::NAN;
        assert!(max_abs_difference(&a, &b).is_nan() && max_abs_difference(&b, &a).is_nan());
        c.add(0, 2, &a, &b);
        assert!(!c.metrics().unwrap().is_finite());
    }

    #[test]
    fn the_worst_place_is_named() {
        let mut c = Comparison::default();
        c.add(0, 3, &[1.0, 2.0], &[1.0, 2.5]);
        c.add(1, 4, &[1.0, 2.0], &[2.5, 2.0]);
        let m = c.metrics().unwrap();
        assert_eq!((m.max_abs, m.mean_abs, m.top1_agreement), (1.5, 0.5, 0.5));
        let w = c.worst().unwrap();
        assert_eq!((w.batch, w.position, w.token), (1, 4, 0));
    }

    #[test]
    fn comparing_nothing_gives_no_metrics() {
        assert!(Comparison::default().metrics().is_none());
    }
}
