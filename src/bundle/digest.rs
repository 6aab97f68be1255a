//! Digests of an adapter and of its tensors.
//!
//! The *canonical* digest covers what the adapter computes, whatever file it lies in: conventions, sizes, and each tensor in
//! canonical axes and Hugging Face row order with its type. The *values* digest leaves the types out, so that two adapters
//! that differ only there are seen to. `docs/BUNDLE.md` has the exact texts that are hashed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::adapter::field::report_key;
use crate::adapter::lora::{Module, module_name};
use crate::adapter::{Adapter, Part};
use crate::base::{BaseModel, Weight};
use crate::digest::{TensorDigest, hex, sorted_compact_json};
use crate::error::{Code, Result};
use crate::import::source::{self, Source, SourceTensor};
use crate::import::{self, Options};
use crate::tensor::{DType, LazyTensor, shape};
use crate::transform::cast;
use crate::validate::{self, Validated};

/// Names the definitions of the digests.
const CANONICAL_SCHEME: &str = "ptplus-adapter/1";
const VALUES_SCHEME: &str = "ptplus-adapter-values/1";

/// Bytes hashed at once; whole heads.
const STEP_BYTES: usize = 4 << 20;

/// The digests of one adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AdapterDigest {
    /// Conventions, sizes, tensors with their types.
    pub canonical: String,
    /// The same without the types, values widened to F32.
    pub values: String,
}

impl AdapterDigest {
    /// Reads every tensor once.
    pub fn of(adapter: &Adapter) -> AdapterDigest {
        Self::in_steps(adapter, &|_| {})
    }

    /// [`of`](Self::of), calling `step` with the bytes read, from any thread.
    fn in_steps(adapter: &Adapter, step: &(dyn Fn(u64) + Sync)) -> AdapterDigest {
        let tensors: Vec<_> = adapter.tensors().collect();
        let hashed: Vec<Hashed> = tensors.par_iter().map(|(slot, t)| hash(slot.part, t, step)).collect();
        let config = config_text(adapter);
        let mut canonical = Sha256::new();
        let mut values = Sha256::new();
        canonical.update(format!("{CANONICAL_SCHEME}\n{config}\n"));
        values.update(format!("{VALUES_SCHEME}\n{config}\n"));
        for ((slot, t), h) in tensors.iter().zip(&hashed) {
            let name = slot.canonical_name();
            canonical.update(format!("{}\n", json!([name, h.dtype.name(), t.shape(), h.stored])));
            values.update(format!("{}\n", json!([name, t.shape(), h.values])));
        }
        AdapterDigest { canonical: hex(&canonical.finalize()), values: hex(&values.finalize()) }
    }
}

struct Hashed {
    dtype: DType,
    /// Of the elements in their type; of decoded values where they are blocks.
    stored: String,
    /// Of the elements as F32.
    values: String,
}

fn hash(part: Part, t: &LazyTensor, done: &(dyn Fn(u64) + Sync)) -> Hashed {
    // Biases and normalisers are F32 in every GGUF file, so their type says nothing about the adapter.
    let dtype = if part.stays_f32() { DType::F32 } else { t.stored_dtype() };
    let n = t.shape().first().copied().unwrap_or(0);
    let step = (STEP_BYTES / (t.len_bytes() / n.max(1)).max(1)).clamp(1, n.max(1));
    let (mut stored, mut values) = (Sha256::new(), Sha256::new());
    let has_two = t.dtype() != DType::F32;
    let mut bytes = Vec::new();
    for start in (0..n).step_by(step) {
        let part = t.narrow(start, step.min(n - start));
        bytes.resize(part.len_bytes(), 0);
        part.gather(&mut bytes);
        stored.update(&bytes);
        done(bytes.len() as u64);
        if has_two {
            match cast::to_f32(part.dtype(), &bytes) {
                Ok(wide) => values.update(bytemuck::cast_slice(&wide)),
                // Values beyond F32, which validation refuses: all the same no element may be left out.
                Err(_) => values.update(&bytes),
            }
        }
    }
    t.release();
    let stored = hex(&stored.finalize());
    let values = if has_two { hex(&values.finalize()) } else { stored.clone() };
    Hashed { dtype, stored: if dtype == DType::F32 { values.clone() } else { stored }, values }
}

/// What defines the computation besides the tensors; scales as GGUF keeps them, in F32.
fn config_text(adapter: &Adapter) -> String {
    let fields = match adapter {
        // Sizes are shapes of the tensors, but digests name them.
        Adapter::Plus(_) | Adapter::Prefix(_) => {
            adapter.fields().into_iter().map(|(key, value)| (report_key(key), value.digest_json())).collect()
        }
        // Ranks are shapes of the tensors.
        Adapter::Lora(lora) => {
            let scale =
                |(&weight, m): (&Weight, &Module)| (module_name(weight), (m.scale.factor as f32).to_string().into());
            let scales: Map<String, Value> = lora.modules.iter().map(scale).collect();
            Map::from_iter([("type".to_owned(), adapter.kind().name().into()), ("scales".to_owned(), scales.into())])
        }
    };
    sorted_compact_json(&Value::Object(fields))
}

/// Everything that `ptplus hash` prints of one path.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PathDigests {
    /// The path that lines name.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// Each tensor as it lies in the file.
    pub tensors: Vec<TensorDigest>,
    /// Of all tensors' bytes in the file's order, one after the other.
    pub sha256: String,
    /// Of the adapter, where it is one whose conventions are stated.
    pub adapter: Option<AdapterDigest>,
    /// Why there is none of the adapter.
    pub note: Option<String>,
}

/// Hashes the tensors at `path`: an adapter, a bundle, or any GGUF or safetensors file.
///
/// # Errors
///
/// Those of the formats; of an adapter, the deciding finding of its validation.
pub fn of_path(path: &Path) -> Result<PathDigests> {
    of_path_reporting(path, None, &|_, _| {})
}

/// [`of_path`] of what may be an adapter for `base`, calling `progress` with the bytes hashed and those to hash in all, from any thread.
///
/// # Errors
///
/// As there.
pub fn of_path_reporting(
    path: &Path,
    base: Option<&BaseModel>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<PathDigests> {
    let source = source::open(path)?;
    let (adapter, note) = match &source {
        // Not worth reading again.
        Source::Tensors(s) if import::kind_of_tensors(s).is_none() => {
            (None, Some("no digest of an adapter: no tensor has the name of a part of one".to_owned()))
        }
        _ => match adapter_of(path, base) {
            Ok(adapter) => (Some(adapter), None),
            Err(e)
                if matches!(
                    e.code(),
                    Code::AdapterKind | Code::ConventionOpen | Code::BaseArchitecture | Code::RowOrderUnknown
                ) =>
            {
                (None, Some(format!("no digest of an adapter: {}", e.message())))
            }
            Err(e) => return Err(e),
        },
    };
    let tensors = source.into_tensors();
    let len = |t: &SourceTensor| shape::len_bytes(t.shape(), t.dtype()).unwrap_or(0) as u64;
    // Each tensor, all of them in a row, and what the adapter computes.
    let of_adapter: u64 = adapter.iter().flat_map(|a| a.adapter().tensors()).map(|(.., t)| t.len_bytes() as u64).sum();
    let total = tensors.iter().map(|t| 2 * len(t)).sum::<u64>() + of_adapter;
    let done = AtomicU64::new(0);
    let step = |n: u64| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
    // Each opened when its turn comes: views of many tensors are large.
    let whole = || -> Result<String> {
        let mut all = Sha256::new();
        tensors.iter().try_for_each(|t| t.open().map(|view| update(&mut all, &view, &step)))?;
        Ok(hex(&all.finalize()))
    };
    let each = || -> Result<Vec<TensorDigest>> {
        tensors.par_iter().map(|t| t.open().map(|view| tensor_digest(&t.name, &view, &step))).collect()
    };
    let (sha256, digests) = rayon::join(whole, each);
    let (sha256, tensors) = sha256.and_then(|s| Ok((s, digests?))).map_err(|e| e.file(path))?;
    let adapter = adapter.map(|a| AdapterDigest::in_steps(a.adapter(), &step));
    Ok(PathDigests { path: path.to_owned(), tensors, sha256, adapter, note })
}

fn adapter_of(path: &Path, base: Option<&BaseModel>) -> Result<Validated> {
    let imported = import::read(path, &Options::default(), base)?;
    validate::check(imported, base).map_err(|r| r.into_error().file(path))
}

/// Of each tensor of an adapter, as its file has it.
pub fn of_tensors(adapter: &Validated) -> Vec<TensorDigest> {
    let consumed: Vec<_> = adapter.ledger.consumed().filter_map(|e| Some((&e.name, e.tensor.as_ref()?))).collect();
    consumed.into_par_iter().map(|(name, t)| tensor_digest(name, t, &|_| {})).collect()
}

/// Of each tensor of a model, in the file's order.
///
/// # Errors
///
/// Those of opening the tensors.
pub fn of_model_tensors(model: &BaseModel) -> Result<Vec<TensorDigest>> {
    let tensors: Vec<_> = model.tensors_in_file_order().collect();
    tensors.into_par_iter().map(|t| Ok(tensor_digest(&t.name, &t.lazy()?, &|_| {}))).collect()
}

/// One tensor's bytes as the file has them.
fn tensor_digest(name: &str, t: &LazyTensor, step: &(dyn Fn(u64) + Sync)) -> TensorDigest {
    let mut hasher = Sha256::new();
    update(&mut hasher, t, step);
    t.release();
    TensorDigest {
        name: name.to_owned(),
        dtype: t.stored_dtype().name().to_owned(),
        shape: t.shape().to_vec(),
        sha256: hex(&hasher.finalize()),
    }
}

/// Hashes the bytes as the file has them.
fn update(hasher: &mut Sha256, t: &LazyTensor, step: &(dyn Fn(u64) + Sync)) {
    let mut add = |bytes: &[u8]| {
        for part in bytes.chunks(STEP_BYTES) {
            hasher.update(part);
            step(part.len() as u64);
        }
    };
    match t.stored_bytes() {
        Some(bytes) => add(bytes),
        None => t.for_each_part(STEP_BYTES, &mut add),
    }
}
