//! Every kind of RoPE against PyTorch's frequencies and logits, from folders in both dialects and from GGUF.

use std::path::{Path, PathBuf};

use crate::common::{exit, fixtures, json, ptplus, stderr};
use ptplus::base::{BaseConfig, BaseModel, RopeScaling};
use serde_json::{Value, json as value};

/// Tokens in every probe.
const N_POSITIONS: usize = 20;

struct Case {
    name: String,
    config: Value,
    frequencies: Vec<f32>,
    attention_factor: f64,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read(fixtures().join("rope/cases.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    let case = |(name, case): (&String, &Value)| {
        let mut config = all["config"].clone();
        let own =
            case.as_object().unwrap().iter().filter(|(key, _)| !["frequencies", "attention_factor"].contains(&&***key));
        own.for_each(|(key, value)| config[key] = value.clone());
        Case {
            name: name.clone(),
            config,
            frequencies: serde_json::from_value(case["frequencies"].clone()).unwrap(),
            attention_factor: case["attention_factor"].as_f64().unwrap(),
        }
    };
    all["cases"].as_object().unwrap().iter().map(case).collect()
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap()
}

/// As transformers 4 writes it: the base beside the scaling, and an older name for its kind.
fn in_the_older_dialect(config: &Value) -> Value {
    let mut config = config.clone();
    let mut scaling = config.as_object_mut().unwrap().shift_remove("rope_parameters").unwrap();
    let fields = scaling.as_object_mut().unwrap();
    let (theta, kind) = (fields.shift_remove("rope_theta").unwrap(), fields.shift_remove("rope_type").unwrap());
    fields.insert("type".into(), kind);
    config["rope_theta"] = theta;
    config["rope_scaling"] = scaling;
    config
}

fn folder(config: &Value, parent: &Path) -> PathBuf {
    let folder = parent.join("base");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weights = if config["model_type"] == "phi3" { "phi3" } else { "model" };
    std::fs::copy(fixtures().join(format!("rope/{weights}.safetensors")), folder.join("model.safetensors")).unwrap();
    folder
}

fn verify(base: &Path, probe: &str) -> (i32, Value) {
    let probe = fixtures().join(format!("rope/{probe}.safetensors"));
    let adapter = fixtures().join("rope/adapter");
    json(["verify".as_ref(), adapter.as_path(), "--base".as_ref(), base, "--probe".as_ref(), probe.as_path()])
}

#[test]
fn both_dialects_give_pytorchs_frequencies() {
    for c in cases() {
        let parse = |config: &Value| {
            let mut c = BaseConfig::from_json("config.json".as_ref(), config).unwrap();
            (c.ropes.remove(0), c.rotary_dim)
        };
        let (rope, rotary_dim) = parse(&c.config);
        assert_eq!(parse(&in_the_older_dialect(&c.config)), (rope.clone(), rotary_dim), "{}", c.name);
        let found = rope.frequencies(rotary_dim, N_POSITIONS);
        assert_eq!(found.len(), c.frequencies.len(), "{}", c.name);
        for (i, (x, y)) in found.iter().zip(&c.frequencies).enumerate() {
            assert!((x - y).abs() <= 2e-7 * y, "{}, pair {i}: {x} {y}", c.name);
        }
        let difference = (rope.attention_factor - c.attention_factor).abs();
        assert!(difference <= 1e-12, "{}: {} {}", c.name, rope.attention_factor, c.attention_factor);
    }
}

#[test]
fn logits_queries_and_terms_are_pytorchs_from_folders_and_from_our_own_gguf() {
    let temp = tempfile::tempdir().unwrap();
    for c in cases() {
        let base = folder(&c.config, temp.path());
        let gguf = temp.path().join("base.gguf");
        let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), gguf.as_os_str(), "-f".as_ref()]);
        assert_eq!(exit(&out), 0, "{}: {}", c.name, stderr(&out));
        let has_note =
            stderr(&out).contains("llama.cpp does not know") || stderr(&out).contains("llama.cpp takes the latter");
        assert_eq!(has_note, c.name.starts_with("dynamic") || c.name.contains("longrope"), "{}", c.name);
        for file in [&base, &gguf] {
            let (code, document) = verify(file, &c.name);
            // llama.cpp has no scaling that grows with the text.
            let expected = if c.name == "dynamic-beyond" && file == &gguf { 5 } else { 0 };
            assert_eq!(code, expected, "{} {}: {document:#}", c.name, file.display());
            if code != 0 {
                continue;
            }
            let limits = [
                (&document["metrics"]["max_abs"], 2e-4),
                (&document["layers"][0]["q_max_abs"], 1e-4),
                (&document["layers"][0]["term_max_abs"], 1e-4),
            ];
            for (found, limit) in limits {
                assert!(found.as_f64().unwrap() <= limit, "{}: {document:#}", c.name);
            }
        }
    }
}

#[test]
fn one_wrong_number_about_rope_does_not_pass() {
    let temp = tempfile::tempdir().unwrap();
    for (name, field, wrong) in [
        ("yarn", "attention_factor", value!(1.0)),
        ("yarn", "factor", value!(2.0)),
        ("yarn", "original_max_position_embeddings", value!(1024)),
        ("yarn-attention-factor", "attention_factor", value!(null)),
        ("yarn-betas", "beta_fast", value!(null)),
        ("yarn-betas", "beta_slow", value!(null)),
        ("yarn-mscale", "mscale_all_dim", value!(null)),
        ("yarn-not-truncated", "truncate", value!(true)),
        ("longrope-short", "original_max_position_embeddings", value!(16)),
        ("longrope-long", "original_max_position_embeddings", value!(32)),
        ("longrope-long", "attention_factor", value!(1.0)),
        ("linear", "factor", value!(2.0)),
        ("phi3-partial", "partial_rotary_factor", value!(0.5)),
        ("phi3-partial-longrope", "attention_factor", value!(1.0)),
        ("llama3", "original_max_position_embeddings", value!(64)),
        ("dynamic-beyond", "factor", value!(2.0)),
    ] {
        let mut c = case(name);
        c.config["rope_parameters"][field] = wrong;
        let (code, document) = verify(&folder(&c.config, temp.path()), name);
        assert_eq!(code, 5, "{name} {field}: {document:#}");
    }
    let mut c = case("dynamic-beyond");
    c.config["max_position_embeddings"] = value!(18);
    assert_eq!(verify(&folder(&c.config, temp.path()), "dynamic-beyond").0, 5);
}

/// Phi-3's class has one kind of scaling, which its first files call `su`, and an original context of 4,096 positions where only
/// RoPE's parameters state another.
#[test]
fn phi3_has_a_name_and_a_default_of_its_own() {
    let parse = |config: &Value| BaseConfig::from_json("config.json".as_ref(), config).map(|mut c| c.ropes.remove(0));
    let c = case("phi3-longrope-short").config;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut config = c.clone();
        change(&mut config);
        parse(&config)
    };
    let expected = parse(&c).unwrap();
    assert_eq!(changed(&|c| c["rope_parameters"]["rope_type"] = "su".into()).unwrap(), expected);
    type Change<'a> = &'a dyn Fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (&|c| c["original_max_position_embeddings"] = Value::Null, "original_max_position_embeddings"),
        (
            &|c| {
                c["original_max_position_embeddings"] = Value::Null;
                c["rope_parameters"]["original_max_position_embeddings"] = value!(32);
            },
            "original_max_position_embeddings",
        ),
        (
            &|c| {
                c["rope_parameters"]["rope_type"] = "yarn".into();
                c["rope_parameters"]["factor"] = value!(2.0);
            },
            "rope_scaling",
        ),
        (
            &|c| {
                c["rope_parameters"]["rope_type"] = "linear".into();
                c["rope_parameters"]["factor"] = value!(2.0);
            },
            "rope_scaling",
        ),
    ];
    for (change, field) in cases {
        let e = changed(change).unwrap_err();
        assert_eq!(e.field_name(), Some(field), "{e}");
    }
    assert!(
        changed(&|c| {
            c["original_max_position_embeddings"] = Value::Null;
            c["max_position_embeddings"] = value!(4096);
        })
        .is_ok()
    );
}

/// llama.cpp reads where YaRN's ramp lies for no architecture, and divisors of the frequencies for some.
#[test]
fn what_llama_cpp_computes_otherwise_is_written_as_divisors_or_refused() {
    let temp = tempfile::tempdir().unwrap();
    let plan = |name: &str, model_type: &str| {
        let mut c = case(name);
        c.config["model_type"] = model_type.into();
        c.config["architectures"] = value!(null);
        let base = folder(&c.config, temp.path());
        if model_type == "qwen3" {
            let file = base.join("model.safetensors");
            let mut tensors = crate::common::read_safetensors(&file);
            for (layer, which) in [(0, "q"), (0, "k"), (1, "q"), (1, "k")] {
                let norm = crate::common::Tensor { shape: vec![16], values: vec![1.0; 16] };
                tensors.insert(format!("model.layers.{layer}.self_attn.{which}_norm.weight"), norm);
            }
            crate::common::write_safetensors(&file, &tensors);
        }
        let gguf = temp.path().join("base.gguf");
        let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), gguf.as_os_str(), "-f".as_ref()]);
        (exit(&out), stderr(&out), gguf)
    };
    for (name, has_divisors, in_qwen3) in [
        ("yarn", false, 0),
        ("yarn-attention-factor", false, 0),
        ("yarn-mscale", false, 0),
        ("yarn-betas-of-llama-cpp", false, 0),
        ("linear", false, 0),
        ("yarn-betas", true, 7),
        ("yarn-not-truncated", true, 7),
        ("llama3", true, 7),
        ("longrope-long", true, 7),
    ] {
        let (code, message, gguf) = plan(name, "llama");
        assert_eq!(code, 0, "{name}: {message}");
        let scaling = BaseModel::open(&gguf).unwrap().config.ropes.remove(0).scaling;
        let found = matches!(scaling, RopeScaling::Divisors(_) | RopeScaling::LongRope { .. });
        assert_eq!(found, has_divisors, "{name}: {scaling:?}");
        let (code, message, _) = plan(name, "qwen3");
        assert_eq!(code, in_qwen3, "{name}: {message}");
        assert!(code == 0 || message.contains("rope_parameters"), "{name}: {message}");
    }
}
