use std::sync::Arc;

use super::*;
use crate::base::{Rope, RopeScaling, Yarn};
use crate::format::gguf::{Array, Value};
use crate::tensor::DType;

fn keys(architecture: &str) -> Metadata {
    let mut m = Metadata::new();
    m.insert("general.architecture", Value::String(architecture.into()));
    for (name, n) in [
        ("block_count", 2),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        m.insert(format!("{architecture}.{name}"), Value::U32(n));
    }
    m.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
    m
}

fn tensor(name: &str, shape: &[usize]) -> StoredTensor {
    StoredTensor {
        name: name.into(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        file: Arc::from(Path::new("x.gguf")),
        file_offset: 0,
        bytes: 2f32.to_le_bytes().repeat(shape.iter().product()).into(),
        storage: None,
    }
}

fn parsed(metadata: &Metadata, names: &[&str]) -> Result<BaseConfig> {
    let mut tensors = vec![tensor("token_embd.weight", &[50, 64])];
    tensors.extend(names.iter().map(|n| tensor(n, &[8])));
    parse(Path::new("x.gguf"), metadata, |name| tensors.iter().find(|t| t.name == name))
}

fn changed(changes: &[(&str, Option<Value>)], names: &[&str]) -> Result<BaseConfig> {
    let mut m = keys("llama");
    for (name, value) in changes {
        match value {
            Some(value) => m.insert(*name, value.clone()),
            None => drop(m.remove(name)),
        }
    }
    parsed(&m, names)
}

#[test]
fn absent_keys_take_llama_cpps_defaults() {
    let c = changed(&[("llama.attention.head_count_kv", None)], &[]).unwrap();
    assert_eq!((c.head_dim, c.n_kv_heads, c.vocab_size), (16, 4, 50));
    assert_eq!(c.ropes, [Rope::plain(10_000.0)]);
    assert_eq!((c.tied_embeddings, c.windows().count()), (true, 0));
    assert!(!changed(&[], &["output.weight"]).unwrap().tied_embeddings);
    assert_eq!(changed(&[("llama.attention.key_length", Some(Value::U32(32)))], &[]).unwrap().head_dim, 32);
}

#[test]
fn rope_scaling_is_read_as_llama_cpp_reads_it() {
    let f = |x: f32| Some(Value::F32(x));
    let s = |x: &str| Some(Value::String(x.into()));
    for (changes, names, expected) in [
        (vec![("llama.rope.scaling.factor", f(4.0))], vec![], RopeScaling::Linear { factor: 4.0 }),
        (vec![("llama.rope.scale_linear", f(2.0))], vec![], RopeScaling::Linear { factor: 2.0 }),
        (
            vec![("llama.rope.scaling.type", s("none")), ("llama.rope.scaling.factor", f(4.0))],
            vec![],
            RopeScaling::None,
        ),
        (vec![("llama.rope.scaling.factor", f(0.0))], vec![], RopeScaling::None),
        (vec![], vec!["rope_freqs.weight"], RopeScaling::Divisors(vec![2.0; 8])),
        (vec![("llama.rope.scaling.factor", f(4.0))], vec!["rope_freqs.weight"], RopeScaling::Divisors(vec![8.0; 8])),
    ] {
        assert_eq!(changed(&changes, &names).unwrap().ropes[0].scaling, expected, "{changes:?}");
    }
}

#[test]
fn counts_per_layer_are_accepted_when_they_agree() {
    let list = |n: &[u32]| Some(Value::Array(Array::from_u32(n)));
    let key = "llama.attention.head_count_kv";
    assert_eq!(changed(&[(key, list(&[2, 2]))], &[]).unwrap().n_kv_heads, 2);
    assert_eq!(changed(&[(key, list(&[2, 4]))], &[]).unwrap_err().code(), Code::ConfigUnsupported);
    assert_eq!(changed(&[(key, list(&[2]))], &[]).unwrap_err().code(), Code::ConfigField);
    assert_eq!(changed(&[(key, list(&[]))], &[]).unwrap_err().code(), Code::ConfigField);
}

#[test]
fn what_is_wrong_or_not_computed_is_refused_with_its_key() {
    use Code::{BaseArchitecture as A, ConfigField as F, ConfigUnsupported as U, GgufKey as K};
    let n = |n: u32| Some(Value::U32(n));
    let f = |x: f32| Some(Value::F32(x));
    let s = |x: &str| Some(Value::String(x.into()));
    for (key, value, code) in [
        ("general.architecture", s("llama4"), A),
        ("general.architecture", None, A),
        ("general.type", s("adapter"), A),
        ("llama.block_count", None, K),
        ("llama.block_count", s("2"), K),
        ("llama.block_count", n(0), F),
        ("llama.block_count", n(u32::MAX), F),
        ("llama.attention.head_count_kv", n(3), F),
        ("llama.attention.key_length", n(15), F),
        ("llama.attention.value_length", n(8), U),
        ("llama.rope.dimension_count", n(8), U),
        ("llama.attention.layer_norm_rms_epsilon", None, K),
        ("llama.attention.layer_norm_rms_epsilon", f(f32::NAN), F),
        ("llama.rope.freq_base", f(0.0), F),
        ("llama.rope.scaling.type", s("su"), U),
        ("llama.rope.scaling.factor", f(-1.0), F),
        ("llama.vocab_size", n(51), F),
        ("llama.logit_scale", f(0.5), U),
    ] {
        let e = changed(&[(key, value.clone())], &[]).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (code, Some(key)), "{value:?}: {e}");
    }
    let e = parsed(&keys("qwen2"), &["rope_freqs.weight"]).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (U, Some("rope_freqs.weight")));
}

#[test]
fn yarn_is_read_with_what_llama_cpp_computes_whatever_other_keys_say() {
    let f = |x: f32| Some(Value::F32(x));
    let yarn = |more: &[(&'static str, Option<Value>)]| {
        let mut changes = vec![
            ("llama.rope.scaling.type", Some(Value::String("yarn".into()))),
            ("llama.rope.scaling.factor", f(4.0)),
            ("llama.rope.scaling.original_context_length", Some(Value::U32(16))),
        ];
        changes.extend_from_slice(more);
        changed(&changes, &[]).map(|mut c| c.ropes.remove(0))
    };
    let expected = Yarn { factor: 4.0, original_max_positions: 16, beta_fast: 32.0, beta_slow: 1.0, truncate: true };
    let by_factor = 0.1 * 4f64.ln() + 1.0;
    let rope = yarn(&[]).unwrap();
    assert_eq!((rope.scaling, rope.attention_factor), (RopeScaling::Yarn(expected), by_factor));
    assert_eq!(yarn(&[("llama.rope.scaling.attn_factor", f(0.5))]).unwrap().attention_factor, 0.5 * by_factor);
    let smaller = yarn(&[("llama.rope.scaling.factor", f(0.5))]).unwrap();
    assert_eq!(smaller.attention_factor, 1.0, "llama.cpp has no such factor below 1");
    // The original context is the context where nothing states it.
    let of_context =
        yarn(&[("llama.rope.scaling.original_context_length", None), ("llama.context_length", Some(Value::U32(64)))]);
    assert_eq!(of_context.unwrap().scaling, RopeScaling::Yarn(Yarn { original_max_positions: 64, ..expected }));
    let neither = yarn(&[("llama.rope.scaling.original_context_length", None)]).unwrap_err();
    assert_eq!(neither.field_name(), Some("llama.rope.scaling.original_context_length"));
    // Keys that llama.cpp reads in other architectures only.
    for (key, same, other) in [
        ("llama.rope.scaling.yarn_beta_fast", 32.0, 16.0),
        ("llama.rope.scaling.yarn_beta_slow", 1.0, 2.0),
        ("llama.rope.scaling.yarn_ext_factor", 1.0, 0.5),
        ("llama.rope.scaling.yarn_attn_factor", by_factor as f32, 1.0),
    ] {
        assert_eq!(yarn(&[(key, f(same))]).unwrap(), yarn(&[]).unwrap(), "{key}");
        let e = yarn(&[(key, f(other))]).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some(key)), "{e}");
    }
    let e = yarn(&[("llama.rope.freq_base", f(1.0))]).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::ConfigField, Some("llama.rope.freq_base")));
}

#[test]
fn divisors_for_long_and_short_sequences_are_read_where_llama_cpp_reads_them() {
    let (long, short) = ("rope_factors_long.weight", "rope_factors_short.weight");
    let of = |kind: &str, names: &[&str]| {
        let text = Some(Value::String(kind.into()));
        let changes =
            [("llama.rope.scaling.type", text), ("llama.rope.scaling.original_context_length", Some(Value::U32(16)))];
        changed(&changes, names).map(|mut c| c.ropes.remove(0).scaling)
    };
    let expected = RopeScaling::LongRope { short: vec![2.0; 8], long: vec![2.0; 8], original_max_positions: 16 };
    assert_eq!(of("longrope", &[long, short]).unwrap(), expected);
    for (kind, names, code, field) in [
        ("linear", &[long, short][..], Code::ConfigUnsupported, long),
        ("longrope", &["rope_freqs.weight"], Code::ConfigUnsupported, "rope_freqs.weight"),
        ("longrope", &[long], Code::BaseTensor, short),
        ("longrope", &[short], Code::BaseTensor, long),
        ("yarn", &["rope_freqs.weight"], Code::ConfigUnsupported, "llama.rope.scaling.type"),
    ] {
        let e = of(kind, names).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (code, Some(field)), "{kind} {names:?}: {e}");
    }
}
