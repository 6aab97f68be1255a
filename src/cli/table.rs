//! Tables for people: columns where they fit the terminal, one block a row where they do not. Figures are never cut.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::io::IsTerminal as _;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Columns before a table's lines.
const INDENT: usize = 2;
/// Columns between two cells.
const GAP: usize = 2;
/// The narrowest that names are cut to before the rows become blocks: less says nothing of
/// `blk.12.attn_prefix_memory.weight`.
const MIN_NAME: usize = 16;
/// The narrowest terminal that is heeded; below it lines are left to wrap.
const MIN_WIDTH: usize = 20;

/// Left-aligned columns, within the width of the terminal if stdout is one. The first column is names, which may lose
/// their middle; the others are figures. Cells come escaped.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    write_table(&mut out, header, || rows.iter().cloned()).expect("a String takes anything");
    out
}

/// [`table`], written as it is made. `rows` is called more than once, so that the cells of many rows need never be held
/// together.
///
/// # Errors
///
/// Those of `out`.
pub fn write_table<R>(out: &mut impl Write, header: &[&str], rows: impl Fn() -> R) -> fmt::Result
where
    R: Iterator<Item = Vec<String>>,
{
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    within(out, header, rows, terminal.map(|(width, _)| usize::from(width.0)))
}

fn within<R>(out: &mut impl Write, header: &[&str], rows: impl Fn() -> R, total: Option<usize>) -> fmt::Result
where
    R: Iterator<Item = Vec<String>>,
{
    let mut widths: Vec<usize> = header.iter().map(|h| h.width()).collect();
    for row in rows() {
        for (w, cell) in widths.iter_mut().zip(&row) {
            *w = (*w).max(cell.width());
        }
    }
    if let Some(total) = total {
        let others: usize = widths[1..].iter().map(|w| GAP + w).sum::<usize>() + INDENT;
        let left = total.max(MIN_WIDTH).saturating_sub(others);
        if widths[0] > left && left < MIN_NAME.max(header[0].width()) {
            return blocks(out, header, rows(), total.max(MIN_WIDTH));
        }
        let names = || rows().filter_map(|row| row.into_iter().next());
        let distinct = |of: &dyn Fn(String) -> String| names().map(of).collect::<BTreeSet<_>>().len();
        // `model.layers.3.self_attn.M` must not look like layer 4's, and words are no names.
        let is_ambiguous = || distinct(&|name| cut(&name, left)) < distinct(&|name| name);
        if widths[0] > left && (names().any(|name| name.contains(' ')) || is_ambiguous()) {
            return blocks(out, header, rows(), total.max(MIN_WIDTH));
        }
        widths[0] = widths[0].min(left);
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = " ".repeat(INDENT);
        for (cell, w) in cells.zip(&widths) {
            let cell = cut(cell, *w);
            text.push_str(&cell);
            text.extend(std::iter::repeat_n(' ', w + GAP - cell.width()));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&mut header.iter().copied())?;
    rows().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

/// Each row as its name and below it a line for every other cell.
fn blocks(out: &mut impl Write, header: &[&str], rows: impl Iterator<Item = Vec<String>>, total: usize) -> fmt::Result {
    let label = header[1..].iter().map(|h| h.width()).max().unwrap_or(0);
    for row in rows {
        let name = row.first().map_or("", String::as_str);
        // A number alone does not say what it counts.
        let title = if name.parse::<f64>().is_ok() { format!("{} {name}", header[0]) } else { name.to_owned() };
        for part in wrapped(&title, total - INDENT) {
            writeln!(out, "{:INDENT$}{part}", "")?;
        }
        for (name, cell) in header[1..].iter().zip(&row[1..]) {
            let before = 2 * INDENT + label + GAP;
            let pad = label - name.width();
            // Beside its label, or where that leaves too little room, below it.
            if before + cell.width() <= total {
                writeln!(out, "{:w$}{name}{:pad$}{:GAP$}{cell}", "", "", "", w = 2 * INDENT)?;
            } else {
                writeln!(out, "{:w$}{name}", "", w = 2 * INDENT)?;
                for part in wrapped(cell, total - 3 * INDENT) {
                    writeln!(out, "{:w$}{part}", "", w = 3 * INDENT)?;
                }
            }
        }
    }
    Ok(())
}

/// The start and the end of a cell that is too wide: names differ at either.
fn cut(cell: &str, width: usize) -> String {
    if cell.width() <= width {
        return cell.to_owned();
    }
    let tail_width = (width - 1) / 2;
    let head = start(cell, width - 1 - tail_width);
    let reversed: String = cell.chars().rev().collect();
    let tail: String = start(&reversed, tail_width).chars().rev().collect();
    format!("{head}\u{2026}{tail}")
}

/// As much of the start as fits.
fn start(text: &str, width: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > width
    });
    &text[..end.map_or(text.len(), |(i, _)| i)]
}

/// The text in lines of at most `width` columns.
fn wrapped(mut text: &str, width: usize) -> Vec<&str> {
    let mut out = Vec::new();
    while text.width() > width {
        // A character wider than the line stands alone in it.
        let first = text.chars().next().map_or(0, char::len_utf8);
        let (line, rest) = text.split_at(start(text, width).len().max(first));
        out.push(line);
        text = rest;
    }
    out.push(text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "blk.12.attn_prefix_memory.weight";

    fn within(header: &[&str], rows: &[Vec<String>], total: Option<usize>) -> String {
        let mut out = String::new();
        super::within(&mut out, header, || rows.iter().cloned(), total).unwrap();
        out
    }

    fn fits(text: &str, width: usize) -> bool {
        text.lines().all(|l| l.width() <= width)
    }

    #[test]
    fn names_lose_their_middle_and_figures_nothing() {
        let rows = vec![vec![NAME.to_owned(), "F32 -> Q5_0".to_owned(), "4.5e-2".to_owned()]];
        let header = ["tensor", "type", "relative"];
        let wide = within(&header, &rows, None);
        assert!(wide.contains(NAME));
        assert_eq!(within(&header, &rows, Some(80)), wide);
        // The figures take 25 columns: with 16 left for names they stay columns, with 15 not.
        assert_eq!([41, 40].map(|total| within(&header, &rows, Some(total)).lines().count()), [2, 3]);
        let narrow = within(&header, &rows, Some(46));
        assert!(fits(&narrow, 46) && narrow.lines().count() == 2, "{narrow}");
        assert!(
            narrow.contains("blk.") && narrow.contains("\u{2026}") && narrow.contains("eight  F32 -> Q5_0  4.5e-2")
        );
    }

    #[test]
    fn where_columns_do_not_fit_each_row_becomes_a_block() {
        let rows = vec![vec![NAME.to_owned(), "F32 -> Q5_0 (not Q4_K)".to_owned(), "4.5e-2".to_owned()]; 2];
        let header = ["tensor", "type", "relative"];
        for width in [20, 30, 40] {
            let text = within(&header, &rows, Some(width));
            assert!(fits(&text, width), "{width}:\n{text}");
            let joined: String = text.split_whitespace().collect();
            let whole: String = "type F32 -> Q5_0 (not Q4_K) relative 4.5e-2".split_whitespace().collect();
            assert_eq!(joined, format!("{NAME}{whole}").repeat(2), "{text}");
        }
        // Words are not cut, and a bare number gets its name.
        let rows = vec![
            vec!["base alone, max |dlogit|".to_owned(), "5.126e-6".to_owned()],
            vec!["12".to_owned(), String::new()],
        ];
        let text = within(&["figure", "found"], &rows, Some(34));
        assert!(text.contains("base alone, max |dlogit|\n") && text.contains("figure 12\n"), "{text}");
        // Narrower than anyone reads: no panic.
        assert!(within(&["figure", "found"], &rows, Some(0)).contains("5.126e-6"));
    }

    #[test]
    fn names_that_would_look_the_same_are_not_cut() {
        let name = |layer: usize| format!("model_state_dict.model.layers.{layer}.self_attn.prefix_memory");
        let rows: Vec<Vec<String>> = (0..3).map(|i| vec![name(i), "F32".into()]).collect();
        let text = within(&["name", "type"], &rows, Some(42));
        assert!(fits(&text, 42) && (0..3).all(|i| text.replace("\n  ", "").contains(&name(i))), "{text}");
    }

    #[test]
    fn wide_characters_count_twice() {
        let rows = vec![vec!["記憶.重み.記憶.重み.記憶.重み".to_owned(), "1".to_owned()]; 2];
        for width in [20, 24, 60] {
            let text = within(&["tensor", "bytes"], &rows, Some(width));
            assert!(fits(&text, width), "{width}:\n{text}");
        }
    }
}
