//! A base model to GGUF: llama.cpp's names, row order and metadata, and the tokenizer.
//!
//! From a Hugging Face folder everything is made anew, as llama.cpp's `convert_hf_to_gguf.py` makes it; from a GGUF
//! file metadata and order of the tensors are kept, and only types change.

mod merge;
mod metadata;
mod recipe;
mod rope;

use std::collections::HashMap;

use super::file_type;
use super::types::{Choice, Overrides, TypeRules, fitted};
use super::{OutputTensor, Plan};
use crate::about::About;
use crate::base::complete::of_unread_type;
use crate::base::storage::{self, Stored};
use crate::base::{BaseModel, BlockWeight, Dialect, Head, RopeFactors, Weight};
use crate::error::{Code, Error, ErrorKind, Result};
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

/// Plans the GGUF file of `base`. `vocabulary` is that of a Hugging Face folder; a GGUF file's stays in its metadata. `about` is what a
/// model that is made from the base is to say of itself.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for what GGUF has no place for, and for element types that are not decoded
/// here where they would have to be; [`Code::BaseTensor`]; those of the rules and of [`gguf::plan`].
pub fn plan(
    base: &BaseModel,
    vocabulary: Option<&Vocabulary>,
    rules: &TypeRules,
    about: Option<&About>,
) -> Result<BasePlan> {
    check_loadable(base)?;
    let mut types = Types { recipe: Recipe::new(rules.default, base), rules, overrides: Overrides::new(rules) };
    let mut notes = Vec::new();
    let (mut specs, mut tensors) = (Vec::new(), Vec::new());
    let rope = match base.dialect {
        Dialect::HuggingFace => rope::state(base)?,
        Dialect::Gguf => rope::Stated::default(),
    };
    let divisors = rope.tensors.iter().map(|(factors, values)| Ok(divisors(*factors, values)));
    let layout = layout(base)?.into_iter().map(|stored| {
        let source = source(base, &stored)?;
        Ok((stored, source))
    });
    for source in divisors.chain(layout) {
        let (stored, Source { values: source, label, canonical }) = source?;
        let choice = types.choose(base, &stored, &source)?;
        let Stored { name, shape, .. } = stored;
        let dtype = source.stored_dtype();
        if dtype != choice.dtype && !quant::can_decode(dtype) {
            let message =
                format!("expected a type that ptplus decodes, to write it as {}, found {dtype}", choice.dtype);
            return Err(Error::new(Code::ConfigUnsupported, message).file(&base.path).field(label));
        }
        if !quant::can_decode(dtype) {
            notes.push(format!("{name}: copied without a look at its {dtype} blocks, which ptplus does not decode"));
        }
        specs.push(TensorSpec { name, dtype: choice.dtype, shape });
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
    let mut metadata = match &base.metadata {
        Some(metadata) => carried_over(metadata, file_type, &specs),
        None => metadata::of_folder(base, &rope, vocabulary, file_type, &specs, &mut notes)?,
    };
    if let Some(about) = about {
        about.put_into_model(&mut metadata)?;
    }
    Ok(BasePlan { plan: Plan { file: gguf::plan(&metadata, &specs)?, tensors }, notes })
}

/// A tokenizer is carried along as it is, whatever kind of one, and without the scores that llama.cpp can do without; not
/// one that is broken.
fn check_tokenizer(metadata: &Metadata) -> Result<()> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let lacks_scores = |e: &Error| e.field_name() == Some(SCORES) && metadata.get(SCORES).is_none();
    match Vocabulary::from_gguf(metadata) {
        Err(e) if e.kind() == ErrorKind::Corrupt && !lacks_scores(&e) => Err(e),
        _ => Ok(()),
    }
}

/// The tensors to write, in order: of a GGUF file as it has them.
pub(super) fn layout(base: &BaseModel) -> Result<Vec<Stored>> {
    if base.dialect == Dialect::Gguf {
        let places: HashMap<&str, usize> =
            base.tensors_in_file_order().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let mut layout = base.layout().to_vec();
        layout.sort_by_key(|s| places.get(s.name.as_str()).copied());
        for stored in &mut layout {
            // A row stays a matrix of one, where it is.
            let found = base.tensor_named(&stored.name).map(|t| t.shape.clone());
            stored.shape = found.unwrap_or_default();
        }
        return Ok(layout);
    }
    if base.config.tied_embeddings {
        // Asks whether a head that is stored all the same is the embedding indeed.
        base.output_weight()?;
    }
    let mut layout = storage::layout(&base.config, Dialect::Gguf, |_| false);
    // A folder's configuration says RoPE's divisors.
    layout.retain(|s| !matches!(s.weights[..], [Weight::Rope(_)]));
    if base.config.tied_embeddings && base.config.family.llama_cpp().head == Head::Own {
        let shape = vec![base.config.vocab_size, base.config.hidden_size];
        layout.push(Stored { name: Weight::Output.name(Dialect::Gguf), shape, weights: vec![Weight::Output] });
    }
    Ok(layout)
}

/// Where the values of a tensor come from.
struct Source {
    /// In the order of the output.
    values: LazyTensor,
    /// What errors call it.
    label: String,
    /// The same values in the order of the input.
    canonical: LazyTensor,
}

/// RoPE's divisors, of a folder's configuration.
fn divisors(factors: RopeFactors, values: &[f32]) -> (Stored, Source) {
    let weight = Weight::Rope(factors);
    let stored = Stored { name: weight.name(Dialect::Gguf), shape: vec![values.len()], weights: vec![weight] };
    let values = LazyTensor::from_f32(values, &[values.len()]);
    (stored, Source { canonical: values.clone(), label: "rope_parameters".to_owned(), values })
}

/// A folder's weight with the values that GGUF has: norms that multiply as they are, keys that make llama.cpp's scale the model's.
fn in_gguf_values(base: &BaseModel, weight: Weight, t: LazyTensor) -> Result<LazyTensor> {
    if base.dialect == Dialect::Gguf {
        return Ok(t);
    }
    let factor = base.config.gguf_key_factor();
    let makes_keys = matches!(
        (weight, base.config.query_key_norm),
        (Weight::Block(_, BlockWeight::KeyNorm), Some(_))
            | (Weight::Block(_, BlockWeight::Key | BlockWeight::KeyBias), None)
    );
    let shape = t.shape().to_vec();
    let multiplied = |mut values: Vec<f32>| {
        if makes_keys {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        LazyTensor::from_f32(&values, &shape)
    };
    match shape.len() {
        _ if !base.is_less_one(weight) && (!makes_keys || factor == 1.0) => Ok(t),
        1 => Ok(multiplied(base.vector(weight)?)),
        _ => Ok(multiplied(base.rows(weight)?.to_f32())),
    }
}

fn source(base: &BaseModel, stored: &Stored) -> Result<Source> {
    if base.dialect == Dialect::Gguf
        && let Some(t) = base.tensor_named(&stored.name)
    {
        let canonical = readable(t)?;
        // Of a stack a step is some rows, not an expert.
        let values = if t.shape.len() == 3 { canonical.clone().merge_axes(0) } else { canonical.clone() };
        return Ok(Source { values, label: t.name.clone(), canonical });
    }
    let mut parts = Vec::with_capacity(stored.weights.len());
    for weight in &stored.weights {
        let t = base.tensor(base.stored_weight(*weight)?).expect("a weight of the model");
        let canonical = in_gguf_values(base, *weight, readable(t)?)?;
        let values = base.in_gguf_order(*weight, canonical.clone())?.unwrap_or_else(|| canonical.clone());
        parts.push(Source { values, label: t.name.clone(), canonical });
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let values = LazyTensor::concat(parts.into_iter().map(|p| p.canonical).collect())
        .map_err(|e| e.file(&base.path).field(&stored.name))?;
    Ok(Source { canonical: values.clone(), label: stored.name.clone(), values })
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
    if llama_cpp.head == Head::Embedding && !c.tied_embeddings {
        let message = format!(
            "expected true: llama.cpp takes the token embedding for the head of a {}, and refuses a file that has one, found false",
            base.gguf_architecture()
        );
        return refuse("tie_word_embeddings", message);
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

/// Applies [`TypeRules`] to the tensors of one base model.
struct Types<'a> {
    recipe: Option<Recipe>,
    rules: &'a TypeRules,
    overrides: Overrides<'a>,
}

impl Types<'_> {
    /// Norms, biases and RoPE's divisors are F32 when they come from a folder, and stay what they are in a GGUF file.
    fn choose(&mut self, base: &BaseModel, stored: &Stored, source: &LazyTensor) -> Result<Choice> {
        let Stored { name, shape, weights } = stored;
        let dtype = source.stored_dtype();
        let kept = if dtype == DType::F64 { DType::F32 } else { dtype };
        // llama.cpp computes with routers in F32.
        let is_matrix = shape.len() > 1 && !matches!(weights[..], [Weight::Block(_, BlockWeight::Router)]);
        let asked = match (is_matrix, &self.recipe) {
            (false, _) if base.dialect == Dialect::HuggingFace => DType::F32,
            (false, _) => kept,
            (true, recipe) => {
                let row_len = source.shape().last().copied().unwrap_or(1);
                let last = *weights.last().expect("a tensor holds a weight");
                let by_recipe = recipe.as_ref().map_or(kept, |r| r.dtype(last, row_len));
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
