//! Products of codes with activations in 8 bits: integers within a group, F32 across groups.
//!
//! Every machine computes the same integers. What is rounded, the sum over groups, is added in another order on each.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;

use crate::float;

/// Rows of weights that [`Integer::tile`] takes at once.
pub const ROWS: usize = 16;

/// Rows of activations that [`Integer::tile`] takes at once.
pub const LANES: usize = 8;

/// Scale and minimum of a group of weights: `x[i] = scale * code[i] + min`. Of activations, what those are multiplied
/// with: their scale, and their scale times the sum of their codes.
pub type Term = [f32; 2];

/// Work that is compiled for several machines. `run` must be `#[inline(always)]`, or it is compiled for one.
pub trait Kernel {
    /// Does the work.
    fn run(self, machine: impl Integer);
}

/// A way to multiply; the value proves that the processor can. `G` is the elements of a group, 16 or 32.
pub trait Integer: Copy {
    /// The two F16 in `bits`, the lower first.
    fn halves(self, bits: u32) -> Term;

    /// A row of weights, `k` codes with a term for every `G`, times a row of activations with such terms. `k` is a multiple
    /// of 32, and no code is larger than `max_code`.
    fn dot<const G: usize>(self, codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term], max_code: u8) -> f32;

    /// A row of F16 weights, as they are stored, times activations of the same length.
    fn dot_f16(self, row: &[[u8; 2]], x: &[f32]) -> f32;

    /// The same with BF16 weights.
    fn dot_bf16(self, row: &[[u8; 2]], x: &[f32]) -> f32;

    /// [`ROWS`] rows of weights times [`LANES`] rows of activations. Element `[i][r]` of `codes` has the codes `4i..4i+4`
    /// of row `r`, the lowest byte first; `x` is the same for activations. Terms are those of a group, by row.
    fn tile<const G: usize>(
        self,
        codes: &[[u32; ROWS]],
        terms: &[[[f32; ROWS]; 2]],
        x: &[[u32; LANES]],
        x_terms: &[[Term; LANES]],
        max_code: u8,
    ) -> [[f32; ROWS]; LANES];
}

/// Runs `kernel` on the best this machine has.
pub fn run(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if let Some(machine) = Avx512::detect() {
        return machine.run(kernel);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(machine) = Avx2::detect() {
        return machine.run(kernel);
    }
    kernel.run(Portable);
}

/// The reference, which every processor can do.
#[derive(Clone, Copy)]
pub struct Portable;

impl Integer for Portable {
    #[inline(always)]
    fn halves(self, bits: u32) -> Term {
        [bits as u16, (bits >> 16) as u16].map(float::f16_to_f32)
    }

    #[inline(always)]
    fn dot<const G: usize>(self, codes: &[u8], terms: &[Term], x: &[i8], x_terms: &[Term], _: u8) -> f32 {
        let groups = codes.as_chunks::<G>().0.iter().zip(x.as_chunks::<G>().0);
        let mut sum = 0.0;
        for ((codes, x), (t, x_t)) in groups.zip(terms.iter().zip(x_terms)) {
            let products: i32 = codes.iter().zip(x).map(|(c, x)| i32::from(*c) * i32::from(*x)).sum();
            sum += products as f32 * (t[0] * x_t[0]) + t[1] * x_t[1];
        }
        sum
    }

    #[inline(always)]
    fn dot_f16(self, row: &[[u8; 2]], x: &[f32]) -> f32 {
        dot_plain(row, x, |w| float::f16_to_f32(u16::from_le_bytes(w)))
    }

    #[inline(always)]
    fn dot_bf16(self, row: &[[u8; 2]], x: &[f32]) -> f32 {
        dot_plain(row, x, |w| float::bf16_to_f32(u16::from_le_bytes(w)))
    }

    #[inline(always)]
    fn tile<const G: usize>(
        self,
        codes: &[[u32; ROWS]],
        terms: &[[[f32; ROWS]; 2]],
        x: &[[u32; LANES]],
        x_terms: &[[Term; LANES]],
        _: u8,
    ) -> [[f32; ROWS]; LANES] {
        let mut out = [[0f32; ROWS]; LANES];
        let groups = codes.chunks_exact(G / 4).zip(x.chunks_exact(G / 4));
        for ((codes, x), (t, x_t)) in groups.zip(terms.iter().zip(x_terms)) {
            let mut sums = [[0i32; ROWS]; LANES];
            for (codes, x) in codes.iter().zip(x) {
                for (sums, x) in sums.iter_mut().zip(x) {
                    for (sum, codes) in sums.iter_mut().zip(codes) {
                        *sum += dot_of_four(*codes, *x);
                    }
                }
            }
            for ((out, sums), x_t) in out.iter_mut().zip(&sums).zip(x_t) {
                for r in 0..ROWS {
                    out[r] += sums[r] as f32 * (t[0][r] * x_t[0]) + t[1][r] * x_t[1];
                }
            }
        }
        out
    }
}

#[inline(always)]
fn dot_plain(row: &[[u8; 2]], x: &[f32], value: impl Fn([u8; 2]) -> f32) -> f32 {
    row.iter().zip(x).map(|(w, x)| value(*w) * x).sum()
}

#[inline(always)]
fn dot_of_four(codes: u32, x: u32) -> i32 {
    let (codes, x) = (codes.to_le_bytes(), x.to_le_bytes().map(|x| x as i8));
    codes.iter().zip(x).map(|(c, x)| i32::from(*c) * i32::from(x)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::inputs::Rng;
    use super::*;

    /// Weights and activations whose products, scales among them, are integers below 2^24: every order of adding gives the same.
    struct Example {
        k: usize,
        max_code: u8,
        codes: Vec<[u8; ROWS]>,
        x: Vec<[i8; LANES]>,
    }

    impl Example {
        fn new(k: usize, max_code: u8, seed: u64) -> Self {
            let mut rng = Rng(seed);
            let mut byte = |most: u64| (rng.next() % (most + 1)) as u8;
            // The first row has the largest products that there are, of either sign.
            let codes = (0..k).map(|_| {
                let mut codes = [0; ROWS].map(|_: u8| byte(max_code.into()));
                codes[0] = max_code;
                codes
            });
            let codes = codes.collect();
            let x = (0..k).map(|_| {
                let mut x = [0; LANES].map(|_: u8| byte(254).wrapping_sub(127) as i8);
                (x[0], x[1]) = (127, -127);
                x
            });
            Example { k, max_code, codes, x: x.collect() }
        }

        fn expected(&self, row: usize, lane: usize, group: usize) -> f32 {
            let product = |i: usize| {
                let (scale, min) = self.term(i / group, row);
                (scale * i32::from(self.codes[i][row]) + min) * i32::from(self.x[i][lane])
            };
            (0..self.k).map(product).sum::<i32>() as f32
        }

        fn term(&self, group: usize, row: usize) -> (i32, i32) {
            ([1, -2, 1][(group + row) % 3], [0, -1, 2][(group * 2 + row) % 3])
        }

        fn check<const G: usize>(&self, machine: impl Integer) {
            let groups = 0..self.k / G;
            let words = |i: usize, at: &dyn Fn(usize) -> u8| u32::from_le_bytes([0, 1, 2, 3].map(|j| at(4 * i + j)));
            let codes: Vec<[u32; ROWS]> =
                (0..self.k / 4).map(|i| std::array::from_fn(|r| words(i, &|i| self.codes[i][r]))).collect();
            let x: Vec<[u32; LANES]> =
                (0..self.k / 4).map(|i| std::array::from_fn(|l| words(i, &|i| self.x[i][l] as u8))).collect();
            let sum = |g: usize, l: usize| self.x[g * G..(g + 1) * G].iter().map(|x| i32::from(x[l])).sum::<i32>();
            let term = |g: usize, r: usize| {
                let (scale, min) = self.term(g, r);
                [scale as f32, min as f32]
            };
            let terms: Vec<[[f32; ROWS]; 2]> =
                groups.clone().map(|g| [0, 1].map(|part| std::array::from_fn(|r| term(g, r)[part]))).collect();
            let x_terms: Vec<[Term; LANES]> =
                groups.clone().map(|g| std::array::from_fn(|l| [1.0, sum(g, l) as f32])).collect();
            let found = machine.tile::<G>(&codes, &terms, &x, &x_terms, self.max_code);
            for lane in 0..LANES {
                let x: Vec<i8> = self.x.iter().map(|x| x[lane]).collect();
                let x_terms: Vec<Term> = x_terms.iter().map(|t| t[lane]).collect();
                for row in 0..ROWS {
                    let expected = self.expected(row, lane, G);
                    assert_eq!(found[lane][row], expected, "tile of {}, row {row}, lane {lane}", self.k);
                    let codes: Vec<u8> = self.codes.iter().map(|c| c[row]).collect();
                    let terms: Vec<Term> = groups.clone().map(|g| term(g, row)).collect();
                    let found = machine.dot::<G>(&codes, &terms, &x, &x_terms, self.max_code);
                    assert_eq!(found, expected, "dot of {}, row {row}, lane {lane}", self.k);
                }
            }
        }
    }

    impl Kernel for &Example {
        fn run(self, machine: impl Integer) {
            self.check::<16>(machine);
            self.check::<32>(machine);
            for bits in [0x3C00_0000u32, 0x7BFF_0001, 0x8001_C400] {
                assert_eq!(machine.halves(bits), Portable.halves(bits));
            }
            // Up to a length that is no whole number of vectors.
            let n = self.k - 3;
            let x: Vec<f32> = self.x[..n].iter().map(|x| f32::from(x[2])).collect();
            let weights = self.codes[..n].iter().map(|codes| f32::from(codes[1] >> 1));
            let expected: f32 = weights.clone().zip(&x).map(|(w, x)| w * x).sum();
            let f16: Vec<[u8; 2]> = weights.clone().map(|w| float::f32_to_f16(w).to_le_bytes()).collect();
            let bf16: Vec<[u8; 2]> = weights.map(|w| float::f32_to_bf16(w).to_le_bytes()).collect();
            assert_eq!((machine.dot_f16(&f16, &x), machine.dot_bf16(&bf16, &x)), (expected, expected));
        }
    }

    #[test]
    fn every_machine_computes_the_same_integers() {
        for (seed, k) in [32, 64, 96, 256, 288].into_iter().enumerate() {
            for max_code in [3, 15, 127, 128, 255] {
                let example = Example::new(k, max_code, seed as u64);
                (&example).run(Portable);
                #[cfg(target_arch = "x86_64")]
                if let Some(machine) = Avx2::detect() {
                    machine.run(&example);
                }
                #[cfg(target_arch = "x86_64")]
                if let Some(machine) = Avx512::detect() {
                    machine.run(&example);
                }
            }
        }
    }
}
