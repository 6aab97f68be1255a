//! The patterns of a layout file, matched with whole names within bounds that are counted: the same file is read, or
//! refused, on every machine.
//!
//! A pattern is matched by a lazily built automaton: a byte costs a look-up where the state is known, and is worked out
//! where it is not. States are kept until their memory is full and forgotten then; a pattern that is made for it needs
//! another state for every byte, and how often its states were forgotten says how much was worked out.

use regex::{Captures, Regex};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

use crate::error::{Code, Error, Result};
use crate::format::limits::{LAYOUT_COMPILED_BYTES, LAYOUT_FORGOTTEN, LAYOUT_PATTERN_BYTES, LAYOUT_STEPS};

/// A regular expression that matches whole names only.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// For the groups of a name that matches.
    regex: Regex,
    /// For whether it does.
    automaton: DFA,
}

/// What matching has cost, and the states that it knows.
pub struct Matching {
    caches: Vec<Cache>,
    n_steps: u64,
    /// Names that an automaton cannot decide, since `\b` has to look at what is no ASCII.
    n_undecided: usize,
}

impl Pattern {
    /// # Errors
    ///
    /// [`Code::LayoutFile`] for what is no regular expression, or too large.
    pub fn new(pattern: &str) -> Result<Pattern> {
        if pattern.len() > LAYOUT_PATTERN_BYTES {
            let message =
                format!("expected a pattern of at most {LAYOUT_PATTERN_BYTES} bytes, found {}", pattern.len());
            return Err(fault(message));
        }
        let build = |pattern: &str| {
            let mut builder = regex::RegexBuilder::new(pattern);
            builder.size_limit(LAYOUT_COMPILED_BYTES).dfa_size_limit(LAYOUT_COMPILED_BYTES).build()
        };
        let anchored = format!("^(?:{pattern})$");
        // By itself first: `a)|(?:b` would close the group and match parts of names.
        let regex = build(pattern).and_then(|_| build(&anchored)).map_err(|e| match e {
            regex::Error::CompiledTooBig(most) => {
                fault(format!("{pattern:?} takes more than {most} bytes when compiled"))
            }
            other => fault(format!("{pattern:?} is no regular expression: {other}")),
        })?;
        let too_large = || fault(format!("{pattern:?} takes more than {LAYOUT_COMPILED_BYTES} bytes when compiled"));
        let nfa = NFA::compiler()
            .syntax(syntax::Config::new())
            .configure(NFA::config().nfa_size_limit(Some(LAYOUT_COMPILED_BYTES)).which_captures(WhichCaptures::None))
            .build(&anchored)
            .map_err(|_| too_large())?;
        let automaton = DFA::builder()
            .configure(
                DFA::config()
                    .cache_capacity(LAYOUT_COMPILED_BYTES)
                    .skip_cache_capacity_check(true)
                    .unicode_word_boundary(true),
            )
            .build_from_nfa(nfa)
            .map_err(|_| too_large())?;
        Ok(Pattern { regex, automaton })
    }

    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// The names of its groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.regex.capture_names().flatten()
    }

    /// The groups in `name`, which matches.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutSyntax`].
    pub fn captures<'n>(&self, name: &'n str, matching: &mut Matching) -> Result<Option<Captures<'n>>> {
        matching.n_steps += (name.len() * self.automaton.get_nfa().states().len()) as u64;
        matching.check(name)?;
        Ok(self.regex.captures(name))
    }
}

impl Matching {
    /// To match names with these patterns, always in this order.
    pub(super) fn with<'p>(patterns: impl Iterator<Item = &'p Pattern>) -> Matching {
        let caches = patterns.map(|p| p.automaton.create_cache()).collect();
        Matching { caches, n_steps: 0, n_undecided: 0 }
    }

    /// Whether pattern number `i` matches `name`.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutSyntax`] where matching takes more than [`LAYOUT_FORGOTTEN`] allows.
    pub(super) fn is_match(&mut self, i: usize, pattern: &Pattern, name: &str) -> Result<bool> {
        let input = Input::new(name).anchored(Anchored::Yes);
        let before = self.caches[i].clear_count();
        let found = pattern.automaton.try_search_fwd(&mut self.caches[i], &input);
        let is_dear = self.caches[i].clear_count() > before;
        let matches = match found {
            Ok(end) => end.is_some(),
            Err(_) => {
                self.n_undecided += 1;
                pattern.regex.is_match(name)
            }
        };
        if is_dear || found.is_err() {
            self.check(name)?;
        }
        Ok(matches)
    }

    fn check(&self, name: &str) -> Result<()> {
        let n_forgotten = self.caches.iter().map(Cache::clear_count).sum::<usize>();
        if n_forgotten <= LAYOUT_FORGOTTEN && self.n_undecided <= LAYOUT_UNDECIDED && self.n_steps <= LAYOUT_STEPS {
            return Ok(());
        }
        let message = "the patterns take too many steps to match the names: simpler ones are wanted";
        Err(Error::new(Code::LayoutSyntax, message).field(name))
    }
}

/// Names that a pattern with `\b` may have beyond ASCII; each costs a step for each of the pattern's states and byte.
const LAYOUT_UNDECIDED: usize = 4096;

fn fault(message: impl Into<String>) -> Error {
    Error::new(Code::LayoutFile, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        let pattern = Pattern::new(pattern).unwrap();
        Matching::with([&pattern].into_iter()).is_match(0, &pattern, name).unwrap()
    }

    #[test]
    fn whole_names_match_as_the_expression_says() {
        for (pattern, yes, no) in [
            (r"layers\.(?<layer>[0-9]+)\.m", "layers.12.m", "layers.12.mm"),
            (r"a|ab", "ab", "abc"),
            (r"(?i)\w+\.µ", "Straße.Μ", "Straße."),
            (r"\bé\b", "é", "éé"),
            (r".*\d{1,3}", "x١٢", "x"),
            (r"a*?", "aaa", "aab"),
            (r"", "", "a"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes}");
            assert!(!matches(pattern, no), "{pattern} {no}");
        }
        for bad in ["a)|(?:b", "(", "(?=a)b", r"(a)\1"] {
            assert_eq!(Pattern::new(bad).unwrap_err().code(), Code::LayoutFile, "{bad}");
        }
    }

    #[test]
    fn a_pattern_that_needs_a_state_for_every_byte_ends_by_count() {
        let slow = Pattern::new("[ab]*a[ab]{120}y?").unwrap();
        let plain = Pattern::new(r"(?:.*\.)?layers\.(?<layer>\d+)\.\w+\.m").unwrap();
        let refused_at = || {
            let mut matching = Matching::with([&slow].into_iter());
            let mut state = 1_u64;
            (0..1_000_000).find(|_| {
                let name: String = (0..240)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        if state >> 63 == 0 { 'a' } else { 'b' }
                    })
                    .collect();
                matching.is_match(0, &slow, &name).is_err()
            })
        };
        let first = refused_at().expect("a limit");
        assert_eq!(refused_at(), Some(first), "the same name on every run");
        assert!(first > 100, "{first}");
        // One that is meant goes on: as many names as the largest checkpoint has.
        let mut matching = Matching::with([&plain].into_iter());
        for i in 0..65_536 {
            let name = format!("model.layers.{}.self_attn{}.m", i % 256, i / 256);
            assert!(matching.is_match(0, &plain, &name).unwrap());
            if i % 16 == 0 {
                assert_eq!(&plain.captures(&name, &mut matching).unwrap().unwrap()["layer"], (i % 256).to_string());
            }
        }
        assert_eq!(matching.caches[0].clear_count(), 0);
    }
}
