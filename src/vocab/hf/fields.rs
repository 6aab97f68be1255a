//! Fields of JSON files by type: what has another type than Hugging Face's libraries write is an error that names file
//! and field, never a default. `null` is the same as absent.

use std::path::Path;

use serde_json::{Map, Value};

use super::invalid;
use crate::error::{Error, Result};
use crate::format::json;
use crate::format::names::shorten;

/// An object in a file.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    /// Where it is in the file: nothing for the document, else with a dot at the end.
    prefix: String,
    /// Nothing where the file is absent.
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The document of `file`; `None` where there is no such file.
    ///
    /// # Errors
    ///
    /// [`TokenizerInvalid`](crate::error::Code::TokenizerInvalid) for what is no object, as for all functions
    /// here.
    pub fn of(file: &'a Path, document: Option<&'a Value>) -> Result<Self> {
        let map = document.map(|v| object(v).ok_or_else(|| expected("an object", v).file(file))).transpose()?;
        Ok(Fields { file, prefix: String::new(), map })
    }

    /// An element of a list, or of an object of objects.
    pub fn below(&self, name: &str, value: &'a Value) -> Result<Self> {
        let map = object(value).ok_or_else(|| self.at(name, expected("an object", value)))?;
        Ok(Fields { file: self.file, prefix: format!("{}{name}.", self.prefix), map: Some(map) })
    }

    /// `e` with the file and a field's name.
    pub fn at(&self, field: &str, e: Error) -> Error {
        e.file(self.file).field(format!("{}{field}", self.prefix))
    }

    pub fn value(&self, field: &str) -> Option<&'a Value> {
        self.map?.get(field).filter(|v| !v.is_null())
    }

    fn read<T>(&self, field: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.at(field, expected(what, value)))
    }

    pub fn bool(&self, field: &str) -> Result<Option<bool>> {
        self.read(field, "true, false or null", Value::as_bool)
    }

    pub fn str(&self, field: &str) -> Result<Option<&'a str>> {
        self.read(field, "text or null", Value::as_str)
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        self.read(field, "a number or null", Value::as_f64)
    }

    pub fn list(&self, field: &str) -> Result<Option<&'a Vec<Value>>> {
        self.read(field, "a list or null", Value::as_array)
    }

    pub fn object(&self, field: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.read(field, "an object or null", object)
    }

    /// A token by its text, alone or as the `content` of an object.
    pub fn token(&self, field: &str) -> Result<Option<&'a str>> {
        self.read(field, "text, an object with text as content, or null", |v| {
            v.as_str().or_else(|| v.as_object()?.get("content")?.as_str())
        })
    }

    /// A token's number, or those of several; whether there are such tokens, the caller knows.
    pub fn token_ids(&self, field: &str) -> Result<&'a [Value]> {
        let ids = self.read(field, "a token's number, a list of them, or null", |v| {
            let ids = v.as_array().map_or(std::slice::from_ref(v), Vec::as_slice);
            ids.iter().all(|id| id.is_i64() || id.is_u64()).then_some(ids)
        });
        Ok(ids?.unwrap_or_default())
    }
}

fn object(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object().filter(|_| !json::is_non_finite(value))
}

fn expected(what: &str, found: &Value) -> Error {
    invalid(format!("expected {what}, found {}", shorten(&short_text(found))))
}

/// Enough of a value to be recognized: lists and objects may be large.
fn short_text(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(map) if !json::is_non_finite(value) => format!("an object of {}", map.len()),
        plain => json::as_python_writes(&plain.to_string()),
    }
}
