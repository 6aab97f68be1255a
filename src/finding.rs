//! A check that failed, as data: reports list every finding at once.

use serde::Serialize;

use crate::error::{Code, Error, escape};

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The stable code.
    pub code: Code,
    /// Tensor or field.
    pub place: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Finding {
    /// A finding; `expected` and `found` are short noun phrases or values.
    pub fn new(code: Code, place: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Finding { code, place: place.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// `PLACE: expected X, found Y [code]`
    pub fn line(&self) -> String {
        escape(&format!("{}: expected {}, found {} [{}]", self.place, self.expected, self.found, self.code.slug()))
    }

    /// The finding as an error, for callers that stop at the first.
    pub fn to_error(&self) -> Error {
        Error::new(self.code, format!("expected {}, found {}", self.expected, self.found)).field(&self.place)
    }
}

/// Place of the finding that stands for those beyond the listed ones.
const MORE: &str = "and more";

/// Findings one by one up to [`Findings::LISTED`], and whether there are more: nobody reads millions of lines.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    has_more: bool,
}

impl Findings {
    /// How many are listed.
    pub const LISTED: usize = 1000;

    pub fn push(&mut self, finding: Finding) {
        // One of a graver kind decides the exit code, however late it comes.
        let is_graver = || {
            let gravest = self.list.iter().map(|f| f.code.kind().precedence()).min();
            gravest.is_some_and(|p| finding.code.kind().precedence() < p)
        };
        match self.list.len() < Self::LISTED || is_graver() {
            true => self.list.push(finding),
            false => self.has_more = true,
        }
    }

    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|f| self.push(f));
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The list, and where there are more a last line that says so.
    pub fn into_vec(self) -> Vec<Finding> {
        let Findings { mut list, has_more } = self;
        if let Some(code) = list.last().map(|f| f.code).filter(|_| has_more) {
            list.push(Finding::new(code, MORE, "none of these", format!("more than the first {}", Self::LISTED)));
        }
        list
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(list: Vec<Finding>) -> Self {
        let mut out = Findings::default();
        for finding in list {
            match finding.place == MORE {
                true => out.has_more = true,
                false => out.push(finding),
            }
        }
        out
    }
}

impl Serialize for Finding {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut f = s.serialize_struct("Finding", 4)?;
        f.serialize_field("code", self.code.slug())?;
        f.serialize_field("place", &self.place)?;
        f.serialize_field("expected", &self.expected)?;
        f.serialize_field("found", &self.found)?;
        f.end()
    }
}
