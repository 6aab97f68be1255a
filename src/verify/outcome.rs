//! The outcome of a verification, and the error that it becomes where it failed.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::stats::{Metrics, Row, Worst};
use super::tolerance::Limits;
use crate::error::{Code, Error, Result};

/// The outcome of a verification: figures, limits, verdict.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The verdict.
    pub pass: bool,
    /// The adapter against the reference.
    pub metrics: Metrics,
    /// The plain base against the reference's plain base: tells a wrong base from a wrong adapter.
    pub base_metrics: Option<Metrics>,
    /// The limits that `metrics` were held against.
    pub limits: Limits,
    /// The name of their rule: a type's, `explicit` or `none`.
    pub tolerance: String,
    /// `max |logits - base_logits|` of the reference. Limits are relative to the smaller of this and `found_effect`.
    pub effect: f64,
    /// The same of the adapter under test.
    pub found_effect: f64,
    /// Where the largest difference is.
    pub worst: Option<Worst>,
    /// Per adapted layer, where the reference has it.
    pub layers: Vec<LayerReport>,
    /// Every compared position.
    pub positions: Vec<Row>,
    /// Why it failed, one line each.
    pub failures: Vec<Failure>,
}

/// How far one layer's query and term are from the reference's.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// Layer number.
    pub layer: usize,
    /// `max |q - q_ref|`, post-RoPE.
    pub q_max_abs: Option<f64>,
    /// `max |q_ref|`, for scale.
    pub q_size: Option<f64>,
    /// `max |term - term_ref|`
    pub term_max_abs: Option<f64>,
    /// `max |term_ref|`, for scale.
    pub term_size: Option<f64>,
}

/// One reason for a failed verification.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Failure {
    /// The stable code's slug.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Report {
    /// The report, if it passed.
    ///
    /// # Errors
    ///
    /// [`Code::NoEffect`] or [`Code::NumbersDiffer`], about the adapter at `path`: the first failure and what follows
    /// from it (`nothing was written`), the other failures as details, the report as the cause: [`FailedReport`].
    pub fn passed(self, what_follows: &str, path: &Path) -> Result<Report> {
        let Some((first, others)) = self.failures.split_first() else { return Ok(self) };
        let code = if first.code == Code::NoEffect.slug() { Code::NoEffect } else { Code::NumbersDiffer };
        let others = others.iter().map(|f| format!("also {} [{}]", f.message, f.code)).collect();
        let error = Error::new(code, format!("{}; {what_follows}", first.message)).file(path).details(others);
        Err(error.caused_by(FailedReport(self)))
    }

    pub(super) fn fail(&mut self, code: Code, message: String) {
        self.failures.push(Failure::new(code, message));
        self.pass = false;
    }
}

/// The cause of an error about a comparison: everything that was found. An error's
/// [`source`](std::error::Error::source) can be downcast to it.
#[derive(Debug)]
pub struct FailedReport(pub Report);

impl fmt::Display for FailedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.0.metrics;
        write!(
            f,
            "{} positions compared: max |dlogit| {:.3e}, mean KL {:.3e}, max KL {:.3e}",
            m.n_positions, m.max_abs, m.mean_kl, m.max_kl
        )
    }
}

impl std::error::Error for FailedReport {}

impl Failure {
    pub(super) fn new(code: Code, message: String) -> Self {
        Failure { code: code.slug(), message }
    }
}
