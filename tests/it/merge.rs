//! LoRA merged into a base: the file computes what the adapter does beside the base.

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::adapter::lora::{Lora, Module, Scale};
use ptplus::base::{BaseModel, BlockWeight as W, Weight};
use ptplus::error::{Code, Result};
use ptplus::export::base::merge;
use ptplus::export::types::{OutType, TypeRules};
use ptplus::export::{self, Values};
use ptplus::format::output::{OutputFile, Overwrite};
use ptplus::quant;
use ptplus::runner::{Device, Effects, Lane, Sink, StreamOptions, stream};
use ptplus::tensor::{DType, LazyTensor};
use ptplus::transform::cast::Overflow;

use crate::common::{exit, model, ptplus, stderr};

const LINEARS: [W; 7] = [W::Query, W::Key, W::Value, W::AttentionOutput, W::Gate, W::Up, W::Down];
const IDS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];

fn values(n: usize, seed: usize, size: f32) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * size).collect()
}

fn vector(n: usize, seed: usize, least: f32) -> LazyTensor {
    LazyTensor::from_f32(&values(n, seed, 0.2).iter().map(|x| x + least).collect::<Vec<_>>(), &[n])
}

fn module(base: &BaseModel, weight: Weight, seed: usize) -> Module {
    let c = &base.config;
    let shape = match weight {
        Weight::Output => vec![c.vocab_size, c.hidden_size],
        _ => weight.expected_shape(c).unwrap(),
    };
    let (n, k) = (shape[0], shape[1]);
    Module {
        a: LazyTensor::from_f32(&values(3 * k, seed, 0.3), &[3, k]),
        b: LazyTensor::from_f32(&values(n * 3, seed + 50, 0.3), &[n, 3]),
        scale: Scale { alpha: 2.25, factor: 0.75 },
        magnitude: None,
        bias: None,
    }
}

fn lora(base: &BaseModel, weights: impl IntoIterator<Item = Weight>) -> Lora {
    let modules = weights.into_iter().enumerate().map(|(i, w)| (w, module(base, w, i))).collect();
    Lora {
        config: serde_json::Map::new(),
        modules,
        saved: BTreeMap::new(),
        folded: Default::default(),
        key_factor: None,
    }
}

fn blocks(base: &BaseModel, of: &[W]) -> Vec<Weight> {
    (0..base.config.n_layers).flat_map(|i| of.iter().map(move |w| Weight::Block(i, *w))).collect()
}

#[derive(Default)]
struct Collect(Vec<f32>);

impl Sink for Collect {
    fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
        self.0.extend_from_slice(lanes[0]);
        Ok(())
    }
}

fn run(base: &BaseModel, lane: Lane) -> Vec<f32> {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(base, &[IDS.to_vec()], &[lane], &options, &mut sink).unwrap();
    sink.0
}

fn write(base: &BaseModel, adapters: &[(&Lora, f64)], rules: &TypeRules, file: &Path) -> Result<BaseModel> {
    let merged = merge(base, adapters)?;
    let plan = merged.plan(None, rules, None)?.plan;
    let out = OutputFile::create(file, Overwrite::Force, &[])?;
    export::write_tensors(&plan, Values::Unchecked, &out, Overflow::Error, &|_| ())?;
    out.commit()?;
    BaseModel::open(file)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// Every family and both dialects; what the runner adds beside the base is what the file has in it.
#[test]
fn a_merged_file_computes_what_the_adapter_does_beside_the_base() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("merged.gguf");
    let keep = TypeRules::from(OutType::Keep);
    let mut failures = Vec::new();
    for name in ["llama-mha", "llama-gqa", "mistral-swa", "qwen2", "qwen3"] {
        for dialect in ["base", "base.gguf"] {
            let base = BaseModel::open(&crate::common::base_as(dialect, name)).unwrap();
            let outer = [Weight::TokenEmbedding, Weight::Output];
            let all = lora(&base, blocks(&base, &LINEARS).into_iter().chain(outer));
            let mut dora = lora(&base, blocks(&base, &[W::Query, W::Value, W::Down]));
            for (i, (weight, module)) in dora.modules.iter_mut().enumerate() {
                module.magnitude = Some(vector(weight.expected_shape(&base.config).unwrap()[0], i, 1.0));
            }
            let (embedding, head) = (lora(&base, [outer[0]]), lora(&base, [outer[1]]));
            let keys = lora(&base, blocks(&base, &[W::Key]));
            for (what, adapters) in [
                ("everything", vec![(&all, 1.0)]),
                ("dora", vec![(&dora, 1.0)]),
                ("two with factors", vec![(&keys, 0.5), (&dora, -1.5)]),
                ("embedding", vec![(&embedding, 1.0)]),
                ("head", vec![(&head, 1.0)]),
            ] {
                let merged = write(&base, &adapters, &keep, &file).unwrap();
                let lane = Lane { adapters: adapters.iter().map(|(l, s)| (Effects::from(*l), *s)).collect() };
                let (found, expected) = (run(&merged, Lane::default()), run(&base, lane));
                let d = difference(&found, &expected);
                if d.is_nan() || d > 5e-5 {
                    failures.push(format!("{name}/{dialect}, {what}: {d:.1e}"));
                }
                assert!(difference(&expected, &run(&base, Lane::default())) > 0.05, "{name}, {what}: no effect");
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn learned_biases_become_biases_of_a_base_that_had_none() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("merged.gguf");
    let keep = TypeRules::from(OutType::Keep);
    for (name, weights) in [
        ("llama-gqa", vec![Weight::Block(1, W::Query), Weight::Block(0, W::AttentionOutput), Weight::Block(1, W::Up)]),
        ("qwen2", vec![Weight::Block(1, W::Query), Weight::Block(0, W::Value)]),
        ("qwen3", vec![Weight::Block(1, W::Key)]),
    ] {
        for dialect in ["base", "base.gguf"] {
            let base = BaseModel::open(&crate::common::base_as(dialect, name)).unwrap();
            let mut lora = lora(&base, weights.iter().copied());
            for (i, (weight, module)) in lora.modules.iter_mut().enumerate() {
                module.bias = Some(vector(weight.expected_shape(&base.config).unwrap()[0], i, 0.3));
            }
            let merged = write(&base, &[(&lora, 1.0)], &keep, &file).unwrap();
            let d = difference(&run(&merged, Lane::default()), &run(&base, Lane::of(&lora)));
            assert!(d < 5e-5, "{name}/{dialect}: {d:.1e}");
        }
    }
}

#[test]
fn a_learned_bias_that_llama_cpp_would_not_load_is_refused() {
    for (name, weight) in [("qwen3", Weight::Block(0, W::AttentionOutput)), ("llama-mha", Weight::Output)] {
        for dialect in ["base", "base.gguf"] {
            let base = BaseModel::open(&crate::common::base_as(dialect, name)).unwrap();
            let mut lora = lora(&base, [weight]);
            let n = lora.modules[&weight].b.shape()[0];
            lora.modules.get_mut(&weight).unwrap().bias = Some(vector(n, 1, 0.3));
            let temp = tempfile::tempdir().unwrap();
            let keep = TypeRules::from(OutType::Keep);
            let e = write(&base, &[(&lora, 1.0)], &keep, &temp.path().join("m.gguf")).unwrap_err();
            assert_eq!(e.code(), Code::ConfigUnsupported, "{name}/{dialect}: {e}");
        }
    }
}

#[test]
fn weights_that_replace_the_bases_are_written_in_its_order() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("merged.gguf");
    let keep = TypeRules::from(OutType::Keep);
    for name in ["llama-mha", "llama-gqa", "qwen3"] {
        for dialect in ["base", "base.gguf"] {
            let base = BaseModel::open(&crate::common::base_as(dialect, name)).unwrap();
            // A replaced projection: the sum of the base's and what an addition to it would be, so that lanes can say it.
            let weight = Weight::Block(1, W::Query);
            let addition = lora(&base, [weight]);
            let m = &addition.modules[&weight];
            let (rows, (a, b)) = (base.rows(weight).unwrap(), (floats(&m.a), floats(&m.b)));
            let (mut w, k) = (rows.to_f32(), rows.row_len());
            for (row, w) in w.chunks_exact_mut(k).enumerate() {
                for (col, w) in w.iter_mut().enumerate() {
                    *w += 0.75 * (0..3).map(|j| b[row * 3 + j] * a[j * k + col]).sum::<f32>();
                }
            }
            let mut lora = lora(&base, []);
            lora.saved.insert(weight, LazyTensor::from_f32(&w, &[rows.n_rows(), k]));
            let merged = write(&base, &[(&lora, 1.0)], &keep, &file).unwrap();
            let d = difference(&run(&merged, Lane::default()), &run(&base, Lane::of(&addition)));
            assert!(d < 5e-5, "{name}/{dialect}: {d:.1e}");
            let scaled = merge(&base, &[(&lora, 0.5)]).unwrap_err();
            let twice = merge(&base, &[(&lora, 1.0), (&lora, 1.0)]).unwrap_err();
            assert_eq!((scaled.code(), twice.code()), (Code::Usage, Code::Usage));
        }
    }
}

fn floats(t: &LazyTensor) -> Vec<f32> {
    let mut out = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut out);
    out
}

#[test]
fn embeddings_with_new_rows_make_a_larger_vocabulary() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("merged.gguf");
    let keep = TypeRules::from(OutType::Keep);
    for name in ["llama-mha", "llama-gqa"] {
        let base = BaseModel::open(&model(name).join("base")).unwrap();
        let (v, h) = (base.config.vocab_size, base.config.hidden_size);
        let mut lora = lora(&base, blocks(&base, &[W::Query]));
        let plain = run(&base, Lane::of(&lora));
        let mut embedding = base.rows(Weight::TokenEmbedding).unwrap().to_f32();
        embedding.extend(values(2 * h, 9, 0.1));
        let mut head = base.rows(base.output_weight().unwrap()).unwrap().to_f32();
        head.extend(values(2 * h, 8, 0.1));
        lora.saved.insert(Weight::TokenEmbedding, LazyTensor::from_f32(&embedding, &[v + 2, h]));
        lora.saved.insert(Weight::Output, LazyTensor::from_f32(&head, &[v + 2, h]));
        let merged = write(&base, &[(&lora, 1.0)], &keep, &file).unwrap();
        assert_eq!(merged.config.vocab_size, v + 2);
        let found = run(&merged, Lane::default());
        for (found, plain) in found.chunks_exact(v + 2).zip(plain.chunks_exact(v)) {
            assert!(difference(&found[..v], plain) < 5e-5, "{name}");
        }
        let gguf = BaseModel::open(&crate::common::base_gguf(name)).unwrap();
        assert_eq!(merge(&gguf, &[(&lora, 1.0)]).unwrap_err().code(), Code::ConfigUnsupported);
    }
}

#[test]
fn merged_weights_get_the_type_asked_for_once() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("merged.gguf");
    let base = BaseModel::open(&model("llama-gqa").join("base")).unwrap();
    let lora = lora(&base, blocks(&base, &LINEARS));
    let expected = run(&base, Lane::of(&lora));
    let effect = difference(&expected, &run(&base, Lane::default()));
    for (dtype, share) in [(DType::BF16, 0.05), (DType::Q8_0, 0.1)] {
        let merged = write(&base, &[(&lora, 1.0)], &OutType::As(dtype).into(), &file).unwrap();
        let d = difference(&run(&merged, Lane::default()), &expected);
        assert!(d > 0.0 && d < share * effect, "{dtype}: {d:.1e} of {effect:.1e}");
    }
    // The Q8_0 file as a base: its blocks would be decoded, changed and quantized again.
    let base = BaseModel::open(&file).unwrap();
    let again = temp.path().join("again.gguf");
    let keep = TypeRules::from(OutType::Keep);
    assert_eq!(write(&base, &[(&lora, 1.0)], &keep, &again).unwrap_err().code(), Code::Requantize);
    write(&base, &[(&lora, 1.0)], &TypeRules { allow_requantize: true, ..keep }, &again).unwrap();
    write(&base, &[(&lora, 1.0)], &OutType::As(DType::F16).into(), &again).unwrap();
}

#[test]
fn prefix_tuning_plus_cannot_be_merged_and_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let folder = model("llama-mha");
    let (base, adapter, output) = (folder.join("base"), folder.join("adapter"), temp.path().join("merged.gguf"));
    for adapter in [adapter.clone(), folder.join("adapter.gguf")].iter().filter(|a| a.exists()) {
        let out = ptplus([
            "convert".as_ref(),
            base.as_os_str(),
            "--merge".as_ref(),
            adapter.as_os_str(),
            "-o".as_ref(),
            output.as_os_str(),
        ]);
        assert_eq!(exit(&out), 7, "{}", stderr(&out));
        assert!(stderr(&out).contains("phi(q) M"), "{}", stderr(&out));
        assert!(!output.exists());
    }
    // Nor is an adapter a base to merge into.
    let out = ptplus([
        "convert".as_ref(),
        adapter.as_os_str(),
        "--merge".as_ref(),
        adapter.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
    ]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
}
