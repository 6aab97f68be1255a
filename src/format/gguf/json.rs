//! Metadata values as JSON, for reports and digests.

use serde_json::{Value as Json, json};

use super::Value;
use crate::format::names::cut;

/// Characters of a string where a value is shown in short: more than any chat template has.
const SHOWN_CHARS: usize = 1 << 18;

impl Value {
    /// The value as JSON. An array of more than `shown` elements becomes its type, length and first elements, and a
    /// string of more than 262,144 characters its length and beginning. JSON has no NaN and no infinity: such a float
    /// becomes its name.
    pub fn to_json(&self, shown: Option<usize>) -> Json {
        match self {
            Value::U8(v) => (*v).into(),
            Value::I8(v) => (*v).into(),
            Value::U16(v) => (*v).into(),
            Value::I16(v) => (*v).into(),
            Value::U32(v) => (*v).into(),
            Value::I32(v) => (*v).into(),
            Value::U64(v) => (*v).into(),
            Value::I64(v) => (*v).into(),
            // The shortest decimal of the F32, not of the F64 beside it.
            Value::F32(v) => number(v.to_string().parse().unwrap_or(f64::from(*v))),
            Value::F64(v) => number(*v),
            Value::Bool(v) => (*v).into(),
            Value::String(v) if shown.is_some() && v.chars().nth(SHOWN_CHARS).is_some() => {
                json!({ "len_bytes": v.len(), "first": cut(v, SHOWN_CHARS) })
            }
            Value::String(v) => v.as_str().into(),
            // Arrays hold no arrays, so this recursion is one step deep.
            Value::Array(a) => match shown.filter(|n| *n < a.len()) {
                Some(n) => json!({
                    "element_type": a.element_type().name(),
                    "len": a.len(),
                    "first": a.iter().take(n).map(|v| v.to_json(None)).collect::<Vec<_>>(),
                }),
                None => a.iter().map(|v| v.to_json(None)).collect::<Vec<_>>().into(),
            },
        }
    }
}

fn number(v: f64) -> Json {
    serde_json::Number::from_f64(v).map_or_else(|| v.to_string().into(), Json::Number)
}
