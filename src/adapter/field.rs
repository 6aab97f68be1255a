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

/// Exactly.
impl std::fmt::Display for FieldValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FieldValue::Name(name) => f.write_str(name),
            FieldValue::Scale(x) => x.fmt(f),
            FieldValue::Count(n) => n.fmt(f),
        }
    }
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
            FieldValue::Scale(x) => (x as f32).to_string(),
            other => other.to_string(),
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

/// Where an adapter whose configuration is a `C` has a field; which of them is its type. In GGUF they are text, F32 and U32.
pub enum Get<C> {
    /// See [`FieldValue::Name`].
    Name(fn(&C) -> &'static str),
    /// See [`FieldValue::Scale`].
    Scale(fn(&C) -> f64),
    /// See [`FieldValue::Count`].
    Count(fn(&C) -> usize),
}

/// A field of an adapter whose configuration is a `C`.
pub struct Field<C> {
    /// Key of `adapter_config.json`, and name in messages.
    pub key: &'static str,
    /// Whether `adapter_config.json` has it; the others follow from tensors.
    pub is_in_config: bool,
    /// Field of `adapter.{kind}.` in GGUF.
    pub gguf: &'static str,
    /// What an adapter has.
    pub get: Get<C>,
    /// What settles it where an adapter does not state it.
    pub settled_by: SettledBy,
}

/// What settles a field that an adapter does not state.
#[derive(Debug, Clone, Copy)]
pub enum SettledBy {
    /// This flag with what it takes, or a probe. No tensor and no base says it: a convention.
    Flag(&'static str),
    /// The size that a base has.
    Base(fn(&BaseConfig) -> usize),
    /// A size that follows from tensors and other sizes.
    Sizes,
}

impl<C> Field<C> {
    /// What an adapter of this configuration has.
    pub fn of(&self, config: &C) -> FieldValue {
        match self.get {
            Get::Name(get) => FieldValue::Name(get(config)),
            Get::Scale(get) => FieldValue::Scale(get(config)),
            Get::Count(get) => FieldValue::Count(get(config)),
        }
    }

    /// Whether nothing but a statement or a probe settles it.
    pub fn is_convention(&self) -> bool {
        matches!(self.settled_by, SettledBy::Flag(..))
    }
}

/// The name of the field with this key in reports of JSON.
pub fn report_key(key: &str) -> String {
    key.replace(' ', "_")
}
