//! Virtual tokens as the state of a sequence, loaded by the real llama.cpp.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ptplus::base::BaseModel;
use ptplus::format::llama_state::{Cache, Version};
use ptplus::format::safetensors;
use ptplus::generate::{Candle, Engine};
use ptplus::llama_cpp::engine::LlamaCpp;
use ptplus::llama_cpp::{CacheType, Context, ContextOptions, FlashAttention, Model, Token};
use ptplus::pipeline::read_adapter;
use ptplus::runner::{Device, sequence_state};
use ptplus::tensor::DType;
use ptplus::verify::probe::Probe;

use crate::common::{exit, fixtures, json, ptplus, stderr};
use crate::contexts::{PLAIN, difference, ids};

/// With the base, and how many tokens behind the virtual ones llama.cpp computes as PyTorch does: it ignores mistral's window.
const CASES: [(&str, &str, usize); 5] = [
    ("llama-prefix", "lora/llama-dora", 14),
    ("llama-prompt", "lora/llama-dora", 14),
    ("mistral-prefix", "models/mistral-swa", 3),
    ("qwen2-prefix-projected", "models/qwen2", 14),
    ("qwen3-ptuning", "lora/qwen3-all-linear", 14),
];
const MAX_ABS: f64 = 5e-4;

fn adapter(name: &str) -> PathBuf {
    fixtures().join("prefix").join(name).join("adapter")
}

fn probe(name: &str) -> PathBuf {
    fixtures().join("prefix").join(name).join("probe.safetensors")
}

fn base(base: &str) -> PathBuf {
    fixtures().join(base).join("base")
}

fn state(name: &str, base: &BaseModel, cache: &Cache) -> Vec<u8> {
    let read = read_adapter(&adapter(name), Some(base)).unwrap();
    sequence_state(read.adapter().as_prefix().unwrap(), base, cache, &Device::cpu()).unwrap()
}

fn loaded(base: &Path, folder: &Path) -> Rc<Model> {
    let file = folder.join("base.gguf");
    let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), file.as_os_str(), "--force".as_ref()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    Rc::new(Model::load(&file).unwrap())
}

/// Logits of the tokens behind the state.
fn behind(context: &mut Context, state: &[u8], folder: &Path, ids: &[u32]) -> Option<Vec<Vec<f32>>> {
    let file = folder.join("state.bin");
    std::fs::write(&file, state).unwrap();
    context.clear();
    let n = context.restore(&file, 1).ok()?;
    let tokens: Vec<Token> =
        (n..).zip(ids).map(|(position, &id)| Token { id, position, sequence: 1, logits: true }).collect();
    context.decode(&tokens).ok()?;
    Some((0..ids.len()).map(|i| context.logits(i).unwrap().to_vec()).collect())
}

#[test]
fn every_case_agrees_with_pytorch_and_candle() {
    for (name, base_name, _) in CASES {
        let args = [OsStr::new("verify").to_owned(), adapter(name).into(), "--base".into(), base(base_name).into()];
        let rest = ["--probe".into(), probe(name).into(), "--engine".into(), "llama.cpp".into()];
        let (code, report) = json(args.into_iter().chain(rest));
        assert_eq!(code, 0, "{name}: {report}");
        for engine in ["candle", "llama.cpp", "llama.cpp_beside_candle"] {
            let found = report["engines"]["metrics"][engine]["max_abs"].as_f64().unwrap();
            assert!(found <= MAX_ABS, "{name}, {engine}: {found}");
        }
    }
}

/// Logits of a probe's first row, at the first `n` positions.
fn expected(name: &str, n: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let probe = Probe::open(&probe(name)).unwrap();
    let ids = probe.input_ids[0][..n].to_vec();
    let file = safetensors::open(&probe.path).unwrap();
    let logits = file.tensors.iter().find(|t| t.name == "logits").unwrap();
    let values: Vec<f32> = logits.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (ids, values.chunks(probe.vocab_size).take(n).map(<[f32]>::to_vec).collect())
}

#[test]
fn caches_of_every_kind_are_as_exact_as_the_base_is_in_them() {
    let temp = tempfile::tempdir().unwrap();
    for (name, base_name, n) in CASES {
        let opened = BaseModel::open(&base(base_name)).unwrap();
        let model = loaded(&base(base_name), temp.path());
        let (ids, expected) = expected(name, n);
        let default = Cache::default();
        for (cache_type, dtype, flash_attention, limit) in [
            (CacheType::F32, DType::F32, FlashAttention::Off, 5e-4),
            (CacheType::F32, DType::F32, FlashAttention::On, 2e-2),
            (CacheType::F16, DType::F16, FlashAttention::Off, 2e-2),
            (CacheType::F16, DType::F16, FlashAttention::On, 2e-2),
            (CacheType::Q8_0, DType::Q8_0, FlashAttention::On, 0.3),
        ] {
            let cache = Cache {
                flash_attention: flash_attention == FlashAttention::On,
                k_type: dtype,
                v_type: dtype,
                ..default
            };
            let options = ContextOptions { cache_type, flash_attention, ..PLAIN };
            let mut context = Context::new(&model, &[], &options).unwrap();
            let found = behind(&mut context, &state(name, &opened, &cache), temp.path(), &ids).unwrap();
            let found = difference(&found, &expected);
            assert!(found < limit, "{name}, {dtype}, {flash_attention:?}: {found}");
            // Of another kind or version: refused, in words.
            for other in [
                Cache { flash_attention: !cache.flash_attention, k_type: DType::F16, v_type: DType::F16, ..cache },
                Cache { k_type: DType::BF16, ..cache },
                Cache { n_streams: 2, ..cache },
                Cache { version: Version::V3, ..cache },
            ] {
                assert!(behind(&mut context, &state(name, &opened, &other), temp.path(), &ids).is_none(), "{other:?}");
            }
        }
    }
}

/// Each is a mistake that leaves a file which llama.cpp loads, or one that it refuses.
#[test]
fn wrong_states_are_refused_or_far_off() {
    let temp = tempfile::tempdir().unwrap();
    let (name, base_name, n) = CASES[0];
    let opened = BaseModel::open(&base(base_name)).unwrap();
    let (c, p) = (&opened.config, 5);
    let model = loaded(&base(base_name), temp.path());
    let (ids, expected) = expected(name, n);
    let cache = Cache { flash_attention: false, k_type: DType::F32, v_type: DType::F32, ..Cache::default() };
    let right = state(name, &opened, &cache);
    let width = c.n_kv_heads * c.head_dim;
    let (head, cells) = (12 + 4 * p + 8, 12 * p);
    let layers = head + cells + 16;
    let layer_len = 12 + 4 * width * p;
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(&right, head - 4), word(&right, layers - 12)), (p as u32, c.n_layers as u32));
    assert_eq!(right.len(), layers + 2 * c.n_layers * layer_len);
    // The words of each layer's keys or values, in another order.
    let rearranged = |first: usize, order: &dyn Fn(usize) -> usize| {
        let mut wrong = right.clone();
        for layer in first..first + c.n_layers {
            let at = layers + layer * layer_len + 12;
            for i in 0..width * p {
                let from = at + 4 * order(i);
                wrong[at + 4 * i..][..4].copy_from_slice(&right[from..from + 4]);
            }
        }
        wrong
    };
    let d = c.head_dim;
    let in_hugging_face_order = |i: usize| i / d * d + (i % d) % (d / 2) * 2 + (i % d) / (d / 2);
    let mut shifted = right.clone();
    for i in 0..p {
        shifted[head + 12 * i..][..4].copy_from_slice(&(i as u32 + 1).to_le_bytes());
    }
    let mut context = Context::new(&model, &[], &PLAIN).unwrap();
    let mut off =
        |bytes: &[u8]| behind(&mut context, bytes, temp.path(), &ids).map(|found| difference(&found, &expected));
    assert!(off(&right).unwrap() < 5e-4);
    let wrong = [
        ("keys in Hugging Face order", rearranged(0, &in_hugging_face_order)),
        ("values not transposed", rearranged(c.n_layers, &|i| i % p * width + i / p)),
        ("positions off by one", shifted),
    ];
    for (what, bytes) in wrong {
        // Where a cell is says which queries see it: a position that is taken twice is refused, or seen too late.
        assert!(off(&bytes).is_none_or(|d| d > 0.05), "{what}: {:?}", off(&bytes));
    }
    let without_a_layer =
        [&right[..layers - 12], &(c.n_layers as u32 - 1).to_le_bytes(), &right[layers - 8..]].concat();
    assert!(off(&without_a_layer).is_none(), "one layer missing");
}

#[test]
fn virtual_tokens_are_switched_on_and_off() {
    let base_path = base("lora/llama-dora");
    let opened = BaseModel::open(&base_path).unwrap();
    let adapters: Vec<_> =
        ["llama-prefix", "llama-prompt"].iter().map(|n| read_adapter(&adapter(n), Some(&opened)).unwrap()).collect();
    let mut llama = LlamaCpp::open(&opened, &[&adapters[0], &adapters[1]], 64, 1).unwrap();
    let mut candle = Candle::new(&opened, adapters.clone(), &Device::cpu(), 64).unwrap();
    let tokens = ids(5, 20, opened.config.vocab_size);
    for on in [vec![], vec![(0, 1.0)], vec![(1, 1.0)], vec![], vec![(0, 1.0)]] {
        llama.switch_adapters(&on).unwrap();
        candle.switch_adapters(&on).unwrap();
        // In one piece and in two.
        let found = llama.append(&tokens).unwrap();
        candle.append(&tokens[..7]).unwrap();
        let expected = candle.append(&tokens[7..]).unwrap();
        assert!(difference(&[found], &[expected]) < 2e-2, "{on:?}");
        llama.clear().unwrap();
        candle.clear().unwrap();
    }
    for on in [vec![(0, 0.5)], vec![(0, 1.0), (1, 1.0)]] {
        assert!(llama.switch_adapters(&on).is_err() && candle.switch_adapters(&on).is_err(), "{on:?}");
    }
}
