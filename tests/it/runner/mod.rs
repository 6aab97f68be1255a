//! The runner against PyTorch's stored answers.

mod base;
mod common;
mod families;
mod int8;
mod low_rank;
mod storage;

use self::common::{Collect, Probe, adapter, max_difference};
use crate::common::{MODELS, model};
use ptplus::adapter::plus::{MemorySharing, Plus};
use ptplus::base::BaseModel;
use ptplus::error::Code;
use ptplus::runner::{Device, Effects, Lane, Logits, Model, StreamOptions, phi, stream};
use ptplus::tensor::LazyTensor;

/// Adapted lane first, plain base second.
fn run(base: &BaseModel, adapter: &Plus, probe: &Probe) -> Collect {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: probe.positions(), device: Device::cpu() };
    let lanes = [Lane::of(adapter), Lane::default()];
    stream(base, &probe.input_ids(), &lanes, &options, &mut sink).unwrap();
    sink
}

#[test]
fn every_fixture_gives_pytorchs_logits_queries_and_terms_from_both_dialects() {
    let mut failures = Vec::new();
    for name in MODELS {
        let folder = model(name);
        let probe = Probe::open(&folder.join("probe.safetensors"));
        let adapter = adapter(&folder.join("adapter"));
        for file in ["base", "base.gguf"] {
            let base = BaseModel::open(&crate::common::base_as(file, name)).unwrap();
            let found = run(&base, &adapter, &probe);
            let mut check = |what: String, found: &[f32], limit: f64| {
                let difference = max_difference(found, &probe.get(&what).unwrap().1);
                println!("{name}/{file} {what}: {difference:.1e}");
                if difference > limit {
                    failures.push(format!("{name}/{file} {what}: {difference:.1e} > {limit:.0e}"));
                }
            };
            check("logits".into(), &found.logits[0], 2e-4);
            check("base_logits".into(), &found.logits[1], 2e-4);
            assert_eq!(found.layers.len(), adapter.layers.len(), "only adapted layers of the adapted lane");
            for ((_, layer), (q, term)) in &found.layers {
                check(format!("q.{layer}"), q, 1e-4);
                check(format!("term.{layer}"), term, 1e-4);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn smollm2_gives_pytorchs_logits_on_the_real_base() {
    let path = crate::common::smollm2();
    let folder = crate::common::fixtures().join("smollm2-pirate");
    let probe = Probe::open(&folder.join("probe.safetensors"));
    let found = run(&BaseModel::open(&path).unwrap(), &adapter(&folder.join("adapter")), &probe);
    for (lane, name) in ["logits", "base_logits"].into_iter().enumerate() {
        let difference = max_difference(&found.logits[lane], &probe.get(name).unwrap().1);
        println!("SmolLM2 {name}: {difference:.1e}");
        assert!(difference <= 5e-3, "{name}: {difference:.1e}");
    }
}

#[test]
fn the_cache_gives_the_logits_of_the_whole_prompt_however_it_is_split() {
    for name in MODELS {
        let folder = model(name);
        let probe = Probe::open(&folder.join("probe.safetensors"));
        let adapter = adapter(&folder.join("adapter"));
        let mut model =
            Model::load(&BaseModel::open(&crate::common::base_gguf(name)).unwrap(), &Device::cpu()).unwrap();
        let ids = probe.input_ids();
        let (shape, adapted) = probe.get("logits").unwrap();
        let [n_batches, n_positions, vocab_size] = shape[..] else { panic!("{shape:?}") };
        for (adapters, expected) in
            [(vec![((&adapter).into(), 1.0)], adapted), (vec![], probe.get("base_logits").unwrap().1)]
        {
            model.set_adapters(&adapters).unwrap();
            for step in [1, 5, n_positions] {
                let mut cache = model.new_cache(n_positions);
                for first in (0..n_positions).step_by(step) {
                    let last = (first + step).min(n_positions);
                    let part: Vec<_> = ids.iter().map(|row| row[first..last].to_vec()).collect();
                    let found = model.forward(&mut cache, &part, Logits::All).unwrap();
                    assert_eq!(cache.len(), last);
                    for b in 0..n_batches {
                        let at = |p: usize| (b * n_positions + p) * vocab_size;
                        let n = (last - first) * vocab_size;
                        let d = max_difference(&found[b * n..(b + 1) * n], &expected[at(first)..at(last)]);
                        assert!(d <= 2e-4, "{name} in steps of {step}, row {b} from {first}: {d:.1e}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_last_position_is_the_last_of_all() {
    let folder = model("llama-gqa");
    let model = Model::load(&BaseModel::open(&folder.join("base")).unwrap(), &Device::cpu()).unwrap();
    let ids = vec![vec![3, 1, 4, 1, 5], vec![9, 2, 6, 5, 3]];
    let all = model.forward(&mut model.new_cache(5), &ids, Logits::All).unwrap();
    let last = model.forward(&mut model.new_cache(5), &ids, Logits::Last).unwrap();
    let v = model.base().config.vocab_size;
    for b in 0..2 {
        assert!(max_difference(&last[b * v..(b + 1) * v], &all[(b * 5 + 4) * v..(b * 5 + 5) * v]) < 1e-5);
    }
}

#[test]
fn several_adapters_add_up_and_strength_multiplies() {
    let folder = model("qwen2");
    let base = BaseModel::open(&folder.join("base")).unwrap();
    let probe = Probe::open(&folder.join("probe.safetensors"));
    let a = adapter(&folder.join("adapter"));
    let with = |strengths: &[f64]| Lane { adapters: strengths.iter().map(|s| (Effects::from(&a), *s)).collect() };
    let lanes = [Lane::of(&a), with(&[0.25, 0.75]), with(&[1.0, 0.5, -1.5]), Lane::default()];
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(&base, &probe.input_ids(), &lanes, &options, &mut sink).unwrap();
    assert!(max_difference(&sink.logits[0], &sink.logits[1]) < 1e-4);
    assert!(max_difference(&sink.logits[2], &sink.logits[3]) < 1e-4);
    assert!(max_difference(&sink.logits[0], &sink.logits[3]) > 0.1, "the adapter has an effect");
    let n = base.config.n_layers + 1;
    assert_eq!(sink.steps, (1..=n).map(|i| (i, n)).collect::<Vec<_>>());
}

#[test]
fn wanted_positions_are_those_of_all() {
    let folder = model("llama-mha");
    let base = BaseModel::open(&folder.join("base")).unwrap();
    let ids = Probe::open(&folder.join("probe.safetensors")).input_ids();
    let run = |positions| {
        let mut sink = Collect::default();
        stream(&base, &ids, &[Lane::default()], &StreamOptions { positions, device: Device::cpu() }, &mut sink)
            .map(|()| sink.logits.remove(0))
    };
    let (all, some) = (run(None).unwrap(), run(Some(vec![2, 7])).unwrap());
    let (v, t) = (base.config.vocab_size, ids[0].len());
    for (b, row) in some.chunks_exact(2 * v).enumerate() {
        for (i, p) in [2, 7].into_iter().enumerate() {
            let at = (b * t + p) * v;
            assert!(max_difference(&row[i * v..(i + 1) * v], &all[at..at + v]) < 1e-5);
        }
    }
    assert_eq!(run(Some(vec![t])).unwrap_err().code(), Code::ProbeMismatch);
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let base = BaseModel::open(&crate::common::base_gguf("llama-mha")).unwrap();
    let foreign = adapter(&model("qwen3").join("adapter"));
    let options = StreamOptions { positions: None, device: Device::cpu() };
    let run = |ids: &[Vec<u32>], lane: Lane| {
        stream(&base, ids, &[lane], &options, &mut Collect::default()).unwrap_err().code()
    };
    assert_eq!(run(&[], Lane::default()), Code::ProbeInvalid);
    assert_eq!(run(&[vec![]], Lane::default()), Code::ProbeInvalid);
    assert_eq!(run(&[vec![1, 2], vec![1]], Lane::default()), Code::ProbeInvalid);
    assert_eq!(run(&[vec![160]], Lane::default()), Code::ProbeMismatch);
    assert_eq!(run(&[vec![1]], Lane::of(&foreign)), Code::AdapterMismatch);
    let mut shorter = adapter(&model("llama-mha").join("adapter"));
    shorter.layers.get_mut(&1).unwrap().memory = LazyTensor::from_f32(&[0.0; 32], &[1, 1, 32]);
    assert_eq!(run(&[vec![1]], Lane::of(&shorter)), Code::AdapterShape);
    let layer = shorter.layers.remove(&1).unwrap();
    shorter.layers.insert(3, layer);
    assert_eq!(run(&[vec![1]], Lane::of(&shorter)), Code::AdapterMismatch);
}

#[test]
fn a_nan_in_the_adapter_or_the_base_reaches_the_logits() {
    let folder = model("qwen3"); // relu, which a careless maximum would turn NaN into 0 with
    let base = BaseModel::open(&folder.join("base")).unwrap();
    let mut broken = adapter(&folder.join("adapter"));
    let layer = broken.layers.get_mut(&0).unwrap();
    let bias = layer.feature_bias.as_ref().unwrap();
    let mut values = vec![0.0; bias.n_elements()];
    values[0] = f32::NAN;
    layer.feature_bias = Some(LazyTensor::from_f32(&values, bias.shape()));
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    let lanes = [Lane::of(&broken), Lane::default()];
    stream(&base, &[vec![1, 2, 3]], &lanes, &options, &mut sink).unwrap();
    assert!(sink.logits[0].iter().all(|x| x.is_nan()), "the adapted lane is spoilt");
    assert!(sink.logits[1].iter().all(|x| x.is_finite()), "its neighbour is not");
}

#[test]
fn a_zero_denominator_names_layer_head_and_position() {
    let folder = model("mistral-swa");
    let probe = Probe::open(&folder.join("probe.safetensors"));
    let mut a = adapter(&folder.join("adapter"));
    let (shape, q) = probe.get("q.1").unwrap();
    let shape: [usize; 4] = shape.try_into().unwrap();
    let layer = a.layers.get_mut(&1).unwrap();
    let expected = probe.get("term.1").unwrap().1;
    let term = phi::term_f32(&q, shape, &a.config, layer, 1).unwrap();
    assert!(max_difference(&term, &expected) <= 1e-4);
    // N = 0 for head 2 only
    let (h, f) = (shape[1], a.config.geometry.n_features);
    let n: Vec<f32> = (0..h * f).map(|i| if i / f == 2 { 0.0 } else { 1.0 }).collect();
    layer.normalizer = Some(LazyTensor::from_f32(&n, &[h, f]));
    let e = phi::term_f32(&q, shape, &a.config, layer, 1).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::DenominatorZero, Some("layers.1.normalizer")));
    assert!(e.message().contains("head 2, position 0"), "{e}");
}

#[test]
fn stored_terms_follow_from_stored_queries() {
    for name in MODELS {
        let folder = model(name);
        let probe = Probe::open(&folder.join("probe.safetensors"));
        let a = adapter(&folder.join("adapter"));
        if name.ends_with("pre-rope") {
            continue; // the probe stores post-RoPE queries only
        }
        for (i, layer) in &a.layers {
            let (shape, q) = probe.get(&format!("q.{i}")).unwrap();
            let term = phi::term_f32(&q, shape.try_into().unwrap(), &a.config, layer, *i).unwrap();
            let d = max_difference(&term, &probe.get(&format!("term.{i}")).unwrap().1);
            assert!(d <= 1e-5, "{name} layer {i}: {d:.1e}");
        }
    }
}

#[test]
fn a_shared_memory_is_the_same_memory_for_every_head() {
    let mut a = adapter(&model("qwen2").join("adapter")); // 4 heads, 2 key/value heads
    let g = a.config.geometry;
    let probe = Probe::open(&model("qwen2").join("probe.safetensors"));
    let (shape, q) = probe.get("q.0").unwrap();
    let shape: [usize; 4] = shape.try_into().unwrap();
    let memories: Vec<f32> = (0..2 * g.n_features * g.value_head_dim).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut term = |sharing, heads: &[usize]| {
        let size = g.n_features * g.value_head_dim;
        let values: Vec<f32> = heads.iter().flat_map(|m| memories[m * size..(m + 1) * size].to_vec()).collect();
        a.config.conventions.memory_sharing = sharing;
        let layer = a.layers.get_mut(&0).unwrap();
        layer.memory = LazyTensor::from_f32(&values, &[heads.len(), g.n_features, g.value_head_dim]);
        phi::term_f32(&q, shape, &a.config, layer, 0).unwrap()
    };
    let per_head = term(MemorySharing::PerHead, &[0, 0, 1, 1]);
    assert!(max_difference(&per_head, &term(MemorySharing::PerKvHead, &[0, 1])) < 1e-5);
    assert!(max_difference(&per_head, &term(MemorySharing::PerHead, &[0, 1, 0, 1])) > 0.1);
    let all_the_same = term(MemorySharing::PerHead, &[1, 1, 1, 1]);
    assert!(max_difference(&all_the_same, &term(MemorySharing::Shared, &[1])) < 1e-5);
}

#[test]
fn a_cache_holds_no_more_than_the_positions_that_it_is_for() {
    let model = Model::load(&BaseModel::open(&model("llama-gqa").join("base")).unwrap(), &Device::cpu()).unwrap();
    let mut cache = model.new_cache(3);
    model.forward(&mut cache, &[vec![3, 1]], Logits::Last).unwrap();
    let e = model.forward(&mut cache, &[vec![4, 1]], Logits::Last).unwrap_err();
    assert_eq!(e.code(), Code::Usage, "{e}");
    model.forward(&mut model.new_cache(3), &[vec![4, 1, 5]], Logits::Last).unwrap();
}
