//! Adapters in GGUF: what the keys say and the tensors are. Layer 0 of 2, two heads, four features and values.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::import::{self, Options};
use ptplus::validate;

use crate::case::{self, Case, accepted, refused};
use crate::gguf_file::{Raw, array, string};

mod parts;

pub fn read(file: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("adapter.gguf");
    std::fs::write(&path, file).expect("a file");
    read_file(&path)
}

fn read_file(path: &Path) -> Result<()> {
    let imported = import::read(path, &Options::default(), None)?;
    validate::check(imported, None).map(drop).map_err(|rejected| rejected.into_error().file(path))
}

type Value = (u32, Vec<u8>);

fn u32(v: u32) -> Value {
    (4, v.to_le_bytes().to_vec())
}

fn f32(v: f32) -> Value {
    (6, v.to_le_bytes().to_vec())
}

fn text(v: &str) -> Value {
    (8, string(v.as_bytes()))
}

fn layers(v: &[u32]) -> Value {
    (9, array(4, v.len() as u64, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()))
}

/// `field` of the adapter, or a full key where there is a dot in it.
fn key(field: &str) -> String {
    if field.contains('.') { field.to_owned() } else { format!("adapter.prefix_tuning_plus.{field}") }
}

fn right() -> Vec<(&'static str, Value)> {
    vec![
        ("general.architecture", text("llama")),
        ("general.type", text("adapter")),
        ("adapter.type", text("prefix_tuning_plus")),
        ("version", u32(1)),
        ("feature_map", text("elu")),
        ("query_tap", text("post_rope")),
        ("memory_sharing", text("per_head")),
        ("query_scale", f32(1.0)),
        ("memory_scale", f32(1.0)),
        ("block_count", u32(2)),
        ("head_count", u32(2)),
        ("head_count_kv", u32(1)),
        ("key_length", u32(4)),
        ("value_length", u32(4)),
        ("feature_length", u32(4)),
        ("layers", layers(&[0])),
        ("query_order", text("norm")),
    ]
}

const MEMORY: &str = "blk.0.attn_prefix_memory.weight";

fn file(keys: &[(&str, Value)], tensors: &[(&str, &[u64])]) -> Raw {
    let raw = keys.iter().fold(Raw::empty(), |raw, (k, (t, v))| raw.key(key(k).as_bytes(), *t, v));
    tensors.iter().fold(raw, |raw, (name, ne)| raw.f32s(name, ne, &vec![0.5; ne.iter().product::<u64>() as usize]))
}

pub fn right_file() -> Vec<u8> {
    with("", None).build()
}

/// The right file with `field` as this value; `None` leaves it out.
fn with(field: &'static str, value: Option<Value>) -> Raw {
    let mut keys = right();
    keys.retain(|(k, _)| *k != field);
    keys.extend(value.map(|v| (field, v)));
    file(&keys, &[(MEMORY, &[4, 4, 2])])
}

fn with_tensors(tensors: &[(&str, &[u64])]) -> Raw {
    file(&right(), tensors)
}

pub fn cases() -> Vec<Case> {
    [keys(), parts::about_the_file(), tensors(), parts::cases(), records(), large()].into_iter().flatten().collect()
}

fn keys() -> Vec<Case> {
    use Code::*;
    let mut cases = vec![
        accepted("a right adapter", with("", None)),
        accepted("unknown keys", with("x.y", Some(text("\u{1b}[31m")))),
        accepted("names of code", with("general.auto_map", Some(text("os.system")))),
        accepted("a megabyte of metadata", with("tokenizer.chat_template", Some(text(&"x".repeat(1 << 20))))),
    ];
    for (field, _) in right() {
        let code = match field {
            "general.type" | "adapter.type" => AdapterKind,
            _ => GgufKey,
        };
        cases.push(refused(format!("{field} left out"), with(field, None), code));
        cases.push(refused(format!("{field} as bool"), with(field, Some((7, vec![1]))), GgufKey));
    }
    for field in ["block_count", "head_count", "head_count_kv", "key_length", "feature_length"] {
        cases.push(refused(format!("{field} 0"), with(field, Some(u32(0))), ConfigField));
        cases.push(refused(format!("{field} 2^32-1"), with(field, Some(u32(u32::MAX))), ConfigField));
        cases.push(refused(format!("{field} -1"), with(field, Some((5, vec![255; 4]))), GgufKey));
        cases.push(refused(
            format!("{field} 2^40"),
            with(field, Some((10, (1u64 << 40).to_le_bytes().to_vec()))),
            GgufKey,
        ));
        cases.push(refused(format!("{field} as f32"), with(field, Some(f32(2.0))), GgufKey));
    }
    for field in ["query_scale", "memory_scale"] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            cases.push(refused(format!("{field} {value}"), with(field, Some(f32(value))), ConfigField));
        }
        cases.push(refused(
            format!("{field} 1e300"),
            with(field, Some((12, 1e300f64.to_le_bytes().to_vec()))),
            GgufKey,
        ));
        cases.push(refused(
            format!("{field} 1e-300"),
            with(field, Some((12, 1e-300f64.to_le_bytes().to_vec()))),
            GgufKey,
        ));
        cases.push(refused(format!("{field} as u32"), with(field, Some(u32(1))), GgufKey));
    }
    let long = "\u{1}".repeat(1 << 20);
    for (field, value, code) in [
        ("general.type", text("model"), AdapterKind),
        ("adapter.type", text("loha"), AdapterKind),
        ("adapter.type", text("lora"), AdapterLeftOver),
        ("adapter.type", text(&long), AdapterKind),
        ("general.architecture", text("evil"), BaseArchitecture),
        ("general.architecture", text("cohere"), BaseArchitecture),
        ("general.architecture", text(&long), BaseArchitecture),
        ("version", u32(0), ConfigUnsupported),
        ("version", u32(2), ConfigUnsupported),
        ("feature_map", text("os.system"), ConfigUnsupported),
        ("feature_map", text(""), ConfigUnsupported),
        ("feature_map", text(&long), ConfigUnsupported),
        ("query_tap", text("mid_rope"), ConfigUnsupported),
        ("memory_sharing", text("per_layer"), ConfigUnsupported),
        ("query_order", text("neox"), AdapterMismatch),
        ("query_order", text("sorted"), ConfigUnsupported),
        ("query_order", text(&long), ConfigUnsupported),
        ("head_count_kv", u32(3), ConfigField),
        ("head_count", u32(4), AdapterShape),
        ("key_length", u32(8), AdapterMismatch),
        ("value_length", u32(8), AdapterShape),
        ("value_length", u32(0), AdapterShape),
        ("feature_length", u32(8), AdapterMismatch),
        ("layers", layers(&[]), AdapterLeftOver),
        ("layers", layers(&[0, 0]), ConfigField),
        ("layers", layers(&[0, 1]), AdapterMissing),
        ("layers", layers(&[2]), AdapterMissing),
        ("layers", layers(&[u32::MAX]), ConfigField),
        ("layers", (9, array(5, 1, &[255; 4])), GgufKey),
        ("layers", (9, array(8, 1, &string(b"0"))), GgufKey),
        ("layers", (9, array(4, 1 << 17, &vec![0; 4 << 17])), GgufKey),
    ] {
        let shown: String = format!("{:?}", &value.1[..value.1.len().min(24)]).chars().take(60).collect();
        cases.push(refused(format!("{field} = {shown}, {} bytes", value.1.len()), with(field, Some(value)), code));
    }
    cases
}

fn tensors() -> Vec<Case> {
    use Code::*;
    let of_type = |t: u32| {
        let mut raw = file(&right(), &[]).info(MEMORY.as_bytes(), &[4, 4, 2], t, 0);
        raw.data = vec![0; 128];
        raw
    };
    let holding = |value: f32| {
        let mut values = [0.5; 32];
        values[7] = value;
        file(&right(), &[]).f32s(MEMORY, &[4, 4, 2], &values)
    };
    vec![
        refused("no tensor", with_tensors(&[]), AdapterMissing),
        refused("a memory of NaN", holding(f32::NAN), NonFinite),
        refused("a memory of infinity", holding(f32::INFINITY), NonFinite),
        refused("a memory of zero size", with_tensors(&[(MEMORY, &[4, 4, 0])]), AdapterShape),
        refused("a memory without features", with_tensors(&[(MEMORY, &[0, 4, 2])]), AdapterShape),
        refused("a memory of one axis", with_tensors(&[(MEMORY, &[32])]), AdapterShape),
        refused("a memory of four axes", with_tensors(&[(MEMORY, &[4, 4, 2, 1])]), AdapterShape),
        refused("a memory of another head count", with_tensors(&[(MEMORY, &[4, 4, 3])]), AdapterShape),
        refused("a memory of an odd query axis", with_tensors(&[(MEMORY, &[3, 4, 2])]), AdapterShape),
        refused("a memory of I32", of_type(26), AdapterShape),
        refused("a tensor of nobody", with_tensors(&[(MEMORY, &[4, 4, 2]), ("x", &[1])]), AdapterLeftOver),
        refused(
            "a LoRA's tensor",
            with_tensors(&[(MEMORY, &[4, 4, 2]), ("blk.0.attn_q.weight.lora_a", &[4, 4])]),
            AdapterLeftOver,
        ),
        refused(
            "a layer written 00",
            with_tensors(&[("blk.00.attn_prefix_memory.weight", &[4, 4, 2])]),
            AdapterLeftOver,
        ),
        refused(
            "a layer beyond the last",
            with_tensors(&[(MEMORY, &[4, 4, 2]), ("blk.9.attn_prefix_memory.weight", &[4, 4, 2])]),
            AdapterLeftOver,
        ),
        refused(
            "a layer of 20 digits",
            with_tensors(&[(MEMORY, &[4, 4, 2]), ("blk.99999999999999999999.attn_prefix_memory.weight", &[1])]),
            AdapterLeftOver,
        ),
        refused(
            "a bias without weight",
            with_tensors(&[(MEMORY, &[4, 4, 2]), ("blk.0.attn_prefix_feature.bias", &[4, 2])]),
            AdapterMissing,
        ),
    ]
}

/// The records of the first source: JSON inside a string.
fn records() -> Vec<Case> {
    use Code::*;
    let config = |json: &str| with("ptplus.source_config", Some(text(json)));
    let dtypes = |json: &str| with("ptplus.source_dtypes", Some(text(json)));
    vec![
        accepted("a recorded configuration", config(r#"{"task_type":"CAUSAL_LM","x":[1]}"#)),
        accepted("recorded types", dtypes(r#"{"layers.0.memory":"BF16"}"#)),
        refused("a recorded configuration that is no JSON", config("{"), JsonSyntax),
        refused("a recorded configuration that is a list", config("[]"), ConfigField),
        refused("a recorded configuration with a key twice", config(r#"{"a":1,"a":2}"#), JsonDuplicateKey),
        refused("a recorded configuration nested deep", config(&"[".repeat(1 << 20)), JsonTooLarge),
        refused("a recorded configuration with 1e400", config(r#"{"a":1e400}"#), JsonSyntax),
        refused("a recorded feature map", config(r#"{"feature_map":"relu"}"#), ConfigField),
        refused("a recorded scale that disagrees", config(r#"{"query_scale":2.0}"#), ConfigField),
        refused("a recorded scale as string", config(r#"{"query_scale":"1.0"}"#), ConfigField),
        refused("a recorded list of a million", config(&format!("[{}1]", "1,".repeat(1_000_000))), JsonTooLarge),
        refused("a recorded list, long", config(&format!("[{}1]", "1,".repeat(60_000))), ConfigField),
        refused("a recorded list, too long", config(&format!("[{}1]", "1,".repeat(100_000))), JsonTooLarge),
        accepted("a recorded text of 1 MB", config(&format!(r#"{{"x":"{}"}}"#, "x".repeat(1_000_000)))),
        refused("a recorded text of 2 MB", config(&format!(r#"{{"x":"{}"}}"#, "x".repeat(2 << 20))), JsonTooLarge),
        accepted("recorded objects in chains", config(&format!(r#"{{"x":[{}]}}"#, chains(7_000)))),
        refused(
            "recorded objects in chains, too many",
            config(&format!(r#"{{"x":[{}]}}"#, chains(10_000))),
            JsonTooLarge,
        ),
        refused("recorded layers that are no list", config(r#"{"layers_to_transform":"x"}"#), ConfigField),
        refused("a recorded configuration as number", with("ptplus.source_config", Some(u32(1))), GgufKey),
        accepted("recorded memories that are not transposed", config(r#"{"transpose_memory":false}"#)),
        refused("recorded memories that are transposed", config(r#"{"transpose_memory":true}"#), ConfigField),
        refused("recorded transposition as text", config(r#"{"transpose_memory":"x"}"#), ConfigField),
        accepted("a recorded model type of the architecture", config(r#"{"base_model_type":"mistral"}"#)),
        accepted("a recorded model type that nobody knows", config(r#"{"base_model_type":"pirate"}"#)),
        refused("a recorded model type of another runner", config(r#"{"base_model_type":"qwen2"}"#), AdapterMismatch),
        refused(
            "a recorded model type of another order",
            config(r#"{"base_model_type":"gemma3_text"}"#),
            AdapterMismatch,
        ),
        refused("a recorded base as number", config(r#"{"base_model_name_or_path":5}"#), ConfigField),
        refused("recorded keys of GGUF", config(r#"{"ptplus_gguf_metadata":{}}"#), ConfigField),
        refused("recorded types that are no JSON", dtypes("x"), JsonSyntax),
        refused("recorded types in a list", dtypes("[]"), ConfigField),
        refused("a recorded type that is none", dtypes(r#"{"a":"F31"}"#), ConfigField),
        refused("a recorded type of integers", dtypes(r#"{"a":"I32"}"#), ConfigField),
        refused("a recorded type of 1 MB", dtypes(&format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20))), ConfigField),
    ]
}

/// `n` objects in chains: the dearest that JSON can say.
fn chains(n: usize) -> String {
    const DEPTH: usize = 100;
    vec![format!("{}0{}", r#"{"":"#.repeat(DEPTH), "}".repeat(DEPTH)); n / DEPTH].join(",")
}

fn large() -> Vec<Case> {
    vec![
        case::large(
            "an array of 90 million numbers",
            || with("x.y", Some((9, array(0, 90_000_000, &vec![1; 90_000_000])))).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "a string of 60 MB of control characters",
            || with("x.y", Some(text(&"\u{1}".repeat(60 << 20)))).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "a string of 12 MB of control characters",
            || with("x.y", Some(text(&"\u{1}".repeat(12 << 20)))).build(),
            Some(Code::GgufLimit),
        ),
        case::large("a string of 15 MB", || with("x.y", Some(text(&"x".repeat(15 << 20)))).build(), None),
        case::large(
            "260,000 tensors",
            || {
                (0..260_000)
                    .fold(file(&right(), &[]), |raw, i| raw.info(format!("x{i}").as_bytes(), &[0], 0, 0))
                    .build()
            },
            Some(Code::GgufLimit),
        ),
        case::large(
            "an architecture of 60 MB",
            || with("general.architecture", Some(text(&"\u{1}".repeat(60 << 20)))).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "a vocabulary of 260,000 beside the adapter",
            || with("x.y", Some((9, array(8, 260_000, &string("▁token".as_bytes()).repeat(260_000))))).build(),
            None,
        ),
    ]
}

/// Errors name what stands in the file, not what `adapter_config.json` or a folder's tensors would be called.
#[test]
fn errors_name_keys_and_tensors_of_the_file() {
    let named = |raw: Raw| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.gguf");
        std::fs::write(&path, raw.build()).unwrap();
        read_file(&path).unwrap_err().field_name().unwrap_or_default().to_owned()
    };
    for (field, value) in [
        ("memory_scale", f32(1e-44)),
        ("feature_map", text("x")),
        ("block_count", u32(0)),
        ("head_count_kv", u32(3)),
        ("layers", layers(&[0, 0])),
    ] {
        assert_eq!(named(with(field, Some(value))), key(field));
    }
    assert_eq!(named(with("layers", Some(layers(&[0, 1])))), "blk.1.attn_prefix_memory.weight");
    assert_eq!(named(with_tensors(&[(MEMORY, &[4, 4, 3])])), MEMORY);
    let recorded = with("ptplus.source_config", Some(text(r#"{"revision":[1]}"#)));
    assert_eq!(named(recorded), "ptplus.source_config: revision");
}
