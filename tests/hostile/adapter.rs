//! `adapter_config.json`, and the tensors beside it.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::import::{self, Options};
use ptplus::validate;

use crate::case::{Case, accepted, json_with, refused};
use crate::safetensors;

/// A folder with this configuration and a right layer 0: two heads, four features, values of length 4.
pub fn read(config: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("adapter_config.json"), config).expect("a file");
    std::fs::write(dir.path().join("adapter_model.safetensors"), right_weights()).expect("a file");
    read_folder(dir.path())
}

fn read_folder(dir: &Path) -> Result<()> {
    let imported = import::read(dir, &Options::default(), None)?;
    validate::check(imported, None).map(drop).map_err(|rejected| rejected.into_error().file(dir))
}

pub fn right_weights() -> Vec<u8> {
    weights(&[0.5; 32])
}

fn weights(values: &[f32; 32]) -> Vec<u8> {
    let header = r#"{"layers.0.memory":{"dtype":"F32","shape":[2,4,4],"data_offsets":[0,128]}}"#;
    let mut file = safetensors::file(header, 0);
    file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    file
}

#[test]
fn a_left_over_tensor_is_refused_whatever_its_name() {
    for name in ["and_more", "and more", "more than the 1 that are listed", "none of these", " "] {
        let dir = tempfile::tempdir().expect("a folder");
        let header = format!(
            r#"{{"layers.0.memory":{{"dtype":"F32","shape":[2,4,4],"data_offsets":[0,128]}},"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[128,132]}}}}"#
        );
        std::fs::write(dir.path().join("adapter_config.json"), with("", None)).expect("a file");
        std::fs::write(dir.path().join("adapter_model.safetensors"), safetensors::file(&header, 132)).expect("a file");
        assert_eq!(read_folder(dir.path()).unwrap_err().code(), Code::AdapterLeftOver, "{name:?}");
    }
}

const RIGHT: [(&str, &str); 13] = [
    ("peft_type", r#""PREFIX_TUNING_PLUS""#),
    ("task_type", r#""CAUSAL_LM""#),
    ("feature_map", r#""elu""#),
    ("query_tap", r#""post_rope""#),
    ("query_scale", "1.0"),
    ("memory_scale", "1.0"),
    ("memory_sharing", r#""per_head""#),
    ("num_layers", "2"),
    ("num_attention_heads", "2"),
    ("num_key_value_heads", "2"),
    ("head_dim", "4"),
    ("num_features", "4"),
    ("layers_to_transform", "[0]"),
];

/// The right configuration with `key` as this text; `None` leaves it out.
fn with(key: &str, value: Option<&str>) -> String {
    json_with(&RIGHT, key, value)
}

pub fn cases() -> Vec<Case> {
    [documents(), extras(), carried(), counts(), scales(), choices(), layers()].into_iter().flatten().collect()
}

fn documents() -> Vec<Case> {
    use Code::*;
    let right = with("", None);
    vec![
        accepted("a right configuration", right.as_str()),
        accepted("a byte order mark", format!("\u{feff}{right}")),
        accepted("no peft_type", with("peft_type", None)),
        accepted("line breaks of Windows", right.replace(',', ",\r\n")),
        refused("no byte", "", JsonSyntax),
        refused("a list", "[]", ConfigField),
        refused("null", "null", ConfigField),
        refused("a string", "\"x\"", ConfigField),
        refused("a number", "1", ConfigField),
        refused("cut short", &right[..right.len() - 1], JsonSyntax),
        refused("two documents", format!("{right}{right}"), JsonSyntax),
        refused("larger than a megabyte", format!("{right}{}", " ".repeat(1 << 20)), JsonTooLarge),
        refused("a key twice", right.replacen('{', "{\"num_layers\":2,", 1), JsonDuplicateKey),
        refused("a key twice, escaped", right.replacen('{', "{\"num_l\\u0061yers\":2,", 1), JsonDuplicateKey),
        refused("an unknown key twice", right.replacen('{', "{\"x\":2,\"x\":2,", 1), JsonDuplicateKey),
        refused(
            "nested 10,000 deep",
            with("x", Some(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)))),
            JsonTooLarge,
        ),
        refused(
            "another method of PEFT, whose sizes are not these",
            with("peft_type", Some("\"LORA\"")),
            ConventionOpen,
        ),
        accepted("the kind in lower case", with("peft_type", Some("\"prefix_tuning_plus\""))),
        accepted("a kind of 500 kB", with("peft_type", Some(&format!("\"{}\"", "\\u001b".repeat(80_000))))),
        refused("the kind as number", with("peft_type", Some("1")), ConfigField),
        accepted("the kind null", with("peft_type", Some("null"))),
    ]
}

/// Keys that ptplus does not interpret, the names of code among them, are carried along.
fn extras() -> Vec<Case> {
    let extra = |key: &str, value: &str| accepted(format!("{key} {value}"), with(key, Some(value)));
    vec![
        extra("unknown", r#"{"a":[1,null,{"b":"\u001b[31m"}]}"#),
        extra("auto_mapping", r#"{"base_model_class":"Evil","parent_library":"os.system"}"#),
        extra("auto_mapping", "null"),
        extra("megatron_core", r#""megatron.core""#),
        extra("megatron_config", r#"{"import":"os"}"#),
        extra("base_model_name_or_path", r#""/etc/passwd""#),
        extra("base_model_name_or_path", r#""https://example.com/../model""#),
        extra("base_model_name_or_path", "null"),
        extra("revision", "null"),
        extra("inference_mode", "true"),
        extra("peft_version", r#""0.20.0""#),
        extra("target_modules", r#"["q_proj"]"#),
        extra("имя", r#""значение""#),
        accepted("60,000 values", with("x", Some(&format!("[{}0]", "0,".repeat(60_000))))),
        refused("70,000 values", with("x", Some(&format!("[{}0]", "0,".repeat(70_000)))), Code::JsonTooLarge),
        accepted("a string of 500 kB", with("note", Some(&format!("\"{}\"", "x".repeat(500_000))))),
    ]
}

/// What is carried has a type all the same, and metadata of a GGUF file is metadata.
fn carried() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for (key, value) in [
        ("task_type", "{}"),
        ("base_model_name_or_path", "5"),
        ("base_model_name_or_path", "[]"),
        ("revision", "[1]"),
        ("inference_mode", "\"yes\""),
        ("inference_mode", "1"),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
    }
    for key in ["task_type", "base_model_name_or_path", "revision", "inference_mode"] {
        cases.push(accepted(format!("carried {key} null"), with(key, Some("null"))));
        cases.push(accepted(format!("carried {key} left out"), with(key, None)));
    }
    // What the tool writes itself.
    for (key, right) in [
        ("ptplus_widened_from", &[r#""BF16""#, r#""Q4_0""#][..]),
        ("ptplus_base_mismatch_ignored", &["true", "false"]),
        ("ptplus_conventions", &["{}", r#"{"feature_map":"probe"}"#]),
    ] {
        cases.extend(right.iter().map(|value| accepted(format!("{key} {value}"), with(key, Some(value)))));
        for value in ["1", "\"2\"", "\"I32\"", "\"BOOL\"", "\"f32\"", "\"true\"", "[]", "null"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
    }
    for key in ["modules_to_save", "trainable_token_indices"] {
        for value in ["null", "[]", "{}"] {
            cases.push(accepted(format!("{key} {value}"), with(key, Some(value))));
        }
        for value in [r#"["lm_head"]"#, r#""lm_head""#, "1", "true", r#"{"embed_tokens":[0]}"#] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigUnsupported));
        }
    }
    let metadata = |value: &str| with("ptplus_gguf_metadata", Some(value));
    cases.extend([
        accepted("no metadata", metadata("{}")),
        accepted("metadata", metadata(r#"{"general.tags":{"type":"arr of str","value":["a"]}}"#)),
        refused("metadata as list", metadata("[]"), ConfigField),
        refused("metadata null", metadata("null"), ConfigField),
        refused("metadata without a type", metadata(r#"{"a":"b"}"#), ConfigField),
        refused("metadata of another type", metadata(r#"{"a":{"type":"u8","value":256}}"#), ConfigField),
        refused("metadata of a type that is none", metadata(r#"{"a":{"type":"u128","value":1}}"#), ConfigField),
        refused("metadata with NUL", metadata(r#"{"a":{"type":"str","value":"\u0000"}}"#), ConfigField),
        refused("metadata without a name", metadata(r#"{"":{"type":"u8","value":1}}"#), NameInvalid),
        refused("metadata with an escape in its name", metadata(r#"{"\u001b":{"type":"u8","value":1}}"#), NameInvalid),
        refused(
            "metadata that is another architecture",
            metadata(r#"{"general.architecture":{"type":"str","value":"qwen2"}}"#),
            ConfigField,
        ),
        refused(
            "metadata that is another scale",
            metadata(r#"{"adapter.prefix_tuning_plus.memory_scale":{"type":"f32","value":2}}"#),
            ConfigField,
        ),
        refused(
            "metadata that is an alignment",
            metadata(r#"{"general.alignment":{"type":"u32","value":64}}"#),
            ConfigField,
        ),
        accepted(
            "metadata of another base",
            metadata(r#"{"general.base_model.count":{"type":"u32","value":2},"general.base_model.1.name":{"type":"str","value":"b"}}"#),
        ),
        refused("metadata with a name of numbers", metadata(r#"{"general.name":{"type":"u32","value":5}}"#), ConfigField),
        refused(
            "metadata of fewer bases than are named",
            metadata(r#"{"general.base_model.count":{"type":"u32","value":0},"general.base_model.0.name":{"type":"str","value":"b"}}"#),
            ConfigField,
        ),
        refused(
            "metadata of very many bases",
            metadata(r#"{"general.base_model.count":{"type":"u32","value":5000}}"#),
            ConfigField,
        ),
        refused(
            "metadata of a base's version as truth",
            metadata(r#"{"general.base_model.0.version":{"type":"bool","value":true}}"#),
            ConfigField,
        ),
        refused(
            "metadata that is a digest",
            metadata(r#"{"ptplus.source_sha256":{"type":"str","value":"x"}}"#),
            ConfigField,
        ),
    ]);
    cases
}

fn counts() -> Vec<Case> {
    let mut cases = Vec::new();
    let wrong = [
        "0",
        "-1",
        "-0",
        "2.0",
        "2.5",
        "2e0",
        "1e400",
        "true",
        "\"2\"",
        "[2]",
        "{}",
        "4294967296",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "1000000000000000000000000000000",
    ];
    for key in ["num_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "num_features"] {
        for value in wrong {
            let code = if value == "1e400" { Code::JsonSyntax } else { Code::ConfigField };
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), code));
        }
    }
    for (key, most) in [
        ("num_layers", 4096),
        ("num_attention_heads", 4096),
        ("num_key_value_heads", 4096),
        ("head_dim", 1 << 20),
        ("num_features", 1 << 20),
    ] {
        cases.push(refused(
            format!("{key} one above the limit"),
            with(key, Some(&(most + 1).to_string())),
            Code::ConfigField,
        ));
    }
    cases.extend([
        // Heads of 2^20 x 4 elements are not too large, only not what the memory has.
        refused("most features", with("num_features", Some("1048576")), Code::AdapterMismatch),
        refused(
            "most features, of head length 8",
            {
                let config = String::from_utf8(with("num_features", Some("1048576")).into()).expect("JSON");
                config.replace("\"head_dim\":4", "\"head_dim\":8")
            },
            Code::ConfigUnsupported,
        ),
        accepted("num_layers at the limit", with("num_layers", Some("4096"))),
        accepted("num_layers 1", with("num_layers", Some("1"))),
        refused("num_layers null", with("num_layers", Some("null")), Code::ConventionOpen),
        refused("num_layers left out", with("num_layers", None), Code::ConventionOpen),
        accepted("num_features left out", with("num_features", None)),
        refused("KV heads that do not divide the heads", with("num_key_value_heads", Some("3")), Code::ConfigField),
        refused("more KV heads than heads", with("num_key_value_heads", Some("4")), Code::ConfigField),
        refused("heads unlike the memory's", with("num_attention_heads", Some("4")), Code::AdapterShape),
        refused("features unlike the memory's", with("num_features", Some("8")), Code::AdapterMismatch),
        refused("head length unlike the memory's", with("head_dim", Some("8")), Code::AdapterMismatch),
    ]);
    cases
}

fn scales() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for key in ["query_scale", "memory_scale"] {
        for value in ["1e39", "-1e39", "1e-39", "1e-300", "1e308", "true", "\"1\"", "[1]", "{}"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
        for value in ["NaN", "Infinity", "-Infinity"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
        for value in ["1e400", "-1e400", "nan"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), JsonSyntax));
        }
        for value in ["1", "-1.5", "0.35355339059327373", "3.4028234663852886e38", "1.2e-38", "1e-400", "0"] {
            cases.push(accepted(format!("{key} {value}"), with(key, Some(value))));
        }
        cases.push(refused(format!("{key} null"), with(key, Some("null")), ConventionOpen));
        cases.push(refused(format!("{key} left out"), with(key, None), ConventionOpen));
    }
    cases
}

fn choices() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for map in
        ["identity", "elu", "elu_plus_one", "relu", "silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh", "exp"]
    {
        cases.push(accepted(format!("feature_map {map}"), with("feature_map", Some(&format!("\"{map}\"")))));
    }
    for map in ["ELU", "elu ", "", "swish", "gelu_new", "os.system", "elu\\u0000", "../elu", "__import__('os')"] {
        cases.push(refused(
            format!("feature_map {map:?}"),
            with("feature_map", Some(&format!("\"{map}\""))),
            ConfigUnsupported,
        ));
    }
    for (key, unknown) in [("query_tap", "mid_rope"), ("memory_sharing", "per_layer")] {
        cases.push(refused(format!("{key} {unknown}"), with(key, Some(&format!("\"{unknown}\""))), ConfigUnsupported));
    }
    for key in ["feature_map", "query_tap", "memory_sharing"] {
        for value in ["1", "true", "[]", "{}"] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
        cases.push(refused(format!("{key} null"), with(key, Some("null")), ConventionOpen));
        cases.push(refused(format!("{key} left out"), with(key, None), ConventionOpen));
        let long = format!("\"{}\"", "x".repeat(500_000));
        cases.push(refused(format!("{key} of 500 kB"), with(key, Some(&long)), ConfigUnsupported));
    }
    cases.push(refused("base_model_type as number", with("base_model_type", Some("1")), ConfigField));
    cases
}

fn layers() -> Vec<Case> {
    use Code::*;
    let of = |value: &str| with("layers_to_transform", Some(value));
    let many = |n: usize| format!("[{}]", (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
    let mut cases = vec![
        accepted("layers left out", with("layers_to_transform", None)),
        accepted("layers as one number", of("0")),
        refused("layers null, of two", of("null"), AdapterMissing),
        refused("no layer", of("[]"), AdapterLeftOver),
        refused("a layer more", of("[0,1]"), AdapterMissing),
        refused("a layer that does not exist", of("[0,2]"), AdapterMissing),
        refused("a list too long", of(&many(5000)), ConfigField),
    ];
    for value in [
        "[0,0]",
        "[-1]",
        "[0.0]",
        "[null]",
        "[\"0\"]",
        "[[0]]",
        "[4096]",
        "[18446744073709551616]",
        "\"all\"",
        "{}",
        "true",
        "-1",
        "1.5",
    ] {
        cases.push(refused(format!("layers {value}"), of(value), ConfigField));
    }
    cases
}

/// Tensors with NaN or infinity, wherever they stand.
#[test]
fn non_finite_weights_are_refused_by_tensor() {
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 31), (f32::NEG_INFINITY, 17), (f32::from_bits(0x7f80_0001), 5)] {
        let dir = tempfile::tempdir().unwrap();
        let mut values = [0.5; 32];
        values[at] = bad;
        std::fs::write(dir.path().join("adapter_config.json"), with("", None)).unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), weights(&values)).unwrap();
        let e = read_folder(dir.path()).unwrap_err();
        assert_eq!(
            (e.code(), e.kind().exit_code(), e.field_name()),
            (Code::NonFinite, 3, Some("layers.0.memory")),
            "{e}"
        );
    }
}
