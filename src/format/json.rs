//! Strict JSON: no duplicate keys, nothing after the document, bounded size, depth and number of values. One liberty:
//! `NaN`, `Infinity` and `-Infinity`, which Python's `json` writes, are read, as a value that no reader of a field takes.

mod non_finite;

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::limits::{
    CONFIG_BYTES, CONFIG_VALUES, JSON_BYTES, JSON_DEPTH, JSON_OBJECT_VALUES, JSON_STRING_BYTES, JSON_VALUES,
};
use super::mmap::open_regular;
use super::names::{cut, shorten};
use super::recognize;
use crate::error::{Code, Error, Result};
pub use non_finite::{as_python_writes, is_non_finite};

/// Parses one document; the order of keys is kept, a UTF-8 byte order mark is skipped.
///
/// # Errors
///
/// With the byte offset: [`Code::JsonSyntax`] (also for numbers beyond f64 and anything after the document),
/// [`Code::JsonDuplicateKey`] at any depth, [`Code::JsonTooLarge`].
pub fn parse(text: &[u8]) -> Result<Value> {
    parse_of(text, JSON_VALUES)
}

/// [`parse`], with at most `max_values` values.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_of(text: &[u8], max_values: usize) -> Result<Value> {
    if text.len() as u64 > JSON_BYTES {
        return Err(too_large(text.len() as u64, JSON_BYTES));
    }
    let (values, fault) = (Cell::new(0), Cell::new(None));
    let seed = Strict { values: &values, max_values, fault: &fault };
    match non_finite::as_objects(text, max_values) {
        None => parse_with(text, seed, &fault),
        Some(written) => parse_with(&written.text, seed, &fault).map_err(|e| {
            let offset = e.offset().map(|at| written.offset_in_source(at));
            offset.into_iter().fold(Error::new(e.code(), e.message()), Error::at)
        }),
    }
}

/// Parses a configuration: at most [`CONFIG_BYTES`] and [`CONFIG_VALUES`] values.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_config(text: &[u8]) -> Result<Value> {
    if text.len() as u64 > CONFIG_BYTES {
        return Err(too_large(text.len() as u64, CONFIG_BYTES));
    }
    parse_of(text, CONFIG_VALUES)
}

/// [`parse_config`] of a file.
///
/// # Errors
///
/// As [`read_file`].
pub fn read_config(path: &Path) -> Result<Value> {
    read_at_most(path, CONFIG_BYTES, CONFIG_VALUES)
}

/// Reads and parses a file of at most `max_bytes` (and never more than [`JSON_BYTES`]).
///
/// # Errors
///
/// As [`parse`] and [`open_regular`], with the file's name.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Value> {
    read_at_most(path, max_bytes, JSON_VALUES)
}

/// Reads and parses a file of at most [`JSON_BYTES`] and `max_values` values, for documents that are long lists.
///
/// # Errors
///
/// As [`read_file`].
pub fn read_large_file(path: &Path, max_values: usize) -> Result<Value> {
    read_at_most(path, JSON_BYTES, max_values)
}

fn read_at_most(path: &Path, max_bytes: u64, max_values: usize) -> Result<Value> {
    let max_bytes = max_bytes.min(JSON_BYTES);
    let file = open_regular(path)?;
    let mut text = Vec::new();
    // One byte more than allowed, rather than trusting the size: a file may grow, and /proc reports 0.
    file.take(max_bytes + 1).read_to_end(&mut text).map_err(|e| Error::io(path, "cannot read", e))?;
    if text.len() as u64 > max_bytes {
        let len = std::fs::metadata(path).map_or(max_bytes + 1, |m| m.len());
        return Err(too_large(len, max_bytes).file(path));
    }
    parse_of(&text, max_values).map_err(|e| recognize::named(path, &text, e).file(path))
}

fn too_large(found: u64, limit: u64) -> Error {
    Error::new(Code::JsonTooLarge, format!("expected at most {limit} bytes of JSON, found {found}"))
}

/// What follows the byte order mark, if there is one.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Runs `seed` over the whole of `text` and turns serde_json's error into ours; `fault` holds the code where the seed
/// refused something that is valid JSON.
pub(super) fn parse_with<'de, S: DeserializeSeed<'de>>(
    text: &'de [u8],
    seed: S,
    fault: &Cell<Option<Code>>,
) -> Result<S::Value> {
    let body = without_mark(text);
    let skipped = (text.len() - body.len()) as u64;
    let body = std::str::from_utf8(body).map_err(|e| {
        let message = match body {
            // Windows PowerShell writes so what is redirected into a file.
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "expected UTF-8, found UTF-16: save the file as UTF-8",
            _ => "expected UTF-8, found an invalid byte: is the file in another encoding, such as Latin-1?",
        };
        Error::new(Code::JsonSyntax, message).at(skipped + e.valid_up_to() as u64)
    })?;
    check_strings(text)?;
    let mut reader = serde_json::Deserializer::from_str(body);
    let result = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    result.map_err(|e| {
        let message = e.to_string();
        let too_deep = message.starts_with("recursion limit");
        let code = fault.get().unwrap_or(if too_deep { Code::JsonTooLarge } else { Code::JsonSyntax });
        let message = if too_deep { format!("more than {JSON_DEPTH} levels of nesting") } else { message };
        Error::new(code, cut(without_position(&message), MESSAGE_CHARS))
            .at(skipped + offset_of(body, e.line(), e.column()))
    })
}

/// serde_json quotes what it did not expect, at any length.
const MESSAGE_CHARS: usize = 200;

/// Refuses strings above [`JSON_STRING_BYTES`]. On text that is no JSON this may count wrongly, and the parser refuses
/// that.
fn check_strings(text: &[u8]) -> Result<()> {
    let mut start = None;
    let mut escaped = false;
    for (i, byte) in text.iter().enumerate() {
        match (start, *byte) {
            (Some(s), _) if i - s > JSON_STRING_BYTES + 1 => {
                let message = format!("expected strings of at most {JSON_STRING_BYTES} bytes, found a longer one");
                return Err(Error::new(Code::JsonTooLarge, message).at(s as u64));
            }
            (None, b'"') => start = Some(i),
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(_), b'"') => start = None,
            _ => {}
        }
    }
    Ok(())
}

/// serde_json counts lines from 1 and columns in bytes; a column is that of the last byte read.
fn offset_of(text: &str, line: usize, column: usize) -> u64 {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len()) as u64
}

/// serde_json ends its messages with ` at line 1 column 5`; we say the offset instead.
fn without_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text)
}

/// The key under which serde_json hands over a number as text, if a crate anywhere in the build turns its feature
/// `arbitrary_precision` on. Numbers are read as they are without it.
const NUMBER: &str = "$serde_json::private::Number";

fn number<E: serde::de::Error>(text: String) -> Result<Value, E> {
    let value = text.parse::<f64>().ok().and_then(Number::from_f64);
    value.map(Value::Number).ok_or_else(|| E::custom("number out of range"))
}

/// Builds a [`Value`], counting values and refusing repeated keys.
#[derive(Clone, Copy)]
struct Strict<'a> {
    values: &'a Cell<usize>,
    max_values: usize,
    fault: &'a Cell<Option<Code>>,
}

impl Strict<'_> {
    fn count<E: serde::de::Error>(self, n: usize) -> Result<(), E> {
        self.values.set(self.values.get() + n);
        if self.values.get() > self.max_values {
            self.fault.set(Some(Code::JsonTooLarge));
            return Err(E::custom(format_args!("more than {} values", self.max_values)));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        self.count(1)?;
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(v) = seq.next_element_seed(self)? {
            out.push(v);
        }
        // Room for four, where pairs are the rule.
        out.shrink_to_fit();
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == NUMBER {
                return number(map.next_value::<String>()?);
            }
            if out.is_empty() {
                self.count(JSON_OBJECT_VALUES)?;
            }
            if out.contains_key(&key) {
                self.fault.set(Some(Code::JsonDuplicateKey));
                return Err(A::Error::custom(format_args!("the key {:?} occurs twice", shorten(&key))));
            }
            let value = map.next_value_seed(self)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_documents_parse_as_serde_json_does_and_keep_their_order() {
        for text in [
            r#"{"b":1,"a":[true,false,null,-1,18446744073709551615,1.5e+300,"\u00e9\ud83d\ude00"],"":{}}"#,
            " 7 \n",
            "[]",
            r#""s""#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
        let v = parse(b"\xef\xbb\xbf{\"z\":1,\"a\":2}").unwrap();
        assert_eq!(v.to_string(), r#"{"z":1,"a":2}"#);
    }

    #[test]
    fn each_fault_has_its_code_and_offset() {
        let deep_ok = format!("{}{}", "[".repeat(JSON_DEPTH - 1), "]".repeat(JSON_DEPTH - 1));
        assert!(parse(deep_ok.as_bytes()).is_ok());
        let deep = "[".repeat(JSON_DEPTH);
        let many = format!("[{}0]", "0,".repeat(JSON_VALUES));
        let cases: &[(&[u8], Code, Option<u64>)] = &[
            (b"", Code::JsonSyntax, Some(0)),
            (b"{", Code::JsonSyntax, None),
            (b"{\"a\":1}\n x", Code::JsonSyntax, Some(9)),
            (b"{\"a\":1}{}", Code::JsonSyntax, Some(7)),
            (b"{\"a\":1,}", Code::JsonSyntax, Some(7)),
            (b"{\"a\":1e400}", Code::JsonSyntax, None),
            (b"{\"a\":nan}", Code::JsonSyntax, Some(6)),
            (b"{\"a\":NaNs}", Code::JsonSyntax, Some(5)),
            (b"[+Infinity]", Code::JsonSyntax, Some(1)),
            (b"[--Infinity]", Code::JsonSyntax, None),
            (b"[NaN -Infinity]", Code::JsonSyntax, Some(5)),
            (b"{NaN:1}", Code::JsonSyntax, Some(1)),
            (b"[NaN,Infinity,-Infinity,x]", Code::JsonSyntax, Some(24)),
            (b"{\"b\":NaN,\"a\":1,\"a\":2}", Code::JsonDuplicateKey, Some(17)),
            (b"{\"a\":NaN,\"a\":NaN}", Code::JsonDuplicateKey, None),
            (b"\"\\ud800\"", Code::JsonSyntax, None),
            (b"\"\xff\"", Code::JsonSyntax, Some(1)),
            (b"\xff\xfe{\0}\0", Code::JsonSyntax, Some(0)),
            (b"{\"a\":1,\"a\":2}", Code::JsonDuplicateKey, None),
            (b"{\"a\":1,\"\\u0061\":2}", Code::JsonDuplicateKey, None),
            (b"[{\"x\":[{\"k\":0,\"j\":1,\"k\":2}]}]", Code::JsonDuplicateKey, None),
            (deep.as_bytes(), Code::JsonTooLarge, None),
            (many.as_bytes(), Code::JsonTooLarge, None),
        ];
        for (text, code, offset) in cases {
            let e = parse(text).unwrap_err();
            let shown = String::from_utf8_lossy(&text[..text.len().min(40)]);
            assert_eq!(e.code(), *code, "{shown}: {e}");
            assert!(offset.is_none_or(|o| e.offset() == Some(o)), "{shown}: {e}");
        }
    }

    #[test]
    fn strings_have_a_limit_and_messages_are_short() {
        let text = |n: usize| format!("[\"\\\"{}\"]", "x".repeat(n));
        assert!(parse(text(JSON_STRING_BYTES - 2).as_bytes()).is_ok());
        let e = parse(text(JSON_STRING_BYTES).as_bytes()).unwrap_err();
        assert_eq!((e.code(), e.offset()), (Code::JsonTooLarge, Some(1)));
        let escapes = format!("[\"{}\"]", "\\n".repeat(JSON_STRING_BYTES / 2 + 1));
        assert_eq!(parse(escapes.as_bytes()).unwrap_err().code(), Code::JsonTooLarge);
        let long = format!("{{\"{0}\":1,\"{0}\":2}}", "k".repeat(10_000));
        assert!(parse(long.as_bytes()).unwrap_err().message().len() < 300);
    }

    #[test]
    fn a_file_above_its_limit_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, b"[1,2]").unwrap();
        assert!(read_file(&path, 5).is_ok());
        let e = read_file(&path, 4).unwrap_err();
        assert_eq!(e.code(), Code::JsonTooLarge);
        assert_eq!(e.path(), Some(&*path));
    }
}
