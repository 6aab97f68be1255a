//! Low-rank additions beside a base whose weights have them in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ptplus::base::{BaseModel, BlockWeight as W, Dialect, Weight};
use ptplus::error::Code;
use ptplus::format::safetensors;
use ptplus::quant;
use ptplus::runner::{Device, Effects, Lane, Logits, MatrixEffect, Model, StreamOptions, stream};
use ptplus::tensor::LazyTensor;

use super::common::{Collect, Probe, adapter, max_difference};
use crate::common::model;

const SCALE: f64 = 0.75;

/// What is added to one weight.
struct Addition {
    a: LazyTensor,
    b: LazyTensor,
    magnitude: Option<LazyTensor>,
    bias: Option<LazyTensor>,
}

impl Addition {
    fn effect(&self) -> MatrixEffect<'_> {
        MatrixEffect {
            a: &self.a,
            b: &self.b,
            scale: SCALE,
            magnitude: self.magnitude.as_ref(),
            bias: self.bias.as_ref(),
        }
    }
}

fn values(n: usize, seed: usize, size: f32) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * size).collect()
}

fn floats(t: &LazyTensor) -> Vec<f32> {
    let mut out = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut out);
    out
}

/// Random additions of rank 3, with magnitudes where asked for, and with biases where the base has one.
fn additions(base: &BaseModel, weights: &[Weight], with_magnitudes: bool) -> BTreeMap<Weight, Addition> {
    let one = |(i, &weight): (usize, &Weight)| {
        let shape = weight.expected_shape(&base.config).unwrap();
        let [n, k] = shape[..] else { panic!("{weight:?} is no matrix") };
        let vector = |seed: usize, size: f32, least: f32| {
            LazyTensor::from_f32(&values(n, seed, size).iter().map(|x| x + least).collect::<Vec<_>>(), &[n])
        };
        let bias_of = bias_of(weight).is_some_and(|b| base.tensor(b).is_some());
        let addition = Addition {
            a: LazyTensor::from_f32(&values(3 * k, i, 0.3), &[3, k]),
            b: LazyTensor::from_f32(&values(n * 3, i + 100, 0.3), &[n, 3]),
            magnitude: with_magnitudes.then(|| vector(i + 200, 0.2, 1.0)),
            bias: bias_of.then(|| vector(i + 300, 0.2, 0.0)),
        };
        (weight, addition)
    };
    weights.iter().enumerate().map(one).collect()
}

fn bias_of(weight: Weight) -> Option<Weight> {
    match weight {
        Weight::Block(i, W::Query) => Some(Weight::Block(i, W::QueryBias)),
        Weight::Block(i, W::Key) => Some(Weight::Block(i, W::KeyBias)),
        Weight::Block(i, W::Value) => Some(Weight::Block(i, W::ValueBias)),
        _ => None,
    }
}

fn effects(additions: &BTreeMap<Weight, Addition>) -> Effects<'_> {
    Effects { matrices: additions.iter().map(|(w, a)| (*w, a.effect())).collect(), ..Effects::default() }
}

/// A folder with the base's weights and the additions in them, computed in F64 without the code under test.
fn dense(base: &BaseModel, additions: &BTreeMap<Weight, Addition>, folder: &Path) -> BaseModel {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> =
        base.tensors().map(|t| (t.name.clone(), (t.shape.clone(), floats(&t.lazy().unwrap())))).collect();
    for (weight, x) in additions {
        let (a, b) = (floats(&x.a), floats(&x.b));
        let (shape, w) = tensors.get_mut(&weight.name(Dialect::HuggingFace)).unwrap();
        let k = shape[1];
        for (row, w) in w.chunks_exact_mut(k).enumerate() {
            for (col, w) in w.iter_mut().enumerate() {
                let product: f64 = (0..3).map(|j| f64::from(b[row * 3 + j]) * f64::from(a[j * k + col])).sum();
                *w = (f64::from(*w) + SCALE * product) as f32;
            }
            if let Some(m) = &x.magnitude {
                let length = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                w.iter_mut().for_each(|w| *w = (f64::from(*w) * f64::from(floats(m)[row]) / length) as f32);
            }
        }
        if let Some(bias) = &x.bias {
            let (_, base_bias) = tensors.get_mut(&bias_of(*weight).unwrap().name(Dialect::HuggingFace)).unwrap();
            base_bias.iter_mut().zip(floats(bias)).for_each(|(x, b)| *x += SCALE as f32 * b);
        }
    }
    write(&folder.join("model.safetensors"), &tensors);
    fs::copy(base.path.join("config.json"), folder.join("config.json")).unwrap();
    BaseModel::open(folder).unwrap()
}

fn write(file: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(file, bytes).unwrap();
    safetensors::open(file).unwrap();
}

fn blocks(base: &BaseModel, of: &[W]) -> Vec<Weight> {
    (0..base.config.n_layers).flat_map(|i| of.iter().map(move |w| Weight::Block(i, *w))).collect()
}

const LINEARS: [W; 7] = [W::Query, W::Key, W::Value, W::AttentionOutput, W::Gate, W::Up, W::Down];

#[test]
fn additions_beside_the_base_are_the_base_with_the_additions_in_it() {
    let mut failures = Vec::new();
    for name in ["llama-mha", "qwen2", "qwen3"] {
        let folder = model(name);
        let base = BaseModel::open(&folder.join("base")).unwrap();
        let ids = Probe::open(&folder.join("probe.safetensors")).input_ids();
        let outer: Vec<Weight> = match base.config.tied_embeddings {
            true => vec![],
            false => vec![Weight::TokenEmbedding, Weight::Output],
        };
        for (what, weights, with_magnitudes) in [
            ("everything", [blocks(&base, &LINEARS), outer.clone()].concat(), false),
            ("key and value alone", blocks(&base, &[W::Key, W::Value]), false),
            ("up alone, of one layer", vec![Weight::Block(1, W::Up)], false),
            ("with magnitudes", [blocks(&base, &LINEARS), outer].concat(), true),
        ] {
            let additions = additions(&base, &weights, with_magnitudes);
            let temp = tempfile::tempdir().unwrap();
            let dense = dense(&base, &additions, temp.path());
            let options = StreamOptions { positions: None, device: Device::cpu() };
            let mut sink = Collect::default();
            stream(&dense, &ids, &[Lane::default()], &options, &mut sink).unwrap();
            let expected = sink.logits.remove(0);

            // The plain base on both sides must stay what it is.
            let mut sink = Collect::default();
            let lanes = [Lane::default(), Lane::of(effects(&additions)), Lane::default()];
            stream(&base, &ids, &lanes, &options, &mut sink).unwrap();
            let mut plain = Collect::default();
            stream(&base, &ids, &[Lane::default()], &options, &mut plain).unwrap();

            let mut model = Model::load(&base, &Device::cpu()).unwrap();
            model.set_adapters(&[(effects(&additions), 1.0)]).unwrap();
            let cached: Vec<f32> = model.forward(&mut model.new_cache(ids[0].len()), &ids, Logits::All).unwrap();
            let mut check = |how: &str, found: &[f32], expected: &[f32]| {
                let difference = max_difference(found, expected);
                if difference.is_nan() || difference > 1e-4 {
                    failures.push(format!("{name}, {what}, {how}: {difference:.1e}"));
                }
            };
            check("streamed", &sink.logits[1], &expected);
            check("with a cache", &cached, &expected);
            check("the base before it", &sink.logits[0], &plain.logits[0]);
            check("the base after it", &sink.logits[2], &plain.logits[0]);
            assert!(max_difference(&expected, &plain.logits[0]) > 0.05, "{name}, {what}: no effect");
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn an_addition_to_a_tied_embedding_leaves_the_head_alone_and_one_to_the_head_the_embedding() {
    let base = BaseModel::open(&model("llama-gqa").join("base")).unwrap();
    assert!(base.config.tied_embeddings);
    let temp = tempfile::tempdir().unwrap();
    let untied = untied(&base, temp.path());
    let ids = Probe::open(&model("llama-gqa").join("probe.safetensors")).input_ids();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    for weight in [Weight::TokenEmbedding, Weight::Output] {
        let additions = additions(&untied, &[weight], false);
        let run = |base: &BaseModel| {
            let mut sink = Collect::default();
            stream(base, &ids, &[Lane::of(effects(&additions))], &options, &mut sink).unwrap();
            sink.logits.remove(0)
        };
        assert!(max_difference(&run(&base), &run(&untied)) < 1e-5, "{weight:?}");
    }
}

fn untied(base: &BaseModel, folder: &Path) -> BaseModel {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> =
        base.tensors().map(|t| (t.name.clone(), (t.shape.clone(), floats(&t.lazy().unwrap())))).collect();
    tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
    write(&folder.join("model.safetensors"), &tensors);
    let config = fs::read_to_string(base.path.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    fs::write(folder.join("config.json"), config).unwrap();
    BaseModel::open(folder).unwrap()
}

#[test]
fn low_rank_additions_and_terms_of_several_adapters_add_up() {
    let folder = model("qwen2");
    let base = BaseModel::open(&folder.join("base")).unwrap();
    let ids = Probe::open(&folder.join("probe.safetensors")).input_ids();
    let plus = adapter(&folder.join("adapter"));
    let additions = additions(&base, &blocks(&base, &LINEARS), false);
    let with = |strengths: &[f64]| {
        let low_rank = strengths.iter().map(|s| (effects(&additions), *s));
        Lane { adapters: low_rank.chain([(Effects::from(&plus), 1.0)]).collect() }
    };
    let lanes = [with(&[1.0]), with(&[0.25, 0.75]), with(&[1.0, -1.0]), Lane::of(&plus)];
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(&base, &ids, &lanes, &options, &mut sink).unwrap();
    assert!(max_difference(&sink.logits[0], &sink.logits[1]) < 1e-4);
    assert!(max_difference(&sink.logits[2], &sink.logits[3]) < 1e-4);
    assert!(max_difference(&sink.logits[0], &sink.logits[3]) > 0.05, "the additions have an effect");
}

#[test]
fn additions_that_do_not_fit_are_refused() {
    let base = BaseModel::open(&model("llama-mha").join("base")).unwrap();
    let (hidden, n) = (base.config.hidden_size, base.config.n_layers);
    let refused = |weight: Weight, a: [usize; 2], b: [usize; 2]| {
        let zeros = |shape: [usize; 2]| LazyTensor::from_f32(&vec![0.0; shape[0] * shape[1]], &shape);
        let x = BTreeMap::from([(weight, Addition { a: zeros(a), b: zeros(b), magnitude: None, bias: None })]);
        let options = StreamOptions { positions: None, device: Device::cpu() };
        let lanes = [Lane::of(effects(&x))];
        stream(&base, &[vec![1]], &lanes, &options, &mut Collect::default()).unwrap_err().code()
    };
    let query = base.config.n_heads * base.config.head_dim;
    let of_query = Weight::Block(0, W::Query);
    assert_eq!(refused(of_query, [2, hidden + 1], [query, 2]), Code::AdapterShape);
    assert_eq!(refused(of_query, [2, hidden], [query + 1, 2]), Code::AdapterShape);
    assert_eq!(refused(of_query, [2, hidden], [query, 3]), Code::AdapterShape);
    assert_eq!(refused(Weight::Block(n, W::Query), [2, hidden], [query, 2]), Code::AdapterMismatch);
    assert_eq!(refused(Weight::OutputNorm, [2, hidden], [hidden, 2]), Code::AdapterMismatch);
    let replaced = Effects { replaced: vec![Weight::Output], ..Effects::default() };
    let options = StreamOptions { positions: None, device: Device::cpu() };
    let e = stream(&base, &[vec![1]], &[Lane::of(replaced)], &options, &mut Collect::default()).unwrap_err();
    assert_eq!(e.code(), Code::ConfigUnsupported);
}
