//! Finds the conventions that a checkpoint does not state: holds every reading against a probe.
//!
//! ```text
//!   Draft -> candidates (each function once) -> scales fitted to a few positions of one layer, or to a short prefix
//!         -> those that fit and the best of the rest: fitted to everything the probe has -> exactly one must fit
//! ```
//!
//! With `term.{i}` and `q.{i}` in the probe no model runs: the term of a layer is computed from the recorded query
//! (before RoPE, where the reading says so: a rotation can be undone). Without them the model runs, all candidates side
//! by side as rows of one batch. Scales that are open are solved for (`search/scales.rs`), and what they are is decided by
//! what else would fit (`search/readings.rs`). The work is bounded by counts: starts, rounds, positions.

mod logits;
mod readings;
mod scales;
mod terms;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::adapter::Part;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::format::mmap::map_file;
use crate::import::{Candidate, Candidates, Draft, Imported, Unknown, flag_of};
use crate::runner::{self, Device, Lane, Sink, StreamOptions};
use crate::tensor::coarsest;
use crate::verify::probe::Probe;
use crate::verify::stats::max_abs_difference;
use crate::verify::tolerance::Tolerance;
use crate::verify::{BaseFigures, Options};
use logits::Logits;
use readings::Reading;
use scales::{Fit, Point, Scales, Sums};
use terms::Terms;

/// Candidates that are examined to the end though they do not fit: what a table of the best shows.
const BEST: usize = 5;
/// Positions of the first look. Two would do; the first of all tells nothing about RoPE.
const FIRST_POSITIONS: usize = 4;
/// Fits that go on to the end of the first look.
const KEPT_FITS: usize = 12;
/// Candidates further off than this many limits after the first look are not fitted to the rest of the probe.
const HOPELESS: f64 = 30.0;

/// How the conventions were found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Settlement {
    /// What was open, with the value found.
    pub found: BTreeMap<&'static str, String>,
    /// Scales among them that are no simple number, with how far each can move within the limit.
    pub fitted: BTreeMap<&'static str, Fitted>,
    /// `term` or `logits`: what of the probe was compared.
    pub evidence: &'static str,
    /// Largest difference from the probe, as a share of the limit.
    pub error: f64,
    /// How many times farther off the next best function is; absent where there is no other.
    pub margin: Option<f64>,
    /// Functions tried; those that differ in their scales alone count once.
    pub n_functions: usize,
    /// Combinations of conventions that these are.
    pub n_combinations: usize,
}

/// A scale that was fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fitted {
    /// The value, in as many digits as mean something.
    pub value: f64,
    /// How far it can move before the probe is not reproduced any more, the other scale following.
    pub within: f64,
}

impl Settlement {
    /// One line for people.
    pub fn line(&self) -> String {
        let found = self.found.iter().map(|(k, v)| match self.fitted.get(k) {
            Some(f) => format!("{k} {v} (fitted, within {:.1e})", f.within),
            None => format!("{k} {v}"),
        });
        let found: Vec<String> = found.collect();
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
    let open = draft.open_to_probe(Some(base));
    let candidates = draft.candidates(base)?;
    let search = Search { draft: &draft, candidates: &candidates, base, probe, device: options.device };
    let tolerance = match &options.tolerance {
        Some(t) => t.clone(),
        None => Tolerance::for_dtype(coarsest(draft.ledger.consumed().map(|e| e.dtype)))?,
    };
    search.check_base(&tolerance)?;
    // Explicit limits are about logits.
    let by_terms = (tolerance.name() != "explicit").then(|| Terms::of(&search, &tolerance)).transpose()?.flatten();
    let (evidence, readings) = match &by_terms {
        Some(terms) => (terms.name(), search.run(&terms.first_look(), terms, options.progress)?),
        None => {
            let logits = Logits::of(&search, &tolerance)?;
            (logits.name(), search.run(&logits.first_look(), &logits, options.progress)?)
        }
    };
    let head_dim = base.config.head_dim;
    let shown = |n: usize| table(&readings[..readings.len().min(n)], &open);
    let Some((best, rivals)) = readings::decide(&readings, head_dim) else {
        let message = format!(
            "expected a reading that reproduces the probe's {evidence}, found none among {} functions; the best are",
            candidates.list.len()
        );
        let mut lines = shown(BEST);
        if let Some(terms) = &by_terms {
            lines.extend(search.disagreement(terms, &readings[..readings.len().min(BEST)])?);
        }
        let hint = rounded_probe(probe, by_terms.as_ref().and(readings.first()), &tolerance);
        return Err(Error::new(Code::ConventionNone, message).file(&probe.path).details(lines).hints(hint));
    };
    if best.is_open || !rivals.is_empty() {
        let values = best.candidate.values();
        let is_same = |k: &str, v: &str, r: &Reading| r.candidate.values().iter().any(|(k2, v2)| *k2 == k && v2 == v);
        let is_vague = |k: &str| {
            let scale = ["query_scale", "memory_scale"].iter().position(|s| *s == k);
            best.is_open && scale.is_some_and(|i| best.slack[i].is_some())
        };
        let differ = values.iter().filter(|(k, v)| is_vague(k) || !rivals.iter().all(|r| is_same(k, v, r)));
        let named: Vec<String> = differ.map(|(k, _)| format!("{k} ({})", flag_of(k).unwrap_or("--layout"))).collect();
        let found = if rivals.is_empty() { "many".to_owned() } else { (rivals.len() + 1).to_string() };
        let message = format!(
            "expected one reading that reproduces the probe, found {found} that it cannot separate at this precision; state {}",
            named.join(", ")
        );
        let all: Vec<Reading> = [vec![best], rivals].concat();
        return Err(Error::new(Code::ConventionAmbiguous, message).file(&probe.path).details(table(&all, &open)));
    }
    let next = readings.iter().filter(|r| !r.is_kin(&best) && r.score.is_finite()).map(|r| r.score);
    let next = next.min_by(f64::total_cmp);
    let c = &best.candidate.conventions;
    let slack = [("query_scale", c.query_scale, best.slack[0]), ("memory_scale", c.memory_scale, best.slack[1])];
    let fitted =
        slack.into_iter().filter_map(|(k, value, slack)| Some((k, Fitted { value, within: two_digits(slack?) })));
    let settlement = Settlement {
        found: best.candidate.values().into_iter().filter(|(k, _)| open.contains(k)).collect(),
        fitted: fitted.collect(),
        evidence,
        error: two_digits(best.score),
        margin: next.map(|score| two_digits(score / best.score.max(f64::MIN_POSITIVE))),
        n_functions: candidates.list.len(),
        n_combinations: candidates.n_combinations,
    };
    let mut facts: BTreeMap<String, Value> = [
        ("probe_sha256".to_owned(), Value::from(crate::digest::hex(&Sha256::digest(&*map_file(&probe.path)?)))),
        ("evidence".to_owned(), evidence.into()),
        ("margin".to_owned(), settlement.margin.map_or(Value::Null, Value::from)),
        ("functions_tried".to_owned(), settlement.n_functions.into()),
    ]
    .into();
    if !settlement.fitted.is_empty() {
        facts.insert("fitted".to_owned(), json!(settlement.fitted));
    }
    let imported = draft.clone().settle(&best.candidate, &candidates, facts, base)?;
    Ok((imported, settlement))
}

/// What half precision does to a search: all figures of the probe are rounded, and nothing fits F32.
fn rounded_probe(probe: &Probe, best_by_terms: Option<&Reading>, tolerance: &Tolerance) -> Option<String> {
    /// Largest difference of a term, as a share of the largest, that one product in BF16 explains.
    const ROUNDING_SHARE: f64 = 2e-2;
    let again = "compute it anew with the model in float32 (`model.float()`)";
    match probe.half_precision() {
        Some(t) => Some(format!("the probe was computed in {t}, as all of its logits are {t} numbers: {again}")),
        // With the base's logits it would have been known by them.
        None if probe.base_logits(0, 0).is_some() => None,
        None if best_by_terms.is_some_and(|r| r.score * terms::term_share(tolerance) <= ROUNDING_SHARE) => Some(
            format!("the first of these is as near as a probe that was computed in BF16 or F16 lets it be: {again}"),
        ),
        None => None,
    }
}

/// What readings are held against.
trait Evidence {
    /// `term` or `logits`.
    fn name(&self) -> &'static str;
    /// Scales to begin with.
    fn starts(&self, c: &Candidate) -> Vec<Scales>;
    /// How many of these are followed.
    fn followed(&self) -> usize;
    /// Rounds of fitting; after each of these parts the worse half of all fits goes.
    fn rounds(&self) -> &'static [usize];
    /// Evaluates points, each by itself.
    fn sums(&self, points: &[Point]) -> Result<Vec<Sums>>;
}

struct Search<'a> {
    draft: &'a Draft,
    candidates: &'a Candidates,
    base: &'a BaseModel,
    probe: &'a Probe,
    device: &'a Device,
}

impl Search<'_> {
    /// That the base is the probe's, where the probe says what the base alone computes: on another one no reading fits,
    /// whatever the conventions are. A short prefix tells.
    fn check_base(&self, tolerance: &Tolerance) -> Result<()> {
        if self.probe.base_logits(0, 0).is_none() {
            return Ok(());
        }
        let Some(limit) = tolerance.limits(logits::effect(self)?).max_abs else { return Ok(()) };
        let (ids, positions) = logits::first_look(self.probe);
        let mut sink = BaseAlone { probe: self.probe, worst: 0.0, size: 0.0 };
        runner::stream(self.base, &ids, &[Lane::default()], &self.stream(&positions), &mut sink)?;
        if sink.worst <= limit {
            return Ok(());
        }
        let figures = BaseFigures { size: sink.size, half_precision: self.probe.half_precision() };
        Err(Error::new(Code::NumbersDiffer, figures.differs(sink.worst, limit)).file(&self.probe.path))
    }

    /// All candidates with their scales, the best first.
    fn run(&self, first: &dyn Evidence, all: &dyn Evidence, show: &dyn Fn(usize, usize)) -> Result<Vec<Reading>> {
        let list = &self.candidates.list;
        let starts: Vec<Vec<Scales>> = list.iter().map(|c| first.starts(c)).collect();
        let n_starts: usize = starts.iter().map(Vec::len).sum();
        let n_rounds: usize = first.rounds().iter().sum();
        let total = n_starts + (list.len() + BEST) * n_rounds;
        let mut done = 0;
        let mut progress = |n: usize| {
            done = (done + n).min(total);
            show(done, total);
        };
        let points: Vec<Point> = (list.iter().zip(&starts))
            .flat_map(|(c, starts)| {
                starts.iter().map(|s| Point::new(*c, *s, Unknown { query_scale: false, ..c.unknown }))
            })
            .collect();
        let sums = first.sums(&points)?;
        progress(points.len());
        let mut fits = Vec::new();
        let (mut points, mut sums) = (&points[..], &sums[..]);
        for (c, starts) in list.iter().zip(&starts) {
            let (now, later) = sums.split_at(starts.len());
            let (here, rest) = points.split_at(starts.len());
            (points, sums) = (rest, later);
            fits.extend(best_starts(c, here, now, first.followed()));
        }
        for (i, &rounds) in first.rounds().iter().enumerate() {
            if i > 0 {
                fits.truncate(KEPT_FITS.max(fits.len() / 2));
            }
            refine(first, &mut fits, rounds, &mut progress)?;
            fits.sort_by(|a, b| a.sums.rr.total_cmp(&b.sums.rr));
        }
        let readings = self.second_look(all, fits, &mut progress)?;
        show(total, total);
        Ok(readings)
    }

    /// Holds those that fit so far, and the best of the rest, against everything; all others stay as they are. `fits` begin
    /// with the best.
    fn second_look(&self, all: &dyn Evidence, fits: Vec<Fit>, progress: &mut dyn FnMut(usize)) -> Result<Vec<Reading>> {
        let mut one_each: Vec<Fit> = Vec::new();
        for mut fit in fits {
            fit.at = self.canonical(&fit);
            if !one_each.iter().any(|f| f.candidate == fit.candidate) {
                one_each.push(fit);
            }
        }
        one_each.sort_by(|a, b| a.sums.worst.total_cmp(&b.sums.worst));
        let n_good = one_each.iter().filter(|f| f.sums.worst <= 1.0).count();
        let rest = one_each.split_off(n_good.max(BEST).min(one_each.len()));
        let mut readings: Vec<Reading> = rest.iter().map(Reading::of_fit).collect();
        for fit in one_each.iter().filter(|f| f.sums.worst.is_finite()) {
            let unknown = if fit.sums.worst <= HOPELESS { fit.unknown } else { Unknown::default() };
            let mut again = [Fit::new(fit.candidate, unknown, fit.at)];
            refine(all, &mut again, all.rounds().iter().sum(), progress)?;
            readings.extend(readings::readings(all, &again[0], self.base.config.head_dim)?);
        }
        readings.sort_by(|a, b| a.score.total_cmp(&b.score));
        Ok(readings)
    }

    /// The representative of scales that compute the same function: with an odd activation a positive query scale.
    fn canonical(&self, fit: &Fit) -> Scales {
        let has = |part: Part| self.candidates.layers(&fit.candidate).values().any(|l| l.get(part).is_some());
        let is_odd = fit.candidate.conventions.feature_map.is_odd() && !has(Part::FeatureBias);
        let Scales { query, memory } = fit.at;
        match (has(Part::Normalizer), fit.unknown) {
            (true, Unknown { query_scale: true, .. }) if is_odd => Scales { query: query.abs(), memory },
            (false, Unknown { query_scale: true, memory_scale: true }) if is_odd => {
                Scales { query: query.abs(), memory: memory * query.signum() }
            }
            _ => fit.at,
        }
    }

    /// Where no reading fits all layers: whether one of the best fits each layer alone, and which scales that asks for.
    fn disagreement(&self, terms: &Terms<'_>, best: &[Reading]) -> Result<Option<String>> {
        for reading in best {
            let c = reading.candidate;
            let mut fits = Vec::new();
            for (layer, terms) in terms.by_layer() {
                let mut fit = [Fit::new(c, c.unknown, Scales::of(&c))];
                refine(&terms, &mut fit, terms.rounds().iter().sum(), &mut |_| ())?;
                fits.push((layer, fit[0]));
            }
            if fits.len() > 1 && fits.iter().all(|(_, fit)| fit.sums.worst <= 1.0) {
                let of_layer = |(layer, fit): &(usize, Fit)| {
                    let c = Reading::of_fit(fit).candidate.conventions;
                    format!("layer {layer} query_scale {} memory_scale {}", c.query_scale, c.memory_scale)
                };
                let layers: Vec<String> = fits.iter().map(of_layer).collect();
                let map = c.conventions.feature_map;
                return Ok(Some(format!(
                    "with {map} each layer alone is reproduced, but with scales of its own, and an adapter has one of each: {}",
                    layers.join(", ")
                )));
            }
        }
        Ok(None)
    }

    fn stream(&self, positions: &[usize]) -> StreamOptions {
        StreamOptions { device: self.device.clone(), positions: Some(positions.to_vec()) }
    }
}

/// Compares the base alone with what the probe says of it.
struct BaseAlone<'a> {
    probe: &'a Probe,
    worst: f64,
    size: f64,
}

impl Sink for BaseAlone<'_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let p = self.probe.positions.iter().position(|x| *x == position);
        if let Some(reference) = p.and_then(|p| self.probe.base_logits(batch, p)) {
            let difference = max_abs_difference(&reference, lanes[0]);
            self.worst = if difference.is_nan() { f64::INFINITY } else { self.worst.max(difference) };
            self.size = reference.iter().fold(self.size, |m, v| m.max(f64::from(v.abs())));
        }
        Ok(())
    }
}

/// The starts of a candidate that are followed, the best first: of each query scale the better one, and of neighbours the
/// best. The memory scale is solved for.
fn best_starts(c: &Candidate, points: &[Point], sums: &[Sums], n: usize) -> Vec<Fit> {
    let mut starts: Vec<(f64, Scales)> = Vec::new();
    for (p, sums) in points.iter().zip(sums) {
        let (rest, memory) = sums.solved_memory(p.scales);
        starts.push((rest, Scales { memory, ..p.scales }));
    }
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Neighbours differ by a factor of 2 and have one sign.
    let are_near = |a: f64, b: f64| a * b > 0.0 && (a / b).ln().abs() < 0.7;
    let is_best = |i: &usize| !starts[..*i].iter().any(|s| are_near(s.1.query, starts[*i].1.query));
    let best = (0..starts.len()).filter(is_best).take(n);
    best.map(|i| Fit::new(*c, c.unknown, starts[i].1)).collect()
}

/// Goes on with every fit for some rounds.
fn refine(evidence: &dyn Evidence, fits: &mut [Fit], rounds: usize, progress: &mut dyn FnMut(usize)) -> Result<()> {
    for _ in 0..rounds {
        let mut going: Vec<&mut Fit> = fits.iter_mut().filter(|f| !f.is_done).collect();
        if going.is_empty() {
            break;
        }
        let points: Vec<Point> = going.iter().map(|f| f.next()).collect();
        let sums = evidence.sums(&points)?;
        going.iter_mut().zip(sums).for_each(|(f, s)| f.advance(s));
        progress(points.len());
    }
    Ok(())
}

/// Figures in outputs have two significant digits: more would depend on the machine.
fn two_digits(x: f64) -> f64 {
    format!("{x:.1e}").parse().unwrap_or(x)
}

fn table(readings: &[Reading], open: &[&str]) -> Vec<String> {
    let row = |r: &Reading| {
        let values = r.candidate.values().into_iter().filter(|(k, _)| open.contains(k));
        let values: Vec<String> = values.map(|(k, v)| format!("{k} {v}")).collect();
        format!("{:>9.2e} of the limit: {}", r.score, values.join(", "))
    };
    readings.iter().map(row).collect()
}
