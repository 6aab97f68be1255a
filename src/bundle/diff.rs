//! What differs between two adapters: metadata, tensors, shapes, types, values. Row order and file layout do not count.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::digest::AdapterDigest;
use crate::adapter::{Adapter, Slot};
use crate::error::Result;
use crate::import::stated::{BASE_FINGERPRINT, BASE_MISMATCH_IGNORED, WIDENED_FROM};
use crate::import::{RECORD_KEY, foreign};
use crate::tensor::LazyTensor;
use crate::transform::pairs::for_each_pair;
use crate::validate::Validated;

/// The outcome.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Whether nothing differs that belongs to the adapter.
    pub same: bool,
    /// Whether only element types differ, and no value.
    pub only_types: bool,
    /// Digests of A.
    pub digest_a: AdapterDigest,
    /// Digests of B.
    pub digest_b: AdapterDigest,
    /// Conventions, sizes and keys of the configuration with their two values, null where one side has none.
    pub metadata: Vec<MetadataDifference>,
    /// Where the files come from; this does not count.
    pub provenance: Vec<MetadataDifference>,
    /// Every tensor of either side, those that are equal included.
    pub tensors: Vec<TensorDifference>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the fields are the two sides
#[non_exhaustive]
pub struct MetadataDifference {
    pub key: String,
    pub a: Value,
    pub b: Value,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorDifference {
    /// Canonical name.
    pub name: String,
    /// Type in A, where it has the tensor.
    pub dtype_a: Option<String>,
    /// Type in B.
    pub dtype_b: Option<String>,
    /// Shape in canonical axes.
    pub shape_a: Option<Vec<usize>>,
    /// Shape in canonical axes.
    pub shape_b: Option<Vec<usize>>,
    /// The values, where the shapes agree.
    pub values: Option<ValueDifference>,
}

/// Statistics over all elements as F32; `d = b - a`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct ValueDifference {
    /// Elements.
    pub n_elements: u64,
    /// Elements whose bits differ; -0 and 0 do.
    pub n_differ: u64,
    /// `max |d|`
    pub max_abs: f64,
    /// `sqrt(mean d^2)`
    pub rmse: f64,
    /// `sqrt(sum d^2 / sum a^2)`; absent where A is all zero.
    pub relative: Option<f64>,
    /// `sum a b / sqrt(sum a^2 sum b^2)`; absent where either is all zero.
    pub cosine: Option<f64>,
    /// `mean a` and `mean b`
    pub means: [f64; 2],
    /// `sqrt(mean a^2)` and `sqrt(mean b^2)`
    pub rms: [f64; 2],
}

impl TensorDifference {
    /// Whether both sides have it with the same shape, type and values.
    pub fn is_same(&self) -> bool {
        self.has_same_values() && self.dtype_a == self.dtype_b
    }

    /// Likewise, whatever the types.
    pub fn has_same_values(&self) -> bool {
        self.values.is_some_and(|v| v.n_differ == 0)
    }
}

/// Compares two adapters. Reads every tensor of both twice, once for the digests.
///
/// # Errors
///
/// Those of decoding.
pub fn diff(a: &Validated, b: &Validated) -> Result<Difference> {
    let (x, y) = (&a.adapter().in_form_of(b.adapter()), &b.adapter().in_form_of(a.adapter()));
    let mut metadata = conventions_of(x, y);
    // What PEFT's configuration says of a LoRA or of virtual tokens, scales and sizes say too, and of another program's file that is
    // all there is.
    let are_of_peft = x.as_plus().is_none() && y.as_plus().is_none();
    let counts = |d: &MetadataDifference| !are_of_peft && !is_provenance(&d.key);
    let (counted, provenance) = extra_keys(x, y).into_iter().partition::<Vec<_>, _>(counts);
    metadata.extend(counted);
    let slots: BTreeSet<Slot> = x.tensors().chain(y.tensors()).map(|(slot, _)| slot).collect();
    let tensors: Vec<TensorDifference> = slots
        .into_par_iter()
        .map(|slot| compare(slot.canonical_name(), x.get(slot).cloned(), y.get(slot).cloned()))
        .collect::<Result<_>>()?;
    let (digest_a, digest_b) = (AdapterDigest::of(x), AdapterDigest::of(y));
    let all = |f: fn(&TensorDifference) -> bool| metadata.is_empty() && tensors.iter().all(f);
    let same = all(TensorDifference::is_same) || metadata.is_empty() && digest_a == digest_b;
    let only_types = !same && all(TensorDifference::has_same_values);
    Ok(Difference { same, only_types, digest_a, digest_b, metadata, provenance, tensors })
}

fn conventions_of(a: &Adapter, b: &Adapter) -> Vec<MetadataDifference> {
    if a.kind() != b.kind() {
        let (a, b) = (a.kind().name().into(), b.kind().name().into());
        return vec![MetadataDifference { key: "adapter.type".into(), a, b }];
    }
    a.conventions()
        .zip(b.conventions())
        .filter(|((ka, va), (kb, vb))| ka == kb && va != vb)
        .map(|((key, va), (_, vb))| MetadataDifference { key: key.into(), a: va.into(), b: vb.into() })
        .collect()
}

/// Keys of the configuration beyond the conventions. `base_model_type` is added by a conversion that sees the base, so
/// it differs only where both sides state it.
fn extra_keys(a: &Adapter, b: &Adapter) -> Vec<MetadataDifference> {
    let (ea, eb) = (a.extra(), b.extra());
    let mut keys: Vec<&String> = ea.keys().chain(eb.keys()).filter(|k| *k != "peft_type").collect();
    keys.sort();
    keys.dedup();
    let value = |extra: &serde_json::Map<String, Value>, key: &str| extra.get(key).cloned().unwrap_or(Value::Null);
    let extra = keys.into_iter().map(|key| (key.as_str(), value(ea, key), value(eb, key)));
    let types = match (a.base_model_type(), b.base_model_type()) {
        (Some(x), Some(y)) => vec![("base_model_type", json!(x), json!(y))],
        _ => Vec::new(),
    };
    let layers: BTreeMap<&str, [Vec<usize>; 2]> =
        [("layers", [a.layer_numbers().collect(), b.layer_numbers().collect()])].into();
    let layers = layers.into_iter().map(|(key, [x, y])| (key, json!(x), json!(y)));
    extra
        .chain(types)
        .chain(layers)
        .filter(|(_, x, y)| x != y)
        .map(|(key, a, b)| MetadataDifference { key: key.into(), a, b })
        .collect()
}

fn is_provenance(key: &str) -> bool {
    // What it is called, and its base, decides no number: which base it is, fingerprints say.
    let words = [foreign::KEY, "base_model_name_or_path", "revision"];
    [BASE_FINGERPRINT, BASE_MISMATCH_IGNORED, WIDENED_FROM, RECORD_KEY].contains(&key) || words.contains(&key)
}

fn compare(name: String, a: Option<LazyTensor>, b: Option<LazyTensor>) -> Result<TensorDifference> {
    let dtype = |t: &Option<LazyTensor>| t.as_ref().map(|t| t.stored_dtype().name().to_owned());
    let shape = |t: &Option<LazyTensor>| t.as_ref().map(|t| t.shape().to_vec());
    let (dtype_a, dtype_b, shape_a, shape_b) = (dtype(&a), dtype(&b), shape(&a), shape(&b));
    let values = match (&a, &b) {
        (Some(a), Some(b)) if a.shape() == b.shape() => Some(compare_values(a, b)?),
        _ => None,
    };
    Ok(TensorDifference { name, dtype_a, dtype_b, shape_a, shape_b, values })
}

fn compare_values(a: &LazyTensor, b: &LazyTensor) -> Result<ValueDifference> {
    let mut sums = Sums::default();
    for_each_pair(a, b, |a, b| sums.add(a, b))?;
    Ok(sums.finish())
}

#[derive(Default)]
struct Sums {
    n: u64,
    n_differ: u64,
    max_abs: f64,
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
    dd: f64,
}

impl Sums {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        self.n += a.len() as u64;
        for (&a, &b) in a.iter().zip(b) {
            self.n_differ += u64::from(a.to_bits() != b.to_bits());
            let (a, b) = (f64::from(a), f64::from(b));
            let d = b - a;
            self.max_abs = self.max_abs.max(d.abs());
            self.a += a;
            self.b += b;
            self.aa += a * a;
            self.bb += b * b;
            self.ab += a * b;
            self.dd += d * d;
        }
    }

    fn finish(&self) -> ValueDifference {
        let n = self.n.max(1) as f64;
        let ratio = |x: f64, y: f64| (y > 0.0).then(|| x / y);
        ValueDifference {
            n_elements: self.n,
            n_differ: self.n_differ,
            max_abs: self.max_abs,
            rmse: (self.dd / n).sqrt(),
            relative: ratio(self.dd.sqrt(), self.aa.sqrt()),
            cosine: ratio(self.ab, self.aa.sqrt() * self.bb.sqrt()),
            means: [self.a / n, self.b / n],
            rms: [(self.aa / n).sqrt(), (self.bb / n).sqrt()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_their_formulas() {
        let (a, b) = (LazyTensor::from_f32(&[3.0, 4.0], &[1, 2]), LazyTensor::from_f32(&[3.0, 0.0], &[1, 2]));
        let d = compare_values(&a, &b).unwrap();
        assert_eq!((d.n_elements, d.n_differ, d.max_abs), (2, 1, 4.0));
        assert_eq!(d.rmse, 8f64.sqrt());
        assert_eq!(d.relative, Some(0.8));
        assert_eq!(d.cosine, Some(0.6));
        assert_eq!(d.means, [3.5, 1.5]);
        let zero = LazyTensor::from_f32(&[0.0, -0.0], &[1, 2]);
        let d = compare_values(&zero, &LazyTensor::from_f32(&[0.0, 0.0], &[1, 2])).unwrap();
        assert_eq!((d.n_differ, d.relative, d.cosine), (1, None, None));
    }
}
