//! Limits, relative to the adapter's effect `E = max |logits - base_logits|`.
//!
//! Absolute limits would let a wrong activation pass where the effect is small; `docs/VERIFY.md` has the
//! measurements behind each factor.

use serde::Serialize;

use crate::adapter::Kind;
use crate::error::{Code, Error, Result};
use crate::tensor::DType;

use super::stats::Metrics;

/// How far the outputs may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Tolerance {
    name: String,
    /// The type that the rule is for; of stated limits none.
    dtype: Option<DType>,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    /// `max |dlogit| <= max(floor, factor * E)`
    Larger { floor: f64, factor: f64 },
    /// `max |dlogit| <= floor + factor * E`
    Sum { floor: f64, factor: f64 },
    /// For what is added with a relative error of `r`, in blocks or as a product of rounded factors:
    /// `max |dlogit| <= floor + min(ROUNDING_MAX_ABS r, LARGEST_SHARE) E` and
    /// `mean KL <= floor^2 / 2 + (root_kl r E)^2`
    Rounding { floor: f64, relative_error: f64, root_kl: f64 },
    /// For a whole model whose matrices have a relative error of `r`, with `S` the size of its logits:
    /// `max |dlogit| <= floor + min(MODEL_MAX_ABS r S, LARGEST_SHARE E)` and `mean KL <= floor^2 / 2 + (MODEL_ROOT_KL r S)^2`
    Model { floor: f64, relative_error: f64, size: f64 },
    /// As the user says.
    Explicit(Limits),
}

/// What a layer's query or term may differ by whatever its size: F32 arithmetic in another order.
pub const LAYER_FLOOR: f64 = 2e-4;
/// What F32 arithmetic in another order costs on logits of size 40 (measured 4e-5 to 1.5e-4).
const FLOOR: f64 = 2e-4;

/// `max |dlogit| / E` over the relative error of what is added: of memories measured 0.9 to 2.7 on the fixtures and 0.1 to 5.6 on
/// SmolLM2, where single positions of random prompts amplify; of LoRA 0.4 to 5.8.
const ROUNDING_MAX_ABS: f64 = 8.0;

/// And never more than this share of E: the plain base without an adapter is E away.
const LARGEST_SHARE: f64 = 0.9;

/// `sqrt(mean KL) / E` over the relative error of the weights: measured 0.14 to 0.26 on the fixtures, five types.
///
/// It is an average, so it hardly varies, and tells a wrong activation from rounding where the maximum cannot.
const BLOCK_ROOT_KL: f64 = 0.33;

/// The same of LoRA: measured 0.06 to 0.52 on ten adapters, seven types. A LoRA changes every matrix of a block, so its errors pass
/// through more of the model than those of a term after attention.
const PRODUCT_ROOT_KL: f64 = 0.75;

/// The same of virtual tokens: measured 0.02 to 0.31 on nine of them, seven types.
const VIRTUAL_TOKENS_ROOT_KL: f64 = 0.45;

/// `max |dlogit| / S` over the relative error of all matrices of a model: measured 3.5 to 16 on eight merged models, four types, and 44
/// on SmolLM2, where single positions of random prompts amplify.
const MODEL_MAX_ABS: f64 = 64.0;

/// `sqrt(mean KL) / S` likewise: measured 0.5 to 1.3.
const MODEL_ROOT_KL: f64 = 1.75;

/// RMSE over RMS of weights as trained ones are distributed, largest over the fixtures; `docs/VERIFY.md`.
///
/// Q2_K is not among them: it changes a third of the weights' size, and no limit would tell that from a mistake.
const RELATIVE_ERROR: &[(DType, f64)] = &[
    (DType::Q8_0, 0.006),
    (DType::Q6_K, 0.02),
    (DType::Q5_1, 0.039),
    (DType::Q5_K, 0.0395),
    (DType::Q5_0, 0.045),
    (DType::Q4_K, 0.078),
    (DType::Q4_1, 0.081),
    (DType::Q4_0, 0.09),
    (DType::Q3_K, 0.165),
];

/// The same of plain floats, largest over the LoRAs of the fixtures. For memories their rounding itself is the limit.
const RELATIVE_ERROR_OF_FLOATS: &[(DType, f64)] = &[(DType::F16, 2.3e-4), (DType::BF16, 1.87e-3)];

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

/// As [`Tolerance::parse`] takes it, limits in one order.
impl std::fmt::Display for Tolerance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rule::Explicit(limits) = &self.rule else { return f.write_str(&self.name) };
        let all = [
            ("max_abs", limits.max_abs),
            ("mean_abs", limits.mean_abs),
            ("mean_kl", limits.mean_kl),
            ("max_kl", limits.max_kl),
            ("top1_agreement", limits.top1_agreement),
        ];
        let stated: Vec<String> =
            all.into_iter().filter_map(|(name, limit)| limit.map(|l| format!("{name}={l:?}"))).collect();
        f.write_str(&stated.join(","))
    }
}

impl Tolerance {
    /// The rule for weights stored in this type.
    ///
    /// # Errors
    ///
    /// [`Code::NothingCompared`] for a type for which none is established: state one with `--tolerance`.
    pub fn for_dtype(dtype: DType) -> Result<Tolerance> {
        let rule = match dtype {
            DType::F32 | DType::F64 => Rule::Larger { floor: FLOOR, factor: 1.2e-4 },
            DType::F16 => Rule::Sum { floor: FLOOR, factor: 1e-3 },
            DType::BF16 => Rule::Sum { floor: FLOOR, factor: 8e-3 },
            other => match RELATIVE_ERROR.iter().find(|(d, _)| *d == other) {
                Some(&(_, relative_error)) => Rule::Rounding { floor: FLOOR, relative_error, root_kl: BLOCK_ROOT_KL },
                None => {
                    let message = format!(
                        "no limit is established for adapters stored as {other}; state one: --tolerance max_abs=X,mean_kl=Y"
                    );
                    return Err(Error::new(Code::NothingCompared, message).field("--tolerance"));
                }
            },
        };
        Ok(Tolerance { name: dtype.name().to_lowercase(), dtype: Some(dtype), rule })
    }

    /// The same type's rule for adapters of a kind. LoRA adds the product of two factors, whose errors are independent, so that of the
    /// product is `sqrt(2)` times the one of each. F32 and stated limits stay as they are.
    pub fn of_kind(self, kind: Kind) -> Tolerance {
        let (errors, root_kl) = match kind {
            Kind::Plus => return self,
            Kind::Lora => (std::f64::consts::SQRT_2, PRODUCT_ROOT_KL),
            Kind::Prefix => (1.0, VIRTUAL_TOKENS_ROOT_KL),
        };
        let Some(of_weights) = self.relative_error() else { return self };
        let rule = Rule::Rounding { floor: FLOOR, relative_error: errors * of_weights, root_kl };
        Tolerance { rule, ..self }
    }

    /// The same type's rule where all matrices of a model are in that type: its error has the size of the model's logits,
    /// `max |logit|`, however small the effect of what was merged into it. F32 and stated limits stay as they are.
    pub fn of_model(self, size: f64) -> Tolerance {
        let Some(relative_error) = self.relative_error() else { return self };
        Tolerance { rule: Rule::Model { floor: FLOOR, relative_error, size }, ..self }
    }

    /// That of weights in the rule's type, where it rounds.
    fn relative_error(&self) -> Option<f64> {
        let known = RELATIVE_ERROR_OF_FLOATS.iter().chain(RELATIVE_ERROR).find(|(d, _)| Some(*d) == self.dtype);
        known.map(|(_, r)| *r)
    }

    /// No limits: the figures are wanted, not a verdict.
    pub fn none() -> Tolerance {
        Tolerance { name: "none".into(), dtype: None, rule: Rule::Explicit(Limits::default()) }
    }

    /// A type's name, or `max_abs=X,mean_kl=Y,...`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`].
    pub fn parse(text: &str) -> Result<Tolerance> {
        let wrong = |found: &str| {
            Error::new(
                Code::Usage,
                format!("expected a type (f32, f16, bf16, q8_0, ...) or a list such as max_abs=1e-3,mean_kl=1e-6, found {found:?}"),
            )
            .field("--tolerance")
        };
        if !text.contains('=') {
            let dtype = DType::parse(text).filter(|d| d.is_float() || crate::quant::can_quantize(*d));
            return Tolerance::for_dtype(dtype.ok_or_else(|| wrong(text))?);
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
        Ok(Tolerance { name: "explicit".into(), dtype: None, rule: Rule::Explicit(limits) })
    }

    /// A type's name in lower case, `explicit` or `none`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits for an adapter of this effect.
    pub fn limits(&self, effect: f64) -> Limits {
        let (max_abs, layer_relative) = match &self.rule {
            // A layer sees the differences of all layers before it, and those of the logits need not show them.
            Rule::Larger { floor, factor } => (floor.max(factor * effect), Some(10.0 * factor)),
            Rule::Sum { floor, factor } => (floor + factor * effect, Some(10.0 * factor)),
            Rule::Rounding { floor, relative_error, .. } => {
                (floor + (ROUNDING_MAX_ABS * relative_error).min(LARGEST_SHARE) * effect, None)
            }
            Rule::Model { floor, relative_error, size } => {
                (floor + (MODEL_MAX_ABS * relative_error * size).min(LARGEST_SHARE * effect), None)
            }
            Rule::Explicit(limits) => return *limits,
        };
        // With x = b - a in [-d, d], KL = log E_p[e^x] - E_p[x], which Hoeffding's lemma bounds by (2d)^2 / 8.
        let kl = max_abs * max_abs / 2.0;
        let mean_kl = match &self.rule {
            Rule::Rounding { floor, relative_error, root_kl } => {
                (floor * floor / 2.0 + (root_kl * relative_error * effect).powi(2)).min(kl)
            }
            Rule::Model { floor, relative_error, size } => {
                (floor * floor / 2.0 + (MODEL_ROOT_KL * relative_error * size).powi(2)).min(kl)
            }
            _ => kl,
        };
        Limits { max_abs: Some(max_abs), mean_kl: Some(mean_kl), max_kl: Some(kl), layer_relative, ..Limits::default() }
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
    fn limits_of_block_types_follow_their_error_and_stay_below_the_effect() {
        let mut before = Tolerance::parse("bf16").unwrap().limits(5.0);
        for (dtype, relative_error) in RELATIVE_ERROR {
            let l = Tolerance::for_dtype(*dtype).unwrap().limits(5.0);
            assert!((l.max_abs.unwrap() - (2e-4 + (8.0 * relative_error).min(0.9) * 5.0)).abs() < 1e-12, "{dtype}");
            assert!((l.mean_kl.unwrap() - (2e-8 + (0.33 * relative_error * 5.0).powi(2))).abs() < 1e-12, "{dtype}");
            assert!(l.max_abs < Some(5.0), "{dtype}: else an adapter without effect would pass");
            assert!(l.max_abs > before.max_abs && dtype.is_quantized(), "{dtype}: finest first");
            before = l;
        }
        assert_eq!(Tolerance::parse("q2_k").unwrap_err().code(), Code::NothingCompared);
    }

    #[test]
    fn limits_of_a_kind_follow_the_errors_of_what_it_adds() {
        let limits = |t: &str, kind| Tolerance::parse(t).unwrap().of_kind(kind).limits(5.0);
        for (kind, errors, root_kl) in [(Kind::Lora, 2f64.sqrt(), 0.75), (Kind::Prefix, 1.0, 0.45)] {
            for (t, relative_error) in [("f16", 2.3e-4), ("bf16", 1.87e-3), ("q8_0", 0.006), ("q4_1", 0.081)] {
                let (found, r) = (limits(t, kind), errors * relative_error);
                assert!((found.max_abs.unwrap() - (2e-4 + (8.0 * r).min(0.9) * 5.0)).abs() < 1e-12, "{t}");
                assert!((found.mean_kl.unwrap() - (2e-8 + (root_kl * r * 5.0).powi(2))).abs() < 1e-12, "{t}");
                let twice = Tolerance::parse(t).unwrap().of_kind(kind).of_kind(kind);
                assert_eq!((twice.limits(5.0), twice.name()), (found, t));
            }
            for same in ["f32", "max_abs=1"] {
                assert_eq!(limits(same, kind), Tolerance::parse(same).unwrap().limits(5.0));
            }
        }
        assert_eq!(limits("f16", Kind::Plus), Tolerance::parse("f16").unwrap().limits(5.0));
    }

    #[test]
    fn limits_of_a_model_have_the_size_of_its_logits_and_stay_below_the_effect() {
        let limits = |t: &str, effect| Tolerance::parse(t).unwrap().of_model(4.0).limits(effect);
        assert!((limits("f16", 5.0).max_abs.unwrap() - (2e-4 + 64.0 * 2.3e-4 * 4.0)).abs() < 1e-12);
        assert!((limits("q8_0", 5.0).mean_kl.unwrap() - (2e-8 + (1.75f64 * 0.006 * 4.0).powi(2))).abs() < 1e-12);
        assert!((limits("q4_0", 1.0).max_abs.unwrap() - (2e-4 + 0.9)).abs() < 1e-12);
        assert_eq!(limits("f32", 5.0), Tolerance::parse("f32").unwrap().limits(5.0));
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
