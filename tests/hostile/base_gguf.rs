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
        refused(
            "a vocabulary of fewer tokens than rows",
            with("tokenizer.ggml.tokens", Some((9, array(8, 2, &string(b"a").repeat(2))))),
            TokenizerInvalid,
        ),
        refused(
            "a vocabulary of more tokens than rows",
            with("tokenizer.ggml.tokens", Some((9, array(8, 4, &string(b"a").repeat(4))))),
            TokenizerInvalid,
        ),
        refused("tokens as a number", with("tokenizer.ggml.tokens", u32(3)), GgufKey),
        accepted("no vocabulary", with("tokenizer.ggml.model", text("no_vocab"))),
        refused("a kind of vocabulary as a number", with("tokenizer.ggml.model", u32(1)), GgufKey),
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
            "counts per layer, none, in no block",
            file(
                keys()
                    .into_iter()
                    .map(|(key, t, v)| match key {
                        "llama.block_count" => (key, t, vec![0; 4]),
                        "llama.attention.head_count" => (key, 9, array(4, 0, &[])),
                        _ => (key, t, v),
                    })
                    .collect(),
                tensors(),
            ),
            ConfigField,
        ),
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
        refused("an unknown rope scaling", with("llama.rope.scaling.type", text("su")), ConfigUnsupported),
        refused("yarn without an original context", with("llama.rope.scaling.type", text("yarn")), GgufKey),
        refused("rope scaling as number", with("llama.rope.scaling.type", u32(1)), GgufKey),
        refused("experts of which none is used", with("llama.expert_count", u32(8)), ConfigField),
        refused("more experts than there are", with("llama.expert_count", u32(u32::MAX)), ConfigField),
        refused("experts used of none", with("llama.expert_used_count", u32(2)), ConfigUnsupported),
        refused("groups of no experts", with("llama.expert_group_count", u32(2)), ConfigUnsupported),
        refused("a block that predicts", with("llama.nextn_predict_layers", u32(1)), ConfigUnsupported),
        accepted("no block that predicts", with("llama.nextn_predict_layers", u32(0))),
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
    cases.extend(positions());
    cases.extend(blocks());
    cases.extend(types());
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
        "2,000 small blocks and 130,000 tensors of nobody",
        crowded,
        Some(ConfigUnsupported),
    ));
    cases
}

/// What RoPE is computed from, and how far.
fn positions() -> Vec<Case> {
    use Code::*;
    let factor = |v| with("llama.rope.scaling.factor", f32(v));
    let both = |older: f32| {
        let mut all = keys();
        all.push(("llama.rope.scaling.factor", 6, 2f32.to_le_bytes().to_vec()));
        all.push(("llama.rope.scale_linear", 6, older.to_le_bytes().to_vec()));
        file(all, tensors())
    };
    let divided_by = |x: f32| {
        let raw = keys().iter().fold(Raw::empty(), |raw, (key, t, v)| raw.key(key.as_bytes(), *t, v));
        let raw = tensors()
            .iter()
            .fold(raw, |raw, (name, ne)| raw.f32s(name, ne, &vec![0.5; ne.iter().product::<u64>() as usize]));
        raw.f32s("rope_freqs.weight", &[1], &[x])
    };
    let attention = |v| with("llama.rope.scaling.attn_factor", f32(v));
    vec![
        accepted("a factor on rotated queries of 1", attention(1.0)),
        refused("a factor on rotated queries of 0", attention(0.0), ConfigField),
        refused("a negative factor on rotated queries", attention(-2.0), ConfigField),
        accepted("a factor on rotated queries of 2", attention(2.0)),
        accepted("a scaling factor of 0", factor(0.0)),
        accepted("a scaling factor of 2", factor(2.0)),
        refused("a subnormal scaling factor", factor(1e-44), ConfigField),
        refused("a subnormal frequency base", with("llama.rope.freq_base", f32(1e-44)), ConfigField),
        refused("a negative old scaling factor", with("llama.rope.scale_linear", f32(-4.0)), ConfigField),
        accepted("two scaling factors that agree", both(2.0)),
        refused("two scaling factors that differ", both(4.0), ConfigField),
        refused("two scaling factors, one none", both(0.0), ConfigField),
        accepted("a context of 1", with("llama.context_length", u32(1))),
        refused("a context of 0", with("llama.context_length", u32(0)), ConfigField),
        accepted("divisors of RoPE", divided_by(8.0)),
        refused("divisors of RoPE of 0", divided_by(0.0), BaseTensor),
        refused("negative divisors of RoPE", divided_by(-1.0), BaseTensor),
        refused("subnormal divisors of RoPE", divided_by(1e-44), BaseTensor),
        refused("divisors of RoPE of NaN", divided_by(f32::NAN), BaseTensor),
        refused("divisors of RoPE of infinity", divided_by(f32::INFINITY), BaseTensor),
    ]
}

/// The right file, but a row of the embedding is a block of Q8_0, and the hidden size is 32.
fn with_blocks(key: &'static str, value: Option<(u32, Vec<u8>)>) -> Vec<u8> {
    let mut all = keys();
    all.retain(|(k, ..)| !k.ends_with("embedding_length"));
    all.extend([
        ("llama.embedding_length", 4, 32u32.to_le_bytes().to_vec()),
        ("llama.attention.key_length", 4, 2u32.to_le_bytes().to_vec()),
    ]);
    all.extend(value.map(|(t, v)| (key, t, v)));
    let raw = all.iter().fold(Raw::empty(), |raw, (key, t, v)| raw.key(key.as_bytes(), *t, v));
    let mut raw = raw.info(b"token_embd.weight", &[32, 3], 8, 0).data(128);
    for (name, ne) in &tensors()[1..] {
        // Heads are of length 2 and the inner state of 6; all else is the hidden size.
        let ne: Vec<u64> = match *name {
            "blk.0.attn_q.weight" => vec![32, 4],
            "blk.0.attn_k.weight" | "blk.0.attn_v.weight" => vec![32, 2],
            "blk.0.attn_output.weight" => vec![4, 32],
            "blk.0.ffn_down.weight" => vec![6, 32],
            "blk.0.ffn_gate.weight" | "blk.0.ffn_up.weight" => vec![32, 6],
            _ => vec![32; ne.len()],
        };
        raw = raw.f32s(name, &ne, &vec![0.5; ne.iter().product::<u64>() as usize]);
    }
    raw.build()
}

fn blocks() -> Vec<Case> {
    use Code::*;
    let version = "general.quantization_version";
    vec![
        accepted("blocks of version 2", with_blocks(version, u32(2))),
        accepted("blocks of a version that is not stated", with_blocks(version, None)),
        refused("blocks of version 1", with_blocks(version, u32(1)), ConfigUnsupported),
        refused("blocks of version 99", with_blocks(version, u32(99)), ConfigUnsupported),
        refused("a version of blocks as text", with_blocks(version, text("2")), GgufKey),
        refused("a version of blocks as text, without blocks", with(version, text("2")), GgufKey),
        accepted("a version of blocks without blocks", with(version, u32(1))),
        accepted("a type of file that does not fit", with("general.file_type", u32(7))),
        refused("a type of file as text", with("general.file_type", text("x")), GgufKey),
    ]
}

/// Tensors of types that such a weight has not: `t` is ggml's number of one whose elements take `size` bytes.
fn types() -> Vec<Case> {
    let of_type = |name: &str, t: u32, size: usize| {
        let raw = keys().iter().fold(Raw::empty(), |raw, (key, t, v)| raw.key(key.as_bytes(), *t, v));
        let raw = tensors()
            .iter()
            .filter(|(n, _)| *n != name)
            .fold(raw, |raw, (name, ne)| raw.f32s(name, ne, &vec![0.5; ne.iter().product::<u64>() as usize]));
        let ne = tensors().into_iter().find(|(n, _)| *n == name).expect("a tensor").1;
        let mut raw = raw.info(name.as_bytes(), &ne, t, 0);
        let offset = raw.data.len();
        let at = raw.infos.len() - 8;
        raw.infos[at..].copy_from_slice(&(offset as u64).to_le_bytes());
        raw.data.resize((offset + size * ne.iter().product::<u64>() as usize).next_multiple_of(32), 0);
        raw
    };
    let mut cases = Vec::new();
    for name in ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"] {
        for (label, t, size) in [("I8", 24, 1), ("I16", 25, 2), ("I32", 26, 4), ("I64", 27, 8)] {
            cases.push(refused(format!("{name} of {label}"), of_type(name, t, size), Code::ConfigUnsupported));
        }
        for (label, t, size) in [("F16", 1, 2), ("F64", 28, 8), ("BF16", 30, 2)] {
            cases.push(accepted(format!("{name} of {label}"), of_type(name, t, size)));
        }
    }
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
    for i in 0..130_000 {
        raw = raw.f32s(&format!("x{i}"), &[0], &[]);
    }
    raw.build()
}
