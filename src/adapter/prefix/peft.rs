//! The one tensor in which PEFT saves keys and values. Source: `PeftModel.get_prompt` of PEFT 0.21.2.
//!
//! ```text
//!   prompt_embeddings [P, L * 2 * H_kv * D]      each row: keys of layer 0, values of layer 0, keys of layer 1, ..
//! ```

use std::collections::BTreeMap;

use super::KeysValues;
use crate::error::Result;
use crate::quant;
use crate::tensor::{Bytes, DType, LazyTensor};

/// The tensor's name.
pub const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

/// The layers of a tensor `[P, L * 2 * H_kv * D]`, as views; `None` for one that does not divide so.
pub fn of_prompt_embeddings(
    t: &LazyTensor,
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
) -> Option<BTreeMap<usize, KeysValues>> {
    let &[_, row_len] = t.shape() else { return None };
    let width = n_kv_heads.checked_mul(head_dim)?;
    if n_layers.checked_mul(2)?.checked_mul(width)? != row_len || row_len == 0 {
        return None;
    }
    let parts = t.clone().split_axis(1, 2 * n_layers, width).ok()?; // [P, 2L, H_kv * D]
    let parts = parts.split_axis(2, n_kv_heads, head_dim).ok()?.transpose(0, 1).transpose(1, 2); // [2L, H_kv, P, D]
    let layer = |i: usize| (i, KeysValues { keys: parts.select(2 * i), values: parts.select(2 * i + 1) });
    Some((0..n_layers).map(layer).collect())
}

/// The tensor `[P, L * 2 * H_kv * D]` of all layers, on the heap, in the type that all of them have or else F32.
///
/// # Errors
///
/// [`Code::ShapeOverflow`](crate::error::Code::ShapeOverflow).
pub fn to_prompt_embeddings(layers: &BTreeMap<usize, KeysValues>) -> Result<LazyTensor> {
    let parts: Vec<&LazyTensor> = layers.values().flat_map(|l| [&l.keys, &l.values]).collect();
    let (n_heads, n_tokens, head_dim) = match parts.first().map(|t| t.shape()) {
        Some(&[h, p, d]) => (h, p, d),
        _ => (0, 0, 0),
    };
    let first = parts.first().map_or(DType::F32, |t| t.dtype());
    let dtype = if parts.iter().all(|t| t.dtype() == first) { first } else { DType::F32 };
    let row_len = parts.len() * n_heads * head_dim;
    let n = head_dim * dtype.block_bytes();
    let mut out = vec![0u8; n_tokens * row_len * dtype.block_bytes()];
    for (i, t) in parts.iter().enumerate() {
        let bytes = match t.dtype() == dtype {
            true => t.to_bytes(),
            false => bytemuck::cast_slice(&decoded(t)).to_vec(),
        };
        for (j, row) in bytes.chunks_exact(n.max(1)).enumerate() {
            let (head, token) = (j / n_tokens, j % n_tokens);
            let at = ((token * parts.len() + i) * n_heads + head) * n;
            out[at..at + n].copy_from_slice(row);
        }
    }
    LazyTensor::new(Bytes::from(out), dtype, &[n_tokens, row_len])
}

fn decoded(t: &LazyTensor) -> Vec<f32> {
    let mut values = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut values);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_those_of_peft_and_go_back() {
        const P: usize = 3;
        let (l, h, d) = (2, 2, 4);
        let values: Vec<f32> = (0..P * l * 2 * h * d).map(|i| i as f32).collect();
        let t = LazyTensor::from_f32(&values, &[P, l * 2 * h * d]);
        let layers = of_prompt_embeddings(&t, l, h, d).unwrap();
        // Computed by numpy: reshape(P, 2L, H, D).transpose(1, 2, 0, 3)
        assert_eq!(layers[&1].values.shape(), [h, P, d]);
        assert_eq!(decoded(&layers[&0].keys)[..8], [0.0, 1.0, 2.0, 3.0, 32.0, 33.0, 34.0, 35.0]);
        assert_eq!(decoded(&layers[&1].values)[12..20], [28.0, 29.0, 30.0, 31.0, 60.0, 61.0, 62.0, 63.0]);
        assert_eq!(to_prompt_embeddings(&layers).unwrap().to_bytes(), t.to_bytes());
        assert!(of_prompt_embeddings(&t, 2, 2, 5).is_none() && of_prompt_embeddings(&t, usize::MAX, 2, 4).is_none());
    }
}
