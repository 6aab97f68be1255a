//! What a kind of adapter states, as a table: one row for each field, which readers, writers and reports go through.

use serde_json::Value;

use crate::base::BaseConfig;

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FieldValue {
    /// One of several names.
    Name(&'static str),
    /// A factor. GGUF and the engines keep it in F32.
    Scale(f64),
    /// A size.
    Count(usize),
}

impl FieldValue {
    /// For JSON, exactly.
    pub fn json(self) -> Value {
        match self {
            FieldValue::Name(name) => name.into(),
            FieldValue::Scale(x) => x.into(),
            FieldValue::Count(n) => n.into(),
        }
    }

    /// For comparisons of what two adapters compute: scales as GGUF keeps them.
    pub fn text(self) -> String {
        match self {
            FieldValue::Name(name) => name.into(),
            FieldValue::Scale(x) => (x as f32).to_string(),
            FieldValue::Count(n) => n.to_string(),
        }
    }

    /// [`text`](Self::text), with counts as numbers.
    pub fn digest_json(self) -> Value {
        match self {
            FieldValue::Count(n) => n.into(),
            other => other.text().into(),
        }
    }
}

/// What values a field has. The order is that of GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldType {
    /// Text there.
    Name,
    /// F32 there.
    Scale,
    /// U32 there.
    Count,
}

/// A field of an adapter whose configuration is a `C`.
pub struct Field<C> {
    /// Key of `adapter_config.json`, and name in messages.
    pub key: &'static str,
    /// Whether `adapter_config.json` has it; the others follow from tensors.
    pub is_in_config: bool,
    /// Field of `adapter.{kind}.` in GGUF.
    pub gguf: &'static str,
    /// What values it has.
    pub is: FieldType,
    /// What an adapter has.
    pub get: fn(&C) -> FieldValue,
    /// What settles it where an adapter does not state it.
    pub settled_by: SettledBy,
}

/// What settles a field that an adapter does not state.
#[derive(Debug, Clone, Copy)]
pub enum SettledBy {
    /// This flag, with what it takes; or a probe. No tensor and no base says it: a convention.
    Flag(&'static str, &'static str),
    /// The size that a base has.
    Base(fn(&BaseConfig) -> usize),
    /// A size that follows from tensors and other sizes.
    Sizes,
}

impl<C> Field<C> {
    /// Whether nothing but a statement or a probe settles it.
    pub fn is_convention(&self) -> bool {
        matches!(self.settled_by, SettledBy::Flag(..))
    }

    /// The name in reports of JSON.
    pub fn report_key(&self) -> String {
        self.key.replace(' ', "_")
    }
}
