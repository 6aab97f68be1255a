//! Typed access to a JSON object, where absent and null are different things.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};
use crate::format::json;

/// What an object says under one name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stated<T> {
    Absent,
    Null,
    Is(T),
}

impl<T> Stated<T> {
    fn try_map<U>(self, f: impl FnOnce(T) -> Result<U>) -> Result<Stated<U>> {
        Ok(match self {
            Stated::Absent => Stated::Absent,
            Stated::Null => Stated::Null,
            Stated::Is(v) => Stated::Is(f(v)?),
        })
    }

    /// The value, where null means the same as absent.
    pub fn value(self) -> Option<T> {
        match self {
            Stated::Is(v) => Some(v),
            Stated::Absent | Stated::Null => None,
        }
    }

    /// The value; `absent` where there is none, `None` for null.
    pub fn or_absent(self, absent: T) -> Option<T> {
        match self {
            Stated::Absent => Some(absent),
            Stated::Null => None,
            Stated::Is(v) => Some(v),
        }
    }
}

/// A JSON object of one file, with its path inside the file for messages.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) if !json::is_non_finite(value) => Ok(Fields { file, prefix: String::new(), map }),
            other => {
                Err(Error::new(Code::ConfigField, format!("expected a JSON object, found {}", describe(other)))
                    .file(file))
            }
        }
    }

    /// The full name of a field in messages.
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A refusal of what `name` says: it is wrong in itself.
    pub fn invalid(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigField, message).file(self.file).field(self.name(name))
    }

    /// A refusal of what `name` says: it is valid, but not computed here.
    pub fn unsupported(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigUnsupported, message).file(self.file).field(self.name(name))
    }

    pub fn get(&self, name: &str) -> Stated<&'a Value> {
        match self.map.get(name) {
            None => Stated::Absent,
            Some(Value::Null) => Stated::Null,
            Some(v) => Stated::Is(v),
        }
    }

    /// Whether there is no such field.
    pub fn is_absent(&self, name: &str) -> bool {
        self.get(name) == Stated::Absent
    }

    /// A whole number of at least 0.
    pub fn count(&self, name: &str) -> Result<Stated<usize>> {
        self.get(name).try_map(|v| {
            v.as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| self.invalid(name, format!("expected a whole number, found {}", describe(v))))
        })
    }

    /// A whole number that may be left out but not be null.
    pub fn count_or(&self, name: &str, absent: usize) -> Result<usize> {
        self.count(name)?.or_absent(absent).ok_or_else(|| self.invalid(name, "expected a whole number, found null"))
    }

    /// A finite number.
    pub fn number(&self, name: &str) -> Result<Stated<f64>> {
        self.get(name).try_map(|v| {
            v.as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| self.invalid(name, format!("expected a finite number, found {}", describe(v))))
        })
    }

    /// A number above 0, and neither infinite nor 0 as F32, that may be neither left out nor null.
    pub fn positive(&self, name: &str) -> Result<f64> {
        match self.number(name)? {
            Stated::Is(x) if x > 0.0 && (x as f32).is_normal() => Ok(x),
            Stated::Is(x) if x > 0.0 => {
                Err(self.invalid(name, format!("expected a number within the range of F32, found {x}")))
            }
            Stated::Is(x) => Err(self.invalid(name, format!("expected a number above 0, found {x}"))),
            Stated::Absent => Err(self.invalid(name, "expected a number above 0, found no such field")),
            Stated::Null => Err(self.invalid(name, "expected a number above 0, found null")),
        }
    }

    /// A truth value; null counts as false, as it does in Python.
    pub fn flag(&self, name: &str, absent: bool) -> Result<bool> {
        let stated = self.get(name).try_map(|v| {
            v.as_bool().ok_or_else(|| self.invalid(name, format!("expected true or false, found {}", describe(v))))
        })?;
        Ok(stated.or_absent(absent).unwrap_or(false))
    }

    pub fn text(&self, name: &str) -> Result<Stated<&'a str>> {
        self.get(name).try_map(|v| {
            v.as_str().ok_or_else(|| self.invalid(name, format!("expected a string, found {}", describe(v))))
        })
    }

    pub fn list(&self, name: &str) -> Result<Stated<&'a [Value]>> {
        self.get(name).try_map(|v| match v {
            Value::Array(items) => Ok(items.as_slice()),
            _ => Err(self.invalid(name, format!("expected a list, found {}", describe(v)))),
        })
    }

    pub fn object(&self, name: &str) -> Result<Stated<Fields<'a>>> {
        self.get(name).try_map(|v| match v {
            Value::Object(map) if !json::is_non_finite(v) => {
                Ok(Fields { file: self.file, prefix: format!("{}.", self.name(name)), map })
            }
            _ => Err(self.invalid(name, format!("expected an object, found {}", describe(v)))),
        })
    }

    /// The file, for the fields of a value made from this one's.
    pub fn file(&self) -> &'a Path {
        self.file
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The fields whose names start with `prefix`.
    pub fn entries(&self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v)).filter(move |(k, _)| k.starts_with(prefix))
    }

    /// The first field whose value is an object, if any.
    pub fn nested(&self) -> Option<&'a str> {
        self.map.iter().find(|(_, v)| v.is_object()).map(|(k, _)| k.as_str())
    }
}

/// A JSON value as messages show it, shortened.
pub(crate) fn describe(value: &Value) -> String {
    let text = json::as_python_writes(&value.to_string());
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
