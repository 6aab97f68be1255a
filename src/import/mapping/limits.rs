//! What of TOML a layout file may not have: deep levels, and constants that JSON has no form for.

/// The most levels that keys with dots, lists and inline tables open in a line, strings and comments aside. The parser
/// has limits of its own, of 80 parts and of 80 brackets, but allows both at once, and tables are dropped recursively.
pub(super) fn deepest_line(text: &str) -> usize {
    let (mut deepest, mut outer, mut dots) = (0, Vec::new(), 0_usize);
    let (mut levels, mut rest) = (0_usize, text);
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '"' | '\'' => after_string(rest, c),
            '#' => &rest[rest.find('\n').unwrap_or(rest.len())..],
            _ => &rest[c.len_utf8()..],
        };
        match c {
            '.' => dots += 1,
            ',' | '\n' => dots = 0,
            '[' | '{' => {
                outer.push(dots);
                levels += dots + 1;
                dots = 0;
            }
            ']' | '}' => {
                dots = outer.pop().unwrap_or(0);
                levels = levels.saturating_sub(dots + 1);
            }
            _ => {}
        }
        deepest = deepest.max(levels + dots);
    }
    deepest
}

/// What follows the string at the start of `text`, in one or three quotes.
fn after_string(text: &str, quote: char) -> &str {
    let three = [quote as u8; 3];
    let quotes = if text.as_bytes().starts_with(&three) { 3 } else { 1 };
    let (bytes, mut i) = (text.as_bytes(), quotes);
    while i < bytes.len() && !bytes[i..].starts_with(&three[..quotes]) {
        i += if quote == '"' && bytes[i] == b'\\' { 2 } else { 1 };
    }
    text.get(i + quotes..).unwrap_or("")
}

/// What in a constant JSON has no form for; it would become null, or a table that nobody wrote.
pub(super) fn not_json(value: &toml::Value) -> Option<String> {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            toml::Value::Float(x) if !x.is_finite() => return Some(x.to_string()),
            toml::Value::Datetime(d) => return Some(format!("the date or time {d}")),
            toml::Value::Array(items) => open.extend(items),
            toml::Value::Table(table) => open.extend(table.values()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_outside_of_strings_and_comments() {
        for (text, levels) in [
            ("a = 1\nb = 2.5", 1),
            ("a.b.c = 1", 2),
            ("a = [[1], [2, {b = 3}]]", 3),
            ("a.b = {c.d = {e.f = 1}}", 5),
            ("[x.y.z]\na = [1]", 3),
            ("a = '[[[..' # ]]]...[[[\nb = \"\\\"[[[\"", 0),
            ("a = 'open [[[", 0),
            ("]]]]", 0),
        ] {
            assert_eq!(deepest_line(text), levels, "{text}");
        }
        let quotes = "'".repeat(3);
        assert_eq!(deepest_line(&format!("a = {quotes}\n[[[ ' [[ {quotes}\nb = [1]")), 1);
    }
}
