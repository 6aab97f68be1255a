//! Finds the conventions that a checkpoint does not state: tries every reading against a probe.
//!
//! ```text
//!   Draft -> candidates (each function once) -> a few positions of one layer, or a short prefix: most drop out here
//!         -> those that fit and the best of the rest: everything the probe has -> exactly one must fit
//! ```
//!
//! With `term.{i}` and `q.{i}` in the probe no model runs: the term of a layer is computed from the recorded query
//! (before RoPE, where the reading says so: a rotation can be undone). Without them the model runs, all candidates side
//! by side as rows of one batch.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::adapter::{Adapter, QueryTap};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::format::mmap::map_file;
use crate::import::{Candidate, Candidates, Draft, Imported, flag_of};
use crate::runner::{self, Lane, Sink, StreamOptions, phi};
use crate::tensor::DType;
use crate::tensor::dtype::coarsest;
use crate::verify::Options;
use crate::verify::probe::Probe;
use crate::verify::stats::max_abs_difference;
use crate::verify::tolerance::Tolerance;

/// Candidates that are examined to the end though they do not fit: what a table of the best shows.
const BEST: usize = 5;
/// Positions of the first look. Two would do; the first of all tells nothing about RoPE.
const FIRST_POSITIONS: usize = 4;
/// Rows (lanes times positions) that run through the model at once; bounds the memory to a few activations each.
const ROWS: usize = 4096;

/// How the conventions were found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Settlement {
    /// What was open, with the value found.
    pub found: BTreeMap<&'static str, String>,
    /// `term` or `logits`: what of the probe was compared.
    pub evidence: &'static str,
    /// Largest difference from the probe, as a share of the limit.
    pub error: f64,
    /// How many times farther off the next best function is; absent where there is no other.
    pub margin: Option<f64>,
    /// Functions tried.
    pub n_functions: usize,
    /// Combinations of conventions that these are.
    pub n_combinations: usize,
}

impl Settlement {
    /// One line for people.
    pub fn line(&self) -> String {
        let found: Vec<String> = self.found.iter().map(|(k, v)| format!("{k} {v}")).collect();
        let margin = self.margin.map_or(String::new(), |m| format!("; the next best is {m:.2e} times farther off"));
        format!(
            "conventions found by the probe's {} among {} functions ({} combinations): {}; difference {:.2e} of the limit{margin}",
            if self.evidence == "term" { "terms" } else { "logits" },
            self.n_functions,
            self.n_combinations,
            found.join(", "),
            self.error
        )
    }
}

/// Reads the draft as the probe says.
///
/// # Errors
///
/// [`Code::ConventionNone`] with the best five where no reading fits; [`Code::ConventionAmbiguous`] naming the
/// conventions and their flags where several do; [`Code::ProbeMismatch`]; those of the runner.
pub fn settle(draft: Draft, base: &BaseModel, probe: &Probe, options: &Options<'_>) -> Result<(Imported, Settlement)> {
    probe.check_fits(base)?;
    let open = draft.open(Some(base));
    let candidates = draft.candidates(base)?;
    let search = Search { draft: &draft, candidates: &candidates, base, probe, options };
    let tolerance = match &options.tolerance {
        Some(t) => t.clone(),
        None => Tolerance::for_dtype(coarsest(draft.ledger.consumed().map(|e| e.dtype)))?,
    };
    // Explicit limits are about logits.
    let by_terms = (tolerance.name() != "explicit").then(|| search.by_terms(&tolerance)).transpose()?.flatten();
    let (evidence, mut scored) = match by_terms {
        Some(scored) => ("term", scored),
        None => ("logits", search.by_logits(&tolerance)?),
    };
    scored.sort_by(|a, b| a.score.total_cmp(&b.score));
    let fit: Vec<&Scored> = scored.iter().filter(|s| s.score <= 1.0).collect();
    let table = || table(&scored[..scored.len().min(BEST.max(fit.len()))], &open);
    let best = match fit[..] {
        [best] => best,
        [] => {
            let message = format!(
                "expected a reading that reproduces the probe's {evidence}, found none among {} functions; the best are",
                candidates.list.len()
            );
            return Err(Error::new(Code::ConventionNone, message).file(&probe.path).details(table()));
        }
        [first, ref others @ ..] => {
            let mut differ: Vec<&str> = Vec::new();
            for (k, value) in first.candidate.conventions.values() {
                let same =
                    |s: &&Scored| s.candidate.conventions.values().iter().any(|(k2, v2)| *k2 == k && *v2 == value);
                if !others.iter().all(same) {
                    differ.push(k);
                }
            }
            let named: Vec<String> =
                differ.iter().map(|k| format!("{k} ({})", flag_of(k).unwrap_or("--layout"))).collect();
            let message = format!(
                "expected one reading that reproduces the probe, found {} that it cannot separate at this precision; state {}",
                fit.len(),
                named.join(", ")
            );
            return Err(Error::new(Code::ConventionAmbiguous, message).file(&probe.path).details(table()));
        }
    };
    let runner_up = scored.iter().find(|s| s.candidate != best.candidate && s.score.is_finite());
    let settlement = Settlement {
        found: best.candidate.conventions.values().into_iter().filter(|(k, _)| open.contains(k)).collect(),
        evidence,
        error: two_digits(best.score),
        margin: runner_up.map(|r| two_digits(r.score / best.score.max(f64::MIN_POSITIVE))),
        n_functions: candidates.list.len(),
        n_combinations: candidates.n_combinations,
    };
    let facts: BTreeMap<String, Value> = [
        ("probe_sha256".to_owned(), Value::from(crate::digest::hex(&Sha256::digest(&*map_file(&probe.path)?)))),
        ("evidence".to_owned(), evidence.into()),
        ("margin".to_owned(), settlement.margin.map_or(Value::Null, Value::from)),
        ("functions_tried".to_owned(), settlement.n_functions.into()),
    ]
    .into();
    let best = best.candidate;
    let imported = draft.clone().settle(&best, &candidates, facts, base)?;
    Ok((imported, settlement))
}

/// A candidate with its largest difference from the probe as a share of the limit: at most 1 fits.
#[derive(Debug, Clone, Copy)]
struct Scored {
    candidate: Candidate,
    score: f64,
}

struct Search<'a> {
    draft: &'a Draft,
    candidates: &'a Candidates,
    base: &'a BaseModel,
    probe: &'a Probe,
    options: &'a Options<'a>,
}

/// What the probe holds of one layer.
struct Evidence {
    layer: usize,
    shape: [usize; 4],
    /// After and before RoPE.
    queries: [Vec<f32>; 2],
    term: Vec<f32>,
    /// Largest difference that rounding explains.
    limit: f64,
}

impl Evidence {
    fn query(&self, tap: QueryTap) -> &[f32] {
        &self.queries[usize::from(tap == QueryTap::PreRope)]
    }

    /// The first batch row and its positions from the last one back, few of them: late positions are rotated most.
    fn first_look(&self) -> Evidence {
        let [_, h, t, d] = self.shape;
        let d_v = self.term.len() / (self.shape[0] * h * t).max(1);
        let n = t.min(FIRST_POSITIONS);
        let cut = |x: &[f32], len: usize| -> Vec<f32> {
            (0..h).flat_map(|head| x[(head * t + t - n) * len..(head + 1) * t * len].iter().copied()).collect()
        };
        Evidence {
            layer: self.layer,
            shape: [1, h, n, d],
            queries: [cut(&self.queries[0], d), cut(&self.queries[1], d)],
            term: cut(&self.term, d_v),
            limit: self.limit,
        }
    }
}

impl Search<'_> {
    /// Scores by `term.{i}`; `None` where the probe has no layer with both query and term.
    fn by_terms(&self, tolerance: &Tolerance) -> Result<Option<Vec<Scored>>> {
        let mut evidence = Vec::new();
        let adapted: Vec<usize> =
            self.candidates.list.first().map_or(Vec::new(), |c| self.candidates.layers(c).keys().copied().collect());
        for layer in adapted {
            let (Some(q), Some(term)) = (self.probe.q(layer), self.probe.term(layer)) else { continue };
            let c = &self.base.config;
            let (batch, t) = (self.probe.input_ids.len(), self.probe.input_ids[0].len());
            let shape = [batch, c.n_heads, t, c.head_dim];
            let before = runner::before_rope(self.base, &q, shape)?;
            let size = term.iter().fold(0.0, |m, v| f64::max(m, f64::from(v.abs())));
            let limit = size * term_share(tolerance);
            // Terms that are 0 everywhere tell nothing.
            if limit > 0.0 {
                evidence.push(Evidence { layer, shape, queries: [q, before], term, limit });
            }
        }
        let Some(first) = evidence.first() else { return Ok(None) };
        let look = first.first_look();
        let total = self.candidates.list.len();
        let mut scored = Vec::with_capacity(total);
        for (i, candidate) in self.candidates.list.iter().enumerate() {
            scored.push(Scored { candidate: *candidate, score: self.term_score(candidate, &look)? });
            (self.options.progress)(i + 1, total + 1);
        }
        for s in worth_a_second_look(&mut scored) {
            for e in &evidence {
                s.score = s.score.max(self.term_score(&s.candidate, e)?);
            }
        }
        (self.options.progress)(total + 1, total + 1);
        Ok(Some(scored))
    }

    fn term_score(&self, c: &Candidate, e: &Evidence) -> Result<f64> {
        let layers = self.candidates.layers(c);
        let config = self.draft.config_of(&c.conventions, layers, self.base)?;
        let Some(weights) = layers.get(&e.layer) else { return Ok(f64::INFINITY) };
        match phi::term_f32(e.query(c.conventions.query_tap), e.shape, &config, weights, e.layer) {
            Ok(term) => Ok(share(max_abs_difference(&term, &e.term), e.limit)),
            // phi . N = 0 is no reading that anybody trained with.
            Err(e) if e.code() == Code::DenominatorZero => Ok(f64::INFINITY),
            Err(e) => Err(e),
        }
    }

    fn by_logits(&self, tolerance: &Tolerance) -> Result<Vec<Scored>> {
        let probe = self.probe;
        let limits = tolerance.limits(self.effect()?);
        let limit = limits.max_abs.ok_or_else(|| {
            Error::new(Code::Usage, "expected a limit on max_abs, which the search compares").field("--tolerance")
        })?;
        let n = probe.positions.len().min(FIRST_POSITIONS);
        let prefix = probe.positions[n - 1] + 1;
        let row = vec![probe.input_ids[0][..prefix].to_vec()];
        let total = self.candidates.list.len();
        let mut scored: Vec<Scored> =
            self.candidates.list.iter().map(|c| Scored { candidate: *c, score: f64::NAN }).collect();
        let mut done = 0;
        for chunk in scored.chunks_mut((ROWS / prefix).max(1)) {
            self.logit_scores(chunk.iter_mut().collect(), &row, &probe.positions[..n], limit)?;
            done += chunk.len();
            (self.options.progress)(done, total + BEST);
        }
        let mut again = worth_a_second_look(&mut scored);
        let rows = probe.input_ids.len() * probe.input_ids[0].len();
        let size = (ROWS / rows).max(1);
        while !again.is_empty() {
            let rest = again.split_off(size.min(again.len()));
            self.logit_scores(again, &probe.input_ids, &probe.positions, limit)?;
            again = rest;
        }
        (self.options.progress)(total + BEST, total + BEST);
        Ok(scored)
    }

    /// `max |logits - base_logits|` of the probe, or of its logits and our base.
    fn effect(&self) -> Result<f64> {
        let mut sink = Effect { probe: self.probe, effect: 0.0 };
        let recorded =
            (0..self.probe.input_ids.len()).flat_map(|b| (0..self.probe.positions.len()).map(move |p| (b, p)));
        let mut known = true;
        for (b, p) in recorded {
            match self.probe.base_logits(b, p) {
                Some(base) => sink.effect = f64::max(sink.effect, max_abs_difference(&self.probe.logits(b, p), &base)),
                None => known = false,
            }
        }
        if !known {
            let options = self.stream(&self.probe.positions);
            runner::stream(self.base, &self.probe.input_ids, &[Lane::default()], &options, &mut sink)?;
        }
        Ok(sink.effect)
    }

    fn stream(&self, positions: &[usize]) -> StreamOptions {
        StreamOptions { device: self.options.device.clone(), positions: Some(positions.to_vec()) }
    }

    /// Runs the candidates side by side and sets their scores.
    fn logit_scores(&self, scored: Vec<&mut Scored>, ids: &[Vec<u32>], positions: &[usize], limit: f64) -> Result<()> {
        let mut work = vec![scored];
        while let Some(mut scored) = work.pop() {
            let adapters: Vec<Adapter> = scored
                .iter()
                .map(|s| {
                    let layers = self.candidates.layers(&s.candidate);
                    let config = self.draft.config_of(&s.candidate.conventions, layers, self.base)?;
                    Ok(Adapter { config, layers: layers.clone() })
                })
                .collect::<Result<_>>()?;
            let lanes: Vec<Lane> = adapters.iter().map(|a| Lane { adapters: vec![(a, 1.0)] }).collect();
            let mut sink = Scores { probe: self.probe, worst: vec![0.0; lanes.len()] };
            match runner::stream(self.base, ids, &lanes, &self.stream(positions), &mut sink) {
                Ok(()) => {
                    for (s, worst) in scored.iter_mut().zip(sink.worst) {
                        s.score = share(worst, limit);
                    }
                }
                // One of them divides by 0: halve until it stands alone.
                Err(e) if e.code() == Code::DenominatorZero => match &mut scored[..] {
                    [one] => one.score = f64::INFINITY,
                    _ => {
                        let half = scored.split_off(scored.len() / 2);
                        work.extend([half, scored]);
                    }
                },
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Those that fit so far, and the best of the rest.
fn worth_a_second_look(scored: &mut [Scored]) -> Vec<&mut Scored> {
    scored.sort_by(|a, b| a.score.total_cmp(&b.score));
    let n = scored.iter().filter(|s| s.score <= 1.0).count().max(BEST).min(scored.len());
    scored[..n].iter_mut().filter(|s| s.score.is_finite()).collect()
}

/// Largest difference of a term that rounding explains, as a share of the layer's largest term. The query is the
/// probe's own, so one matrix product's rounding is all there is, and that of the stored weights: for F16 and BF16 the
/// factors of [`Tolerance`], for F32 what sums in another order cost (`verify` through the whole model: at most 9e-7 on the fixtures).
fn term_share(tolerance: &Tolerance) -> f64 {
    match DType::parse(tolerance.name()) {
        Some(DType::F16) => 1e-3,
        Some(DType::BF16) => 8e-3,
        _ => 3e-5,
    }
}

fn share(difference: f64, limit: f64) -> f64 {
    // NaN is no fit, and sorts behind every number.
    if difference.is_nan() { f64::INFINITY } else { difference / limit }
}

/// Figures in outputs have two significant digits: more would depend on the machine.
fn two_digits(x: f64) -> f64 {
    format!("{x:.1e}").parse().unwrap_or(x)
}

fn table(scored: &[Scored], open: &[&str]) -> Vec<String> {
    let row = |s: &Scored| {
        let values: Vec<String> = s
            .candidate
            .conventions
            .values()
            .into_iter()
            .filter(|(k, _)| open.contains(k))
            .map(|(k, v)| format!("{k} {v}"))
            .collect();
        format!("{:>9.2e} of the limit: {}", s.score, values.join(", "))
    };
    scored.iter().map(row).collect()
}

struct Scores<'a> {
    probe: &'a Probe,
    worst: Vec<f64>,
}

impl Sink for Scores<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let reference = reference(self.probe, batch, position);
        for (worst, found) in self.worst.iter_mut().zip(lanes) {
            let d = max_abs_difference(&reference, found);
            *worst = if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d) };
        }
        Ok(())
    }
}

struct Effect<'a> {
    probe: &'a Probe,
    effect: f64,
}

impl Sink for Effect<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        self.effect = self.effect.max(max_abs_difference(&reference(self.probe, batch, position), lanes[0]));
        Ok(())
    }
}

fn reference(probe: &Probe, batch: usize, position: usize) -> Vec<f32> {
    let p = probe.positions.iter().position(|x| *x == position).expect("only the probe's positions were asked for");
    probe.logits(batch, p)
}
