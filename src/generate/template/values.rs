//! The functions, filters, tests and methods that templates call on values, each paid for: what nests, and everything that
//! makes much of little.

use std::io;
use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter, filters, functions};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::cost::{
    Counted, LEVELS, STEP_BYTES, VALUE_BYTES, bytes_left, copied, pay, pay_for_both, pay_for_joined, pay_for_parts,
    pay_for_text, refused,
};

/// The filter for values that are made: a copy of lists and dicts, namespaces and macros as they are.
pub(super) const PLAIN: &str = "ptplus_plain";

/// The filter for values that go into a namespace: data alone, so that no namespace holds itself.
pub(super) const STORED: &str = "ptplus_stored";

/// The filter for values that are read as a whole: charges for all that they hold.
pub(super) const PAID: &str = "ptplus_paid";

/// The filter that changes nothing: minijinja charges for texts that pass a filter.
pub(super) const AS_IT_IS: &str = "ptplus_as_it_is";

/// The filter that applies the filter of the name that is its first argument.
pub(super) const APPLY: &str = "ptplus_apply";

/// The test that performs the test of the name that is its first argument.
pub(super) const TEST: &str = "ptplus_test";

/// minijinja's own `join`.
const JOIN: &str = "ptplus_join";

/// Filters that look at a value's kind and length alone.
const CHEAP_FILTERS: [&str; 6] = ["count", "d", "default", "first", "length", "safe"];

/// Tests that look into the value.
const COSTLY_TESTS: [&str; 21] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "endingwith",
    "eq",
    "equalto",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "le",
    "lessthan",
    "lower",
    "lt",
    "ne",
    "sameas",
    "startingwith",
    "upper",
];

/// Most digits of a width or an index in `str.format`.
const FORMAT_DIGITS: usize = 3;

/// Largest number in `range`, whose arithmetic is minijinja's; it has at most 100,000 values.
const LARGEST_IN_RANGE: isize = 1 << 32;

/// Puts the functions, filters and tests in place that templates expect, each with its bounds.
pub(super) fn set_up(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        pay_for_text(state, value)?;
        escape_formatter(out, state, value)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(refused(format!("{RAISED}{message}")))
    });
    environment.add_function("range", range);
    environment.add_function("namespace", namespace);
    environment.add_function("dict", |state: &State, given: Option<Value>, more: Kwargs| {
        copied(state, &functions::dict(given, more)?, false, LEVELS)
    });
    environment.remove_global("debug");
    // Not in Jinja, or in no template: each nests its input or makes lists of any length.
    for name in ["batch", "slice", "zip", "chain", "groupby", "pprint"] {
        environment.remove_filter(name);
    }
    environment.add_filter(PLAIN, |state: &State, value: Value| copied(state, &value, false, LEVELS));
    environment.add_filter(STORED, |state: &State, value: Value| copied(state, &value, true, LEVELS));
    environment.add_filter(PAID, |state: &State, value: Value| pay(state, &value).map(|_| value));
    environment.add_filter(AS_IT_IS, |value: Value| value);
    environment.add_filter(APPLY, apply);
    environment.add_test(TEST, test);
    for (name, own) in COMPARING {
        environment
            .add_filter(name, move |state: &mut State, values: Rest<ValueOrKwargs>| compare_all(state, own, values));
    }
    environment.add_filter(COMPARING[0].1, filters::sort);
    environment.add_filter(COMPARING[1].1, filters::min);
    environment.add_filter(COMPARING[2].1, filters::max);
    environment.add_filter(COMPARING[3].1, filters::unique);
    environment.add_filter(COMPARING[4].1, filters::dictsort);
    environment.add_filter(COMPARING[5].1, filters::sum);
    environment.add_filter("tojson", to_json);
    environment.add_filter(JOIN, filters::join);
    environment.add_filter("join", join);
    environment.add_filter("string", |state: &State, value: Value| {
        pay_for_text(state, &value)?;
        filters::string(state, &value)
    });
    environment.add_filter("split", |state: &State, value: Value, by: Option<Arc<str>>, n: Option<i64>| {
        pay_for_parts(state, &value)?;
        filters::split(&value, by, n)
    });
    environment.add_filter("lines", |state: &State, value: Value| {
        pay_for_parts(state, &value)?;
        filters::lines(&value)
    });
    // minijinja's says yes to none.
    environment.add_test("iterable", |v: Value| !v.is_none() && v.try_iter().is_ok());
}

/// Tells what a template raises from what goes wrong in it.
pub(super) const RAISED: &str = "the template refuses: ";

/// Numbers that minijinja's own arithmetic cannot overflow on.
fn range(lower: isize, upper: Option<isize>, step: Option<isize>) -> Result<Value, Error> {
    let numbers = [Some(lower), upper, step];
    if numbers.into_iter().flatten().any(|n| n.unsigned_abs() > LARGEST_IN_RANGE.unsigned_abs()) {
        return Err(refused(format!("range takes numbers up to {LARGEST_IN_RANGE}")));
    }
    functions::range(lower, upper, step)
}

/// A namespace never holds another: through one it could hold itself, and printing it would not end.
fn namespace(state: &State, values: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let values = copied(state, &functions::dict(values, more)?, true, LEVELS)?;
    functions::namespace(Some(ValueOrKwargs::from(values)))
}

fn apply(state: &mut State, value: Value, name: &str, given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = vec![value];
    args.extend(given.into_values());
    if !CHEAP_FILTERS.contains(&name) {
        pay_for_both(state, &args[0], &args[1..])?;
    }
    let made = state.apply_filter(name, &args).map_err(|e| unknown(e, ErrorKind::UnknownFilter, name))?;
    copied(state, &made, false, LEVELS)
}

fn test(state: &mut State, value: Value, name: &str, given: Rest<ValueOrKwargs>) -> Result<bool, Error> {
    let mut args = vec![value];
    args.extend(given.into_values());
    if COSTLY_TESTS.contains(&name) {
        for arg in &args {
            pay(state, arg)?;
        }
    }
    state.perform_test(name, &args).map_err(|e| unknown(e, ErrorKind::UnknownTest, name))
}

/// minijinja's words where it meets such a name in a template.
fn unknown(e: Error, kind: ErrorKind, name: &str) -> Error {
    if e.kind() != kind || e.detail().is_some() {
        return e;
    }
    let what = if kind == ErrorKind::UnknownFilter { "filter" } else { "test" };
    Error::new(kind, format!("{what} {name} is unknown"))
}

/// Filters that hold each part of a list against others, or add it to the sum of those before, and what minijinja's
/// own are called here.
const COMPARING: [(&str, &str); 6] = [
    ("sort", "ptplus_sort"),
    ("min", "ptplus_min"),
    ("max", "ptplus_max"),
    ("unique", "ptplus_unique"),
    ("dictsort", "ptplus_dictsort"),
    ("sum", "ptplus_sum"),
];

/// Charges the largest part once for each part: it may be held against all of them.
fn compare_all(state: &mut State, own: &str, values: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = values.into_values();
    let (mut n, mut largest) = (0usize, 0);
    if let Some(Ok(parts)) = args.first().map(Value::try_iter) {
        let list = &args[0];
        for part in parts {
            n += 1;
            let value = if list.kind() == ValueKind::Map { list.get_item(&part)? } else { Value::UNDEFINED };
            largest = largest.max(pay(state, &part)? + pay(state, &value)?);
        }
    }
    // A sum of lists or texts grows with each of them.
    let each = if own == COMPARING[5].1 { largest.saturating_mul(n) } else { largest };
    state.consume_fuel(n.saturating_mul(each / STEP_BYTES) as u64)?;
    state.apply_filter(own, &args)
}

/// minijinja's `join`, each part paid for before: a sum of lists is made while it is read, and may have any length.
fn join(state: &mut State, value: Value, options: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let between = options.first().cloned().or_else(|| named.peek("d").ok());
    let between = between.map_or(0, |b| b.as_str().map_or_else(|| b.to_string().len(), str::len));
    pay_for_joined(state, &value, between)?;
    let mut args = vec![value];
    args.extend(options.iter().cloned());
    args.push(named.into());
    state.apply_filter(JOIN, &args)
}

/// Methods of dicts that look at the key alone.
const METHODS_OF_DICTS: [&str; 4] = ["get", "items", "keys", "values"];

/// Python's methods, what they look into and what they make charged in advance.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let is_cheap = value.kind() == ValueKind::Map && METHODS_OF_DICTS.contains(&method);
    pay_for_both(state, if is_cheap { &Value::UNDEFINED } else { value }, args)?;
    let len = |v: &Value| v.as_str().map_or(0, str::len);
    if let Some(text) = value.as_str() {
        let bytes = match (method, args) {
            ("replace", [old, new, ..]) => (text.len() / len(old).max(1) + 1).saturating_mul(len(new)),
            ("split" | "rsplit" | "splitlines", _) => text.len().saturating_mul(VALUE_BYTES),
            ("join", [items, ..]) => {
                pay_for_joined(state, items, text.len())?;
                text.len()
            }
            _ => text.len(),
        };
        state.consume_fuel((bytes / STEP_BYTES) as u64)?;
        if method == "format" && has_long_number(text) {
            return Err(refused(format!("format takes widths of at most {FORMAT_DIGITS} digits")));
        }
        // minijinja's begins words at spaces only.
        if method == "title" && args.is_empty() {
            return Ok(Value::from(title(text)));
        }
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Python's `str.title`: letters after what is no letter become capitals, the others small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

fn has_long_number(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > FORMAT_DIGITS)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what templates mean by `tojson`.
fn to_json(state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Counted { left: bytes_left(state), text: Some(Vec::new()) };
    let written = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
    };
    written.map_err(|e| match e.is_io() {
        true => Error::from(ErrorKind::OutOfFuel),
        false => Error::new(ErrorKind::BadSerialization, e.to_string()),
    })?;
    let text = out.text.unwrap_or_default();
    state.consume_fuel((text.len() / STEP_BYTES) as u64)?;
    Ok(Value::from(String::from_utf8_lossy(&text).into_owned()))
}

/// A space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
