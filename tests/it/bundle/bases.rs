//! Which base an adapter was made for.

use std::path::Path;

use ptplus::base::BaseModel;
use ptplus::base::fingerprint::{Fingerprint, Touched};
use serde_json::Value;

use super::commands::{pack, text};
use crate::common::{base_gguf, exit, json, model, ptplus, read_safetensors, stderr, write_safetensors};

/// A copy of a fixture's base with one value of one tensor changed.
pub fn changed_base(name: &str, tensor: &str, folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let from = model(name).join("base");
    std::fs::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    let mut tensors = read_safetensors(&from.join("model.safetensors"));
    tensors.get_mut(tensor).unwrap().values[7] += 1e-3;
    write_safetensors(&folder.join("model.safetensors"), &tensors);
}

#[test]
fn every_row_of_the_query_projection_counts_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let print = |file: &Path| {
        Fingerprint::of(&BaseModel::open(file).unwrap(), &Touched::Queries(vec![0, 2])).unwrap().to_string()
    };
    for dtype in ["f32", "f16", "bf16", "q8_0", "q4_0"] {
        let file = dir.path().join(format!("{dtype}.gguf"));
        let base = text(&model("llama-gqa").join("base"));
        let out = ptplus(["convert", &base, "-o", &text(&file), "--outtype", dtype]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let before = print(&file);
        let opened = ptplus::format::gguf::open(&file).unwrap();
        let query = opened.tensors.iter().find(|t| t.name == "blk.2.attn_q.weight").unwrap();
        let (start, n_rows) = (query.file_offset as usize, query.shape[0]);
        let row_bytes = query.bytes.len() / n_rows;
        let original = std::fs::read(&file).unwrap();
        drop(opened);
        for row in [0, 1, n_rows / 2, n_rows - 1] {
            // The byte before the last: of an element's mantissa, or of two elements of a block.
            let mut changed = original.clone();
            changed[start + (row + 1) * row_bytes - 2] ^= 1;
            let other = dir.path().join("changed.gguf");
            std::fs::write(&other, changed).unwrap();
            assert_ne!(print(&other), before, "{dtype}, row {row}");
        }
    }
}

fn state(document: &Value) -> &str {
    document["base_identity"]["state"].as_str().unwrap_or("none")
}

#[test]
fn another_base_of_the_same_shapes_is_refused_and_ignoring_that_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-gqa"); // adapts layers 0 and 2 of 3
    let (base, gguf_base) = (text(&m.join("base")), text(&base_gguf("llama-gqa")));
    changed_base("llama-gqa", "model.layers.2.self_attn.q_proj.weight", &path("adapted"));
    changed_base("llama-gqa", "model.layers.1.self_attn.q_proj.weight", &path("not-adapted"));
    changed_base("llama-gqa", "model.layers.0.mlp.up_proj.weight", &path("elsewhere"));
    let adapter = text(&path("a.gguf"));
    assert_eq!(exit(&ptplus(["convert", &text(&m.join("adapter")), "-o", &adapter, "--base", &base])), 0);
    pack("llama-gqa", &path("b.tar"), &[]);
    let folder = text(&path("folder"));
    assert_eq!(exit(&ptplus(["convert", &adapter, "-o", &folder])), 0);
    let config: Value = serde_json::from_slice(&std::fs::read(path("folder/adapter_config.json")).unwrap()).unwrap();
    assert!(config["ptplus_base_fingerprint"].is_string(), "it stays with the safetensors form");

    let bundle = text(&path("b.tar"));
    for form in [&adapter, &folder, &bundle] {
        let deep = |base: &str| json(["validate", form, "--base", base, "--deep"]);
        for same in [&base, &gguf_base, &text(&path("not-adapted")), &text(&path("elsewhere"))] {
            let (code, document) = deep(same);
            assert_eq!((code, state(&document)), (0, "same"), "{form} {same}: {document}");
        }
        let (code, document) = deep(&text(&path("adapted")));
        assert_eq!((code, &document["findings"][0]["code"]), (4, &Value::from("base-differs")), "{document}");
        // Without --deep the weights are not read, and nothing is claimed of them.
        let (code, document) = json(["validate", form, "--base", &text(&path("adapted"))]);
        assert_eq!((code, state(&document)), (0, "cannot_tell"), "{document}");
    }
    let other = text(&path("adapted"));
    let probe = text(&m.join("probe.safetensors"));
    let never = text(&path("never"));
    for args in [
        vec!["verify", &adapter, "--base", &other, "--probe", &probe],
        vec!["check", &bundle, "--base", &other],
        vec!["convert", &adapter, "-o", &never, "--base", &other],
        vec!["pack", &adapter, "-o", &never, "--base", &other],
    ] {
        let out = ptplus(&args);
        assert_eq!(exit(&out), 4, "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).contains("[base-differs]"), "{}", stderr(&out));
    }
    let (code, document) = json(["check", &bundle, "--base", &other, "--ignore-base-mismatch"]);
    assert_eq!((code, state(&document)), (0, "different"));
    let ignored = path("ignored");
    let out = ptplus([
        "pack",
        &adapter,
        "-o",
        &text(&ignored),
        "--base",
        &other,
        "--ignore-base-mismatch",
        "--outtype",
        "f16",
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stderr(&out).contains("not the base that the adapter was made for"), "{}", stderr(&out));
    let manifest: Value = serde_json::from_slice(&std::fs::read(ignored.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["base"]["mismatch_ignored"], true);
    assert!(std::fs::read_to_string(ignored.join("README.md")).unwrap().contains("ignored on request"));
    // What it was made for stays known.
    let (code, document) = json(["check", &text(&ignored), "--base", &base]);
    assert_eq!((code, state(&document)), (0, "same"), "{document}");
}

#[test]
fn another_configuration_is_seen_in_the_headers() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("qwen2");
    let adapter = text(&path("a.gguf"));
    let base = text(&m.join("base"));
    assert_eq!(exit(&ptplus(["convert", &text(&m.join("adapter")), "-o", &adapter, "--base", &base])), 0);
    std::fs::create_dir(path("other")).unwrap();
    std::fs::copy(m.join("base/model.safetensors"), path("other/model.safetensors")).unwrap();
    let text_of = std::fs::read_to_string(m.join("base/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text_of).unwrap();
    config["rms_norm_eps"] = 0.5.into();
    std::fs::write(path("other/config.json"), config.to_string()).unwrap();
    let (code, document) = json(["validate", &adapter, "--base", &text(&path("other"))]);
    assert_eq!((code, state(&document)), (4, "different"), "{document}");
}
