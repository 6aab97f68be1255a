//! What the values of an adapter must not be.

use rayon::prelude::*;

use crate::adapter::{Adapter, Part};
use crate::error::Code;
use crate::finding::Finding;
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast;

/// Bytes looked at together: a view may repeat its elements, and blocks are smaller than what they hold.
const STEP_BYTES: usize = 4 << 20;

/// NaN, infinity, what F32 cannot hold, and normalisers that divide by 0 at every position. Reads every tensor.
pub(super) fn check(adapter: &Adapter) -> Vec<Finding> {
    check_named(adapter.tensors().map(|(slot, t)| (slot.canonical_name(), Some(slot.part), t)))
}

/// NaN, infinity and what F32 cannot hold in tensors whose axes are not known yet.
pub(super) fn check_tensors<'a>(tensors: impl Iterator<Item = (&'a str, &'a LazyTensor)>) -> Vec<Finding> {
    check_named(tensors.map(|(name, t)| (name.to_owned(), None, t)))
}

fn check_named<'a>(tensors: impl Iterator<Item = (String, Option<Part>, &'a LazyTensor)>) -> Vec<Finding> {
    let tensors: Vec<_> =
        tensors.filter(|(.., t)| t.dtype().is_float() && quant::can_decode(t.stored_dtype())).collect();
    tensors
        .into_par_iter()
        .filter_map(|(name, part, t)| {
            let found = first_non_finite(t);
            let empty = (part == Some(Part::Normalizer) && found.is_none()).then(|| first_empty_head(t)).flatten();
            t.release();
            if let Some(head) = empty {
                let expected = "a value other than 0 for every head, since the term is divided by phi(q) . N";
                return Some(Finding::new(Code::DenominatorZero, name, expected, format!("0 in all of head {head}")));
            }
            let (index, value) = found?;
            let (code, expected) = match value.is_finite() {
                true => (Code::CastOverflow, "values that F32 can hold"),
                false => (Code::NonFinite, "finite values"),
            };
            Some(Finding::new(code, name, expected, format!("{value} at {index:?}")))
        })
        .collect()
}

/// Index (in canonical axes) and value of the first NaN or Inf.
fn first_non_finite(t: &LazyTensor) -> Option<(Vec<usize>, f64)> {
    let clean = |bytes: &[u8]| quant::validate_blocks(t.dtype(), bytes).is_none();
    // Most tensors are clean: look at the bytes where they lie. Only for a bad one put the axes in order.
    let is_whole = t.stored_parts().map(<[u8]>::len).sum::<usize>() == t.len_bytes();
    if t.stored_dtype() == t.dtype() && is_whole && t.stored_parts().all(clean) {
        return None;
    }
    let size = t.dtype().block_bytes();
    let (mut seen, mut found) = (0, None);
    t.for_each_part(STEP_BYTES, &mut |bytes| {
        if found.is_none()
            && let Some(i) = quant::validate_blocks(t.dtype(), bytes)
        {
            let element = &bytes[i * size..][..size];
            let value = match t.dtype() {
                DType::F64 => f64::from_le_bytes(element.try_into().expect("8 bytes")),
                other => cast::to_f32(other, element).map_or(f64::NAN, |v| v[0].into()),
            };
            found = Some((seen + i, value));
        }
        seen += bytes.len() / size;
    });
    found.map(|(flat, value)| (t.index_of(flat), value))
}

/// The first head of N whose features are all 0.
fn first_empty_head(t: &LazyTensor) -> Option<usize> {
    let n_features = t.shape().get(1).copied().filter(|n| *n > 0)?;
    let (mut seen, mut is_empty, mut found) = (0, true, None);
    t.for_each_part(STEP_BYTES, &mut |bytes| {
        let Ok(values) = cast::to_f32(t.dtype(), bytes) else { return };
        for x in values {
            is_empty &= x == 0.0;
            seen += 1;
            if seen % n_features == 0 {
                if is_empty {
                    found.get_or_insert(seen / n_features - 1);
                }
                is_empty = true;
            }
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_over_all_steps() {
        // 8 MB: two steps.
        let mut values = vec![1.0f32; 2_000_000];
        assert!(first_non_finite(&LazyTensor::from_f32(&values, &[2, 1000, 1000])).is_none());
        values[1_500_007] = f32::INFINITY;
        let t = LazyTensor::from_f32(&values, &[2, 1000, 1000]);
        assert_eq!(first_non_finite(&t), Some((vec![1, 500, 7], f64::INFINITY)));
        assert_eq!(first_non_finite(&t.transpose(1, 2)), Some((vec![1, 7, 500], f64::INFINITY)));
    }

    #[test]
    fn a_head_is_empty_where_all_its_features_are_0() {
        // 7.2 MB: a head lies across two steps.
        let mut values = vec![0.0f32; 1_800_000];
        values[599_999] = 1.0;
        values[1_200_000] = 1.0;
        let of = |values: &[f32]| first_empty_head(&LazyTensor::from_f32(values, &[3, 600_000]));
        assert_eq!(of(&values), Some(1));
        values[1_100_000] = 1.0;
        assert_eq!(of(&values), None);
        assert_eq!(first_empty_head(&LazyTensor::from_f32(&[], &[3, 0])), None);
    }
}
