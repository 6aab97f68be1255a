//! What lies at a path: a GGUF file, or named tensors with a configuration beside them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::format::{gguf, json, safetensors};
use crate::tensor::LazyTensor;

/// Configuration file of an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Weights file of an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Index of sharded weights in an adapter folder.
pub const INDEX_FILE: &str = "adapter_model.safetensors.index.json";

/// Largest `adapter_config.json` read. Real ones have a few hundred bytes; a long target list reaches some KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// An opened source.
pub enum Source {
    /// One GGUF file, single or split.
    Gguf(gguf::Gguf),
    /// Named tensors.
    Tensors(TensorSource),
}

/// Named tensors with the configuration beside them.
pub struct TensorSource {
    /// `adapter_config.json`, where there is one.
    pub config: Option<(PathBuf, Value)>,
    /// Every tensor, in the file's order.
    pub tensors: Vec<SourceTensor>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// A tensor of a source.
pub struct SourceTensor {
    /// Name in the source.
    pub name: String,
    /// The file that holds it.
    pub file: Arc<Path>,
    /// Its elements.
    pub tensor: LazyTensor,
}

/// Opens `path` for reading an adapter. Only headers are read.
pub fn open(path: &Path) -> Result<Source> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot open", e))?;
    if meta.is_dir() { open_folder(path) } else { open_file(path) }
}

fn open_folder(dir: &Path) -> Result<Source> {
    let weights = dir.join(WEIGHTS_FILE);
    let index = dir.join(INDEX_FILE);
    let opened = if index.is_file() {
        safetensors::open_index(&index)?
    } else if weights.is_file() {
        safetensors::open(&weights)?
    } else {
        let found =
            if dir.join("config.json").is_file() { "config.json: this looks like a base model" } else { "neither" };
        return Err(Error::new(
            Code::AdapterKind,
            format!("expected an adapter folder with {WEIGHTS_FILE} or {INDEX_FILE}, found {found}"),
        )
        .file(dir));
    };
    tensors(opened, config_beside(dir)?)
}

fn open_file(path: &Path) -> Result<Source> {
    let bytes = crate::format::mmap::map_file(path)?;
    if gguf::is_gguf(&bytes) {
        return gguf::open(path).map(Source::Gguf);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let opened = if name.ends_with(".safetensors.index.json") {
        safetensors::open_index(path)?
    } else {
        safetensors::open(path)?
    };
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tensors(opened, config_beside(dir)?)
}

fn config_beside(dir: &Path) -> Result<Option<(PathBuf, Value)>> {
    let path = dir.join(CONFIG_FILE);
    match path.try_exists().map_err(|e| Error::io(&path, "cannot open", e))? {
        true => json::read_file(&path, MAX_CONFIG_BYTES).map(|v| Some((path, v))),
        false => Ok(None),
    }
}

fn tensors(opened: safetensors::Safetensors, config: Option<(PathBuf, Value)>) -> Result<Source> {
    let mut files: Vec<PathBuf> = config.iter().map(|(p, _)| p.clone()).collect();
    let mut list = Vec::with_capacity(opened.tensors.len());
    for t in &opened.tensors {
        if !files.iter().any(|f| **f == *t.file) {
            files.push(t.file.to_path_buf());
        }
        list.push(SourceTensor { name: t.name.clone(), file: t.file.clone(), tensor: t.lazy()? });
    }
    if !files.contains(&opened.path) {
        files.push(opened.path);
    }
    Ok(Source::Tensors(TensorSource { config, tensors: list, files }))
}
