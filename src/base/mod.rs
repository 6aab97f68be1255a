//! Base models: one type, from a Hugging Face folder or from a GGUF file.
//!
//! Opening reads configuration and headers, never weights; when it succeeds, every tensor that the family's forward
//! pass needs is there with the right shape. Weights are decoded on demand by [`BaseModel::rows`].

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::format::bundle::form::file_of_form;
use crate::format::bundle::{Bundle, MODEL_FILE, check, container};
use crate::format::gguf::{Gguf, Metadata};
use crate::format::names::is_hidden;
use crate::format::{StoredTensor, gguf as gguf_format, index, json, links, mmap, pickle, recognize, safetensors};
use crate::tensor::Bytes;
use indexmap::IndexMap;

mod checks;
pub(crate) mod complete;
mod config;
mod digests;
mod family;
mod fields;
pub mod fingerprint;
mod gguf;
mod hf;
mod keys;
mod names;
mod replace;
mod rope;
mod row_order;
mod shapes;
pub(crate) mod storage;
mod weights;

pub use checks::gguf_architecture_of;
pub use config::{
    Activation, BaseConfig, Biases, Experts, Family, FeedForward, GivenEmbeddings, Head, Layer, LlamaCpp, Norms,
    QueryKeyNorm, RopeTensors,
};
pub(crate) use fields::describe;
pub(crate) use gguf::{KEY_FACTOR, key_factor};
pub use names::{BlockWeight, Dialect, ExpertMatrix, RopeFactors, Weight};
pub use rope::{Rope, RopeScaling, Yarn};
pub use row_order::RowOrder;
use storage::Stored;
pub use weights::Rows;

/// A base model whose files are open and whose tensors are known to be complete.
#[derive(Debug, Clone)]
pub struct BaseModel {
    /// The folder or file that was opened.
    pub path: PathBuf,
    /// How its tensors are named.
    pub dialect: Dialect,
    /// What it states about itself.
    pub config: BaseConfig,
    /// `general.name` of a GGUF file.
    pub name: Option<String>,
    /// All metadata of a GGUF file.
    pub metadata: Option<Metadata>,
    /// By their names in the table; each has its own as the file spells it.
    tensors: IndexMap<String, StoredTensor>,
    /// Which of them the model uses, and what lies in each.
    layout: Vec<Stored>,
    /// The weights as views of those tensors.
    weights: HashMap<Weight, StoredTensor>,
    /// What [`fingerprint`] has read, so that many adapters of one base cost it once.
    digests: digests::Digests,
}

impl BaseConfig {
    /// Reads a parsed `config.json`; `file` names it in messages.
    ///
    /// # Errors
    ///
    /// [`Code::BaseArchitecture`], [`Code::ConfigField`], [`Code::ConfigUnsupported`].
    pub fn from_json(file: &Path, json: &serde_json::Value) -> Result<Self> {
        hf::parse(file, json)
    }
}

impl BaseModel {
    /// Opens a Hugging Face folder, a GGUF file, or a bundle of a model, which is checked first, whole.
    ///
    /// ```
    /// use ptplus::base::{BaseModel, RowOrder};
    ///
    /// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/llama-gqa/base");
    /// let base = BaseModel::open(folder.as_ref())?;
    /// assert_eq!((base.gguf_architecture(), base.row_order()), ("llama", RowOrder::Norm));
    /// # Ok::<(), ptplus::error::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What [`from_hf_folder`](Self::from_hf_folder), [`from_gguf`](Self::from_gguf) and [`from_bundle`](Self::from_bundle) refuse; of
    /// a bundle the first finding of [`check::check`], with all others.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|e| links::not_opened(path, "cannot open the base model", e))?;
        if container::is_bundle(path) {
            let bundle = Bundle::open(path)?;
            if let Some(e) = check::check(&bundle, None).to_error() {
                return Err(e.file(path));
            }
            return Self::from_bundle(&bundle);
        }
        if metadata.is_dir() { Self::from_hf_folder(path) } else { Self::from_gguf(path) }
    }

    /// [`open`](Self::open), without the tensors of a folder that are no model's: their names, in the order of the files,
    /// come beside it.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_without(path: &Path, is_foreign: &dyn Fn(&str) -> bool) -> Result<(Self, Vec<String>)> {
        if !path.is_dir() || container::is_bundle(path) {
            return Ok((Self::open(path)?, Vec::new()));
        }
        let (config, tensors) = read_hf_folder(path)?;
        let (foreign, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|t| is_foreign(&t.name));
        let base = Self::checked(path, Dialect::HuggingFace, config, None, tensors)?;
        Ok((base, foreign.into_iter().map(|t| t.name).collect()))
    }

    /// Opens a folder with `config.json` and weights: `model.safetensors` or `pytorch_model.bin`, or an index of either with
    /// its shards.
    ///
    /// # Errors
    ///
    /// [`Code::BaseArchitecture`], [`Code::ConfigField`], [`Code::ConfigUnsupported`] about the configuration;
    /// [`Code::BaseTensor`] for a tensor that is missing or has the wrong shape; what the readers refuse.
    pub fn from_hf_folder(folder: &Path) -> Result<Self> {
        let (config, tensors) = read_hf_folder(folder)?;
        Self::checked(folder, Dialect::HuggingFace, config, None, tensors)
    }

    /// Opens a GGUF file, or any part of a split one.
    ///
    /// # Errors
    ///
    /// As [`from_hf_folder`](Self::from_hf_folder), and what the GGUF reader refuses.
    pub fn from_gguf(file: &Path) -> Result<Self> {
        Self::of_container(file, gguf_format::open(file)?)
    }

    /// The model in a bundle that was checked, in its first form.
    ///
    /// # Errors
    ///
    /// [`Code::BaseArchitecture`] for a bundle of an adapter; those of [`from_gguf`](Self::from_gguf).
    pub fn from_bundle(bundle: &Bundle) -> Result<Self> {
        let file = file_of_form(bundle, None)?;
        let bytes = bundle.files.get(&file).filter(|_| bundle.files.contains_key(MODEL_FILE)).ok_or_else(|| {
            let message = "expected a base model, found a bundle of an adapter, which is for --adapter";
            Error::new(Code::BaseArchitecture, message).file(&bundle.path)
        })?;
        let place = if bundle.is_tar { bundle.path.clone() } else { bundle.path.join(&file) };
        Self::from_gguf_bytes(&place, bytes)
    }

    /// Opens a GGUF file whose bytes are at hand; `file` names it.
    ///
    /// # Errors
    ///
    /// Those of [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_bytes(file: &Path, bytes: &Bytes) -> Result<Self> {
        Self::of_container(file, gguf_format::parse_whole(file, bytes)?)
    }

    fn of_container(file: &Path, container: Gguf) -> Result<Self> {
        let find = |name: &str| container.tensors.iter().find(|t| t.name == name);
        let config = gguf::parse(file, &container.metadata, find)?;
        Self::checked(file, Dialect::Gguf, config, Some(container.metadata), container.tensors)
    }

    fn checked(
        path: &Path,
        dialect: Dialect,
        config: BaseConfig,
        metadata: Option<Metadata>,
        tensors: Vec<StoredTensor>,
    ) -> Result<Self> {
        let name = match &metadata {
            Some(m) => m.str("general.name").map_err(|e| e.file(path))?.map(str::to_owned),
            None => None,
        };
        let tensors = by_name(dialect, tensors)?;
        let (layout, weights, digests) = Default::default();
        let path = path.to_owned();
        let mut base = BaseModel { path, dialect, config, name, metadata, tensors, layout, weights, digests };
        base.find_weights()?;
        Ok(base)
    }

    /// `weight`, if the model has it, as a tensor: a range of the one that holds it, whose name it has.
    pub fn tensor(&self, weight: Weight) -> Option<&StoredTensor> {
        self.weights.get(&weight)
    }

    /// What the files of this model call `weight`, wrappers' words left out.
    pub fn name_of(&self, weight: Weight) -> String {
        weight.name_in(self.dialect, &self.config)
    }

    /// The weights of the model, in the order of the table. Those that are parts of another are not among them.
    pub fn weights(&self) -> impl Iterator<Item = Weight> {
        self.layout.iter().flat_map(|s| s.weights.iter().copied())
    }

    /// The tensors that the model uses, with what lies in each.
    pub(crate) fn layout(&self) -> &[Stored] {
        &self.layout
    }

    /// The tensor of this name in the files.
    pub fn tensor_named(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(&*self.dialect.canonical(name))
    }

    /// Every tensor of the files, those that the forward pass does not use included, in order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        let mut all: Vec<_> = self.tensors.values().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.into_iter()
    }

    /// Every tensor, in the order of the file; of several files, one after the other.
    pub fn tensors_in_file_order(&self) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.values()
    }

    /// The GGUF architecture that this model has or would have.
    pub fn gguf_architecture(&self) -> &'static str {
        self.config.family.gguf_architecture()
    }

    /// The order of query components in a GGUF file of this architecture.
    pub fn row_order(&self) -> RowOrder {
        self.config.family.row_order()
    }
}

/// The tensors by the name that the table has for them.
///
/// # Errors
///
/// [`Code::NameDuplicate`] for two of one name; [`Code::BaseTensor`] for two that have one name without their wrappers':
/// nothing says which of them counts.
fn by_name(dialect: Dialect, tensors: Vec<StoredTensor>) -> Result<IndexMap<String, StoredTensor>> {
    let mut out: IndexMap<String, StoredTensor> = IndexMap::with_capacity(tensors.len());
    for t in tensors {
        let name = dialect.canonical(&t.name).into_owned();
        if let Some(other) = out.get(&name) {
            // Of a checkpoint, keys that are joined by dots may come to the same.
            if other.name == t.name {
                let message = "two tensors have this name";
                return Err(Error::new(Code::NameDuplicate, message).file(&t.file).field(&t.name));
            }
            let message = format!("expected one tensor for {name}, found {} too", other.name);
            return Err(Error::new(Code::BaseTensor, message).file(&t.file).field(&t.name).at(t.file_offset));
        }
        out.insert(name, t);
    }
    Ok(out)
}

/// Files with the weights of a model's folder, in the order in which transformers prefers them.
pub const WEIGHTS_FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Configuration and tensors of a folder, not held against each other.
fn read_hf_folder(folder: &Path) -> Result<(BaseConfig, Vec<StoredTensor>)> {
    let file = folder.join("config.json");
    let config = BaseConfig::from_json(&file, &json::read_config(&file).map_err(|e| without_config(folder, e))?)?;
    let file = weights_of_folder(folder)?;
    if file.extension().is_some_and(|e| e == "json") {
        let shards = index::read(&file)?;
        if is_checkpoint(&shards[0].file)? {
            let opened = pickle::open_shards(&file, &shards)?;
            let tensors: Vec<Vec<_>> = opened.iter().map(pickle::Checkpoint::stored).collect::<Result<_>>()?;
            return Ok((config, tensors.into_iter().flatten().collect()));
        }
        return Ok((config, safetensors::open_shards(&file, &shards)?.tensors));
    }
    let tensors = match is_checkpoint(&file)? {
        true => pickle::open(&file)?.stored()?,
        false => safetensors::open(&file)?.tensors,
    };
    Ok((config, tensors))
}

/// By its content; what is neither is a broken safetensors file. One that is not there is told later, by name.
fn is_checkpoint(file: &Path) -> Result<bool> {
    if !file.exists() {
        return Ok(false);
    }
    let bytes = mmap::map_file(file)?;
    let is_pickle = file.extension().is_some_and(|e| e == "bin");
    Ok(!safetensors::is_safetensors(&bytes) && (is_pickle || pickle::is_checkpoint(&bytes)))
}

/// The file to read.
fn weights_of_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(known) = WEIGHTS_FILES.iter().map(|f| folder.join(f)).find(|p| p.is_file()) {
        return Ok(known);
    }
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "cannot list the folder", e))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, "cannot list the folder", e))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && !is_hidden(&path) && path.is_file() {
            files.push(path);
        }
    }
    match files.pop() {
        Some(file) if files.is_empty() => Ok(file),
        found => {
            let n = files.len() + usize::from(found.is_some());
            let message = format!(
                "expected model.safetensors or pytorch_model.bin, an index of either, or one other *.safetensors; found {n} of the latter"
            );
            let is_weights = |name: &str| name.contains(".safetensors") || name.contains(".bin");
            let missing = || Error::new(Code::NotFound, message).file(folder).hints(recognize::folder(folder));
            Err(recognize::broken_link(folder, is_weights).unwrap_or_else(missing))
        }
    }
}

/// A folder without `config.json` may be something else that has a name.
fn without_config(folder: &Path, e: Error) -> Error {
    if e.code() == Code::NotFound { e.hints(recognize::folder(folder)) } else { e }
}
