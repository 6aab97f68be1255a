//! Digests of weights, each read once for all adapters of a base: whole, or some rows of large ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::{BaseModel, BlockWeight, Rows, Weight};
use crate::digest::hex;
use crate::error::Result;
use crate::quant;
use crate::tensor::DType;

/// How many values of each weight are read: of many weights fewer of each, so that they stay 16 MB of BF16 in all. A LoRA on all
/// projections of a 7B model would otherwise take a conversion from 0.1 s to half a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sample {
    /// A weight of so many values is read whole; of a larger one as many rows as have so many, within [`Self::ROWS`].
    n_values: usize,
}

impl Sample {
    const ALL_VALUES: usize = 1 << 23;
    pub(super) const MOST_VALUES: usize = 1 << 20;
    /// At least 8 rows, which are less than the A of a LoRA with 8 ranks.
    const ROWS: [usize; 2] = [8, 64];

    /// Of each of so many weights.
    pub(super) fn of_each(n_weights: usize) -> Sample {
        Sample { n_values: (Self::ALL_VALUES / n_weights.max(1)).min(Self::MOST_VALUES) }
    }

    /// The rows to read of a matrix: all, or some at even distances, the first and the last among them.
    fn rows(self, n_rows: usize, row_len: usize) -> impl Iterator<Item = usize> {
        let [least, most] = Self::ROWS;
        let n = match n_rows * row_len <= self.n_values {
            true => n_rows,
            false => (self.n_values / row_len).clamp(least, most).min(n_rows),
        };
        (0..n).map(move |i| if n == n_rows { i } else { i * (n_rows - 1) / (n - 1) })
    }
}

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// What makes a layer's queries.
    Query(usize),
    /// So much of a matrix.
    Weight(Weight, Sample),
}

/// Digests that were asked for, shared by the clones of a base.
pub(super) type Digests = Arc<Mutex<BTreeMap<Key, (DType, String)>>>;

pub(super) fn known_digest(base: &BaseModel, key: Key) -> Result<(DType, String)> {
    let known = || base.digests.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(&key) {
        return Ok(found.clone());
    }
    let found = match key {
        Key::Query(layer) => read_query(base, layer)?,
        Key::Weight(weight, sample) => read_weight(base, weight, sample)?,
    };
    known().insert(key, found.clone());
    Ok(found)
}

/// Type and digest of what makes a layer's queries from hidden states.
fn read_query(base: &BaseModel, layer: usize) -> Result<(DType, String)> {
    let rows = base.rows(Weight::Block(layer, BlockWeight::Query))?;
    let mut all = Sha256::new();
    all.update(weight_digest(&rows, 0..rows.n_rows()));
    for part in [BlockWeight::QueryBias, BlockWeight::QueryNorm] {
        let weight = Weight::Block(layer, part);
        if base.tensor(weight).is_some() {
            let mut halves = Halves::default();
            halves.add(&base.vector(weight)?);
            all.update(halves.digest());
        }
    }
    if let Some(t) = base.tensor(Weight::Block(layer, BlockWeight::Query)) {
        t.bytes.release();
    }
    Ok((rows.dtype(), hex(&all.finalize())))
}

/// Type and digest of a matrix, or of some of its rows.
fn read_weight(base: &BaseModel, weight: Weight, sample: Sample) -> Result<(DType, String)> {
    let rows = base.rows(weight)?;
    let release = || base.tensor(weight).into_iter().for_each(|t| t.bytes.release());
    let which: Vec<usize> = sample.rows(rows.n_rows(), rows.row_len()).collect();
    let is_whole = which.len() == rows.n_rows();
    // With a row come pages around it, up to megabytes, which count as this process' memory.
    let each = which.into_iter().enumerate().map(|(i, row)| {
        if !is_whole && i > 0 && i.is_multiple_of(Sample::ROWS[0]) {
            release();
        }
        row
    });
    let digest = weight_digest(&rows, each);
    release();
    Ok((rows.dtype(), hex(&Sha256::digest(digest))))
}

fn weight_digest(rows: &Rows, which: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut halves = Halves::default();
    if rows.dtype() == DType::BF16 {
        // Upper halves already, and nothing else.
        which.for_each(|row| halves.upper.update(rows.encoded(row)));
        return halves.digest();
    }
    let mut values = vec![0f32; rows.row_len()];
    for row in which {
        quant::decode(rows.dtype(), rows.encoded(row), &mut values);
        halves.add(&values);
    }
    halves.digest()
}

/// A digest of F32 values: of the upper halves of their bits, and of the lower ones if any is not zero. Values of BF16 are
/// upper halves, so they are hashed as they lie in the file, at half the cost, and a copy of them widened to F32 has the
/// same digest.
#[derive(Default)]
struct Halves {
    upper: Sha256,
    lower: Sha256,
    has_lower: bool,
    bytes: Vec<u8>,
}

impl Halves {
    fn add(&mut self, values: &[f32]) {
        let split = |bytes: &mut Vec<u8>, shift: u32| {
            bytes.resize(2 * values.len(), 0);
            for (half, v) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *half = ((v.to_bits() >> shift) as u16).to_le_bytes();
            }
        };
        split(&mut self.bytes, 16);
        self.upper.update(&self.bytes);
        split(&mut self.bytes, 0);
        self.lower.update(&self.bytes);
        self.has_lower |= self.bytes.iter().any(|b| *b != 0);
    }

    fn digest(self) -> Vec<u8> {
        let mut out = self.upper.finalize().to_vec();
        if self.has_lower {
            out.extend_from_slice(&self.lower.finalize());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::LazyTensor;
    use std::path::Path;

    #[test]
    fn widened_bf16_is_the_same() {
        let rounded: Vec<f32> = [1.5f32, -0.1, 3.0e-9].iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let mut widened = Halves::default();
        widened.add(&rounded);
        let mut stored = Halves::default();
        stored.upper.update(rounded.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(widened.digest(), stored.digest());
    }

    #[test]
    fn of_many_weights_less_of_each_counts_and_a_model_that_was_trained_further_differs() {
        let rows = |n_weights, n_rows, row_len| Sample::of_each(n_weights).rows(n_rows, row_len).collect::<Vec<_>>();
        // q_proj of the 32 layers of a 7B model, then all of its 224 projections.
        assert_eq!(rows(32, 4096, 4096).len(), 64);
        assert_eq!(rows(224, 4096, 4096), [0, 511, 1023, 1535, 2047, 2559, 3071, 3583, 4095]);
        assert_eq!(rows(224, 4096, 11008).len(), 8);
        assert_eq!((rows(224, 128, 64), rows(9000, 5, 4096)), ((0..128).collect(), (0..5).collect()));
        for (n_rows, row_len) in [(1, 0), (0, 1), (0, 0), (1, 1 << 30)] {
            assert_eq!(rows(1 << 40, n_rows, row_len), (0..n_rows).collect::<Vec<_>>());
        }

        let base =
            BaseModel::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-mha/base")).unwrap();
        let weight = Weight::Block(0, BlockWeight::Gate);
        let values = base.rows(weight).unwrap().to_f32();
        let shape = base.tensor(weight).unwrap().shape.clone();
        let sample = Sample { n_values: shape[1] };
        let digest = |change: &dyn Fn(usize) -> f32| {
            let values: Vec<f32> = values.iter().enumerate().map(|(i, v)| v + change(i)).collect();
            let changed = [(weight, LazyTensor::from_f32(&values, &shape))];
            read_weight(&base.with_weights(base.config.clone(), changed).unwrap(), weight, sample).unwrap()
        };
        let same = digest(&|_| 0.0);
        let sampled: Vec<usize> = sample.rows(shape[0], shape[1]).collect();
        assert!(sampled.len() < shape[0]);
        assert_ne!(same, digest(&|i| i as f32 * 1e-6), "all elements");
        for row in 0..shape[0] {
            let found = digest(&|i| if i == row * shape[1] + row % shape[1] { 1e-3 } else { 0.0 });
            assert_eq!(found != same, sampled.contains(&row), "one element of row {row}");
        }
    }
}
