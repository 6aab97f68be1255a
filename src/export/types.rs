//! Which type each output tensor gets: the one owner of that decision.

use crate::adapter::{Adapter, Role};
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast;
use crate::validate::Validated;

/// The type asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutType {
    /// Each tensor as it is; on the way back to safetensors, as the first source had it where that loses nothing.
    Keep,
    /// This plain float type for M and W.
    As(DType),
}

/// The two output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A canonical folder.
    Safetensors,
}

/// The type of one output tensor. b and N stay F32 in GGUF, and are not narrowed by an explicit type elsewhere.
pub(super) fn choose(
    source: &Validated,
    layer: usize,
    role: Role,
    tensor: &LazyTensor,
    format: Format,
    asked: OutType,
) -> DType {
    let is_vector = matches!(role, Role::FeatureBias | Role::Normalizer);
    let plain = match tensor.stored_dtype() {
        d @ (DType::F32 | DType::F16 | DType::BF16) => d,
        _ => DType::F32, // F64 has no place in either output; blocks decode to F32
    };
    match (format, asked) {
        (Format::Gguf, _) if is_vector => DType::F32,
        (Format::Gguf, OutType::Keep) if tensor.stored_dtype().is_quantized() => tensor.stored_dtype(),
        (_, OutType::As(_)) if is_vector => DType::F32,
        (_, OutType::As(dtype)) => dtype,
        (Format::Gguf, OutType::Keep) => plain,
        (Format::Safetensors, OutType::Keep) => {
            let recorded = source.origin.recorded_dtypes.get(&Adapter::canonical_name(layer, role)).copied();
            match recorded {
                Some(dtype @ (DType::F32 | DType::F16 | DType::BF16))
                    if dtype == plain || cast::is_lossless(tensor.dtype(), &tensor.to_bytes(), dtype) =>
                {
                    dtype
                }
                _ => plain,
            }
        }
    }
}
