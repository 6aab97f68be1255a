//! Weights of the base that lie beside an adapter, as in a training checkpoint: they are not exported, so they must be
//! those of the base that is given, every value of them. Where they are others, the base was trained, too, and the adapter
//! alone computes something else. What cannot be compared is counted, and a note says why.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::rules;
use super::source::SourceTensor;
use crate::base::{BaseModel, Dialect, Weight};
use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::format::StoredTensor;
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast;

/// Values that a thread decodes at once of each of two tensors: a megabyte, as F32.
const STEP_VALUES: usize = 1 << 18;

const QUANTIZED: &str = "they are quantized beside the adapter";

/// The weights of a base by their Hugging Face names without what wrappers put there.
pub(super) struct BaseWeights<'b> {
    base: Option<&'b BaseModel>,
    by_name: HashMap<String, Place>,
    /// How many were not compared, by the reason.
    not_compared: BTreeMap<&'static str, usize>,
}

/// Where a base has a weight.
enum Place {
    /// In this tensor, as it is.
    Tensor(String),
    /// In the tensor of this weight, whose rows a GGUF file may have in another order.
    Weight(Weight),
}

impl<'b> BaseWeights<'b> {
    /// Of a Hugging Face folder or a GGUF file.
    pub fn of(base: Option<&'b BaseModel>) -> BaseWeights<'b> {
        let mut by_name = HashMap::new();
        let plain = |name: &str| rules::unwrapped(name).join(".");
        if let Some(base) = base {
            match base.dialect {
                Dialect::HuggingFace => {
                    by_name.extend(base.tensors().map(|t| (plain(&t.name), Place::Tensor(t.name.clone()))));
                }
                Dialect::Gguf => {
                    by_name.extend(base.weights().map(|w| (plain(&w.name(Dialect::HuggingFace)), Place::Weight(w))));
                }
            }
            if base.config.tied_embeddings {
                let head = plain(&Weight::Output.name(Dialect::HuggingFace));
                by_name.entry(head).or_insert(Place::Weight(Weight::TokenEmbedding));
            }
        }
        BaseWeights { base, by_name, not_compared: BTreeMap::new() }
    }

    /// What differs between a tensor of a source and the base's of the same name: that there is none, its shape, or values.
    /// What cannot be compared is counted.
    ///
    /// # Errors
    ///
    /// Those of [`SourceTensor::open`].
    pub fn difference(&mut self, t: &SourceTensor) -> Result<Option<Finding>> {
        let words = rules::unwrapped(&t.name);
        if rules::is_buffer(&words) {
            return Ok(None);
        }
        // Averages of weights differ from them, if only in the last bits.
        let is_average = words.iter().any(|w| w.split('_').any(|part| part.eq_ignore_ascii_case("ema")));
        let reason = match self.base {
            None => "there is no base to compare with (--base)",
            _ if is_average => "averages of weights differ from them",
            _ if !t.dtype().is_float() => QUANTIZED,
            Some(base) => {
                // Whatever module of a trainer the model is in.
                let mut suffixes = (0..words.len()).map(|i| words[i..].join("."));
                let against = match suffixes.find_map(|name| self.by_name.get(&name)) {
                    Some(Place::Weight(weight)) => against_base(t, base, *weight)?,
                    Some(Place::Tensor(name)) => match base.tensor_named(name) {
                        Some(stored) => compare(t, stored, || stored.lazy())?,
                        None => return Ok(None),
                    },
                    None if matches!(words[..], ["layers", _, _, _, "weight" | "bias"]) => {
                        let (expected, found) =
                            ("a weight that the base has, too".into(), "one that it has not".into());
                        Against::Differs { expected, found }
                    }
                    None => Against::Unknown("the base has no tensor of their names"),
                };
                match against {
                    Against::Same => return Ok(None),
                    Against::Differs { expected, found } => {
                        return Ok(Some(Finding::new(Code::AdapterMismatch, &t.name, expected, found)));
                    }
                    Against::Unknown(reason) => reason,
                }
            }
        };
        *self.not_compared.entry(reason).or_default() += 1;
        Ok(None)
    }

    /// Says what was not compared.
    pub fn note(&self) -> Option<String> {
        let n: usize = self.not_compared.values().sum();
        let reasons: Vec<String> = match self.not_compared.len() {
            0 => return None,
            1 => self.not_compared.keys().map(|reason| (*reason).to_owned()).collect(),
            _ => self.not_compared.iter().map(|(reason, n)| format!("{n} since {reason}")).collect(),
        };
        let since = if reasons.len() == 1 { " since " } else { ", " };
        let (weights, lie, were) = if n == 1 { ("weight", "lies", "was") } else { ("weights", "lie", "were") };
        Some(format!(
            "{n} {weights} of the base model that {lie} beside the adapter {were} not compared with it{since}{}; had the base been trained, too, the adapter alone would compute something else",
            reasons.join(", ")
        ))
    }
}

/// What a tensor of a source is beside the base's.
pub(super) enum Against {
    /// The values that the base has.
    Same,
    /// Others, or of another shape.
    Differs { expected: String, found: String },
    /// It cannot be said, and why.
    Unknown(&'static str),
}

/// Compares a tensor with the base's `weight`; of a head that is the embedding, with that.
///
/// # Errors
///
/// Those of [`SourceTensor::open`].
pub(super) fn against_base(t: &SourceTensor, base: &BaseModel, weight: Weight) -> Result<Against> {
    let tied = (weight == Weight::Output && base.config.tied_embeddings).then_some(Weight::TokenEmbedding);
    let weight = if base.tensor(weight).is_none() { tied.unwrap_or(weight) } else { weight };
    match base.tensor(weight) {
        Some(stored) => compare(t, stored, || base.in_hugging_face_order(weight)),
        None => {
            Ok(Against::Differs { expected: "a weight that the base has".into(), found: "one that it has not".into() })
        }
    }
}

/// Compares a tensor with the base's, whose rows `expected` gives in Hugging Face order.
fn compare(t: &SourceTensor, stored: &StoredTensor, expected: impl FnOnce() -> Result<LazyTensor>) -> Result<Against> {
    if !t.dtype().is_float() {
        return Ok(Against::Unknown(QUANTIZED));
    }
    if t.shape() != stored.shape {
        let expected = format!("shape {:?}, as the base has", stored.shape);
        return Ok(Against::Differs { expected, found: format!("{:?}", t.shape()) });
    }
    if !stored.dtype.is_float() {
        return Ok(Against::Unknown("the base has them quantized"));
    }
    let (found, expected) = (t.unchecked()?, expected()?);
    let rows = differing_rows(&found, &expected);
    found.release();
    expected.release();
    let Some(rows) = rows else { return Ok(Against::Same) };
    // It may be damaged instead.
    t.open()?;
    let expected = "the base's values, since the adapter alone is exported".into();
    let found = format!("others in {rows}: the base was trained, too (or it is another base)");
    Ok(Against::Differs { expected, found })
}

/// Which rows differ, for people; `None` where all values are the same. The two have one shape.
fn differing_rows(a: &LazyTensor, b: &LazyTensor) -> Option<String> {
    let as_they_lie = (a.dtype() == b.dtype()).then(|| a.contiguous_bytes().zip(b.contiguous_bytes())).flatten();
    if as_they_lie.is_some_and(|(x, y)| x == y) {
        return None;
    }
    let (a, b) =
        if a.shape().is_empty() { (a.clone().unsqueeze0(), b.clone().unsqueeze0()) } else { (a.clone(), b.clone()) };
    let n_rows = a.shape()[0];
    let row_len = (a.n_elements() / n_rows.max(1)).max(1);
    let step = (STEP_VALUES / row_len).max(1);
    let starts: Vec<usize> = (0..n_rows).step_by(step).collect();
    // In each run of rows how many differ, and the first of them.
    let runs: Vec<(usize, Option<usize>)> = starts
        .into_par_iter()
        .map(|start| {
            let n = step.min(n_rows - start);
            let close = closeness(a.dtype(), b.dtype());
            let (x, y) = (values(&a.narrow(start, n)), values(&b.narrow(start, n)));
            let rows = x.chunks(row_len).zip(y.chunks(row_len));
            let mut differ = rows.enumerate().filter(|(_, (x, y))| !x.iter().zip(*y).all(|(x, y)| close(*x, *y)));
            let first = differ.next().map(|(row, _)| start + row);
            (differ.count() + usize::from(first.is_some()), first)
        })
        .collect();
    let first = runs.iter().find_map(|(_, first)| *first)?;
    let n: usize = runs.iter().map(|(n, _)| n).sum();
    let what = if a.shape().len() > 1 { "rows" } else { "elements" };
    Some(format!("{n} of {n_rows} {what}, the first of them {first}"))
}

fn values(t: &LazyTensor) -> Vec<f32> {
    let mut out = vec![0_f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut out);
    out
}

/// Whether values of two types are equal: the finer one rounded to the coarser type; of F16 and BF16, of which each has
/// values that the other has not, to within both roundings.
fn closeness(a: DType, b: DType) -> impl Fn(f32, f32) -> bool {
    let mut types = [a, b];
    types.sort_by_key(|t| t.fineness());
    let round = cast::rounded_to(types[0]);
    // Half of the last bit of BF16 and of F16, and of the smallest number that F16 has: weights may have been F16 on the way.
    const HALF_BITS: f32 = 1.0 / 512.0 + 1.0 / 2048.0;
    const SMALLEST: f32 = 1.0 / (1 << 25) as f32;
    move |x, y| match types {
        _ if x.to_bits() == y.to_bits() => true,
        [DType::BF16, DType::F16] => (x - y).abs() <= HALF_BITS * x.abs().max(y.abs()) + SMALLEST,
        [a, b] if a == b => x == y,
        _ => round(x) == round(y) || (x - y).abs() <= SMALLEST,
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn are_same(a: &LazyTensor, b: &LazyTensor) -> bool {
        differing_rows(a, b).is_none()
    }

    #[test]
    fn rows_that_differ_are_counted_over_all_runs() {
        let n_rows = 3 * STEP_VALUES / 1024 + 5;
        let mut values: Vec<f32> = (0..n_rows * 1024).map(|i| (i % 251) as f32).collect();
        let before = LazyTensor::from_f32(&values, &[n_rows, 1024]);
        assert!(are_same(&before, &LazyTensor::from_f32(&values, &[n_rows, 1024])));
        for row in [700, 701, n_rows - 1] {
            values[row * 1024 + row % 1024] += 1.0;
        }
        let after = LazyTensor::from_f32(&values, &[n_rows, 1024]);
        assert_eq!(differing_rows(&before, &after).unwrap(), format!("3 of {n_rows} rows, the first of them 700"));
        let vector = |t: &LazyTensor| t.clone().merge_axes(0);
        let found = differing_rows(&vector(&before), &vector(&after)).unwrap();
        assert_eq!(found, format!("3 of {} elements, the first of them {}", n_rows * 1024, 700 * 1024 + 700));
        let scalar = |v: f32| LazyTensor::from_f32(&[v], &[]);
        assert!(are_same(&scalar(1.0), &scalar(1.0)) && !are_same(&scalar(1.0), &scalar(2.0)));
    }

    #[test]
    fn values_are_compared_in_the_coarser_type() {
        let f32s = |values: &[f32]| LazyTensor::from_f32(values, &[1, values.len()]);
        let stored = |dtype, bytes: Vec<u8>| LazyTensor::new(bytes.into(), dtype, &[1, 2]).unwrap();
        let exact = [0.1_f32, -3.0];
        let as_bf16 = stored(DType::BF16, exact.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect());
        let as_f16 = stored(DType::F16, exact.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect());
        assert!(are_same(&f32s(&exact), &as_bf16) && are_same(&as_f16, &f32s(&exact)) && are_same(&as_f16, &as_bf16));
        assert!(are_same(&f32s(&[0.0, 1.0]), &f32s(&[-0.0, 1.0])));
        assert!(!are_same(&f32s(&exact), &f32s(&[0.1, -3.000_001])));
        assert!(!are_same(&f32s(&[0.101, -3.0]), &as_bf16));
        let trained = stored(DType::F16, [0.11, -3.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect());
        assert!(!are_same(&trained, &as_bf16));
        // A subnormal of F16, on the way from BF16 to F32.
        let small = [1e-6_f32, -3.0];
        let as_bf16 = stored(DType::BF16, small.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect());
        let through_f16: Vec<f32> = small.iter().map(|v| f16::from_f32(bf16::from_f32(*v).to_f32()).to_f32()).collect();
        assert!(are_same(&f32s(&through_f16), &as_bf16));
    }
}
