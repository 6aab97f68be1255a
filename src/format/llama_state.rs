//! The state of one sequence as `llama_state_seq_load_file` of llama.cpp reads it: token ids, and keys and values of every layer.
//!
//! ```text
//!   u32 'ggsq'  u32 version  u32 n tokens  i32 ids[n]
//!   u32 streams, then for each      u32 cells; of an empty stream nothing follows
//!     cells     i32 position  u32 1  i32 sequence
//!     u32 whether values are transposed  u32 layers  (version 4: u32 rotated keys  u32 rotated values)
//!     layers    i32 type  u64 bytes of a cell   keys [cells][H_kv * D]
//!     layers    i32 type  u64 bytes of a cell   values [cells][H_kv * D]
//!     or, transposed
//!     layers    i32 type  u32 bytes of a value  u32 H_kv * D   values [H_kv * D][cells]
//! ```
//!
//! Of a model with windows everything from the streams on comes twice: for the layers that see all positions, then for those with a
//! window, whose cache has the last cells alone, as many as the window.
//!
//! Source: `llama_context::state_seq_save_file` in llama-context.cpp, `llama_kv_cache::state_write` in llama-kv-cache.cpp,
//! `llama_kv_cache_iswa::state_write` in llama-kv-cache-iswa.cpp.

use crate::error::{Code, Error, Result};
use crate::named::named_enum;
use crate::quant;
use crate::tensor::DType;

/// `ggsq`
const MAGIC: u32 = 0x6767_7371;

named_enum! {
    /// `LLAMA_STATE_SEQ_VERSION`. llama.cpp refuses every other one than its own.
    Version {
        /// Until the first half of 2026, llama-cpp-python 0.3.36 among them.
        V3 = "3",
        /// Since then: says which keys and values are rotated.
        V4 = "4",
    }
}

impl Version {
    /// As the header has it.
    pub fn number(self) -> u32 {
        match self {
            Version::V3 => 3,
            Version::V4 => 4,
        }
    }
}

/// How a context keeps keys and values. A context of another kind refuses the file, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Of the file.
    pub version: Version,
    /// Whether attention is computed by the fused kernel; without it values are kept transposed.
    pub flash_attention: bool,
    /// Type of the keys.
    pub k_type: DType,
    /// Type of the values.
    pub v_type: DType,
    /// Streams: 1 where all sequences share their cells, else one for each sequence.
    pub n_streams: u32,
}

/// The types that llama.cpp keeps keys and values in and that are written here.
pub const TYPES: [DType; 8] =
    [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q5_1, DType::Q5_0, DType::Q4_1, DType::Q4_0];

/// llama.cpp's own where nobody says otherwise: flash attention where the device has it, F16, shared cells.
impl Default for Cache {
    fn default() -> Self {
        Cache { version: Version::V4, flash_attention: true, k_type: DType::F16, v_type: DType::F16, n_streams: 1 }
    }
}

/// Keys and values of a layer, a row `[H_kv * D]` for each token, in the order in which the context computes them.
pub struct Layer {
    /// Keys.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
    /// Whether it has the model's window.
    pub has_window: bool,
}

impl Cache {
    /// # Errors
    ///
    /// [`Code::Usage`] for what no context of llama.cpp is.
    pub fn check(&self) -> Result<()> {
        let wrong = |flag: &str, message: String| Err(Error::new(Code::Usage, message).field(flag));
        for (flag, dtype) in [("--cache-type-k", self.k_type), ("--cache-type-v", self.v_type)] {
            if !TYPES.contains(&dtype) {
                let names: Vec<_> = TYPES.iter().map(|t| t.name()).collect();
                return wrong(flag, format!("expected one of {}, found {dtype}", names.join(" ")));
            }
        }
        if self.v_type.is_quantized() && !self.flash_attention {
            let message = "expected F32, F16 or BF16: without flash attention llama.cpp keeps values transposed, and no blocks of them";
            return wrong("--cache-type-v", message.into());
        }
        if !(1..=MAX_STREAMS).contains(&self.n_streams) {
            return wrong("--n-seq", format!("expected 1 to {MAX_STREAMS}, found {}", self.n_streams));
        }
        Ok(())
    }

    /// The file of a sequence whose tokens have these ids and are at positions 0, 1, .. `head_dim` is the length of the heads in rows,
    /// `window` the positions that layers with one see, where llama.cpp keeps these in a cache of their own.
    ///
    /// # Errors
    ///
    /// [`Code::CastOverflow`] for values that a type cannot hold; [`Code::TypeUnfit`] for rows that are no whole blocks; those of
    /// `layers`.
    pub fn file(
        &self,
        tokens: &[u32],
        head_dim: usize,
        window: Option<usize>,
        layers: impl Iterator<Item = Result<Layer>>,
    ) -> Result<Vec<u8>> {
        self.check()?;
        let mut out = Out(Vec::new());
        [MAGIC, self.version.number(), count(tokens.len())?]
            .into_iter()
            .chain(tokens.iter().copied())
            .for_each(|n| out.u32(n));
        let layers: Vec<(usize, Layer)> = layers.enumerate().map(|(i, l)| Ok((i, l?))).collect::<Result<_>>()?;
        let Some(window) = window else {
            self.cells(&mut out, tokens.len(), tokens.len(), head_dim, &layers)?;
            return Ok(out.0);
        };
        let (windowed, full): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(_, l)| l.has_window);
        self.cells(&mut out, tokens.len(), tokens.len(), head_dim, &full)?;
        self.cells(&mut out, tokens.len(), tokens.len().min(window), head_dim, &windowed)?;
        Ok(out.0)
    }

    /// What a cache of these layers holds: the last `n_cells` of `n_tokens` tokens.
    fn cells(
        &self,
        out: &mut Out,
        n_tokens: usize,
        n_cells: usize,
        head_dim: usize,
        layers: &[(usize, Layer)],
    ) -> Result<()> {
        out.u32(self.n_streams);
        out.u32(count(n_cells)?);
        for position in count(n_tokens - n_cells)?..count(n_tokens)? {
            [position, 1, 0].into_iter().for_each(|n| out.u32(n));
        }
        out.u32(u32::from(!self.flash_attention));
        out.u32(count(layers.len())?);
        let (k_rotation, v_rotation) = (rotation(self.k_type, head_dim, true), rotation(self.v_type, head_dim, false));
        if self.version == Version::V4 {
            out.u32(k_rotation.unwrap_or(0) as u32);
            out.u32(v_rotation.unwrap_or(0) as u32);
        }
        let rows = |dtype, values: &[f32], n| {
            let row_len = values.len() / n_tokens.max(1);
            let kept = &values[(n_tokens - n_cells) * row_len..];
            Ok((encoded(dtype, &rotated(kept.to_vec(), n), row_len)?, row_len))
        };
        for (i, layer) in layers {
            let (bytes, row_len) = rows(self.k_type, &layer.keys, k_rotation).map_err(|e| at_layer(e, *i))?;
            out.rows(self.k_type, &bytes, row_len);
        }
        for (i, layer) in layers {
            let (bytes, row_len) = rows(self.v_type, &layer.values, v_rotation).map_err(|e| at_layer(e, *i))?;
            match self.flash_attention {
                true => out.rows(self.v_type, &bytes, row_len),
                false => out.transposed(self.v_type, &bytes, row_len),
            }
        }
        // The other streams are empty.
        (1..self.n_streams).for_each(|_| out.u32(0));
        Ok(())
    }
}

fn at_layer(e: Error, i: usize) -> Error {
    e.field(format!("layers.{i}"))
}

/// `LLAMA_MAX_SEQ`
const MAX_STREAMS: u32 = 256;

/// The number of components that are rotated together before they are quantized, so that no component is large; `None` where
/// llama.cpp does not. Source: the constructor of `llama_kv_cache`.
fn rotation(dtype: DType, head_dim: usize, are_keys: bool) -> Option<usize> {
    if !dtype.is_quantized() || head_dim == 0 || !head_dim.is_multiple_of(64) {
        return None;
    }
    let mut n = 64;
    while are_keys && head_dim.is_multiple_of(2 * n) {
        n *= 2;
    }
    Some(n)
}

/// Each group of `n` components multiplied with the Hadamard matrix of that size, whose rows have length 1.
fn rotated(mut values: Vec<f32>, n: Option<usize>) -> Vec<f32> {
    let Some(n) = n else { return values };
    let scale = 1.0 / (n as f32).sqrt();
    for group in values.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in group.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (x, y) in a.iter_mut().zip(b) {
                    (*x, *y) = (*x + *y, *x - *y);
                }
            }
            half *= 2;
        }
        group.iter_mut().for_each(|x| *x *= scale);
    }
    values
}

/// # Errors
///
/// [`Code::TypeUnfit`], [`Code::CastOverflow`].
fn encoded(dtype: DType, values: &[f32], row_len: usize) -> Result<Vec<u8>> {
    if !row_len.is_multiple_of(dtype.block_len()) {
        let message = format!("expected rows of whole blocks of {dtype}, found rows of {row_len}");
        return Err(Error::new(Code::TypeUnfit, message));
    }
    if let Some(i) = quant::first_unfit(dtype, values) {
        let message = format!("expected values that {dtype} can hold, found {:e}", values[i]);
        return Err(Error::new(Code::CastOverflow, message));
    }
    let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
    quant::quantize_rows(dtype, values, row_len, &mut bytes);
    Ok(bytes)
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::new(Code::Usage, format!("expected a count below 2^32, found {n}")))
}

struct Out(Vec<u8>);

impl Out {
    fn u32(&mut self, n: u32) {
        self.0.extend(n.to_le_bytes());
    }

    fn rows(&mut self, dtype: DType, bytes: &[u8], row_len: usize) {
        self.u32(ggml_id(dtype));
        self.0.extend(((row_len / dtype.block_len() * dtype.block_bytes()) as u64).to_le_bytes());
        self.0.extend(bytes);
    }

    fn transposed(&mut self, dtype: DType, bytes: &[u8], row_len: usize) {
        let size = dtype.block_bytes();
        self.u32(ggml_id(dtype));
        self.u32(size as u32);
        self.u32(row_len as u32);
        for component in 0..row_len {
            for row in bytes.chunks_exact(row_len * size) {
                self.0.extend(&row[component * size..][..size]);
            }
        }
    }
}

fn ggml_id(dtype: DType) -> u32 {
    dtype.ggml_id().expect("every type of a cache is one of ggml's")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    fn file(cache: Cache) -> Result<Vec<u8>> {
        // Two cells of one head of 2.
        let layer = Layer { keys: vec![1.0, 2.0, 3.0, 4.0], values: vec![5.0, 6.0, 7.0, 8.0], has_window: false };
        cache.file(&[9, 9], 2, None, [Ok(layer)].into_iter())
    }

    #[test]
    fn every_field_is_where_llama_cpp_reads_it() {
        let f = f32::to_bits;
        let f32_cache = Cache { k_type: DType::F32, v_type: DType::F32, ..Cache::default() };
        let head = [MAGIC, 4, 2, 9, 9, 1, 2, 0, 1, 0, 1, 1, 0];
        let keys = [0, 8, 0, f(1.0), f(2.0), f(3.0), f(4.0)];
        let expected = [&head[..], &[0, 1, 0, 0], &keys, &[0, 8, 0, f(5.0), f(6.0), f(7.0), f(8.0)]].concat();
        assert_eq!(words(&file(f32_cache).unwrap()), expected);
        // Transposed, in two streams, as version 3.
        let other = Cache { version: Version::V3, flash_attention: false, n_streams: 2, ..f32_cache };
        let head = [MAGIC, 3, 2, 9, 9, 2, 2, 0, 1, 0, 1, 1, 0];
        let values = [0, 4, 2, f(5.0), f(7.0), f(6.0), f(8.0)];
        assert_eq!(words(&file(other).unwrap()), [&head[..], &[1, 1], &keys, &values, &[0]].concat());
    }

    #[test]
    fn layers_with_a_window_come_behind_the_others_with_as_many_cells_as_it() {
        let layer =
            |x: f32, has_window| Ok(Layer { keys: vec![x, x + 1.0], values: vec![x + 2.0, x + 3.0], has_window });
        // Two cells of one component, of which the window shows one.
        let cache = Cache { k_type: DType::F32, v_type: DType::F32, ..Cache::default() };
        let layers = [layer(1.0, true), layer(5.0, false), layer(9.0, true)];
        let found = words(&cache.file(&[9, 9], 1, Some(1), layers.into_iter()).unwrap());
        let f = f32::to_bits;
        let full = [1, 2, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 4, 0, f(5.0), f(6.0), 0, 4, 0, f(7.0), f(8.0)];
        let windowed = [1, 1, 1, 1, 0, 0, 2, 0, 0];
        let rows = [2.0, 10.0, 4.0, 12.0].map(|x| [0, 4, 0, f(x)]).concat();
        assert_eq!(found, [&[MAGIC, 4, 2, 9, 9][..], &full, &windowed, &rows].concat());
    }

    #[test]
    fn what_no_context_is_or_holds_is_refused() {
        let wrong = |cache: Cache| file(cache).unwrap_err().code();
        let cache = Cache::default();
        assert_eq!(wrong(Cache { v_type: DType::Q8_0, flash_attention: false, ..cache }), Code::Usage);
        assert_eq!(wrong(Cache { k_type: DType::Q6_K, ..cache }), Code::Usage);
        assert_eq!(wrong(Cache { n_streams: 0, ..cache }), Code::Usage);
        assert_eq!(wrong(Cache { n_streams: 257, ..cache }), Code::Usage);
        assert_eq!(wrong(Cache { k_type: DType::Q8_0, ..cache }), Code::TypeUnfit);
        let large = Layer { keys: vec![1e6; 4], values: vec![0.0; 4], has_window: false };
        assert_eq!(cache.file(&[0, 0], 2, None, [Ok(large)].into_iter()).unwrap_err().code(), Code::CastOverflow);
    }

    #[test]
    fn rotations_are_those_of_llama_cpp() {
        assert_eq!(rotation(DType::Q8_0, 32, true), None);
        assert_eq!(rotation(DType::F16, 64, true), None);
        assert_eq!(rotation(DType::Q8_0, 64, true), Some(64));
        assert_eq!(rotation(DType::Q8_0, 128, true), Some(128));
        assert_eq!(rotation(DType::Q8_0, 192, true), Some(64));
        assert_eq!(rotation(DType::Q8_0, 256, false), Some(64));
        // The matrix of ggml_gen_hadamard: symmetric, and its own inverse.
        let first: Vec<f32> = (0..64).map(|i| if i == 3 { 8.0 } else { 0.0 }).collect();
        let once = rotated(first.clone(), Some(64));
        assert_eq!(once[..4], [1.0, -1.0, -1.0, 1.0]);
        assert_eq!(rotated(once, Some(64)), first);
    }
}
