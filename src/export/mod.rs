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
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast::{self, Overflow};

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
    /// The type to write.
    pub dtype: DType,
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
    let results: Vec<(Vec<TensorDigest>, usize)> = plan
        .tensors
        .par_iter()
        .zip(&plan.file.tensors)
        .map(|(t, planned)| {
            let entries = by_part.get(&(t.layer, t.role)).map(Vec::as_slice).unwrap_or_default();
            let name_error = |e: Error| e.field(Adapter::canonical_name(t.layer, t.role));
            write_tensor(t, planned.file_offset, entries, out, overflow, progress).map_err(name_error)
        })
        .collect::<Result<_>>()?;
    let mut written = Written::default();
    for ((digests, saturated), planned) in results.into_iter().zip(&plan.file.tensors) {
        written.sources.extend(digests);
        if saturated > 0 {
            written.saturated.insert(planned.name.clone(), saturated);
        }
    }
    Ok(written)
}

fn write_tensor(
    t: &OutputTensor,
    file_offset: u64,
    entries: &[&Entry],
    out: &StagedFile,
    overflow: Overflow,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Vec<TensorDigest>, usize)> {
    if t.dtype.is_quantized() {
        let bytes = t.source.stored_bytes().filter(|_| t.source.stored_dtype() == t.dtype).ok_or_else(|| {
            Error::new(
                Code::GgufWrite,
                format!(
                    "expected blocks of {} that stay in their order, found {} in another",
                    t.dtype,
                    t.source.stored_dtype()
                ),
            )
        })?;
        out.write_all_at(file_offset, bytes)?;
        progress(bytes.len() as u64);
        return Ok((entries.iter().map(|e| digest_whole(e)).collect(), 0));
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
    let mut offset = file_offset;
    let mut buffer = Vec::new();
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
            let (bytes, n_saturated) = cast::cast(part.dtype(), &buffer, t.dtype, overflow)?;
            saturated += n_saturated;
            out.write_all_at(offset, &bytes)?;
            bytes.len()
        };
        offset += len as u64;
        progress(len as u64);
    }
    let digests = match (fused, entries) {
        (Some(_), [e]) => vec![digest(e, hex(&hasher.finalize()))],
        _ => entries.iter().map(|e| digest_whole(e)).collect(),
    };
    Ok((digests, saturated))
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
