//! `config.json` of a base model, beside right weights: one block, two heads of length 2, a vocabulary of 3.

use ptplus::base::BaseModel;
use ptplus::error::{Code, Result};

use crate::case::{Case, accepted, json_with, refused};
use crate::safetensors;

mod rope;

pub fn read(config: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.json"), config).expect("a file");
    std::fs::write(dir.path().join("model.safetensors"), weights()).expect("a file");
    BaseModel::open(dir.path()).map(drop)
}

/// Right weights.
pub fn weights() -> Vec<u8> {
    weights_with(None, "")
}

/// The right weights, the tensor `other` with one element more than those, and `typed` with this type.
fn weights_with(other: Option<&str>, typed: &str) -> Vec<u8> {
    let layer = "model.layers.0";
    let mut tensors: Vec<(String, &[usize])> = vec![
        ("model.embed_tokens.weight".into(), &[3, 4]),
        (format!("{layer}.input_layernorm.weight"), &[4]),
        (format!("{layer}.self_attn.q_proj.weight"), &[4, 4]),
        (format!("{layer}.self_attn.k_proj.weight"), &[2, 4]),
        (format!("{layer}.self_attn.v_proj.weight"), &[2, 4]),
        (format!("{layer}.self_attn.o_proj.weight"), &[4, 4]),
        (format!("{layer}.post_attention_layernorm.weight"), &[4]),
        (format!("{layer}.mlp.gate_proj.weight"), &[6, 4]),
        (format!("{layer}.mlp.up_proj.weight"), &[6, 4]),
        (format!("{layer}.mlp.down_proj.weight"), &[4, 6]),
        ("model.norm.weight".into(), &[4]),
        ("lm_head.weight".into(), &[3, 4]),
    ];
    tensors.extend(other.map(|name| (name.to_owned(), &[1][..])));
    let (of_type, dtype) = typed.split_once('=').unwrap_or_default();
    let mut end = 0;
    let mut entries = Vec::new();
    for (name, shape) in tensors {
        let begin = end;
        let (dtype, size) = if name == of_type { (dtype, if dtype == "I32" { 4 } else { 1 }) } else { ("F32", 4) };
        end += size * shape.iter().product::<usize>();
        entries
            .push(format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}"));
    }
    safetensors::file(&format!("{{{}}}", entries.join(",")), end)
}

const RIGHT: [(&str, &str); 12] = [
    ("architectures", r#"["LlamaForCausalLM"]"#),
    ("model_type", r#""llama""#),
    ("hidden_size", "4"),
    ("intermediate_size", "6"),
    ("num_hidden_layers", "1"),
    ("num_attention_heads", "2"),
    ("num_key_value_heads", "1"),
    ("head_dim", "2"),
    ("vocab_size", "3"),
    ("rms_norm_eps", "1e-5"),
    ("hidden_act", r#""silu""#),
    ("max_position_embeddings", "64"),
];

/// The right configuration with `key` as this text; `None` leaves it out.
fn with(key: &str, value: Option<&str>) -> String {
    json_with(&RIGHT, key, value)
}

/// A right configuration.
#[cfg(feature = "generate")]
pub fn right() -> String {
    with("", None)
}

pub fn cases() -> Vec<Case> {
    [documents(), sizes(), numbers(), computation(), rope::cases(), rope::stated_twice(), classes(), code()]
        .into_iter()
        .flatten()
        .collect()
}

fn documents() -> Vec<Case> {
    use Code::*;
    let right = with("", None);
    vec![
        accepted("a right configuration", right.as_str()),
        accepted("a byte order mark", format!("\u{feff}{right}")),
        accepted("60,000 values", with("x", Some(&format!("[{}0]", "0,".repeat(60_000))))),
        refused("70,000 values", with("x", Some(&format!("[{}0]", "0,".repeat(70_000)))), JsonTooLarge),
        accepted("unknown keys", with("x", Some(r#"{"y":[1,null]}"#))),
        refused("no byte", "", JsonSyntax),
        refused("a list", "[]", ConfigField),
        refused("null", "null", ConfigField),
        refused("cut short", &right[..right.len() - 1], JsonSyntax),
        refused("larger than a megabyte", format!("{right}{}", " ".repeat(1 << 20)), JsonTooLarge),
        refused("a key twice", right.replacen('{', "{\"vocab_size\":3,", 1), JsonDuplicateKey),
        refused("an empty object", "{}", BaseArchitecture),
        refused("model_type null", with("model_type", Some("null")), BaseArchitecture),
        refused("model_type as number", with("model_type", Some("1")), ConfigField),
        refused("model_type as list", with("model_type", Some(r#"["llama"]"#)), ConfigField),
        refused("model_type unknown", with("model_type", Some(r#""mamba""#)), BaseArchitecture),
        refused("model_type in upper case", with("model_type", Some(r#""LLAMA""#)), BaseArchitecture),
        refused("model_type with an escape", with("model_type", Some(r#""llama\u001b[31m""#)), BaseArchitecture),
        refused(
            "model_type of 900 kB",
            with("model_type", Some(&format!("\"{}\"", "x".repeat(900_000)))),
            BaseArchitecture,
        ),
    ]
}

fn sizes() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    let keys = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ];
    for key in keys {
        for value in [
            "0",
            "-1",
            "1.5",
            "2.0",
            "true",
            "\"2\"",
            "[2]",
            "4294967296",
            "18446744073709551615",
            "18446744073709551616",
        ] {
            cases.push(refused(format!("{key} {value}"), with(key, Some(value)), ConfigField));
        }
        cases.push(refused(format!("{key} 1e400"), with(key, Some("1e400")), JsonSyntax));
    }
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        cases.push(refused(format!("{key} null"), with(key, Some("null")), ConfigField));
    }
    cases.extend([
        refused("KV heads that do not divide the heads", with("num_key_value_heads", Some("3")), ConfigField),
        refused("KV heads null, where the file has one", with("num_key_value_heads", Some("null")), BaseTensor),
        refused("an odd head length", with("head_dim", Some("3")), ConfigField),
        refused(
            "hidden size that heads do not divide",
            with("head_dim", None).replace("\"hidden_size\":4", "\"hidden_size\":5"),
            ConfigField,
        ),
        refused("2,001 layers", with("num_hidden_layers", Some("2001")), ConfigField),
        refused("2,000 layers that are not there", with("num_hidden_layers", Some("2000")), BaseTensor),
        refused("a larger vocabulary than the embedding's", with("vocab_size", Some("4")), BaseTensor),
        refused("a smaller vocabulary than the embedding's", with("vocab_size", Some("2")), BaseTensor),
        accepted("head length derived", with("head_dim", None)),
    ]);
    cases
}

fn numbers() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for value in ["-1e-5", "1", "1e300", "null", "\"1e-5\"", "true"] {
        cases.push(refused(format!("rms_norm_eps {value}"), with("rms_norm_eps", Some(value)), ConfigField));
    }
    for value in ["0", "-1", "1e39", "1e-39", "null", "\"1\"", "[1]", "true"] {
        cases.push(refused(format!("rope_theta {value}"), with("rope_theta", Some(value)), ConfigField));
    }
    for key in ["rms_norm_eps", "rope_theta", "x"] {
        for value in ["NaN", "Infinity", "-Infinity"] {
            let (name, file) = (format!("{key} {value}"), with(key, Some(value)));
            cases.push(if key == "x" { accepted(name, file) } else { refused(name, file, ConfigField) });
        }
        cases.push(refused(format!("{key} 1e400"), with(key, Some("1e400")), JsonSyntax));
    }
    cases.extend([
        accepted("rms_norm_eps 0", with("rms_norm_eps", Some("0"))),
        accepted("rms_norm_eps 0.9", with("rms_norm_eps", Some("0.9"))),
        refused("rms_norm_eps that is 1 in F32", with("rms_norm_eps", Some("0.9999999999")), ConfigField),
        accepted("rms_norm_eps left out", with("rms_norm_eps", None)),
    ]);
    cases
}

/// What would change the numbers, and is not computed here.
fn computation() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for act in ["gelu", "relu", "SiLU", "", "os.system", "gelu_pytorch_tanh"] {
        cases.push(refused(
            format!("hidden_act {act:?}"),
            with("hidden_act", Some(&format!("\"{act}\""))),
            ConfigUnsupported,
        ));
    }
    // What is not computed from here has its type all the same.
    for (key, right, wrong) in [
        ("dtype", &["\"bfloat16\"", "null"][..], &["1", "{}", "[]"][..]),
        ("torch_dtype", &["\"float32\"", "null"], &["32", "true"]),
        ("use_cache", &["true", "false", "null"], &["1", "\"true\""]),
        ("attention_dropout", &["0", "0.0", "null"], &["\"0\"", "false"]),
        ("initializer_range", &["0.02"], &["\"x\"", "[]"]),
        ("sliding_window", &["4"], &["\"4\"", "4.5", "[]"]),
        ("max_window_layers", &["4", "null"], &["-1", "{}"]),
        ("bos_token_id", &["1", "null", "[1, 2]", "[]"], &["\"1\"", "1.5", "[null]", "{}", "true"]),
        ("eos_token_id", &["[1, 2]"], &["[\"1\"]"]),
        ("pad_token_id", &["-1"], &["\"0\""]),
    ] {
        cases.extend(right.iter().map(|value| accepted(format!("{key} {value}"), with(key, Some(value)))));
        cases.extend(wrong.iter().map(|value| refused(format!("{key} {value}"), with(key, Some(value)), ConfigField)));
    }
    for (key, value, code) in [
        ("compression_config", r#"{"quant_method":"compressed-tensors"}"#, ConfigUnsupported),
        ("hidden_act", "null", ConfigField),
        ("hidden_act", "1", ConfigField),
        ("pretraining_tp", "\"2\"", ConfigField),
        ("quantization_config", r#"{"quant_method":"gptq"}"#, ConfigUnsupported),
        ("quantization_config", "1", ConfigUnsupported),
        ("num_experts", "8", ConfigUnsupported),
        ("num_local_experts", "8", ConfigUnsupported),
        ("n_routed_experts", "8", ConfigUnsupported),
        ("num_experts", "-1", ConfigField),
        ("partial_rotary_factor", "0.5", ConfigUnsupported),
        ("partial_rotary_factor", "true", ConfigField),
        ("tie_word_embeddings", "1", ConfigField),
        ("tie_word_embeddings", "\"yes\"", ConfigField),
        ("attention_bias", "\"no\"", ConfigField),
        ("attention_bias", "true", BaseTensor),
        ("mlp_bias", "true", BaseTensor),
        ("layer_types", r#"["sliding_attention"]"#, ConfigUnsupported),
        ("layer_types", r#"["linear_attention"]"#, ConfigUnsupported),
        ("layer_types", r#"["full_attention","full_attention"]"#, ConfigField),
        ("layer_types", "[]", ConfigField),
        ("layer_types", "[1]", ConfigField),
        ("layer_types", "\"full_attention\"", ConfigField),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), code));
    }
    for (key, value) in [
        ("hidden_act", r#""swish""#),
        ("pretraining_tp", "2"),
        ("quantization_config", "null"),
        ("num_experts", "0"),
        ("partial_rotary_factor", "1.0"),
        ("layer_types", r#"["full_attention"]"#),
    ] {
        cases.push(accepted(format!("{key} {value}"), with(key, Some(value))));
    }
    let mistral = |value: &str| with("sliding_window", Some(value)).replace("\"llama\"", "\"mistral\"");
    for value in ["0", "-1", "1.5", "\"8\""] {
        cases.push(refused(format!("sliding_window {value}"), mistral(value), ConfigField));
    }
    cases.push(accepted("sliding_window null", mistral("null")));
    cases.push(accepted("sliding_window 8", mistral("8")));
    cases
}

/// What `architectures` names, and fields that say what kind of model this is.
fn classes() -> Vec<Case> {
    use Code::*;
    let mut cases = Vec::new();
    for value in [
        "null",
        "[]",
        r#"["LlamaForSequenceClassification"]"#,
        r#"["LlamaModel"]"#,
        r#"["LLaMAForCausalLM"]"#,
        r#"["MistralForCausalLM"]"#,
        r#"["MyRewardModel"]"#,
    ] {
        cases.push(accepted(format!("architectures {value}"), with("architectures", Some(value))));
    }
    for (key, value, code) in [
        ("architectures", r#"["GPT2LMHeadModel"]"#, ConfigUnsupported),
        ("architectures", r#"["LlamaForCausalLM","Qwen3MoeForCausalLM"]"#, ConfigUnsupported),
        ("architectures", r#"["Qwen2ForCausalLM"]"#, ConfigUnsupported),
        ("architectures", "5", ConfigField),
        ("architectures", "[5]", ConfigField),
        ("architectures", r#""LlamaForCausalLM""#, ConfigField),
        ("is_encoder_decoder", "true", ConfigUnsupported),
        ("is_encoder_decoder", "1", ConfigField),
        ("use_bidirectional_attention", "true", ConfigUnsupported),
        ("is_causal", "false", ConfigUnsupported),
        ("no_rope_layers", "[0]", ConfigUnsupported),
        ("no_rope_layers", "5", ConfigField),
        ("max_position_embeddings", "0", ConfigField),
        ("max_position_embeddings", "-1", ConfigField),
        ("max_position_embeddings", "4294967296", ConfigField),
        ("max_position_embeddings", "\"64\"", ConfigField),
    ] {
        cases.push(refused(format!("{key} {value}"), with(key, Some(value)), code));
    }
    for (key, value) in [
        ("is_encoder_decoder", "false"),
        ("use_bidirectional_attention", "null"),
        ("is_causal", "true"),
        ("no_rope_layers", "[1]"),
        ("no_rope_layers", "null"),
        ("max_position_embeddings", "1"),
        ("max_position_embeddings", "null"),
    ] {
        cases.push(accepted(format!("{key} {value}"), with(key, Some(value))));
    }
    cases
}

/// Fields that name code: never imported. Code that would compute something else is refused, the rest does not matter.
fn code() -> Vec<Case> {
    use Code::*;
    let auto_map = |value: &str| with("auto_map", Some(value));
    vec![
        accepted(
            "auto_map of configuration and tokenizer",
            auto_map(r#"{"AutoConfig":"c.C","AutoTokenizer":["t.T",null]}"#),
        ),
        accepted("auto_map null", auto_map("null")),
        accepted("auto_map empty", auto_map("{}")),
        refused(
            "auto_map of the model",
            auto_map(r#"{"AutoModelForCausalLM":"modeling_evil.Evil"}"#),
            ConfigUnsupported,
        ),
        refused(
            "auto_map of the bare model",
            auto_map(r#"{"AutoConfig":"c.C","AutoModel":"modeling_evil.Evil"}"#),
            ConfigUnsupported,
        ),
        refused("auto_map as string", auto_map(r#""modeling_evil.Evil""#), ConfigField),
        accepted("custom_pipelines", with("custom_pipelines", Some(r#"{"p":{"impl":"evil.P"}}"#))),
        accepted("_name_or_path of a file", with("_name_or_path", Some(r#""/etc/passwd""#))),
        accepted("torch_dtype unknown", with("torch_dtype", Some(r#""__import__""#))),
    ]
}

/// Tensors beside a right configuration, by the tensor that is named.
#[test]
fn tensors_that_the_model_cannot_have_are_refused_by_name() {
    let open = |weights: Vec<u8>| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), with("", None)).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        BaseModel::open(dir.path()).map(drop)
    };
    let q = "model.layers.0.self_attn.q_proj";
    for name in [
        "model.layers.1.input_layernorm.weight",
        &format!("{q}.weight_scale"),
        &format!("{q}.lora_A.weight"),
        &format!("{q}.bias"),
        "lm_head.weight_scale",
        "model.embed_tokens.weight_scale",
    ] {
        let e = open(weights_with(Some(name), "")).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some(name)), "{e}");
    }
    for name in
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "score.weight", "v_head.weight"]
    {
        open(weights_with(Some(name), "")).unwrap();
    }
    for name in ["model.embed_tokens.weight", "model.norm.weight", &format!("{q}.weight")] {
        for dtype in ["I32", "I8", "BOOL", "F8_E4M3"] {
            let e = open(weights_with(None, &format!("{name}={dtype}"))).unwrap_err();
            assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some(name)), "{e}");
        }
    }
}
