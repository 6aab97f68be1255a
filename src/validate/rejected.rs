//! What a refusal says: every finding, and what may be the matter.

use crate::error::{Code, Error, ErrorKind};
use crate::finding::Finding;

/// Everything that is wrong, and what could not be checked.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rejected {
    /// At least one.
    pub findings: Vec<Finding>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
    /// What may be the matter.
    pub hints: Vec<String>,
    /// The refusal to guess, where conventions are open: they are among the findings, one by one.
    pub open: Option<Error>,
}

impl Rejected {
    /// The kind that decides the exit code: of several, corrupt before unsupported before mismatch.
    pub fn kind(&self) -> ErrorKind {
        self.findings.iter().map(|f| f.code.kind()).min_by_key(|k| k.precedence()).unwrap_or(ErrorKind::Mismatch)
    }

    /// The finding that decides the exit code, as an error that says how many more there are.
    pub fn into_error(self) -> Error {
        let kind = self.kind();
        let n = self.findings.len();
        let n_open = self.findings.iter().filter(|f| f.code == Code::ConventionOpen).count();
        let has_more = self.findings.iter().any(Finding::stands_for_more);
        let first = self.findings.into_iter().find(|f| f.code.kind() == kind).expect("a rejection has findings");
        let more = match (n, has_more) {
            (_, true) => " (and very many more; see `ptplus validate`)".to_owned(),
            (0 | 1, _) => String::new(),
            _ => format!(" (and {} more; see `ptplus validate`)", n - 1),
        };
        if let Some(open) = self.open.filter(|open| open.code() == first.code) {
            let others = n - n_open;
            let more = (others > 0)
                .then(|| format!("`ptplus validate` shows {others} more findings, whatever the conventions are"));
            return open.hints(self.hints).hints(more);
        }
        Error::new(first.code, format!("expected {}, found {}{more}", first.expected, first.found))
            .field(first.place)
            .hints(self.hints)
    }
}

/// How to choose one, where a checkpoint holds the adapter twice, as training codes do that save averages (EMA), too.
pub(super) fn one_of_copies(findings: &[Finding]) -> Option<String> {
    let finding = findings.iter().find(|f| f.code == Code::AdapterDuplicate)?;
    let (one, other) = finding.found.strip_prefix('"')?.strip_suffix('"')?.split_once("\" and \"")?;
    let words = |name: &'_ str| name.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (words(one), words(other));
    let n_common = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    let own = |words: &[String]| words[..words.len() - n_common].join(".");
    let (one, other) = (own(&one), own(&other));
    let is_average = |own: &str| ["ema", "avg", "average", "swa"].iter().any(|w| own.to_lowercase().contains(w));
    let left_out = if is_average(&one) && !is_average(&other) { one } else { other };
    (!left_out.is_empty()).then(|| {
        format!(
            "the file holds the adapter twice; a layout file (--layout FILE.toml) says which copy to leave out: `[[ignore]]` with `name = '{}\\..*'` and a `reason`",
            regex::escape(&left_out)
        )
    })
}
