//! What the runner's tests share: canonical adapters and probes, read with as little as possible.
#![allow(dead_code)] // the benchmark uses a part

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::adapter::plus::{self, Conventions, FeatureMap, Geometry, MemorySharing, Plus, QueryTap};
use ptplus::error::Result;
use ptplus::format::{StoredTensor, json, safetensors};
use ptplus::runner::Sink;

/// Reads a canonical adapter folder.
pub fn adapter(folder: &Path) -> Plus {
    let c = json::read_file(&folder.join("adapter_config.json"), 1 << 20).unwrap();
    let text = |k: &str| c[k].as_str().unwrap();
    let count = |k: &str| c[k].as_u64().unwrap() as usize;
    let head_dim = count("head_dim");
    let config = plus::Config {
        conventions: Conventions {
            feature_map: FeatureMap::parse(text("feature_map")).unwrap(),
            query_tap: QueryTap::parse(text("query_tap")).unwrap(),
            query_scale: c["query_scale"].as_f64().unwrap(),
            memory_scale: c["memory_scale"].as_f64().unwrap(),
            memory_sharing: MemorySharing::parse(text("memory_sharing")).unwrap(),
        },
        geometry: Geometry {
            n_layers: count("num_layers"),
            n_heads: count("num_attention_heads"),
            n_kv_heads: count("num_key_value_heads"),
            head_dim,
            value_head_dim: head_dim,
            n_features: count("num_features"),
        },
        layers_to_transform: None,
        base_model_type: None,
        extra: serde_json::Map::new(),
    };
    let tensors = safetensors::open(&folder.join("adapter_model.safetensors")).unwrap().tensors;
    let find = |layer: usize, part: &str| {
        let name = format!("layers.{layer}.{part}");
        tensors.iter().find(|t| t.name == name).map(|t| t.lazy().unwrap())
    };
    let layers: BTreeMap<_, _> = (0..config.geometry.n_layers)
        .filter_map(|i| {
            let layer = plus::Layer {
                memory: find(i, "memory")?,
                feature_weight: find(i, "feature.weight"),
                feature_bias: find(i, "feature.bias"),
                normalizer: find(i, "normalizer"),
            };
            Some((i, layer))
        })
        .collect();
    let n_found: usize = layers.values().map(|l| l.tensors().count()).sum();
    assert_eq!(n_found, tensors.len(), "every tensor of the adapter is used");
    Plus { config, layers }
}

/// PyTorch's answer.
pub struct Probe {
    tensors: Vec<StoredTensor>,
}

impl Probe {
    pub fn open(path: &Path) -> Self {
        Probe { tensors: safetensors::open(path).unwrap().tensors }
    }

    pub fn get(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let t = self.tensors.iter().find(|t| t.name == name)?;
        let values = t.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Some((t.shape.clone(), values))
    }

    fn integers(&self, name: &str) -> Option<(Vec<usize>, Vec<usize>)> {
        let t = self.tensors.iter().find(|t| t.name == name)?;
        let values = t.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect();
        Some((t.shape.clone(), values))
    }

    pub fn input_ids(&self) -> Vec<Vec<u32>> {
        let (shape, ids) = self.integers("input_ids").unwrap();
        ids.chunks_exact(shape[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
    }

    pub fn positions(&self) -> Option<Vec<usize>> {
        Some(self.integers("positions")?.1)
    }
}

/// Keeps everything.
#[derive(Default)]
pub struct Collect {
    /// Per lane: logits in order of batch and position.
    pub logits: Vec<Vec<f32>>,
    /// Per lane and layer: q and term.
    pub layers: BTreeMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
    pub steps: Vec<(usize, usize)>,
}

impl Sink for Collect {
    fn wants_layer(&self, _: usize) -> bool {
        true
    }

    fn layer(&mut self, lane: usize, layer: usize, q: &[f32], term: &[f32]) -> Result<()> {
        assert!(self.layers.insert((lane, layer), (q.to_vec(), term.to_vec())).is_none(), "told once");
        Ok(())
    }

    fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
        self.logits.resize(lanes.len(), Vec::new());
        for (all, row) in self.logits.iter_mut().zip(lanes) {
            all.extend_from_slice(row);
        }
        Ok(())
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        self.steps.push((done, total));
        Ok(())
    }
}

/// Largest absolute difference; NaN counts as infinite.
pub fn max_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (x, y)| {
        let d = (f64::from(*x) - f64::from(*y)).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}
