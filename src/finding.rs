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
