//! One self-contained HTML page: no script, no network, light and dark. Everything that comes from a file is escaped here.

use std::fmt::Write as _;

use super::plot::{Chart, Size};
use crate::error::escape;

const STYLE: &str = include_str!("style.css");

/// A cell with more text than this gets a column that is wide enough to read.
const LONG_CHARS: usize = 24;

/// A page in the making.
pub(super) struct Page {
    pub title: String,
    /// Absent where nothing was judged.
    pub pass: Option<bool>,
    /// Bounds that hold, for the verdict.
    pub within: Vec<String>,
    /// What the verdict is about, one sentence each.
    pub lead: Vec<String>,
    pub figures: Vec<Figure>,
    pub sections: Vec<Section>,
}

/// A number that the reader looks for first.
pub(super) struct Figure {
    pub name: &'static str,
    pub value: String,
    /// A limit, or what the number is out of.
    pub context: String,
    pub beyond: bool,
}

#[derive(Default)]
pub(super) struct Section {
    pub title: &'static str,
    pub text: Vec<String>,
    /// Lines whose columns stand below each other.
    pub lines: Vec<String>,
    pub chart: Option<Chart>,
    /// Shown.
    pub table: Option<Table>,
    /// The numbers behind the chart, or all of them where there is none; folded.
    pub data: Option<Table>,
}

pub(super) struct Table {
    pub caption: String,
    /// Columns; those after the first `n_text` hold numbers and are right-aligned.
    pub header: Vec<&'static str>,
    pub n_text: usize,
    pub rows: Vec<Vec<String>>,
}

impl Page {
    pub fn html(&self) -> String {
        let mut out = String::new();
        let title = escape_html(&self.title);
        let _ = write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n"
        );
        let (class, mark, word) = match self.pass {
            Some(true) => ("pass", "\u{2713}", "PASS"),
            Some(false) => ("fail", "\u{2717}", "FAIL"),
            None => ("none", "\u{2013}", "NOT JUDGED"),
        };
        let within = match self.within.is_empty() {
            true => String::new(),
            false => format!(" <small>{}</small>", escape_html(&self.within.join(", "))),
        };
        let _ = writeln!(
            out,
            "<p class=\"verdict {class}\"><span aria-hidden=\"true\">{mark}</span> {word}{within}</p>\n<h1>{title}</h1>"
        );
        for line in &self.lead {
            let _ = writeln!(out, "<p>{}</p>", escape_html(line));
        }
        out.push_str("</header>\n");
        if !self.figures.is_empty() {
            out.push_str("<dl class=\"figures\">\n");
            for f in &self.figures {
                let _ = writeln!(
                    out,
                    "<div{}><dt>{}</dt><dd>{}<small>{}</small></dd></div>",
                    if f.beyond { " class=\"beyond\"" } else { "" },
                    escape_html(f.name),
                    escape_html(&f.value),
                    escape_html(&f.context)
                );
            }
            out.push_str("</dl>\n");
        }
        for (number, section) in self.sections.iter().enumerate() {
            section.write(number, &mut out);
        }
        out.push_str("</main>\n</body>\n</html>\n");
        out
    }
}

impl Section {
    fn write(&self, number: usize, out: &mut String) {
        let _ = writeln!(
            out,
            "<section aria-labelledby=\"s{number}\">\n<h2 id=\"s{number}\">{}</h2>",
            escape_html(self.title)
        );
        for line in &self.text {
            let _ = writeln!(out, "<p>{}</p>", escape_html(line));
        }
        if !self.lines.is_empty() {
            let lines: Vec<String> = self.lines.iter().map(|l| escape_html(l)).collect();
            let _ = writeln!(out, "<pre tabindex=\"0\">{}</pre>", lines.join("\n"));
        }
        let chart = self.chart.as_ref().filter(|c| !c.is_empty());
        if let Some(reason) = self.chart.as_ref().and_then(Chart::left_out).filter(|_| chart.is_none()) {
            let _ = writeln!(out, "<p>There is nothing to plot. {}</p>", escape_html(&reason));
        }
        if let Some(chart) = chart {
            out.push_str("<figure>\n");
            for size in [Size::Wide, Size::Narrow] {
                let svg = chart.svg(size);
                // The backend writes the root element first; it knows neither classes nor descriptions.
                let (class, id) = (size.class(), format!("c{number}{}", size.class()));
                let svg = svg.replacen(
                    "<svg ",
                    &format!("<svg class=\"{class}\" role=\"img\" aria-labelledby=\"{id}t {id}d\" "),
                    1,
                );
                let titled = format!(
                    ">\n<title id=\"{id}t\">{}</title><desc id=\"{id}d\">{}</desc>\n",
                    escape_html(&chart.title),
                    escape_html(&chart.description)
                );
                out.push_str(&svg.replacen(">\n", &titled, 1));
            }
            out.push_str("<figcaption>");
            for (name, class, mark) in chart.legend() {
                let _ = write!(
                    out,
                    "<span class=\"key\"><span class=\"{class}\" aria-hidden=\"true\">{mark}</span> {}</span> ",
                    escape_html(name)
                );
            }
            out.push_str(&escape_html(&chart.left_out().unwrap_or_default()));
            out.push_str("</figcaption>\n</figure>\n");
        }
        if let Some(table) = &self.table {
            table.write(out);
        }
        if let Some(data) = &self.data {
            let summary = if chart.is_some() { "The numbers behind the plot" } else { "The numbers" };
            let _ = writeln!(out, "<details>\n<summary>{summary}</summary>");
            data.write(out);
            out.push_str("</details>\n");
        }
        out.push_str("</section>\n");
    }
}

impl Table {
    fn write(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table>\n<caption>{0}</caption>\n<thead><tr>",
            escape_html(&self.caption)
        );
        for name in &self.header {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape_html(name));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let class = match i < self.n_text {
                    true if cell.chars().count() > LONG_CHARS => " class=\"long\"",
                    true => "",
                    false => " class=\"n\"",
                };
                // On a narrow screen a row is a block, and each cell says its column.
                let column = escape_html(self.header.get(i).copied().unwrap_or_default());
                let _ = write!(out, "<td{class} data-column=\"{column}\">{}</td>", escape_html(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table></div>\n");
    }
}

/// Text as HTML content or attribute value; what is invisible or reorders a line becomes visible.
pub(super) fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
