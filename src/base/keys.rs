//! Typed access to the metadata of a GGUF file.

use std::path::Path;

use crate::error::{Code, Error, Result};
use crate::format::gguf::{Metadata, Value};

/// Typed access to the keys of one architecture.
pub(super) struct Keys<'a> {
    pub file: &'a Path,
    pub architecture: &'a str,
    pub metadata: &'a Metadata,
}

impl Keys<'_> {
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub fn invalid(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigField, message).file(self.file).field(self.key(name))
    }

    pub fn unsupported(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigUnsupported, message).file(self.file).field(self.key(name))
    }

    pub fn missing(&self, name: &str) -> Error {
        self.metadata.missing(&self.key(name)).file(self.file)
    }

    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        let stated = self.metadata.u32(&self.key(name)).map_err(|e| e.file(self.file))?;
        Ok(stated.map(|n| n as usize))
    }

    pub fn required_count(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    /// A count that llama.cpp also takes per layer; only one value for all layers is computed here.
    pub fn count_of_every_layer(&self, name: &str, n_layers: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        if !matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            return self.count(name);
        }
        let per_layer = self.metadata.u32_array(&key).map_err(|e| e.file(self.file))?.unwrap_or_default();
        if per_layer.len() != n_layers {
            return Err(self.invalid(name, format!("expected {n_layers} entries, found {}", per_layer.len())));
        }
        let Some(&first) = per_layer.first() else {
            return Err(self.invalid(name, "expected at least one entry, found none"));
        };
        match per_layer.iter().find(|n| **n != first) {
            Some(other) => {
                let message = format!("expected the same value in all layers, found {first} and {other}");
                Err(self.unsupported(name, message))
            }
            None => Ok(Some(first as usize)),
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let stated = self.metadata.f32(&self.key(name)).map_err(|e| e.file(self.file))?;
        match stated {
            Some(x) if !x.is_finite() => Err(self.invalid(name, format!("expected a finite number, found {x}"))),
            _ => Ok(stated.map(f64::from)),
        }
    }

    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(self.invalid(name, format!("expected a number above 0, found {x}"))),
            // What is divided by a subnormal number is infinite.
            Some(x) if !(x as f32).is_normal() => {
                Err(self.invalid(name, format!("expected a number within the range of F32, found {x}")))
            }
            stated => Ok(stated),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.str(key).map_err(|e| e.file(self.file))
    }
}
