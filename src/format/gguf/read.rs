//! The strict reader. Everything that a file declares is checked against [`limits`] and against the bytes left before
//! it is believed.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::value::{Array, Value, ValueType};
use super::{Gguf, KEY_ALIGNMENT, MAGIC, Metadata, padded};
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::format::limits;
use crate::format::names::check_name;
use crate::tensor::{Bytes, DType, shape};

/// Key of one byte, value type, value of one byte.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name of one byte, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

pub(super) fn parse(path: &Path, bytes: &Bytes) -> Result<Gguf> {
    let mut r = Reader { data: bytes, bytes, pos: 0 };
    let version = read_version(&mut r)?;
    let n_tensors = r.count("tensors", limits::TENSORS)?;
    let n_keys = r.count("metadata entries", limits::GGUF_KEYS)?;
    // Both tables must fit what is left. The counts are below 150,001, so nothing overflows.
    let needed = n_keys as u64 * MIN_KEY_BYTES + n_tensors as u64 * MIN_TENSOR_BYTES;
    if needed > r.left() {
        return Err(r.truncated(format!("{n_keys} metadata entries and {n_tensors} tensors"), needed));
    }
    let file: Arc<Path> = path.into();
    let metadata = read_metadata(&mut r, n_keys, file.clone())?;
    let alignment = read_alignment(&metadata)?;
    let infos = read_infos(&mut r, n_tensors)?;
    let tensors = place_tensors(&r, infos, alignment, &file)?;
    Ok(Gguf {
        path: path.to_owned(),
        files: vec![file],
        version,
        alignment,
        metadata,
        tensors,
        len_bytes: bytes.len() as u64,
    })
}

/// Versions 2 and 3 have the same layout; 3 only added the big-endian variant. Source: gguf.cpp reads both alike.
fn read_version(r: &mut Reader) -> Result<u32> {
    let magic = r.data.get(..4).unwrap_or(r.data);
    if magic == b"FUGG" {
        return Err(byte_order());
    }
    if magic != MAGIC {
        let found =
            if magic.is_empty() { "an empty file".into() } else { format!("{:?}", String::from_utf8_lossy(magic)) };
        return Err(Error::new(Code::GgufMagic, format!("expected \"GGUF\", found {found}")).at(0));
    }
    r.pos = 4;
    let version = r.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        v if (1..=3).contains(&v.swap_bytes()) => Err(byte_order()),
        v => Err(Error::new(Code::GgufVersion, format!("expected version 2 or 3, found {v}")).at(4)),
    }
}

fn byte_order() -> Error {
    Error::new(Code::GgufByteOrder, "expected a little-endian file, found a byte-swapped (big-endian) one").at(4)
}

fn read_metadata(r: &mut Reader, n_keys: usize, file: Arc<Path>) -> Result<Metadata> {
    let mut metadata = Metadata::with_capacity(n_keys, file);
    for _ in 0..n_keys {
        let start = r.pos as u64;
        let key = r.name("a key", limits::NAME_BYTES)?;
        if metadata.get(key).is_some() {
            return Err(Error::new(Code::NameDuplicate, "this key occurs twice").field(key).at(start));
        }
        let value = read_value(r).map_err(|e| e.field(key))?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_value(r: &mut Reader) -> Result<Value> {
    match r.value_type()? {
        ValueType::String => Ok(Value::String(r.string("a string", limits::GGUF_STRING_BYTES)?.to_owned())),
        ValueType::Array => Ok(Value::Array(read_array(r)?)),
        scalar => {
            let start = r.pos as u64;
            let size = scalar.size().expect("scalars have a size");
            let stored = r.take(size as u64, "a value")?;
            Value::from_le_bytes(scalar, stored).ok_or_else(|| bad_bool(stored[0], start))
        }
    }
}

fn read_array(r: &mut Reader) -> Result<Array> {
    let type_start = r.pos as u64;
    let element_type = r.value_type()?;
    if element_type == ValueType::Array {
        return Err(
            Error::new(Code::GgufValueType, "found an array of arrays, which no reader supports").at(type_start)
        );
    }
    let count_start = r.pos as u64;
    let count = r.u64("the length of an array")?;
    let min_size = element_type.size().unwrap_or(8) as u64; // a string has its length at least
    let Some(needed) = count.checked_mul(min_size).filter(|n| *n <= r.left()) else {
        let what = format!("an array of {count} {element_type}");
        return Err(r.truncated(what, count.saturating_mul(min_size)).at(count_start));
    };
    let start = r.pos;
    match element_type {
        ValueType::String => {
            for _ in 0..count {
                let start = r.pos + 8;
                let text = r.string_bytes("a string of an array", limits::GGUF_STRING_BYTES)?;
                // A vocabulary is 300,000 short strings, and most are plain ASCII.
                let plain = text.iter().fold(true, |plain, b| plain & (1..=0x7f).contains(b));
                if !plain {
                    check_text("a string of an array", text, start as u64)?;
                }
            }
        }
        _ => {
            let stored = r.take(needed, "an array")?;
            if element_type == ValueType::Bool
                && let Some(i) = stored.iter().position(|b| *b > 1)
            {
                return Err(bad_bool(stored[i], (start + i) as u64));
            }
        }
    }
    let elements = r.bytes.slice(start..r.pos).expect("just read");
    Ok(Array::checked(element_type, count as usize, elements))
}

fn bad_bool(found: u8, offset: u64) -> Error {
    Error::new(Code::GgufBool, format!("expected a boolean 0 or 1, found {found}")).at(offset)
}

fn read_alignment(metadata: &Metadata) -> Result<u32> {
    match metadata.get(KEY_ALIGNMENT) {
        None => Ok(limits::GGUF_DEFAULT_ALIGNMENT),
        Some(value) => check_alignment(value),
    }
}

/// The alignment that the value of `general.alignment` states.
///
/// # Errors
///
/// [`Code::GgufAlignment`].
pub(super) fn check_alignment(value: &Value) -> Result<u32> {
    match *value {
        Value::U32(a) if a.is_power_of_two() && a <= limits::GGUF_ALIGNMENT => Ok(a),
        ref other => Err(Error::new(
            Code::GgufAlignment,
            format!("expected a u32 power of two up to {}, found {}", limits::GGUF_ALIGNMENT, other.describe()),
        )
        .field(KEY_ALIGNMENT)),
    }
}

/// One row of the tensor table.
struct Info<'a> {
    name: &'a str,
    dtype: DType,
    /// Outermost first.
    shape: Vec<usize>,
    len_bytes: u64,
    /// From the start of the data.
    offset: u64,
    /// Where the file states the offset.
    offset_at: u64,
}

fn read_infos<'a>(r: &mut Reader<'a>, n_tensors: usize) -> Result<Vec<Info<'a>>> {
    let mut infos = Vec::with_capacity(n_tensors);
    let mut names = HashSet::with_capacity(n_tensors);
    for _ in 0..n_tensors {
        let start = r.pos as u64;
        let name = r.name("a tensor name", limits::GGUF_TENSOR_NAME_BYTES)?;
        if !names.insert(name) {
            return Err(Error::new(Code::NameDuplicate, "this tensor occurs twice").field(name).at(start));
        }
        infos.push(read_info(r, name).map_err(|e| e.field(name))?);
    }
    Ok(infos)
}

fn read_info<'a>(r: &mut Reader<'a>, name: &'a str) -> Result<Info<'a>> {
    let dims_at = r.pos as u64;
    let n_dims = r.u32("a number of dimensions")?;
    if n_dims > limits::GGUF_DIMS {
        let message = format!("expected at most {} dimensions, found {n_dims}", limits::GGUF_DIMS);
        return Err(Error::new(Code::GgufDims, message).at(dims_at));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let at = r.pos as u64;
        // ggml's dimensions are i64.
        let ne = i64::from_le_bytes(r.array("a dimension")?);
        let ne = usize::try_from(ne).map_err(|_| {
            Error::new(Code::GgufDims, format!("expected a dimension of at least 0, found {ne}")).at(at)
        })?;
        shape.push(ne);
    }
    shape.reverse(); // the one place where ggml's order becomes ours
    let type_at = r.pos as u64;
    let id = r.u32("a tensor type")?;
    let dtype = DType::from_ggml_id(id).ok_or_else(|| {
        // Source: the commented-out entries of `enum ggml_type`.
        let fate = if matches!(id, 4 | 5 | 31..=33 | 36..=38) { "removed from" } else { "unknown to" };
        Error::new(Code::GgufTensorType, format!("found type {id}, which is {fate} ggml")).at(type_at)
    })?;
    let len_bytes = sized(&shape, dtype).map_err(|e| e.at(dims_at))?;
    let offset_at = r.pos as u64;
    let offset = r.u64("an offset")?;
    Ok(Info { name, dtype, shape, len_bytes, offset, offset_at })
}

/// The bytes of a tensor. ggml multiplies dimensions and strides in i64, in its own order, and does so even where one
/// of them is 0; so the product without zeros must fit too.
pub(super) fn sized(shape: &[usize], dtype: DType) -> Result<u64> {
    let len = shape::len_bytes(shape, dtype);
    let extent =
        shape.iter().try_fold(dtype.block_bytes() as i64, |n, &d| n.checked_mul(i64::try_from(d.max(1)).ok()?));
    match (len, extent) {
        (Ok(len), Some(_)) => Ok(len as u64),
        (Err(e), Some(_)) if e.code() == Code::ShapeBlock => Err(e),
        _ => Err(Error::new(Code::GgufDims, format!("the product of the dimensions {shape:?} overflows"))),
    }
}

/// Checks the offsets and takes each tensor's bytes.
fn place_tensors(r: &Reader, infos: Vec<Info>, alignment: u32, file: &Arc<Path>) -> Result<Vec<StoredTensor>> {
    let file_len = r.data.len() as u64;
    // A file without tensors need not be padded: it has no data to align.
    let start = match padded(r.pos as u64, alignment) {
        _ if infos.is_empty() => r.pos as u64,
        Some(start) if start <= file_len => start,
        _ => return Err(r.truncated("the padding before the tensors".into(), u64::from(alignment))),
    };
    let mut tensors = Vec::with_capacity(infos.len());
    let mut end = start;
    for info in infos {
        let begin = padded(end, alignment).expect("offsets in a file are far below 2^64");
        if info.offset != begin - start {
            let message = format!("expected offset {}, found {}", begin - start, info.offset);
            return Err(Error::new(Code::GgufOffset, message).field(info.name).at(info.offset_at));
        }
        let needed = begin.checked_add(info.len_bytes).filter(|e| *e <= file_len);
        let bytes = needed.and_then(|e| r.bytes.slice(begin as usize..e as usize)).ok_or_else(|| {
            let left = file_len.saturating_sub(begin);
            let message = format!("expected {} bytes of data, found {left}", info.len_bytes);
            Error::new(Code::GgufTruncated, message).field(info.name).at(begin)
        })?;
        end = begin + info.len_bytes;
        tensors.push(StoredTensor {
            name: info.name.to_owned(),
            dtype: info.dtype,
            shape: info.shape,
            file: file.clone(),
            file_offset: begin,
            bytes,
            storage: None,
        });
    }
    // The last tensor may end the file unpadded, as some writers leave it.
    if padded(end, alignment).is_some_and(|padded_end| file_len > padded_end) {
        let message = format!("expected the file to end here, found {} more bytes", file_len - end);
        return Err(Error::new(Code::GgufTrailing, message).at(end));
    }
    Ok(tensors)
}

/// A position in the file's bytes; everything read before the data goes through it.
struct Reader<'a> {
    data: &'a [u8],
    /// The same bytes, to take lazy ranges from.
    bytes: &'a Bytes,
    pos: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.data.len() - self.pos) as u64
    }

    fn truncated(&self, what: String, needed: u64) -> Error {
        let message =
            format!("expected {what} ({needed} bytes), found {} bytes up to the end of the file", self.left());
        Error::new(Code::GgufTruncated, message).at(self.pos as u64)
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(self.truncated(what.into(), n));
        }
        let end = self.pos + n as usize;
        if end > limits::GGUF_HEADER_BYTES {
            let message = format!("metadata and tensor table have more than {} bytes", limits::GGUF_HEADER_BYTES);
            return Err(Error::new(Code::GgufLimit, message).at(self.pos as u64));
        }
        let taken = &self.data[self.pos..end];
        self.pos = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("took N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<usize> {
        let at = self.pos as u64;
        let n = self.u64(what)?;
        if n > limit {
            return Err(Error::new(Code::GgufLimit, format!("expected at most {limit} {what}, found {n}")).at(at));
        }
        Ok(n as usize)
    }

    fn value_type(&mut self) -> Result<ValueType> {
        let at = self.pos as u64;
        let id = self.u32("a value type")?;
        ValueType::from_id(id).ok_or_else(|| {
            Error::new(Code::GgufValueType, format!("expected a value type from 0 to 12, found {id}")).at(at)
        })
    }

    /// The bytes of a string of at most `limit`, not yet checked to be text.
    fn string_bytes(&mut self, what: &str, limit: u64) -> Result<&'a [u8]> {
        let at = self.pos as u64;
        let len = self.u64(what)?;
        if len > self.left() {
            return Err(self.truncated(what.into(), len).at(at));
        }
        if len > limit {
            let message = format!("expected {what} of at most {limit} bytes, found {len}");
            return Err(Error::new(Code::GgufLimit, message).at(at));
        }
        self.take(len, what)
    }

    /// A string of at most `limit` bytes.
    fn string(&mut self, what: &str, limit: u64) -> Result<&'a str> {
        let start = self.pos as u64 + 8;
        check_text(what, self.string_bytes(what, limit)?, start)
    }

    fn name(&mut self, what: &str, limit: usize) -> Result<&'a str> {
        let at = self.pos as u64;
        let name = self.string(what, limit as u64)?;
        check_name(name).map_err(|e| e.at(at))?;
        Ok(name)
    }
}

/// Refuses what is not UTF-8 and what holds NUL; `start` is where the text stands in the file.
fn check_text<'a>(what: &str, text: &'a [u8], start: u64) -> Result<&'a str> {
    let fault = |message: String, i: usize| Error::new(Code::GgufString, message).at(start + i as u64);
    match text.iter().position(|b| *b == 0) {
        Some(i) => Err(fault(format!("{what} holds NUL"), i)),
        None => std::str::from_utf8(text).map_err(|e| fault(format!("{what} is not UTF-8"), e.valid_up_to())),
    }
}
