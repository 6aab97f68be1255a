//! Two tensors side by side: the one walk for all that compares values.

use super::cast;
use crate::error::Result;
use crate::tensor::LazyTensor;

/// Bytes of a tensor that are looked at together; whole rows of its outermost axis.
const STEP_BYTES: usize = 4 << 20;

/// Calls `each` with the elements of both tensors (of one shape, asserted) as F32, in the order of their axes, a few MB at
/// a time. Pages of memory maps leave the process again.
///
/// # Errors
///
/// Those of [`cast::to_f32`].
pub fn for_each_pair(a: &LazyTensor, b: &LazyTensor, mut each: impl FnMut(&[f32], &[f32])) -> Result<()> {
    assert_eq!(a.shape(), b.shape());
    let Some(&n_rows) = a.shape().first() else {
        return for_each_pair(&a.clone().unsqueeze0(), &b.clone().unsqueeze0(), each);
    };
    let step = (STEP_BYTES / (a.len_bytes() / n_rows.max(1)).max(1)).clamp(1, n_rows.max(1));
    for start in (0..n_rows).step_by(step) {
        let n = step.min(n_rows - start);
        let values = |t: &LazyTensor| {
            let part = t.narrow(start, n);
            cast::to_f32(part.dtype(), &part.to_bytes())
        };
        each(&values(a)?, &values(b)?);
    }
    a.release();
    b.release();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_comes_once_and_in_order() {
        // 12 MB: three steps.
        let values: Vec<f32> = (0..3_000_000).map(|i| i as f32).collect();
        for (shape, n_steps) in
            [(&[3000, 1000][..], 3), (&[3, 1000, 1000], 3), (&[1, 3_000_000], 1), (&[0, 5], 0), (&[], 1)]
        {
            let t = LazyTensor::from_f32(&values[..shape.iter().product()], shape);
            let (mut seen, mut n) = (Vec::new(), 0);
            for_each_pair(&t, &t, |a, b| {
                assert_eq!(a, b);
                seen.extend_from_slice(a);
                n += 1;
            })
            .unwrap();
            assert!(seen == values[..seen.len()] && seen.len() == t.n_elements() && n == n_steps, "{shape:?}: {n}");
        }
    }
}
