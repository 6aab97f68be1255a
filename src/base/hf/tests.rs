//! `config.json` in both dialects, and everything about it that is refused.

use serde_json::json;

use super::*;
use crate::base::{Rope, RopeScaling, Yarn};

fn parsed(json: Value) -> Result<BaseConfig> {
    parse(Path::new("config.json"), &json)
}

/// `changes` on top of a complete configuration; a change to the string "absent" removes the key.
fn changed(model_type: &str, changes: Value) -> Result<BaseConfig> {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 160,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 512, "rope_theta": 5000.0,
    });
    for (key, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("absent") => drop(config.as_object_mut().unwrap().shift_remove(key)),
            _ => drop(config.as_object_mut().unwrap().insert(key.clone(), value.clone())),
        }
    }
    parsed(config)
}

fn windows(c: &BaseConfig) -> Vec<Option<usize>> {
    c.layers.iter().map(|l| l.window).collect()
}

#[test]
fn absent_keys_take_the_class_defaults() {
    // (layers, heads, kv heads, head length, hidden, intermediate, vocabulary), read off transformers' classes
    for (name, expected, window) in [
        ("llama", (32, 32, 32, 128, 4096, 11008, 32000), None),
        ("mistral", (32, 32, 8, 128, 4096, 14336, 32000), Some(4096)),
        ("qwen2", (32, 32, 32, 128, 4096, 22016, 151936), None),
        ("qwen3", (32, 32, 32, 128, 4096, 22016, 151936), None),
    ] {
        let c = parsed(json!({ "model_type": name })).unwrap();
        let found = (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_size, c.intermediate_size, c.vocab_size);
        assert_eq!(found, expected, "{name}");
        assert_eq!((c.rms_eps, &c.ropes), (1e-6, &vec![Rope::plain(10_000.0)]), "{name}");
        assert_eq!(windows(&c), vec![window; 32], "{name}");
        assert!(!c.tied_embeddings, "{name}");
    }
}

#[test]
fn null_is_not_absent() {
    let kv = |name, value: Value| changed(name, json!({ "num_key_value_heads": value })).map(|c| c.n_kv_heads);
    assert_eq!(kv("mistral", Value::Null).unwrap(), 4, "null is as many as heads");
    assert_eq!(kv("qwen2", json!(1)).unwrap(), 1);
    let window = |value: Value| changed("mistral", json!({ "sliding_window": value })).map(|c| c.layers[0].window);
    assert_eq!(window(Value::Null).unwrap(), None);
    assert_eq!(window(json!("absent")).unwrap(), Some(4096));
    assert_eq!(window(json!(8)).unwrap(), Some(8));
    let head_dim = |name, value: Value| changed(name, json!({ "head_dim": value })).map(|c| c.head_dim);
    assert_eq!(head_dim("qwen3", json!("absent")).unwrap(), 128);
    assert_eq!(head_dim("qwen3", Value::Null).unwrap_err().field_name(), Some("head_dim"));
    assert_eq!(head_dim("mistral", Value::Null).unwrap(), 24);
    assert_eq!(head_dim("llama", json!(64)).unwrap(), 64, "not hidden size over heads");
}

#[test]
fn both_dialects_state_the_same_rope() {
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    let fields = json!({"factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let with = |more: Value| {
        let mut all = fields.as_object().unwrap().clone();
        all.extend(more.as_object().unwrap().clone());
        Value::Object(all)
    };
    for (changes, theta, scaling) in [
        (json!({}), 5000.0, RopeScaling::None),
        (json!({"rope_theta": "absent"}), 10_000.0, RopeScaling::None),
        (json!({"rope_scaling": null, "rope_parameters": null}), 5000.0, RopeScaling::None),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}}), 5000.0, RopeScaling::Linear { factor: 2.0 }),
        (json!({"rope_scaling": with(json!({"rope_type": "llama3"}))}), 5000.0, llama3.clone()),
        (
            json!({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 7}}),
            7.0,
            RopeScaling::None,
        ),
        (
            json!({"rope_theta": "absent",
            "rope_parameters": with(json!({"rope_type": "llama3", "rope_theta": 5e5}))}),
            5e5,
            llama3,
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
            5000.0,
            RopeScaling::Linear { factor: 4.0 },
        ),
    ] {
        let rope = changed("llama", changes.clone()).unwrap().ropes.remove(0);
        assert_eq!(rope, Rope { theta, scaling, attention_factor: 1.0 }, "{changes}");
    }
}

#[test]
fn windows_apply_to_the_layers_that_the_configuration_names() {
    for (name, changes, expected) in [
        ("llama", json!({"sliding_window": 4}), [None, None, None]),
        ("qwen2", json!({"sliding_window": 4}), [None, None, None]),
        (
            "qwen2",
            json!({"sliding_window": 4, "use_sliding_window": true, "max_window_layers": 2}),
            [None, None, Some(4)],
        ),
        ("qwen2", json!({"sliding_window": 4, "use_sliding_window": true}), [None, None, None]),
        (
            "qwen2",
            json!({"sliding_window": null, "use_sliding_window": true, "max_window_layers": 0}),
            [None, None, None],
        ),
        ("qwen3", json!({"use_sliding_window": true, "max_window_layers": 1}), [None, Some(4096), Some(4096)]),
        (
            "qwen3",
            json!({"sliding_window": 4, "use_sliding_window": true,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
            [Some(4), None, Some(4)],
        ),
        ("qwen3", json!({"layer_types": ["full_attention", "full_attention", "full_attention"]}), [None, None, None]),
        (
            "mistral",
            json!({"sliding_window": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]}),
            [Some(4), Some(4), Some(4)],
        ),
    ] {
        assert_eq!(windows(&changed(name, changes.clone()).unwrap()), expected, "{name} {changes}");
    }
}

#[test]
fn biases_and_norms_are_those_of_the_family() {
    let llama = changed("llama", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert_eq!(llama.biases, Biases { query_key_value: true, attention_output: true, feed_forward: true });
    let qwen2 = changed("qwen2", json!({"attention_bias": false})).unwrap();
    assert_eq!(qwen2.biases, Biases { query_key_value: true, ..Biases::default() });
    assert_eq!(changed("mistral", json!({"attention_bias": true})).unwrap().biases, Biases::default());
    assert!(changed("qwen3", json!({})).unwrap().query_key_norm.is_some() && llama.query_key_norm.is_none());
}

#[test]
fn what_is_wrong_or_not_computed_is_refused_with_its_field() {
    use Code::{BaseArchitecture as A, ConfigField as F, ConfigUnsupported as U};
    for (name, changes, code, field) in [
        ("llama", json!({"model_type": "absent"}), A, "model_type"),
        ("llama", json!({"model_type": null}), A, "model_type"),
        ("gpt2", json!({}), A, "model_type"),
        ("llama", json!({"model_type": 3}), F, "model_type"),
        ("llama", json!({"hidden_act": "gelu"}), U, "hidden_act"),
        ("llama", json!({"hidden_act": null}), F, "hidden_act"),
        ("llama", json!({"partial_rotary_factor": 0.5}), U, "partial_rotary_factor"),
        (
            "llama",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            U,
            "rope_parameters.partial_rotary_factor",
        ),
        ("llama", json!({"quantization_config": {"quant_method": "gptq"}}), U, "quantization_config"),
        ("llama", json!({"num_local_experts": 8}), U, "num_local_experts"),
        ("llama", json!({"rope_scaling": {"type": "su", "factor": 2}}), U, "rope_scaling.rope_type"),
        ("llama", json!({"rope_scaling": {"rope_type": "proportional"}}), U, "rope_scaling.rope_type"),
        ("llama", json!({"rope_scaling": {"type": "yarn"}}), F, "rope_scaling.factor"),
        ("llama", json!({"rope_scaling": {"type": "yarn", "factor": 1e9}}), F, "rope_scaling.factor"),
        (
            "llama",
            json!({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}}),
            F,
            "rope_scaling.rope_theta",
        ),
        ("llama", json!({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": -1}}), F, "rope_scaling.beta_fast"),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 0}}),
            F,
            "rope_scaling.attention_factor",
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": -8}}),
            F,
            "rope_scaling.attention_factor",
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": null}, "max_position_embeddings": null}),
            F,
            "rope_scaling.original_max_position_embeddings",
        ),
        ("llama", json!({"rope_scaling": {"type": "dynamic"}}), F, "rope_scaling.factor"),
        (
            "llama",
            json!({"rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": null}),
            F,
            "max_position_embeddings",
        ),
        ("llama", json!({"rope_scaling": {"type": "longrope"}}), F, "rope_scaling.short_factor"),
        (
            "llama",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 2], "long_factor": [1, 2]}}),
            F,
            "rope_scaling.short_factor",
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]}}),
            F,
            "rope_scaling.long_factor",
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            "original_max_position_embeddings": 1}}),
            F,
            "rope_scaling.attention_factor",
        ),
        ("llama", json!({"rope_scaling": {"rope_type": null}}), F, "rope_scaling.rope_type"),
        ("llama", json!({"rope_scaling": {"type": "linear"}}), F, "rope_scaling.factor"),
        ("llama", json!({"rope_scaling": {"type": "linear", "factor": 0}}), F, "rope_scaling.factor"),
        ("llama", json!({"rope_scaling": {"type": "linear", "factor": "2"}}), F, "rope_scaling.factor"),
        ("llama", json!({"rope_scaling": "linear"}), F, "rope_scaling"),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
            F,
            "rope_scaling.high_freq_factor",
        ),
        (
            "qwen2",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            U,
            "rope_parameters.full_attention",
        ),
        ("llama", json!({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}), F, "rope_parameters.rope_theta"),
        ("llama", json!({"rope_theta": null}), F, "rope_theta"),
        ("llama", json!({"rope_theta": -1}), F, "rope_theta"),
        ("llama", json!({"num_attention_heads": 0}), F, "num_attention_heads"),
        ("llama", json!({"num_attention_heads": 0, "head_dim": null}), F, "hidden_size"),
        ("llama", json!({"num_key_value_heads": 3}), F, "num_key_value_heads"),
        ("llama", json!({"num_key_value_heads": 0}), F, "num_key_value_heads"),
        ("llama", json!({"head_dim": 25}), F, "head_dim"),
        ("llama", json!({"head_dim": 24.0}), F, "head_dim"),
        ("llama", json!({"head_dim": -24}), F, "head_dim"),
        ("llama", json!({"head_dim": "absent", "hidden_size": 97}), F, "hidden_size"),
        ("llama", json!({"num_hidden_layers": 0}), F, "num_hidden_layers"),
        ("llama", json!({"num_hidden_layers": 4_000_000_000u64}), F, "num_hidden_layers"),
        ("llama", json!({"num_hidden_layers": null}), F, "num_hidden_layers"),
        ("llama", json!({"vocab_size": u64::MAX}), F, "vocab_size"),
        ("llama", json!({"hidden_size": "96"}), F, "hidden_size"),
        ("llama", json!({"rms_norm_eps": -1e-6}), F, "rms_norm_eps"),
        ("llama", json!({"rms_norm_eps": null}), F, "rms_norm_eps"),
        ("llama", json!({"tie_word_embeddings": "yes"}), F, "tie_word_embeddings"),
        ("mistral", json!({"sliding_window": 0}), F, "sliding_window"),
        ("mistral", json!({"layer_types": ["full_attention", "full_attention", "full_attention"]}), U, "layer_types"),
        ("qwen3", json!({"layer_types": ["full_attention"]}), F, "layer_types"),
        ("qwen3", json!({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}), U, "layer_types"),
        ("qwen3", json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}), F, "layer_types"),
    ] {
        let e = changed(name, changes.clone()).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (code, Some(field)), "{changes}: {e}");
    }
}

#[test]
fn positions_that_llama3_was_scaled_from_are_stated_once() {
    let stated = |outer: Value| {
        let parameters = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        changed("llama", json!({"rope_parameters": parameters, "original_max_position_embeddings": outer}))
    };
    stated(json!(64)).unwrap();
    stated(json!("absent")).unwrap();
    // Releases of transformers differ in which of two they take.
    assert!(stated(json!(128)).unwrap_err().to_string().contains("original_max_position_embeddings"));
}

#[test]
fn yarn_and_longrope_take_what_follows_where_nothing_is_stated() {
    let rope = |parameters: Value| changed("llama", json!({"rope_parameters": parameters})).unwrap().ropes.remove(0);
    let yarn = |more: Value| {
        let mut all = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rope = rope(all);
        let RopeScaling::Yarn(yarn) = rope.scaling else { panic!("{rope}") };
        (yarn, rope.attention_factor)
    };
    let plain = Yarn { factor: 4.0, original_max_positions: 64, beta_fast: 32.0, beta_slow: 1.0, truncate: true };
    let by_factor = 0.1 * 4f64.ln() + 1.0;
    for (more, expected, attention_factor) in [
        (json!({}), plain, by_factor),
        (json!({"type": "yarn", "beta_fast": null, "beta_slow": 0}), plain, by_factor),
        (json!({"factor": null}), Yarn { factor: 8.0, ..plain }, 0.1 * 8f64.ln() + 1.0),
        (json!({"factor": 1}), Yarn { factor: 1.0, ..plain }, 1.0),
        (json!({"attention_factor": 0.75}), plain, 0.75),
        (json!({"attention_factor": 2, "mscale": 3, "mscale_all_dim": 1}), plain, 2.0),
        (json!({"mscale": 2.0}), plain, by_factor),
        (json!({"mscale": 2.0, "mscale_all_dim": 0}), plain, by_factor),
        (json!({"mscale": 2.0, "mscale_all_dim": 0.5}), plain, (0.2 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0)),
        (json!({"beta_fast": 16, "beta_slow": 2}), Yarn { beta_fast: 16.0, beta_slow: 2.0, ..plain }, by_factor),
        (json!({"truncate": false}), Yarn { truncate: false, ..plain }, by_factor),
        (json!({"original_max_position_embeddings": null}), Yarn { original_max_positions: 512, ..plain }, by_factor),
    ] {
        assert_eq!(yarn(more.clone()), (expected, attention_factor), "{more}");
    }

    let divisors = |x: f32| vec![x; 12];
    let longrope = |more: Value| {
        let mut all = json!({"type": "longrope", "short_factor": divisors(1.5), "long_factor": divisors(4.0),
            "original_max_position_embeddings": 64});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rope(all)
    };
    let scaling = RopeScaling::LongRope { short: divisors(1.5), long: divisors(4.0), original_max_positions: 64 };
    for (more, attention_factor) in [
        (json!({}), (1.0 + 8f64.ln() / 64f64.ln()).sqrt()),
        (json!({"factor": 2}), (1.0 + 2f64.ln() / 64f64.ln()).sqrt()),
        (json!({"factor": 0.5}), 1.0),
        (json!({"attention_factor": 1.25, "factor": null}), 1.25),
    ] {
        let expected = Rope { theta: 5000.0, scaling: scaling.clone(), attention_factor };
        assert_eq!(longrope(more.clone()), expected, "{more}");
    }
    let dynamic = rope(json!({"rope_type": "dynamic", "factor": 2.0}));
    assert_eq!(dynamic.scaling, RopeScaling::Dynamic { factor: 2.0, max_positions: 512 });
}
