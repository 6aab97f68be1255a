//! Rotary position embedding: component `j` of a head turned together with component `D/2 + j`.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{RUN, values, vectorized};

/// Turns `x` `[.., T, D]` by the angles whose cosines and sines are `[T, D/2]`.
pub fn rotate_halves(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op3_no_bwd(cos, sin, &RotateHalves) } else { on_gpu(x, cos, sin) }
}

fn on_gpu(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = cos.dim(D::Minus1)?;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

struct RotateHalves;

impl CustomOp3 for RotateHalves {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        cos: &CpuStorage,
        cos_l: &Layout,
        sin: &CpuStorage,
        sin_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_positions, half) = cos_l.shape().dims2()?;
        let (x, cos, sin) = (values(x, x_l)?, values(cos, cos_l)?, values(sin, sin_l)?);
        let d = 2 * half;
        if x_l.dims().len() < 2 || !x_l.dims().ends_with(&[n_positions, d]) || sin.len() != cos.len() {
            candle_core::bail!("expected angles for {:?}, found {:?}", x_l.shape(), cos_l.shape());
        }
        let mut out = x.to_vec();
        let n_rows = RUN.div_ceil(d.max(1));
        out.par_chunks_mut((n_rows * d).max(1)).enumerate().for_each(|(i, rows)| {
            vectorized(
                #[inline(always)]
                || {
                    for (k, row) in rows.chunks_exact_mut(d).enumerate() {
                        let position = (i * n_rows + k) % n_positions;
                        let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
                        let (a, b) = row.split_at_mut(half);
                        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                        }
                    }
                },
            );
        });
        Ok((CpuStorage::F32(out), x_l.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// `[2, 3, 300, 6]`, which takes more than one run, and angles for 300 positions.
    fn example() -> (Vec<f32>, Vec<f64>) {
        let x = (0..2 * 3 * 300 * 6).map(|i| ((i * 31 % 67) as f32 - 33.0) * 0.2).collect();
        let angles = (0..300 * 3).map(|i| f64::from(i / 3) * [1.0, 0.1, 0.01][i as usize % 3]).collect();
        (x, angles)
    }

    fn tensors((x, angles): &(Vec<f32>, Vec<f64>)) -> [Tensor; 3] {
        let table = |f: fn(f64) -> f64| {
            Tensor::from_vec(angles.iter().map(|a| f(*a) as f32).collect(), (300, 3), &Device::Cpu).unwrap()
        };
        [Tensor::from_slice(x, (2, 3, 300, 6), &Device::Cpu).unwrap(), table(f64::cos), table(f64::sin)]
    }

    #[test]
    fn pairs_turn_by_their_angle() {
        let example = example();
        let [x, cos, sin] = tensors(&example);
        let y: Vec<f32> = rotate_halves(&x, &cos, &sin).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (row, (y, x)) in y.chunks(6).zip(example.0.chunks(6)).enumerate() {
            for j in 0..3 {
                let angle = example.1[row % 300 * 3 + j];
                let (a, b) = (f64::from(x[j]), f64::from(x[j + 3]));
                let turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                for (found, expected) in [y[j], y[j + 3]].iter().zip(turned) {
                    assert!((f64::from(*found) - expected).abs() < 2e-6, "row {row}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn the_gpu_formula_gives_the_same_values() {
        let [x, cos, sin] = tensors(&example());
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (own, gpu) = (rotate_halves(&x, &cos, &sin).unwrap(), on_gpu(&x, &cos, &sin).unwrap());
        assert_eq!(values(own), values(gpu));
    }

    #[test]
    fn angles_of_other_positions_are_refused() {
        let [x, cos, sin] = tensors(&example());
        let other = x.narrow(2, 0, 299).unwrap();
        assert!(rotate_halves(&other, &cos, &sin).is_err());
    }
}
