//! The header, read twice: by our own visitor, which bounds everything and refuses what the crate lets pass (repeated
//! names and keys, unknown or repeated fields, `null` metadata, blank space before the header, other padding than spaces),
//! and then by the crate, whose verdict on offsets and sizes stands.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::METADATA;
use crate::error::{Code, Error, Result};
use crate::format::json::parse_with;
use crate::format::limits;
use crate::format::names::{check_name, shorten};
use crate::tensor::{Bytes, DType, shape};

/// A header that holds: names unique, sizes equal to shape and type, no hole, no overlap, nothing outside the file.
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// By rising offset; among tensors without bytes by name.
    pub tensors: Vec<Entry>,
}

/// One tensor; offsets count from the start of the data.
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub begin: usize,
    pub end: usize,
}

/// The offset of the data and the checked header.
pub(super) fn read(bytes: &Bytes) -> Result<(usize, Header)> {
    let text = header_text(bytes)?;
    scan(text)?;
    let (len, crate_header) = SafeTensors::read_metadata(bytes).map_err(crate_error)?;
    let data_start = 8 + len;

    let metadata: BTreeMap<_, _> =
        crate_header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut tensors = Vec::new();
    for name in crate_header.offset_keys() {
        let info = crate_header.info(&name).expect("a key of this header");
        let dtype = our_dtype(info.dtype).map_err(|e| e.field(&name))?;
        let (begin, end) = info.data_offsets;
        let len = shape::len_bytes(&info.shape, dtype).map_err(|e| e.field(&name))?;
        assert_eq!(len, end - begin, "the crate has compared them");
        tensors.push(Entry { dtype, shape: info.shape.clone(), begin, end, name });
    }
    // Tensors without bytes share an offset, and the crate's order among them changes from run to run.
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    Ok((data_start, Header { metadata, tensors }))
}

/// The JSON part, its length checked.
fn header_text(bytes: &[u8]) -> Result<&[u8]> {
    let fault = |message: String, offset| Err(Error::new(Code::SafetensorsHeader, message).at(offset));
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return fault(format!("expected a header length (8 bytes), found a file of {} bytes", bytes.len()), 0);
    };
    let len = u64::from_le_bytes(*len);
    if len > limits::HEADER_BYTES as u64 {
        return fault(format!("expected a header of at most {} bytes, found {len}", limits::HEADER_BYTES), 0);
    }
    if len > rest.len() as u64 {
        return fault(format!("expected a header of {len} bytes, found {} up to the end of the file", rest.len()), 0);
    }
    let text = &rest[..len as usize];
    match text.first() {
        Some(b'{') => {}
        None => return fault("expected a header that starts with '{', found an empty one".into(), 0),
        Some(other) => {
            return fault(format!("expected a header that starts with '{{', found {:?}", char::from(*other)), 8);
        }
    }
    let json_len = text.trim_ascii_end().len();
    match text[json_len..].iter().position(|b| *b != b' ') {
        None => Ok(text),
        Some(i) => fault("expected spaces after the header, found other blanks".into(), 8 + (json_len + i) as u64),
    }
}

/// Our own pass. It keeps nothing but the names, so that a hostile header is not on the heap twice.
fn scan(text: &[u8]) -> Result<()> {
    let state = State::default();
    parse_with(text, Top(&state), &state.fault).map_err(|e| {
        let code = if e.code() == Code::JsonSyntax { Code::SafetensorsHeader } else { e.code() };
        let located = Error::new(code, e.message()).at(8 + e.offset().unwrap_or(0));
        match state.tensor.take() {
            name if name.is_empty() => located,
            name => located.field(shorten(&name)),
        }
    })
}

fn crate_error(e: SafeTensorError) -> Error {
    let (message, tensor) = match &e {
        SafeTensorError::InvalidOffset(name) => (
            "expected data_offsets that follow the tensor before, found a hole, an overlap or a negative length".into(),
            Some(name.clone()),
        ),
        SafeTensorError::TensorInvalidInfo => {
            ("a tensor's data_offsets do not have the length of its shape and type".to_owned(), None)
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            ("expected the file to end with the last tensor, found it longer or shorter".to_owned(), None)
        }
        other => (other.to_string(), None),
    };
    let error = Error::new(Code::SafetensorsHeader, message).caused_by(e);
    match tensor {
        Some(name) => error.field(name),
        None => error,
    }
}

/// The crate's type as ours.
fn our_dtype(dtype: Dtype) -> Result<DType> {
    let name = dtype.to_string();
    DType::from_safetensors_name(&name)
        .ok_or_else(|| Error::new(Code::SafetensorsDtype, format!("found type {name}, which ptplus does not read")))
}

/// What the visitors share.
#[derive(Default)]
struct State {
    /// The entry being read.
    tensor: Cell<String>,
    /// The code of a refusal that is not about the header's syntax.
    fault: Cell<Option<Code>>,
}

impl State {
    fn refuse<E: serde::de::Error>(&self, code: Code, message: impl fmt::Display) -> E {
        self.fault.set(Some(code));
        E::custom(message)
    }
}

/// The whole header.
struct Top<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            check_name(&name).map_err(|e| state.refuse::<A::Error>(e.code(), e.message()))?;
            if names.len() as u64 > limits::TENSORS {
                return Err(A::Error::custom(format_args!("more than {} tensors", limits::TENSORS)));
            }
            if !names.insert(name.clone()) {
                state.tensor.set(name);
                return Err(state.refuse(Code::NameDuplicate, "this name occurs twice"));
            }
            let is_metadata = name == METADATA;
            state.tensor.set(name);
            if is_metadata {
                map.next_value_seed(StringMap(state))?
            } else {
                map.next_value::<TensorInfo>().map(drop)?
            }
            state.tensor.take();
        }
        Ok(())
    }
}

/// `__metadata__`.
struct StringMap<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for StringMap<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for StringMap<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        let mut len_bytes = 0;
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            check_name(&key).map_err(|e| self.0.refuse::<A::Error>(e.code(), e.message()))?;
            len_bytes += key.len() + value.len(); // parts of a text of at most 100 MB
            if len_bytes > limits::SAFETENSORS_METADATA_BYTES || keys.len() >= limits::SAFETENSORS_METADATA_KEYS {
                return Err(A::Error::custom("more or longer entries than the limit"));
            }
            if keys.contains(&key) {
                let message = format!("the key {:?} occurs twice", shorten(&key));
                return Err(self.0.refuse(Code::JsonDuplicateKey, message));
            }
            keys.insert(key);
        }
        Ok(())
    }
}

/// One tensor's entry: exactly these three fields, in an object (the crate would take a list, too).
struct TensorInfo;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only the types matter; the crate reads the values")]
struct Fields {
    dtype: String,
    shape: Dims,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for TensorInfo {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(TensorInfo)
    }
}

impl<'de> Visitor<'de> for TensorInfo {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self, A::Error> {
        Fields::deserialize(MapAccessDeserializer::new(map)).map(|_| TensorInfo)
    }
}

/// A list of at most [`limits::SAFETENSORS_DIMS`] integers.
struct Dims;

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(Dims)
    }
}

impl<'de> Visitor<'de> for Dims {
    type Value = Dims;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of non-negative integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        let mut n = 0;
        while seq.next_element::<u64>()?.is_some() {
            n += 1;
            if n > limits::SAFETENSORS_DIMS {
                return Err(A::Error::custom(format_args!("more than {} dimensions", limits::SAFETENSORS_DIMS)));
            }
        }
        Ok(Dims)
    }
}
