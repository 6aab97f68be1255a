//! What values cost, beside what minijinja counts: the parts of lists and dicts, and texts before they are made.

use std::fmt::{self, Write as _};
use std::io;

use minijinja::value::{DynObject, ObjectRepr, Tuple};
use minijinja::{Error, ErrorKind, State, Value};

/// Levels of lists and dicts. The schemas of tools, the deepest that templates see, have some ten.
pub(super) const LEVELS: usize = 32;

/// Bytes that cost as much as one step, as in minijinja.
pub(super) const STEP_BYTES: usize = 64;

/// Bytes of one value in a list.
pub(super) const VALUE_BYTES: usize = 32;

pub(super) fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// What is owed for parts and bytes until it makes whole steps.
struct Bill<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    bytes: usize,
}

impl<'a, 'b, 'c> Bill<'a, 'b, 'c> {
    fn new(state: &'a State<'b, 'c>) -> Self {
        Bill { state, bytes: 0 }
    }

    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        let steps = self.bytes / STEP_BYTES;
        self.bytes %= STEP_BYTES;
        if steps == 0 { Ok(()) } else { self.state.consume_fuel(steps as u64) }
    }
}

/// `value` with its lists and dicts copied, so that nothing in it is computed later, each part paid for.
/// Namespaces, macros and the like stay what they are, or are refused where there is to be `data_alone`.
pub(super) fn copied(state: &State, value: &Value, data_alone: bool, levels: usize) -> Result<Value, Error> {
    copy(&mut Bill::new(state), value, data_alone, levels)
}

fn copy(bill: &mut Bill, value: &Value, data_alone: bool, levels: usize) -> Result<Value, Error> {
    bill.add(VALUE_BYTES)?;
    let Some(object) = value.as_object() else { return Ok(value.clone()) };
    if object.repr() == ObjectRepr::Plain || is_minijinjas_own(object) {
        return match data_alone {
            true => Err(refused("a namespace holds text, numbers, lists and dicts alone")),
            false => Ok(value.clone()),
        };
    }
    let Some(below) = levels.checked_sub(1) else {
        return Err(refused(format!("lists and dicts nest more than {LEVELS} levels")));
    };
    let mut copy = |part: Value| copy(bill, &part, data_alone, below);
    if let (ObjectRepr::Map, Some(pairs)) = (object.repr(), object.try_iter_pairs()) {
        let pairs = pairs.map(|(key, value)| Ok((copy(key)?, copy(value)?)));
        return Ok(Value::from_pairs(pairs.collect::<Result<Vec<(Value, Value)>, Error>>()?));
    }
    let Some(parts) = object.try_iter() else { return Ok(value.clone()) };
    let parts = parts.map(copy).collect::<Result<Vec<Value>, Error>>()?;
    Ok(if value.is_tuple() { Value::from(Tuple::from(parts)) } else { Value::from(parts) })
}

/// Charges for all that `value` holds; the result is what that is, in bytes.
pub(super) fn pay(state: &State, value: &Value) -> Result<usize, Error> {
    let mut bill = Bill::new(state);
    size(&mut bill, value)
}

fn size(bill: &mut Bill, value: &Value) -> Result<usize, Error> {
    let own = value.as_str().map_or(VALUE_BYTES, str::len);
    bill.add(own)?;
    let Some(object) = value.as_object() else { return Ok(own) };
    let mut bytes = own;
    if let (ObjectRepr::Map, Some(pairs)) = (object.repr(), object.try_iter_pairs()) {
        for (key, value) in pairs {
            bytes += size(bill, &key)? + size(bill, &value)?;
        }
    } else if let Some(parts) = object.try_iter() {
        for part in parts {
            bytes += size(bill, &part)?;
        }
    }
    Ok(bytes)
}

/// Charges for `value` and `given`, and once more for each [`STEP_BYTES`] of what is given: a filter may go through the
/// one for every part of the other.
pub(super) fn pay_for_both(state: &State, value: &Value, given: &[Value]) -> Result<(), Error> {
    let bytes = pay(state, value)?;
    let mut more = 0;
    for given in given {
        more += pay(state, given)?;
    }
    let steps = (bytes / STEP_BYTES + 1).saturating_mul(more / STEP_BYTES);
    state.consume_fuel(steps as u64)
}

/// Whether it is a namespace, a macro or a `loop`, whose types minijinja keeps to itself.
fn is_minijinjas_own(object: &DynObject) -> bool {
    ["::Namespace", "::Macro", "::Loop"].iter().any(|name| object.type_name().ends_with(name))
}

/// Charges for the text of a list or dict before it is made.
pub(super) fn pay_for_text(state: &State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    let mut counted = Counted { left: bytes_left(state), text: None };
    if write!(counted, "{value}").is_err() {
        return Err(ErrorKind::OutOfFuel.into());
    }
    state.consume_fuel(((bytes_left(state) - counted.left) / STEP_BYTES) as u64)
}

/// Charges for the text that the parts of `value` make with so many bytes between.
pub(super) fn pay_for_joined(state: &State, value: &Value, between: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return state.consume_fuel((text.len().saturating_mul(between + 1) / STEP_BYTES) as u64);
    }
    let Ok(parts) = value.try_iter() else { return Ok(()) };
    for part in parts {
        pay_for_text(state, &part)?;
        let len = part.as_str().map_or(0, str::len) + between;
        state.consume_fuel(1 + (len / STEP_BYTES) as u64)?;
    }
    Ok(())
}

/// Charges for the list that the parts of a text become.
pub(super) fn pay_for_parts(state: &State, value: &Value) -> Result<(), Error> {
    let bytes = value.as_str().map_or(0, str::len).saturating_mul(VALUE_BYTES);
    state.consume_fuel((bytes / STEP_BYTES) as u64)
}

pub(super) fn bytes_left(state: &State) -> usize {
    let steps = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    usize::try_from(steps).map_or(usize::MAX, |n| n.saturating_mul(STEP_BYTES))
}

/// Counts text, and keeps it where it is wanted; more than may be is an error.
pub(super) struct Counted {
    pub left: usize,
    pub text: Option<Vec<u8>>,
}

impl Counted {
    fn take(&mut self, bytes: &[u8]) -> Option<()> {
        self.left = self.left.checked_sub(bytes.len())?;
        self.text.iter_mut().for_each(|text| text.extend_from_slice(bytes));
        Some(())
    }
}

impl fmt::Write for Counted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.take(text.as_bytes()).ok_or(fmt::Error)
    }
}

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map(|()| bytes.len()).ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
