//! What an adapter or a base is, in the fields of its configuration.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::adapter;
use crate::adapter::field::report_key;
use crate::adapter::lora::{Lora, module_name};
use crate::base::{BaseModel, Dialect};
use crate::import::Imported;

/// What an adapter is.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// Which kind it is.
    #[serde(skip)]
    pub kind: adapter::Kind,
    /// For people: `canonical safetensors`, `GGUF`.
    pub layout: String,
    /// Its kind's fields, by the keys of `adapter_config.json`, and with them the adapted layers.
    #[serde(flatten)]
    pub fields: Map<String, Json>,
    /// The row order that its tensors are stored in.
    pub row_order: String,
}

/// What a LoRA adds to.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LoraSummary {
    /// Of its files.
    pub layout: String,
    /// The order of B's rows in the file.
    pub row_order: String,
    /// Adapted layers of the base.
    pub adapted_layers: Vec<usize>,
    /// Weights that are added to.
    pub num_modules: usize,
    /// The kinds of layers, those of one rank and factor in one line.
    pub targets: Vec<LoraTarget>,
    /// Whether each row is brought to a magnitude.
    pub dora: bool,
    /// Whether B has a bias.
    pub lora_bias: bool,
    /// Weights that were trained as a whole.
    pub saved: Vec<String>,
}

/// Modules of one kind, rank and factor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LoraTarget {
    /// `q_proj`, `embed_tokens`, ...
    pub module: String,
    /// In how many places.
    pub n: usize,
    /// r
    pub rank: usize,
    /// alpha, as stated for them.
    pub alpha: f64,
    /// The factor on B A.
    pub scale: f64,
}

/// The sizes of a base model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the fields are the keys of config.json
#[non_exhaustive]
pub struct BaseSummary {
    pub family: String,
    pub gguf_architecture: String,
    pub row_order: String,
    pub num_layers: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub tied_embeddings: bool,
}

pub(super) fn adapter_summary(imported: &Imported) -> AdapterSummary {
    let adapter = &imported.adapter;
    let mut fields = Map::new();
    for (key, value) in adapter.fields() {
        fields.insert(report_key(key), value.json());
        if key == "num_layers" {
            fields.insert("adapted_layers".into(), adapter.layer_numbers().collect());
        }
    }
    let (layout, row_order) = (imported.origin.layout.clone(), imported.origin.row_order.to_string());
    AdapterSummary { kind: adapter.kind(), layout, fields, row_order }
}

pub(super) fn lora_summary(lora: &Lora, imported: &Imported) -> LoraSummary {
    let mut targets: IndexMap<(String, usize, u64, u64), usize> = IndexMap::new();
    for (&weight, m) in &lora.modules {
        let name = module_name(weight);
        let kind = name.rsplit('.').next().unwrap_or_default().to_owned();
        *targets.entry((kind, m.rank(), m.scale.alpha.to_bits(), m.scale.factor.to_bits())).or_default() += 1;
    }
    let target = |((module, rank, alpha, scale), n): ((String, usize, u64, u64), usize)| LoraTarget {
        module,
        n,
        rank,
        alpha: f64::from_bits(alpha),
        scale: f64::from_bits(scale),
    };
    LoraSummary {
        layout: imported.origin.layout.clone(),
        row_order: imported.origin.row_order.to_string(),
        adapted_layers: imported.adapter.layer_numbers().collect(),
        num_modules: lora.modules.len(),
        targets: targets.into_iter().map(target).collect(),
        dora: lora.modules.values().any(|m| m.magnitude.is_some()),
        lora_bias: lora.modules.values().any(|m| m.bias.is_some()),
        saved: lora.saved.keys().map(|w| w.name(Dialect::HuggingFace)).collect(),
    }
}

pub(super) fn base_summary(b: &BaseModel) -> BaseSummary {
    let c = &b.config;
    BaseSummary {
        family: c.family.model_type().into(),
        gguf_architecture: b.gguf_architecture().into(),
        row_order: b.row_order().to_string(),
        num_layers: c.n_layers,
        hidden_size: c.hidden_size,
        num_attention_heads: c.n_heads,
        num_key_value_heads: c.n_kv_heads,
        head_dim: c.head_dim,
        vocab_size: c.vocab_size,
        tied_embeddings: c.tied_embeddings,
    }
}
