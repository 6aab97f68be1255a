//! The rule for names, wherever a name stands.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::limits::NAME_BYTES;
use ptplus::format::names::check_name;

use crate::case::{Case, accepted, refused};

pub fn read(name: Vec<u8>) -> Result<()> {
    check_name(std::str::from_utf8(&name).expect("cases are text")).map_err(|e| e.file(Path::new("case")))
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for good in [
        "a",
        "blk.0.attn_q.weight",
        "a..b",
        "..a/b..",
        "...",
        "a/b",
        "тензор",
        "a b",
        "C:",
        "c:d",
        "é\u{301}",
        "a/./b",
        "~",
        "-rf",
        "%2e%2e",
    ] {
        cases.push(accepted(format!("{good:?}"), good));
    }
    for bad in [
        "",
        "..",
        "../a",
        "a/..",
        "a/../b",
        "..\\a",
        "a\\..",
        "a/..\\b",
        "/",
        "/a",
        "//a",
        "\\",
        "\\\\server\\share",
        "C:/",
        "C:\\a",
        "z:/a",
        "a\0",
        "\0",
        "a\nb",
        "a\rb",
        "\t",
        "\u{1b}[0m",
        "\u{7f}",
        "a\u{80}",
        "a\u{85}b",
        "\u{9f}",
    ] {
        cases.push(refused(format!("{bad:?}"), bad, Code::NameInvalid));
    }
    cases.push(accepted("255 bytes", "n".repeat(NAME_BYTES)));
    cases.push(refused("256 bytes", "n".repeat(NAME_BYTES + 1), Code::NameInvalid));
    cases.push(refused("256 bytes in 128 letters", "é".repeat(128), Code::NameInvalid));
    cases
}
