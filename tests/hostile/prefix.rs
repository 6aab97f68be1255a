//! Virtual tokens: PEFT's configuration and tensor, and GGUF. Two layers with two heads of four, three tokens.

use ptplus::error::{Code, Result};

use crate::case::{Case, accepted, json_with, large, refused};
use crate::gguf_file::Raw;
use crate::lora::{read_path, tensors, write_folder};

pub use crate::lora::read_gguf;

/// A folder with this configuration and a right tensor.
pub fn read_config(config: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    write_folder(dir.path(), &config, &embeddings(&[3, 32]));
    read_path(dir.path())
}

/// A folder with these tensors and a right configuration.
pub fn read_weights(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    write_folder(dir.path(), with("", None).as_bytes(), &weights);
    read_path(dir.path())
}

fn embeddings(shape: &[usize]) -> Vec<u8> {
    tensors(&[("prompt_embeddings".into(), shape.to_vec())])
}

const RIGHT: [(&str, &str); 7] = [
    ("peft_type", r#""PREFIX_TUNING""#),
    ("task_type", r#""CAUSAL_LM""#),
    ("num_virtual_tokens", "3"),
    ("num_layers", "2"),
    ("num_attention_heads", "2"),
    ("token_dim", "8"),
    ("num_transformer_submodules", "1"),
];

fn with(key: &str, value: Option<&str>) -> String {
    json_with(&RIGHT, key, value)
}

pub fn config_cases() -> Vec<Case> {
    use Code::*;
    let mut cases = vec![
        accepted("a right configuration", with("", None)),
        accepted("no number of tokens", with("num_virtual_tokens", None)),
        accepted("an unknown key", with("x", Some("[1]"))),
        // 4 * 4 elements are 2 * 8: other heads of the same tensor.
        accepted("heads that divide otherwise", with("num_attention_heads", Some("4"))),
        refused("no kind", with("peft_type", None), ConventionOpen),
        refused("kind 7", with("peft_type", Some("7")), ConfigField),
        refused("4 tokens", with("num_virtual_tokens", Some("4")), AdapterShape),
        refused("3 layers", with("num_layers", Some("3")), AdapterShape),
        refused("2^32 layers", with("num_layers", Some("4294967296")), AdapterShape),
        refused("heads that do not divide", with("num_attention_heads", Some("3")), ConfigField),
        refused("another width", with("token_dim", Some("4")), AdapterShape),
        refused("embeddings of another width", with("peft_type", Some(r#""PROMPT_TUNING""#)), AdapterShape),
    ];
    for key in ["num_layers", "num_attention_heads", "token_dim"] {
        cases.push(refused(format!("no {key}"), with(key, None), ConventionOpen));
        cases.push(refused(format!("{key} null"), with(key, Some("null")), ConventionOpen));
    }
    for key in ["num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules"] {
        for value in ["0", "-1", "2.5", r#""2""#, "NaN", "[2]", "true", "1e30", "18446744073709551616"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
    }
    for kind in ["MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"] {
        cases.push(refused(kind, with("peft_type", Some(&format!("{kind:?}"))), ConfigUnsupported));
    }
    for (key, value) in [
        ("num_transformer_submodules", "2"),
        ("task_type", r#""SEQ_2_SEQ_LM""#),
        ("modules_to_save", r#"["lm_head"]"#),
        ("modules_to_save", r#""lm_head""#),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigUnsupported));
    }
    for (key, value) in
        [("task_type", "7"), ("inference_mode", "1"), ("prefix_projection", r#""yes""#), ("revision", "{}")]
    {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
    }
    cases
}

pub fn weight_cases() -> Vec<Case> {
    use Code::*;
    let beside = |name: &str, shape: &[usize]| {
        tensors(&[("prompt_embeddings".into(), vec![3, 32]), (name.into(), shape.to_vec())])
    };
    let only = |name: &str, shape: &[usize]| tensors(&[(name.into(), shape.to_vec())]);
    vec![
        accepted("a right tensor", embeddings(&[3, 32])),
        accepted("a wrapper's name", only("module.prompt_embeddings", &[3, 32])),
        accepted("the state of a model", only("prompt_encoder.default.embedding.weight", &[3, 32])),
        accepted("beside weights", beside("base_model.model.model.norm.weight", &[8])),
        refused("none", tensors(&[]), AdapterMissing),
        refused("2 rows", embeddings(&[2, 32]), AdapterShape),
        refused("no rows", embeddings(&[0, 32]), AdapterShape),
        refused("rows of 31", embeddings(&[3, 31]), AdapterShape),
        refused("rows of two layers more", embeddings(&[3, 64]), AdapterShape),
        refused("empty rows", embeddings(&[3, 0]), AdapterShape),
        refused("a vector", embeddings(&[96]), AdapterShape),
        refused("three dimensions", embeddings(&[3, 2, 16]), AdapterShape),
        refused("a scalar", embeddings(&[]), AdapterShape),
        refused("two of them", beside("prompt_encoder.default.embedding.weight", &[3, 32]), AdapterDuplicate),
        refused("a network", beside("prompt_encoder.default.transform.0.weight", &[8, 8]), ConfigUnsupported),
        refused("factors of tasks", beside("prefix_task_cols", &[1, 3]), ConfigUnsupported),
        refused("something else", beside("x.lora_A.weight", &[3, 8]), AdapterLeftOver),
        large("70,000 tokens", || embeddings(&[70_000, 32]), Some(AdapterShape)),
    ]
}

/// Keys of a right file; `qwen2` reorders nothing, `llama` does.
fn keys(architecture: &str, order: &str) -> Raw {
    let raw = Raw::empty().str("general.architecture", architecture).str("general.type", "adapter");
    let raw = raw.str("adapter.type", "virtual_tokens").u32("adapter.virtual_tokens.version", 1);
    let raw = raw.str("adapter.virtual_tokens.method", "PREFIX_TUNING").u32("adapter.virtual_tokens.token_count", 3);
    let raw = raw.u32("adapter.virtual_tokens.block_count", 2).u32("adapter.virtual_tokens.head_count_kv", 2);
    raw.u32("adapter.virtual_tokens.key_length", 4).str("adapter.virtual_tokens.key_order", order)
}

const NAMES: [&str; 4] = [
    "blk.0.attn_prefix_key.weight",
    "blk.0.attn_prefix_value.weight",
    "blk.1.attn_prefix_key.weight",
    "blk.1.attn_prefix_value.weight",
];

fn filled(raw: Raw) -> Raw {
    NAMES.iter().fold(raw, |raw, name| raw.f32s(name, &[4, 3, 2], &[0.5; 24]))
}

fn soft(method: &str, n_tokens: u64) -> Vec<u8> {
    let raw = Raw::empty().str("general.architecture", "qwen3").str("general.type", "adapter");
    let raw = raw.str("adapter.type", "virtual_tokens").u32("adapter.virtual_tokens.version", 1);
    let raw = raw.str("adapter.virtual_tokens.method", method);
    let raw = raw.u32("adapter.virtual_tokens.token_count", n_tokens as u32);
    let raw = raw.u32("adapter.virtual_tokens.embedding_length", 8);
    raw.f32s("virtual_token_embd.weight", &[8, n_tokens], &vec![0.25; 8 * n_tokens as usize]).build()
}

/// Right files of every method and order.
pub fn right_files() -> Vec<Vec<u8>> {
    let prefixes = [("qwen2", "neox"), ("llama", "norm"), ("qwen3", "neox"), ("gemma", "neox")];
    let mut all: Vec<_> = prefixes.into_iter().map(|(a, order)| filled(keys(a, order)).build()).collect();
    all.extend((1..4).flat_map(|n| [soft("PROMPT_TUNING", n), soft("P_TUNING", n)]));
    all
}

pub fn gguf_cases() -> Vec<Case> {
    use Code::*;
    let qwen2 = || keys("qwen2", "neox");
    let without = |name: &str| {
        NAMES.iter().filter(|n| **n != name).fold(qwen2(), |raw, n| raw.f32s(n, &[4, 3, 2], &[0.5; 24])).build()
    };
    let mut cases: Vec<Case> =
        right_files().into_iter().enumerate().map(|(i, f)| accepted(format!("right file {i}"), f)).collect();
    cases.extend(NAMES.map(|name| refused(format!("no {name}"), without(name), AdapterMissing)));
    cases.extend([
        refused("no tensors", qwen2().build(), AdapterMissing),
        refused("the other order", filled(keys("llama", "neox")).build(), AdapterMismatch),
        refused("no order", filled(keys("llama", "x")).build(), ConfigUnsupported),
        refused("an unknown architecture", filled(keys("mamba", "neox")).build(), BaseArchitecture),
        refused(
            "a third layer",
            filled(qwen2()).f32s("blk.2.attn_prefix_key.weight", &[4, 3, 2], &[0.5; 24]).build(),
            AdapterMismatch,
        ),
        refused(
            "one of two names",
            filled(qwen2()).f32s("virtual_token_embd.weight", &[4, 3], &[0.5; 12]).build(),
            AdapterLeftOver,
        ),
        refused(
            "a memory",
            filled(qwen2()).f32s("blk.0.attn_prefix_memory.weight", &[4], &[0.5; 4]).build(),
            AdapterLeftOver,
        ),
        refused(
            "embeddings for a prefix",
            {
                let raw = qwen2();
                raw.f32s("virtual_token_embd.weight", &[4, 3], &[0.5; 12]).build()
            },
            AdapterLeftOver,
        ),
        refused(
            "heads of another length",
            NAMES.iter().fold(qwen2(), |raw, n| raw.f32s(n, &[8, 3, 2], &[0.5; 48])).build(),
            AdapterShape,
        ),
        refused(
            "NaN",
            NAMES.iter().fold(qwen2(), |raw, n| raw.f32s(n, &[4, 3, 2], &[f32::NAN; 24])).build(),
            NonFinite,
        ),
        refused("another method", soft("CPT", 1), ConfigUnsupported),
        refused("no method", soft("", 1), ConfigUnsupported),
    ]);
    cases
}
