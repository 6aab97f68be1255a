//! One stored tensor with the axes of a view; what is cut and split without touching data.

use super::{Bytes, Decode, LazyTensor};
use crate::tensor::DType;

/// Length and stride, both in elements.
pub(super) type SubAxis = (usize, usize);

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub bytes: Bytes,
    pub stored: DType,
    pub decode: Option<Decode>,
    pub offset: usize,
    /// Per logical axis its sub-axes, outermost first.
    pub axes: Vec<Vec<SubAxis>>,
}

impl Part {
    pub fn axis_len(&self, axis: usize) -> usize {
        self.axes[axis].iter().map(|a| a.0).product()
    }

    pub fn n_elements(&self) -> usize {
        if self.axes.iter().flatten().any(|a| a.0 == 0) { 0 } else { self.axes.iter().flatten().map(|a| a.0).product() }
    }

    /// Sub-axes without those of length 1, neighbours that lie contiguously merged.
    pub fn flat_axes(&self) -> Vec<SubAxis> {
        coalesce(self.axes.iter().flatten().copied())
    }
}

fn coalesce(axes: impl Iterator<Item = SubAxis>) -> Vec<SubAxis> {
    let mut flat: Vec<SubAxis> = Vec::new();
    for (len, stride) in axes.filter(|a| a.0 != 1) {
        match flat.last_mut() {
            Some(last) if last.1 == stride * len => *last = (last.0 * len, stride),
            _ => flat.push((len, stride)),
        }
    }
    flat
}

/// `len` entries of axis 0 from `start` on (both within it): one part where its pieces lie evenly, else one for each.
pub(super) fn narrow_part(p: &Part, start: usize, len: usize, out: &mut Vec<Part>) {
    let axis = coalesce(p.axes[0].iter().copied());
    let with = |axis: Vec<SubAxis>, offset: usize| {
        let axes = std::iter::once(axis).chain(p.axes[1..].iter().cloned()).collect();
        Part { axes, offset: p.offset + offset, ..p.clone() }
    };
    let Some((&(_, stride), inner)) = axis.split_first() else {
        out.push(with(Vec::new(), 0));
        return;
    };
    let inner_len: usize = inner.iter().map(|a| a.0).product();
    if start.is_multiple_of(inner_len) && len.is_multiple_of(inner_len) {
        let axis = std::iter::once((len / inner_len, stride)).chain(inner.iter().copied()).collect();
        out.push(with(axis, start / inner_len * stride));
        return;
    }
    let end = start + len;
    for outer in start / inner_len..=(end - 1) / inner_len {
        let first = outer * inner_len;
        let (from, to) = (start.max(first), end.min(first + inner_len));
        narrow_part(&with(inner.to_vec(), outer * stride), from - first, to - from, out);
    }
}

fn heap_part(p: &Part) -> Part {
    let shape: Vec<usize> = (0..p.axes.len()).map(|a| p.axis_len(a)).collect();
    let t = LazyTensor { shape, parts: vec![p.clone()] };
    let copy = LazyTensor::new(t.to_bytes().into(), t.dtype(), &t.shape).expect("an existing shape does not overflow");
    copy.parts.into_iter().next().expect("one part")
}

pub(super) fn split_part(p: &Part, axis: usize, outer: usize, inner: usize) -> Part {
    // Take sub-axes from the inside until they hold `inner` entries; one that straddles the border is cut in two.
    let mut outside = coalesce(p.axes[axis].iter().copied());
    let mut inside: Vec<SubAxis> = Vec::new();
    let mut need = inner;
    while need > 1 {
        let Some((len, stride)) = outside.pop() else { break };
        if len <= need && need.is_multiple_of(len) {
            inside.insert(0, (len, stride));
            need /= len;
        } else if len.is_multiple_of(need) {
            inside.insert(0, (need, stride));
            outside.push((len / need, stride * need));
            need = 1;
        } else {
            return split_part(&heap_part(p), axis, outer, inner);
        }
    }
    debug_assert_eq!(outside.iter().map(|a| a.0).product::<usize>(), outer);
    let mut q = p.clone();
    q.axes[axis] = outside;
    q.axes.insert(axis + 1, inside);
    // A length of 1 has no sub-axis left; empty lists mean 1, as the product says.
    q
}
