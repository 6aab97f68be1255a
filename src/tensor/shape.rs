//! Shapes with checked arithmetic. Dimensions are listed outermost first, as PyTorch and safetensors do; the GGUF
//! format lists them innermost first and reverses at its own boundary.

use super::DType;
use crate::error::{Code, Error, Result};

/// Number of elements.
///
/// # Errors
///
/// [`Code::ShapeOverflow`].
pub fn n_elements(shape: &[usize]) -> Result<usize> {
    // A zero anywhere makes the tensor empty, but the other factors must still not overflow: readers elsewhere
    // multiply in order.
    let mut n: usize = 1;
    for &d in shape {
        n = if d == 0 || n == 0 { 0 } else { n.checked_mul(d).ok_or_else(|| overflow(shape))? };
    }
    Ok(n)
}

/// Bytes that a tensor of this shape and type occupies.
///
/// # Errors
///
/// [`Code::ShapeOverflow`]; [`Code::ShapeBlock`] where the innermost dimension is no multiple of the block.
pub fn len_bytes(shape: &[usize], dtype: DType) -> Result<usize> {
    let n = n_elements(shape)?;
    let innermost = shape.last().copied().unwrap_or(1);
    if !innermost.is_multiple_of(dtype.block_len()) {
        return Err(Error::new(
            Code::ShapeBlock,
            format!(
                "innermost dimension {innermost} is not a multiple of {}, the block length of {dtype}",
                dtype.block_len()
            ),
        ));
    }
    (n / dtype.block_len())
        .checked_mul(dtype.block_bytes())
        .filter(|b| *b <= isize::MAX as usize)
        .ok_or_else(|| overflow(shape))
}

/// `[2, 3, 4]`, for messages and tables.
pub fn display(shape: &[usize]) -> String {
    format!("{shape:?}")
}

fn overflow(shape: &[usize]) -> Error {
    Error::new(Code::ShapeOverflow, format!("shape {shape:?} has too many elements"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_blocks() {
        assert_eq!(len_bytes(&[2, 64], DType::Q8_0).unwrap(), 2 * 2 * 34);
        assert_eq!(len_bytes(&[], DType::F32).unwrap(), 4);
        assert_eq!(len_bytes(&[0, 5], DType::F32).unwrap(), 0);
        assert_eq!(len_bytes(&[3, 33], DType::Q8_0).unwrap_err().code(), Code::ShapeBlock);
        assert_eq!(len_bytes(&[usize::MAX, 2], DType::F32).unwrap_err().code(), Code::ShapeOverflow);
        assert_eq!(len_bytes(&[usize::MAX / 4], DType::F32).unwrap_err().code(), Code::ShapeOverflow);
    }
}
