//! Files that llama.cpp can read: as they are where that is exact, else a temporary F32 GGUF.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tempfile::TempDir;

use super::{Adapter, Model, check_architecture, decode_to_f32};
use crate::adapter::{self, Slot};
use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::export::{self, Values, types::OutType};
use crate::format::bundle::container::is_bundle;
use crate::format::gguf;
use crate::format::llama_state::Cache;
use crate::format::mmap::open_regular;
use crate::format::output::{OutputFile, Overwrite};
use crate::runner::{Device, sequence_state};
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast::Overflow;
use crate::validate::Validated;

/// A file to give to llama.cpp. A temporary one is removed with this.
pub struct Readable {
    /// The file.
    pub path: PathBuf,
    _temporary: Option<TempDir>,
}

/// The base with every weight in F32, as comparisons need it: llama.cpp rounds activations to the type of the weights.
///
/// # Errors
///
/// [`Code::BaseArchitecture`] for an architecture that was not tested; [`Code::LlamaCpp`] where llama.cpp cannot
/// decode the file; those of writing a base.
pub fn exact_base(base: &BaseModel) -> Result<Readable> {
    check_architecture(base.gguf_architecture())?;
    if base.dialect == Dialect::HuggingFace || is_bundle(&base.path) {
        return to_gguf(base, OutType::As(DType::F32));
    }
    if base.tensors().all(|t| t.dtype == DType::F32) {
        return Ok(Readable { path: base.path.clone(), _temporary: None });
    }
    let (folder, path) = temporary("base.gguf")?;
    decode_to_f32(&base.path, &path)?;
    Ok(Readable { path, _temporary: Some(folder) })
}

/// The base as it is, if it is GGUF; a Hugging Face folder with the weights' own types, without its tokenizer.
///
/// # Errors
///
/// [`Code::BaseArchitecture`]; those of writing a base.
pub fn runnable_base(base: &BaseModel) -> Result<Readable> {
    check_architecture(base.gguf_architecture())?;
    match base.dialect {
        Dialect::HuggingFace => to_gguf(base, OutType::Keep),
        // llama.cpp reads no archives.
        Dialect::Gguf if is_bundle(&base.path) => to_gguf(base, OutType::Keep),
        Dialect::Gguf => Ok(Readable { path: base.path.clone(), _temporary: None }),
    }
}

fn to_gguf(base: &BaseModel, types: OutType) -> Result<Readable> {
    let (folder, path) = temporary("base.gguf")?;
    let plan = export::base::plan(base, None, &types.into(), None)?.plan;
    let out = OutputFile::create(&path, Overwrite::Never, &[])?;
    export::write_tensors(&plan, Values::Unchecked, &out, Overflow::Error, &|_| ()).map_err(|e| e.file(&base.path))?;
    out.commit()?;
    Ok(Readable { path, _temporary: Some(folder) })
}

/// The adapter as GGUF: its own file if it is one, else written in F32 for the base's architecture.
///
/// # Errors
///
/// Those of writing an adapter.
pub fn readable_adapter(adapter: &Validated, base: &BaseModel) -> Result<Readable> {
    let architecture = base.gguf_architecture();
    check_architecture(architecture)?;
    // llama.cpp rounds activations to the type of a LoRA's halves, and ends the program where a base has one tensor for
    // embedding and head: writing it anew decodes the former and refuses the latter. Keys are then multiplied as the base's.
    let is_exact = match adapter.adapter() {
        adapter::Adapter::Plus(_) => true,
        adapter::Adapter::Prefix(_) => return Err(no_adapter_file()),
        adapter::Adapter::Lora(lora) => {
            let is_in_blocks = |(slot, t): (Slot, &LazyTensor)| t.stored_dtype() == DType::F32 && slot.layer.is_some();
            lora.has_keys_of(&base.config) && lora.tensors().all(is_in_blocks)
        }
    };
    // In a bundle's archive the file is another one's part.
    if let [file] = &adapter.origin.files[..]
        && is_exact
        && gguf::is_gguf(&first_bytes(file)?)
    {
        return Ok(Readable { path: file.clone(), _temporary: None });
    }
    let (folder, path) = temporary("adapter.gguf")?;
    let plan = export::gguf::plan(adapter, architecture, Some(base), &OutType::As(DType::F32).into())?;
    let out = OutputFile::create(&path, Overwrite::Never, &[])?;
    export::write_tensors(&plan, Values::Validated(adapter), &out, Overflow::Error, &|_| ())?;
    out.commit()?;
    Ok(Readable { path, _temporary: Some(folder) })
}

/// The adapter, loaded for `model` from what [`readable_adapter`] gave.
///
/// # Errors
///
/// [`Code::LlamaCppAdapter`](crate::error::Code::LlamaCppAdapter).
pub fn load(adapter: &Validated, file: &Readable, model: &Rc<Model>) -> Result<Rc<Adapter>> {
    let loaded = match adapter.adapter() {
        adapter::Adapter::Plus(_) => Adapter::load(&file.path, model),
        adapter::Adapter::Lora(_) => Adapter::load_lora(&file.path, model),
        adapter::Adapter::Prefix(_) => Err(no_adapter_file()),
    };
    loaded.map(Rc::new)
}

/// Our own bug: virtual tokens are state of a sequence, and engines load that.
fn no_adapter_file() -> Error {
    Error::new(Code::LlamaCppAdapter, "expected an adapter of a graph, found virtual tokens")
}

/// Virtual tokens as the state that a context of this kind loads, with the number of them; `None` for an adapter of a graph.
///
/// # Errors
///
/// Those of [`sequence_state`]; of writing it.
pub fn readable_state(adapter: &Validated, base: &BaseModel, cache: &Cache) -> Result<Option<(Readable, usize)>> {
    let Some(prefix) = adapter.adapter().as_prefix() else { return Ok(None) };
    let (folder, path) = temporary("virtual-tokens.bin")?;
    let bytes = sequence_state(prefix, base, cache, &Device::cpu())?;
    std::fs::write(&path, bytes).map_err(|e| Error::io(&path, "cannot write", e))?;
    Ok(Some((Readable { path, _temporary: Some(folder) }, prefix.n_tokens())))
}

fn first_bytes(path: &Path) -> Result<[u8; 4]> {
    let mut start = [0; 4];
    // Shorter files are no GGUF either way.
    let n = open_regular(path)?.read(&mut start).map_err(|e| Error::io(path, "cannot read", e))?;
    start[n..].fill(0);
    Ok(start)
}

fn temporary(name: &str) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::Builder::new()
        .prefix("ptplus-")
        .tempdir()
        .map_err(|e| Error::io(Path::new("a temporary folder"), "cannot be made", e))?;
    let path = folder.path().join(name);
    Ok((folder, path))
}
