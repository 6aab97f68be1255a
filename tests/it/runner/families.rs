//! Families that compute otherwise than Llama: PyTorch's answer, and what is seen when one thing is computed otherwise.

use ptplus::base::fingerprint::{Fingerprint, Touched};
use ptplus::base::{Activation, BaseConfig, BaseModel, BlockWeight as W, QueryKeyNorm, Weight};
use ptplus::error::Code;
use ptplus::export::types::OutType;
use ptplus::runner::{Device, Logits, Model};
use ptplus::tensor::LazyTensor;

use super::common::{Probe, max_difference};
use super::storage::{against_pytorch, exported, opened};
use crate::common::model;

const FAMILIES: [&str; 5] = ["gemma2", "gemma3", "olmo2", "granite", "smollm3"];

#[test]
fn other_families_give_pytorchs_answer_from_a_folder_and_from_gguf() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("base.gguf");
    for name in FAMILIES {
        let base = opened(name);
        let d = against_pytorch(&base, name);
        assert!(d <= 2e-5, "{name}: {d:.1e}");
        let gguf = exported(&base, OutType::Keep, &file).unwrap();
        let d = against_pytorch(&gguf, name);
        assert!(d <= 2e-5, "{name} from GGUF: {d:.1e}");
        let queries = Touched::Queries(vec![0, 1]);
        assert_eq!(Fingerprint::of(&base, &queries).unwrap(), Fingerprint::of(&gguf, &queries).unwrap(), "{name}");
        // Written again it is the same file.
        let bytes = std::fs::read(&file).unwrap();
        exported(&gguf, OutType::Keep, &temp.path().join("again.gguf")).unwrap();
        assert!(std::fs::read(temp.path().join("again.gguf")).unwrap() == bytes, "{name}");
    }
}

#[test]
fn positions_one_by_one_give_the_same_logits() {
    for name in FAMILIES {
        let probe = Probe::open(&model(name).join("probe.safetensors"));
        let model = Model::load(&opened(name), &Device::cpu()).unwrap();
        let (ids, expected) = (probe.input_ids(), probe.get("base_logits").unwrap().1);
        let mut cache = model.new_cache(ids[0].len());
        let vocab_size = model.base().config.vocab_size;
        for p in 0..ids[0].len() {
            let found = model.forward(&mut cache, &[vec![ids[0][p]]], Logits::Last).unwrap();
            assert!(max_difference(&found, &expected[p * vocab_size..][..vocab_size]) < 2e-5, "{name} at {p}");
        }
    }
}

#[test]
fn what_is_computed_otherwise_is_seen() {
    type Mutation = (&'static str, &'static [&'static str], fn(&mut BaseConfig));
    let mutations: [Mutation; 13] = [
        ("scores not capped", &["gemma2"], |c| c.attention_softcap = None),
        ("logits not capped", &["gemma2"], |c| c.final_softcap = None),
        ("embedding not multiplied", &["gemma2", "gemma3", "granite"], |c| c.embedding_multiplier = 1.0),
        ("norms without their 1", &["gemma2", "gemma3"], |c| c.norms.stored_less_one = false),
        ("windows on the other layers", &["gemma2", "gemma3"], |c| {
            let window = c.windows().next();
            c.layers.iter_mut().for_each(|l| l.window = if l.window.is_some() { None } else { window });
        }),
        ("RoPE of the other layers", &["gemma3"], |c| c.layers.iter_mut().for_each(|l| l.rope = l.rope.map(|r| 1 - r))),
        ("scaling left out", &["gemma3"], |c| c.ropes[0].scaling = ptplus::base::RopeScaling::None),
        ("another scale of scores", &["gemma2", "gemma3", "granite"], |c| {
            c.attention_scale = 1.0 / (c.head_dim as f64).sqrt();
        }),
        ("SiLU", &["gemma2", "gemma3"], |c| c.activation = Activation::Silu),
        ("residuals not multiplied", &["granite"], |c| c.residual_multiplier = 1.0),
        ("logits not divided", &["granite"], |c| c.logits_scaling = 1.0),
        ("every layer rotated", &["smollm3"], |c| c.layers.iter_mut().for_each(|l| l.rope = Some(0))),
        ("another layer not rotated", &["smollm3"], |c| c.layers[1].rope = None),
    ];
    for (what, names, change) in mutations {
        for name in names {
            let mut base = opened(name);
            change(&mut base.config);
            let d = against_pytorch(&base, name);
            assert!(d > 1e-3, "{name}, {what}: {d:.1e}");
        }
    }
}

#[test]
fn a_norm_of_each_head_is_none_of_all_heads() {
    let base = opened("olmo2");
    let d = base.config.head_dim;
    let mut config = base.config.clone();
    config.query_key_norm = Some(QueryKeyNorm::PerHead);
    let mut norms = Vec::new();
    for i in 0..config.n_layers {
        for w in [W::QueryNorm, W::KeyNorm].map(|w| Weight::Block(i, w)) {
            norms.push((w, LazyTensor::from_f32(&base.vector(w).unwrap()[..d], &[d])));
        }
    }
    let changed = base.with_weights(config, norms).unwrap();
    assert!(against_pytorch(&changed, "olmo2") > 1e-2);
}

/// llama.cpp's scale of scores is its own: the difference goes into the keys, and queries stay what an adapter was trained on.
#[test]
fn keys_make_up_for_llama_cpps_scale_and_the_file_says_so() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["gemma2", "gemma3"] {
        let base = opened(name);
        let gguf = exported(&base, OutType::Keep, &temp.path().join("base.gguf")).unwrap();
        let factor = base.config.gguf_key_factor();
        assert!((factor - (16f64 / 12.0).sqrt()).abs() < 1e-6, "{name}: {factor}");
        assert!((gguf.config.key_factor - factor).abs() < 1e-6 && gguf.config.attention_scale == 0.25, "{name}");
        let q = |b: &BaseModel| b.rows(Weight::Block(0, W::Query)).unwrap().to_f32();
        assert_eq!(q(&base), q(&gguf), "{name}");
    }
}

#[test]
fn what_llama_cpp_cannot_compute_is_not_written() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&mut BaseConfig);
    for (name, field, change) in [
        ("smollm3", "no_rope_layers", (|c| c.layers[1].rope = None) as Change),
        ("gemma3", "rope_parameters.sliding_attention", |c| {
            c.ropes[1].scaling = ptplus::base::RopeScaling::Linear { factor: 2.0 };
        }),
    ] {
        let mut base = opened(name);
        change(&mut base.config);
        let e = exported(&base, OutType::Keep, &temp.path().join("x.gguf")).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some(field)), "{name}: {e}");
    }
}
