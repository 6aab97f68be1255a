//! JSON of any file.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::{json, limits};

use crate::case::{Case, accepted, refused};

pub fn read(file: Vec<u8>) -> Result<()> {
    let value = json::parse(&file).map_err(|e| e.file(Path::new("case.json")))?;
    assert_eq!(json::parse(value.to_string().as_bytes()).unwrap(), value, "it can be written and read again");
    Ok(())
}

pub fn cases() -> Vec<Case> {
    use Code::*;
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let many = |n: usize| format!("[{}0]", "0,".repeat(n - 2));
    let objects = |n: usize| format!("[{}]", vec!["{\"\":0}"; n].join(","));
    let mut cases = vec![
        accepted("an object", "{\"a\":1}"),
        accepted("a byte order mark", "\u{feff}{\"a\":1}"),
        accepted("blanks on both sides", " \t\r\n{} \t\r\n"),
        accepted("unicode", "{\"имя\":\"\\ud83d\\ude00 é\"}"),
        accepted(
            "largest and smallest numbers",
            "[18446744073709551615,-9223372036854775808,1.7976931348623157e308,5e-324]",
        ),
        accepted("a number that is 0 as F64", "[1e-400]"),
        accepted("a control character, escaped", "[\"\\u001b\"]"),
        accepted("deepest lists", nested("[", "]", limits::JSON_DEPTH - 1)),
        accepted("most values", many(limits::JSON_VALUES)),
        accepted("most objects", objects((limits::JSON_VALUES - 1) / (limits::JSON_OBJECT_VALUES + 2))),
        refused(
            "one object too many",
            objects((limits::JSON_VALUES - 1) / (limits::JSON_OBJECT_VALUES + 2) + 1),
            JsonTooLarge,
        ),
        refused("no byte", "", JsonSyntax),
        refused("blanks alone", "  \n", JsonSyntax),
        refused("a byte order mark alone", "\u{feff}", JsonSyntax),
        refused("two byte order marks", "\u{feff}\u{feff}{}", JsonSyntax),
        refused("UTF-16", b"\xff\xfe{\0}\0", JsonSyntax),
        refused("UTF-32", b"\0\0\0{\0\0\0}", JsonSyntax),
        refused("a byte that is not UTF-8", b"[\"\xff\"]", JsonSyntax),
        refused("an overlong form", b"[\"\xc0\x80\"]", JsonSyntax),
        refused("half a surrogate", "[\"\\ud800\"]", JsonSyntax),
        refused("surrogates reversed", "[\"\\udc00\\ud800\"]", JsonSyntax),
        refused("NUL after the document", "{}\0", JsonSyntax),
        refused("NUL in a string", "[\"\0\"]", JsonSyntax),
        refused("a line break in a string", "[\"\n\"]", JsonSyntax),
        refused("two documents", "{}{}", JsonSyntax),
        refused("a word after the document", "{} x", JsonSyntax),
        refused("a comma at the end", "[1,]", JsonSyntax),
        refused("a comma at the end of an object", "{\"a\":1,}", JsonSyntax),
        refused("single quotes", "{'a':1}", JsonSyntax),
        refused("a key without quotes", "{a:1}", JsonSyntax),
        refused("a comment", "{/*c*/}", JsonSyntax),
        refused("a line comment", "{}//c", JsonSyntax),
        refused("Python's None", "[None]", JsonSyntax),
        refused("an unknown escape", "[\"\\x41\"]", JsonSyntax),
        refused("a string that does not end", "[\"abc", JsonSyntax),
        refused("an object that does not end", "{\"a\":1", JsonSyntax),
        refused("a key without value", "{\"a\"}", JsonSyntax),
        refused("a number as key", "{1:1}", JsonSyntax),
        refused("a key twice", "{\"a\":1,\"a\":2}", JsonDuplicateKey),
        refused("a key twice, values alike", "{\"a\":1,\"a\":1}", JsonDuplicateKey),
        refused("a key twice, escaped", "{\"a\":1,\"\\u0061\":1}", JsonDuplicateKey),
        refused("a key twice deep inside", "[{\"x\":[{\"k\":0,\"j\":1,\"k\":2}]}]", JsonDuplicateKey),
        refused("an empty key twice", "{\"\":1,\"\":1}", JsonDuplicateKey),
        refused("a level too deep", nested("[", "]", limits::JSON_DEPTH), JsonTooLarge),
        refused(
            "objects a level too deep",
            format!("{}1{}", "{\"a\":".repeat(limits::JSON_DEPTH), "}".repeat(limits::JSON_DEPTH)),
            JsonTooLarge,
        ),
        refused("a million brackets", "[".repeat(1_000_000), JsonTooLarge),
        refused("a million braces", "{\"\":".repeat(1_000_000), JsonTooLarge),
        refused("one value too many", many(limits::JSON_VALUES + 1), JsonTooLarge),
        refused("a string too long", format!("[\"{}\"]", "x".repeat(limits::JSON_STRING_BYTES + 1)), JsonTooLarge),
        refused("more bytes than the limit", format!("[1{}]", " ".repeat(limits::JSON_BYTES as usize)), JsonTooLarge),
    ];
    for number in ["NaN", "Infinity", "-Infinity"] {
        cases.push(accepted(format!("Python's {number}"), format!("{{\"a\":{number}}}")));
        cases.push(refused(format!("{number} as a key"), format!("{{{number}:1}}"), JsonSyntax));
        cases.push(refused(format!("{number} alone"), number, JsonSyntax));
    }
    for number in ["1e400", "-1e400", "1e999999999", "01", "+1", ".5", "1.", "0x10", "1_000", "1e", "--1", "9e308"] {
        cases.push(refused(format!("the number {number}"), format!("{{\"a\":{number}}}"), JsonSyntax));
    }
    cases
}
