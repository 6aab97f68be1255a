//! Comparison without a base: tensor by tensor, in canonical axes and Hugging Face order.
//!
//! This proves that two files hold the same adapter. It does not prove that either computes what PyTorch computed.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::Serialize;

use crate::adapter::{Adapter, Slot};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast;
use crate::transform::loss::{Loss, LossSum};
use crate::transform::pairs::for_each_pair;
use crate::validate::Validated;

/// The outcome of a tensor-level comparison.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// The verdict.
    pub pass: bool,
    /// Conventions and sizes that differ.
    pub config: Vec<Finding>,
    /// Every tensor of either adapter.
    pub tensors: Vec<TensorComparison>,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorComparison {
    /// Canonical name.
    pub name: String,
    /// `max |a - b|`; absent where one side lacks the tensor or the shapes differ.
    pub max_abs: Option<f64>,
    /// Elements farther apart than rounding to the coarser of the two types explains.
    pub n_beyond_rounding: Option<usize>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// What one tensor lost against the same one of another adapter.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorLoss {
    /// Canonical name.
    pub name: String,
    /// The type that it is stored in.
    #[serde(serialize_with = "dtype_name")]
    pub dtype: DType,
    /// Bytes in that type.
    pub len_bytes: u64,
    /// How far its values are from the reference's.
    pub loss: Loss,
}

fn dtype_name<S: serde::Serializer>(dtype: &DType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(dtype.name())
}

/// How far each tensor's values are from the reference's; tensors that only one of them has, or in another shape, are
/// left out.
///
/// # Errors
///
/// Those of decoding.
pub fn losses(found: &Validated, reference: &Validated) -> Result<Vec<TensorLoss>> {
    let reference = reference.adapter().in_form_of(found.adapter());
    let tensors: Vec<_> = found.adapter().tensors().collect();
    let one = |&(slot, t): &(Slot, &LazyTensor)| {
        let other = reference.get(slot).filter(|r| r.shape() == t.shape());
        let Some(other) = other else { return Ok(None) };
        let mut sum = LossSum::default();
        for_each_pair(other, t, |x, y| sum.add(x, y))?;
        let dtype = t.stored_dtype();
        let len_bytes = (t.n_elements() / dtype.block_len() * dtype.block_bytes()) as u64;
        Ok(Some(TensorLoss { name: slot.canonical_name(), dtype, len_bytes, loss: sum.loss() }))
    };
    let found: Vec<Option<TensorLoss>> = tensors.par_iter().map(one).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// Compares configurations and tensors. Elements may differ by half a unit in the last place of the coarser type.
///
/// # Errors
///
/// [`Code::NothingCompared`] where a side is quantized: rounding to blocks has no bound per element.
pub fn compare(found: &Validated, reference: &Validated) -> Result<TensorReport> {
    let (a, b) = (found.adapter(), reference.adapter());
    let (a, b) = (&a.in_form_of(b), &b.in_form_of(a));
    let config = config_findings(a, b);
    let slots: BTreeSet<Slot> = a.tensors().chain(b.tensors()).map(|(slot, _)| slot).collect();
    let tensors: Vec<TensorComparison> = slots
        .into_par_iter()
        .map(|slot| compare_one(slot.canonical_name(), a.get(slot).cloned(), b.get(slot).cloned()))
        .collect::<Result<_>>()?;
    let pass = config.is_empty() && tensors.iter().all(|t| t.failure.is_none());
    Ok(TensorReport { pass, config, tensors })
}

fn config_findings(a: &Adapter, b: &Adapter) -> Vec<Finding> {
    a.conventions()
        .zip(b.conventions())
        .filter(|((_, x), (_, y))| x != y)
        .map(|((field, x), (_, y))| Finding::new(Code::NumbersDiffer, field, y, x))
        .collect()
}

fn compare_one(name: String, found: Option<LazyTensor>, reference: Option<LazyTensor>) -> Result<TensorComparison> {
    let fail = |failure: String| TensorComparison {
        name: name.clone(),
        max_abs: None,
        n_beyond_rounding: None,
        failure: Some(failure),
    };
    let (a, b) = match (found, reference) {
        (Some(a), Some(b)) => (a, b),
        (None, _) => return Ok(fail("expected this tensor, found none".into())),
        (_, None) => return Ok(fail("expected no such tensor, found one".into())),
    };
    if a.shape() != b.shape() {
        return Ok(fail(format!("expected shape {:?}, found {:?}", b.shape(), a.shape())));
    }
    if let Some(dtype) = [&a, &b].into_iter().map(|t| t.stored_dtype()).find(|d| d.is_quantized()) {
        return Err(Error::new(
            Code::NothingCompared,
            format!("{dtype} has no bound per element; compare what the adapters compute, with --base"),
        )
        .field(name));
    }
    let coarser = [DType::BF16, DType::F16, DType::F32]
        .into_iter()
        .find(|d| a.dtype() == *d || b.dtype() == *d)
        .unwrap_or(DType::F32);
    let round = cast::rounded_to(coarser);
    let mut max_abs = 0f64;
    let mut n_beyond = 0;
    for_each_pair(&a, &b, |x, y| {
        for (&p, &q) in x.iter().zip(y) {
            max_abs = max_abs.max((f64::from(p) - f64::from(q)).abs());
            n_beyond += usize::from(round(p) != round(q));
        }
    })?;
    let failure = (n_beyond > 0).then(|| {
        format!(
            "expected equal elements up to rounding to {coarser}, found {n_beyond} that differ, by up to {max_abs:.3e}"
        )
    });
    Ok(TensorComparison { name, max_abs: Some(max_abs), n_beyond_rounding: Some(n_beyond), failure })
}
