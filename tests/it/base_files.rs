//! What `convert` and `quantize` promise about base models: llama.cpp's names, row order, metadata and types, every
//! value accounted for, and the tokenizer carried along.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{MODELS, convert, exit, json, model, ptplus, stderr};
use ptplus::format::gguf::{self, Gguf, Value};
use ptplus::quant;
use ptplus::tensor::DType;

fn converted(from: &Path, to: &Path, extra: &[&str]) -> Gguf {
    let out = convert(from, to, extra);
    assert_eq!(exit(&out), 0, "{extra:?}: {}", stderr(&out));
    gguf::open(to).unwrap()
}

fn tensors(file: &Gguf) -> BTreeMap<&str, (DType, &[usize], &[u8])> {
    file.tensors.iter().map(|t| (t.name.as_str(), (t.dtype, &t.shape[..], &t.bytes[..]))).collect()
}

fn values(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0f32; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    quant::decode(dtype, bytes, &mut out);
    out
}

fn metadata(file: &Gguf) -> BTreeMap<&str, &Value> {
    file.metadata.iter().collect()
}

#[test]
fn a_folder_becomes_the_file_that_llama_cpp_was_seen_to_load() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let shipped = gguf::open(&crate::common::base_gguf(name)).unwrap();
        let ours = converted(&model(name).join("base"), &temp.path().join(name), &["--to", "gguf"]);
        assert_eq!(tensors(&ours), tensors(&shipped), "{name}");
        // The shipped files are named by hand, and have no label for their size.
        let (mut ours, mut shipped) = (metadata(&ours), metadata(&shipped));
        for key in ["general.name", "general.size_label"] {
            ours.remove(key);
            shipped.remove(key);
        }
        assert_eq!(ours, shipped, "{name}");
    }
}

#[test]
fn what_a_file_says_is_carried_over_and_only_types_change() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let path = crate::common::base_gguf(name);
        let shipped = gguf::open(&path).unwrap();
        let kept = converted(&path, &temp.path().join("kept.gguf"), &["-f"]);
        assert_eq!(std::fs::read(&kept.path).unwrap(), std::fs::read(&path).unwrap(), "{name}: nothing to change");

        let half = converted(&path, &temp.path().join("half.gguf"), &["--outtype", "f16", "-f"]);
        let mut expected = shipped.metadata.clone();
        expected.insert("general.file_type", Value::U32(1));
        assert_eq!(half.metadata, expected, "{name}");
        for (a, b) in half.tensors.iter().zip(&shipped.tensors) {
            assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
            assert_eq!(a.dtype, if b.shape.len() == 2 { DType::F16 } else { DType::F32 }, "{}", a.name);
            let exact: Vec<f32> = values(b.dtype, &b.bytes);
            let expected: Vec<f32> = match a.dtype {
                DType::F16 => exact.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect(),
                _ => exact,
            };
            assert_eq!(values(a.dtype, &a.bytes), expected, "{name} {}", a.name);
        }
    }
}

#[test]
fn folder_and_file_of_one_model_are_quantized_to_the_same_bytes_by_any_number_of_threads() {
    let temp = tempfile::tempdir().unwrap();
    for (name, dtype) in MODELS.iter().zip(["q8_0", "q4_0", "q5_1", "q6_k", "q4_k_m", "bf16", "q3_k_s"]) {
        let from_folder = converted(
            &model(name).join("base"),
            &temp.path().join("a.gguf"),
            &["--outtype", dtype, "-f", "--threads", "1"],
        );
        let from_file = converted(
            &crate::common::base_gguf(name),
            &temp.path().join("b.gguf"),
            &["--outtype", dtype, "-f", "--threads", "3"],
        );
        assert_eq!(tensors(&from_folder), tensors(&from_file), "{name} {dtype}");
        let file_type = |g: &Gguf| g.metadata.u32("general.file_type").unwrap();
        assert_eq!(file_type(&from_folder), file_type(&from_file));
        let source = gguf::open(&crate::common::base_gguf(name)).unwrap();
        let sources = tensors(&source);
        for t in from_file.tensors.iter().filter(|t| t.shape.len() == 2) {
            let (from, _, bytes) = sources[t.name.as_str()];
            let mut expected = vec![0; t.bytes.len()];
            quant::quantize_rows(t.dtype, &values(from, bytes), t.shape[1], &mut expected);
            assert!(*t.bytes == expected[..], "{name} {} {}", t.name, t.dtype);
        }
    }
}

/// The fixture's folder with one value of one tensor replaced.
fn poisoned(dir: &Path, model_name: &str, tensor: &str, element: usize, value: f32) -> PathBuf {
    let base = model(model_name).join("base");
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy(base.join("config.json"), dir.join("config.json")).unwrap();
    let mut bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let file = ptplus::format::safetensors::open(&base.join("model.safetensors")).unwrap();
    let t = file.tensors.iter().find(|t| t.name == tensor).unwrap();
    let at = t.file_offset as usize + element * 4;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    dir.to_owned()
}

#[test]
fn nan_infinity_and_overflow_are_refused_by_tensor_and_index_and_leave_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (q, norm) = ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight");
    for (tensor, value, types, code, place) in [
        (q, f32::NAN, &["keep", "f16", "q8_0", "q4_0"][..], "non-finite", "[70, 5]"),
        (q, f32::INFINITY, &["keep", "bf16", "q8_0"], "non-finite", "[70, 5]"),
        (norm, f32::NEG_INFINITY, &["keep", "q8_0"], "non-finite", "[5]"),
        (q, 1e6, &["f16"], "cast-overflow", "[70, 5]"),
        (q, 1e38, &["q8_0"], "cast-overflow", "[70, 5]"),
    ] {
        let element = if tensor == q { 70 * 96 + 5 } else { 5 };
        let folder = poisoned(&temp.path().join("base"), "llama-gqa", tensor, element, value);
        for dtype in types {
            let to = temp.path().join("out.gguf");
            let (status, report) = json([
                &"convert".into(),
                &folder.clone().into_os_string(),
                &"-o".into(),
                &to.clone().into(),
                &"--outtype".into(),
                &std::ffi::OsString::from(dtype),
            ]);
            assert_eq!(status, 3, "{tensor} {value} {dtype}: {report}");
            assert_eq!(report["error"]["code"], code, "{report}");
            assert_eq!(report["error"]["field"], tensor);
            assert!(report["error"]["message"].as_str().unwrap().contains(place), "{report}");
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "only the input is there");
        }
    }
    let folder = poisoned(&temp.path().join("base"), "llama-gqa", q, 70 * 96 + 5, 1e6);
    let saturated = converted(&folder, &temp.path().join("out.gguf"), &["--outtype", "f16", "--allow-overflow"]);
    let t = &tensors(&saturated)["blk.1.attn_q.weight"];
    // Row 70 is row 6 of head 1 (64 long): with t = 0, j = 6 it lies at 2 j.
    assert_eq!(values(t.0, t.2)[(64 + 12) * 96 + 5], 65504.0);
}

#[test]
fn a_poisoned_block_is_refused_where_it_would_be_copied_and_where_it_would_be_decoded() {
    let temp = tempfile::tempdir().unwrap();
    let (path, out) = (temp.path().join("q8_0.gguf"), temp.path().join("out.gguf"));
    let file = converted(&model("llama-gqa").join("base"), &path, &["--outtype", "q8_0"]);
    let t = file.tensors.iter().find(|t| t.name == "blk.0.attn_v.weight").unwrap();
    let scale = t.file_offset as usize + 4 * DType::Q8_0.block_bytes();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[scale..scale + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    for dtype in ["keep", "f32", "f16"] {
        let mut args = folder_args("convert", &path, &out);
        args.extend(["--outtype", dtype].map(Into::into));
        let (status, report) = json(args);
        assert_eq!((status, report["error"]["code"].as_str()), (3, Some("non-finite")), "{dtype}: {report}");
        assert_eq!(report["error"]["field"], "blk.0.attn_v.weight");
        // Block 4 begins at element 128, of rows of 96.
        assert!(report["error"]["message"].as_str().unwrap().contains("[1, 32]"), "{report}");
        assert!(!out.exists());
    }
}

#[test]
fn what_is_no_base_of_a_supported_family_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("base");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(model("qwen3").join("base/model.safetensors"), folder.join("model.safetensors")).unwrap();
    let out = temp.path().join("out.gguf");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(model("qwen3").join("base/config.json")).unwrap()).unwrap();
    for (key, value, code, status) in [
        ("model_type", "gpt_oss".into(), "base-architecture", 7),
        ("hidden_act", "gelu".into(), "config-unsupported", 7),
        (
            "rope_parameters",
            serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
            "config-unsupported",
            7,
        ),
        ("intermediate_size", 3.into(), "base-tensor", 3),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        std::fs::write(folder.join("config.json"), changed.to_string()).unwrap();
        let (found, report) = json([folder_args("convert", &folder, &out), vec![]].concat());
        assert_eq!((found, report["error"]["code"].as_str()), (status, Some(code)), "{key}: {report}");
    }
    // Layers with and without a window: GGUF cannot say so.
    let mut mixed = config.clone();
    mixed["use_sliding_window"] = true.into();
    mixed["sliding_window"] = 8.into();
    mixed["layer_types"] = serde_json::json!(["full_attention", "sliding_attention"]);
    std::fs::write(folder.join("config.json"), mixed.to_string()).unwrap();
    let (found, report) = json(folder_args("convert", &folder, &out));
    assert_eq!((found, report["error"]["code"].as_str()), (7, Some("config-unsupported")), "{report}");

    for (kind, architecture, code) in [
        ("model", "gemma4", "base-architecture"),
        ("vocab", "llama", "adapter-kind"),
        ("adapter", "llama", "adapter-kind"),
    ] {
        let mut metadata = gguf::Metadata::new();
        metadata.insert("general.type", kind);
        metadata.insert("general.architecture", architecture);
        let file = temp.path().join("other.gguf");
        std::fs::write(&file, gguf::plan(&metadata, &[]).unwrap().header).unwrap();
        let (found, report) = json(folder_args("convert", &file, &out));
        assert_eq!((found, report["error"]["code"].as_str()), (7, Some(code)), "{report}");
    }
    let (found, report) =
        json(folder_args("convert", &crate::common::fixtures().join("formats/single.safetensors"), &out));
    assert_eq!((found, report["error"]["code"].as_str()), (7, Some("adapter-kind")), "{report}");
    assert!(!out.exists());
}

fn folder_args(command: &str, from: &Path, to: &Path) -> Vec<std::ffi::OsString> {
    vec![command.into(), from.into(), "-o".into(), to.into()]
}

#[test]
fn flags_about_adapters_have_no_place_at_a_base() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("llama-gqa").join("base");
    let path = base.to_str().unwrap();
    for extra in [
        &["--base", path][..],
        &["--arch", "llama"],
        &["--feature-map", "elu"],
        &["--max-error", "kl=1"],
        &["--to", "safetensors"],
        &["--tensor-type", "memory=q8_0"],
        &["--tensor-type", "attn_norm=f16"],
        &["--outtype", "q9"],
    ] {
        let out = convert(&base, &temp.path().join("out.gguf"), extra);
        assert_eq!(exit(&out), 2, "{extra:?}: {}", stderr(&out));
    }
    let adapter = model("llama-gqa").join("adapter");
    for extra in [&["--outtype", "q4_k_m"][..], &["--no-tokenizer"]] {
        let out = convert(&adapter, &temp.path().join("out.gguf"), &[&["--arch", "llama"], extra].concat());
        assert_eq!(exit(&out), 2, "{extra:?}: {}", stderr(&out));
    }
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn overrides_bounds_and_dry_runs_work_as_for_adapters() {
    let temp = tempfile::tempdir().unwrap();
    let (base, to) = (model("qwen2").join("base"), temp.path().join("out.gguf"));
    let file = converted(
        &base,
        &to,
        &["--outtype", "q4_0", "--tensor-type", r"blk\.0\.ffn_down=q8_0", "--tensor-type", "ffn=f16"],
    );
    let found = tensors(&file);
    assert_eq!(found["blk.0.ffn_down.weight"].0, DType::Q8_0);
    assert_eq!(found["blk.1.ffn_down.weight"].0, DType::F16);
    assert_eq!(found["blk.1.attn_q.weight"].0, DType::Q4_0);
    assert_eq!(found["blk.1.attn_q.bias"].0, DType::F32);

    let out = convert(&to, &temp.path().join("again.gguf"), &["--outtype", "q5_0"]);
    assert_eq!(exit(&out), 2, "blocks are not quantized again unasked: {}", stderr(&out));
    converted(&to, &temp.path().join("again.gguf"), &["--outtype", "q5_0", "--allow-requantize"]);
    let floats = converted(&to, &temp.path().join("floats.gguf"), &["--outtype", "f32"]);
    for (name, (dtype, _, bytes)) in tensors(&floats) {
        assert_eq!(values(dtype, bytes), values(found[name].0, found[name].2), "{name}");
    }

    let mut args = folder_args("quantize", &base, &temp.path().join("bounded.gguf"));
    args.extend(["q4_0", "--max-error", "relative=1e-3"].map(Into::into));
    let (status, report) = json(args);
    assert_eq!((status, report["error"]["code"].as_str()), (5, Some("error-bound")), "{report}");

    let mut args = folder_args("quantize", &base, &temp.path().join("dry.gguf"));
    args.extend(["q4_k", "--dry-run"].map(Into::into));
    let (status, report) = json(args);
    assert_eq!(status, 0);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 26);
    let unfit = report["tensors"].as_array().unwrap().iter().filter(|t| !t["unfit"].is_null()).count();
    assert!(unfit > 0 && !report["notes"].as_array().unwrap().is_empty(), "{report}");
    let mut names: Vec<_> = std::fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["again.gguf", "floats.gguf", "out.gguf"]);
}

#[test]
fn an_adapter_verifies_on_the_converted_base() {
    let temp = tempfile::tempdir().unwrap();
    for (name, dtype, tolerance) in
        [("llama-gqa", "f32", "f32"), ("mistral-swa", "f32", "f32"), ("qwen2", "f32", "f32"), ("qwen3", "bf16", "bf16")]
    {
        let base = temp.path().join(format!("{name}.gguf"));
        converted(&model(name).join("base"), &base, &["--outtype", dtype]);
        let m = model(name);
        let out = ptplus([
            "verify".as_ref(),
            m.join("adapter").as_os_str(),
            "--base".as_ref(),
            base.as_os_str(),
            "--probe".as_ref(),
            m.join("probe.safetensors").as_os_str(),
            "--tolerance".as_ref(),
            tolerance.as_ref(),
        ]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
    }
}
