//! Metadata values. Scalars and strings are owned; an array stays in the file's bytes until it is read, so that a
//! vocabulary of 150,000 strings costs nothing to open.

use std::fmt;

use crate::tensor::Bytes;

macro_rules! value_types {
    ($($variant:ident $id:literal $name:literal $size:expr;)*) => {
        /// Type of a metadata value.
        #[allow(missing_docs)] // the names are the documentation
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ValueType { $($variant,)* }

        impl ValueType {
            /// The number in GGUF files. Source: `enum gguf_type` in gguf.h.
            pub const fn id(self) -> u32 { match self { $(ValueType::$variant => $id,)* } }
            /// The type with this number.
            pub const fn from_id(id: u32) -> Option<Self> { match id { $($id => Some(ValueType::$variant),)* _ => None } }
            /// The type with this name.
            pub fn from_name(name: &str) -> Option<Self> { match name { $($name => Some(ValueType::$variant),)* _ => None } }
            /// llama.cpp's name of the type.
            pub const fn name(self) -> &'static str { match self { $(ValueType::$variant => $name,)* } }
            /// Bytes of one value; `None` for strings and arrays, whose size varies.
            pub const fn size(self) -> Option<usize> { match self { $(ValueType::$variant => $size,)* } }
        }
    };
}

value_types! {
    U8 0 "u8" Some(1);
    I8 1 "i8" Some(1);
    U16 2 "u16" Some(2);
    I16 3 "i16" Some(2);
    U32 4 "u32" Some(4);
    I32 5 "i32" Some(4);
    F32 6 "f32" Some(4);
    Bool 7 "bool" Some(1);
    String 8 "str" None;
    Array 9 "arr" None;
    U64 10 "u64" Some(8);
    I64 11 "i64" Some(8);
    F64 12 "f64" Some(8);
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One metadata value.
#[allow(missing_docs)] // the names are the documentation
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The type of this value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// `str`, or `arr of str` for an array.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(a) => format!("arr of {}", a.element_type()),
            other => other.value_type().to_string(),
        }
    }

    /// For messages: the type, and the value where it is short.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Array(a) => format!("arr of {} {}", a.len, a.element_type),
            Value::String(_) => self.type_name(),
            _ => format!("{} {self}", self.type_name()),
        }
    }

    /// The value as a non-negative integer, if it is one, of whatever integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A scalar of type `t` from its little-endian bytes; `None` for strings and arrays, for a wrong number of bytes
    /// and for a boolean that is neither 0 nor 1.
    pub(super) fn from_le_bytes(t: ValueType, b: &[u8]) -> Option<Value> {
        Some(match t {
            ValueType::U8 => Value::U8(u8::from_le_bytes(b.try_into().ok()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(b.try_into().ok()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(b.try_into().ok()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(b.try_into().ok()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(b.try_into().ok()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(b.try_into().ok()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(b.try_into().ok()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(b.try_into().ok()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(b.try_into().ok()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(b.try_into().ok()?)),
            ValueType::Bool => match b {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Appends the value as GGUF stores it, without its type.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => write_string(v, out),
            Value::Array(a) => {
                out.extend(a.element_type.id().to_le_bytes());
                out.extend((a.len as u64).to_le_bytes());
                out.extend_from_slice(&a.bytes);
            }
        }
    }
}

/// Short form for tables: strings in quotes, of a long array the number and type of its elements.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Arrays up to this length are shown in full: a list of layers is worth reading, a vocabulary is not.
        const SHOWN: usize = 64;
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => fmt::Debug::fmt(v, f),
            Value::Array(a) if a.len > SHOWN => write!(f, "[{} x {}]", a.len, a.element_type),
            Value::Array(a) => {
                f.write_str("[")?;
                for (i, v) in a.iter().enumerate() {
                    write!(f, "{}{v}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Appends a string as GGUF stores it: length as u64, then the bytes.
pub(super) fn write_string(s: &str, out: &mut Vec<u8>) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

/// An array of scalars or strings, kept as GGUF stores it and decoded on demand.
#[derive(Clone)]
pub struct Array {
    element_type: ValueType,
    len: usize,
    /// The elements as stored; whoever builds an `Array` has checked that they are `len` valid ones.
    bytes: Bytes,
}

impl Array {
    /// Wraps stored elements that a reader has checked.
    pub(super) fn checked(element_type: ValueType, len: usize, bytes: Bytes) -> Self {
        Array { element_type, len, bytes }
    }

    /// An array of u32.
    pub fn from_u32(values: &[u32]) -> Self {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Array { element_type: ValueType::U32, len: values.len(), bytes: bytes.into() }
    }

    /// An array of i32.
    pub fn from_i32(values: &[i32]) -> Self {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Array { element_type: ValueType::I32, len: values.len(), bytes: bytes.into() }
    }

    /// An array of f32.
    pub fn from_f32(values: &[f32]) -> Self {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Array { element_type: ValueType::F32, len: values.len(), bytes: bytes.into() }
    }

    /// An array of bool.
    pub fn from_bools(values: &[bool]) -> Self {
        let bytes: Vec<u8> = values.iter().map(|v| u8::from(*v)).collect();
        Array { element_type: ValueType::Bool, len: values.len(), bytes: bytes.into() }
    }

    /// An array of strings.
    pub fn from_strs<S: AsRef<str>>(values: &[S]) -> Self {
        let mut bytes = Vec::new();
        values.iter().for_each(|v| write_string(v.as_ref(), &mut bytes));
        Array { element_type: ValueType::String, len: values.len(), bytes: bytes.into() }
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the elements as stored.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        let fixed = self.element_type.size();
        let scalars = fixed.map(|size| self.bytes.chunks_exact(size));
        let scalars = scalars.into_iter().flatten().filter_map(|b| Value::from_le_bytes(self.element_type, b));
        scalars.chain(self.strs().into_iter().flatten().map(|s| Value::String(s.to_owned())))
    }

    /// The elements of an array of strings; `None` for other types.
    pub fn strs(&self) -> Option<impl Iterator<Item = &str>> {
        (self.element_type == ValueType::String).then(|| Strs { rest: &self.bytes })
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        self.element_type == other.element_type && self.len == other.len && *self.bytes == *other.bytes
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} x {}]", self.len, self.element_type)
    }
}

/// Length-prefixed strings. They were checked when the array was made; should the file be rewritten under the memory
/// map since, the iteration ends early rather than panicking.
struct Strs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Strs<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (len, rest) = self.rest.split_first_chunk::<8>()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_are_inverse() {
        for id in 0..13 {
            assert_eq!(ValueType::from_id(id).unwrap().id(), id);
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn arrays_decode_what_they_encode() {
        let a = Array::from_u32(&[0, 7, u32::MAX]);
        assert_eq!(a.iter().collect::<Vec<_>>(), [Value::U32(0), Value::U32(7), Value::U32(u32::MAX)]);
        assert!(a.strs().is_none());
        let s = Array::from_strs(&["", "é", "abc"]);
        assert_eq!(s.strs().unwrap().collect::<Vec<_>>(), ["", "é", "abc"]);
        assert_eq!(Value::Array(s).to_string(), "[\"\", \"é\", \"abc\"]");
    }

    #[test]
    fn integers_of_any_type_that_fit_are_integers() {
        for v in [Value::U8(5), Value::I8(5), Value::U16(5), Value::I16(5), Value::I32(5), Value::U64(5), Value::I64(5)]
        {
            assert_eq!(v.as_u64(), Some(5));
        }
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::F32(5.0).as_u64(), None);
        assert_eq!(Value::Bool(true).as_u64(), None);
    }
}
