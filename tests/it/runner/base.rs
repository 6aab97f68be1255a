//! Opening base models: real files, and files that were damaged on purpose.

use std::fs;
use std::path::Path;

use ptplus::base::{BaseModel, Dialect, Weight};
use ptplus::error::Code;
use serde_json::{Value, json};

use crate::common::{MODELS, base_gguf, model};

#[test]
fn both_dialects_state_the_same_model_and_hold_the_same_weights() {
    for name in MODELS {
        let hf = BaseModel::open(&model(name).join("base")).unwrap();
        let gguf = BaseModel::open(&base_gguf(name)).unwrap();
        assert_eq!((hf.dialect, gguf.dialect), (Dialect::HuggingFace, Dialect::Gguf));
        assert_eq!(hf.gguf_architecture(), gguf.gguf_architecture());
        let (a, mut b) = (hf.config.clone(), gguf.config.clone());
        // GGUF knows neither Mistral's name nor the formula behind RoPE's divisors, and has F32 only.
        assert!((a.rms_eps - b.rms_eps).abs() < 1e-9 && a.ropes[0].theta == b.ropes[0].theta);
        (b.family, b.model_type, b.ropes, b.rms_eps) = (a.family, a.model_type.clone(), a.ropes.clone(), a.rms_eps);
        assert_eq!(a, b, "{name}");
        for weight in Weight::all(a.n_layers) {
            match weight.expected_shape(&a).as_deref() {
                Some([_, _]) => {
                    let (x, y) = (hf.rows(weight).unwrap().to_f32(), gguf.rows(weight).unwrap().to_f32());
                    assert!(x == y, "{name} {weight:?}");
                }
                Some(_) => assert_eq!(hf.vector(weight).unwrap(), gguf.vector(weight).unwrap(), "{name} {weight:?}"),
                None => {}
            }
        }
    }
}

/// A copy of a fixture's folder whose config.json and weights are changed.
fn damaged(name: &str, config: impl Fn(&mut Value), weights: impl Fn(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = model(name).join("base");
    let mut json: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let bytes = weights(fs::read(source.join("model.safetensors")).unwrap());
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

/// Renames a tensor to a name of the same length.
fn renamed(from: &'static str, to: &'static str) -> impl Fn(Vec<u8>) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    move |mut bytes| {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    }
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_refused_by_name() {
    let same = |bytes: Vec<u8>| bytes;
    let query = "model.layers.1.self_attn.q_proj.weight";
    for (folder, code, field) in [
        (
            damaged("llama-mha", |c| c["intermediate_size"] = json!(161), same),
            Code::BaseTensor,
            "model.layers.0.mlp.gate_proj.weight",
        ),
        (damaged("llama-mha", |c| c["vocab_size"] = json!(159), same), Code::BaseTensor, "model.embed_tokens.weight"),
        (
            damaged("llama-mha", |c| c["num_hidden_layers"] = json!(4), same),
            Code::BaseTensor,
            "model.layers.3.input_layernorm.weight",
        ),
        (
            damaged("llama-mha", |c| c["attention_bias"] = json!(true), same),
            Code::BaseTensor,
            "model.layers.0.self_attn.q_proj.bias",
        ),
        (
            damaged("llama-mha", |_| {}, renamed(query, "model.layers.1.self_attn.x_proj.weight")),
            Code::BaseTensor,
            query,
        ),
        (
            damaged("qwen2", |c| called(c, "llama"), same),
            Code::ConfigUnsupported,
            "model.layers.0.self_attn.q_proj.bias",
        ),
        (
            damaged("qwen3", |c| called(c, "llama"), same),
            Code::ConfigUnsupported,
            "model.layers.0.self_attn.q_norm.weight",
        ),
        (
            damaged("llama-mha", |c| c["head_dim"] = json!(64), same),
            Code::BaseTensor,
            "model.layers.0.self_attn.q_proj.weight",
        ),
    ] {
        let e = BaseModel::open(folder.path()).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (code, Some(field)), "{e}");
    }
}

/// Another family's name, and no class that contradicts it.
fn called(config: &mut Value, model_type: &str) {
    config["model_type"] = json!(model_type);
    config.as_object_mut().unwrap().remove("architectures");
}

#[test]
fn a_tied_head_that_differs_from_the_embedding_is_refused_when_it_is_used() {
    let tied = damaged("llama-mha", |c| c["tie_word_embeddings"] = json!(true), |bytes| bytes);
    let base = BaseModel::open(tied.path()).unwrap();
    let e = base.output_weight().unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::BaseTensor, Some("lm_head.weight")));
    let untied = BaseModel::open(&model("llama-mha").join("base")).unwrap();
    assert_eq!(untied.output_weight().unwrap(), Weight::Output);
    let stored_once = BaseModel::open(&model("llama-gqa").join("base")).unwrap();
    assert_eq!(stored_once.output_weight().unwrap(), Weight::TokenEmbedding);
}

#[test]
fn names_of_a_layer_that_the_configuration_does_not_have_are_refused() {
    let extra = damaged("llama-mha", |c| c["num_hidden_layers"] = json!(2), |bytes| bytes);
    let e = BaseModel::open(extra.path()).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some("model.layers.2.input_layernorm.weight")));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.gguf");
    let bytes = fs::read(base_gguf("llama-mha")).unwrap();
    fs::write(&file, renamed("blk.2.attn_v.weight", "blk.2.attn_w.weight")(bytes.clone())).unwrap();
    assert_eq!(BaseModel::open(&file).unwrap_err().field_name(), Some("blk.2.attn_v.weight"));
    // One layer less by metadata: the names of the last are not of this model.
    let key = b"llama.block_count";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    let mut fewer = bytes;
    fewer[at] = 2;
    fs::write(&file, fewer).unwrap();
    let e = BaseModel::open(&file).unwrap_err();
    assert_eq!(e.code(), Code::ConfigUnsupported);
    assert!(e.field_name().unwrap().starts_with("blk.2."), "{e}");
}

#[test]
fn sharded_and_oddly_named_weights_are_found() {
    let single = model("llama-mha").join("base");
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str| fs::copy(single.join("model.safetensors"), folder.path().join(name)).unwrap();
    fs::copy(single.join("config.json"), folder.path().join("config.json")).unwrap();
    assert_eq!(BaseModel::open(folder.path()).unwrap_err().code(), Code::NotFound);

    put("weights.safetensors");
    assert!(BaseModel::open(folder.path()).is_ok());
    put("other.safetensors");
    assert_eq!(BaseModel::open(folder.path()).unwrap_err().code(), Code::NotFound, "which of the two?");

    let base = BaseModel::open(&single).unwrap();
    let map: serde_json::Map<_, _> = base.tensors().map(|t| (t.name.clone(), json!("other.safetensors"))).collect();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let sharded = BaseModel::open(folder.path()).unwrap();
    assert!(sharded.tensors().all(|t| t.file.ends_with("other.safetensors")));
}

#[test]
fn a_missing_base_is_not_found() {
    assert_eq!(BaseModel::open(Path::new("/no/such/base")).unwrap_err().code(), Code::NotFound);
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(BaseModel::open(empty.path()).unwrap_err().code(), Code::NotFound);
}
