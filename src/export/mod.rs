//! [`Validated`](crate::validate::Validated) adapters to files: the mirror of [`crate::import`].
//!
//! A plan is made first (every name, type, shape and offset), then written by [`write_tensors`]. `--dry-run` stops
//! between the two.

pub mod canonical;
pub mod gguf;
pub mod types;

use std::collections::BTreeMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::adapter::{Adapter, Role};
use crate::digest::{TensorDigest, hex};
use crate::error::{Code, Error, Result};
use crate::format::{FilePlan, output::StagedFile};
use crate::import::ledger::{Entry, Fate, Ledger};
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast::{self, Overflow};
use crate::transform::loss::{Loss, LossSum};

/// Bytes gathered, cast and written per step; a step is whole heads, so a larger head is a larger step. Large enough
/// that a system call costs nothing, small enough that two threads stay far below the memory limit of a conversion.
const STEP_BYTES: usize = 4 << 20;

/// One output tensor: where its values come from, in the output's axes, and the type that they get.
#[derive(Debug, Clone)]
pub struct OutputTensor {
    /// Layer number.
    pub layer: usize,
    /// Part of the layer.
    pub role: Role,
    /// The values, in the output's axis order.
    pub source: LazyTensor,
    /// The same values in canonical axes, in which errors name elements.
    pub canonical: LazyTensor,
    /// The type to write.
    pub dtype: DType,
    /// The type that was asked for, where the rows are no whole blocks of it.
    pub unfit: Option<DType>,
}

/// A file that can be written.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Header and offsets; one planned tensor for each of `tensors`.
    pub file: FilePlan,
    /// Sources.
    pub tensors: Vec<OutputTensor>,
}

/// What writing the tensors found out.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// Digest of every consumed source tensor.
    pub sources: Vec<TensorDigest>,
    /// Elements saturated per output tensor name, under [`Overflow::Saturate`].
    pub saturated: BTreeMap<String, usize>,
    /// What each output tensor's type cost, in the order of [`Plan::tensors`].
    pub losses: Vec<Loss>,
}

/// Writes header and tensors, and hashes the source's consumed tensors in the same pass over their bytes.
///
/// Tensors are independent: threads take them as they come, and every byte has its place in the plan, so the file is
/// the same from any number of threads. `progress` is called with the bytes written so far added.
pub fn write_tensors(
    plan: &Plan,
    ledger: &Ledger,
    out: &StagedFile,
    overflow: Overflow,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Written> {
    out.set_len(plan.file.len_bytes)?;
    out.write_all_at(0, &plan.file.header)?;
    let by_part: BTreeMap<(usize, Role), Vec<&Entry>> = ledger.consumed().fold(BTreeMap::new(), |mut map, e| {
        // A tensor with several layers in it is hashed once, with the first.
        if let Fate::Consumed { layers, role } = &e.fate
            && let Some(layer) = layers.first()
        {
            map.entry((*layer, *role)).or_insert_with(Vec::new).push(e);
        }
        map
    });
    let results: Vec<WrittenTensor> = plan
        .tensors
        .par_iter()
        .zip(&plan.file.tensors)
        .map(|(t, planned)| {
            let entries = by_part.get(&(t.layer, t.role)).map(Vec::as_slice).unwrap_or_default();
            let name_error = |e: Error| e.field(Adapter::canonical_name(t.layer, t.role));
            let written = write_tensor(t, planned.file_offset, entries, out, overflow, progress).map_err(name_error);
            t.source.release();
            written
        })
        .collect::<Result<_>>()?;
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

/// What writing one tensor found out.
struct WrittenTensor {
    sources: Vec<TensorDigest>,
    saturated: usize,
    loss: Loss,
}

fn write_tensor(
    t: &OutputTensor,
    file_offset: u64,
    entries: &[&Entry],
    out: &StagedFile,
    overflow: Overflow,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<WrittenTensor> {
    if t.dtype.is_quantized()
        && t.source.stored_dtype() == t.dtype
        && let Some(bytes) = t.source.stored_bytes()
    {
        out.write_all_at(file_offset, bytes)?;
        progress(bytes.len() as u64);
        let sources = entries.iter().map(|e| digest_whole(e)).collect();
        return Ok(WrittenTensor { sources, saturated: 0, loss: Loss::NONE });
    }
    let n_heads = t.source.shape()[0];
    let head_bytes = (t.source.len_bytes() / n_heads).max(1);
    let step = (STEP_BYTES / head_bytes).clamp(1, n_heads);
    // Where one source tensor became one output tensor, its bytes are hashed step by step, just before they are
    // gathered, while they are in the cache.
    let fused = match entries {
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
    let mut offset = file_offset;
    let (mut buffer, mut decoded) = (Vec::new(), Vec::new());
    for head in (0..n_heads).step_by(step) {
        let n = step.min(n_heads - head);
        if let Some(bytes) = fused {
            let per_head = bytes.len() / n_heads;
            hasher.update(&bytes[head * per_head..][..n * per_head]);
        }
        let part = t.source.narrow(head, n);
        buffer.resize(part.len_bytes(), 0);
        part.gather(&mut buffer);
        let len = if part.dtype() == t.dtype {
            out.write_all_at(offset, &buffer)?;
            buffer.len()
        } else {
            let values = cast::to_f32(part.dtype(), &buffer).map_err(|_| unfit(t, None))?;
            let (bytes, n_saturated) = encode(t, &values, overflow)?;
            saturated += n_saturated;
            out.write_all_at(offset, &bytes)?;
            decoded.resize(values.len(), 0.0);
            quant::decode(t.dtype, &bytes, &mut decoded);
            losses.add(&values, &decoded);
            bytes.len()
        };
        offset += len as u64;
        progress(len as u64);
    }
    let sources = match (fused, entries) {
        (Some(_), [e]) => vec![digest(e, hex(&hasher.finalize()))],
        _ => entries.iter().map(|e| digest_whole(e)).collect(),
    };
    Ok(WrittenTensor { sources, saturated, loss: losses.loss() })
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
    let c = &t.canonical;
    let mut values = vec![0f32; c.n_elements()];
    quant::decode(c.dtype(), &c.to_bytes(), &mut values);
    let largest = block.and_then(|b| b.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs())));
    let flat = match largest {
        Some(v) => values.iter().position(|x| x.to_bits() == v.to_bits()),
        None => quant::first_unfit(t.dtype, &values),
    };
    let flat = flat.expect("an element of the tensor was found not to fit");
    Error::new(
        Code::CastOverflow,
        format!("expected values that {} can hold, found {:e} at {:?}", t.dtype, values[flat], c.index_of(flat)),
    )
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
