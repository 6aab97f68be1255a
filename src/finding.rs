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
    /// Whether it stands for those beyond a list's end. Not a text: a file chooses its names.
    stands_for_more: bool,
}

impl Finding {
    /// A finding; `expected` and `found` are short noun phrases or values.
    pub fn new(code: Code, place: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        let (expected, found) = (expected.to_string(), found.to_string());
        Finding { code, place: place.into(), expected, found, stands_for_more: false }
    }

    /// Whether it only says that there are more than are listed.
    pub(crate) fn stands_for_more(&self) -> bool {
        self.stands_for_more
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

    /// [`push`](Self::push) of [`Finding::new`].
    pub fn add(&mut self, code: Code, place: impl Into<String>, expected: impl ToString, found: impl ToString) {
        self.push(Finding::new(code, place, expected, found));
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
        if let Some(code) = list.first().map(|f| f.code).filter(|_| has_more) {
            let found = format!("more than the {} that are listed", list.len());
            list.push(Finding { stands_for_more: true, ..Finding::new(code, "and more", "none of these", found) });
        }
        list
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(list: Vec<Finding>) -> Self {
        let mut out = Findings::default();
        for finding in list {
            match finding.stands_for_more {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, places: impl Iterator<Item = String>) -> Vec<Finding> {
        let mut out = Findings::default();
        out.extend(places.map(|place| Finding::new(code, place, "a", "b")));
        out.into_vec()
    }

    #[test]
    fn no_name_in_a_file_stands_for_more() {
        for name in ["and more", "", "more than the 1 that are listed"] {
            let listed = Findings::from(of(Code::AdapterLeftOver, [name.to_owned()].into_iter())).into_vec();
            assert!(listed.len() == 1 && listed[0].place == name && !listed[0].stands_for_more());
        }
    }

    #[test]
    fn a_list_ends_and_says_so_however_often_it_is_passed_on() {
        let many = || (0..Findings::LISTED + 5).map(|i| i.to_string());
        let once = of(Code::AdapterLeftOver, many());
        assert_eq!(once.len(), Findings::LISTED + 1);
        assert!(once[Findings::LISTED].stands_for_more());
        assert_eq!(Findings::from(once.clone()).into_vec(), once);
        assert_eq!(of(Code::AdapterLeftOver, many().take(Findings::LISTED)).len(), Findings::LISTED);
        // A graver kind decides the exit code and is listed, however late.
        let mut graver = Findings::from(once);
        graver.push(Finding::new(Code::NonFinite, "x", "a", "b"));
        graver.push(Finding::new(Code::NonFinite, "y", "a", "b"));
        let graver = graver.into_vec();
        assert_eq!(graver.iter().filter(|f| f.code == Code::NonFinite).count(), 1);
        assert!(graver.last().unwrap().stands_for_more());
    }
}
