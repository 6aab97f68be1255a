//! Writes a plan: tensors are read, get their types and are hashed in one pass.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{OutputTensor, Plan, Values, Written};
use crate::adapter::{Part, Slot};
use crate::digest::{TensorDigest, hex};
use crate::error::{Code, Error, Result};
use crate::format::output::StagedFile;
use crate::import::ledger::{Entry, Fate};
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast::{self, Overflow};
use crate::transform::loss::{Loss, LossSum};
use crate::transform::low_rank::LowRank;
use crate::validate::Validated;

/// Bytes gathered, cast and written per step; a step is whole heads, so a larger head is a larger step. Large enough
/// that a system call costs nothing, small enough that two threads stay far below the memory limit of a conversion.
const STEP_BYTES: usize = 4 << 20;

/// The same where values are cast: what a step reads, writes and compares stays in the second-level cache.
const CAST_STEP_BYTES: usize = 256 << 10;

/// Writes header and tensors; one pass over the bytes of the source.
///
/// Tensors are independent: threads take them as they come, and every byte has its place in the plan, so the file is
/// the same from any number of threads. `progress` is called with the bytes written so far added.
///
/// # Errors
///
/// [`Code::CastOverflow`] for values beyond the output type; those of decoding and of writing.
pub fn write_tensors(
    plan: &Plan,
    values: Values<'_>,
    out: &StagedFile,
    overflow: Overflow,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Written> {
    out.set_len(plan.file.len_bytes)?;
    out.write_all_at(0, &plan.file.header)?;
    let entries = match values {
        // Where there is one output, it has all of them: PEFT keeps virtual tokens of every layer in one tensor.
        Values::Validated(source) if plan.tensors.len() == 1 => vec![source.ledger.consumed().collect()],
        Values::Validated(source) => consumed_by_tensor(source),
        Values::Unchecked => vec![Vec::new(); plan.tensors.len()],
    };
    assert_eq!(entries.len(), plan.tensors.len(), "the plan is of this adapter");
    let results: Vec<WrittenTensor> = out.sync_during(|written| {
        let progress = &|n| {
            written(n);
            progress(n);
        };
        let tensors = plan.tensors.par_iter().zip(&plan.file.tensors).zip(&entries);
        tensors
            .map(|((t, planned), entries)| {
                let job = TensorJob { t, file_offset: planned.file_offset, entries, values, out, overflow, progress };
                let written = job.write().map_err(|e| e.field(&t.label));
                t.source.release();
                written
            })
            .collect()
    })?;
    let mut written = Written::default();
    for (tensor, planned) in results.into_iter().zip(&plan.file.tensors) {
        written.sources.extend(tensor.sources);
        written.losses.push(tensor.loss);
        if tensor.saturated > 0 {
            written.saturated.insert(planned.name.clone(), tensor.saturated);
        }
    }
    Ok(written)
}

/// The ledger's consumed tensors, for each tensor of the adapter in order. One of several slots is with the first.
fn consumed_by_tensor(source: &Validated) -> Vec<Vec<&Entry>> {
    let mut by_slot: BTreeMap<Slot, Vec<&Entry>> = BTreeMap::new();
    for e in source.ledger.consumed() {
        match &e.fate {
            Fate::Consumed { slots } => {
                if let Some(slot) = slots.first() {
                    by_slot.entry(*slot).or_default().push(e);
                }
            }
            Fate::Folded { layers } => {
                let layer = layers.first().copied().or_else(|| source.adapter().layer_numbers().next());
                by_slot.entry(Slot::attention(layer.unwrap_or(0), Part::Memory)).or_default().push(e);
            }
            Fate::Ignored { .. } | Fate::LeftOver => {}
        }
    }
    source.adapter().tensors().map(|(slot, _)| by_slot.remove(&slot).unwrap_or_default()).collect()
}

/// What writing one tensor found out.
struct WrittenTensor {
    sources: Vec<TensorDigest>,
    saturated: usize,
    loss: Loss,
}

struct TensorJob<'a> {
    t: &'a OutputTensor,
    file_offset: u64,
    entries: &'a [&'a Entry],
    values: Values<'a>,
    out: &'a StagedFile,
    overflow: Overflow,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl TensorJob<'_> {
    fn write(&self) -> Result<WrittenTensor> {
        let t = self.t;
        if !t.additions.is_empty() {
            return self.write_merged();
        }
        if t.dtype.is_quantized()
            && t.factor == 1.0
            && t.source.stored_dtype() == t.dtype
            && let Some(bytes) = t.source.stored_bytes()
        {
            self.check_blocks(bytes)?;
            self.out.write_all_at(self.file_offset, bytes)?;
            (self.progress)(bytes.len() as u64);
            let sources = self.entries.iter().map(|e| digest_whole(e)).collect();
            return Ok(WrittenTensor { sources, saturated: 0, loss: Loss::NONE });
        }
        let n_heads = t.source.shape()[0];
        let head_bytes = (t.source.len_bytes() / n_heads).max(1);
        let step_bytes = if t.source.dtype() == t.dtype { STEP_BYTES } else { CAST_STEP_BYTES };
        let step = (step_bytes / head_bytes).clamp(1, n_heads);
        // Where one source tensor became one output tensor, its bytes are hashed step by step, just before they are
        // gathered, while they are in the cache.
        let fused = match self.entries {
            [e] => e.tensor.as_ref().and_then(LazyTensor::stored_bytes).filter(|b| {
                e.dtype == t.source.stored_dtype()
                    && b.len() == t.source.n_elements() / e.dtype.block_len() * e.dtype.block_bytes()
                    && b.len().is_multiple_of(n_heads)
            }),
            _ => None,
        };
        let mut hasher = Sha256::new();
        let mut saturated = 0;
        let mut losses = LossSum::default();
        let mut offset = self.file_offset;
        let (mut buffer, mut decoded) = (Vec::new(), Vec::new());
        for head in (0..n_heads).step_by(step) {
            let n = step.min(n_heads - head);
            if let Some(bytes) = fused {
                let per_head = bytes.len() / n_heads;
                hasher.update(&bytes[head * per_head..][..n * per_head]);
            }
            let part = t.source.narrow(head, n);
            let stored = match part.contiguous_bytes() {
                Some(stored) => stored,
                None => {
                    buffer.resize(part.len_bytes(), 0);
                    part.gather(&mut buffer);
                    &buffer
                }
            };
            let len = if part.dtype() == t.dtype && t.factor == 1.0 {
                self.check_values(part.dtype(), stored)?;
                self.out.write_all_at(offset, stored)?;
                stored.len()
            } else {
                let mut values = match bytemuck::try_cast_slice(stored) {
                    Ok(values) if part.dtype() == DType::F32 => Cow::Borrowed(values),
                    _ => Cow::Owned(cast::to_f32(part.dtype(), stored).map_err(|_| unfit(t, None))?),
                };
                if !t.dtype.is_quantized() {
                    self.check_values(part.dtype(), stored)?;
                }
                if t.factor != 1.0 {
                    values.to_mut().iter_mut().for_each(|v| *v = (f64::from(*v) * t.factor) as f32);
                    if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                        let message =
                            format!("expected values that F32 can hold once multiplied by {}, found {v}", t.factor);
                        return Err(Error::new(Code::CastOverflow, message));
                    }
                }
                let (len, n_saturated) = self.write_values(offset, &values, &mut decoded, &mut losses)?;
                saturated += n_saturated;
                len
            };
            offset += len as u64;
            (self.progress)(len as u64);
        }
        let sources = match (fused, self.entries) {
            (Some(_), [e]) => vec![digest(e, hex(&hasher.finalize()))],
            _ => self.entries.iter().map(|e| digest_whole(e)).collect(),
        };
        Ok(WrittenTensor { sources, saturated, loss: losses.loss() })
    }

    /// The same with additions: every row is decoded, changed and given its type.
    fn write_merged(&self) -> Result<WrittenTensor> {
        let t = self.t;
        let additions: Vec<(Range<usize>, LowRank)> = (t.additions.iter())
            .map(|x| {
                let low_rank = LowRank::new(&x.a, &x.b, x.scale, x.magnitude.as_ref())?;
                Ok((x.first_row..x.first_row + low_rank.n_rows(), low_rank))
            })
            .collect::<Result<_>>()?;
        let n = t.source.shape()[0];
        let row_len = t.source.shape().last().copied().unwrap_or(1);
        let step = (CAST_STEP_BYTES / (t.source.n_elements() / n * 4).max(1)).clamp(1, n);
        let (mut row, mut offset, mut saturated) = (0, self.file_offset, 0);
        let (mut room, mut decoded) = (vec![0.0; row_len], Vec::new());
        let mut losses = LossSum::default();
        for start in (0..n).step_by(step) {
            let part = t.source.narrow(start, step.min(n - start));
            let stored = part.to_bytes();
            self.check_values(part.dtype(), &stored)?;
            let plain = cast::to_f32(part.dtype(), &stored).map_err(|_| unfit(t, None))?;
            let (mut values, first_row) = (plain.clone(), row);
            for (values, plain) in values.chunks_exact_mut(row_len).zip(plain.chunks_exact(row_len)) {
                for (rows, x) in additions.iter().filter(|(rows, _)| rows.contains(&row)) {
                    x.add_to_row(row - rows.start, plain, &mut room, values);
                }
                row += 1;
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                let message = format!("expected finite sums, found {} in row {}", values[i], first_row + i / row_len);
                return Err(Error::new(Code::NonFinite, message));
            }
            let (len, n_saturated) = self.write_values(offset, &values, &mut decoded, &mut losses)?;
            saturated += n_saturated;
            offset += len as u64;
            (self.progress)(len as u64);
        }
        Ok(WrittenTensor { sources: Vec::new(), saturated, loss: losses.loss() })
    }

    /// Writes values in the output's type and measures what that loses; `decoded` is room. How many bytes they took, and how
    /// many values were saturated.
    fn write_values(
        &self,
        offset: u64,
        values: &[f32],
        decoded: &mut Vec<f32>,
        losses: &mut LossSum,
    ) -> Result<(usize, usize)> {
        let (bytes, n_saturated) = encode(self.t, values, self.overflow)?;
        self.out.write_all_at(offset, &bytes)?;
        decoded.resize(values.len(), 0.0);
        quant::decode(self.t.dtype, &bytes, decoded);
        losses.add(values, decoded);
        Ok((bytes.len(), n_saturated))
    }

    fn check_values(&self, dtype: DType, bytes: &[u8]) -> Result<()> {
        match self.values {
            Values::Unchecked if quant::validate_blocks(dtype, bytes).is_some() => Err(unfit(self.t, None)),
            _ => Ok(()),
        }
    }

    /// Blocks that are copied. Types that are not decoded here pass unseen; the plan has a note about them.
    fn check_blocks(&self, bytes: &[u8]) -> Result<()> {
        let dtype = self.t.dtype;
        match self.values {
            Values::Unchecked if quant::can_decode(dtype) => match quant::validate_blocks(dtype, bytes) {
                Some(block) => {
                    let index = self.t.canonical.index_of(block * dtype.block_len());
                    let message = format!("expected finite scales, found a block of {dtype} without at {index:?}");
                    Err(Error::new(Code::NonFinite, message))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Whole rows as bytes of the output type, and how many elements were saturated (plain types only).
fn encode(t: &OutputTensor, values: &[f32], overflow: Overflow) -> Result<(Vec<u8>, usize)> {
    if !t.dtype.is_quantized() {
        return cast::from_f32(values, t.dtype, overflow).map_err(|_| unfit(t, None));
    }
    if quant::first_unfit(t.dtype, values).is_some() {
        return Err(unfit(t, None));
    }
    let row_len = t.source.shape().last().copied().unwrap_or(1);
    let mut bytes = vec![0; values.len() / t.dtype.block_len() * t.dtype.block_bytes()];
    quant::quantize_rows(t.dtype, values, row_len, &mut bytes);
    match quant::validate_blocks(t.dtype, &bytes) {
        None => Ok((bytes, 0)),
        Some(block) => Err(unfit(t, Some(&values[block * t.dtype.block_len()..][..t.dtype.block_len()]))),
    }
}

/// The error for an element that the output type cannot hold, by its index in the canonical tensor.
///
/// Without a `block` it is the first element of the tensor that does not fit; in a block whose scale overflows each
/// element may fit by itself, and the largest is to blame.
fn unfit(t: &OutputTensor, block: Option<&[f32]>) -> Error {
    if !t.additions.is_empty() {
        let message = format!("expected values that {} can hold, found sums beyond them", t.dtype);
        return Error::new(Code::CastOverflow, message);
    }
    let c = &t.canonical;
    let largest = block.and_then(|b| b.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs())));
    let n_rows = c.shape()[0];
    let row_elements = (c.n_elements() / n_rows).max(1);
    let step = (STEP_BYTES / 4 / row_elements).clamp(1, n_rows);
    let mut values = Vec::new();
    for row in (0..n_rows).step_by(step) {
        let part = c.narrow(row, step.min(n_rows - row));
        values.resize(part.n_elements(), 0f32);
        let bytes = part.to_bytes();
        quant::decode(part.dtype(), &bytes, &mut values);
        let found = match largest {
            Some(v) => values.iter().position(|x| x.to_bits() == v.to_bits()),
            None => quant::first_unfit(t.dtype, &values),
        };
        let Some(i) = found else { continue };
        let (value, index) = (values[i], c.index_of(row * row_elements + i));
        // An F64 may be finite and yet be infinite as F32.
        let is_finite = match (part.dtype(), bytes.as_chunks().0.get(i)) {
            (DType::F64, Some(stored)) => f64::from_le_bytes(*stored).is_finite(),
            _ => value.is_finite(),
        };
        return if is_finite {
            let message = format!("expected values that {} can hold, found {value:e} at {index:?}", t.dtype);
            Error::new(Code::CastOverflow, message)
        } else {
            Error::new(Code::NonFinite, format!("expected finite values, found {value} at {index:?}"))
        };
    }
    unreachable!("an element of the tensor was found not to fit")
}

fn digest_whole(e: &Entry) -> TensorDigest {
    let tensor = e.tensor.as_ref().expect("a consumed tensor is kept");
    let sha = match tensor.stored_bytes() {
        Some(bytes) => Sha256::digest(bytes),
        None => Sha256::digest(tensor.to_bytes()),
    };
    digest(e, hex(&sha))
}

fn digest(e: &Entry, sha256: String) -> TensorDigest {
    TensorDigest { name: e.name.clone(), dtype: e.dtype.name().to_owned(), shape: e.shape.clone(), sha256 }
}
