//! Metadata values as JSON, for reports and digests.

use serde_json::{Value as Json, json};

use super::value::{Array, Value, ValueType};
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

/// Between an array's type and that of its elements.
const ARRAY_OF: &str = "arr of ";

impl Value {
    /// The value as JSON that keeps its type: `{"type": "arr of u8", "value": [1, 2]}`.
    pub fn to_typed_json(&self) -> Json {
        json!({ "type": self.type_name(), "value": self.to_json(None) })
    }

    /// The inverse of [`to_typed_json`](Self::to_typed_json); `None` for anything else, and for strings with NUL, which
    /// GGUF cannot hold.
    pub fn from_typed_json(json: &Json) -> Option<Value> {
        let object = json.as_object().filter(|o| o.len() == 2)?;
        let (name, value) = (object.get("type")?.as_str()?, object.get("value")?);
        let type_of = |name: &str| ValueType::from_name(name).filter(|t| *t != ValueType::Array);
        match name.strip_prefix(ARRAY_OF) {
            None => scalar(type_of(name)?, value),
            Some(element) => {
                let (t, items) = (type_of(element)?, value.as_array()?);
                let mut bytes = Vec::new();
                for item in items {
                    scalar(t, item)?.write(&mut bytes);
                }
                Some(Value::Array(Array::checked(t, items.len(), bytes.into())))
            }
        }
    }
}

fn scalar(t: ValueType, json: &Json) -> Option<Value> {
    let float = || match json {
        Json::String(name) if ["NaN", "inf", "-inf"].contains(&name.as_str()) => name.parse::<f64>().ok(),
        other => other.as_f64(),
    };
    Some(match t {
        ValueType::U8 => Value::U8(json.as_u64()?.try_into().ok()?),
        ValueType::I8 => Value::I8(json.as_i64()?.try_into().ok()?),
        ValueType::U16 => Value::U16(json.as_u64()?.try_into().ok()?),
        ValueType::I16 => Value::I16(json.as_i64()?.try_into().ok()?),
        ValueType::U32 => Value::U32(json.as_u64()?.try_into().ok()?),
        ValueType::I32 => Value::I32(json.as_i64()?.try_into().ok()?),
        ValueType::U64 => Value::U64(json.as_u64()?),
        ValueType::I64 => Value::I64(json.as_i64()?),
        ValueType::F32 => {
            let x = float()?;
            Value::F32(Some(x as f32).filter(|y| y.is_finite() == x.is_finite())?)
        }
        ValueType::F64 => Value::F64(float()?),
        ValueType::Bool => Value::Bool(json.as_bool()?),
        ValueType::String => Value::String(json.as_str().filter(|s| !s.contains('\0'))?.to_owned()),
        ValueType::Array => return None,
    })
}

fn number(v: f64) -> Json {
    serde_json::Number::from_f64(v).map_or_else(|| v.to_string().into(), Json::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_json_gives_every_value_back() {
        let values = [
            Value::U8(255),
            Value::I8(-128),
            Value::U16(65_535),
            Value::I16(-32_768),
            Value::U32(u32::MAX),
            Value::I32(i32::MIN),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F32(0.1),
            Value::F32(f32::MIN_POSITIVE / 8.0),
            Value::F32(f32::NEG_INFINITY),
            Value::F64(-0.0),
            Value::F64(1e-300),
            Value::Bool(true),
            Value::String("\u{1b} é\n".into()),
            Value::Array(Array::from_strs(&["", "a"])),
            Value::Array(Array::from_f32(&[0.1, f32::INFINITY])),
            Value::Array(Array::from_u32(&[])),
        ];
        for value in values {
            let text = value.to_typed_json().to_string();
            let read = crate::format::json::parse(text.as_bytes()).unwrap();
            assert_eq!(Value::from_typed_json(&read), Some(value), "{text}");
        }
        let nan = Value::from_typed_json(&Value::F32(f32::NAN).to_typed_json());
        assert!(matches!(nan, Some(Value::F32(x)) if x.is_nan()));
    }

    #[test]
    fn what_is_no_value_of_its_type_is_none() {
        for text in [
            r#"{"type":"u8","value":256}"#,
            r#"{"type":"u8","value":-1}"#,
            r#"{"type":"i8","value":"1"}"#,
            r#"{"type":"u32","value":1.0}"#,
            r#"{"type":"f32","value":1e39}"#,
            r#"{"type":"f32","value":"1"}"#,
            r#"{"type":"bool","value":1}"#,
            r#"{"type":"str","value":"a\u0000"}"#,
            r#"{"type":"str","value":null}"#,
            r#"{"type":"arr","value":[]}"#,
            r#"{"type":"arr of arr","value":[]}"#,
            r#"{"type":"arr of u8","value":[1,"2"]}"#,
            r#"{"type":"arr of u8","value":1}"#,
            r#"{"type":"text","value":"a"}"#,
            r#"{"type":"str"}"#,
            r#"{"type":"str","value":"a","more":1}"#,
            r#"["str","a"]"#,
            r#""a""#,
        ] {
            let json = crate::format::json::parse(text.as_bytes()).unwrap();
            assert_eq!(Value::from_typed_json(&json), None, "{text}");
        }
    }
}
