//! The two scales of a reading as numbers: least squares for both, by Gauss-Newton steps with damping.
//!
//! The term is linear in `memory_scale`; of `query_scale` the logarithm is fitted, so its sign stays as it was. All
//! differences are in units of the limit that a reading must keep, so that 1 fits and layers of any size count alike.

use crate::import::{Candidate, Unknown};

/// `query_scale` and `memory_scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scales {
    pub query: f64,
    pub memory: f64,
}

/// A candidate at some scales.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub candidate: Candidate,
    pub scales: Scales,
    /// By which scales the result is to be differentiated.
    pub by: Unknown,
    /// How much the other scale follows while one changes, for [`Sums::reach`].
    pub valley: Valley,
}

impl Point {
    pub fn new(candidate: Candidate, scales: Scales, by: Unknown) -> Point {
        Point { candidate, scales, by, valley: Valley::default() }
    }
}

/// Along the bottom of the sum of squares: change of `memory` for one of `ln query`, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Valley {
    pub memory_by_query: f64,
    pub query_by_memory: f64,
}

/// What the values of a point tell. With r the difference from the probe, u its derivative by `ln query` and v by
/// `memory`: sums over all values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub n: usize,
    pub rr: f64,
    ru: f64,
    rv: f64,
    uu: f64,
    uv: f64,
    vv: f64,
    /// Largest difference: at most 1 fits.
    pub worst: f64,
    /// Largest change of a value for a change of one, of `ln query` and of `memory`, the other scale following as the
    /// point's valley says.
    pub reach: [f64; 2],
}

impl Sums {
    /// Of a point that computes no numbers.
    pub const INVALID: Sums = Sums {
        n: 0,
        rr: f64::INFINITY,
        ru: 0.0,
        rv: 0.0,
        uu: 0.0,
        uv: 0.0,
        vv: 0.0,
        worst: f64::INFINITY,
        reach: [0.0; 2],
    };

    /// Adds one value.
    #[inline(always)]
    pub fn add(&mut self, r: f64, u: f64, v: f64, valley: Valley) {
        self.n += 1;
        self.rr += r * r;
        self.ru += r * u;
        self.rv += r * v;
        self.uu += u * u;
        self.uv += u * v;
        self.vv += v * v;
        self.worst = self.worst.max(r.abs());
        self.reach[0] = self.reach[0].max((u + valley.memory_by_query * v).abs());
        self.reach[1] = self.reach[1].max((v + valley.query_by_memory * u).abs());
    }

    /// Itself, or [`INVALID`](Self::INVALID) where a value was no number.
    pub fn checked(self) -> Sums {
        // The largest alone would not see NaN.
        if self.rr.is_finite() && self.worst.is_finite() { self } else { Sums::INVALID }
    }

    /// Root of the mean square of the differences.
    pub fn rms(&self) -> f64 {
        if self.n == 0 { f64::INFINITY } else { (self.rr / self.n as f64).sqrt() }
    }

    /// Sum of squares that is left, and the memory scale, once that is solved for.
    pub fn solved_memory(&self, scales: Scales) -> (f64, f64) {
        if self.vv > 0.0 {
            ((self.rr - self.rv * self.rv / self.vv).max(0.0), scales.memory - self.rv / self.vv)
        } else {
            (self.rr, scales.memory)
        }
    }

    pub fn valley(&self) -> Valley {
        let ratio = |a: f64, b: f64| if b > 0.0 { -a / b } else { 0.0 };
        Valley { memory_by_query: ratio(self.uv, self.vv), query_by_memory: ratio(self.uv, self.uu) }
    }

    /// The Gauss-Newton step in `(ln query, memory)`, damped by `lambda` (Levenberg and Marquardt).
    fn step(&self, lambda: f64) -> (f64, f64) {
        let (uu, vv) = (self.uu * (1.0 + lambda), self.vv * (1.0 + lambda));
        let determinant = uu * vv - self.uv * self.uv;
        if uu > 0.0 && vv > 0.0 && determinant > f64::EPSILON * uu * vv {
            let (du, dv) = (self.uv * self.rv - vv * self.ru, self.uv * self.ru - uu * self.rv);
            (du / determinant, dv / determinant)
        } else if vv > 0.0 {
            (0.0, -self.rv / vv)
        } else if uu > 0.0 {
            (-self.ru / uu, 0.0)
        } else {
            (0.0, 0.0)
        }
    }
}

/// A fit in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fit {
    pub candidate: Candidate,
    /// Which scales are fitted; the others are held.
    pub unknown: Unknown,
    /// The best scales so far, with their sums.
    pub at: Scales,
    pub sums: Sums,
    trial: Scales,
    lambda: f64,
    pub is_done: bool,
}

/// A change of a scale, as a share of it, that no probe shows.
const CONVERGED: f64 = 1e-9;
/// Damping beyond which no step is left.
const MAX_DAMPING: f64 = 1e8;

impl Fit {
    pub fn new(candidate: Candidate, unknown: Unknown, start: Scales) -> Fit {
        Fit { candidate, unknown, at: start, sums: Sums::INVALID, trial: start, lambda: 1e-3, is_done: false }
    }

    /// What to evaluate next.
    pub fn next(&self) -> Point {
        Point::new(self.candidate, self.trial, self.unknown)
    }

    /// Takes the sums of [`next`](Self::next).
    pub fn advance(&mut self, sums: Sums) {
        if sums.rr < self.sums.rr {
            // A step that gains nothing is the last.
            self.is_done = self.sums.rr - sums.rr <= CONVERGED * sums.rr;
            (self.at, self.sums) = (self.trial, sums);
            self.lambda *= 0.1;
        } else {
            self.lambda *= 10.0;
            self.is_done = self.lambda > MAX_DAMPING || !self.sums.rr.is_finite();
        }
        let (query, memory) = self.sums.step(self.lambda);
        // A factor of e at a time: further away the derivatives are others.
        let query = query.clamp(-1.0, 1.0);
        self.is_done |= query.abs() <= CONVERGED && memory.abs() <= CONVERGED * self.at.memory.abs();
        self.trial = Scales { query: self.at.query * query.exp(), memory: self.at.memory + memory };
        // Beyond these, F32 has no such numbers, and training code no such scales.
        let is_sane = |x: f64| x == 0.0 || (1e-9..1e9).contains(&x.abs());
        self.is_done |= !is_sane(self.trial.query) || !is_sane(self.trial.memory);
    }
}

/// Scales that training code states: a fitted one within the tolerance of one of these is that one.
pub(super) fn simple(head_dim: usize) -> [f64; 8] {
    let d = head_dim as f64;
    [1.0, 0.5, 2.0, 0.25, 4.0, 1.0 / d.sqrt(), d.sqrt(), 1.0 / d]
}

/// Whether both scales are those that most training code has: 1 and 1/sqrt(D), or stated.
pub(super) fn are_usual(c: &Candidate, head_dim: usize) -> bool {
    let is_usual = |x: f64| [1.0, 1.0 / (head_dim as f64).sqrt()].contains(&x.abs());
    (!c.unknown.query_scale || is_usual(c.conventions.query_scale))
        && (!c.unknown.memory_scale || is_usual(c.conventions.memory_scale))
}

/// `x` with the fewest digits that change it by no more than a tenth of `slack`: further ones are noise.
pub(super) fn rounded(x: f64, slack: f64) -> f64 {
    let at = |digits: usize| format!("{x:.digits$e}").parse().unwrap_or(x);
    (0..17).map(at).find(|y: &f64| (y - x).abs() <= slack / 10.0).unwrap_or(x)
}

impl Scales {
    pub fn of(candidate: &Candidate) -> Scales {
        Scales { query: candidate.conventions.query_scale, memory: candidate.conventions.memory_scale }
    }

    /// The candidate with these scales.
    pub fn put_into(self, candidate: &Candidate) -> Candidate {
        let mut out = *candidate;
        (out.conventions.query_scale, out.conventions.memory_scale) = (self.query, self.memory);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_beyond_a_tenth_of_the_slack_are_left_out() {
        for (x, slack, expected) in [
            (0.300_000_12, 1e-5, 0.3),
            (1.700_003, 1e-3, 1.7),
            (0.377_964_5, 1e-5, 0.377_964),
            (-0.300_2, 0.01, -0.3),
            (12.5, 1.0, 12.5),
            (12.5, 10.0, 12.0),
            (1e-3 / 3.0, 1e-9, 0.000_333_333_3),
        ] {
            assert_eq!(rounded(x, slack), expected, "{x} {slack}");
        }
        assert_eq!(rounded(1.0 / 3.0, 0.0), 1.0 / 3.0);
    }
}
