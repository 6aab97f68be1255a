//! What a change of type cost: figures of one tensor, each with its formula, and bounds on them.

use serde::Serialize;

use crate::error::{Code, Error, Result};

/// How far the values `y` that were written are from the values `x` that were read, both as F32.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    /// `sqrt(mean((y - x)^2))`
    pub rmse: f64,
    /// `max |y - x|`
    pub max_abs: f64,
    /// `rmse / sqrt(mean(x^2))`; 0 where nothing changed.
    pub relative: f64,
    /// `sum(x y) / sqrt(sum(x^2) sum(y^2))`; 1 where nothing changed, 0 where everything became 0.
    pub cosine: f64,
}

impl Loss {
    /// Nothing changed.
    pub const NONE: Loss = Loss { rmse: 0.0, max_abs: 0.0, relative: 0.0, cosine: 1.0 };
}

/// Sums that a [`Loss`] is made of, in f64. The order of additions depends on the order of the calls alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct LossSum {
    n: usize,
    dd: [f64; LANES],
    xx: [f64; LANES],
    yy: [f64; LANES],
    xy: [f64; LANES],
    max: [f64; LANES],
}

/// Sums kept side by side, so that additions need not wait for each other.
const LANES: usize = 8;

impl LossSum {
    /// Adds elements before and after (of one length, asserted).
    pub fn add(&mut self, before: &[f32], after: &[f32]) {
        assert_eq!(before.len(), after.len());
        self.n += before.len();
        let (x, x_rest) = before.as_chunks::<LANES>();
        let (y, y_rest) = after.as_chunks::<LANES>();
        x.iter().zip(y).for_each(|(x, y)| self.add_lanes(x, y));
        let pad = |rest: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            lanes
        };
        self.add_lanes(&pad(x_rest), &pad(y_rest));
    }

    fn add_lanes(&mut self, x: &[f32; LANES], y: &[f32; LANES]) {
        for i in 0..LANES {
            let (x, y) = (f64::from(x[i]), f64::from(y[i]));
            let d = y - x;
            self.dd[i] += d * d;
            self.xx[i] += x * x;
            self.yy[i] += y * y;
            self.xy[i] += x * y;
            self.max[i] = self.max[i].max(d.abs());
        }
    }

    /// The figures.
    pub fn loss(&self) -> Loss {
        let sum = |lanes: [f64; LANES]| lanes.iter().sum::<f64>();
        let (dd, xx, yy) = (sum(self.dd), sum(self.xx), sum(self.yy));
        if dd == 0.0 {
            return Loss::NONE;
        }
        let norms = (xx * yy).sqrt();
        Loss {
            rmse: (dd / self.n as f64).sqrt(),
            max_abs: self.max.iter().copied().fold(0.0, f64::max),
            relative: (dd / xx).sqrt(),
            cosine: if norms == 0.0 { 0.0 } else { sum(self.xy) / norms },
        }
    }
}

/// A figure that can be bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// [`Loss::rmse`]
    Rmse,
    /// [`Loss::max_abs`]
    MaxAbs,
    /// [`Loss::relative`]
    Relative,
    /// [`Loss::cosine`], from below.
    Cosine,
    /// Mean KL divergence of the logits from the source's; of the whole, not of one tensor.
    Kl,
}

/// `METRIC=VALUE`: a tensor (or the whole) beyond it is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// What is bounded.
    pub metric: Metric,
    /// The largest accepted value; for the cosine the smallest.
    pub limit: f64,
}

/// `METRIC=VALUE`
impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metric = match self.metric {
            Metric::Rmse => "rmse",
            Metric::MaxAbs => "max_abs",
            Metric::Relative => "relative",
            Metric::Cosine => "cosine",
            Metric::Kl => "kl",
        };
        write!(f, "{metric}={:?}", self.limit)
    }
}

impl Bound {
    /// Parses `rmse=1e-3`, `max_abs=..`, `relative=..`, `cosine=..` or `kl=..`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`].
    pub fn parse(text: &str) -> Result<Bound> {
        let wrong = || {
            let message = format!(
                "expected METRIC=VALUE with metric rmse, max_abs, relative, cosine or kl, and a value of at least 0, found {text:?}"
            );
            Error::new(Code::Usage, message).field("--max-error")
        };
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let metric = match name.trim().to_ascii_lowercase().as_str() {
            "rmse" => Metric::Rmse,
            "max_abs" => Metric::MaxAbs,
            "relative" => Metric::Relative,
            "cosine" => Metric::Cosine,
            "kl" => Metric::Kl,
            _ => return Err(wrong()),
        };
        let limit = value.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0).ok_or_else(wrong)?;
        Ok(Bound { metric, limit })
    }

    /// Holds one tensor's loss against the bound; [`Metric::Kl`] is no tensor's.
    ///
    /// # Errors
    ///
    /// [`Code::ErrorBound`].
    pub fn check(&self, loss: &Loss) -> Result<()> {
        match self.metric {
            Metric::Rmse => self.check_value("rmse", loss.rmse),
            Metric::MaxAbs => self.check_value("max_abs", loss.max_abs),
            Metric::Relative => self.check_value("relative", loss.relative),
            // A comparison that NaN fails too.
            Metric::Cosine if loss.cosine >= self.limit => Ok(()),
            Metric::Cosine => Err(Error::new(
                Code::ErrorBound,
                format!("expected a cosine of at least {}, found {:.9}", self.limit, loss.cosine),
            )),
            Metric::Kl => Ok(()),
        }
    }

    /// Holds one figure against the bound.
    ///
    /// # Errors
    ///
    /// [`Code::ErrorBound`].
    pub fn check_value(&self, name: &str, found: f64) -> Result<()> {
        if found <= self.limit {
            return Ok(());
        }
        Err(Error::new(Code::ErrorBound, format!("expected {name} of at most {:e}, found {found:.6e}", self.limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_their_formulas() {
        let x: Vec<f32> = (0..19).map(|i| i as f32 - 9.0).collect();
        let y: Vec<f32> = x.iter().map(|v| v + if *v == 3.0 { -2.0 } else { 0.5 }).collect();
        let mut sum = LossSum::default();
        sum.add(&x[..5], &y[..5]);
        sum.add(&x[5..], &y[5..]);
        let l = sum.loss();
        let dd = 18.0 * 0.25 + 4.0;
        let xx: f64 = x.iter().map(|v| f64::from(v * v)).sum();
        let yy: f64 = y.iter().map(|v| f64::from(v * v)).sum();
        let xy: f64 = x.iter().zip(&y).map(|(a, b)| f64::from(a * b)).sum();
        assert!((l.rmse - f64::sqrt(dd / 19.0)).abs() < 1e-15, "a root of the mean, not a mean of the root");
        assert_eq!(l.max_abs, 2.0);
        assert!((l.relative - f64::sqrt(dd / xx)).abs() < 1e-15);
        assert!((l.cosine - xy / f64::sqrt(xx * yy)).abs() < 1e-15);
    }

    #[test]
    fn unchanged_and_vanished_values_have_sensible_figures() {
        let mut same = LossSum::default();
        same.add(&[0.0; 9], &[0.0; 9]);
        assert_eq!(same.loss(), Loss::NONE);
        assert_eq!(LossSum::default().loss(), Loss::NONE);
        let mut gone = LossSum::default();
        gone.add(&[1e-9, -1e-9], &[0.0, 0.0]);
        assert_eq!((gone.loss().relative, gone.loss().cosine), (1.0, 0.0));
    }

    #[test]
    fn bounds_refuse_what_is_beyond_them_and_nan() {
        let loss = Loss { rmse: 0.1, max_abs: 0.5, relative: 0.2, cosine: 0.9 };
        for (text, ok) in [
            ("rmse=0.1", true),
            ("rmse=0.09", false),
            ("max_abs=0.5", true),
            ("MAX_ABS=0.4", false),
            ("relative=0.2", true),
            ("relative=1e-3", false),
            ("cosine=0.9", true),
            ("cosine=0.91", false),
            ("kl=0", true),
        ] {
            assert_eq!(Bound::parse(text).unwrap().check(&loss).is_ok(), ok, "{text}");
        }
        let nan = Loss { rmse: f64::NAN, max_abs: f64::NAN, relative: f64::NAN, cosine: f64::NAN };
        for text in ["rmse=1", "max_abs=1", "relative=1", "cosine=0"] {
            assert_eq!(Bound::parse(text).unwrap().check(&nan).unwrap_err().code(), Code::ErrorBound, "{text}");
        }
        for text in ["", "rmse", "rmse=", "rmse=-1", "rmse=nan", "l2=1", "rmse=1,max_abs=2"] {
            assert_eq!(Bound::parse(text).unwrap_err().code(), Code::Usage, "{text}");
        }
    }
}
