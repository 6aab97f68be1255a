//! The feed-forward network's gate: `silu(gate) * up`.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::sigmoid;
use super::{RUN, values, vectorized};

/// `[N, 2n]`, in each row the gate before the up projection, to `[N, n]`.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    if gate_up.device().is_cpu() {
        return gate_up.contiguous()?.apply_op1_no_bwd(&SwiGlu);
    }
    on_gpu(gate_up)
}

fn on_gpu(gate_up: &Tensor) -> Result<Tensor> {
    let n = gate_up.dim(D::Minus1)? / 2;
    gate_up.narrow(D::Minus1, 0, n)?.silu()? * gate_up.narrow(D::Minus1, n, n)?
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = layout.shape().dims2()?;
        let x = values(storage, layout)?;
        let n = width / 2;
        let mut out = vec![0f32; n_rows * n];
        let run = RUN.div_ceil(n.max(1));
        out.par_chunks_mut((run * n).max(1)).zip(x.par_chunks((run * width).max(1))).for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(width)) {
                        let (gate, up) = x.split_at(n);
                        for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                            *o = g * sigmoid(*g) * u;
                        }
                    }
                },
            );
        });
        Ok((CpuStorage::F32(out), (n_rows, n).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_formula_gives_the_same_values() {
        let x: Vec<f32> = (0..2 * 26).map(|i| ((i * 29 % 61) as f32 - 30.0) * 0.4).collect();
        let x = Tensor::from_vec(x, (2, 26), &candle_core::Device::Cpu).unwrap();
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in values(swiglu(&x).unwrap()).into_iter().zip(values(on_gpu(&x).unwrap())) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{a} {b}");
        }
    }
}
