//! Ordered metadata with unique keys and typed access.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::value::{Array, Value};
use crate::error::{Code, Error, Result};
use crate::format::limits::GGUF_LIST;

/// Key-value pairs in file order; keys are unique.
///
/// The typed getters give `None` for an absent key and [`Code::GgufKey`], naming file, key and found type, for a value
/// of another type.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: IndexMap<String, Value>,
    /// The file that the values were read from, for messages.
    file: Option<Arc<Path>>,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn with_capacity(n: usize, file: Arc<Path>) -> Self {
        Metadata { entries: IndexMap::with_capacity(n), file: Some(file) }
    }

    /// Sets `key`; the last value given wins, in the place of the first.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.entries.insert(key.into(), value.into());
    }

    /// Removes `key`, keeping the order of the others.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.entries.shift_remove(key)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A non-negative integer of any integer type (llama.cpp writes u32, other tools i32 or u64).
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type or a negative number.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// As [`u64`](Self::u64), below 2^32.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type or a number out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 4294967295", |v| v.as_u64()?.try_into().ok())
    }

    /// A number of type f32 or f64; one that would become infinite or 0 as f32 is refused.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type or a number out of range.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "an f32 or f64", |v| match *v {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32).filter(|y| y.is_finite() == x.is_finite() && (*y == 0.0) == (x == 0.0)),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a str", |v| if let Value::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// An array of any type.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", as_array)
    }

    /// An array of at most [`GGUF_LIST`] non-negative integers below 2^32, of any integer type.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type, more elements, or one out of range.
    pub fn u32_array(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.typed(key, "an array of at most 65536 integers from 0 to 4294967295", |v| {
            as_list(v)?.iter().map(|v| v.as_u64()?.try_into().ok()).collect()
        })
    }

    /// An array of at most [`GGUF_LIST`] booleans.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type or more elements.
    pub fn bool_array(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.typed(key, "an array of at most 65536 bool", |v| {
            as_list(v)?.iter().map(|v| if let Value::Bool(b) = v { Some(b) } else { None }).collect()
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`] for another type.
    pub fn str_array(&self, key: &str) -> Result<Option<impl Iterator<Item = &str>>> {
        self.typed(key, "an array of str", |v| as_array(v)?.strs())
    }

    /// The error for a key that has to be there.
    pub fn missing(&self, key: &str) -> Error {
        self.located(Error::new(Code::GgufKey, "expected this key, found none").field(key))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || {
            self.located(
                Error::new(Code::GgufKey, format!("expected {expected}, found {}", value.describe())).field(key),
            )
        };
        read(value).map(Some).ok_or_else(wrong)
    }

    fn located(&self, e: Error) -> Error {
        match &self.file {
            Some(file) => e.file(file),
            None => e,
        }
    }
}

/// Entries and their order; where they were read from does not matter.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries.as_slice() == other.entries.as_slice()
    }
}

fn as_array(v: &Value) -> Option<&Array> {
    if let Value::Array(a) = v { Some(a) } else { None }
}

fn as_list(v: &Value) -> Option<&Array> {
    as_array(v).filter(|a| a.len() <= GGUF_LIST)
}

impl From<u32> for Value {
    fn from(v: u32) -> Self {
        Value::U32(v)
    }
}

impl From<f32> for Value {
    fn from(v: f32) -> Self {
        Value::F32(v)
    }
}

impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Value::Bool(v)
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.to_owned())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Value::String(v)
    }
}

impl From<Array> for Value {
    fn from(v: Array) -> Self {
        Value::Array(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_getters_take_what_fits_and_name_what_does_not() {
        let mut m = Metadata::new();
        m.insert("i", Value::I32(7));
        m.insert("neg", Value::I32(-7));
        m.insert("big", Value::U64(1 << 32));
        m.insert("f", Value::F64(0.5));
        m.insert("huge", Value::F64(1e300));
        m.insert("tiny", Value::F64(1e-300));
        m.insert("s", "text");
        m.insert("a", Array::from_u32(&[1, 2]));
        m.insert("sa", Array::from_strs(&["x"]));
        m.insert("long", Array::from_u32(&vec![0; GGUF_LIST + 1]));
        assert_eq!(m.u32("i").unwrap(), Some(7));
        assert_eq!(m.u32("absent").unwrap(), None);
        assert_eq!(m.u64("big").unwrap(), Some(1 << 32));
        assert_eq!(m.f32("f").unwrap(), Some(0.5));
        assert_eq!(m.str("s").unwrap(), Some("text"));
        assert_eq!(m.u32_array("a").unwrap(), Some(vec![1, 2]));
        assert_eq!(m.str_array("sa").unwrap().unwrap().collect::<Vec<_>>(), ["x"]);
        let wrong = [
            m.u32("neg").unwrap_err(),
            m.u32("big").unwrap_err(),
            m.u32("f").unwrap_err(),
            m.f32("huge").unwrap_err(),
            m.f32("tiny").unwrap_err(),
            m.f32("i").unwrap_err(),
            m.str("a").unwrap_err(),
            m.u32_array("sa").unwrap_err(),
            m.u32_array("long").unwrap_err(),
            m.bool("i").unwrap_err(),
            m.str_array("a").err().unwrap(),
        ];
        for e in wrong {
            assert_eq!(e.code(), Code::GgufKey, "{e}");
            assert!(e.field_name().is_some());
        }
        assert_eq!(m.u32("neg").unwrap_err().message(), "expected an integer from 0 to 4294967295, found i32 -7");
        assert_eq!(m.str("a").unwrap_err().message(), "expected a str, found arr of 2 u32");
    }

    #[test]
    fn order_is_that_of_insertion() {
        let mut m = Metadata::new();
        for k in ["z", "a", "m"] {
            m.insert(k, 1u32);
        }
        m.insert("a", 2u32);
        m.remove("z");
        assert_eq!(m.iter().map(|e| e.0).collect::<Vec<_>>(), ["a", "m"]);
    }
}
