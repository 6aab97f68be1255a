//! Numbers that JSON has no word for, as Python's `json` writes them. A [`Value`] has no place for them either, so they are
//! read as an object with one key: whoever asks for a number, text, a list or a field of an object refuses it.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// The key of such an object.
const KEY: &str = "$non-finite";

const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Whether `value` was `NaN`, `Infinity` or `-Infinity`.
pub fn is_non_finite(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(KEY))
}

/// A document's text, compact or indented, with these numbers in Python's words again.
pub fn as_python_writes(text: &str) -> String {
    // Inside of a string the quotes would be escaped.
    static OBJECT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#"\{\s*"\$non-finite":\s*"(NaN|-?Infinity)"\s*\}"#).expect("a valid pattern"));
    OBJECT.replace_all(text, |found: &Captures| found[1].to_owned()).into_owned()
}

/// A document in which objects stand for these numbers.
pub(super) struct Written {
    pub text: Vec<u8>,
    /// Where each object begins, and how many bytes longer than the source the text is up to its end.
    added: Vec<(usize, usize)>,
}

impl Written {
    /// The place in the source of a place in the text.
    pub fn offset_in_source(&self, at: u64) -> u64 {
        let n = self.added.partition_point(|(start, _)| *start as u64 <= at);
        let before = n.checked_sub(2).map_or(0, |i| self.added[i].1);
        match n.checked_sub(1).map(|i| self.added[i]) {
            None => at,
            // Inside of an object: where its word stands.
            Some((start, added)) => (at.saturating_sub(added as u64)).max((start - before) as u64),
        }
    }
}

/// `text` with an object for each of these numbers; `None` where it has none, or more than a document may have values.
pub(super) fn as_objects(text: &[u8], max_values: usize) -> Option<Written> {
    let mut out = Written { text: Vec::new(), added: Vec::new() };
    let (mut copied, mut at) = (0, 0);
    // The last byte that is no white space: a word stands for a value of a list or object.
    let mut last = b' ';
    while let Some(&byte) = text.get(at) {
        if byte == b'"' {
            at = end_of_string(text, at);
            last = b'"';
            continue;
        }
        let found = WORDS.into_iter().find(|word| text[at..].starts_with(word.as_bytes()));
        match found.filter(|_| matches!(last, b'[' | b',' | b':')) {
            Some(word) if ends_value(text.get(at + word.len())) => {
                out.text.extend_from_slice(&text[copied..at]);
                let start = out.text.len();
                out.text.extend_from_slice(format!("{{\"{KEY}\":\"{word}\"}}").as_bytes());
                at += word.len();
                copied = at;
                out.added.push((start, out.text.len() - at));
                if out.added.len() > max_values {
                    return None;
                }
                last = b'}';
            }
            _ => {
                if !byte.is_ascii_whitespace() {
                    last = byte;
                }
                at += 1;
            }
        }
    }
    if out.added.is_empty() {
        return None;
    }
    out.text.extend_from_slice(&text[copied..]);
    Some(out)
}

/// Whether a value may end before this byte.
fn ends_value(next: Option<&u8>) -> bool {
    next.is_none_or(|b| b.is_ascii_whitespace() || matches!(b, b',' | b']' | b'}'))
}

/// Behind the string that begins at `at`.
fn end_of_string(text: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::json::parse;

    #[test]
    fn numbers_that_are_not_finite_are_read_and_written_as_python_does() {
        let text = r#"{"a":[NaN,1.5,-Infinity],"b":{"c":Infinity},"d":"NaN, \" Infinity","\\":NaN}"#;
        let v = parse(text.as_bytes()).unwrap();
        let found: Vec<bool> =
            [&v["a"][0], &v["a"][1], &v["a"][2], &v["b"], &v["b"]["c"], &v["d"]].map(is_non_finite).into();
        assert_eq!(found, [true, false, true, false, true, false]);
        for value in [&v["a"][0], &v["b"]["c"]] {
            assert!(value.as_f64().is_none() && value.as_str().is_none() && value.as_array().is_none());
        }
        assert_eq!(as_python_writes(&v.to_string()), text);
        assert_eq!(as_python_writes(&serde_json::to_string_pretty(&v["b"]).unwrap()), "{\n  \"c\": Infinity\n}");
        let spaced = parse(b"\xef\xbb\xbf [ -Infinity , NaN\n]\n").unwrap();
        assert!(spaced.as_array().unwrap().iter().all(is_non_finite));
    }

    #[test]
    fn text_that_looks_like_such_a_number_stays_what_it_is() {
        let text = r#"{"note":"{\"$non-finite\":\"NaN\"} [NaN]"}"#;
        assert_eq!(as_python_writes(&parse(text.as_bytes()).unwrap().to_string()), text);
    }
}
