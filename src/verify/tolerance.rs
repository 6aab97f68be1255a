//! Limits, relative to the adapter's effect `E = max |logits - base_logits|`.
//!
//! Absolute limits would let a wrong activation pass where the effect is small; `docs/VERIFY.md` has the
//! measurements behind each factor.

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::tensor::DType;

use super::stats::Metrics;

/// How far the outputs may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Tolerance {
    name: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    /// `max |dlogit| <= max(floor, factor * E)`
    Larger { floor: f64, factor: f64 },
    /// `max |dlogit| <= floor + factor * E`
    Sum { floor: f64, factor: f64 },
    /// As the user says.
    Explicit(Limits),
}

/// What a layer's query or term may differ by whatever its size: F32 arithmetic in another order.
pub const LAYER_FLOOR: f64 = 2e-4;

/// Upper limits (and for top-1 a lower one); `None` is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// Limit of [`Metrics::max_abs`].
    pub max_abs: Option<f64>,
    /// Limit of [`Metrics::mean_abs`].
    pub mean_abs: Option<f64>,
    /// Limit of [`Metrics::mean_kl`].
    pub mean_kl: Option<f64>,
    /// Limit of [`Metrics::max_kl`].
    pub max_kl: Option<f64>,
    /// Limit of a layer's `max |term - term_ref| / max |term_ref|`, and the same of q, beyond [`LAYER_FLOOR`].
    pub layer_relative: Option<f64>,
    /// Smallest accepted [`Metrics::top1_agreement`].
    pub top1_agreement: Option<f64>,
}

impl Tolerance {
    /// The rule for weights stored in this type.
    ///
    /// Errors: [`Code::NothingCompared`] for a type for which none is established: state one with `--tolerance`.
    pub fn for_dtype(dtype: DType) -> Result<Tolerance> {
        // The floor is what F32 arithmetic in another order costs on logits of size 40 (measured 4e-5 to 1.5e-4).
        const FLOOR: f64 = 2e-4;
        let rule = match dtype {
            DType::F32 | DType::F64 => Rule::Larger { floor: FLOOR, factor: 1.2e-4 },
            DType::F16 => Rule::Sum { floor: FLOOR, factor: 1e-3 },
            DType::BF16 => Rule::Sum { floor: FLOOR, factor: 8e-3 },
            other => {
                return Err(Error::new(Code::NothingCompared, format!("no limit is established for adapters stored as {other}; state one: --tolerance max_abs=X,mean_kl=Y")).field("--tolerance"));
            }
        };
        Ok(Tolerance { name: dtype.name().to_lowercase(), rule })
    }

    /// A type's name, or `max_abs=X,mean_kl=Y,...`.
    pub fn parse(text: &str) -> Result<Tolerance> {
        let wrong = |found: &str| {
            Error::new(
                Code::Usage,
                format!("expected f32, f16, bf16 or a list such as max_abs=1e-3,mean_kl=1e-6, found {found:?}"),
            )
            .field("--tolerance")
        };
        if !text.contains('=') {
            return Tolerance::for_dtype(DType::parse(text).filter(|d| d.is_float()).ok_or_else(|| wrong(text))?);
        }
        let mut limits = Limits::default();
        for item in text.split(',') {
            let (name, value) = item.split_once('=').ok_or_else(|| wrong(item))?;
            let value: f64 =
                value.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0).ok_or_else(|| wrong(item))?;
            let slot = match name.trim() {
                "max_abs" => &mut limits.max_abs,
                "mean_abs" => &mut limits.mean_abs,
                "mean_kl" => &mut limits.mean_kl,
                "max_kl" => &mut limits.max_kl,
                "top1_agreement" => &mut limits.top1_agreement,
                _ => return Err(wrong(item)),
            };
            if slot.replace(value).is_some() {
                return Err(wrong(item));
            }
        }
        Ok(Tolerance { name: "explicit".into(), rule: Rule::Explicit(limits) })
    }

    /// `f32`, `f16`, `bf16` or `explicit`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits for an adapter of this effect.
    pub fn limits(&self, effect: f64) -> Limits {
        let (max_abs, factor) = match &self.rule {
            Rule::Larger { floor, factor } => (floor.max(factor * effect), factor),
            Rule::Sum { floor, factor } => (floor + factor * effect, factor),
            Rule::Explicit(limits) => return *limits,
        };
        // With x = b - a in [-d, d], KL = log E_p[e^x] - E_p[x], which Hoeffding's lemma bounds by (2d)^2 / 8.
        let kl = max_abs * max_abs / 2.0;
        // A layer sees the differences of all layers before it, and those of the logits need not show them.
        let layer_relative = Some(10.0 * factor);
        Limits { max_abs: Some(max_abs), mean_kl: Some(kl), max_kl: Some(kl), layer_relative, ..Limits::default() }
    }
}

impl Limits {
    /// The figures beyond their limit, as `(name, found, limit)`. A NaN is beyond every limit.
    pub fn exceeded(&self, m: &Metrics) -> Vec<(&'static str, f64, f64)> {
        let upper = [
            ("max_abs", m.max_abs, self.max_abs),
            ("mean_abs", m.mean_abs, self.mean_abs),
            ("mean_kl", m.mean_kl, self.mean_kl),
            ("max_kl", m.max_kl, self.max_kl),
        ];
        let mut out: Vec<_> = upper
            .into_iter()
            .filter_map(|(name, found, limit)| {
                limit.filter(|l| !matches!(found.partial_cmp(l), Some(o) if o.is_le())).map(|l| (name, found, l))
            })
            .collect();
        if let Some(limit) = self.top1_agreement.filter(|l| m.top1_agreement < *l) {
            out.push(("top1_agreement", m.top1_agreement, limit));
        }
        if !m.is_finite() && out.is_empty() {
            out.push(("max_abs", m.max_abs, f64::INFINITY));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(max_abs: f64, kl: f64) -> Metrics {
        Metrics { max_abs, mean_abs: max_abs, mean_kl: kl, max_kl: kl, top1_agreement: 1.0, n_positions: 1 }
    }

    #[test]
    fn limits_follow_the_effect_as_the_specification_says() {
        let at = |t: &str, e| Tolerance::parse(t).unwrap().limits(e).max_abs.unwrap();
        assert_eq!(at("f32", 1.0), 2e-4);
        assert!((at("F32", 42.0) - 5.04e-3).abs() < 1e-9);
        assert!((at("f16", 2.0) - 2.2e-3).abs() < 1e-12);
        assert!((at("bf16", 2.0) - 1.62e-2).abs() < 1e-12);
    }

    #[test]
    fn nan_never_passes() {
        let nan = metrics(f64::NAN, f64::NAN);
        assert!(!Tolerance::parse("f32").unwrap().limits(1.0).exceeded(&nan).is_empty());
        assert!(!Tolerance::parse("top1_agreement=0").unwrap().limits(1.0).exceeded(&nan).is_empty());
        assert!(Tolerance::parse("max_abs=1").unwrap().limits(1.0).exceeded(&metrics(1.0, 9.0)).is_empty());
        assert_eq!(
            Tolerance::parse("max_abs=1,mean_kl=0.5").unwrap().limits(1.0).exceeded(&metrics(1.0, 9.0)).len(),
            1
        );
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for text in
            ["", "q9", "i32", "max_abs", "max_abs=x", "max_abs=-1", "max_abs=nan", "max=1", "max_abs=1,max_abs=2"]
        {
            let e = Tolerance::parse(text).unwrap_err();
            assert_eq!(e.code(), Code::Usage, "{text}");
        }
    }
}
