//! Adapters merged into a base: which weights are replaced, which get something added, and what the configuration becomes.
//!
//! ```text
//!   W' = W + sum of scale * B A        low-rank additions, row by row while W is written
//!   b' = b + sum of scale * bias       lora_bias; a bias that the base has not begins at 0
//!   W' = the adapter's own             modules_to_save, norms, embeddings with another number of rows
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::about::About;
use crate::adapter::lora::{Lora, Module};
use crate::base::storage::Stored;
use crate::base::{BaseConfig, BaseModel, BlockWeight as W, Dialect, Weight};
use crate::error::{Code, Error, Result};
use crate::export::MatrixAddition;
use crate::export::types::TypeRules;
use crate::tensor::LazyTensor;
use crate::transform::low_rank::decoded;
use crate::vocab::Vocabulary;

/// A base with adapters in it. The additions are made when it is written.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The base with replaced weights and biases, and what it says about itself.
    pub base: BaseModel,
    /// What is added to matrices, rows in the order of the output file.
    additions: BTreeMap<Weight, Vec<MatrixAddition>>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Merges adapters, each with a factor on what it adds.
///
/// # Errors
///
/// [`Code::Usage`] for a factor on an adapter that replaces weights, and for two that replace the same one;
/// [`Code::ConfigUnsupported`] for a bias that no model of the family has; [`Code::BaseTensor`], [`Code::AdapterShape`].
pub fn merge(base: &BaseModel, adapters: &[(&Lora, f64)]) -> Result<Merged> {
    let mut config = base.config.clone();
    let mut weights: BTreeMap<Weight, LazyTensor> = BTreeMap::new();
    for (lora, strength) in adapters {
        for (weight, t) in &lora.saved {
            let name = || weight.name(Dialect::HuggingFace);
            if *strength != 1.0 {
                let message = format!("expected no scale: this weight replaces the base's, found {strength}");
                return Err(Error::new(Code::Usage, message).field(name()));
            }
            if weights.insert(*weight, t.clone()).is_some() {
                let message = "expected one adapter that replaces this weight, found two";
                return Err(Error::new(Code::Usage, message).field(name()));
            }
        }
    }
    let touched: BTreeSet<Weight> =
        adapters.iter().flat_map(|(l, _)| l.modules.keys().chain(l.saved.keys())).copied().collect();
    let mut notes = Vec::new();
    if config.tied_embeddings && (touched.contains(&Weight::TokenEmbedding) || touched.contains(&Weight::Output)) {
        untie(base, &mut config, &mut weights, adapters)?;
        if !config.tied_embeddings {
            notes.push("the output head is written beside the embedding, to which it was tied: the adapter makes them different".into());
        }
    }
    if let Some(rows) = weights.get(&Weight::TokenEmbedding).and_then(|t| t.shape().first().copied()) {
        if rows != config.vocab_size && base.dialect == Dialect::Gguf {
            let message = format!(
                "expected an embedding of {} rows, as many as the file's tokenizer has tokens, found {rows}: merge into the Hugging Face folder",
                config.vocab_size
            );
            return Err(
                Error::new(Code::ConfigUnsupported, message).field(Weight::TokenEmbedding.name(Dialect::HuggingFace))
            );
        }
        config.vocab_size = rows;
    }
    add_biases(base, &mut config, &mut weights, adapters)?;
    let merged = base.with_weights(config, weights)?;
    let mut additions: BTreeMap<Weight, Vec<MatrixAddition>> = BTreeMap::new();
    for (lora, strength) in adapters {
        for (weight, module) in &lora.modules {
            additions.entry(*weight).or_default().push(addition(base, *weight, module, *strength)?);
        }
    }
    Ok(Merged { base: merged, additions, notes })
}

/// The head becomes a weight of its own, unless the adapter ties it to the embedding, too.
fn untie(
    base: &BaseModel,
    config: &mut BaseConfig,
    weights: &mut BTreeMap<Weight, LazyTensor>,
    adapters: &[(&Lora, f64)],
) -> Result<()> {
    let is_tied = |(lora, _): &(&Lora, f64)| lora.config.get("ensure_weight_tying").is_some_and(|v| v == true);
    let only_replaced = adapters
        .iter()
        .all(|(l, _)| !l.modules.contains_key(&Weight::Output) && !l.modules.contains_key(&Weight::TokenEmbedding));
    if only_replaced && !weights.contains_key(&Weight::Output) && adapters.iter().any(is_tied) {
        return Ok(());
    }
    config.tied_embeddings = false;
    let embedding = weights.get(&Weight::TokenEmbedding).cloned();
    if let Entry::Vacant(head) = weights.entry(Weight::Output) {
        // With new rows the base's head has too few: one that is tied follows the embedding.
        let of_base = base.in_hugging_face_order(base.output_weight()?)?;
        head.insert(embedding.filter(|e| e.shape() != of_base.shape()).unwrap_or(of_base));
    }
    Ok(())
}

/// The bias of a projection.
fn bias_of(weight: Weight) -> Option<Weight> {
    let Weight::Block(i, w) = weight else { return None };
    let bias = match w {
        W::Query => W::QueryBias,
        W::Key => W::KeyBias,
        W::Value => W::ValueBias,
        W::AttentionOutput => W::AttentionOutputBias,
        W::Gate => W::GateBias,
        W::Up => W::UpBias,
        W::Down => W::DownBias,
        _ => return None,
    };
    Some(Weight::Block(i, bias))
}

/// Biases of the adapters are added to the base's. A family has those of a group of projections in all layers or in none.
fn add_biases(
    base: &BaseModel,
    config: &mut BaseConfig,
    weights: &mut BTreeMap<Weight, LazyTensor>,
    adapters: &[(&Lora, f64)],
) -> Result<()> {
    let mut sums: BTreeMap<Weight, Vec<f32>> = BTreeMap::new();
    for (lora, strength) in adapters {
        for (weight, module) in &lora.modules {
            let Some(bias) = &module.bias else { continue };
            let unsupported = || {
                let message = "expected a projection of a block for a learned bias, since no model of the family has one elsewhere";
                Error::new(Code::ConfigUnsupported, message).field(weight.name(Dialect::HuggingFace))
            };
            let target = bias_of(*weight).ok_or_else(unsupported)?;
            let values = decoded(bias).map_err(|e| e.field(target.name(Dialect::HuggingFace)))?;
            let sum = match sums.entry(target) {
                Entry::Occupied(e) => e.into_mut(),
                Entry::Vacant(e) => {
                    let start = match weights.get(&target) {
                        Some(t) => decoded(t)?,
                        None if base.tensor(target).is_some() => base.vector(target)?,
                        None => vec![0.0; values.len()],
                    };
                    e.insert(start)
                }
            };
            let scale = module.scale.factor * strength;
            sum.iter_mut().zip(values).for_each(|(s, v)| *s = (f64::from(*s) + scale * f64::from(v)) as f32);
        }
    }
    for (weight, sum) in sums {
        let n = sum.len();
        weights.insert(weight, LazyTensor::from_f32(&sum, &[n]));
    }
    let has = |weights: &BTreeMap<Weight, LazyTensor>, group: &[W]| {
        weights.keys().any(|w| matches!(w, Weight::Block(_, w) if group.contains(w)))
    };
    let biases = &mut config.biases;
    for (is_there, group) in [
        (&mut biases.query_key_value, &[W::QueryBias, W::KeyBias, W::ValueBias][..]),
        (&mut biases.attention_output, &[W::AttentionOutputBias]),
        (&mut biases.feed_forward, &[W::GateBias, W::UpBias, W::DownBias]),
    ] {
        *is_there |= has(weights, group);
    }
    let loaded = &base.config.family.llama_cpp().biases;
    let unread = [
        biases.attention_output && !base.config.biases.attention_output && !loaded.attention_output,
        biases.feed_forward && !base.config.biases.feed_forward && !loaded.feed_forward,
    ];
    if unread.contains(&true) {
        let message = format!(
            "expected no learned bias but those of q_proj, k_proj and v_proj: llama.cpp loads no others for {}, and refuses a file that has one",
            base.gguf_architecture()
        );
        return Err(Error::new(Code::ConfigUnsupported, message).field("lora_bias"));
    }
    for i in 0..config.n_layers {
        for weight in W::ALL.iter().map(|w| Weight::Block(i, *w)) {
            // Norms and matrices are there already: what a configuration newly wants are biases.
            if let Some(shape) = weight.expected_shape(config).filter(|_| base.tensor(weight).is_none()) {
                let zeros = LazyTensor::from_f32(&vec![0.0; shape.iter().product()], &shape);
                weights.entry(weight).or_insert(zeros);
            }
        }
    }
    Ok(())
}

/// What is added to `weight`, with its rows where the file has them.
fn addition(base: &BaseModel, weight: Weight, module: &Module, strength: f64) -> Result<MatrixAddition> {
    let ordered = |t: &LazyTensor| -> Result<LazyTensor> {
        let heads = base.in_gguf_order(weight, t.clone()).map_err(|e| e.field(weight.name(Dialect::HuggingFace)))?;
        Ok(heads.map_or_else(|| t.clone(), |heads| heads.merge_axes(0)))
    };
    let key_factor = base.config.addition_factor(weight, base.config.gguf_key_factor());
    if key_factor != 1.0 && module.magnitude.is_some() {
        let message = "expected no DoRA of keys, which the file will hold multiplied, found one";
        return Err(Error::new(Code::ConfigUnsupported, message).field(weight.name(Dialect::HuggingFace)));
    }
    Ok(MatrixAddition {
        first_row: 0,
        a: module.a.clone(),
        b: ordered(&module.b)?,
        scale: module.scale.factor * strength * key_factor,
        magnitude: module.magnitude.as_ref().map(ordered).transpose()?,
    })
}

impl Merged {
    /// Plans the GGUF file; arguments and errors as those of [`plan`](super::plan).
    ///
    /// # Errors
    ///
    /// [`Code::Requantize`] also for blocks that would be decoded, changed and quantized again.
    pub fn plan(
        &self,
        vocabulary: Option<&Vocabulary>,
        rules: &TypeRules,
        about: Option<&About>,
    ) -> Result<super::BasePlan> {
        let mut planned = super::plan(&self.base, vocabulary, rules, about)?;
        let layout = super::layout(&self.base)?;
        let layout: BTreeMap<&str, &Stored> = layout.iter().map(|s| (s.name.as_str(), s)).collect();
        let tensors = planned.plan.tensors.iter_mut().zip(&planned.plan.file.tensors);
        for (tensor, file) in tensors {
            let additions = layout.get(file.name.as_str()).map(|s| self.additions_to(s)).unwrap_or_default();
            if additions.is_empty() {
                continue;
            }
            let stored = tensor.source.stored_dtype();
            if stored.is_quantized() && tensor.dtype.is_quantized() && !rules.allow_requantize {
                let message = format!(
                    "expected a plain float tensor to merge into, found {stored} blocks; --allow-requantize loses twice"
                );
                return Err(Error::new(Code::Requantize, message).field(&file.name));
            }
            tensor.additions = additions;
        }
        planned.notes.extend(self.notes.iter().cloned());
        Ok(planned)
    }

    /// What is added to the weights of a tensor.
    fn additions_to(&self, tensor: &Stored) -> Vec<MatrixAddition> {
        let mut first_row = 0;
        let mut all = Vec::new();
        for weight in &tensor.weights {
            let own = self.additions.get(weight).into_iter().flatten();
            all.extend(own.map(|a| MatrixAddition { first_row, ..a.clone() }));
            first_row += self.base.tensor(*weight).map_or(0, |t| t.shape[0]);
        }
        all
    }
}
