//! Weights of the base that lie beside an adapter, as in a training checkpoint: they are not exported, so they must be
//! those of the base that is given. Where they are others, the base was trained, too, and the adapter alone computes
//! something else.

use std::collections::HashMap;

use half::{bf16, f16};

use super::rules;
use super::source::SourceTensor;
use crate::base::{BaseModel, Dialect};
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
        let tensors = base.into_iter().filter(|b| b.dialect == Dialect::HuggingFace).flat_map(BaseModel::tensors);
        BaseWeights { by_name: tensors.map(|t| (rules::unwrapped(&t.name), t)).collect() }
    }

    /// What differs between a tensor of a source and the base's of the same name: its shape, or values of a few rows. Nothing
    /// where either is quantized.
    ///
    /// # Errors
    ///
    /// Those of the views.
    pub fn difference(&self, t: &SourceTensor) -> Result<Option<Finding>> {
        if self.by_name.is_empty() {
            return Ok(None);
        }
        let Some(base) = self.by_name.get(&rules::unwrapped(&t.name)) else { return Ok(None) };
        if !t.dtype().is_float() || !base.dtype.is_float() {
            return Ok(None);
        }
        let differs =
            |expected: String, found: String| Some(Finding::new(Code::AdapterMismatch, &t.name, expected, found));
        if t.shape() != base.shape {
            return Ok(differs(format!("shape {:?}, as the base has", base.shape), format!("{:?}", t.shape())));
        }
        let (found, expected) = (t.unchecked()?, base.lazy()?);
        let n_rows = base.shape.first().copied().unwrap_or(0);
        let mut rows = vec![0, n_rows / 2, n_rows.saturating_sub(1)];
        rows.retain(|row| *row < n_rows);
        rows.dedup();
        let same = rows.into_iter().all(|row| are_same(&found.narrow(row, 1), &expected.narrow(row, 1)));
        Ok(if same {
            None
        } else {
            differs(
                "the base's values, since the adapter alone is exported".into(),
                "others: the base was trained, too".into(),
            )
        })
    }
}

/// Whether values are equal, the finer ones rounded to the coarser type where there are two. F16 and BF16 cannot be
/// compared: each has values that the other has not.
fn are_same(a: &LazyTensor, b: &LazyTensor) -> bool {
    let values = |t: &LazyTensor| {
        let mut out = vec![0_f32; t.n_elements()];
        quant::decode(t.dtype(), &t.to_bytes(), &mut out);
        out
    };
    let (x, y) = (values(a), values(b));
    let round: fn(f32) -> f32 = match (a.dtype(), b.dtype()) {
        (DType::F16, DType::BF16) | (DType::BF16, DType::F16) => return true,
        (DType::BF16, _) | (_, DType::BF16) => |v| bf16::from_f32(v).to_f32(),
        (DType::F16, _) | (_, DType::F16) => |v| f16::from_f32(v).to_f32(),
        _ => |v| v,
    };
    x.iter().zip(&y).all(|(x, y)| round(*x).to_bits() == round(*y).to_bits() || round(*x) == round(*y))
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
    }
}
