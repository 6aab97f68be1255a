//! `validate` lists every mismatch at once, each with tensor, expectation and finding; `inspect` shows what is there.

use crate::common::{RawAdapter, Tensor, exit, json, model, ptplus, stderr, stdout};

fn validate(a: &RawAdapter, base: &str) -> (i32, serde_json::Value) {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("a");
    a.write(&folder);
    json(["validate".as_ref(), folder.as_path(), "--base".as_ref(), model(base).join("base").as_path()])
}

fn findings(report: &serde_json::Value) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    report["findings"].as_array().unwrap().iter().map(|f| (text(&f["code"]), text(&f["place"]))).collect()
}

#[test]
fn every_fixture_is_valid_on_either_form_of_its_base() {
    for name in crate::common::MODELS {
        for base in ["base", "base.gguf"] {
            let (code, report) = json([
                "validate".as_ref(),
                model(name).join("adapter").as_path(),
                "--base".as_ref(),
                crate::common::base_as(base, name).as_path(),
                "--deep".as_ref(),
            ]);
            assert_eq!((code, &report["pass"]), (0, &true.into()), "{name}: {report}");
        }
    }
}

#[test]
fn all_mismatches_are_listed_at_once() {
    // llama-mha: 3 layers, 3 heads, 3 kv heads, head_dim 32. llama-gqa: 3, 4, 2, 64.
    let (code, report) = validate(&RawAdapter::fixture("llama-mha"), "llama-gqa");
    assert_eq!(code, 4, "{report}");
    let places: Vec<String> = findings(&report).into_iter().map(|f| f.1).collect();
    for place in ["num_attention_heads", "num_key_value_heads", "head_dim", "value head_dim"] {
        assert!(places.iter().any(|p| p == place), "{place} in {places:?}");
    }
    let f = &report["findings"][0];
    assert!(f["expected"].as_str().unwrap().contains('4') && f["found"] == "3", "{f}");
}

#[test]
fn each_kind_of_fault_is_found() {
    type Fault = (&'static str, fn(&mut RawAdapter), &'static str, &'static str, i32);
    let faults: [Fault; 11] = [
        ("layer count", |a| a.config["num_layers"] = 4.into(), "adapter-mismatch", "num_layers", 4),
        (
            "layer out of range",
            |a| {
                let t = a.tensors["layers.1.memory"].clone();
                a.tensors.insert("layers.7.memory".into(), t);
            },
            "adapter-mismatch",
            "layers.7",
            4,
        ),
        ("missing layer", |a| drop(a.tensors.remove("layers.1.memory")), "adapter-missing", "layers.1.memory", 4),
        (
            "bias without weight",
            |a| {
                drop(
                    a.tensors
                        .insert("layers.0.feature.bias".into(), Tensor { shape: vec![3, 32], values: vec![0.0; 96] }),
                )
            },
            "adapter-missing",
            "layers.0.feature.weight",
            4,
        ),
        (
            "left-over tensor",
            |a| drop(a.tensors.insert("layers.0.memory2".into(), Tensor { shape: vec![1], values: vec![0.0] })),
            "adapter-left-over",
            "layers.0.memory2",
            4,
        ),
        (
            "wrong head count in a tensor",
            |a| a.change("layers.2.memory", |t| t.permuted(0, &[0, 1])),
            "adapter-shape",
            "layers.2.memory",
            4,
        ),
        (
            "wrong feature count",
            |a| a.change("layers.2.memory", |t| t.permuted(1, &[0, 1])),
            "adapter-shape",
            "layers.2.memory",
            4,
        ),
        (
            "features that need a feature map",
            |a| a.config["num_features"] = 16.into(),
            "adapter-mismatch",
            "layers.0",
            4,
        ),
        (
            "another model type",
            |a| a.config["base_model_type"] = "mistral".into(),
            "adapter-mismatch",
            "base_model_type",
            4,
        ),
        (
            "NaN",
            |a| a.tensors.get_mut("layers.1.memory").unwrap().values[32 * 32 + 33] = f32::NAN,
            "non-finite",
            "layers.1.memory",
            3,
        ),
        (
            "Inf",
            |a| a.tensors.get_mut("layers.2.memory").unwrap().values[0] = f32::NEG_INFINITY,
            "non-finite",
            "layers.2.memory",
            3,
        ),
    ];
    let mut wrong = Vec::new();
    for (what, fault, code, place, expected_exit) in faults {
        let mut a = RawAdapter::fixture("llama-mha");
        fault(&mut a);
        let (exit, report) = validate(&a, "llama-mha");
        if exit != expected_exit || !findings(&report).contains(&(code.into(), place.into())) {
            wrong.push(format!("{what}: exit {exit}, {}", report["findings"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut a = RawAdapter::fixture("llama-mha");
    a.tensors.get_mut("layers.1.memory").unwrap().values[32 * 32 + 33] = f32::NAN;
    assert_eq!(validate(&a, "llama-mha").1["findings"][0]["found"], "NaN at [1, 1, 1]");
}

#[test]
fn inspect_tells_adapters_bases_and_plain_files_apart() {
    let temp = tempfile::tempdir().unwrap();
    let gguf = temp.path().join("a.gguf");
    let out = ptplus([
        "convert".as_ref(),
        model("qwen3").join("adapter").as_os_str(),
        "-o".as_ref(),
        gguf.as_os_str(),
        "--arch".as_ref(),
        "qwen3".as_ref(),
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let m = model("qwen3");
    let cases = [
        (m.join("adapter"), "adapter", 6),
        (m.join("adapter/adapter_model.safetensors"), "adapter", 6),
        (gguf, "adapter", 6),
        (m.join("base"), "base", 25),
        (crate::common::base_gguf("qwen3"), "base", 25),
        (m.join("probe.safetensors"), "safetensors", 7),
    ];
    for (path, kind, n_tensors) in cases {
        let (code, found) = json(["inspect".as_ref(), path.as_path()]);
        assert_eq!(code, 0, "{}", path.display());
        assert_eq!(found["kind"], kind, "{}", path.display());
        assert_eq!(found["tensors"].as_array().unwrap().len(), n_tensors, "{}", path.display());
        let elements: u64 = found["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>())
            .sum();
        assert_eq!(found["n_parameters"].as_u64().unwrap(), elements, "{}", path.display());
    }
}

#[test]
fn control_characters_in_names_are_shown_escaped() {
    let temp = tempfile::tempdir().unwrap();
    let mut a = RawAdapter::fixture("llama-mha");
    a.config["note\u{1b}[31m\n"] = "red\u{7}".into();
    let folder = temp.path().join("a");
    a.write(&folder);
    let out = ptplus(["inspect".as_ref(), folder.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let text = stdout(&out);
    assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
    assert!(text.contains("note\\u{1b}[31m\\n = red\\u{7}"), "{text}");
}

#[test]
fn errors_are_one_line_with_a_code_and_the_documented_exit_code() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = temp.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let missing = temp.path().join("missing");
    let empty = write("empty.gguf", b"");
    let truncated = write("t.gguf", &std::fs::read(crate::common::base_gguf("qwen2")).unwrap()[..1000]);
    let text = write("a.txt", b"hello, this is no model at all");
    let adapter = model("qwen2").join("adapter");
    let base = crate::common::base_gguf("qwen2");
    let cases: [(Vec<&std::ffi::OsStr>, i32); 9] = [
        (vec!["inspect".as_ref(), missing.as_ref()], 1),
        (vec!["inspect".as_ref(), empty.as_ref()], 7),
        (vec!["inspect".as_ref(), truncated.as_ref()], 3),
        (vec!["inspect".as_ref(), text.as_ref()], 7),
        (vec!["validate".as_ref(), base.as_ref()], 7),
        (vec!["validate".as_ref(), adapter.as_ref(), "--base".as_ref(), missing.as_ref()], 1),
        (vec!["verify".as_ref(), adapter.as_ref(), "--base".as_ref(), base.as_ref()], 2),
        (
            vec![
                "verify".as_ref(),
                adapter.as_ref(),
                "--base".as_ref(),
                base.as_ref(),
                "--against".as_ref(),
                adapter.as_ref(),
                "--device".as_ref(),
                "cuda".as_ref(),
            ],
            7,
        ),
        (vec!["frobnicate".as_ref()], 2),
    ];
    for (args, expected) in cases {
        let out = ptplus(&args);
        assert_eq!(exit(&out), expected, "{args:?}: {}", stderr(&out));
        assert!(stdout(&out).is_empty(), "{args:?}");
        if expected != 2 {
            let text = stderr(&out);
            let (line, hints) = text.trim_end().split_once('\n').unwrap_or((text.trim_end(), ""));
            assert!(line.starts_with("error: ") && line.ends_with(']'), "{args:?}: {text}");
            assert!(hints.lines().all(|l| l.starts_with("hint: ")), "{args:?}: {text}");
        }
    }
    let (code, report) = json(["inspect".as_ref(), truncated.as_path()]);
    assert_eq!((code, &report["status"], &report["schema_version"]), (3, &"failed".into(), &1.into()));
    assert_eq!(report["error"]["exit_code"], 3);
}
