//! Inputs for the quantization tests and benchmarks: the same bits on every machine.
//!
//! Only integer arithmetic, and float operations that IEEE 754 rounds exactly (no logarithm, no cosine): normal
//! numbers are sums of twelve uniform ones, heavy tails are quotients.

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1), a multiple of 2^-23.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Mean 0, variance 1, within 6.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform() * 0.5).sum()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() % from.len() as u64) as usize]
    }
}

/// Elements of one kind of input: 64 blocks of the largest format; one in Miri, which is some thousand times slower.
pub const N: usize = if cfg!(miri) { 256 } else { 64 * 256 };

/// Every kind of input; each is there because it takes another way through some quantizer.
pub const KINDS: &[&str] = &[
    "normal",
    "uniform",
    "heavy_tailed",
    "zero",
    "signed_zero",
    "constant",
    "denormal",
    "tiny",
    "huge",
    "overflowing",
    "largest",
    "any_finite_bits",
    "sign_alternating",
    "integers",
    "ties",
    "halves",
    "sparse",
    "positive",
    "negative",
    "narrow",
    "neighbours",
    "mixed_scales",
];

/// `n` elements of a kind; sub-kinds change every 256 elements.
pub fn make(kind: &str, n: usize) -> Vec<f32> {
    let seed = kind.bytes().fold(0xCBF2_9CE4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let rng = &mut Rng(seed);
    (0..n).map(|i| element(kind, i, rng)).collect()
}

fn element(kind: &str, i: usize, rng: &mut Rng) -> f32 {
    let cycle = |values: &[f32]| values[i / 256 % values.len()];
    match kind {
        "normal" => rng.normal() * 0.05,
        "uniform" => rng.uniform(),
        "heavy_tailed" => rng.normal() / (rng.normal().abs() + 1e-3),
        "zero" => 0.0,
        "signed_zero" => match rng.next() % 64 {
            0 => rng.uniform(),
            n if n % 2 == 0 => -0.0,
            _ => 0.0,
        },
        "constant" => cycle(&[0.7, -1.3, 65504.0, 65520.0, 1e-20, 3.0, f32::MIN_POSITIVE, f32::MAX]),
        "denormal" => f32::from_bits(rng.next() as u32 & 0x807F_FFFF) * cycle(&[1.0, 1e-3]),
        "tiny" => rng.normal() * cycle(&[1e-15, 1e-20, 1e-30, 1e-36, 1e-12, 1e-8, 1e-6]),
        "huge" => rng.normal() * 5e36,
        "overflowing" => rng.normal() * cycle(&[1e5, 1e6, 1e10, 1e15, 1e20, 1e30]),
        "largest" => {
            let edge = [f32::MAX, f32::MIN, 1.0, 0.0, f32::MIN_POSITIVE, 65520.0, -65520.0, 3e38];
            rng.pick(&edge)
        }
        "any_finite_bits" => loop {
            let value = f32::from_bits(rng.next() as u32);
            if value.is_finite() {
                break value;
            }
        },
        "sign_alternating" => (1.0 + 0.25 * rng.uniform()) * if i.is_multiple_of(2) { 1.0 } else { -1.0 },
        "integers" => (rng.next() % 17) as f32 - 8.0,
        "ties" => rng.pick(&[1.0, -1.0, 0.5, -0.5, 0.0, -0.0, 0.25]),
        // With 127 as the largest, the scale of Q8_0 is 1: nothing but the rounding is left.
        "halves" if i.is_multiple_of(32) => 127.0,
        "halves" => {
            let half = (rng.next() % 126) as f32 * (rng.next() % 2) as f32 + 0.5;
            rng.pick(&[half, half.next_down(), half.next_up()]) * rng.pick(&[1.0, -1.0])
        }
        "sparse" => match rng.next() % 10 {
            0 => rng.normal(),
            _ => 0.0,
        },
        "positive" => rng.normal().abs() + cycle(&[0.0, 0.5, 100.0]),
        "negative" => -rng.normal().abs() - cycle(&[0.0, 0.5, 100.0]),
        "narrow" => 1000.0 + rng.uniform() * 1e-3,
        "neighbours" => f32::from_bits(0x3F80_0000 + (rng.next() % 5) as u32) * cycle(&[1.0, -1.0]),
        "mixed_scales" => rng.normal() * [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4][i / 16 % 6],
        _ => panic!("no kind {kind}"),
    }
}
