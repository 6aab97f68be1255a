//! Pieces with their slots to layers and a configuration: shared by every source.

use std::collections::{BTreeMap, HashSet};

use super::stated::Stated;
use super::statements::still_open;
use crate::adapter::plus::{self, Geometry, MemorySharing, StatedLayers};
use crate::adapter::{Part, Slot};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::{Finding, Findings};
use crate::tensor::LazyTensor;

/// Elements of a memory or feature weight of one head, which is decoded, reordered and written as a whole. 64 x 64 to
/// 256 x 256 are usual; this is 8,192 features of 512.
const HEAD_ELEMENTS: usize = 1 << 22;

/// The tensors of an adapter.
pub(super) type Pieces = BTreeMap<Slot, LazyTensor>;

/// Layers from pieces. A layer without memory, or a bias without its weight, becomes a finding and is left out.
pub(super) fn layers(mut pieces: Pieces, findings: &mut Findings) -> BTreeMap<usize, plus::Layer> {
    let numbers: std::collections::BTreeSet<usize> = pieces.keys().filter_map(|slot| slot.layer).collect();
    let mut layers = BTreeMap::new();
    for i in numbers {
        let mut part = |part| pieces.remove(&Slot::attention(i, part));
        let (memory, feature_weight, feature_bias, normalizer) =
            (part(Part::Memory), part(Part::FeatureWeight), part(Part::FeatureBias), part(Part::Normalizer));
        if feature_bias.is_some() && feature_weight.is_none() {
            findings.push(Finding::new(
                Code::AdapterMissing,
                Slot::attention(i, Part::FeatureWeight).canonical_name(),
                "a weight beside the bias",
                "no such tensor",
            ));
        }
        match memory {
            Some(memory) => {
                layers.insert(
                    i,
                    plus::Layer {
                        memory,
                        feature_bias: feature_bias.filter(|_| feature_weight.is_some()),
                        feature_weight,
                        normalizer,
                    },
                );
            }
            None => findings.push(Finding::new(
                Code::AdapterMissing,
                Slot::attention(i, Part::Memory).canonical_name(),
                "a memory in this layer, which has other tensors",
                "no such tensor",
            )),
        }
    }
    layers
}

/// Checks the layers that the source states against those found.
pub(super) fn check_stated_layers(
    stated: Option<&StatedLayers>,
    n_layers: usize,
    found: &BTreeMap<usize, plus::Layer>,
    findings: &mut Findings,
) {
    let missing = |i: usize| {
        Finding::new(
            Code::AdapterMissing,
            Slot::attention(i, Part::Memory).canonical_name(),
            "a memory in every stated layer",
            "no such tensor",
        )
    };
    match stated {
        None => {}
        Some(StatedLayers::All) => findings.extend((0..n_layers).filter(|i| !found.contains_key(i)).map(missing)),
        Some(StatedLayers::List(list)) => {
            findings.extend(list.iter().filter(|i| !found.contains_key(i)).map(|&i| missing(i)));
            let stated: HashSet<usize> = list.iter().copied().collect();
            findings.extend(found.keys().filter(|i| !stated.contains(i)).map(|&i| {
                Finding::new(
                    Code::AdapterLeftOver,
                    Slot::attention(i, Part::Memory).canonical_name(),
                    format!("only the {} layers of layers_to_transform", list.len()),
                    format!("weights for layer {i}"),
                )
            }));
        }
    }
}

/// The sizes that neither statements nor shapes nor the base say.
pub(super) fn open_sizes(
    stated: &Stated,
    layers: &BTreeMap<usize, plus::Layer>,
    base: Option<&BaseModel>,
) -> Vec<&'static str> {
    Sizes::of(stated, layers, base).named().into_iter().filter(|(_, v)| v.is_none()).map(|(k, _)| k).collect()
}

/// What is known of the sizes.
struct Sizes {
    n_features: Option<usize>,
    head_dim: Option<usize>,
    n_heads: Option<usize>,
    n_kv_heads: Option<usize>,
    n_layers: Option<usize>,
    value_head_dim: Option<usize>,
}

impl Sizes {
    fn of(stated: &Stated, layers: &BTreeMap<usize, plus::Layer>, base: Option<&BaseModel>) -> Sizes {
        let first = layers.values().next();
        let memory = first.map(|l| l.memory.shape().to_vec()).unwrap_or_default();
        let weight = first.and_then(|l| l.feature_weight.as_ref()).map(|w| w.shape().to_vec());
        let n_memories = memory.first().copied();
        let n_features = stated.num_features.or(memory.get(1).copied());
        let head_dim = stated.head_dim.or(match &weight {
            Some(w) => w.get(2).copied(),
            None => n_features,
        });
        let heads_by_shape = |sharing| (stated.memory_sharing == Some(sharing)).then_some(n_memories).flatten();
        let of_base = |size: fn(&BaseModel) -> usize| base.map(size);
        Sizes {
            n_features,
            head_dim,
            n_heads: (stated.num_attention_heads)
                .or(of_base(|b| b.config.n_heads))
                .or(heads_by_shape(MemorySharing::PerHead)),
            n_kv_heads: (stated.num_key_value_heads)
                .or(of_base(|b| b.config.n_kv_heads))
                .or(heads_by_shape(MemorySharing::PerKvHead)),
            n_layers: stated.num_layers.or(of_base(|b| b.config.n_layers)),
            value_head_dim: memory.get(2).copied().or(of_base(|b| b.config.value_head_dim)).or(head_dim),
        }
    }

    fn named(&self) -> [(&'static str, Option<usize>); 5] {
        [
            ("num_features", self.n_features),
            ("head_dim", self.head_dim),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("num_layers", self.n_layers),
        ]
    }
}

/// The configuration: conventions as stated, sizes as stated or else from the tensors' shapes or the base.
///
/// `open` lists what is open beside.
///
/// # Errors
///
/// [`Code::ConventionOpen`], listing everything that nothing states and how to
/// state it.
pub(super) fn config(
    stated: Stated,
    layers: &BTreeMap<usize, plus::Layer>,
    base: Option<&BaseModel>,
    open: &[&'static str],
) -> Result<plus::Config> {
    let Sizes { n_features, head_dim, n_heads, n_kv_heads, n_layers, value_head_dim } =
        Sizes::of(&stated, layers, base);
    let mut missing: Vec<&str> = open.to_vec();
    missing.extend(open_sizes(&stated, layers, base));
    if !missing.is_empty() {
        return Err(still_open(&missing));
    }
    let (Some(feature_map), Some(query_tap), Some(query_scale), Some(memory_scale), Some(memory_sharing)) =
        (stated.feature_map, stated.query_tap, stated.query_scale, stated.memory_scale, stated.memory_sharing)
    else {
        return Err(still_open(&missing));
    };
    let (Some(n_features), Some(head_dim), Some(n_heads), Some(n_kv_heads), Some(n_layers), Some(value_head_dim)) =
        (n_features, head_dim, n_heads, n_kv_heads, n_layers, value_head_dim)
    else {
        return Err(still_open(&missing));
    };
    for (name, columns) in [("head_dim", head_dim), ("value head_dim", value_head_dim)] {
        if n_features.checked_mul(columns).is_none_or(|n| n > HEAD_ELEMENTS) {
            let message = format!("expected heads of at most {HEAD_ELEMENTS} elements, found {n_features} x {columns}");
            return Err(Error::new(Code::ConfigUnsupported, message).field(name));
        }
    }
    Ok(plus::Config {
        feature_map,
        query_tap,
        query_scale,
        memory_scale,
        memory_sharing,
        geometry: Geometry { n_layers, n_heads, n_kv_heads, head_dim, value_head_dim, n_features },
        layers_to_transform: stated.layers_to_transform,
        base_model_type: stated.base_model_type,
        extra: stated.extra,
    })
}
