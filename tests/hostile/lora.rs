//! LoRAs: PEFT's configuration and tensors, and llama.cpp's GGUF. Query projections `[4, 3]` of two layers, rank 2.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::import::{self, Options};
use ptplus::validate;

use crate::case::{Case, accepted, large, refused};
use crate::gguf_file::Raw;
use crate::safetensors;

/// A folder with this configuration and right tensors.
pub fn read_config(config: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    write_folder(dir.path(), &config, &right_weights());
    read_path(dir.path())
}

/// A folder with these tensors and a right configuration.
pub fn read_weights(weights: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    write_folder(dir.path(), with("", None).as_bytes(), &weights);
    read_path(dir.path())
}

pub fn read_gguf(file: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("lora.gguf");
    std::fs::write(&path, file).expect("a file");
    read_path(&path)
}

pub fn write_folder(dir: &Path, config: &[u8], weights: &[u8]) {
    std::fs::write(dir.join("adapter_config.json"), config).expect("a file");
    std::fs::write(dir.join("adapter_model.safetensors"), weights).expect("a file");
}

pub fn read_path(path: &Path) -> Result<()> {
    let imported = import::read(path, &Options::default(), None)?;
    validate::check(imported, None).map(drop).map_err(|rejected| rejected.into_error().file(path))
}

/// Names and shapes.
type List = Vec<(String, Vec<usize>)>;

/// F32 tensors of these shapes.
pub fn tensors(list: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = Vec::new();
    let mut end = 0;
    for (name, shape) in list {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
    }
    safetensors::file(&format!("{{{}}}", header.join(",")), end)
}

fn query(layer: usize, half: &str) -> String {
    format!("base_model.model.model.layers.{layer}.self_attn.q_proj.{half}")
}

fn right_list() -> List {
    let of = |layer| [(query(layer, "lora_A.weight"), vec![2, 3]), (query(layer, "lora_B.weight"), vec![4, 2])];
    (0..2).flat_map(of).collect()
}

pub fn right_weights() -> Vec<u8> {
    tensors(&right_list())
}

const RIGHT: [(&str, &str); 5] = [
    ("peft_type", r#""LORA""#),
    ("r", "2"),
    ("lora_alpha", "4"),
    ("target_modules", r#"["q_proj"]"#),
    ("init_lora_weights", "true"),
];

/// The right configuration with `key` as this value; `None` leaves it out.
pub fn with(key: &str, value: Option<&str>) -> String {
    let mut entries: Vec<(&str, &str)> = RIGHT.into_iter().filter(|(k, _)| *k != key).collect();
    entries.extend(value.map(|v| (key, v)));
    let entries: Vec<String> = entries.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
    format!("{{{}}}", entries.join(","))
}

pub fn config_cases() -> Vec<Case> {
    use Code::*;
    let mut cases = vec![
        accepted("a right configuration", with("", None)),
        accepted("alpha 1e-300, a product that F32 holds with r", with("lora_alpha", Some("2e-30"))),
        accepted("an unknown key", with("x", Some("[1e999]".replace("1e999", "1").as_str()))),
        refused("alpha 0", with("lora_alpha", Some("0")), NoEffect),
    ];
    // 8 is PEFT's default, and the tensors have rank 2.
    cases.push(refused("no rank", with("r", None), AdapterShape));
    for value in ["NaN", "Infinity", "-Infinity", r#""4""#, "null", "[4]", "true", "1e300", "1e-300"] {
        cases.push(refused(format!("alpha {value}"), with("lora_alpha", Some(value)), ConfigField));
    }
    for value in ["0", "-1", "2.5", r#""2""#, "null", "NaN", "65537", "18446744073709551616", "1e30"] {
        cases.push(refused(format!("rank {value}"), with("r", Some(value)), ConfigField));
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        for value in [r#"{"q_proj":"x"}"#, r#"{"q_proj":null}"#, r#"{"q_proj":NaN}"#, "[1]", r#""q_proj""#] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
        for value in [r#"{"(":1}"#, r#"{"(?=q)":1}"#, r#"{"(a{999}){999}":1}"#, r#"{"\\u{110000}":1}"#] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigUnsupported));
        }
        let many = |n: usize, name: &dyn Fn(usize) -> String| {
            let entries: Vec<String> = (0..n).map(|i| format!("\"{}\":1", name(i))).collect();
            with(key, Some(&format!("{{{}}}", entries.join(","))))
        };
        cases.push(accepted(format!("{key} of 4,096 names"), many(4_096, &|i| format!("x{i}"))));
        cases.push(refused(format!("{key} of 4,097 names"), many(4_097, &|i| format!("x{i}")), ConfigField));
        cases.push(refused(format!("{key} of 65 expressions"), many(65, &|i| format!("x{i}+")), ConfigUnsupported));
    }
    for (key, value) in [
        ("use_rslora", "1"),
        ("use_dora", r#""true""#),
        ("lora_bias", "[]"),
        ("bias", r#""some""#),
        ("bias", "1"),
        ("modules_to_save", r#""lm_head""#),
        ("modules_to_save", "[1]"),
        ("target_modules", "[1]"),
        ("target_modules", "7"),
        ("layers_to_transform", r#"["0"]"#),
        ("layers_to_transform", "-1"),
        ("init_lora_weights", "7"),
        ("task_type", "7"),
        ("base_model_name_or_path", "{}"),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
    }
    for (key, value) in [
        ("init_lora_weights", r#""pissa""#),
        ("target_modules", r#""(?<=q)_proj""#),
        ("target_parameters", r#"["x"]"#),
        ("layer_replication", "[[0,1]]"),
        ("use_qalora", "true"),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigUnsupported));
    }
    for (key, value) in [("use_dora", "true"), ("lora_bias", "true"), ("modules_to_save", r#"["lm_head"]"#)] {
        cases.push(refused(format!("{key} without its tensors"), with(key, Some(value)), AdapterMissing));
    }
    cases
}

pub fn weight_cases() -> Vec<Case> {
    use Code::*;
    let changed = |change: &dyn Fn(&mut List)| {
        let mut list = right_list();
        change(&mut list);
        tensors(&list)
    };
    let named = |name: &str, shape: &[usize]| {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        changed(&move |list| list.push((name.clone(), shape.clone())))
    };
    vec![
        accepted("right tensors", right_weights()),
        refused("no B", changed(&|l| drop(l.remove(1))), AdapterMissing),
        refused("no A", changed(&|l| drop(l.remove(0))), AdapterMissing),
        refused("halves of two layers", changed(&|l| drop((l.remove(3), l.remove(0)))), AdapterMissing),
        refused("rank 3 in B", changed(&|l| l[1].1 = vec![4, 3]), AdapterShape),
        refused("rank 3 in both", changed(&|l| (l[0].1, l[1].1) = (vec![3, 3], vec![4, 3])), AdapterShape),
        refused("A a vector", changed(&|l| l[0].1 = vec![6]), AdapterShape),
        refused("A a scalar", changed(&|l| l[0].1 = vec![]), AdapterShape),
        refused("A of five dimensions", changed(&|l| l[0].1 = vec![1, 2, 1, 3, 1]), AdapterShape),
        refused("A without columns", changed(&|l| l[0].1 = vec![2, 0]), AdapterShape),
        refused("rank 0", changed(&|l| (l[0].1, l[1].1) = (vec![0, 3], vec![4, 0])), AdapterShape),
        refused("a bias without lora_bias", named(&query(0, "lora_B.bias"), &[4]), AdapterLeftOver),
        refused("a bias of A", named(&query(0, "lora_A.bias"), &[2]), AdapterLeftOver),
        refused("magnitudes without use_dora", named(&query(0, "lora_magnitude_vector"), &[4]), AdapterLeftOver),
        refused("magnitudes of another length", named(&query(0, "lora_magnitude_vector"), &[5]), AdapterShape),
        refused("magnitudes in a matrix", named(&query(0, "lora_magnitude_vector"), &[2, 2]), AdapterShape),
        refused("another adapter's tensor", named(&query(0, "lora_A.other.weight"), &[2, 3]), AdapterLeftOver),
        refused(
            "a second name for A",
            named("model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 3]),
            AdapterDuplicate,
        ),
        refused(
            "A for a norm",
            named("base_model.model.model.layers.0.input_layernorm.lora_A.weight", &[2, 3]),
            ConfigUnsupported,
        ),
        refused("A of nothing", named("lora_A.weight", &[2, 3]), ConfigUnsupported),
        refused(
            "a projection that no family has",
            named("model.layers.0.self_attn.query_key_value.lora_A.weight", &[2, 3]),
            ConfigUnsupported,
        ),
        refused(
            "half of an addition to a fused projection",
            named("model.layers.0.self_attn.qkv_proj.lora_A.weight", &[2, 3]),
            AdapterMissing,
        ),
        refused(
            "layer 2^64",
            named("model.layers.18446744073709551616.mlp.up_proj.lora_A.weight", &[2, 3]),
            ConfigUnsupported,
        ),
        refused("a score head", named("base_model.model.score.weight", &[2, 3]), ConfigUnsupported),
        refused(
            "a delta of tokens",
            named("model.embed_tokens.token_adapter.trainable_tokens_delta", &[2, 3]),
            AdapterLeftOver,
        ),
        refused("RoPE's divisors", named("rope_freqs.weight", &[2]), ConfigUnsupported),
        large(
            "30,000 modules of layers that no model has",
            || {
                let of = |i: usize| {
                    let name = |half: &str| format!("model.layers.{i}.mlp.up_proj.{half}.weight");
                    [(name("lora_A"), vec![2, 1]), (name("lora_B"), vec![1, 2])]
                };
                tensors(&(0..30_000).flat_map(of).collect::<List>())
            },
            None,
        ),
    ]
}

const A: &str = "blk.0.attn_v.weight.lora_a";
const B: &str = "blk.0.attn_v.weight.lora_b";

/// The right file's keys; `architecture` qwen2 reorders no rows.
fn keys() -> Raw {
    of("qwen2")
}

fn of(architecture: &str) -> Raw {
    Raw::empty().str("general.architecture", architecture).str("general.type", "adapter").str("adapter.type", "lora")
}

fn halves(raw: Raw) -> Raw {
    raw.f32s(A, &[3, 2], &[0.5; 6]).f32s(B, &[2, 4], &[0.5; 8])
}

pub fn right_gguf() -> Vec<u8> {
    halves(keys().f32("adapter.lora.alpha", 4.0)).build()
}

pub fn gguf_cases() -> Vec<Case> {
    use Code::*;
    let alpha = || keys().f32("adapter.lora.alpha", 4.0);
    let mut cases = vec![
        accepted("a right LoRA", right_gguf()),
        accepted("no alpha", halves(keys()).build()),
        accepted("alpha 0", halves(keys().f32("adapter.lora.alpha", 0.0)).build()),
        refused("alpha as u32", halves(keys().u32("adapter.lora.alpha", 4)).build(), GgufKey),
        refused("alpha as text", halves(keys().str("adapter.lora.alpha", "4")).build(), GgufKey),
        refused("no B", alpha().f32s(A, &[3, 2], &[0.5; 6]).build(), AdapterMissing),
        refused("no tensors", alpha().build(), AdapterMissing),
        refused("ranks 2 and 1", alpha().f32s(A, &[3, 2], &[0.5; 6]).f32s(B, &[1, 4], &[0.5; 4]).build(), AdapterShape),
        refused("B a vector", alpha().f32s(A, &[3, 2], &[0.5; 6]).f32s(B, &[8], &[0.5; 8]).build(), AdapterShape),
        refused("NaN", alpha().f32s(A, &[3, 2], &[f32::NAN; 6]).f32s(B, &[2, 4], &[0.5; 8]).build(), NonFinite),
        refused(
            "another suffix",
            halves(alpha()).f32s("blk.0.attn_v.weight.lora_c", &[1], &[0.5]).build(),
            AdapterLeftOver,
        ),
        refused(
            "A of a norm",
            halves(alpha()).f32s("blk.0.attn_norm.weight.lora_a", &[1], &[0.5]).build(),
            AdapterLeftOver,
        ),
        refused(
            "a norm where another family has it",
            halves(of("gemma2").f32("adapter.lora.alpha", 4.0)).f32s("blk.0.ffn_norm.weight", &[2], &[1.0; 2]).build(),
            ConfigUnsupported,
        ),
        refused(
            "an activated LoRA",
            halves(alpha().u32s("adapter.alora.invocation_tokens", &[1])).build(),
            ConfigUnsupported,
        ),
        refused("folded by nothing", halves(alpha().str("ptplus.lora.folded", "{}x")).build(), JsonSyntax),
        refused(
            "folded text",
            halves(alpha().str("ptplus.lora.folded", r#"{"blk.0.attn_v.weight":"2"}"#)).build(),
            ConfigField,
        ),
        refused(
            "folded elsewhere",
            halves(alpha().str("ptplus.lora.folded", r#"{"blk.9.attn_v.weight":2}"#)).build(),
            ConfigField,
        ),
        refused("head_dim as text", halves(alpha().str("ptplus.lora.head_dim", "x")).build(), GgufKey),
        refused("key factor as text", halves(alpha().str("ptplus.lora.key_factor", "x")).build(), GgufKey),
        refused("key factor 0", halves(alpha().f32("ptplus.lora.key_factor", 0.0)).build(), ConfigField),
        refused("key factor NaN", halves(alpha().f32("ptplus.lora.key_factor", f32::NAN)).build(), ConfigField),
        refused("a digest that is none", halves(alpha().str("ptplus.source_sha256", "x")).build(), ConfigField),
        refused(
            "types of others",
            halves(alpha().str("ptplus.source_dtypes", r#"{"layers.0.memory":"BF16"}"#)).build(),
            ConfigField,
        ),
        refused("a configuration that is none", halves(alpha().str("ptplus.source_config", "[]")).build(), ConfigField),
    ];
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        cases.push(refused(
            format!("alpha {value}"),
            halves(keys().f32("adapter.lora.alpha", value)).build(),
            ConfigField,
        ));
    }
    let llama = |d: u32| {
        let raw = Raw::empty()
            .str("general.architecture", "llama")
            .str("general.type", "adapter")
            .str("adapter.type", "lora");
        raw.u32("ptplus.lora.head_dim", d)
            .f32s("blk.0.attn_q.weight.lora_a", &[3, 2], &[0.5; 6])
            .f32s("blk.0.attn_q.weight.lora_b", &[2, 4], &[0.5; 8])
            .build()
    };
    cases.push(accepted("heads of 2 rows", llama(2)));
    for d in [0, 1, 3, 8, u32::MAX] {
        cases.push(refused(format!("heads of {d} rows"), llama(d), AdapterShape));
    }
    cases
}
