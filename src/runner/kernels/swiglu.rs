//! The feed-forward network's gate: `activation(gate) * up`.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::{gelu, gelu_tanh, sigmoid};
use super::{RUN, values, vectorized};
use crate::base::Activation;

/// `[N, 2n]`, in each row the gate before the up projection, to `[N, n]`.
pub fn gated(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate_up.device().is_cpu() {
        return gate_up.contiguous()?.apply_op1_no_bwd(&Gated(activation));
    }
    on_gpu(gate_up, activation)
}

fn on_gpu(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let n = gate_up.dim(D::Minus1)? / 2;
    let gate = gate_up.narrow(D::Minus1, 0, n)?;
    let activated = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Gelu => gate.gelu_erf()?,
    };
    activated * gate_up.narrow(D::Minus1, n, n)?
}

/// Rows of `$out` from rows of `$x`. A macro, so that nothing can stay a call in the vectorised loop.
macro_rules! rows {
    ($out:ident, $x:ident, $n:ident, $g:ident => $activated:expr) => {
        vectorized(
            #[inline(always)]
            || {
                for (out, x) in $out.chunks_exact_mut($n).zip($x.chunks_exact(2 * $n)) {
                    let (gate, up) = x.split_at($n);
                    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                        let $g = *g;
                        *o = $activated * u;
                    }
                }
            },
        )
    };
}
struct Gated(Activation);

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated linear unit"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = layout.shape().dims2()?;
        let x = values(storage, layout)?;
        let n = width / 2;
        let mut out = vec![0f32; n_rows * n];
        let run = RUN.div_ceil(n.max(1));
        out.par_chunks_mut((run * n).max(1)).zip(x.par_chunks((run * width).max(1))).for_each(|(out, x)| {
            match self.0 {
                Activation::Silu => rows!(out, x, n, g => g * sigmoid(g)),
                Activation::GeluTanh => rows!(out, x, n, g => gelu_tanh(g)),
                Activation::Gelu => rows!(out, x, n, g => gelu(g)),
            }
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
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let (cpu, gpu) = (values(gated(&x, activation).unwrap()), values(on_gpu(&x, activation).unwrap()));
            for (a, b) in cpu.into_iter().zip(gpu) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{activation:?} {a} {b}");
            }
        }
    }
}
