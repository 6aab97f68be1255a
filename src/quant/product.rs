//! Matrix products with weights in block formats and activations in 8 bits, as ggml computes them.
//!
//! ```text
//!   weights        w[i] = scale * c[i] + min      c: u8, per group of 16 or 32 that share a scale in the file
//!   activations    x[i] ~ d * q[i]                q: i8, per 32 that share their largest magnitude
//!
//!   sum of w[i] x[i] over a group  =  scale * d * (sum of c[i] q[i])  +  min * d * (sum of q[i])
//! ```
//!
//! Sums within a group are integers and exact, those over groups F32. Rounding activations to `q` is the one loss; ggml's own
//! activations have one scale for 256 where the weights are k-quants, and scales in F16 where they are not.
//!
//! A NaN or an infinity in activations or scales makes the product NaN or infinite.

use rayon::prelude::*;

use super::TASK_ELEMENTS;
use super::simd::integer::{self, Integer, Kernel, LANES, ROWS, Term};
use crate::{DType, Row};

/// Activations that share a scale.
const GROUP: usize = 32;

/// Rows of activations in 8 bits, `N` of them side by side.
struct Activations<const N: usize> {
    k: usize,
    /// By `N` rows: for every four elements their codes in each row.
    codes: Vec<[u32; N]>,
    /// By `N` rows: for every 32 elements the scale, and the scale times the sum of the codes.
    terms: Vec<[Term; N]>,
    /// The same for every 16.
    terms_of_16: Vec<[Term; N]>,
}

impl<const N: usize> Activations<N> {
    /// Rounds the rows of `x` `[m, k]`; there are zeros where `m` is no multiple of `N`.
    fn new(x: &[f32], k: usize) -> Self {
        assert!(k > 0 && k.is_multiple_of(GROUP) && x.len().is_multiple_of(k), "rows of {k} are no groups of {GROUP}");
        let n_blocks = (x.len() / k).div_ceil(N);
        let mut codes = vec![[0; N]; n_blocks * k / 4];
        let mut terms = vec![[[0.0; 2]; N]; n_blocks * k / GROUP];
        let mut terms_of_16 = vec![[[0.0; 2]; N]; n_blocks * k / 16];
        let rooms = codes.par_chunks_mut(k / 4).zip(terms.par_chunks_mut(k / GROUP));
        let rooms = rooms.zip(terms_of_16.par_chunks_mut(k / 16)).zip(x.par_chunks(N * k));
        rooms.with_min_len(TASK_ELEMENTS.div_ceil(N * k)).for_each(|(((codes, terms), terms_of_16), x)| {
            integer::run(Round { k, x, codes, terms, terms_of_16 });
        });
        Activations { k, codes, terms, terms_of_16 }
    }
}

/// Rounds up to `N` rows `[m, k]`.
struct Round<'a, const N: usize> {
    k: usize,
    x: &'a [f32],
    codes: &'a mut [[u32; N]],
    terms: &'a mut [[Term; N]],
    terms_of_16: &'a mut [[Term; N]],
}

impl<const N: usize> Kernel for Round<'_, N> {
    #[inline(always)]
    fn run(self, _: impl Integer) {
        for (lane, x) in self.x.chunks_exact(self.k).enumerate() {
            let rooms = self.codes.as_chunks_mut::<{ GROUP / 4 }>().0.iter_mut().zip(&mut *self.terms);
            let rooms = rooms.zip(self.terms_of_16.as_chunks_mut::<{ GROUP / 16 }>().0);
            for (x, ((codes, term), terms_of_16)) in x.as_chunks::<GROUP>().0.iter().zip(rooms) {
                let (d, q, [low, high]) = round(x);
                let words: [u32; GROUP / 4] = bytemuck::cast(q);
                for (codes, word) in codes.iter_mut().zip(words) {
                    codes[lane] = u32::from_le(word);
                }
                term[lane] = [d, d * low.wrapping_add(high) as f32];
                terms_of_16[0][lane] = [d, d * low as f32];
                terms_of_16[1][lane] = [d, d * high as f32];
            }
        }
    }
}

/// The scale of some activations, their codes, -127 to 127, and the sums of the first and the last 16 codes.
#[inline(always)]
fn round(x: &[f32; GROUP]) -> (f32, [i8; GROUP], [i32; 2]) {
    /// In front of it units are 1: adding it rounds to the nearest integer, which is then in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0; // 3 * 2^22
    // Bits without the sign order as magnitudes do, and NaN is the largest.
    let largest = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7FFF_FFFF)));
    let inverse = if largest >= f32::MIN_POSITIVE * 127.0 { 127.0 / largest } else { 0.0 };
    let (mut q, mut sums) = ([0; GROUP], [0i32; 2]);
    for ((q, x), sum) in q.as_chunks_mut::<16>().0.iter_mut().zip(x.as_chunks::<16>().0).zip(&mut sums) {
        for (q, x) in q.iter_mut().zip(x) {
            let code = (x * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
            *q = code as i8;
            *sum = sum.wrapping_add(code);
        }
    }
    // Without the barrier the compiler sees words that are built from bytes, and computes those one by one.
    (largest / 127.0, std::hint::black_box(q), sums)
}

/// Products of a few rows of activations with encoded rows of weights: reading and unpacking the weights is most of the work.
pub struct Few<'x> {
    /// `[m, k]`
    exact: &'x [f32],
    rounded: Activations<1>,
}

impl<'x> Few<'x> {
    /// Rounds `x` `[m, k]`. Asserts that `k` is a multiple of 32.
    pub fn new(x: &'x [f32], k: usize) -> Self {
        Few { exact: x, rounded: Activations::new(x, k) }
    }

    /// Fills `out` `[n, m]` with the products of `n` encoded rows, of which `row` gives the bytes. Weights in F16 and BF16 are
    /// multiplied with the activations as they are.
    ///
    /// Asserts that `dtype` is F16, BF16 or one of [`BLOCK_FORMATS`](super::BLOCK_FORMATS) and that rows have `k` elements.
    pub fn multiply(&self, dtype: DType, row: Row<'_, '_>, room: &mut Room, out: &mut [f32]) {
        integer::run(DotRows { dtype, row, exact: self.exact, x: &self.rounded, room, out });
    }
}

/// Room for a few unpacked rows.
#[derive(Default)]
pub struct Room {
    codes: Vec<u8>,
    terms: Vec<Term>,
}

/// Rows that are unpacked before the first is multiplied: what was just stored in parts is slow to load as a whole.
const UNPACKED: usize = 8;

pub(super) struct DotRows<'b, 'a> {
    dtype: DType,
    row: Row<'b, 'a>,
    exact: &'b [f32],
    x: &'b Activations<1>,
    room: &'b mut Room,
    out: &'b mut [f32],
}

impl Kernel for DotRows<'_, '_> {
    #[inline(always)]
    fn run(self, machine: impl Integer) {
        macro_rules! dot_rows {
            ($($dtype:ident $module:ident,)*) => {
                match self.dtype {
                    DType::F16 => self.dot_plain(#[inline(always)] |row, x| machine.dot_f16(row, x)),
                    DType::BF16 => self.dot_plain(#[inline(always)] |row, x| machine.dot_bf16(row, x)),
                    $(DType::$dtype => self.dot_rows::<{ super::$module::GROUP }, _, _, _>(
                        super::$module::MAX_CODE,
                        #[inline(always)]
                        |b, c, t| super::$module::codes(b, c, t, machine),
                        machine,
                    ),)*
                    dtype => panic!("{dtype} has no codes; ask `BLOCK_FORMATS` first"),
                }
            };
        }
        super::block_formats!(dot_rows);
    }
}

impl DotRows<'_, '_> {
    #[inline(always)]
    fn dot_rows<const G: usize, const LEN: usize, const BYTES: usize, const TERMS: usize>(
        self,
        max_code: u8,
        unpack: impl Fn(&[u8; BYTES], &mut [u8; LEN], &mut [Term; TERMS]),
        machine: impl Integer,
    ) {
        let k = self.x.k;
        let m = self.x.codes.len() * 4 / k;
        let Room { codes, terms } = self.room;
        codes.resize(UNPACKED * k, 0);
        terms.resize(UNPACKED * k / G, [0.0; 2]);
        let x_terms = if G == 16 { &self.x.terms_of_16 } else { &self.x.terms };
        for (i, out) in self.out.chunks_mut(UNPACKED * m).enumerate() {
            for j in 0..out.len() / m {
                let (codes, terms) = (&mut codes[j * k..(j + 1) * k], &mut terms[j * k / G..(j + 1) * k / G]);
                unpack_row((self.row)(i * UNPACKED + j), codes, terms, &unpack);
            }
            for (j, out) in out.chunks_exact_mut(m).enumerate() {
                let (codes, terms) = (&codes[j * k..(j + 1) * k], &terms[j * k / G..(j + 1) * k / G]);
                for (p, out) in out.iter_mut().enumerate() {
                    let x: &[i8] = bytemuck::cast_slice(&self.x.codes[p * k / 4..(p + 1) * k / 4]);
                    let x_terms = x_terms[p * k / G..(p + 1) * k / G].as_flattened();
                    *out = machine.dot::<G>(codes, terms, x, x_terms, max_code);
                }
            }
        }
    }
}

impl DotRows<'_, '_> {
    #[inline(always)]
    fn dot_plain(self, dot: impl Fn(&[[u8; 2]], &[f32]) -> f32) {
        let k = self.x.k;
        for (i, out) in self.out.chunks_exact_mut(self.exact.len() / k).enumerate() {
            let row = (self.row)(i).as_chunks::<2>().0;
            assert_eq!(row.len(), k, "elements of a row of weights, and of one of activations");
            for (out, x) in out.iter_mut().zip(self.exact.chunks_exact(k)) {
                *out = dot(row, x);
            }
        }
    }
}

/// Codes and terms of one encoded row.
#[inline(always)]
fn unpack_row<const LEN: usize, const BYTES: usize, const TERMS: usize>(
    row: &[u8],
    codes: &mut [u8],
    terms: &mut [Term],
    unpack: &impl Fn(&[u8; BYTES], &mut [u8; LEN], &mut [Term; TERMS]),
) {
    assert_eq!(row.len() / BYTES * LEN, codes.len(), "elements of a row, and those that are multiplied");
    let room = codes.as_chunks_mut::<LEN>().0.iter_mut().zip(terms.as_chunks_mut::<TERMS>().0);
    for (block, (codes, terms)) in row.as_chunks::<BYTES>().0.iter().zip(room) {
        // As in `decode_blocks`.
        let block = *std::hint::black_box(block);
        unpack(&block, codes, terms);
    }
}

/// Up to 16 unpacked rows of weights, four codes of each row side by side. Memory that is used again and again.
#[derive(Default)]
pub struct Tile {
    n_rows: usize,
    group: usize,
    max_code: u8,
    codes: Vec<[u32; ROWS]>,
    terms: Vec<[[f32; ROWS]; 2]>,
}

impl Tile {
    /// Most rows that a tile holds.
    pub const ROWS: usize = ROWS;

    /// Unpacks `n_rows` encoded rows of `k` elements, of which `row` gives the bytes.
    ///
    /// Asserts that `dtype` is one of [`BLOCK_FORMATS`](super::BLOCK_FORMATS), that rows have `k` elements, a multiple of 32, and
    /// that there are at most [`Self::ROWS`].
    pub fn fill(&mut self, dtype: DType, (n_rows, k): (usize, usize), row: Row<'_, '_>, room: &mut Room) {
        assert!(n_rows <= ROWS && k.is_multiple_of(GROUP), "{n_rows} rows of {k}");
        self.n_rows = n_rows;
        integer::run(FillTile { dtype, k, row, room, tile: self });
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
}

struct FillTile<'b, 'a> {
    dtype: DType,
    k: usize,
    row: Row<'b, 'a>,
    room: &'b mut Room,
    tile: &'b mut Tile,
}

impl Kernel for FillTile<'_, '_> {
    #[inline(always)]
    fn run(self, machine: impl Integer) {
        macro_rules! fill {
            ($($dtype:ident $module:ident,)*) => {
                match self.dtype {
                    $(DType::$dtype => {
                        (self.tile.group, self.tile.max_code) = (super::$module::GROUP, super::$module::MAX_CODE);
                        self.fill(
                            #[inline(always)]
                            |b, c, t| super::$module::codes(b, c, t, machine),
                        );
                    })*
                    dtype => panic!("{dtype} has no codes; ask `BLOCK_FORMATS` first"),
                }
            };
        }
        super::block_formats!(fill);
    }
}

impl FillTile<'_, '_> {
    #[inline(always)]
    fn fill<const LEN: usize, const BYTES: usize, const TERMS: usize>(
        self,
        unpack: impl Fn(&[u8; BYTES], &mut [u8; LEN], &mut [Term; TERMS]),
    ) {
        let FillTile { k, row, tile, .. } = self;
        let n_terms = k / tile.group;
        self.room.codes.resize(k, 0);
        self.room.terms.resize(n_terms, [0.0; 2]);
        // Rows that are not there are zeros.
        tile.codes.clear();
        tile.codes.resize(k / 4, [0; ROWS]);
        tile.terms.clear();
        tile.terms.resize(n_terms, [[0.0; ROWS]; 2]);
        for r in 0..tile.n_rows {
            unpack_row(row(r), &mut self.room.codes, &mut self.room.terms, &unpack);
            for (out, codes) in tile.codes.iter_mut().zip(self.room.codes.as_chunks::<4>().0) {
                out[r] = u32::from_le_bytes(*codes);
            }
            for (out, [scale, min]) in tile.terms.iter_mut().zip(&self.room.terms) {
                (out[0][r], out[1][r]) = (*scale, *min);
            }
        }
    }
}

/// Many rows of activations in 8 bits.
pub struct Many {
    x: Activations<LANES>,
}

impl Many {
    /// Rows of activations that are multiplied at once.
    pub const ROWS: usize = LANES;

    /// Rounds `x` `[m, k]`. Asserts that `k` is a multiple of 32.
    pub fn new(x: &[f32], k: usize) -> Self {
        Many { x: Activations::new(x, k) }
    }

    /// Products of the rows of activations from `first` on, a multiple of [`Self::ROWS`], with the rows of `tiles`, into the columns of
    /// `out` `[rows, n]` from `column` on.
    ///
    /// Asserts that the weights' rows are as long as those of the activations, and that `out` has the columns.
    pub fn multiply(&self, first: usize, tiles: &[Tile], (out, n): (&mut [f32], usize), column: usize) {
        integer::run(MultiplyTiles { x: &self.x, first, tiles, out, n, column });
    }
}

struct MultiplyTiles<'a> {
    x: &'a Activations<LANES>,
    first: usize,
    tiles: &'a [Tile],
    out: &'a mut [f32],
    n: usize,
    column: usize,
}

impl Kernel for MultiplyTiles<'_> {
    #[inline(always)]
    fn run(self, machine: impl Integer) {
        let Self { x, first, tiles, out, n, mut column } = self;
        let k = x.k;
        assert!(first.is_multiple_of(LANES));
        for tile in tiles {
            assert_eq!(tile.codes.len() * 4, k, "elements of a row of weights, and of one of activations");
            for (block, out) in out.chunks_mut(LANES * n).enumerate() {
                let block = first / LANES + block;
                let codes = &x.codes[block * k / 4..(block + 1) * k / 4];
                let products = if tile.group == 16 {
                    let terms = &x.terms_of_16[block * k / 16..(block + 1) * k / 16];
                    machine.tile::<16>(&tile.codes, &tile.terms, codes, terms, tile.max_code)
                } else {
                    let terms = &x.terms[block * k / GROUP..(block + 1) * k / GROUP];
                    machine.tile::<GROUP>(&tile.codes, &tile.terms, codes, terms, tile.max_code)
                };
                for (out, products) in out.chunks_exact_mut(n).zip(&products) {
                    out[column..column + tile.n_rows].copy_from_slice(&products[..tile.n_rows]);
                }
            }
            column += tile.n_rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_FORMATS, decode, quantize_rows};
    use super::*;

    const K: usize = 512;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.737).sin() * (1.0 + (i % 37) as f32 / 9.0)).collect()
    }

    /// `n` rows of weights in blocks, and decoded.
    fn weights(dtype: DType, n: usize) -> (Vec<u8>, Vec<f32>) {
        let mut blocks = vec![0; n * row_bytes(dtype)];
        quantize_rows(dtype, &values(n * K, 0.5), K, &mut blocks);
        let mut decoded = vec![0.0; n * K];
        decode(dtype, &blocks, &mut decoded);
        (blocks, decoded)
    }

    fn row_bytes(dtype: DType) -> usize {
        K / dtype.block_len() * dtype.block_bytes()
    }

    /// What rounding to 8 bits leaves of activations.
    fn rounded(x: &[f32]) -> Vec<f64> {
        let exact = |x: &[f32; GROUP]| {
            let (d, q, _) = round(x);
            q.map(|q| f64::from(d) * f64::from(q))
        };
        x.as_chunks().0.iter().flat_map(exact).collect()
    }

    #[test]
    fn products_are_those_of_decoded_weights_with_rounded_activations() {
        for &dtype in BLOCK_FORMATS {
            // Neither whole tiles nor whole lanes.
            let (n, m) = (19, 11);
            let (blocks, decoded) = weights(dtype, n);
            let row = |first: usize| {
                let blocks = &blocks;
                move |i: usize| &blocks[(first + i) * row_bytes(dtype)..][..row_bytes(dtype)]
            };
            let x = values(m * K, 100.0);
            let exact = rounded(&x);
            let (mut few, mut many) = (vec![f32::NAN; n * m], vec![f32::NAN; m * n]);
            Few::new(&x, K).multiply(dtype, &row(0), &mut Room::default(), &mut few);
            let mut tiles = [Tile::default(), Tile::default()];
            tiles[0].fill(dtype, (16, K), &row(0), &mut Room::default());
            tiles[1].fill(dtype, (3, K), &row(16), &mut Room::default());
            let (head, tail) = many.split_at_mut(8 * n);
            let x_many = Many::new(&x, K);
            x_many.multiply(0, &tiles, (head, n), 0);
            x_many.multiply(8, &tiles, (tail, n), 0);
            for (r, w) in decoded.chunks_exact(K).enumerate() {
                for (p, x) in exact.chunks_exact(K).enumerate() {
                    let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
                    let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                    // Codes without their zero point are up to 17 times as large as with it.
                    let limit = 40.0 * f64::from(f32::EPSILON) * size;
                    for (way, found) in [("few", few[r * m + p]), ("many", many[p * n + r])] {
                        assert!((f64::from(found) - sum).abs() <= limit, "{dtype} {way}: {found} {sum} {limit}");
                    }
                }
            }
        }
    }

    #[test]
    fn rounding_takes_the_largest_magnitude_to_127() {
        let mut x = [0.25; GROUP];
        x[3] = -254.0;
        x[20] = 3.1;
        let (d, q, sums) = round(&x);
        assert_eq!((d, q[3], q[20], q[0]), (2.0, -127, 2, 0));
        assert_eq!(sums, [-127, 2]);
        assert_eq!(round(&[0.0; GROUP]), (0.0, [0; GROUP], [0; 2]));
        let (d, q, _) = round(&[f32::from_bits(1); GROUP]);
        assert_eq!((d, q), (0.0, [0; GROUP]), "too small for a scale");
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let (blocks, _) = weights(DType::Q4_1, 1);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = values(K, 1.0);
            x[77] = bad;
            let mut out = [0.0];
            Few::new(&x, K).multiply(DType::Q4_1, &|_| &blocks[..], &mut Room::default(), &mut out);
            assert!(!out[0].is_finite(), "{bad} became {}", out[0]);
        }
    }
}
