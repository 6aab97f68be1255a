//! Files from before PyTorch 1.6 (and `_use_new_zipfile_serialization=False`): five pickles, then raw storages.
//!
//! ```text
//!   pickle: magic number    pickle: protocol 1001    pickle: {little_endian, protocol_version, type_sizes}
//!   pickle: the object      pickle: [storage keys]   for each key: number of elements (i64), elements
//! ```
//!
//! These files have no checksum: a changed byte inside a storage cannot be noticed. Everything that is said twice
//! (keys, numbers of elements, the size of the whole) is compared.
//!
//! Source: `_legacy_save` in torch/serialization.py.

use std::collections::HashMap;
use std::ops::Range;

use super::Container;
use super::machine::{self, Pickle};
use super::value::Value;
use crate::error::{Code, Error, Result};

/// `0x1950a86a20f9469cfc6c`, little endian.
pub(super) const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The same as protocols 0 and 1 write it.
pub(super) const MAGIC_IN_TEXT: &[u8] = b"L119547037146038801333356L\n.";
const PROTOCOL_VERSION: i64 = 1001;

/// Reads the whole file: the object, its root, and where each of its storages lies.
///
/// # Errors
///
/// Those of [`machine::run`], [`Code::PickleStorage`], [`Code::PickleUnsupported`].
pub(super) fn read(file: &[u8]) -> Result<(Pickle, Value, Vec<Range<usize>>)> {
    let mut at = 0;
    let mut next = |what: &'static str| {
        let (pickle, root) = machine::run(&file[at..], at as u64, Container::Legacy)?;
        let fail = move |found: String| {
            Error::new(Code::PickleStructure, format!("expected {what}, found {found}")).at(at as u64)
        };
        at += pickle.len_bytes;
        Ok((pickle, root, fail, at))
    };

    let (pickle, root, fail, _) = next("PyTorch's magic number")?;
    match root {
        Value::BigInt(span) if pickle.arena.bytes(span) == MAGIC => {}
        other => return Err(fail(other.kind().to_owned())),
    }
    let (_, root, fail, _) = next("PyTorch's file protocol 1001")?;
    if root != Value::Int(PROTOCOL_VERSION) {
        return Err(fail(format!("{root:?}")));
    }
    let (pickle, root, fail, _) = next("a dictionary about the system")?;
    check_system(&pickle, root).map_err(|what| fail(what.to_owned()))?;

    let (object, object_root, _, _) = next("the object")?;
    let (keys, keys_root, fail, end) = next("the list of storage keys")?;
    let Value::List(_) = keys_root else { return Err(fail(keys_root.kind().to_owned())) };
    let mut known: HashMap<&str, usize> = object.storages.iter().enumerate().map(|(i, s)| (&*s.key, i)).collect();

    let mut ranges = vec![0..0; object.storages.len()];
    let mut at = end;
    for &key in keys.arena.items(keys_root) {
        let Value::Str(span) = key else { return Err(fail(format!("a list with {}", key.kind()))) };
        let key = keys.arena.text(span);
        // Removing it notices a key that comes twice, too.
        let Some(number) = known.remove(key) else {
            return Err(fail("a key that no tensor refers to, or one twice".to_owned()));
        };
        ranges[number] = storage(file, at, &object.storages[number])?;
        at = ranges[number].end;
    }
    if let Some(key) = known.keys().min() {
        return Err(Error::new(Code::PickleStorage, format!("the storage {key:?} is missing")));
    }
    if at != file.len() {
        let message = format!("{} bytes follow the last storage", file.len() - at);
        return Err(Error::new(Code::PickleStorage, message).at(at as u64));
    }
    Ok((object, object_root, ranges))
}

fn check_system(pickle: &Pickle, root: Value) -> Result<(), &'static str> {
    let get = |name: &str| {
        let mut entries = pickle.arena.entries(root).iter();
        entries.find(|(k, _)| matches!(k, Value::Str(s) if pickle.arena.text(*s) == name)).map(|&(_, v)| v)
    };
    match (get("protocol_version"), get("little_endian")) {
        (Some(Value::Int(PROTOCOL_VERSION)), Some(Value::Bool(true))) => Ok(()),
        (_, Some(Value::Bool(false))) => Err("a big-endian file"),
        _ => Err("another one"),
    }
}

/// The range of a storage's elements, after its header said what the pickle says.
fn storage(file: &[u8], at: usize, declared: &machine::DeclaredStorage) -> Result<Range<usize>> {
    const HEADER_LEN: usize = 8;
    let fail = |code, message: String| Error::new(code, message).at(at as u64);
    let header = file.get(at..).and_then(|rest| rest.first_chunk::<HEADER_LEN>());
    let truncated = || fail(Code::PickleTruncated, format!("the file ends before the storage {:?}", declared.key));
    let found = u64::from_le_bytes(*header.ok_or_else(truncated)?);
    if found != declared.n_elements {
        let message = format!("expected {} elements in storage {:?}, found {found}", declared.n_elements, declared.key);
        return Err(fail(Code::PickleStorage, message));
    }
    let start = at + HEADER_LEN;
    let len = usize::try_from(found).ok().and_then(|n| n.checked_mul(declared.dtype.block_bytes()));
    let end = len.and_then(|len| start.checked_add(len)).filter(|&end| end <= file.len());
    Ok(start..end.ok_or_else(truncated)?)
}
