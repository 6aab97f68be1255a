//! Pieces with their slots to layers and a configuration: shared by every source.

use std::collections::{BTreeMap, HashSet};

use super::stated::Stated;
use super::statements::still_open;
use crate::adapter::plus::{self, Geometry, KnownGeometry, MemorySharing, StatedLayers};
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
            findings.add(
                Code::AdapterMissing,
                Slot::attention(i, Part::FeatureWeight).canonical_name(),
                "a weight beside the bias",
                "no such tensor",
            );
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
            None => findings.add(
                Code::AdapterMissing,
                Slot::attention(i, Part::Memory).canonical_name(),
                "a memory in this layer, which has other tensors",
                "no such tensor",
            ),
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
    let known = known_sizes(stated, layers, base);
    let sizes = [
        ("num_features", known.n_features),
        ("head_dim", known.head_dim),
        ("num_attention_heads", known.n_heads),
        ("num_key_value_heads", known.n_kv_heads),
        ("num_layers", known.n_layers),
    ];
    sizes.into_iter().filter(|(_, size)| size.is_none()).map(|(key, _)| key).collect()
}

/// Sizes as stated, else as the base has them, else by the shapes; but a head's length by the shapes, which tell it from the base's.
fn known_sizes(stated: &Stated, layers: &BTreeMap<usize, plus::Layer>, base: Option<&BaseModel>) -> KnownGeometry {
    let first = layers.values().next();
    let shape = |t: &LazyTensor| t.shape().to_vec();
    let memory = first.map(|l| shape(&l.memory)).unwrap_or_default();
    let weight = first.and_then(|l| l.feature_weight.as_ref()).map(shape);
    let n_features = stated.sizes.n_features.or(memory.get(1).copied());
    let head_dim = stated.sizes.head_dim.or(weight.map_or(n_features, |w| w.get(2).copied()));
    let stated_or_base = stated.sizes.or_base(base);
    let heads_by_shape =
        |sharing| memory.first().copied().filter(|_| stated.conventions.memory_sharing == Some(sharing));
    KnownGeometry {
        n_features,
        head_dim,
        n_heads: stated_or_base.n_heads.or(heads_by_shape(MemorySharing::PerHead)),
        n_kv_heads: stated_or_base.n_kv_heads.or(heads_by_shape(MemorySharing::PerKvHead)),
        value_head_dim: memory.get(2).copied().or(stated_or_base.value_head_dim).or(head_dim),
        n_layers: stated_or_base.n_layers,
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
    let mut missing: Vec<&str> = open.to_vec();
    missing.extend(open_sizes(&stated, layers, base));
    let known = known_sizes(&stated, layers, base).all();
    let (Some(conventions), Some(geometry), true) = (stated.conventions.all(), known, missing.is_empty()) else {
        return Err(still_open(&missing));
    };
    let Geometry { n_features, head_dim, value_head_dim, .. } = geometry;
    for (name, columns) in [("head_dim", head_dim), ("value head_dim", value_head_dim)] {
        if n_features.checked_mul(columns).is_none_or(|n| n > HEAD_ELEMENTS) {
            let message = format!("expected heads of at most {HEAD_ELEMENTS} elements, found {n_features} x {columns}");
            return Err(Error::new(Code::ConfigUnsupported, message).field(name));
        }
    }
    Ok(plus::Config {
        conventions,
        geometry,
        layers_to_transform: stated.layers_to_transform,
        base_model_type: stated.base_model_type,
        extra: stated.extra,
    })
}
