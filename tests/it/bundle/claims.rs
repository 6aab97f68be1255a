//! What a manifest says of the adapter beside the hashes of its files.

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::format::bundle::check::file_sha256;
use ptplus::format::bundle::manifest::{self, FileEntry};
use ptplus::tensor::Bytes;
use serde_json::{Value, json as object};

use super::commands::{pack, text};
use crate::common::{exit, json, model, ptplus, stderr};

/// Writes the manifest of a folder anew, its hashes right, after `change`.
pub fn reseal(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("manifest.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut document);
    let files = document["files"].as_array().unwrap().iter().map(|f| {
        let name = f["path"].as_str().unwrap().to_owned();
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        (name, FileEntry { size: bytes.len() as u64, sha256: file_sha256(&Bytes::from(bytes)) })
    });
    let files: BTreeMap<String, FileEntry> = files.collect();
    let text = manifest::write(&files, document.as_object().unwrap().clone());
    std::fs::write(path, text).unwrap();
}

/// Exit code and places of the findings of `check`.
fn checked(folder: &Path) -> (i32, Vec<String>) {
    let (code, document) = json(["check", &text(folder)]);
    let places = document["findings"].as_array().into_iter().flatten();
    (code, places.map(|f| f["place"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_resealed_manifest_must_still_be_true_of_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("b");
    pack("llama-gqa", &folder, &[]);
    reseal(&folder, |_| {});
    assert_eq!(checked(&folder), (0, vec![]));
    let original = std::fs::read(folder.join("manifest.json")).unwrap();
    for (field, value) in [
        ("/base/fingerprint", object!("ptplus-base/3 another")),
        ("/adapter/digest/canonical", object!("0")),
        ("/tensors", object!([])),
    ] {
        reseal(&folder, |d| *d.pointer_mut(field).unwrap() = value);
        let (code, places) = checked(&folder);
        assert_eq!((code, places.len()), (6, 1), "{field}: {places:?}");
        std::fs::write(folder.join("manifest.json"), &original).unwrap();
    }
    // What describes the adapter in words, and files that are not there.
    for (field, value) in [
        ("/adapter/feature_map", object!("relu")),
        ("/adapter/num_attention_heads", object!(99)),
        ("/adapter/query_scale", object!(2.0)),
        ("/adapter", object!(5)),
        ("/base/architecture", object!("qwen2")),
        ("/reports", object!(["reports/none.json"])),
        ("/reports", object!("reports")),
        ("/reports", object!([5])),
        ("/base/model_type", object!(5)),
        ("/base/mismatch_ignored", object!("x")),
        ("/base/mismatch_ignored", object!(true)),
        ("/base/name", object!([])),
        ("/adapter/download_name", object!("../../etc/passwd")),
        ("/adapter/download_name", object!("a/b.gguf")),
        ("/adapter/download_name", object!("\u{1b}[31m")),
        ("/source/sha256", object!("0".repeat(64))),
        ("/source/layout", object!(1)),
        ("/command", object!(["ptplus"])),
        ("/notes", object!("none")),
    ] {
        reseal(&folder, |d| *d.pointer_mut(field).unwrap() = value.clone());
        let (code, places) = checked(&folder);
        assert_eq!((code, places.len()), (6, 1), "{field} {value}: {places:?}");
        let out = dir.path().join("unpacked");
        assert_eq!(exit(&ptplus(["unpack", &text(&folder), "-o", &text(&out)])), 6, "{field} {value}");
        assert!(!out.exists());
        std::fs::write(folder.join("manifest.json"), &original).unwrap();
    }
    let report = folder.join("reports/verification.json");
    let right = std::fs::read(&report).unwrap();
    for wrong in [&br#"{"pass":false}"#[..], b"{}", b"[]", b"\xff"] {
        std::fs::write(&report, wrong).unwrap();
        reseal(&folder, |_| {});
        assert_eq!(checked(&folder), (6, vec!["reports/verification.json".into()]));
    }
    std::fs::write(&report, right).unwrap();
    std::fs::write(folder.join("manifest.json"), &original).unwrap();
    reseal(&folder, |d| d["signature"] = object!({ "public_key": 5 }));
    assert_eq!(checked(&folder), (6, vec!["manifest.json.minisig".into()]));
    std::fs::write(folder.join("manifest.json"), &original).unwrap();

    // Another adapter of the same form in its place.
    let file = folder.join("adapter.gguf");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    reseal(&folder, |_| {});
    assert_eq!(checked(&folder).0, 6);
}

#[test]
fn the_adapter_in_a_bundle_names_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let m = model("llama-gqa");
    let ok = |args: &[&str]| {
        let out = ptplus(args);
        assert_eq!(exit(&out), 0, "{args:?}: {}", stderr(&out));
    };
    let (base, adapter, probe) = (text(&m.join("base")), text(&m.join("adapter")), text(&m.join("probe.safetensors")));
    // Converted without a base, so without its fingerprint.
    ok(&["convert", &adapter, "-o", &path("arch.gguf"), "--arch", "llama"]);
    ok(&["pack", &path("arch.gguf"), "-o", &path("arch.tar"), "--base", &base, "--probe", &probe]);
    ok(&["check", &path("arch.tar"), "--base", &base]);
    // Its manifest says which base it was packed with, to whoever brings one.
    let unnamed = |value: Value| {
        let folder = dir.path().join("unnamed");
        let _ = std::fs::remove_dir_all(&folder);
        ok(&["pack", &adapter, "--to", "safetensors", "-o", &text(&folder), "--base", &base, "--probe", &probe]);
        let config = folder.join("adapter_config.json");
        let mut stated: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        for key in ["ptplus_base_fingerprint", "base_model_type"] {
            stated.as_object_mut().unwrap().remove(key);
        }
        std::fs::write(&config, stated.to_string()).unwrap();
        // It names the adapter's files, and would not be true of this one.
        std::fs::remove_file(folder.join("provenance.json")).unwrap();
        reseal(&folder, |d| {
            d["files"].as_array_mut().unwrap().retain(|f| f["path"] != "provenance.json");
            d.pointer_mut("/base").unwrap().as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        });
        exit(&ptplus(["check", &text(&folder), "--base", &base]))
    };
    assert_eq!(unnamed(object!({})), 0);
    assert_eq!(unnamed(object!({ "fingerprint": "rubbish" })), 6);
    for wrong in [
        object!({ "fingerprint": format!("ptplus-base/1 config={0} query={0} type=F32", "0".repeat(64)) }),
        object!({ "architecture": "gpt2" }),
        object!({ "model_type": "gpt2" }),
    ] {
        assert_eq!(unnamed(wrong.clone()), 4, "{wrong}");
    }
    let other = dir.path().join("other");
    super::bases::changed_base("llama-gqa", "model.layers.2.self_attn.q_proj.weight", &other);
    assert_eq!(exit(&ptplus(["check", &path("arch.tar"), "--base", &text(&other)])), 4);

    ok(&["convert", &adapter, "-o", &path("named.gguf"), "--base", &base]);
    ok(&["pack", &path("named.gguf"), "-o", &path("b"), "--base", &text(&other), "--ignore-base-mismatch"]);
    let document: Value = serde_json::from_slice(&std::fs::read(path("b/manifest.json")).unwrap()).unwrap();
    assert_eq!(document["base"]["mismatch_ignored"], true, "{document}");
}

/// However a manifest spells what it is, and whatever stands in its place: what `check` refuses, nobody reads.
#[test]
fn a_damaged_manifest_does_not_make_a_bundle_an_unchecked_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("b");
    pack("llama-gqa", &folder, &[]);
    let path = folder.join("manifest.json");
    let files = std::fs::read_to_string(&path).unwrap();
    let sha = &files[files.find("\"sha256\": \"").unwrap() + 11..][..64];
    // Another name for the schema, no digest of itself, a wrong hash.
    let disguised = files
        .replace("ptplus-bundle/1", "ptplus-bundl\\u0065/1")
        .replace(sha, &"0".repeat(64))
        .replace("self_sha256", "self")
        .replace("\"name\": \"ptplus\"", "\"name\": \"x\"");
    let read = |command: &str| exit(&ptplus([command, &text(&folder)]));
    let place = |content: Option<&str>| {
        let _ = std::fs::remove_file(&path);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::os::unix::fs::symlink("nowhere", &path).unwrap(),
        }
    };
    for content in [Some(&*disguised), Some(&*format!("{}{files}", " ".repeat(5 << 20))), Some("{"), None] {
        place(content);
        for command in ["check", "inspect", "validate", "hash"] {
            assert_eq!(read(command), 6, "{command}: {:?}", content.map(|c| c.len()));
        }
    }
    // Another program's manifest beside an adapter is none of ours.
    place(Some("{\"manifest_version\": 3}"));
    std::fs::remove_dir_all(folder.join("reports")).unwrap();
    assert_eq!(read("validate"), 0);
}

#[test]
fn converting_into_a_bundle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("b");
    pack("llama-gqa", &folder, &[]);
    let adapter = text(&model("llama-gqa").join("adapter"));
    let out = ptplus(["convert", &adapter, "-o", &text(&folder), "--force"]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
    assert_eq!(checked(&folder), (0, vec![]));
}

#[test]
fn a_bundle_holds_one_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("b");
    pack("llama-gqa", &folder, &[]);
    std::fs::copy(
        model("llama-gqa").join("adapter/adapter_model.safetensors"),
        folder.join("adapter_model.safetensors"),
    )
    .unwrap();
    reseal(&folder, |d| {
        let files = d["files"].as_array_mut().unwrap();
        files.push(object!({ "path": "adapter_model.safetensors", "size": 0, "sha256": "" }));
    });
    assert_eq!(checked(&folder).0, 6);
}

#[test]
fn unpacking_does_not_follow_links_out_of_its_target() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    pack("llama-gqa", &path("b.tar"), &[]);
    std::fs::create_dir(path("elsewhere")).unwrap();
    std::fs::create_dir(path("target")).unwrap();
    std::os::unix::fs::symlink(path("elsewhere"), path("target/reports")).unwrap();
    std::fs::write(path("target/other"), "mine").unwrap();
    let out = ptplus(["unpack", &text(&path("b.tar")), "-o", &text(&path("target")), "--force"]);
    assert_ne!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(std::fs::read_dir(path("elsewhere")).unwrap().count(), 0);
}

#[test]
fn inspect_says_that_it_is_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    pack("llama-gqa", &dir.path().join("b"), &[]);
    let (code, document) = json(["inspect", &text(&dir.path().join("b"))]);
    assert_eq!((code, &document["kind"]), (0, &"adapter".into()));
    assert!(document["format"].as_str().unwrap().ends_with("in a bundle whose hashes hold"), "{document}");
}
