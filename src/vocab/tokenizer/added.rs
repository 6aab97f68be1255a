//! Added tokens, which are cut out of a text before the rest is split.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::vocab::AddedFlags;

#[derive(Debug, PartialEq)]
pub(super) enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

/// Cuts `wanted` out of the text, one after the other: each wherever the pieces that are left hold it, from left to right,
/// with the white space of its piece that it takes. A hit costs a look-up, not a list of all pieces made anew.
pub(super) fn cut_out<'a>(text: &str, wanted: impl Iterator<Item = (u32, &'a str, AddedFlags)>) -> Vec<Fragment> {
    // What is still text, by its start, and what is a token.
    let mut left: BTreeMap<usize, usize> = BTreeMap::new();
    let mut found: BTreeMap<usize, u32> = BTreeMap::new();
    if !text.is_empty() {
        left.insert(0, text.len());
    }
    for (id, token, flags) in wanted.filter(|(_, token, _)| !token.is_empty()) {
        let mut from = 0;
        while let Some(at) = text[from..].find(token).map(|at| from + at) {
            let end = at + token.len();
            match left.range(..=at).next_back().map(|(&start, &stop)| (start, stop)) {
                Some((_, stop)) if end <= stop && flags.single_word && is_inside_word(text, at..end) => from = end,
                Some((start, stop)) if end <= stop => {
                    let before = if flags.lstrip { start + text[start..at].trim_end().len() } else { at };
                    let behind = if flags.rstrip { stop - text[end..stop].trim_start().len() } else { end };
                    left.remove(&start);
                    left.extend([(start, before), (behind, stop)].into_iter().filter(|(a, b)| a < b));
                    found.insert(at, id);
                    from = behind;
                }
                // Across the border of what is a token already, or inside of it: on with the next text.
                _ => match left.range(at + 1..).next() {
                    Some((&start, _)) => from = start,
                    None => break,
                },
            }
        }
    }
    let mut all: Vec<(usize, Fragment)> = left.into_iter().map(|(a, b)| (a, Fragment::Text(a..b))).collect();
    all.extend(found.into_iter().map(|(at, id)| (at, Fragment::Token(id))));
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, fragment)| fragment).collect()
}

/// Whether a letter, a digit or the like is beside `range`.
fn is_inside_word(text: &str, range: Range<usize>) -> bool {
    static WORD: LazyLock<[Regex; 2]> =
        LazyLock::new(|| [r"\w$", r"^\w"].map(|pattern| Regex::new(pattern).expect("a valid pattern")));
    let [ends, begins] = &*WORD;
    // One character is enough to look at.
    let before = text[..range.start].char_indices().next_back().map_or("", |(at, _)| &text[at..range.start]);
    let behind = text[range.end..].chars().next().map_or(0, char::len_utf8);
    ends.is_match(before) || begins.is_match(&text[range.end..range.end + behind])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same as llama.cpp does it: for each token every piece of text is searched, and the list of pieces made anew.
    fn one_by_one(text: &str, wanted: &[(u32, String)]) -> Vec<Fragment> {
        let mut pieces = if text.is_empty() { vec![] } else { vec![Fragment::Text(0..text.len())] };
        for (id, token) in wanted.iter().filter(|(_, token)| !token.is_empty()) {
            let mut cut = Vec::new();
            for piece in pieces {
                let Fragment::Text(mut range) = piece else {
                    cut.push(piece);
                    continue;
                };
                while let Some(at) = text[range.clone()].find(token.as_str()).map(|at| range.start + at) {
                    cut.extend((at > range.start).then_some(Fragment::Text(range.start..at)));
                    cut.push(Fragment::Token(*id));
                    range.start = at + token.len();
                }
                cut.extend((!range.is_empty()).then_some(Fragment::Text(range)));
            }
            pieces = cut;
        }
        pieces
    }

    proptest! {
        #[test]
        fn tokens_are_cut_out_as_one_by_one(text in "[abé]{0,40}", tokens in prop::collection::vec("[abé]{0,4}", 0..6)) {
            let wanted: Vec<(u32, String)> = (0..).zip(tokens).collect();
            let plain = AddedFlags::default();
            let found = cut_out(&text, wanted.iter().map(|(id, token)| (*id, token.as_str(), plain)));
            prop_assert_eq!(found, one_by_one(&text, &wanted));
        }
    }

    /// What the `tokenizers` library makes of these (Python, 0.22): an added token between words.
    #[test]
    fn tokens_take_the_white_space_that_they_want() {
        let (l, r, word) = (
            AddedFlags { lstrip: true, ..AddedFlags::default() },
            AddedFlags { rstrip: true, ..AddedFlags::default() },
            AddedFlags { single_word: true, ..AddedFlags::default() },
        );
        let both = AddedFlags { lstrip: true, rstrip: true, single_word: false };
        for (text, flags, expected) in [
            ("a  <x> \n b", AddedFlags::default(), "a  |*| \n b"),
            ("a  <x> \n b", l, "a|*| \n b"),
            ("a  <x> \n b", r, "a  |*|b"),
            ("a \u{3000}<x>\u{a0}b", both, "a|*|b"),
            ("  <x>  <x>  ", both, "*|*"),
            ("<x><x>", both, "*|*"),
            ("a <x> b", word, "a |*| b"),
            ("a<x> b", word, "a<x> b"),
            ("a <x>_", word, "a <x>_"),
            (".<x>,", word, ".|*|,"),
            ("\u{e9}<x> <x>", word, "\u{e9}<x> |*"),
        ] {
            let found: Vec<&str> = (cut_out(text, [(1, "<x>", flags)].into_iter()).into_iter())
                .map(|fragment| match fragment {
                    Fragment::Token(_) => "*",
                    Fragment::Text(range) => &text[range],
                })
                .collect();
            assert_eq!(found.join("|"), expected, "{text:?} {flags:?}");
        }
    }
}
