//! Weights that share a tensor are what they are alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ptplus::adapter::lora::{Lora, Module, Scale};
use ptplus::base::fingerprint::{Fingerprint, Touched};
use ptplus::base::{BaseModel, BlockWeight as W, Weight};
use ptplus::error::Code;
use ptplus::export::types::OutType;
use ptplus::export::{self, Values};
use ptplus::format::output::{OutputFile, Overwrite};
use ptplus::format::{TensorSpec, gguf};
use ptplus::runner::{Device, Lane, StreamOptions, stream};
use ptplus::tensor::LazyTensor;
use ptplus::transform::cast::Overflow;

use crate::common::{Collect, MODELS, max_difference, model};

/// Writes a GGUF file in which the tensors that end in one of `parts` are one tensor of each block, called `whole`.
fn fused(file: &Path, groups: &[(&str, &[&str])], to: &Path) {
    let source = gguf::open(file).unwrap();
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for t in &source.tensors {
        let mut spec = TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
        let Some((whole, parts)) = groups.iter().find(|(_, parts)| parts.iter().any(|p| t.name.ends_with(p))) else {
            tensors.push((spec, t.bytes.to_vec()));
            continue;
        };
        let block = t.name.rsplitn(3, '.').nth(2).unwrap();
        if t.name.ends_with(parts[0]) {
            let all: Vec<_> = parts
                .iter()
                .map(|p| source.tensors.iter().find(|o| o.name == format!("{block}.{p}")).unwrap())
                .collect();
            spec.name = format!("{block}.{whole}");
            spec.shape[0] = all.iter().map(|o| o.shape[0]).sum();
            tensors.push((spec, all.iter().flat_map(|o| o.bytes.to_vec()).collect()));
        }
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let plan = gguf::plan(&source.metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for (planned, (_, data)) in plan.tensors.iter().zip(&tensors) {
        bytes[planned.file_offset as usize..][..data.len()].copy_from_slice(data);
    }
    fs::write(to, bytes).unwrap();
}

const QKV: &[(&str, &[&str])] = &[
    ("attn_qkv.weight", &["attn_q.weight", "attn_k.weight", "attn_v.weight"]),
    ("attn_qkv.bias", &["attn_q.bias", "attn_k.bias", "attn_v.bias"]),
];

fn logits(base: &BaseModel, lane: Lane) -> Vec<f32> {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(base, &[vec![3, 1, 4, 1, 5, 9, 2, 6]], &[lane], &options, &mut sink).unwrap();
    sink.logits.remove(0)
}

fn lora(base: &BaseModel, weight: Weight) -> Lora {
    let shape = weight.expected_shape(&base.config).unwrap();
    let values = |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) as f32 * 0.37).sin() * 0.3).collect::<Vec<_>>();
    let module = Module {
        a: LazyTensor::from_f32(&values(2 * shape[1], 1), &[2, shape[1]]),
        b: LazyTensor::from_f32(&values(shape[0] * 2, 5), &[shape[0], 2]),
        scale: Scale { alpha: 2.0, factor: 1.0 },
        magnitude: None,
        bias: None,
    };
    Lora {
        config: serde_json::Map::new(),
        modules: [(weight, module)].into(),
        saved: BTreeMap::new(),
        folded: Default::default(),
    }
}

/// llama.cpp takes query, key and value in one tensor for any architecture.
#[test]
fn query_key_and_value_in_one_tensor_are_what_they_are_in_three() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    for name in MODELS {
        let plain = BaseModel::open(&model(name).join("base.gguf")).unwrap();
        fused(&plain.path, QKV, &file);
        let base = BaseModel::open(&file).unwrap();
        assert_eq!(base.config, plain.config, "{name}");
        for weight in plain.weights() {
            let (a, b) = (plain.in_hugging_face_order(weight).unwrap(), base.in_hugging_face_order(weight).unwrap());
            assert!(a.shape() == b.shape() && a.to_bytes() == b.to_bytes(), "{name} {weight:?}");
        }
        for touched in [
            Touched::Queries(vec![0, 1]),
            Touched::Weights([W::Query, W::Key, W::Value].map(|w| Weight::Block(1, w)).into()),
        ] {
            let print = |base: &BaseModel| Fingerprint::of(base, &touched).unwrap();
            assert_eq!(print(&base), print(&plain), "{name}");
        }
        assert_eq!(logits(&base, Lane::default()), logits(&plain, Lane::default()), "{name}");
    }
}

#[test]
fn additions_are_merged_where_the_weight_begins_in_its_tensor() {
    let temp = tempfile::tempdir().unwrap();
    let (file, merged) = (temp.path().join("fused.gguf"), temp.path().join("merged.gguf"));
    for name in ["llama-gqa", "qwen2", "qwen3"] {
        fused(&model(name).join("base.gguf"), QKV, &file);
        let base = BaseModel::open(&file).unwrap();
        for weight in [W::Query, W::Key, W::Value, W::Down].map(|w| Weight::Block(1, w)) {
            let lora = lora(&base, weight);
            let plan = export::base::merge(&base, &[(&lora, 1.0)]).unwrap().plan(None, &OutType::Keep.into()).unwrap();
            let out = OutputFile::create(&merged, Overwrite::Force, &[]).unwrap();
            export::write_tensors(&plan.plan, Values::Unchecked, &out, Overflow::Error, &|_| ()).unwrap();
            out.commit().unwrap();
            let (found, expected) =
                (logits(&BaseModel::open(&merged).unwrap(), Lane::default()), logits(&base, Lane::of(&lora)));
            assert!(max_difference(&found, &expected) < 5e-5, "{name} {weight:?}");
            assert!(max_difference(&expected, &logits(&base, Lane::default())) > 0.01, "{name} {weight:?}: no effect");
        }
    }
}

#[test]
fn a_weight_that_shares_its_tensor_is_not_replaced_in_a_gguf_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    fused(&model("llama-gqa").join("base.gguf"), QKV, &file);
    let base = BaseModel::open(&file).unwrap();
    let weight = Weight::Block(0, W::Key);
    let own = base.in_hugging_face_order(weight).unwrap();
    let e = base.with_weights(base.config.clone(), [(weight, own)]).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some("blk.0.attn_qkv.weight")));
}

#[test]
fn a_shared_tensor_is_kept_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    fused(&model("llama-gqa").join("base.gguf"), QKV, &file);
    let base = BaseModel::open(&file).unwrap();
    let kept = export::base::plan(&base, None, &OutType::Keep.into()).unwrap().plan;
    assert_eq!(kept.tensors.len(), base.tensors().count());
    for ((planned, t), out) in kept.file.tensors.iter().zip(base.tensors_in_file_order()).zip(&kept.tensors) {
        assert_eq!((&planned.name, planned.dtype, &planned.shape), (&t.name, t.dtype, &t.shape));
        assert!(out.source.to_bytes() == *t.bytes, "{}", t.name);
    }
}
