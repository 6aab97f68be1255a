//! `reports/*.json`: what a conversion cost and what a verification found, in a form that is the same on every machine: two
//! significant digits, no paths, no times, no host.

use serde_json::{Map, Value, json};

use crate::pipeline::Converted;
use crate::verify;

/// `reports/conversion.json`.
pub fn conversion(c: &Converted) -> Value {
    let mut v = json!(c);
    // Where the file lay while it was made, and what the manifest or the other report says.
    remove(&mut v, &["output", "dry_run", "notes", "verification"]);
    v["output_error"] =
        c.output_error.as_ref().map_or(Value::Null, |e| json!({ "metrics": e.metrics, "effect": e.effect }));
    rounded(v)
}

/// `reports/verification.json`. `reference` says what the adapter was compared with.
pub fn verification(report: &verify::Report, reference: &str) -> Value {
    let mut v = json!(report);
    // Of equal differences either may be found first.
    remove(&mut v, &["positions", "worst"]);
    v["reference"] = reference.into();
    rounded(v)
}

fn remove(v: &mut Value, keys: &[&str]) {
    if let Some(map) = v.as_object_mut() {
        keys.iter().for_each(|k| drop(map.shift_remove(*k)));
    }
}

/// Numbers with a fraction to two significant digits; what has none is exact.
pub fn rounded(v: Value) -> Value {
    match v {
        Value::Number(n) if n.is_f64() => n.as_f64().map_or(Value::Null, |x| two_digits(x).into()),
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, rounded(v))).collect::<Map<_, _>>()),
        other => other,
    }
}

/// The nearest number of two significant digits.
pub fn two_digits(x: f64) -> f64 {
    format!("{x:.1e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_two_digits_and_counts_are_exact() {
        let v = rounded(json!({ "a": 1.23456e-7, "n": 12345, "l": [0.999, 44.49, 0.0], "s": "1.2345" }));
        assert_eq!(v, json!({ "a": 1.2e-7, "n": 12345, "l": [1.0, 44.0, 0.0], "s": "1.2345" }));
    }
}
