//! Somebody else's metadata in a GGUF adapter, by every way that a conversion can take.

use std::path::Path;

use crate::common::{RawAdapter, base, convert, exit, model, ptplus, stderr};

/// A copy of a GGUF file with these keys as well.
fn with_metadata(from: &Path, to: &Path, more: &[(&str, ptplus::format::gguf::Value)]) {
    use ptplus::format::{StoredTensor, TensorSpec, gguf};
    let file = gguf::open(from).unwrap();
    let mut metadata = file.metadata.clone();
    more.iter().for_each(|(key, value)| metadata.insert(*key, value.clone()));
    let spec = |t: &StoredTensor| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
    let plan = gguf::plan(&metadata, &file.tensors.iter().map(spec).collect::<Vec<_>>()).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for (p, t) in plan.tensors.iter().zip(&file.tensors) {
        bytes[p.file_offset as usize..][..t.bytes.len()].copy_from_slice(&t.bytes);
    }
    std::fs::write(to, bytes).unwrap();
}

/// What somebody else has put into a GGUF adapter stays there, also by way of a folder.
#[test]
fn foreign_metadata_survives_with_its_types() {
    use ptplus::format::gguf::{self, Array, Value};
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    let name = "llama-gqa";
    let from = path("from.gguf");
    assert_eq!(exit(&convert(&model(name).join("adapter"), &from, &["--base", &base(name)])), 0);
    let foreign: [(&str, Value); 10] = [
        ("general.name", "Mine".into()),
        ("general.author", "имя".into()),
        ("general.license", "mit".into()),
        ("general.tags", Array::from_strs(&["a", ""]).into()),
        ("general.base_model.0.author", "x".into()),
        ("adapter.prefix_tuning_plus.note", Value::F64(0.1)),
        ("ptplus.note", Value::U64(u64::MAX)),
        ("x.scores", Array::from_f32(&[0.1, f32::NEG_INFINITY]).into()),
        ("x.small", Value::I8(-1)),
        ("x.flag", true.into()),
    ];
    with_metadata(&from, &path("theirs.gguf"), &foreign);

    for (from, to) in [("theirs.gguf", "again.gguf"), ("theirs.gguf", "folder"), ("folder", "back.gguf")] {
        let more = if from == "folder" { vec!["--base".to_owned(), base(name)] } else { Vec::new() };
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let out = convert(&path(from), &path(to), &more);
        assert_eq!(exit(&out), 0, "{to}: {}", stderr(&out));
    }
    for name in ["again.gguf", "back.gguf"] {
        let metadata = gguf::open(&path(name)).unwrap().metadata;
        for (key, value) in &foreign {
            assert_eq!(metadata.get(key), Some(value), "{name}: {key}");
        }
        // Ours are ours, and said once.
        assert_eq!(metadata.str("general.type").unwrap(), Some("adapter"));
        assert!(!metadata.str("ptplus.source_config").unwrap().unwrap().contains("license"), "{name}");
    }
    let config = RawAdapter::read(&path("folder")).config;
    assert_eq!(config["ptplus_gguf_metadata"]["general.license"], serde_json::json!({"type": "str", "value": "mit"}));
    assert_eq!(config["ptplus_gguf_metadata"].as_object().unwrap().len(), foreign.len());
}

/// What no reader would take is not written.
#[test]
fn a_configuration_beyond_its_limit_is_refused_and_one_at_it_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    let from = path("from.gguf");
    assert_eq!(exit(&convert(&model("llama-gqa").join("adapter"), &from, &["--base", &base("llama-gqa")])), 0);
    let strings = |n: usize| ptplus::format::gguf::Array::from_strs(&vec!["word"; n]).into();
    for (name, n, wanted) in [("small", 10, 0), ("indented", 60_000, 0), ("many", 70_000, 3)] {
        with_metadata(&from, &path("theirs.gguf"), &[("x.words", strings(n))]);
        let out = convert(&path("theirs.gguf"), &path(name), &[]);
        assert_eq!(exit(&out), wanted, "{name}: {}", stderr(&out));
        if wanted == 0 {
            assert_eq!(exit(&ptplus(["validate".as_ref(), path(name).as_os_str()])), 0, "{name}");
        } else {
            assert!(stderr(&out).contains("ptplus_gguf_metadata") && stderr(&out).contains("json-too-large"));
            assert!(!path(name).exists());
        }
    }
    with_metadata(&from, &path("theirs.gguf"), &[("x.text", "\u{1}".repeat(1 << 20).into())]);
    assert_eq!(exit(&convert(&path("theirs.gguf"), &path("long"), &[])), 3);
    assert_eq!(exit(&convert(&path("theirs.gguf"), &path("long.gguf"), &[])), 0);
}
