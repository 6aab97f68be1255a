//! The header, read twice: by our own visitor, which bounds everything and refuses what the crate lets pass (repeated
//! names and keys, unknown or repeated fields, `null` metadata, blank space before the header, other padding than spaces),
//! and then by the crate, whose verdict on offsets and sizes stands. Where both would refuse, ours comes first, since it
//! names tensor and offset.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};

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
    let data_len = scan(text)?;
    let data_found = (bytes.len() - 8 - text.len()) as u64;
    if data_len != data_found {
        let message = format!("expected {data_len} bytes of data after the header, found {data_found}");
        return Err(Error::new(Code::SafetensorsHeader, message).at(8 + text.len() as u64));
    }
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

/// Our own pass; gives the end of the last tensor. It keeps nothing but the names, so that a hostile header is not on
/// the heap twice.
fn scan(text: &[u8]) -> Result<u64> {
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
    type Value = u64;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<u64, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        let state = self.0;
        let mut names = HashSet::new();
        let (mut n_dims, mut data_len) = (0, 0);
        while let Some(name) = map.next_key::<String>()? {
            check_name(&name).map_err(|e| state.refuse::<A::Error>(e.code(), e.message()))?;
            if !names.insert(name.clone()) {
                state.tensor.set(name);
                return Err(state.refuse(Code::NameDuplicate, "this name occurs twice"));
            }
            let is_metadata = name == METADATA;
            if !is_metadata && names.len() - usize::from(names.contains(METADATA)) > limits::SAFETENSORS_TENSORS {
                return Err(A::Error::custom(format_args!("more than {} tensors", limits::SAFETENSORS_TENSORS)));
            }
            state.tensor.set(name);
            if is_metadata {
                map.next_value_seed(StringMap(state))?
            } else {
                let tensor = map.next_value::<TensorInfo>()?;
                data_len = data_len.max(tensor.end);
                n_dims += tensor.n_dims;
                if n_dims > limits::SAFETENSORS_ALL_DIMS {
                    let message = format_args!("more than {} dimensions in all", limits::SAFETENSORS_ALL_DIMS);
                    return Err(A::Error::custom(message));
                }
            }
            state.tensor.take();
        }
        Ok(data_len)
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

/// What [`Top`] needs of a tensor whose size agrees with its shape and type.
struct TensorInfo {
    n_dims: usize,
    end: u64,
}

/// Exactly these three fields, in an object (the crate would take a list, too).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    dtype: String,
    shape: Dims,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for TensorInfo {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(TensorInfoVisitor)
    }
}

struct TensorInfoVisitor;

impl<'de> Visitor<'de> for TensorInfoVisitor {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TensorInfo, A::Error> {
        let Fields { dtype, shape: Dims(shape), data_offsets: (begin, end) } =
            Fields::deserialize(MapAccessDeserializer::new(map))?;
        let name: StrDeserializer<A::Error> = dtype.as_str().into_deserializer();
        Dtype::deserialize(name)?; // one that the format has; whether it is one of ours is decided later
        if let Some(dtype) = DType::from_safetensors_name(&dtype) {
            let expected = shape::len_bytes(&shape, dtype).map_err(|e| A::Error::custom(e.message()))? as u64;
            if end.checked_sub(begin) != Some(expected) {
                let message = format_args!("expected {expected} bytes for {dtype} {shape:?}, found {begin}..{end}");
                return Err(A::Error::custom(message));
            }
        }
        Ok(TensorInfo { n_dims: shape.len(), end })
    }
}

/// A list of at most [`limits::SAFETENSORS_DIMS`] integers.
struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(DimsVisitor)
    }
}

struct DimsVisitor;

impl<'de> Visitor<'de> for DimsVisitor {
    type Value = Dims;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of non-negative integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
        let mut dims = Vec::new();
        while let Some(d) = seq.next_element()? {
            if dims.len() == limits::SAFETENSORS_DIMS {
                return Err(A::Error::custom(format_args!("more than {} dimensions", limits::SAFETENSORS_DIMS)));
            }
            dims.push(d);
        }
        Ok(Dims(dims))
    }
}
