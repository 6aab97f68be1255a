//! The little of YAML that a card's front matter needs: every text in double quotes, so that none is a number, a Boolean
//! (`no` is Norwegian) or markup.

use std::fmt::Write as _;

use crate::error::is_hidden;

/// A text in double quotes. Besides what JSON escapes, characters that readers of YAML refuse or that nobody sees.
pub fn text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            _ if !c.is_control() && !is_hidden(c) && !matches!(code, 0xfffe | 0xffff) => out.push(c),
            _ if code <= 0xffff => {
                let _ = write!(out, "\\u{code:04x}");
            }
            _ => {
                let _ = write!(out, "\\U{code:08x}");
            }
        }
    }
    out.push('"');
    out
}

/// `key:` and its texts, one a line; nothing where there is none.
pub fn list<'a>(key: &str, texts: impl Iterator<Item = &'a str>) -> String {
    let lines: String = texts.map(|t| format!("- {}\n", plain_or_quoted(t))).collect();
    if lines.is_empty() { lines } else { format!("{key}:\n{lines}") }
}

/// A word that YAML can only take for a text stays as it is: tags are read by people, too.
fn plain_or_quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_word = word.len() > 3 && word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(is_plain);
    match word {
        "null" | "true" | "false" => text(word),
        _ if is_word || word == "gguf" => word.to_owned(),
        _ => text(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_anything_but_a_text() {
        assert_eq!(text("a: \"b\" \\ #c\n- d"), "\"a: \\\"b\\\" \\\\ #c\\n- d\"");
        assert_eq!(text("\u{1b}\u{85}\u{2028}\u{feff}\u{e0041}é日"), "\"\\u001b\\u0085\\u2028\\ufeff\\U000e0041é日\"");
        let found = list(
            "tags",
            ["lora", "adapter", "no", "null", "false", "123", "1e10", "a: b", "prefix-tuning", "é"].into_iter(),
        );
        let expected = "tags:\n- lora\n- adapter\n- \"no\"\n- \"null\"\n- \"false\"\n- \"123\"\n- \"1e10\"\n- \"a: b\"\n- prefix-tuning\n- \"é\"\n";
        assert_eq!(found, expected);
        assert_eq!(list("tags", std::iter::empty()), "");
    }
}
