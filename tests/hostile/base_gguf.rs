//! Base models in GGUF: what the keys say and the tensors are. One block, two heads of length 2, a vocabulary of 3.

use ptplus::base::BaseModel;
use ptplus::error::{Code, Result};

use crate::case::{Case, accepted, refused};
use crate::gguf_file::{Raw, array, string};

pub fn read(file: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("base.gguf");
    std::fs::write(&path, file).expect("a file");
    BaseModel::open(&path).map(drop)
}

type Key = (&'static str, u32, Vec<u8>);

fn keys() -> Vec<Key> {
    let u32 = |key, v: u32| (key, 4, v.to_le_bytes().to_vec());
    vec![
        ("general.architecture", 8, string(b"llama")),
        u32("llama.block_count", 1),
        u32("llama.embedding_length", 4),
        u32("llama.feed_forward_length", 6),
        u32("llama.attention.head_count", 2),
        u32("llama.attention.head_count_kv", 1),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes().to_vec()),
    ]
}

/// The right tensors: names and `ne`.
fn tensors() -> Vec<(&'static str, Vec<u64>)> {
    vec![
        ("token_embd.weight", vec![4, 3]),
        ("output_norm.weight", vec![4]),
        ("blk.0.attn_norm.weight", vec![4]),
        ("blk.0.attn_q.weight", vec![4, 4]),
        ("blk.0.attn_k.weight", vec![4, 2]),
        ("blk.0.attn_v.weight", vec![4, 2]),
        ("blk.0.attn_output.weight", vec![4, 4]),
        ("blk.0.ffn_norm.weight", vec![4]),
        ("blk.0.ffn_gate.weight", vec![4, 6]),
        ("blk.0.ffn_up.weight", vec![4, 6]),
        ("blk.0.ffn_down.weight", vec![6, 4]),
    ]
}

fn file(keys: Vec<Key>, tensors: Vec<(&str, Vec<u64>)>) -> Vec<u8> {
    let raw = keys.iter().fold(Raw::empty(), |raw, (key, t, v)| raw.key(key.as_bytes(), *t, v));
    let raw = tensors.iter().fold(raw, |raw, (name, ne)| {
        let n = ne.iter().product::<u64>() as usize;
        raw.f32s(name, ne, &vec![0.5; n])
    });
    raw.build()
}

pub fn right_file() -> Vec<u8> {
    with("", None)
}

/// The right file with `key` as this value; `None` leaves it out.
fn with(key: &'static str, value: Option<(u32, Vec<u8>)>) -> Vec<u8> {
    let mut all = keys();
    all.retain(|(k, ..)| *k != key);
    all.extend(value.map(|(t, v)| (key, t, v)));
    file(all, tensors())
}

fn with_tensor(name: &'static str, ne: Option<Vec<u64>>) -> Vec<u8> {
    let mut all = tensors();
    all.retain(|(n, _)| *n != name);
    all.extend(ne.map(|ne| (name, ne)));
    file(keys(), all)
}

fn u32(v: u32) -> Option<(u32, Vec<u8>)> {
    Some((4, v.to_le_bytes().to_vec()))
}

fn f32(v: f32) -> Option<(u32, Vec<u8>)> {
    Some((6, v.to_le_bytes().to_vec()))
}

fn text(v: &str) -> Option<(u32, Vec<u8>)> {
    Some((8, string(v.as_bytes())))
}

pub fn cases() -> Vec<Case> {
    use Code::*;
    let mut cases = vec![
        accepted("a right base", with("", None)),
        accepted("general.type model", with("general.type", text("model"))),
        accepted("counts as u64", with("llama.block_count", Some((10, 1u64.to_le_bytes().to_vec())))),
        accepted("counts per layer", with("llama.attention.head_count_kv", Some((9, array(4, 1, &[1, 0, 0, 0]))))),
        accepted(
            "a vocabulary of tokens",
            with("tokenizer.ggml.tokens", Some((9, array(8, 3, &string("é".as_bytes()).repeat(3))))),
        ),
        refused("no architecture", with("general.architecture", None), BaseArchitecture),
        refused("an unknown architecture", with("general.architecture", text("evil")), BaseArchitecture),
        refused(
            "an architecture with a terminal escape",
            with("general.architecture", text("\u{1b}[31m")),
            BaseArchitecture,
        ),
        refused(
            "an architecture of 1 MB",
            with("general.architecture", text(&"\u{1}".repeat(1 << 20))),
            BaseArchitecture,
        ),
        refused("an architecture as number", with("general.architecture", u32(1)), GgufKey),
        refused("general.type adapter", with("general.type", text("adapter")), BaseArchitecture),
        refused("general.type as number", with("general.type", u32(1)), GgufKey),
        refused("general.name as number", with("general.name", u32(1)), GgufKey),
        refused(
            "counts per layer, none",
            with("llama.attention.head_count_kv", Some((9, array(4, 0, &[])))),
            ConfigField,
        ),
        refused(
            "counts per layer, too many",
            with("llama.attention.head_count_kv", Some((9, array(4, 2, &[1; 8])))),
            ConfigField,
        ),
        refused(
            "counts per layer as strings",
            with("llama.attention.head_count_kv", Some((9, array(8, 1, &string(b"1"))))),
            GgufKey,
        ),
        refused(
            "a million counts per layer",
            with("llama.attention.head_count_kv", Some((9, array(0, 1 << 20, &vec![1; 1 << 20])))),
            GgufKey,
        ),
        refused("split.count 2 under another name", with("split.count", u32(2)), GgufSplit),
        refused("a vocabulary unlike the embedding", with("llama.vocab_size", u32(4)), ConfigField),
        refused("KV heads that do not divide the heads", with("llama.attention.head_count_kv", u32(3)), ConfigField),
        refused("KV heads 0", with("llama.attention.head_count_kv", u32(0)), ConfigField),
        refused("an odd head length", with("llama.attention.key_length", u32(3)), ConfigField),
        refused("a value length of its own", with("llama.attention.value_length", u32(4)), ConfigUnsupported),
        refused("partial rotation", with("llama.rope.dimension_count", u32(1)), ConfigUnsupported),
        refused("rope scaling yarn", with("llama.rope.scaling.type", text("yarn")), ConfigUnsupported),
        refused("rope scaling as number", with("llama.rope.scaling.type", u32(1)), GgufKey),
        refused("a mixture of experts", with("llama.expert_count", u32(8)), ConfigUnsupported),
        refused("a pattern of windows", with("llama.attention.sliding_window_pattern", u32(2)), ConfigUnsupported),
        refused("soft-capping", with("llama.attn_logit_softcapping", f32(30.0)), ConfigUnsupported),
        refused("a logit scale of NaN", with("llama.logit_scale", f32(f32::NAN)), ConfigField),
    ];
    for key in
        ["llama.block_count", "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count"]
    {
        cases.push(refused(format!("{key} 0"), with(key, u32(0)), ConfigField));
        cases.push(refused(format!("{key} 2^32-1"), with(key, u32(u32::MAX)), ConfigField));
        cases.push(refused(format!("{key} 2^63"), with(key, Some((10, (1u64 << 63).to_le_bytes().to_vec()))), GgufKey));
        cases.push(refused(format!("{key} -1"), with(key, Some((5, vec![255; 4]))), GgufKey));
        cases.push(refused(format!("{key} as f32"), with(key, f32(1.0)), GgufKey));
        cases.push(refused(format!("{key} as string"), with(key, text("1")), GgufKey));
        cases.push(refused(format!("{key} left out"), with(key, None), GgufKey));
    }
    let eps = "llama.attention.layer_norm_rms_epsilon";
    for (key, value, code) in [
        (eps, f32(f32::NAN), ConfigField),
        (eps, f32(f32::INFINITY), ConfigField),
        (eps, f32(-1e-5), ConfigField),
        (eps, f32(1.0), ConfigField),
        ("llama.rope.freq_base", Some((12, 1e-300f64.to_le_bytes().to_vec())), GgufKey),
        (eps, u32(0), GgufKey),
        (eps, None, GgufKey),
        (eps, Some((12, 1e300f64.to_le_bytes().to_vec())), GgufKey),
        ("llama.rope.freq_base", f32(0.0), ConfigField),
        ("llama.rope.freq_base", f32(-1.0), ConfigField),
        ("llama.rope.freq_base", f32(f32::NAN), ConfigField),
        ("llama.rope.freq_base", f32(f32::INFINITY), ConfigField),
        ("llama.rope.freq_base", text("10000"), GgufKey),
        ("llama.rope.scaling.factor", f32(-1.0), ConfigField),
        ("llama.rope.scaling.factor", f32(f32::NAN), ConfigField),
    ] {
        let shown = value.as_ref().map_or("left out".into(), |(t, v)| format!("type {t} {v:?}"));
        cases.push(refused(format!("{key} {shown}"), with(key, value), code));
    }
    for (name, ne) in tensors() {
        cases.push(refused(format!("{name} left out"), with_tensor(name, None), BaseTensor));
        let mut wrong = ne.clone();
        wrong[0] += 1;
        // A vocabulary is what the embedding says; a wider row does not fit the hidden size.
        cases.push(refused(format!("{name} wider"), with_tensor(name, Some(wrong)), BaseTensor));
        cases.push(refused(
            format!("{name} with an axis more"),
            with_tensor(name, Some([ne, vec![2]].concat())),
            BaseTensor,
        ));
    }
    cases.push(refused(
        "a tensor that no llama has",
        with_tensor("blk.0.evil.weight", Some(vec![4])),
        ConfigUnsupported,
    ));
    cases.push(refused(
        "a block beyond the last",
        with_tensor("blk.1.attn_q.weight", Some(vec![4, 4])),
        ConfigUnsupported,
    ));
    cases.push(crate::case::large(
        "2,000 small blocks and 200,000 tensors of nobody",
        crowded,
        Some(ConfigUnsupported),
    ));
    cases
}

/// A search among known names for each unknown one would take their product.
fn crowded() -> Vec<u8> {
    let mut all = keys();
    all.retain(|(k, ..)| *k != "llama.block_count");
    all.push(("llama.block_count", 4, 2000u32.to_le_bytes().to_vec()));
    let raw = all.iter().fold(Raw::empty(), |raw, (key, t, v)| raw.key(key.as_bytes(), *t, v));
    let mut raw = Raw { alignment: 8, ..raw.u32("general.alignment", 8) };
    for (name, ne) in tensors() {
        let n = ne.iter().product::<u64>() as usize;
        for block in 0..if name.starts_with("blk.") { 2000 } else { 1 } {
            raw = raw.f32s(&name.replacen("blk.0.", &format!("blk.{block}."), 1), &ne, &vec![0.5; n]);
        }
    }
    for i in 0..200_000 {
        raw = raw.f32s(&format!("x{i}"), &[0], &[]);
    }
    raw.build()
}
