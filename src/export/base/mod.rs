//! A base model to GGUF: llama.cpp's names, row order and metadata, and the tokenizer.
//!
//! From a Hugging Face folder everything is made anew, as llama.cpp's `convert_hf_to_gguf.py` makes it; from a GGUF
//! file metadata and order of the tensors are kept, and only types change.

mod merge;
mod metadata;
mod recipe;
mod rope;

use super::file_type;
use super::types::{Choice, Overrides, TypeRules, fitted};
use super::{OutputTensor, Plan};
use crate::base::complete::of_unread_type;
use crate::base::{BaseModel, Dialect, Weight};
use crate::error::{Code, Error, Kind, Result};
use crate::format::gguf::{self, Metadata, Value};
use crate::format::{StoredTensor, TensorSpec};
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::vocab::{self, Vocabulary};
pub use merge::{Merged, merge};
use recipe::Recipe;

/// A plan of a base model's file.
#[derive(Debug, Clone)]
pub struct BasePlan {
    /// What will be written.
    pub plan: Plan,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Plans the GGUF file of `base`. `vocabulary` is that of a Hugging Face folder; a GGUF file's stays in its metadata.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for what GGUF has no place for, and for element types that are not decoded
/// here where they would have to be; [`Code::BaseTensor`]; those of the rules and of [`gguf::plan`].
pub fn plan(base: &BaseModel, vocabulary: Option<&Vocabulary>, rules: &TypeRules) -> Result<BasePlan> {
    check_loadable(base)?;
    let mut types = Types { recipe: Recipe::new(rules.default, base), rules, overrides: Overrides::new(rules) };
    let mut notes = Vec::new();
    let (mut specs, mut tensors) = (Vec::new(), Vec::new());
    let rope = match base.dialect {
        Dialect::HuggingFace => rope::state(base)?,
        Dialect::Gguf => rope::Stated::default(),
    };
    let divisors = rope.tensors.iter().map(|(factors, values)| {
        let lazy = LazyTensor::from_f32(values, &[values.len()]);
        Ok((Weight::Rope(*factors), lazy.clone(), "rope_parameters".to_owned(), lazy))
    });
    let stored = weights(base)?.into_iter().filter_map(|weight| Some((weight, base.tensor(weight)?)));
    let stored = stored.map(|(weight, t)| {
        let lazy = readable(t)?;
        Ok((weight, in_gguf_order(base, weight, lazy.clone())?, t.name.clone(), lazy))
    });
    for source in divisors.chain(stored) {
        let (weight, source, label, canonical) = source?;
        let name = weight.name_in(Dialect::Gguf, &base.config);
        let choice = types.choose(base, weight, &name, &source)?;
        let stored = source.stored_dtype();
        if stored != choice.dtype && !quant::can_decode(stored) {
            let message =
                format!("expected a type that ptplus decodes, to write it as {}, found {stored}", choice.dtype);
            return Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field(label));
        }
        if !quant::can_decode(stored) {
            notes.push(format!("{name}: copied without a look at its {stored} blocks, which ptplus does not decode"));
        }
        specs.push(TensorSpec { name, dtype: choice.dtype, shape: shape(base, weight, &source) });
        // A vector is one row, which is written at once.
        let source = if source.shape().len() == 1 { source.unsqueeze0() } else { source };
        tensors.push(OutputTensor::new(label, source, canonical, choice));
    }
    let file_type = types.recipe.as_ref().map(Recipe::file_type);
    types.finish()?;
    notes.extend(left_out(base));
    if let Some(metadata) = &base.metadata {
        check_tokenizer(metadata).map_err(|e| e.file(&base.path))?;
        notes.extend(vocab::gguf::notes(metadata).map_err(|e| e.file(&base.path))?);
    }
    let metadata = match &base.metadata {
        Some(metadata) => carried_over(metadata, file_type, &specs),
        None => metadata::of_folder(base, &rope, vocabulary, file_type, &specs, &mut notes)?,
    };
    Ok(BasePlan { plan: Plan { file: gguf::plan(&metadata, &specs)?, tensors }, notes })
}

/// A tokenizer is carried along as it is, whatever kind of one, and without the scores that llama.cpp can do without; not
/// one that is broken.
fn check_tokenizer(metadata: &Metadata) -> Result<()> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let lacks_scores = |e: &Error| e.field_name() == Some(SCORES) && metadata.get(SCORES).is_none();
    match Vocabulary::from_gguf(metadata) {
        Err(e) if e.kind() == Kind::Corrupt && !lacks_scores(&e) => Err(e),
        _ => Ok(()),
    }
}

/// The weights to write, in order: of a GGUF file as it has them.
fn weights(base: &BaseModel) -> Result<Vec<Weight>> {
    let mut weights: Vec<Weight> = Weight::all(base.config.n_layers).filter(|w| base.tensor(*w).is_some()).collect();
    match base.dialect {
        Dialect::Gguf => {
            let places: std::collections::HashMap<&str, usize> =
                base.tensors_in_file_order().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
            weights.sort_by_key(|w| places.get(base.name_of(*w).as_str()).copied());
        }
        Dialect::HuggingFace => {
            if base.config.tied_embeddings {
                // Asks whether a head that is stored all the same is the embedding indeed.
                base.output_weight()?;
                weights.retain(|w| *w != Weight::Output);
            }
        }
    }
    Ok(weights)
}

/// What llama.cpp's loaders want of a family beyond what its class in transformers does. Sources: `load_arch_tensors` in
/// llama.cpp's models/*.cpp: every tensor of the file has to be asked for, with its shape.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for a folder whose file llama.cpp would refuse to load.
fn check_loadable(base: &BaseModel) -> Result<()> {
    let c = &base.config;
    let refuse = |field: &str, message: String| {
        Err(Error::new(Code::ConfigUnsupported, message).file(&base.path.join("config.json")).field(field))
    };
    if base.dialect == Dialect::Gguf {
        return Ok(());
    }
    let llama_cpp = c.family.llama_cpp();
    if c.biases.attention_output && !llama_cpp.biases.attention_output {
        let message = format!(
            "expected false: llama.cpp loads no bias of o_proj for {}, and refuses a file that has one, found true",
            base.gguf_architecture()
        );
        return refuse("attention_bias", message);
    }
    if llama_cpp.derives_head_dim && c.n_heads * c.head_dim != c.hidden_size {
        let message = format!(
            "expected the hidden size over the heads, {} / {}, which llama.cpp takes for granted for {}, found {}",
            c.hidden_size,
            c.n_heads,
            base.gguf_architecture(),
            c.head_dim
        );
        return refuse("head_dim", message);
    }
    Ok(())
}

/// # Errors
///
/// [`Code::ConfigUnsupported`] for integers and 8-bit floats, which no weight of the supported families is.
fn readable(t: &StoredTensor) -> Result<LazyTensor> {
    if t.dtype.is_float() || t.dtype.is_quantized() {
        return t.lazy();
    }
    Err(of_unread_type(t, "F64, F32, F16, BF16 or blocks of ggml"))
}

/// The rows of query and key in the order that the architecture has in GGUF: as a view `[heads, D, ...]`.
fn in_gguf_order(base: &BaseModel, weight: Weight, t: LazyTensor) -> Result<LazyTensor> {
    match base.dialect {
        Dialect::Gguf => Ok(t),
        Dialect::HuggingFace => Ok(base.in_gguf_order(weight, t.clone())?.unwrap_or(t)),
    }
}

/// The shape in the file of what [`in_gguf_order`] may have split.
fn shape(base: &BaseModel, weight: Weight, source: &LazyTensor) -> Vec<usize> {
    base.tensor(weight).map_or(source.shape().to_vec(), |t| t.shape.clone())
}

/// Applies [`TypeRules`] to the tensors of one base model.
struct Types<'a> {
    recipe: Option<Recipe>,
    rules: &'a TypeRules,
    overrides: Overrides<'a>,
}

impl Types<'_> {
    /// Norms, biases and RoPE's divisors are F32 when they come from a folder, and stay what they are in a GGUF file.
    fn choose(&mut self, base: &BaseModel, weight: Weight, name: &str, source: &LazyTensor) -> Result<Choice> {
        let stored = source.stored_dtype();
        let kept = if stored == DType::F64 { DType::F32 } else { stored };
        let is_matrix = weight.expected_shape(&base.config).is_some_and(|s| s.len() > 1);
        let asked = match (is_matrix, &self.recipe) {
            (false, _) if base.dialect == Dialect::HuggingFace => DType::F32,
            (false, _) => kept,
            (true, recipe) => {
                let row_len = source.shape().last().copied().unwrap_or(1);
                let by_recipe = recipe.as_ref().map_or(kept, |r| r.dtype(weight, row_len));
                self.overrides.find(name).unwrap_or(by_recipe)
            }
        };
        fitted(self.rules, asked, || kept, name, source)
    }

    fn finish(self) -> Result<()> {
        self.overrides.finish("a weight matrix", "norms and biases are no matrices")
    }
}

/// The metadata of a GGUF file, except for what the types decide.
fn carried_over(metadata: &Metadata, file_type: Option<u32>, specs: &[TensorSpec]) -> Metadata {
    let mut m = metadata.clone();
    if let Some(n) = file_type {
        m.insert(gguf::FILE_TYPE, Value::U32(n));
    }
    if specs.iter().any(|t| t.dtype.is_quantized()) {
        m.insert(gguf::QUANTIZATION_VERSION, Value::U32(2));
    }
    m
}

/// A line about the tensors of a folder that the forward pass does not use.
fn left_out(base: &BaseModel) -> Option<String> {
    if base.dialect == Dialect::Gguf {
        return None; // a GGUF file with such a tensor was refused
    }
    let mut names: Vec<&str> = base.unused_tensors().map(|(_, t)| t.name.as_str()).collect();
    names.sort_unstable();
    let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
    names.first().map(|first| format!("{first}{more}: left out, the model does not use it"))
}
