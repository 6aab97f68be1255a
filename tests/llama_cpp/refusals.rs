//! What the graft refuses: adapters that do not fit the model, hostile files.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ptplus::error::Code;
use ptplus::format::TensorSpec;
use ptplus::format::gguf::{self, Array, Metadata, Value};
use ptplus::llama_cpp::{Adapter, Context, Model};
use ptplus::tensor::DType;

use crate::common::{base_gguf, model, ptplus};
use crate::contexts::{PLAIN, converted, ids};

const KEY: &str = "adapter.prefix_tuning_plus.";

/// A GGUF file in memory, to spoil and write again.
pub struct File {
    pub metadata: Metadata,
    pub tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl File {
    pub fn read(path: &Path) -> File {
        let file = gguf::open(path).unwrap();
        let spec = |t: &ptplus::format::StoredTensor| TensorSpec {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
        };
        let tensors = file.tensors.iter().map(|t| (spec(t), t.bytes.to_vec())).collect();
        File { metadata: file.metadata, tensors }
    }

    pub fn write(&self, path: &Path) {
        let specs: Vec<_> = self.tensors.iter().map(|(s, _)| s.clone()).collect();
        let plan = gguf::plan(&self.metadata, &specs).unwrap();
        let mut bytes = vec![0; plan.len_bytes as usize];
        bytes[..plan.header.len()].copy_from_slice(&plan.header);
        for (planned, (_, data)) in plan.tensors.iter().zip(&self.tensors) {
            bytes[planned.file_offset as usize..][..data.len()].copy_from_slice(data);
        }
        std::fs::write(path, bytes).unwrap();
    }

    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        let key = if field.contains('.') { field.to_owned() } else { format!("{KEY}{field}") };
        self.metadata.remove(&key);
        self.metadata.insert(key, value);
    }

    pub fn tensor(&mut self, part: &str) -> &mut (TensorSpec, Vec<u8>) {
        self.tensors.iter_mut().find(|(s, _)| s.name.contains(part)).unwrap()
    }
}

fn adapter_of(name: &str, folder: &Path) -> PathBuf {
    converted(&model(name).join("adapter"), &base_gguf(name), folder)
}

#[test]
fn adapters_that_do_not_fit_and_hostile_files_are_refused_with_the_reason() {
    let temp = tempfile::tempdir().unwrap();
    let good = adapter_of("qwen3", temp.path());
    let loaded = Model::load(&base_gguf("qwen3")).unwrap();
    assert!(Adapter::load(&good, &loaded).is_ok());
    type Change = Box<dyn Fn(&mut File)>;
    let set = |field: &'static str, value: Value| -> Change { Box::new(move |f| f.set(field, value.clone())) };
    let text = |t: &str| Value::String(t.into());
    let remove =
        |field: &'static str| -> Change { Box::new(move |f| drop(f.metadata.remove(&format!("{KEY}{field}")))) };
    let cases: Vec<(&str, Change)> = vec![
        ("general.type", set("general.type", text("model"))),
        ("general.type", set("general.type", Value::U32(1))),
        ("adapter.type", set("adapter.type", text("lora"))),
        ("version", set("version", Value::U32(2))),
        ("general.architecture", set("general.architecture", text("qwen2"))),
        ("query_order", set("query_order", text("norm"))),
        ("query_order", remove("query_order")),
        ("block_count", set("block_count", Value::U32(3))),
        ("head_count", set("head_count", Value::U32(8))),
        ("head_count_kv", set("head_count_kv", Value::U32(4))),
        ("key_length", set("key_length", Value::U32(32))),
        ("value_length", set("value_length", Value::U32(0))),
        ("value_length", set("value_length", Value::I32(64))),
        ("feature_length", set("feature_length", Value::U32(u32::MAX))),
        ("attn_prefix_memory", set("feature_length", Value::U32(95))),
        ("feature_map", set("feature_map", text("swish"))),
        ("query_tap", set("query_tap", text("mid_rope"))),
        ("memory_sharing", set("memory_sharing", text("per_layer"))),
        ("query_scale", set("query_scale", Value::F32(f32::NAN))),
        ("memory_scale", set("memory_scale", Value::F64(1.0))),
        ("layers", remove("layers")),
        ("layers", set("layers", Value::U32(0))),
        ("layers", set("layers", Value::Array(Array::from_u32(&[])))),
        ("layers", set("layers", Value::Array(Array::from_u32(&[0, 0])))),
        ("layers", set("layers", Value::Array(Array::from_u32(&[0, 2])))),
        ("layers", set("layers", Value::Array(Array::from_strs(&["0", "1"])))),
        ("no part of the adapter", set("layers", Value::Array(Array::from_u32(&[0])))),
        (
            "no part of the adapter",
            Box::new(|f| {
                f.tensors.push((
                    TensorSpec { name: "blk.0.attn_q.weight".into(), dtype: DType::F32, shape: vec![4] },
                    vec![0; 16],
                ));
            }),
        ),
        ("attn_prefix_memory", Box::new(|f| f.tensor("memory").0.name = "blk.0.attn_prefix_memory".into())),
        ("attn_prefix_feature.weight", Box::new(|f| f.tensors.retain(|(s, _)| !s.name.contains("feature.weight")))),
        ("attn_prefix_memory", Box::new(|f| f.tensor("memory").0.shape.swap(1, 2))),
        ("finite", Box::new(|f| f.tensor("memory").1[40..44].copy_from_slice(&f32::NAN.to_le_bytes()))),
        ("finite", Box::new(|f| f.tensor("memory").1[40..44].copy_from_slice(&f32::INFINITY.to_le_bytes()))),
        ("decoded", Box::new(|f| f.tensor("memory").0.dtype = DType::I32)),
    ];
    let mut failures = Vec::new();
    for (i, (reason, change)) in cases.iter().enumerate() {
        let mut file = File::read(&good);
        change(&mut file);
        let path = temp.path().join("spoilt.gguf");
        file.write(&path);
        match Adapter::load(&path, &loaded) {
            Ok(_) => failures.push(format!("{i} {reason}: accepted")),
            Err(e) if e.code() != Code::LlamaCppAdapter || !e.message().contains(reason) => {
                failures.push(format!("{i} {reason}: {e}"));
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_truncation_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let good = std::fs::read(adapter_of("qwen2", temp.path())).unwrap();
    let loaded = Model::load(&base_gguf("qwen2")).unwrap();
    let path = temp.path().join("short.gguf");
    // The last bytes are padding at most: the data ends before them.
    for len in (0..good.len() - 31).step_by(61).chain([0, 4, good.len() - 32]) {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(Adapter::load(&path, &loaded).is_err(), "{len} of {} bytes", good.len());
    }
    for other in [temp.path().to_owned(), temp.path().join("none.gguf"), model("qwen2").join("probe.safetensors")] {
        assert!(Adapter::load(&other, &loaded).is_err(), "{}", other.display());
    }
}

#[test]
fn flipped_bytes_never_end_the_process() {
    let temp = tempfile::tempdir().unwrap();
    let good = std::fs::read(adapter_of("qwen2", temp.path())).unwrap();
    let loaded = Model::load(&base_gguf("qwen2")).unwrap();
    let path = temp.path().join("flipped.gguf");
    let mut n_refused = 0;
    // The header, where the structure is.
    for i in (0..1500).step_by(3) {
        let mut bytes = good.clone();
        bytes[i] ^= 0x81;
        std::fs::write(&path, &bytes).unwrap();
        n_refused += usize::from(Adapter::load(&path, &loaded).is_err());
    }
    assert!(n_refused > 100, "{n_refused}");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    for (adapter, base) in [("qwen2", "qwen3"), ("llama-mha", "llama-gqa"), ("llama-pre-rope", "mistral-swa")] {
        let file = adapter_of(adapter, temp.path());
        let loaded = Model::load(&base_gguf(base)).unwrap();
        let e = Adapter::load(&file, &loaded).err().unwrap_or_else(|| panic!("{adapter} on {base}"));
        assert_eq!(e.code(), Code::LlamaCppAdapter, "{e}");
    }
}

#[test]
fn a_denominator_of_0_is_an_error_and_the_context_survives_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut raw = crate::common::RawAdapter::fixture("qwen2");
    // phi is 1 in every feature, but in layer 1, where no feature ever comes above 0; the normaliser is 1 everywhere.
    raw.config["feature_map"] = "relu".into();
    let layers: Vec<String> = raw.tensors.keys().filter_map(|n| n.strip_suffix(".memory").map(str::to_owned)).collect();
    for layer in layers {
        let shape = raw.tensors[&format!("{layer}.memory")].shape.clone();
        let of = |shape: &[usize], value: f32| crate::common::Tensor {
            shape: shape.to_vec(),
            values: vec![value; shape.iter().product()],
        };
        raw.tensors.insert(format!("{layer}.feature.weight"), of(&shape, 0.0));
        raw.tensors
            .insert(format!("{layer}.feature.bias"), of(&shape[..2], if layer == "layers.1" { -1.0 } else { 1.0 }));
        raw.tensors.insert(format!("{layer}.normalizer"), of(&shape[..2], 1.0));
    }
    raw.write(&temp.path().join("zero"));
    let base = base_gguf("qwen2");
    let file = converted(&temp.path().join("zero"), &base, temp.path());
    let loaded = Rc::new(Model::load(&base).unwrap());
    let adapters = [Rc::new(Adapter::load(&file, &loaded).unwrap())];
    let mut context = Context::new(&loaded, &adapters, &PLAIN).unwrap();
    let batch: Vec<_> = ids(1, 5, loaded.vocab_size())
        .into_iter()
        .enumerate()
        .map(|(position, id)| ptplus::llama_cpp::Token { id, position, sequence: 0, logits: true })
        .collect();
    let e = context.decode(&batch).unwrap_err();
    assert!(e.message().contains("layer 1, head 0, token 0") && e.message().contains("denominator is 0"), "{e}");
    context.set_scale(0, 0.0).unwrap();
    context.clear();
    context.decode(&batch).unwrap();
}

#[test]
fn the_command_line_refuses_with_the_codes_of_the_specification() {
    let dir = model("qwen2");
    let verify = |args: &[&std::ffi::OsStr]| ptplus([&["verify".as_ref()], args].concat());
    let (adapter, probe) = (dir.join("adapter"), dir.join("probe.safetensors"));
    let run = |base: &Path| {
        let out = verify(&[
            adapter.as_os_str(),
            "--base".as_ref(),
            base.as_os_str(),
            "--probe".as_ref(),
            probe.as_os_str(),
            "--engine".as_ref(),
            "llama.cpp".as_ref(),
        ]);
        crate::common::exit(&out)
    };
    assert_eq!(run(&base_gguf("qwen3")), 4);
    assert_eq!(run(&base_gguf("qwen2")), 0);
    let e = ptplus::llama_cpp::check_architecture("cohere").unwrap_err();
    assert_eq!(e.kind().exit_code(), 7);
    assert_eq!(run(&dir.join("base")), 0, "a folder is written as GGUF first");
}
