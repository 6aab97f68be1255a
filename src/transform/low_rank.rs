//! Low-rank additions to a weight, row by row, in F32: what merging writes and what DoRA needs to know of the base.
//!
//! ```text
//!   W' = W + scale * B A                       LoRA
//!   W'[i] = magnitude[i] / |V[i]| * V[i]       DoRA, V = W + scale * B A
//! ```

use crate::error::{Code, Error, Result};
use crate::quant;
use crate::tensor::LazyTensor;

/// An addition to a weight W `[rows, columns]`, decoded.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// A `[r, columns]`
    pub a: Vec<f32>,
    /// B `[rows, r]`
    pub b: Vec<f32>,
    /// r
    pub rank: usize,
    /// Columns of W.
    pub row_len: usize,
    /// The factor on B A.
    pub scale: f32,
    /// DoRA's lengths of the rows of W', `[rows]`.
    pub magnitude: Option<Vec<f32>>,
}

impl LowRank {
    /// Decodes A `[r, columns]` and B `[rows, r]`, and the magnitudes `[rows]` of a DoRA.
    ///
    /// # Errors
    ///
    /// [`Code::AdapterShape`] where they do not fit together; [`Code::ConfigUnsupported`] for an element type that is not
    /// decoded here.
    pub fn new(a: &LazyTensor, b: &LazyTensor, scale: f64, magnitude: Option<&LazyTensor>) -> Result<LowRank> {
        let refuse = |what: &str, t: &LazyTensor| {
            Err(Error::new(Code::AdapterShape, format!("expected {what}, found {:?}", t.shape())))
        };
        let &[rank, row_len] = a.shape() else { return refuse("a matrix A [r, columns]", a) };
        let &[n_rows, columns] = b.shape() else { return refuse("a matrix B [rows, r]", b) };
        if columns != rank {
            return refuse(&format!("B of as many columns as A has rows, {rank}"), b);
        }
        if let Some(m) = magnitude.filter(|m| m.shape() != [n_rows]) {
            return refuse(&format!("magnitudes of {n_rows} rows"), m);
        }
        let magnitude = magnitude.map(decoded).transpose()?;
        Ok(LowRank { a: decoded(a)?, b: decoded(b)?, rank, row_len, scale: scale as f32, magnitude })
    }

    /// Rows of W.
    pub fn n_rows(&self) -> usize {
        self.b.len().checked_div(self.rank).unwrap_or(0)
    }

    /// Adds to `sum` what makes row `row` of W, which is `w`, the row of W'. `room` has a row's length.
    ///
    /// `sum` may hold the additions of others: each is a function of the base's own row, as in PEFT, so that their order
    /// does not count.
    pub fn add_to_row(&self, row: usize, w: &[f32], room: &mut [f32], sum: &mut [f32]) {
        self.product(row, room);
        match self.gain(row, w, room) {
            None => sum.iter_mut().zip(&*room).for_each(|(s, d)| *s += d),
            Some(gain) => {
                let addition = |w: &f32, d: &f32| (gain - 1.0) * w + gain * d;
                sum.iter_mut().zip(w.iter().zip(&*room)).for_each(|(s, (w, d))| *s += addition(w, d));
            }
        }
    }

    /// Row `row` of `scale * B A`.
    fn product(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        let b = &self.b[row * self.rank..][..self.rank];
        // Four rows of A at a time: `out` is read and written once for them.
        let (fours, rest) = b.as_chunks::<4>();
        let n = self.row_len;
        for (i, [b0, b1, b2, b3]) in fours.iter().enumerate() {
            let mut rows = self.a[4 * i * n..][..4 * n].chunks_exact(n);
            let mut next = || rows.next().unwrap_or_default();
            let (a0, a1, a2, a3) = (next(), next(), next(), next());
            for (k, out) in out.iter_mut().enumerate() {
                *out += b0 * a0[k] + b1 * a1[k] + b2 * a2[k] + b3 * a3[k];
            }
        }
        for (b, a) in rest.iter().zip(self.a[4 * fours.len() * n..].chunks_exact(n.max(1))) {
            out.iter_mut().zip(a).for_each(|(out, a)| *out += b * a);
        }
        out.iter_mut().for_each(|out| *out *= self.scale);
    }

    /// DoRA's factor on a row of `W + scale * B A`, of which `product` is the second part.
    fn gain(&self, row: usize, w: &[f32], product: &[f32]) -> Option<f32> {
        let magnitude = self.magnitude.as_ref()?[row];
        let square: f64 = w.iter().zip(product).map(|(w, d)| f64::from(w + d).powi(2)).sum();
        Some((f64::from(magnitude) / square.sqrt()) as f32)
    }

    /// DoRA's factors for rows of W from `first` on, as many as `w` has.
    pub fn gains(&self, first: usize, w: &[f32]) -> Vec<f32> {
        let mut room = vec![0.0; self.row_len];
        let mut one = |(i, w): (usize, &[f32])| {
            self.product(first + i, &mut room);
            self.gain(first + i, w, &room).unwrap_or(1.0)
        };
        w.chunks_exact(self.row_len.max(1)).enumerate().map(&mut one).collect()
    }
}

/// Every value.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for an element type that is not decoded here.
pub fn decoded(t: &LazyTensor) -> Result<Vec<f32>> {
    if !quant::can_decode(t.stored_dtype()) {
        let message = format!("expected a float or quantized type that ptplus decodes, found {}", t.stored_dtype());
        return Err(Error::new(Code::ConfigUnsupported, message));
    }
    let mut values = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut values);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.7).sin()).collect()
    }

    #[test]
    fn rows_are_those_of_the_matrix_product() {
        let (rows, columns) = (5, 7);
        for rank in [1, 3, 4, 9] {
            let (a, b) = (values(rank * columns, 1.0), values(rows * rank, 2.0));
            let w = values(rows * columns, 3.0);
            let (a_t, b_t) = (LazyTensor::from_f32(&a, &[rank, columns]), LazyTensor::from_f32(&b, &[rows, rank]));
            let magnitude = values(rows, 4.0);
            let m = LazyTensor::from_f32(&magnitude, &[rows]);
            for magnitude in [None, Some(&m)] {
                let x = LowRank::new(&a_t, &b_t, 0.5, magnitude).unwrap();
                let mut room = vec![0.0; columns];
                for row in 0..rows {
                    let w = &w[row * columns..][..columns];
                    let mut sum = w.to_vec();
                    x.add_to_row(row, w, &mut room, &mut sum);
                    let product =
                        |k: usize| (0..rank).map(|j| f64::from(b[row * rank + j] * a[j * columns + k])).sum::<f64>();
                    let v: Vec<f64> = (0..columns).map(|k| f64::from(w[k]) + 0.5 * product(k)).collect();
                    let length = v.iter().map(|v| v * v).sum::<f64>().sqrt();
                    let gain = x.magnitude.as_ref().map_or(1.0, |m| f64::from(m[row]) / length);
                    for (found, v) in sum.iter().zip(&v) {
                        assert!((f64::from(*found) - gain * v).abs() < 1e-5, "rank {rank}, row {row}");
                    }
                    if magnitude.is_some() {
                        assert!((f64::from(x.gains(row, w)[0]) - gain).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn halves_that_do_not_fit_are_refused() {
        let t = |shape: &[usize]| LazyTensor::from_f32(&vec![0.0; shape.iter().product()], shape);
        for (a, b, m) in [
            (t(&[2, 3]), t(&[4, 3]), None),
            (t(&[2]), t(&[4, 2]), None),
            (t(&[2, 3]), t(&[8]), None),
            (t(&[2, 3]), t(&[4, 2]), Some(t(&[3]))),
        ] {
            assert_eq!(LowRank::new(&a, &b, 1.0, m.as_ref()).unwrap_err().code(), Code::AdapterShape);
        }
    }
}
