//! From fitted scales to the numbers that are meant, and from those that fit to the one that counts.

use super::scales::{self, Fit, Point, Scales, Sums};
use super::{Evidence, refine};
use crate::error::Result;
use crate::import::{Candidate, Unknown};

/// A scale that is not determined to this share of itself is none that the probe tells.
const MOST_SLACK: f64 = 0.25;
/// How much of the linear estimate of a tolerance is looked at: the largest difference decides, once it is computed.
const LOOK: f64 = 2.0;
/// Rounds for the scale that is left while the other is held; they begin next to the optimum.
const ROUNDS: usize = 6;
/// A reading with scales of its own counts beside the nearest one up to this many times its distance.
const AS_NEAR: f64 = 2.0;

/// A candidate with its scales, held against everything that the probe has (or a first look at it).
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub candidate: Candidate,
    /// Largest difference from the probe as a share of the limit: at most 1 fits.
    pub score: f64,
    /// Root of the mean square of the differences, in the same unit.
    pub rms: f64,
    /// How far `query_scale` and `memory_scale` can move within the limit, where they are fitted numbers.
    pub slack: [Option<f64>; 2],
    /// Whether the probe leaves a fitted scale open.
    pub is_open: bool,
}

impl Reading {
    /// As fitted, to a few digits: what a table shows of those that do not fit.
    pub fn of_fit(fit: &Fit) -> Reading {
        let short = |x: f64| scales::rounded(x, 1e-2 * x.abs());
        let at = Scales { query: short(fit.at.query), memory: short(fit.at.memory) };
        Reading::new(&fit.candidate, at, &fit.sums)
    }

    fn new(candidate: &Candidate, at: Scales, sums: &Sums) -> Reading {
        let candidate = at.put_into(candidate);
        Reading { candidate, score: sums.worst, rms: sums.rms(), slack: [None; 2], is_open: false }
    }

    pub fn fits(&self) -> bool {
        self.score <= 1.0
    }

    /// Whether this and `other` differ in their scales at most.
    pub fn is_kin(&self, other: &Reading) -> bool {
        Scales::of(&other.candidate).put_into(&self.candidate) == other.candidate
    }
}

/// What a candidate's fitted scales stand for: simple numbers where those fit as well, else the fitted ones. Several,
/// where several simple ones fit.
pub(super) fn readings(evidence: &dyn Evidence, fit: &Fit, head_dim: usize) -> Result<Vec<Reading>> {
    let (c, unknown) = (fit.candidate, fit.candidate.unknown);
    if unknown == Unknown::default() {
        return Ok(vec![Reading::new(&c, fit.at, &fit.sums)]);
    }
    if fit.sums.worst > 1.0 {
        return Ok(vec![Reading::of_fit(fit)]);
    }
    let mut along_valley = Point::new(c, fit.at, unknown);
    along_valley.valley = fit.sums.valley();
    let along_valley = evidence.sums(&[along_valley])?[0];
    let slack = |reach: [f64; 2]| [fit.at.query.abs() / reach[0], 1.0 / reach[1]];
    // Of each scale with the other following, and by itself.
    let (slack, alone) = (slack(along_valley.reach), slack(fit.sums.reach));

    let near = |x: f64, slack: f64| -> Vec<f64> {
        let simple = scales::simple(head_dim).map(|s| s.copysign(x));
        let mut out: Vec<f64> = simple.into_iter().filter(|s| (s - x).abs() <= LOOK * slack).collect();
        out.sort_by(f64::total_cmp);
        out.dedup();
        out
    };
    let queries = if unknown.query_scale { near(fit.at.query, slack[0]) } else { vec![fit.at.query] };
    let memories = if unknown.memory_scale { near(fit.at.memory, slack[1]) } else { vec![fit.at.memory] };
    let pairs = queries.iter().flat_map(|&query| memories.iter().map(move |&memory| Scales { query, memory }));
    let simple: Vec<Fit> = pairs.map(|at| Fit::new(c, Unknown::default(), at)).collect();
    let mut out = fitting(evidence, simple, slack, alone)?;
    if out.is_empty() && unknown == (Unknown { query_scale: true, memory_scale: true }) {
        // One of them simple, and the other follows.
        let (query_scale, memory_scale) = (true, false);
        let of_memories = memories
            .iter()
            .map(|&memory| Fit::new(c, Unknown { query_scale, memory_scale }, Scales { memory, ..fit.at }));
        let of_queries = queries.iter().map(|&query| {
            Fit::new(c, Unknown { query_scale: memory_scale, memory_scale: query_scale }, Scales { query, ..fit.at })
        });
        let mut halves: Vec<Fit> = of_memories.chain(of_queries).collect();
        refine(evidence, &mut halves, ROUNDS, &mut |_| ())?;
        out = fitting(evidence, halves, slack, alone)?;
    }
    if out.is_empty() {
        out = fitting(evidence, vec![*fit], slack, alone)?;
    }
    Ok(if out.is_empty() { vec![Reading::of_fit(fit)] } else { out })
}

/// Those of `fits` that fit once their fitted scales have the digits that mean something.
fn fitting(evidence: &dyn Evidence, mut fits: Vec<Fit>, slack: [f64; 2], alone: [f64; 2]) -> Result<Vec<Reading>> {
    for f in &mut fits {
        if f.unknown.query_scale {
            f.at.query = scales::rounded(f.at.query, alone[0]);
        }
        if f.unknown.memory_scale {
            f.at.memory = scales::rounded(f.at.memory, alone[1]);
        }
    }
    let points: Vec<Point> = fits.iter().map(|f| Point::new(f.candidate, f.at, Unknown::default())).collect();
    let sums = evidence.sums(&points)?;
    let reading = |(f, sums): (&Fit, &Sums)| {
        let of = |is_fitted: bool, i: usize| is_fitted.then_some(slack[i]);
        let fitted = [of(f.unknown.query_scale, 0), of(f.unknown.memory_scale, 1)];
        let sizes = [f.at.query.abs(), f.at.memory.abs()];
        let is_open = fitted.iter().zip(sizes).any(|(s, size)| s.is_some_and(|s| s.is_nan() || s > MOST_SLACK * size));
        Reading { slack: fitted, is_open, ..Reading::new(&f.candidate, f.at, sums) }
    };
    Ok(fits.iter().zip(&sums).map(reading).filter(Reading::fits).collect())
}

/// The reading that counts, with those that count beside it.
///
/// The nearest that fits is the one; whose scales are open comes last. Beside it counts whatever fits with the scales that
/// training code usually has, or that are stated. With fitted scales a wrong activation comes near many a right one, so such
/// a reading counts where it is about as near, and where its scales are determined: an open scale means that the activation
/// only approaches another one (`gelu(c x) / c` becomes `relu(x)` as c grows).
pub(super) fn decide(readings: &[Reading], head_dim: usize) -> Option<(Reading, Vec<Reading>)> {
    let fit = || readings.iter().filter(|r| r.fits());
    let best = *fit().min_by(|a, b| a.is_open.cmp(&b.is_open).then(a.rms.total_cmp(&b.rms)))?;
    let counts = |r: &&Reading| {
        r.candidate != best.candidate
            && (scales::are_usual(&r.candidate, head_dim) || r.is_open == best.is_open && r.rms <= AS_NEAR * best.rms)
    };
    Some((best, fit().filter(counts).copied().collect()))
}
