//! Casts between the plain float types, each rounding to nearest even; what does not fit is an error.

use half::{bf16, f16};

use crate::error::{Code, Error, Result};
use crate::tensor::DType;

/// What to do with a finite value beyond the largest one of the output type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Refuse, naming the element.
    Error,
    /// Write the largest finite value of that sign. Never Inf: readers, ours included, refuse it.
    Saturate,
}

/// Little-endian elements of a plain float type as F32. F64 is rounded.
///
/// # Errors
///
/// [`Code::CastOverflow`] for a finite F64 beyond F32; [`Code::SafetensorsDtype`] for other types.
pub fn to_f32(dtype: DType, src: &[u8]) -> Result<Vec<f32>> {
    Ok(match dtype {
        DType::F32 => src.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => src.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::BF16 => src.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F64 => {
            let mut out = Vec::with_capacity(src.len() / 8);
            for (i, b) in src.as_chunks().0.iter().enumerate() {
                let v = f64::from_le_bytes(*b);
                let r = v as f32;
                if v.is_finite() && !r.is_finite() {
                    return Err(overflow(i, v, DType::F32));
                }
                out.push(r);
            }
            out
        }
        _ => return Err(Error::new(Code::SafetensorsDtype, format!("expected F64, F32, F16 or BF16, found {dtype}"))),
    })
}

/// Casts little-endian elements from one plain float type to another; the same type is a copy, bit for bit.
///
/// Returns the bytes and how many elements were saturated.
///
/// # Errors
///
/// As [`to_f32`], and [`Code::CastOverflow`] under
/// [`Overflow::Error`]; the element index is relative to `src`. `to` is F32, F16 or BF16 (asserted).
pub fn cast(from: DType, src: &[u8], to: DType, on_overflow: Overflow) -> Result<(Vec<u8>, usize)> {
    if from == to { Ok((src.to_vec(), 0)) } else { from_f32(&to_f32(from, src)?, to, on_overflow) }
}

/// F32 values as little-endian elements of F32, F16 or BF16 (asserted), and how many were saturated.
///
/// # Errors
///
/// [`Code::CastOverflow`] under [`Overflow::Error`]; the element index is relative to `values`.
pub fn from_f32(values: &[f32], to: DType, on_overflow: Overflow) -> Result<(Vec<u8>, usize)> {
    let mut saturated = 0;
    let bytes = match to {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 => narrow(
            values,
            to,
            on_overflow,
            &mut saturated,
            |v| f16::from_f32(v).to_le_bytes(),
            |b| f16::from_le_bytes(b).to_f32(),
            f16::MAX.to_f32(),
        )?,
        DType::BF16 => narrow(
            values,
            to,
            on_overflow,
            &mut saturated,
            |v| bf16::from_f32(v).to_le_bytes(),
            |b| bf16::from_le_bytes(b).to_f32(),
            bf16::MAX.to_f32(),
        )?,
        _ => unreachable!("only F32, F16 and BF16 are cast to"),
    };
    Ok((bytes, saturated))
}

fn narrow(
    values: &[f32],
    to: DType,
    on_overflow: Overflow,
    saturated: &mut usize,
    encode: impl Fn(f32) -> [u8; 2],
    decode: impl Fn([u8; 2]) -> f32,
    max: f32,
) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(values.len() * 2);
    for (i, &v) in values.iter().enumerate() {
        let mut b = encode(v);
        if v.is_finite() && !decode(b).is_finite() {
            if on_overflow == Overflow::Error {
                return Err(overflow(i, v.into(), to));
            }
            *saturated += 1;
            b = encode(max.copysign(v));
        }
        out.extend(b);
    }
    Ok(out)
}

/// An F32 as its nearest value of F16 or BF16; as itself for other types.
pub fn rounded_to(dtype: DType) -> fn(f32) -> f32 {
    match dtype {
        DType::BF16 => |v| bf16::from_f32(v).to_f32(),
        DType::F16 => |v| f16::from_f32(v).to_f32(),
        _ => |v| v,
    }
}

/// Whether casting to `to` gives every element back exactly.
pub fn is_lossless(from: DType, src: &[u8], to: DType) -> bool {
    let Ok((bytes, _)) = cast(from, src, to, Overflow::Error) else { return false };
    match (to_f32(from, src), to_f32(to, &bytes)) {
        (Ok(a), Ok(b)) => a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits()),
        _ => false,
    }
}

fn overflow(index: usize, value: f64, to: DType) -> Error {
    Error::new(Code::CastOverflow, format!("element {index} is {value:e}, beyond the largest {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn overflow_is_an_error_that_names_the_element_and_saturates_on_request() {
        let src = bytes(&[1.0, 65504.0, 65520.0, -1e9]);
        let e = cast(DType::F32, &src, DType::F16, Overflow::Error).unwrap_err();
        assert_eq!(e.code(), Code::CastOverflow);
        assert!(e.to_string().contains("element 2"), "{e}");
        let (out, n) = cast(DType::F32, &src, DType::F16, Overflow::Saturate).unwrap();
        assert_eq!(n, 2);
        assert_eq!(to_f32(DType::F16, &out).unwrap(), [1.0, 65504.0, 65504.0, -65504.0]);
        let e = cast(DType::F32, &bytes(&[f32::MAX]), DType::BF16, Overflow::Error).unwrap_err();
        assert_eq!(e.code(), Code::CastOverflow);
        let e = to_f32(DType::F64, &1e300f64.to_le_bytes()).unwrap_err();
        assert_eq!(e.code(), Code::CastOverflow);
    }

    #[test]
    fn the_same_type_is_copied_bit_for_bit_even_for_nan_payloads() {
        let src = 0x7fa0_0001u32.to_le_bytes();
        assert_eq!(cast(DType::F32, &src, DType::F32, Overflow::Error).unwrap().0, src);
    }

    #[test]
    fn losslessness_is_about_values() {
        assert!(is_lossless(DType::F32, &bytes(&[1.5, -0.0, 0.25]), DType::BF16));
        assert!(!is_lossless(DType::F32, &bytes(&[1.001]), DType::BF16));
        assert!(!is_lossless(DType::F32, &bytes(&[1e9]), DType::F16));
    }
}
