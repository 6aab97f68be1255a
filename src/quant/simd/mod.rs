//! Which instructions do the work: chosen when the program runs, with the same bytes as result.
//!
//! A [`Kernel`] is compiled once for every processor and once for those with AVX2, where the compiler vectorises its
//! plain loops with wider registers. What it does not find is written out: minimum, maximum and rounding of 32
//! elements (`avx2`), and the searches of the k-quants (`avx2_search`). Those cannot be vectorised inside a sub-block,
//! since the order of every sum matters; eight sub-blocks are searched at once, one per lane, so that each adds in order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_search;
pub mod integer;

use super::round;
use super::search::{self, Affine};

/// Work that is compiled for several machines. `run` must be `#[inline(always)]`, or it is compiled for one.
pub trait Kernel {
    /// Does the work.
    fn run(self, machine: impl Machine);
}

/// A way to do what takes long; the value proves that the processor can.
pub trait Machine: Copy {
    /// As [`round::min_max`].
    fn min_max(self, x: &[f32; 32]) -> (f32, f32);
    /// As [`round::magnitude`].
    fn magnitude(self, x: &[f32; 32]) -> f32;
    /// As [`round::codes`].
    fn codes(self, x: &[f32; 32], min: f32, id: f32, half: f32) -> [u8; 32];
    /// As [`round::signed_codes`].
    fn signed_codes(self, x: &[f32; 32], id: f32) -> [i8; 32];
    /// As [`search::largest`].
    #[inline(always)]
    fn largest(self, x: &[f32; 32]) -> f32 {
        let (min, max) = self.min_max(x);
        if max > -min {
            max
        } else if max < -min {
            min
        } else {
            search::largest(x)
        }
    }
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
    fn min_max(self, x: &[f32; 32]) -> (f32, f32) {
        round::min_max(x)
    }

    fn magnitude(self, x: &[f32; 32]) -> f32 {
        round::magnitude(x)
    }

    fn codes(self, x: &[f32; 32], min: f32, id: f32, half: f32) -> [u8; 32] {
        round::codes(x, min, id, half)
    }

    fn signed_codes(self, x: &[f32; 32], id: f32) -> [i8; 32] {
        round::signed_codes(x, id)
    }

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

#[cfg(test)]
#[path = "../../../tests/quant_inputs/mod.rs"]
mod inputs;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::Norm;

    /// Compares everything that machines do, also where no byte of a block would show a difference.
    struct CompareWithScalar<'a> {
        name: &'a str,
        x: &'a [f32],
    }

    impl Kernel for CompareWithScalar<'_> {
        fn run(self, machine: impl Machine) {
            let Self { name, x } = self;
            for p in [
                Affine { max_code: 15, first: -1.0, last_step: 20, norm: Norm::Squared },
                Affine { max_code: 3, first: -0.5, last_step: 15, norm: Norm::Absolute },
            ] {
                for x in x.as_chunks::<32>().0.as_chunks::<8>().0 {
                    let (a, b) = (machine.affine(x, &p), Scalar.affine(x, &p));
                    assert_eq!((bits(&a.0), bits(&a.1)), (bits(&b.0), bits(&b.1)), "affine {name} {x:?}");
                }
            }
            for x in x.as_chunks::<16>().0.as_chunks::<16>().0 {
                assert_eq!(bits(&machine.symmetric(x)), bits(&Scalar.symmetric(x)), "symmetric {name} {x:?}");
                assert_eq!(bits(&machine.coordinates(x)), bits(&Scalar.coordinates(x)), "coordinates {name} {x:?}");
            }
            for x in x.as_chunks::<32>().0 {
                let (a, b) = (machine.min_max(x), Scalar.min_max(x));
                assert_eq!(bits(&[a.0, a.1]), bits(&[b.0, b.1]), "min_max {name} {x:?}");
                assert_eq!(machine.magnitude(x), Scalar.magnitude(x), "magnitude {name} {x:?}");
                assert_eq!(bits(&[machine.largest(x)]), bits(&[search::largest(x)]), "largest {name} {x:?}");
            }
        }
    }

    /// One NaN is as good as another: which one an operation gives depends on the order of its operands.
    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
    }

    #[test]
    fn every_search_finds_the_same_to_the_last_bit() {
        // Miri takes a minute for one.
        for name in &inputs::KINDS[..if cfg!(miri) { 1 } else { inputs::KINDS.len() }] {
            run(CompareWithScalar { name, x: &inputs::make(name, inputs::N) });
        }
        // Infinities are refused before they get here; even so no machine may differ.
        let mut rng = inputs::Rng(5);
        let x: Vec<f32> = (0..inputs::N)
            .map(|_| if rng.next().is_multiple_of(40) { rng.uniform().signum() * f32::INFINITY } else { rng.uniform() })
            .collect();
        run(CompareWithScalar { name: "infinities", x: &x });
    }
}
