//! Tensors whose bytes stay where they are (a memory map, usually) until somebody asks for them.
//!
//! A [`LazyTensor`] is stored bytes plus a *view*: every logical axis is a list of `(length, stride)` pairs, outermost
//! first, so that transposing, slicing, splitting, merging and reordering axes never touch data and always compose.
//!
//! ```text
//!   stored  [H, F, V] row-major          axes  [(H, F*V)]  [(F, V)]              [(V, 1)]
//!   transpose(1, 2)   -> [H, V, F]       axes  [(H, F*V)]  [(V, 1)]              [(F, V)]
//!   regroup(2, 2)     -> F as (t, j) to (j, t)                   [(F/2, V), (2, F/2*V)]
//! ```
//!
//! [`LazyTensor::gather`] walks the view once and writes contiguous row-major elements.

mod bytes;
mod gather;
mod part;

use super::{DType, shape};
use crate::error::{Code, Error, Result};
use part::{Part, SubAxis, narrow_part, split_part};

pub use bytes::{Backing, Bytes};

/// Turns stored blocks into F32 values; provided by [`crate::quant`] so that this module needs no block format.
pub type Decode = fn(DType, &[u8], &mut [f32]);

/// A tensor as a view of stored bytes; see the module's documentation.
#[derive(Debug, Clone)]
pub struct LazyTensor {
    shape: Vec<usize>,
    /// Concatenated along axis 0.
    parts: Vec<Part>,
}

impl LazyTensor {
    /// A contiguous row-major tensor of a plain (unquantized) type.
    ///
    /// # Errors
    ///
    /// [`Code::ShapeOverflow`]; asserts that `bytes` has the size that shape and type need, which readers
    /// have checked.
    pub fn new(bytes: Bytes, dtype: DType, shape: &[usize]) -> Result<Self> {
        assert!(!dtype.is_quantized(), "blocks need a decoder");
        Self::contiguous(bytes, dtype, shape, None)
    }

    /// A contiguous tensor stored in blocks; its elements are F32, made by `decode`.
    ///
    /// # Errors
    ///
    /// [`Code::ShapeOverflow`], [`Code::ShapeBlock`]; [`Code::PickleStorage`] where the bytes are not those of the shape.
    pub fn quantized(bytes: Bytes, dtype: DType, shape: &[usize], decode: Decode) -> Result<Self> {
        Self::contiguous(bytes, dtype, shape, Some(decode))
    }

    /// Row-major F32 values on the heap.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Self {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Self::new(bytes.into(), DType::F32, shape).expect("the shape of existing values does not overflow")
    }

    fn contiguous(bytes: Bytes, dtype: DType, shape: &[usize], decode: Option<Decode>) -> Result<Self> {
        assert_eq!(bytes.len(), shape::len_bytes(shape, dtype)?, "bytes do not match the shape");
        let is_empty = shape.contains(&0);
        let mut stride = 1;
        let mut axes: Vec<_> = shape
            .iter()
            .rev()
            .map(|&len| {
                let axis = vec![(len, stride)];
                // An empty tensor has no element to reach, and its other dimensions may be absurd.
                stride *= if is_empty { 1 } else { len };
                axis
            })
            .collect();
        axes.reverse();
        Ok(LazyTensor { shape: shape.to_vec(), parts: vec![Part { bytes, stored: dtype, decode, offset: 0, axes }] })
    }

    /// A view with explicit strides and offset (in elements) into `storage`, as PyTorch saves tensors.
    ///
    /// # Errors
    ///
    /// [`Code::ShapeOverflow`] where an element would lie outside the storage.
    pub fn strided(storage: Bytes, dtype: DType, shape: &[usize], strides: &[usize], offset: usize) -> Result<Self> {
        assert!(!dtype.is_quantized() && shape.len() == strides.len());
        let outside = || {
            Error::new(
                Code::ShapeOverflow,
                format!(
                    "shape {shape:?}, strides {strides:?} and offset {offset} reach outside the storage of {} bytes",
                    storage.len()
                ),
            )
        };
        let n = shape::n_elements(shape)?;
        let available = storage.len() / dtype.block_bytes();
        if n > 0 {
            let mut last = offset;
            for (&len, &stride) in shape.iter().zip(strides) {
                last = (len - 1).checked_mul(stride).and_then(|x| last.checked_add(x)).ok_or_else(outside)?;
            }
            if last >= available {
                return Err(outside());
            }
        } else if offset > available {
            return Err(outside());
        }
        let axes = shape.iter().zip(strides).map(|(&l, &s)| vec![(l, s)]).collect();
        Ok(LazyTensor {
            shape: shape.to_vec(),
            parts: vec![Part { bytes: storage, stored: dtype, decode: None, offset, axes }],
        })
    }

    /// Concatenates along axis 0; all other dimensions and the element types must agree.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] where they do not agree, or there is none.
    pub fn concat(tensors: Vec<LazyTensor>) -> Result<Self> {
        let first = tensors.first().expect("at least one tensor");
        let (tail, dtype) = (first.shape[1..].to_vec(), first.dtype());
        let mut rows = 0usize;
        for t in &tensors {
            if t.shape[1..] != tail[..] || t.dtype() != dtype {
                return Err(Error::new(
                    Code::AdapterShape,
                    format!(
                        "expected pieces of type {dtype} and shape [_, {tail:?}], found {} {:?}",
                        t.dtype(),
                        t.shape
                    ),
                ));
            }
            rows += t.shape[0];
        }
        let shape = std::iter::once(rows).chain(tail).collect();
        Ok(LazyTensor { shape, parts: tensors.into_iter().flat_map(|t| t.parts).collect() })
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements that [`gather`](Self::gather) writes: the stored type, or F32 for quantized storage.
    pub fn dtype(&self) -> DType {
        let p = &self.parts[0];
        if p.decode.is_some() { DType::F32 } else { p.stored }
    }

    /// Type of the bytes in the file.
    pub fn stored_dtype(&self) -> DType {
        self.parts[0].stored
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        shape::n_elements(&self.shape).expect("checked when the tensor was made")
    }

    /// The index, along each axis, of the element that [`gather`](Self::gather) writes as number `flat` (there is one).
    pub fn index_of(&self, flat: usize) -> Vec<usize> {
        let mut rest = flat;
        let mut index: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&n| {
                let i = rest % n;
                rest /= n;
                i
            })
            .collect();
        index.reverse();
        index
    }

    /// Bytes that [`gather`](Self::gather) writes.
    pub fn len_bytes(&self) -> usize {
        self.n_elements() * self.dtype().block_bytes()
    }

    /// The stored bytes of each part, in order, whatever the view; quantized blocks as they are.
    pub fn stored_parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|p| &*p.bytes)
    }

    /// The stored bytes, if the view is exactly one whole contiguous tensor in row-major order.
    pub fn stored_bytes(&self) -> Option<&[u8]> {
        let [p] = &self.parts[..] else { return None };
        let whole = shape::len_bytes(&self.shape, p.stored).ok()? == p.bytes.len() && p.offset == 0;
        (whole && matches!(p.flat_axes()[..], [] | [(_, 1)])).then_some(&*p.bytes)
    }

    /// [`stored_bytes`](Self::stored_bytes), shared.
    pub fn whole_bytes(&self) -> Option<Bytes> {
        self.stored_bytes().map(|_| self.parts[0].bytes.clone())
    }

    /// The elements as [`gather`](Self::gather) would write them, where they are stored so, one after the other.
    pub fn contiguous_bytes(&self) -> Option<&[u8]> {
        let [p] = &self.parts[..] else { return None };
        let size = p.stored.block_bytes();
        let as_stored = p.decode.is_none() && matches!(p.flat_axes()[..], [] | [(_, 1)]);
        as_stored.then(|| &p.bytes[p.offset * size..][..p.n_elements() * size])
    }

    /// Exchanges two axes. Axis 0 of a concatenation stays where it is (asserted).
    pub fn transpose(mut self, a: usize, b: usize) -> Self {
        assert!(a == b || self.parts.len() == 1 || (a != 0 && b != 0), "axis 0 joins the parts");
        self.shape.swap(a, b);
        self.parts.iter_mut().for_each(|p| p.axes.swap(a, b));
        self
    }

    /// The sub-tensor at `index` of axis 0, without that axis.
    pub fn select(&self, index: usize) -> Self {
        self.narrow(index, 1).squeeze0()
    }

    /// Without `axis`, whose length is 1.
    pub fn squeeze(self, axis: usize) -> Self {
        assert_eq!(self.shape[axis], 1);
        (0..axis).rev().fold(self, |t, i| t.transpose(i, i + 1)).select(0)
    }

    /// `len` entries of axis 0, from `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.shape[0]);
        let (mut skip, mut want) = (start, len);
        let mut parts = Vec::new();
        for p in &self.parts {
            let n = p.axis_len(0);
            if skip >= n {
                skip -= n;
                continue;
            }
            let take = want.min(n - skip);
            if take > 0 {
                narrow_part(p, skip, take, &mut parts);
            }
            (skip, want) = (0, want - take);
            if want == 0 {
                break;
            }
        }
        if parts.is_empty() {
            let mut q = self.parts[0].clone();
            q.axes[0] = vec![(0, 1)];
            parts.push(q);
        }
        let mut shape = self.shape.clone();
        shape[0] = len;
        LazyTensor { shape, parts }
    }

    fn squeeze0(mut self) -> Self {
        assert!(self.shape[0] == 1 && self.parts.len() == 1);
        self.shape.remove(0);
        self.parts[0].axes.remove(0);
        self
    }

    /// Whether this is a view of one stored tensor, not a concatenation.
    pub fn is_one_view(&self) -> bool {
        self.parts.len() == 1
    }

    /// Axis 0 `n` times, one after the other, without a copy.
    pub fn repeat0(self, n: usize) -> Self {
        let mut t = self.unsqueeze0();
        t.shape[0] = n;
        t.parts[0].axes[0] = vec![(n, 0)];
        t.merge_axes(0)
    }

    /// Hands over the elements as [`gather`](Self::gather) writes them, at most `most_bytes` at a time (but whole elements,
    /// and of blocks as many as an axis of the view needs).
    pub fn for_each_part(&self, most_bytes: usize, f: &mut impl FnMut(&[u8])) {
        let n = self.shape.first().copied().unwrap_or(0);
        let len = self.len_bytes();
        if len <= most_bytes || self.shape.is_empty() {
            f(&self.to_bytes());
        } else if n == 1 && self.is_one_view() {
            self.select(0).for_each_part(most_bytes, f);
        } else {
            let rows = (most_bytes / (len / n)).max(1);
            (0..n).step_by(rows).for_each(|start| {
                let part = self.narrow(start, rows.min(n - start));
                if part.len_bytes() < len { part.for_each_part(most_bytes, f) } else { f(&part.to_bytes()) }
            });
        }
    }

    /// A new axis of length 1 in front.
    pub fn unsqueeze0(self) -> Self {
        let t = self.single();
        let mut shape = t.shape;
        shape.insert(0, 1);
        let mut parts = t.parts;
        parts[0].axes.insert(0, vec![(1, 0)]);
        LazyTensor { shape, parts }
    }

    /// Splits `axis` of length `outer * inner` into two axes.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] where the length is not `outer * inner`.
    pub fn split_axis(self, axis: usize, outer: usize, inner: usize) -> Result<Self> {
        if outer.checked_mul(inner) != Some(self.shape[axis]) {
            return Err(Error::new(
                Code::AdapterShape,
                format!("axis {axis} of {:?} cannot be split into {outer} x {inner}", self.shape),
            ));
        }
        let mut t = if axis == 0 { self.single() } else { self };
        t.parts = t.parts.iter().map(|p| split_part(p, axis, outer, inner)).collect();
        t.shape[axis] = inner;
        t.shape.insert(axis, outer);
        Ok(t)
    }

    /// Merges `axis` and the one after it into one axis, the former outermost.
    pub fn merge_axes(self, axis: usize) -> Self {
        let mut t = if axis == 0 { self.single() } else { self };
        for p in &mut t.parts {
            let inner = p.axes.remove(axis + 1);
            p.axes[axis].extend(inner);
        }
        let inner = t.shape.remove(axis + 1);
        t.shape[axis] *= inner;
        t
    }

    /// Reads `axis` as `[n/inner, inner]`, exchanges the two and joins them again: entry `o*inner + i` moves to
    /// `i*(n/inner) + o`. This is the reordering between the two RoPE row orders. Asserts that `inner` divides.
    pub fn regroup(self, axis: usize, inner: usize) -> Self {
        let n = self.shape[axis];
        assert!(n.is_multiple_of(inner), "an axis of {n} has no groups of {inner}");
        let t = self.split_axis(axis, n / inner, inner).expect("the product was checked");
        t.transpose(axis, axis + 1).merge_axes(axis)
    }

    /// This tensor as one part; a concatenation is gathered on the heap.
    fn single(self) -> Self {
        if self.parts.len() == 1 {
            return self;
        }
        LazyTensor::new(self.to_bytes().into(), self.dtype(), &self.shape).expect("an existing shape does not overflow")
    }

    /// Writes the elements, row-major and contiguous, little endian. `out` has [`len_bytes`](Self::len_bytes) bytes.
    pub fn gather(&self, out: &mut [u8]) {
        assert_eq!(out.len(), self.len_bytes());
        let size = self.dtype().block_bytes();
        let mut rest = out;
        for p in &self.parts {
            let (dst, tail) = rest.split_at_mut(p.n_elements() * size);
            rest = tail;
            if dst.is_empty() {
                continue;
            }
            match p.decode {
                None => gather::strided(&p.flat_axes(), p.offset, &p.bytes, size, dst),
                Some(decode) => {
                    // Only the blocks that the view reaches: a tensor is usually gathered a few rows at a time.
                    let (len, bytes) = (p.stored.block_len(), p.stored.block_bytes());
                    let last = p.offset + p.axes.iter().flatten().map(|a| (a.0 - 1) * a.1).sum::<usize>();
                    let blocks = p.offset / len..last / len + 1;
                    let mut values = vec![0f32; blocks.len() * len];
                    decode(p.stored, &p.bytes[blocks.start * bytes..blocks.end * bytes], &mut values);
                    let offset = p.offset - blocks.start * len;
                    gather::strided(&p.flat_axes(), offset, bytemuck::cast_slice(&values), size, dst);
                }
            }
        }
    }

    /// Says that the stored bytes are not needed for a while; see [`Bytes::release`].
    pub fn release(&self) {
        self.parts.iter().for_each(|p| p.bytes.release());
    }

    /// The elements, row-major and contiguous, on the heap.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.len_bytes()];
        self.gather(&mut out);
        out
    }
}

#[cfg(test)]
mod tests;
