//! Weights on demand, always in Hugging Face component order.
//!
//! [`Rows`] is a matrix whose rows stay encoded in the memory map; the reordering of the query and key rows that GGUF
//! files of NORM architectures have is undone there, row by row, and nowhere else.

use std::ops::Range;

use rayon::prelude::*;

use super::{BaseModel, BlockWeight, Dialect, Weight};
use crate::base::RowOrder;
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::quant;
use crate::tensor::{Bytes, DType, LazyTensor};

/// A weight matrix `[n_rows, row_len]` whose rows are decoded when asked for.
#[derive(Debug, Clone)]
pub struct Rows {
    bytes: Bytes,
    dtype: DType,
    n_rows: usize,
    row_len: usize,
    /// Length of a head where the file has its rows in [`RowOrder::Norm`].
    norm_head_dim: Option<usize>,
}

impl Rows {
    /// A whole tensor, of a type that is decoded, as rows in the order of the file.
    pub(super) fn of(t: &StoredTensor) -> Rows {
        let row_len = t.shape.last().copied().unwrap_or(1);
        let n_rows = t.shape.iter().product::<usize>() / row_len.max(1);
        Rows { bytes: t.bytes.clone(), dtype: t.dtype, n_rows, row_len, norm_head_dim: None }
    }

    /// Number of rows: outputs of the projection.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Length of a row: inputs of the projection.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Type of the encoded elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Row `row` in Hugging Face order, encoded.
    #[inline(always)]
    pub fn encoded(&self, row: usize) -> &[u8] {
        let row = self.norm_head_dim.map_or(row, |d| norm_row(row, d));
        let row_bytes = self.row_len / self.dtype.block_len() * self.dtype.block_bytes();
        &self.bytes[row * row_bytes..(row + 1) * row_bytes]
    }

    /// Decodes rows, on all threads, into `out` of `rows.len() * row_len` values.
    pub fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.row_len);
        if self.row_len == 0 {
            return;
        }
        // Threads take runs of about this many values, enough to outweigh the hand-over.
        let run = (1usize << 14).div_ceil(self.row_len);
        out.par_chunks_mut(run * self.row_len).enumerate().for_each(|(i, values)| {
            for (k, row) in values.chunks_exact_mut(self.row_len).enumerate() {
                quant::decode(self.dtype, self.encoded(rows.start + i * run + k), row);
            }
        });
    }

    /// Every value, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.n_rows * self.row_len];
        self.decode(0..self.n_rows, &mut out);
        out
    }
}

/// Where [`RowOrder::Norm`] has the row that Hugging Face has at `row`: `t*D/2 + j` lies at `2j + t` of its head.
#[inline(always)]
fn norm_row(row: usize, head_dim: usize) -> usize {
    let (head, r) = (row / head_dim, row % head_dim);
    let (t, j) = (r / (head_dim / 2), r % (head_dim / 2));
    head * head_dim + 2 * j + t
}

impl BaseModel {
    /// The matrix `weight`.
    ///
    /// # Errors
    ///
    /// [`Code::BaseTensor`] where the model has no such weight, [`Code::ConfigUnsupported`] for an element
    /// type that is not decoded here. Asserts that the weight is a matrix.
    pub fn rows(&self, weight: Weight) -> Result<Rows> {
        let t = self.decodable(weight)?;
        let [n_rows, row_len] = t.shape[..] else { panic!("{} is no matrix", t.name) };
        Ok(Rows { bytes: t.bytes.clone(), dtype: t.dtype, n_rows, row_len, norm_head_dim: self.norm_head_dim(weight) })
    }

    /// The vector `weight`: a norm, a bias or RoPE's divisors.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    pub fn vector(&self, weight: Weight) -> Result<Vec<f32>> {
        let t = self.decodable(weight)?;
        let mut values = vec![0f32; t.shape.iter().product()];
        quant::decode(t.dtype, &t.bytes, &mut values);
        if self.dialect == Dialect::HuggingFace && self.is_less_one(weight) {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        Ok(match self.norm_head_dim(weight) {
            Some(d) => (0..values.len()).map(|row| values[norm_row(row, d)]).collect(),
            None => values,
        })
    }

    /// `weight` as a view of what is stored, its rows in Hugging Face order.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    pub fn in_hugging_face_order(&self, weight: Weight) -> Result<LazyTensor> {
        let t = self.decodable(weight)?.lazy()?;
        let Some(d) = self.norm_head_dim(weight) else { return Ok(t) };
        let n_heads = t.shape()[0] / d;
        Ok(t.split_axis(0, n_heads, d)?.regroup(1, 2).merge_axes(0))
    }

    /// The embeddings of `ids`, `[ids.len(), hidden]`; only the rows that occur are decoded.
    ///
    /// # Errors
    ///
    /// [`Code::ProbeMismatch`] for an id outside the vocabulary; as [`rows`](Self::rows).
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let rows = self.rows(Weight::TokenEmbedding)?;
        let mut out = vec![0f32; ids.len() * rows.row_len];
        for (&id, values) in ids.iter().zip(out.chunks_exact_mut(rows.row_len)) {
            let row = id as usize;
            if row >= rows.n_rows {
                let message = format!("expected token ids below {}, found {id}", rows.n_rows);
                return Err(Error::new(Code::ProbeMismatch, message).file(&self.path).field("input_ids"));
            }
            quant::decode(rows.dtype, rows.encoded(row), values);
        }
        Ok(out)
    }

    /// The weight whose tensor holds `weight`: that of a tied head is the token embedding.
    ///
    /// # Errors
    ///
    /// As [`output_weight`](Self::output_weight).
    pub fn stored_weight(&self, weight: Weight) -> Result<Weight> {
        if weight == Weight::Output { self.output_weight() } else { Ok(weight) }
    }

    /// The weight whose rows give the logits: the output head, or the token embedding where both are one.
    ///
    /// # Errors
    ///
    /// [`Code::BaseTensor`] for a folder that declares both to be one and holds two that differ; versions of
    /// transformers disagree on which of them counts.
    pub fn output_weight(&self) -> Result<Weight> {
        if !self.config.tied_embeddings {
            return Ok(Weight::Output);
        }
        let (embedding, output) = (self.tensor(Weight::TokenEmbedding), self.tensor(Weight::Output));
        if let (Some(e), Some(o)) = (embedding, output)
            && (e.dtype != o.dtype || *e.bytes != *o.bytes)
        {
            let message = format!("expected the values of {}, to which config.json ties it, found others", e.name);
            return Err(Error::new(Code::BaseTensor, message).file(&o.file).field(&o.name));
        }
        Ok(Weight::TokenEmbedding)
    }

    pub(super) fn decodable(&self, weight: Weight) -> Result<&StoredTensor> {
        let t = self.tensor(weight).ok_or_else(|| {
            let name = self.name_of(weight);
            Error::new(Code::BaseTensor, "expected a tensor, found none").file(&self.path).field(name)
        })?;
        if quant::can_decode(t.dtype) {
            t.verify()?;
            return Ok(t);
        }
        let message = format!("expected a float or quantized type that ptplus decodes, found {}", t.dtype);
        Err(Error::new(Code::ConfigUnsupported, message).file(&t.file).field(&t.name).at(t.file_offset))
    }

    /// Whether Hugging Face's files hold this weight less 1.
    pub(crate) fn is_less_one(&self, weight: Weight) -> bool {
        self.config.norms.stored_less_one && weight.is_norm()
    }

    fn norm_head_dim(&self, weight: Weight) -> Option<usize> {
        use BlockWeight::{Key, KeyBias, Query, QueryBias};
        let turned = matches!(weight, Weight::Block(_, Query | QueryBias | Key | KeyBias));
        let reordered = self.dialect == Dialect::Gguf && self.row_order() == RowOrder::Norm;
        (turned && reordered).then_some(self.config.head_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_rows_are_the_row_order_of_the_specification() {
        let (heads, d) = (2, 6);
        let hf: Vec<f32> = (0..heads * d).map(|i| i as f32).collect();
        let norm = LazyTensor::from_f32(&hf, &[heads, d]).regroup(1, d / 2).to_bytes();
        for (row, value) in hf.iter().enumerate() {
            let at = norm_row(row, d) * 4;
            assert_eq!(norm[at..at + 4], value.to_le_bytes());
        }
    }
}
