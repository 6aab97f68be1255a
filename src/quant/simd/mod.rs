//! Which instructions do the work: chosen when the program runs, with the same bytes as result.
//!
//! The simple formats are plain loops that the compiler vectorises; [`Machine::run`] compiles them once more for
//! machines with AVX2. The searches of the k-quants cannot be vectorised inside a sub-block, since the order of every
//! sum matters; [`avx2`] works on eight sub-blocks at once, one per lane, so that each lane adds in order.

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::search::{self, Affine};

/// Work that is compiled for several machines. `run` must be `#[inline(always)]`, or it is compiled for one.
pub trait Kernel {
    /// Does the work.
    fn run(self, machine: impl Machine);
}

/// A way to do the searches; the value proves that the processor can.
pub trait Machine: Copy {
    /// Scales and (negated) minimums of eight sub-blocks, as [`search::affine`].
    fn affine<const SUB: usize>(self, x: &[[f32; SUB]; 8], p: &Affine) -> ([f32; 8], [f32; 8]);
    /// Scales of 16 sub-blocks, as [`search::symmetric`].
    fn symmetric(self, x: &[[f32; 16]; 16]) -> [f32; 16];
    /// Scales of 16 sub-blocks, as [`search::coordinates`].
    fn coordinates(self, x: &[[f32; 16]; 16]) -> [f32; 16];
}

/// Runs `kernel` on the best this machine has.
pub fn run(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if let Some(machine) = avx2::Avx2::detect() {
        return machine.run(kernel);
    }
    kernel.run(Scalar);
}

/// The reference, which every processor can do.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Machine for Scalar {
    fn affine<const SUB: usize>(self, x: &[[f32; SUB]; 8], p: &Affine) -> ([f32; 8], [f32; 8]) {
        let found = x.each_ref().map(|x| search::affine(x, p));
        (found.map(|f| f.0), found.map(|f| f.1))
    }

    fn symmetric(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        x.each_ref().map(|x| search::symmetric(x).0)
    }

    fn coordinates(self, x: &[[f32; 16]; 16]) -> [f32; 16] {
        x.each_ref().map(|x| search::coordinates(x).0)
    }
}
