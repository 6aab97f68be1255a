//! However the same tokens reach llama.cpp, the adapter computes the same.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ptplus::base::BaseModel;
use ptplus::llama_cpp::{Adapter, CacheType, Context, ContextOptions, FlashAttention, Model, Token};
use ptplus::pipeline::read_adapter;
use ptplus::runner::{DeviceChoice, Lane, Sink, StreamOptions, stream};

use crate::common::{RawAdapter, base_gguf, exit, fixtures, model, ptplus, smollm2, stderr};

pub const PLAIN: ContextOptions = ContextOptions {
    n_positions: 256,
    n_batch: 128,
    n_ubatch: 128,
    n_sequences: 2,
    // Tests run side by side, and ggml's threads spin while they wait.
    n_threads: 1,
    flash_attention: FlashAttention::Off,
    cache_type: CacheType::F32,
};

/// An adapter as GGUF in a folder of its own.
pub fn converted(adapter: &Path, base: &Path, folder: &Path) -> PathBuf {
    let file = folder.join("adapter.gguf");
    let args = ["convert".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str(), "--force".as_ref()];
    let out = ptplus(args.into_iter().chain(["-o".as_ref(), file.as_os_str()]));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    file
}

pub fn ids(seed: u32, n: usize, vocab_size: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503)) >> 7) % vocab_size as u32)
        .collect()
}

fn tokens(ids: &[u32], first: usize, sequence: usize) -> Vec<Token> {
    (first..).zip(ids).map(|(position, &id)| Token { id, position, sequence, logits: true }).collect()
}

/// Logits of all tokens, given to the context in batches of `n`.
pub fn logits(context: &mut Context, ids: &[u32], n: usize) -> Vec<Vec<f32>> {
    context.clear();
    let mut all = Vec::new();
    for (i, chunk) in ids.chunks(n).enumerate() {
        context.decode(&tokens(chunk, i * n, 0)).unwrap();
        all.extend((0..chunk.len()).map(|j| context.logits(j).unwrap().to_vec()));
    }
    all
}

pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let rows = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b).map(|(x, y)| (x - y).abs()));
    rows.fold(0.0, |m, d| if d.is_nan() || m > d { if d.is_nan() { f32::INFINITY } else { m } } else { d })
}

struct Loaded {
    model: Rc<Model>,
    adapter: Rc<Adapter>,
    _temp: tempfile::TempDir,
}

fn load(base: &Path, adapter: &Path) -> Loaded {
    let temp = tempfile::tempdir().unwrap();
    let file = converted(adapter, base, temp.path());
    let model = Rc::new(Model::load(base).unwrap());
    let adapter = Rc::new(Adapter::load(&file, &model).unwrap());
    Loaded { model, adapter, _temp: temp }
}

fn fixture(name: &str) -> Loaded {
    load(&base_gguf(name), &model(name).join("adapter"))
}

/// Ways to give llama.cpp the same tokens: against one batch, and limits relative to the adapter's effect.
fn assert_every_way_computes_the_same(what: &str, loaded: &Loaded, limit: f32) {
    let adapters = [loaded.adapter.clone()];
    let ids = ids(1, 64, loaded.model.vocab_size());
    let expected = logits(&mut Context::new(&loaded.model, &adapters, &PLAIN).unwrap(), &ids, 64);
    let stock = logits(&mut Context::new(&loaded.model, &[], &PLAIN).unwrap(), &ids, 64);
    let effect = difference(&expected, &stock);
    assert!(effect > 0.1, "{what}: effect {effect}");
    // 11 bits of mantissa; a term that is missing or wrong costs the whole effect.
    let rounded = 1e-2 * effect + limit;
    let ways = [
        ("several ubatches", ContextOptions { n_ubatch: 32, ..PLAIN }, 64, limit),
        ("an odd ubatch", ContextOptions { n_ubatch: 7, ..PLAIN }, 64, limit),
        ("prefill in parts", PLAIN, 50, limit),
        ("token by token", PLAIN, 1, limit),
        ("three threads", ContextOptions { n_threads: 3, ..PLAIN }, 64, limit),
        // ggml's kernel rounds to F16 inside.
        ("flash attention", ContextOptions { flash_attention: FlashAttention::On, ..PLAIN }, 64, rounded),
        (
            "flash attention, token by token",
            ContextOptions { flash_attention: FlashAttention::On, ..PLAIN },
            1,
            rounded,
        ),
        ("F16 cache", ContextOptions { cache_type: CacheType::F16, ..PLAIN }, 64, rounded),
        (
            "flash attention, F16 cache",
            ContextOptions { cache_type: CacheType::F16, flash_attention: FlashAttention::On, ..PLAIN },
            64,
            rounded,
        ),
    ];
    for (way, options, n, limit) in ways {
        let found = logits(&mut Context::new(&loaded.model, &adapters, &options).unwrap(), &ids, n);
        let d = difference(&expected, &found);
        assert!(d <= limit, "{what}, {way}: {d}, limit {limit}, effect {effect}");
    }
    interleaved(what, loaded, limit);
}

/// Two sequences whose tokens alternate in one batch, then decode together.
fn interleaved(what: &str, loaded: &Loaded, limit: f32) {
    let adapters = [loaded.adapter.clone()];
    let mut context = Context::new(&loaded.model, &adapters, &PLAIN).unwrap();
    let rows: Vec<Vec<u32>> = [2, 3].map(|seed| ids(seed, 40, loaded.model.vocab_size())).into();
    let expected: Vec<_> = rows.iter().map(|row| logits(&mut context, row, 40)).collect();
    context.clear();
    let mut found = [Vec::new(), Vec::new()];
    for range in [0..30, 30..31, 31..40] {
        let parts: Vec<_> = (0..2).map(|s| tokens(&rows[s][range.clone()], range.start, s)).collect();
        let batch: Vec<Token> = parts[0].iter().zip(&parts[1]).flat_map(|(a, b)| [*a, *b]).collect();
        context.decode(&batch).unwrap();
        for (i, t) in batch.iter().enumerate() {
            found[t.sequence].push(context.logits(i).unwrap().to_vec());
        }
    }
    for s in 0..2 {
        let d = difference(&expected[s], &found[s]);
        assert!(d <= limit, "{what}, sequence {s} of two: {d}");
    }
}

#[test]
fn every_way_through_a_fixture_computes_the_same() {
    for name in ["llama-mha", "llama-gqa", "qwen2", "qwen3", "qwen3-pre-rope", "llama-pre-rope"] {
        assert_every_way_computes_the_same(name, &fixture(name), 5e-4);
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn every_way_through_the_real_model_computes_the_same_on_the_real_base() {
    let stored = smollm2();
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path().join("f32.gguf");
    ptplus::llama_cpp::decode_to_f32(&stored, &base).unwrap();
    assert_every_way_computes_the_same("SmolLM2", &load(&base, &fixtures().join("smollm2-pirate/adapter")), 5e-3);
}

#[test]
fn without_a_memory_or_with_scale_0_it_is_stock_bit_for_bit() {
    for name in ["llama-gqa", "qwen2", "qwen3"] {
        let temp = tempfile::tempdir().unwrap();
        let mut raw = RawAdapter::fixture(name);
        raw.change("memory", |t| crate::common::Tensor { shape: t.shape.clone(), values: vec![0.0; t.values.len()] });
        raw.write(&temp.path().join("zero"));
        let zero = load(&base_gguf(name), &temp.path().join("zero"));
        let real = fixture(name);
        let ids = ids(4, 70, real.model.vocab_size());
        for flash_attention in [FlashAttention::Off, FlashAttention::On] {
            let options = ContextOptions { flash_attention, n_ubatch: 32, cache_type: CacheType::F16, ..PLAIN };
            let stock = logits(&mut Context::new(&real.model, &[], &options).unwrap(), &ids, 70);
            let mut with_zero = Context::new(&zero.model, std::slice::from_ref(&zero.adapter), &options).unwrap();
            assert!(logits(&mut with_zero, &ids, 70) == stock, "{name}: M = 0");
            let mut off = Context::new(&real.model, std::slice::from_ref(&real.adapter), &options).unwrap();
            off.set_scale(0, 0.0).unwrap();
            assert!(logits(&mut off, &ids, 70) == stock, "{name}: scale 0");
        }
    }
}

#[test]
fn switching_adapters_needs_no_reload_and_leaves_no_trace() {
    let loaded = fixture("qwen3");
    let mut context = Context::new(&loaded.model, std::slice::from_ref(&loaded.adapter), &PLAIN).unwrap();
    let ids = ids(5, 60, loaded.model.vocab_size());
    let on = logits(&mut context, &ids, 60);
    context.set_scale(0, 0.0).unwrap();
    let off = logits(&mut context, &ids, 60);
    context.set_scale(0, 0.5).unwrap();
    let half = logits(&mut context, &ids, 60);
    context.set_scale(0, 1.0).unwrap();
    assert!(logits(&mut context, &ids, 60) == on);
    assert!(difference(&on, &off) > 0.1 && difference(&on, &half) > 0.05 && difference(&half, &off) > 0.05);
}

/// Keeps the logits of the one lane.
pub struct Keep(pub Vec<Vec<f32>>);

impl Sink for Keep {
    fn logits(&mut self, _batch: usize, _position: usize, lanes: &[&[f32]]) -> ptplus::error::Result<()> {
        self.0.push(lanes[0].to_vec());
        Ok(())
    }
}

#[test]
fn the_terms_of_several_adapters_add_up_as_on_candle() {
    let base_path = base_gguf("llama-gqa");
    let base = BaseModel::open(&base_path).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let second = temp.path().join("second");
    let mut raw = RawAdapter::fixture("llama-gqa");
    raw.config["feature_map"] = "silu".into();
    raw.config["query_tap"] = "pre_rope".into();
    raw.change("memory", |t| crate::common::Tensor {
        shape: t.shape.clone(),
        values: t.values.iter().rev().copied().collect(),
    });
    raw.write(&second);
    let first = model("llama-gqa").join("adapter");
    let loaded = Rc::new(Model::load(&base_path).unwrap());
    let files: Vec<_> = [&first, &second]
        .into_iter()
        .enumerate()
        .map(|(i, path)| {
            let folder = temp.path().join(i.to_string());
            std::fs::create_dir(&folder).unwrap();
            Rc::new(Adapter::load(&converted(path, &base_path, &folder), &loaded).unwrap())
        })
        .collect();
    let mut context = Context::new(&loaded, &files, &PLAIN).unwrap();
    let ids = ids(6, 50, loaded.vocab_size());
    let adapters = [&first, &second].map(|path| read_adapter(path, Some(&base)).unwrap());
    let device = "cpu".parse::<DeviceChoice>().unwrap().open().unwrap();
    for scales in [[1.0, 1.0], [0.5, -0.75], [0.0, 1.0]] {
        for (i, scale) in scales.into_iter().enumerate() {
            context.set_scale(i, scale).unwrap();
        }
        let found = logits(&mut context, &ids, 50);
        let lane =
            Lane { adapters: adapters.iter().zip(scales).map(|(a, s)| (a.adapter().into(), f64::from(s))).collect() };
        let mut expected = Keep(Vec::new());
        let options = StreamOptions { positions: None, device: device.clone() };
        stream(&base, std::slice::from_ref(&ids), &[lane], &options, &mut expected).unwrap();
        let d = difference(&expected.0, &found);
        assert!(d <= 5e-4, "{scales:?}: {d}");
    }
}
