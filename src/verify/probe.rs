//! A probe: what PyTorch computed, in one safetensors file.
//!
//! `input_ids` i64 `[B, T]`, `logits` f32 `[B, P, V]`, optionally `base_logits`, `positions` i64 `[P]`, and per adapted
//! layer `q.{i}` f32 `[B, H, T, D]` (post-RoPE, Hugging Face order) and `term.{i}` f32 `[B, H, T, D_v]`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::format::limits::PROBE_TOKENS;
use crate::format::{StoredTensor, safetensors};
use crate::quant;
use crate::tensor::DType;

/// An opened probe, consistent in itself.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The file.
    pub path: std::path::PathBuf,
    /// `[B][T]`
    pub input_ids: Vec<Vec<u32>>,
    /// `[P]`, strictly increasing.
    pub positions: Vec<usize>,
    /// V
    pub vocab_size: usize,
    logits: StoredTensor,
    base_logits: Option<StoredTensor>,
    /// By layer.
    taps: Vec<Tap>,
}

/// What the probe holds of one layer.
#[derive(Debug, Clone)]
struct Tap {
    layer: usize,
    q: Option<StoredTensor>,
    term: Option<StoredTensor>,
}

impl Probe {
    /// Opens and checks a probe.
    ///
    /// # Errors
    ///
    /// [`Code::ProbeInvalid`], naming the tensor; those of safetensors.
    pub fn open(path: &Path) -> Result<Probe> {
        Self::read(safetensors::open(path)?).map_err(|e| e.file(path))
    }

    fn read(file: safetensors::Safetensors) -> Result<Probe> {
        let find = |name: &str| file.tensors.iter().find(|t| t.name == name);
        let need = |name: &str| find(name).ok_or_else(|| invalid(name, "this tensor", "none"));
        let ids = need("input_ids")?;
        let [batch, length] = dims::<2>(ids, DType::I64)?;
        if batch == 0 || length == 0 {
            return Err(invalid("input_ids", "at least one token", format!("shape {:?}", ids.shape)));
        }
        if batch.checked_mul(length).is_none_or(|n| n > PROBE_TOKENS) {
            return Err(invalid(
                "input_ids",
                format!("at most {PROBE_TOKENS} tokens"),
                format!("shape {:?}", ids.shape),
            ));
        }
        let logits = need("logits")?;
        let [b, n_positions, vocab_size] = dims::<3>(logits, DType::F32)?;
        let positions = match find("positions") {
            None => (0..length).collect(),
            Some(t) => {
                dims::<1>(t, DType::I64)?;
                let list = integers(t, 0..length as i64)?;
                if let Some(w) = list.windows(2).find(|w| w[0] >= w[1]) {
                    return Err(invalid(
                        "positions",
                        "strictly increasing positions",
                        format!("{} after {}", w[1], w[0]),
                    ));
                }
                if list.is_empty() {
                    return Err(invalid("positions", "at least one position", "none"));
                }
                list.into_iter().map(|p| p as usize).collect::<Vec<_>>()
            }
        };
        if (b, n_positions) != (batch, positions.len()) || vocab_size == 0 {
            return Err(invalid(
                "logits",
                format!("shape [{batch}, {}, V]", positions.len()),
                format!("{:?}", logits.shape),
            ));
        }
        check_padding(&file.tensors, batch, length)?;
        let base_logits = find("base_logits").cloned();
        if let Some(t) = &base_logits
            && dims::<3>(t, DType::F32)? != [b, n_positions, vocab_size]
        {
            return Err(invalid(
                "base_logits",
                format!("the shape of logits, {:?}", logits.shape),
                format!("{:?}", t.shape),
            ));
        }
        let input_ids: Vec<u32> =
            integers(ids, 0..vocab_size.min(u32::MAX as usize) as i64)?.into_iter().map(|i| i as u32).collect();
        let mut taps: BTreeMap<usize, Tap> = BTreeMap::new();
        for t in &file.tensors {
            let Some((kind, number)) = t.name.split_once('.').filter(|(kind, _)| matches!(*kind, "q" | "term")) else {
                continue;
            };
            let layer: usize = number
                .parse()
                .ok()
                .filter(|n: &usize| n.to_string() == number)
                .ok_or_else(|| invalid(&t.name, "q.{layer} or term.{layer} with a plain number", "another text"))?;
            let [tb, heads, tt, head_dim] = dims::<4>(t, DType::F32)?;
            if (tb, tt) != (batch, length) || heads == 0 || head_dim == 0 {
                return Err(invalid(&t.name, format!("shape [{batch}, H, {length}, D]"), format!("{:?}", t.shape)));
            }
            let tap = taps.entry(layer).or_insert(Tap { layer, q: None, term: None });
            *(if kind == "q" { &mut tap.q } else { &mut tap.term }) = Some(t.clone());
        }
        let taps: Vec<Tap> = taps.into_values().collect();
        for t in std::iter::once(logits).chain(&base_logits).chain(taps.iter().flat_map(|t| t.q.iter().chain(&t.term)))
        {
            if let Some(i) = quant::validate_blocks(DType::F32, &t.bytes) {
                return Err(invalid(&t.name, "finite values", format!("NaN or Inf at element {i}")));
            }
        }
        Ok(Probe {
            path: file.path,
            input_ids: input_ids.chunks(length).map(<[u32]>::to_vec).collect(),
            positions,
            vocab_size,
            logits: logits.clone(),
            base_logits,
            taps,
        })
    }

    /// Checks the probe against the model: vocabulary, heads, head lengths, layers.
    ///
    /// # Errors
    ///
    /// [`Code::ProbeMismatch`], naming file and tensor.
    pub fn check_fits(&self, base: &BaseModel) -> Result<()> {
        let mismatch = |field: &str, expected: String, found: String| {
            let message = format!("expected {expected}, found {found}");
            Err(Error::new(Code::ProbeMismatch, message).file(&self.path).field(field))
        };
        if self.vocab_size != base.config.vocab_size {
            return mismatch(
                "logits",
                format!("the base's vocabulary of {}", base.config.vocab_size),
                format!("{}", self.vocab_size),
            );
        }
        for tap in &self.taps {
            if tap.layer >= base.config.n_layers {
                let name = tap.q.as_ref().or(tap.term.as_ref()).map_or("q", |t| t.name.as_str());
                return mismatch(
                    name,
                    format!("a layer below {}", base.config.n_layers),
                    format!("layer {}", tap.layer),
                );
            }
            for (t, dim) in [(&tap.q, base.config.head_dim), (&tap.term, base.config.value_head_dim)] {
                let Some(t) = t else { continue };
                if (t.shape[1], t.shape[3]) != (base.config.n_heads, dim) {
                    return mismatch(
                        &t.name,
                        format!("{} heads of length {dim}", base.config.n_heads),
                        format!("{:?}", t.shape),
                    );
                }
            }
        }
        Ok(())
    }

    /// The adapted model's logits `[V]` at `positions[p]`.
    pub fn logits(&self, batch: usize, p: usize) -> Vec<f32> {
        self.row(&self.logits, batch, p)
    }

    /// The plain base's logits there, if the probe has them.
    pub fn base_logits(&self, batch: usize, p: usize) -> Option<Vec<f32>> {
        self.base_logits.as_ref().map(|t| self.row(t, batch, p))
    }

    /// The half precision in which the base was run for this probe, where its numbers show that: all of `base_logits`, or of
    /// `logits`, are values of BF16 or of F16.
    pub fn half_precision(&self) -> Option<DType> {
        let values = &self.base_logits.as_ref().unwrap_or(&self.logits).bytes;
        let all = |is_exact: fn(f32) -> bool| {
            let floats = || values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            floats().all(is_exact) && floats().any(|v| v != 0.0)
        };
        if all(|v| v.to_bits() << 16 == 0) {
            Some(DType::BF16)
        } else if all(|v| half::f16::from_f32(v).to_f32() == v) {
            Some(DType::F16)
        } else {
            None
        }
    }

    /// `q.{layer}` `[B, H, T, D]`, if the probe has it.
    pub fn q(&self, layer: usize) -> Option<Vec<f32>> {
        self.tap(layer)?.q.as_ref().map(|t| floats(&t.bytes))
    }

    /// `term.{layer}` `[B, H, T, D_v]`, if the probe has it.
    pub fn term(&self, layer: usize) -> Option<Vec<f32>> {
        self.tap(layer)?.term.as_ref().map(|t| floats(&t.bytes))
    }

    /// Whether the probe has `q.{layer}` or `term.{layer}`.
    pub fn has_layer(&self, layer: usize) -> bool {
        self.tap(layer).is_some()
    }

    /// The layers for which the probe has a term: those that PyTorch's adapter adapted, if it recorded them all.
    pub fn term_layers(&self) -> impl Iterator<Item = usize> {
        self.taps.iter().filter(|t| t.term.is_some()).map(|t| t.layer)
    }

    fn tap(&self, layer: usize) -> Option<&Tap> {
        let i = self.taps.binary_search_by_key(&layer, |t| t.layer).ok()?;
        Some(&self.taps[i])
    }

    fn row(&self, t: &StoredTensor, batch: usize, p: usize) -> Vec<f32> {
        let row_bytes = self.vocab_size * 4;
        floats(&t.bytes[(batch * self.positions.len() + p) * row_bytes..][..row_bytes])
    }
}

/// Trainers save these beside the ids. Rows are unpadded and positions count from 0: what says otherwise was computed
/// otherwise.
///
/// # Errors
///
/// [`Code::ProbeInvalid`].
fn check_padding(tensors: &[StoredTensor], batch: usize, length: usize) -> Result<()> {
    for t in tensors {
        let expected: fn(usize) -> i64 = match &*t.name {
            "attention_mask" => |_| 1,
            "position_ids" | "cache_position" => |position| position as i64,
            _ => continue,
        };
        if t.shape != [batch, length] && t.shape != [1, length] && t.shape != [length] {
            return Err(invalid(&t.name, format!("shape [{batch}, {length}]"), format!("{:?}", t.shape)));
        }
        let values: Vec<i64> = match t.dtype {
            DType::I64 => t.bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            DType::I32 => t.bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            DType::BOOL => t.bytes.iter().map(|b| i64::from(*b)).collect(),
            other => return Err(invalid(&t.name, "I64, I32 or BOOL", other)),
        };
        if let Some(i) = (0..values.len()).find(|i| values[*i] != expected(i % length)) {
            let wanted = format!("{}, as in rows without padding that begin at position 0", expected(i % length));
            return Err(invalid(&t.name, wanted, format!("{} at element {i}", values[i])));
        }
    }
    Ok(())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn dims<const N: usize>(t: &StoredTensor, dtype: DType) -> Result<[usize; N]> {
    match <[usize; N]>::try_from(&t.shape[..]) {
        Ok(dims) if t.dtype == dtype => Ok(dims),
        _ => Err(invalid(&t.name, format!("{dtype} of {N} dimensions"), format!("{} {:?}", t.dtype, t.shape))),
    }
}

fn integers(t: &StoredTensor, allowed: std::ops::Range<i64>) -> Result<Vec<i64>> {
    let list: Vec<i64> = t.bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    match list.iter().position(|v| !allowed.contains(v)) {
        None => Ok(list),
        Some(i) => Err(invalid(
            &t.name,
            format!("values from {} to {}", allowed.start, allowed.end - 1),
            format!("{} at element {i}", list[i]),
        )),
    }
}

fn invalid(name: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::new(Code::ProbeInvalid, format!("expected {expected}, found {found}")).field(name)
}
