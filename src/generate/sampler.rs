//! Which token comes next: penalties, top-k, top-p, min-p and temperature, in llama.cpp's order and with its defaults.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::error::{Code, Error, Result};

/// How to choose. The names and defaults are those of llama.cpp's `common_params_sampling`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; at most 0 takes the most likely token always.
    pub temp: f32,
    /// How many of the most likely tokens stay; 0 for all.
    pub top_k: usize,
    /// The most likely tokens stay until their probabilities add up to this; 1 for all.
    pub top_p: f32,
    /// Tokens stay whose probability is at least this part of the most likely one's; 0 for all.
    pub min_p: f32,
    /// Divides positive logits of tokens that occurred, and multiplies negative ones; 1 for nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens count as having occurred, those of the prompt included.
    pub repeat_last_n: usize,
    /// Seed of the random choice.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temp: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, repeat_last_n: 64, seed: 0 }
    }
}

/// Chooses the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    rng: StdRng,
    history: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct TokenLogit {
    token: u32,
    logit: f32,
}

impl Sampler {
    /// Starts a sequence: the same seed and logits give the same tokens.
    pub fn new(sampling: Sampling) -> Self {
        Sampler { sampling, rng: StdRng::seed_from_u64(sampling.seed), history: Vec::new() }
    }

    /// Counts `token` as having occurred.
    pub fn accept(&mut self, token: u32) {
        self.history.push(token);
    }

    /// The next token, of equally likely ones the lowest, and counts it as having occurred.
    ///
    /// # Errors
    ///
    /// [`Code::LogitsInvalid`] for logits `[V]` among which is a NaN, or of which none is finite.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) || logits.iter().all(|x| !x.is_finite()) {
            let message = format!("expected finite logits at position {}, found NaN or Inf", self.history.len());
            return Err(Error::new(Code::LogitsInvalid, message));
        }
        let mut candidates: Vec<TokenLogit> =
            (0..).zip(logits).map(|(token, logit)| TokenLogit { token, logit: *logit }).collect();
        self.penalize(&mut candidates);
        let token = if self.sampling.temp <= 0.0 { most_likely(&candidates) } else { self.draw(candidates) };
        self.accept(token);
        Ok(token)
    }

    fn penalize(&self, candidates: &mut [TokenLogit]) {
        let penalty = self.sampling.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        let first = self.history.len().saturating_sub(self.sampling.repeat_last_n);
        let mut occurred = self.history[first..].to_vec();
        occurred.sort_unstable();
        occurred.dedup();
        for token in occurred {
            if let Some(c) = candidates.get_mut(token as usize) {
                // Dividing a negative logit would make its token more likely.
                c.logit = if c.logit <= 0.0 { c.logit * penalty } else { c.logit / penalty };
            }
        }
    }

    fn draw(&mut self, mut candidates: Vec<TokenLogit>) -> u32 {
        let s = &self.sampling;
        candidates.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
        if s.top_k > 0 {
            candidates.truncate(s.top_k);
        }
        if s.top_p < 1.0 {
            let mut sum = 0.0;
            let kept = probabilities(&candidates).iter().position(|p| {
                sum += p;
                sum >= f64::from(s.top_p)
            });
            candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
        }
        if s.min_p > 0.0 {
            let least = candidates[0].logit + s.min_p.ln();
            let kept = candidates.iter().skip(1).take_while(|c| c.logit >= least).count();
            candidates.truncate(kept + 1);
        }
        candidates.iter_mut().for_each(|c| c.logit /= s.temp);
        let at: f64 = self.rng.random();
        let mut sum = 0.0;
        let chosen = probabilities(&candidates).iter().position(|p| {
            sum += p;
            at < sum
        });
        // The sum of all may end a rounding error below 1.
        candidates[chosen.unwrap_or(candidates.len() - 1)].token
    }
}

fn most_likely(candidates: &[TokenLogit]) -> u32 {
    let better = |a: TokenLogit, b: TokenLogit| if b.logit > a.logit { b } else { a };
    candidates.iter().copied().reduce(better).map_or(0, |c| c.token)
}

/// Softmax; the first candidate is the most likely.
fn probabilities(candidates: &[TokenLogit]) -> Vec<f64> {
    let largest = f64::from(candidates[0].logit);
    let weights: Vec<f64> = candidates.iter().map(|c| (f64::from(c.logit) - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for seed in 0..4000 {
            counts[Sampler::new(Sampling { seed, ..sampling }).choose(logits).unwrap() as usize] += 1;
        }
        counts
    }

    const ALL: Sampling =
        Sampling { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, repeat_last_n: 64, seed: 0 };

    #[test]
    fn frequencies_follow_the_probabilities() {
        let p = [0.5f32, 0.3, 0.15, 0.05];
        let logits = p.map(f32::ln);
        for (n, p) in chosen(ALL, &logits).into_iter().zip(p) {
            let expected = 4000.0 * f64::from(p);
            // Five standard deviations
            assert!((n as f64 - expected).abs() < 5.0 * (expected * (1.0 - f64::from(p))).sqrt(), "{n} {expected}");
        }
        // Temperature 0.5 squares: 0.25 : 0.09 : 0.0225 : 0.0025
        let counts = chosen(Sampling { temp: 0.5, ..ALL }, &logits);
        assert!((counts[0] as f64 / 4000.0 - 0.25 / 0.365).abs() < 0.04, "{counts:?}");
    }

    #[test]
    fn each_filter_keeps_what_it_should() {
        let logits = [0.15f32, 0.5, 0.05, 0.3].map(f32::ln);
        let kept = |s: Sampling| -> Vec<usize> {
            chosen(s, &logits).iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, _)| i).collect()
        };
        assert_eq!(kept(ALL), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_k: 2, ..ALL }), [1, 3]);
        assert_eq!(kept(Sampling { top_k: 99, ..ALL }), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_p: 0.79, ..ALL }), [1, 3]);
        assert_eq!(kept(Sampling { top_p: 0.81, ..ALL }), [0, 1, 3]);
        assert_eq!(kept(Sampling { top_p: 0.0, ..ALL }), [1]);
        assert_eq!(kept(Sampling { min_p: 0.2, ..ALL }), [0, 1, 3]);
        assert_eq!(kept(Sampling { min_p: 0.7, ..ALL }), [1]);
        // top-p sees what top-k left, with probabilities 0.625 and 0.375
        assert_eq!(kept(Sampling { top_k: 2, top_p: 0.6, ..ALL }), [1]);
    }

    #[test]
    fn temperature_0_takes_the_most_likely_and_of_equals_the_lowest() {
        let greedy = Sampling { temp: 0.0, ..Sampling::default() };
        assert_eq!(chosen(greedy, &[1.0, 3.0, 3.0, -1.0]), [0, 4000, 0, 0]);
    }

    #[test]
    fn repetition_is_penalized_within_the_window() {
        let mut s = Sampler::new(Sampling { temp: 0.0, repeat_penalty: 2.0, repeat_last_n: 2, ..ALL });
        let logits = [4.0, 3.0, 2.5, -1.0];
        let tokens: Vec<u32> = (0..5).map(|_| s.choose(&logits).unwrap()).collect();
        assert_eq!(tokens, [0, 1, 2, 0, 1]);
        let mut s = Sampler::new(Sampling { temp: 0.0, repeat_penalty: 2.0, ..ALL });
        s.accept(0);
        assert_eq!(s.choose(&[-1.0, -1.5]).unwrap(), 1);
    }

    #[test]
    fn a_seed_repeats_a_sequence() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32).sin()).collect();
        let run = |seed| {
            let mut s = Sampler::new(Sampling { seed, ..ALL });
            (0..20).map(|_| s.choose(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(Sampler::new(ALL).choose(&bad).unwrap_err().code(), Code::LogitsInvalid);
        }
        assert_eq!(Sampler::new(ALL).choose(&[f32::NEG_INFINITY, 0.0]).unwrap(), 1);
    }
}
