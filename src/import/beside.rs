//! Weights of the base that lie beside an adapter, as in a training checkpoint: they are not exported, so they must be
//! those of the base that is given. Where they are others, the base was trained, too, and the adapter alone computes
//! something else.

use std::collections::HashMap;

use half::{bf16, f16};

use super::rules;
use super::source::SourceTensor;
use crate::base::{BaseModel, Dialect, Weight};
use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::format::StoredTensor;
use crate::quant;
use crate::tensor::{DType, LazyTensor};

/// The tensors of a base by their names without what wrappers put there.
pub(super) struct BaseWeights<'b> {
    by_name: HashMap<String, &'b StoredTensor>,
}

impl<'b> BaseWeights<'b> {
    /// Of a Hugging Face folder. GGUF has other names and another order of rows: nothing is compared there.
    pub fn of(base: Option<&'b BaseModel>) -> BaseWeights<'b> {
        let mut by_name = HashMap::new();
        if let Some(base) = base.filter(|b| b.dialect == Dialect::HuggingFace) {
            by_name.extend(base.tensors().map(|t| (rules::unwrapped(&t.name).join("."), t)));
            if let Some(embedding) = base.tensor(Weight::TokenEmbedding).filter(|_| base.config.tied_embeddings) {
                let head = Weight::Output.name(base.dialect);
                by_name.entry(rules::unwrapped(&head).join(".")).or_insert(embedding);
            }
        }
        BaseWeights { by_name }
    }

    /// What differs between a tensor of a source and the base's of the same name: that there is none, its shape, or values of
    /// a few rows. Nothing where either is quantized.
    ///
    /// # Errors
    ///
    /// Those of [`SourceTensor::open`].
    pub fn difference(&self, t: &SourceTensor) -> Result<Option<Finding>> {
        let words = rules::unwrapped(&t.name);
        // Averages of weights differ from them, if only in the last bits.
        let is_average = words.iter().any(|w| w.split('_').any(|part| part.eq_ignore_ascii_case("ema")));
        if self.by_name.is_empty() || is_average || !t.dtype().is_float() {
            return Ok(None);
        }
        let differs =
            |expected: String, found: &str| Some(Finding::new(Code::AdapterMismatch, &t.name, expected, found));
        // Whatever module of a trainer the model is in.
        let suffixes = (0..words.len()).map(|i| words[i..].join("."));
        let Some(base) = suffixes.into_iter().find_map(|name| self.by_name.get(&name)) else {
            let is_of_a_block = matches!(words[..], ["layers", _, _, _, "weight" | "bias"]);
            return Ok(if is_of_a_block {
                differs("a weight that the base has, too".into(), "one that it has not")
            } else {
                None
            });
        };
        if !base.dtype.is_float() {
            return Ok(None);
        }
        if t.shape() != base.shape {
            return Ok(differs(format!("shape {:?}, as the base has", base.shape), &format!("{:?}", t.shape())));
        }
        let (found, expected) = (t.unchecked()?, base.lazy()?);
        let n_rows = base.shape.first().copied().unwrap_or(0);
        let mut rows = vec![0, n_rows / 2, n_rows.saturating_sub(1)];
        rows.retain(|row| *row < n_rows);
        rows.dedup();
        if rows.into_iter().all(|row| are_same(&found.narrow(row, 1), &expected.narrow(row, 1))) {
            return Ok(None);
        }
        // It may be damaged instead.
        t.open()?;
        Ok(differs(
            "the base's values, since the adapter alone is exported".into(),
            "others: the base was trained, too (or it is another base)",
        ))
    }
}

/// Whether values are equal, the finer ones rounded to the coarser type where there are two; of F16 and BF16, of which
/// each has values that the other has not, to within both roundings.
fn are_same(a: &LazyTensor, b: &LazyTensor) -> bool {
    let values = |t: &LazyTensor| {
        let mut out = vec![0_f32; t.n_elements()];
        quant::decode(t.dtype(), &t.to_bytes(), &mut out);
        out
    };
    let (x, y) = (values(a), values(b));
    let mut types = [a.dtype(), b.dtype()];
    types.sort_by_key(|t| t.fineness());
    let round: fn(f32) -> f32 = match types[0] {
        DType::BF16 => |v| bf16::from_f32(v).to_f32(),
        DType::F16 => |v| f16::from_f32(v).to_f32(),
        _ => |v| v,
    };
    // Half of the last bit of BF16 and of F16, and of the smallest number that F16 has: weights may have been F16 on the way.
    const HALF_BITS: f32 = 1.0 / 512.0 + 1.0 / 2048.0;
    const SMALLEST: f32 = 1.0 / (1 << 25) as f32;
    let close = |x: f32, y: f32| match types {
        [DType::BF16, DType::F16] => (x - y).abs() <= HALF_BITS * x.abs().max(y.abs()) + SMALLEST,
        [a, b] if a == b => x == y || x.to_bits() == y.to_bits(),
        _ => round(x) == round(y) || (x - y).abs() <= SMALLEST,
    };
    x.iter().zip(&y).all(|(x, y)| close(*x, *y))
}

#[cfg(test)]
mod tests {
    use super::*;

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
