//! `general.file_type`. Source: `enum llama_ftype` in llama.h.

use crate::tensor::DType;

/// The number for a file whose tensors mostly have this type; the k-quants have those of llama.cpp's medium mixes.
pub fn of(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q3_K => 12,
        DType::Q4_K => 15,
        DType::Q5_K => 17,
        DType::Q6_K => 18,
        DType::BF16 => 32,
        _ => 0,
    }
}
