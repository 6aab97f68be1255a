//! Block formats: slices in, slices out.

use crate::tensor::DType;

/// Decodes quantized blocks; the signature that [`crate::tensor::lazy::Decode`] wants.
pub fn decode(_dtype: DType, _src: &[u8], _dst: &mut [f32]) {
    unimplemented!()
}
