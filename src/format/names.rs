//! The rules for names: of a tensor, a key or a file in a bundle, the same in every format; of files in a folder.

use std::path::Path;

use super::limits::NAME_BYTES;
use crate::error::{Code, Error, Result};

/// Refuses names that are empty, longer than [`NAME_BYTES`], hold control characters, are absolute paths or have a
/// path part `..`. Tensor names become file names in other tools, and all names are printed.
///
/// # Errors
///
/// [`Code::NameInvalid`].
pub fn check_name(name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > NAME_BYTES {
        format!("has {} bytes, more than {NAME_BYTES}", name.len())
    } else if let Some(fault) = control_character(name) {
        fault
    } else if name.split(['/', '\\']).any(|part| part == "..") {
        "has a path part \"..\"".to_owned()
    } else if name.starts_with(['/', '\\']) || has_drive(name) {
        "is an absolute path".to_owned()
    } else {
        return Ok(());
    };
    Err(invalid(name, &fault))
}

/// Refuses control characters alone: for what is shown like a name, and never used as one.
///
/// # Errors
///
/// [`Code::NameInvalid`].
pub(crate) fn check_printable(name: &str) -> Result<()> {
    control_character(name).map_or(Ok(()), |fault| Err(invalid(name, &fault)))
}

fn control_character(name: &str) -> Option<String> {
    let c = name.chars().find(|c| c.is_control())?;
    Some(format!("holds the control character U+{:04X}", c as u32))
}

fn invalid(name: &str, fault: &str) -> Error {
    Error::new(Code::NameInvalid, format!("the name {fault}")).field(shorten(name))
}

/// `C:\` or `C:/`.
fn has_drive(name: &str) -> bool {
    matches!(name.as_bytes(), [letter, b':', b'/' | b'\\', ..] if letter.is_ascii_alphabetic())
}

/// Whether a name in a folder begins with a dot: what systems and programs leave there (`._x` of macOS' archives, `.cache`
/// of a hub), and nobody means.
pub(crate) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// At most 64 characters of a name, for a message.
pub(crate) fn shorten(name: &str) -> String {
    const SHOWN: usize = 64;
    cut(name, SHOWN)
}

/// At most `max_chars` characters of a text, and then dots.
pub(crate) fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_each_boundary() {
        let longest = "n".repeat(NAME_BYTES);
        for good in ["a", "blk.0.attn_q.weight", "a..b", "..a/b..", "a/b", "тензор", "a b", "C:", "c:d", &longest]
        {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        let too_long = "n".repeat(NAME_BYTES + 1);
        let bad = [
            "", "a\0", "a\n", "\u{7f}", "a\u{85}", "..", "a/../b", "../a", "a/..", "a\\..\\b", "/a", "\\a", "C:\\a",
            "c:/a", &too_long,
        ];
        for bad in bad {
            assert_eq!(check_name(bad).unwrap_err().code(), Code::NameInvalid, "{bad:?}");
        }
    }
}
