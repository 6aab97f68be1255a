//! Loops that the CPU path needs and candle lacks or does one value at a time. Each is a candle operation on
//! contiguous F32 tensors.
//!
//! All of them let NaN through: a NaN in a weight must reach the logits, where verification fails on it.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

pub(super) mod activation;
pub(super) mod attend_few;
pub(super) mod dot;
pub(super) mod exp;
pub(super) mod integer;
pub(super) mod rms_norm;
pub(super) mod rope;
pub(super) mod softmax;
pub(super) mod swiglu;
pub(super) mod top_k;

/// Compiles `f` for the instruction sets of current CPUs and runs the best that this one has.
///
/// `f` and all that it calls must be `#[inline(always)]`: what is not inlined is compiled for the oldest CPUs only, where
/// a fused multiply-add is a slow function call.
#[inline(always)]
fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Values per thread and step: enough to outweigh the hand-over, few enough to stay in the second-level cache.
const RUN: usize = 1 << 14;

/// The values of a contiguous F32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, found strides {:?}", layout.stride()),
    }
}

/// What `f` makes of the values of a contiguous F32 tensor on the CPU.
pub fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}
