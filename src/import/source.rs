//! What lies at a path: a GGUF file, or named tensors with a configuration beside them.
//!
//! Content decides what a file is, never its extension. Only headers are read here, and of a PyTorch checkpoint the
//! directory and the pickle; bytes of a tensor are read when [`SourceTensor::open`] is called for it.

mod folder;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::format::bundle::form::{PEFT_FILES, file_of_form};
use crate::format::bundle::{ADAPTER_FILE, Bundle, check, container};
use crate::format::{StoredTensor, gguf, index, json, links, mmap, pickle, recognize, safetensors};
use crate::tensor::{Bytes, DType, LazyTensor};

pub(crate) use folder::{holds_model_with_parts, is_adapter_folder};
pub use folder::{weights_of_folder, would_be_ambiguous_with};

/// Configuration file of an adapter folder.
pub const CONFIG_FILE: &str = PEFT_FILES[1];
/// Weights file of an adapter folder.
pub const WEIGHTS_FILE: &str = PEFT_FILES[0];
/// Index of sharded weights in an adapter folder.
pub const INDEX_FILE: &str = "adapter_model.safetensors.index.json";
/// Configuration of a model's folder, a trainer's among them.
const MODEL_CONFIG_FILE: &str = "config.json";

/// An opened source.
pub enum Source {
    /// One GGUF file, single or split.
    Gguf(gguf::Gguf),
    /// Named tensors.
    Tensors(TensorSource),
}

/// Named tensors with the configuration beside them.
pub struct TensorSource {
    /// `safetensors`, `PyTorch checkpoint`, ...
    pub format: &'static str,
    /// `adapter_config.json`, where there is one.
    pub config: Option<(PathBuf, Value)>,
    /// Without that, `config.json` of the model in whose folder the tensors lie.
    pub model_config: Option<(PathBuf, Value)>,
    /// Metadata of a safetensors file.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Every tensor, in the file's order.
    pub tensors: Vec<SourceTensor>,
    /// What a checkpoint holds beside plain values and tensors.
    pub objects: pickle::Objects,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

impl Source {
    /// Every tensor, in the file's order.
    pub fn into_tensors(self) -> Vec<SourceTensor> {
        match self {
            Source::Gguf(file) => stored(file.tensors),
            Source::Tensors(source) => source.tensors,
        }
    }
}

/// A tensor of a source.
pub struct SourceTensor {
    /// Name in the source; in a PyTorch checkpoint the keys that lead to it, joined by dots.
    pub name: String,
    elements: Elements,
}

enum Elements {
    Stored(StoredTensor),
    Checkpoint(pickle::TensorRef),
}

impl SourceTensor {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.elements {
            Elements::Stored(t) => t.dtype,
            Elements::Checkpoint(t) => t.dtype(),
        }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        match &self.elements {
            Elements::Stored(t) => &t.shape,
            Elements::Checkpoint(t) => &t.shape,
        }
    }

    /// The tensor as a view, whose bytes are not compared with a checksum: for a look at a few of them.
    ///
    /// # Errors
    ///
    /// Those of the view.
    pub(super) fn unchecked(&self) -> Result<LazyTensor> {
        match &self.elements {
            Elements::Stored(t) => t.lazy(),
            Elements::Checkpoint(t) => t.view().map_err(|e| e.field(&self.name)),
        }
    }

    /// The tensor as a view. In an archive with checksums this is where the bytes are compared with theirs.
    ///
    /// # Errors
    ///
    /// [`Code::PickleChecksum`], [`Code::PickleStorage`]; those of the view.
    pub fn open(&self) -> Result<LazyTensor> {
        match &self.elements {
            Elements::Stored(t) => t.lazy(),
            Elements::Checkpoint(t) => t.lazy().map_err(|e| e.field(&self.name)),
        }
    }
}

/// Opens `path` for reading an adapter. Only headers are read.
///
/// Of a bundle everything is read once, since its hashes are checked first.
///
/// # Errors
///
/// Those of the formats; of a bundle the
/// first finding of [`check::check`], with all others.
pub fn open(path: &Path) -> Result<Source> {
    if container::is_bundle(path) {
        return open_bundle(path, None);
    }
    let meta = std::fs::metadata(path).map_err(|e| links::not_opened(path, "cannot open", e))?;
    if meta.is_dir() { open_file(&weights_of_folder(path)?) } else { open_file(path) }
}

/// [`open`], of a bundle the form of the adapter that is asked for.
///
/// # Errors
///
/// As there; [`Code::Usage`] for a form of another path.
pub fn open_form(path: &Path, form: Option<&str>) -> Result<Source> {
    match form {
        None => open(path),
        Some(_) if container::is_bundle(path) => open_bundle(path, form),
        Some(_) => {
            let message = "expected a bundle beside it, found another adapter";
            Err(Error::new(Code::Usage, message).file(path).field("--form"))
        }
    }
}

/// The adapter in a bundle, as slices of the bundle's memory map.
fn open_bundle(path: &Path, form: Option<&str>) -> Result<Source> {
    let bundle = Bundle::open(path)?;
    if let Some(e) = check::check(&bundle, None).to_error() {
        return Err(e.file(path));
    }
    of_bundle(&bundle, form)
}

/// The adapter in a bundle that was checked, in the form that is asked for or else the first.
///
/// # Errors
///
/// Those of [`file_of_form`] and of the formats; where there is none.
pub fn of_bundle(bundle: &Bundle, form: Option<&str>) -> Result<Source> {
    let path = bundle.path.as_path();
    let place = |name: &str| if bundle.is_tar { path.to_owned() } else { path.join(name) };
    let file = file_of_form(bundle, form)?;
    if let Some(bytes) = bundle.files.get(&file).filter(|_| file != WEIGHTS_FILE) {
        return gguf::parse_whole(&place(&file), bytes).map(Source::Gguf);
    }
    let (Some(weights), Some(config)) = (bundle.files.get(WEIGHTS_FILE), bundle.files.get(CONFIG_FILE)) else {
        let message =
            format!("expected a bundle with {ADAPTER_FILE}, or {WEIGHTS_FILE} and {CONFIG_FILE}, found neither");
        return Err(Error::new(Code::AdapterKind, message).file(path));
    };
    let config_path = place(CONFIG_FILE);
    let config = json::parse_config(config).map_err(|e| e.file(&config_path))?;
    let mut source = from_safetensors(safetensors::parse(&place(WEIGHTS_FILE), weights)?);
    source.files.push(config_path.clone());
    source.config = Some((config_path, config));
    Ok(Source::Tensors(source))
}

fn open_file(path: &Path) -> Result<Source> {
    let bytes = mmap::map_file(path)?;
    if gguf::is_gguf(&bytes) {
        return gguf::open(path).map(Source::Gguf);
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut source = match kind(path, &bytes) {
        Some(WeightsFile::Safetensors) => from_safetensors(safetensors::parse(path, &bytes)?),
        Some(WeightsFile::Index) => from_index(path)?,
        Some(WeightsFile::Checkpoint) => {
            let checkpoint = pickle::read(path, bytes)?;
            let format = match checkpoint.container() {
                pickle::Container::Zip => "PyTorch checkpoint",
                pickle::Container::Legacy => "legacy PyTorch checkpoint",
            };
            from_checkpoints(format, vec![checkpoint])
        }
        None => {
            let found = match json::without_mark(&bytes).trim_ascii_start().starts_with(b"{") {
                true => "JSON without weights: give its folder",
                false => "none of them",
            };
            let message =
                format!("expected GGUF, safetensors, an index of shards or a PyTorch checkpoint, found {found}");
            return Err(recognize::named(path, &bytes, Error::new(Code::UnknownFormat, message)).file(path));
        }
    };
    source.config = config_beside(dir)?;
    if source.config.is_none() {
        // It may be somebody else's: what cannot be read says nothing.
        let file = dir.join(MODEL_CONFIG_FILE);
        source.model_config = json::read_config(&file).ok().map(|v| (file, v));
    }
    let configs = source.config.iter().chain(&source.model_config).map(|(p, _)| p.clone());
    source.files.splice(0..0, configs.collect::<Vec<_>>());
    Ok(Source::Tensors(source))
}

enum WeightsFile {
    Safetensors,
    Index,
    Checkpoint,
}

/// The key of an index.
const WEIGHT_MAP: &[u8] = b"\"weight_map\"";

/// What the bytes are; a file too broken to tell is what its name says, so that the right reader names the fault.
fn kind(path: &Path, bytes: &Bytes) -> Option<WeightsFile> {
    // Safetensors first: a header of 640 bytes, among others, begins like a pickle, and no pickle has `{` where a header
    // begins.
    if safetensors::is_safetensors(bytes) {
        return Some(WeightsFile::Safetensors);
    }
    if pickle::is_checkpoint(bytes) {
        return Some(WeightsFile::Checkpoint);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let starts_as_json = json::without_mark(bytes).trim_ascii_start().starts_with(b"{");
    if starts_as_json && name.ends_with(".json") {
        let is_index = name.ends_with(".index.json") || bytes.windows(WEIGHT_MAP.len()).any(|w| w == WEIGHT_MAP);
        return is_index.then_some(WeightsFile::Index);
    }
    match name.rsplit_once('.')?.1 {
        "safetensors" => Some(WeightsFile::Safetensors),
        "bin" | "pt" | "pth" | "ckpt" => Some(WeightsFile::Checkpoint),
        _ => None,
    }
}

fn from_safetensors(opened: safetensors::Safetensors) -> TensorSource {
    let mut files: Vec<PathBuf> = opened.files.iter().map(|f| f.to_path_buf()).collect();
    let format = if files.contains(&opened.path) { "safetensors" } else { "sharded safetensors" };
    if !files.contains(&opened.path) {
        files.push(opened.path);
    }
    let (metadata, tensors, objects) = (opened.metadata, stored(opened.tensors), pickle::Objects::default());
    TensorSource { format, config: None, model_config: None, metadata, tensors, objects, files }
}

/// The shards that an index names; what they are, the first one says.
fn from_index(path: &Path) -> Result<TensorSource> {
    let shards = index::read(path)?;
    let is_checkpoint = |shard: &index::Shard| {
        let bytes = mmap::map_file(&shard.file)?;
        Ok(pickle::is_checkpoint(&bytes) && !safetensors::is_safetensors(&bytes))
    };
    // One that is not there is told by whoever opens it.
    match shards.first().map(is_checkpoint) {
        Some(Ok::<_, Error>(true)) => {
            let mut source = from_checkpoints("sharded PyTorch checkpoint", pickle::open_shards(path, &shards)?);
            source.files.push(path.to_owned());
            Ok(source)
        }
        _ => safetensors::open_shards(path, &shards).map(from_safetensors),
    }
}

fn stored(tensors: Vec<StoredTensor>) -> Vec<SourceTensor> {
    tensors.into_iter().map(|t| SourceTensor { name: t.name.clone(), elements: Elements::Stored(t) }).collect()
}

fn from_checkpoints(format: &'static str, checkpoints: Vec<pickle::Checkpoint>) -> TensorSource {
    let mut tensors = Vec::new();
    let mut objects = pickle::Objects::default();
    for checkpoint in &checkpoints {
        tensors.extend(
            checkpoint.tensors().map(|(keys, t)| SourceTensor {
                name: pickle::dotted(&keys),
                elements: Elements::Checkpoint(t.clone()),
            }),
        );
        objects.extend(checkpoint.objects());
    }
    let files = checkpoints.iter().map(|c| c.path().to_path_buf()).collect();
    TensorSource { format, config: None, model_config: None, metadata: Default::default(), tensors, objects, files }
}

fn config_beside(dir: &Path) -> Result<Option<(PathBuf, Value)>> {
    let path = dir.join(CONFIG_FILE);
    match links::is_present(&path) {
        true => json::read_config(&path).map(|v| Some((path, v))),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `kind` takes a file called `name` with these bytes for.
    fn found(name: &str, bytes: Vec<u8>) -> &'static str {
        match kind(Path::new(name), &Bytes::from(bytes)) {
            Some(WeightsFile::Safetensors) => "safetensors",
            Some(WeightsFile::Index) => "index",
            Some(WeightsFile::Checkpoint) => "checkpoint",
            None => "none",
        }
    }

    #[test]
    fn safetensors_are_told_from_pickles_whatever_the_length_of_their_header() {
        for len in (8..=4096_usize).step_by(8).chain([0x1_0280, 0x2_0480]) {
            let header = format!("{{}}{}", " ".repeat(len - 2));
            let file = [&(len as u64).to_le_bytes()[..], header.as_bytes()].concat();
            assert_eq!(found("file", file), "safetensors", "a header of {len} bytes");
        }
        // A dictionary by torch.save before 1.6, and one in a frame of protocol 4.
        assert_eq!(found("file", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec()), "checkpoint");
        assert_eq!(found("file", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94.".to_vec()), "checkpoint");
    }

    #[test]
    fn an_index_may_begin_with_a_byte_order_mark() {
        for text in ["{}", " \n{}", "\u{feff}{}", "\u{feff} {}"] {
            assert_eq!(found("a.safetensors.index.json", text.into()), "index", "{text:?}");
        }
        assert_eq!(found("a.json", b"[]".to_vec()), "none");
    }
}
