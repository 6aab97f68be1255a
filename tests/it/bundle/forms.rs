//! A bundle that has its adapter in several forms: each proved, one chosen.

use std::path::Path;

use serde_json::Value;

use super::commands::{pack, text};
use crate::common::{exit, fixtures, json, model, ptplus, stderr, stdout};

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn several_types_and_peft_lie_in_one_bundle_each_with_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let m = model("llama-gqa");
    let (base, adapter, probe) = (text(&m.join("base")), text(&m.join("adapter")), text(&m.join("probe.safetensors")));
    for output in ["b", "b.tar"] {
        let document = pack(
            "llama-gqa",
            &dir.path().join(output),
            &["--outtype", "f16,Q8_0", "--to", "gguf,safetensors", "--probe", &probe],
        );
        let names: Vec<&str> =
            document["forms"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["f16", "q8_0", "safetensors"], "{document}");
        assert_eq!(exit(&ptplus(["check", &path(output), "--base", &base])), 0);
        for (form, file_type) in [
            (None, "F16"),
            (Some("f16"), "F16"),
            (Some("Q8_0"), "Q8_0"),
            (Some("adapter-q8_0.gguf"), "Q8_0"),
            (Some("safetensors"), "F32"),
        ] {
            let form: Vec<&str> = form.into_iter().flat_map(|f| ["--form", f]).collect();
            let out = ptplus([&["verify", &path(output), "--base", &base, "--probe", &probe], &form[..]].concat());
            assert_eq!(exit(&out), 0, "{form:?}: {}{}", stdout(&out), stderr(&out));
            let (code, report) = json([&["inspect", &path(output)], &form[..]].concat());
            assert_eq!(code, 0);
            assert!(report.to_string().contains(&format!("\"{file_type}\"")), "{form:?}: {report}");
        }
        let out = ptplus(["verify", &path(output), "--base", &base, "--probe", &probe, "--form", "q4_0"]);
        assert!(exit(&out) == 2 && stderr(&out).contains("f16, q8_0, safetensors"), "{}", stderr(&out));
        // One form packed or converted out of it.
        let again = path(&format!("again-{output}"));
        let out = ptplus([
            "pack",
            &path(output),
            "--base",
            &base,
            "-o",
            &again,
            "--form",
            "safetensors",
            "--to",
            "safetensors",
        ]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(exit(&ptplus(["diff", &again, &adapter])), 0);
        let out =
            ptplus(["pack", &path(output), "--base", &base, "-o", &path(&format!("q8-{output}")), "--form", "q8_0"]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    }
    let b = dir.path().join("b");
    assert!(
        std::fs::read(b.join("adapter-q8_0.gguf")).unwrap()
            == std::fs::read(dir.path().join("q8-b/adapter.gguf")).unwrap()
    );
    for report in ["verification", "verification-q8_0", "verification-safetensors", "conversion-q8_0"] {
        let report: Value =
            serde_json::from_slice(&std::fs::read(b.join(format!("reports/{report}.json"))).unwrap()).unwrap();
        assert!(report.is_object());
    }
    let card = std::fs::read_to_string(b.join("README.md")).unwrap();
    assert!(card.contains("| `q8_0` | `adapter-q8_0.gguf` | Q8_0 |") && card.contains("library_name: peft"), "{card}");
    // The folder is the one that PEFT loads.
    assert!(b.join("adapter_model.safetensors").is_file() && b.join("adapter_config.json").is_file());
    assert_eq!(exit(&ptplus(["unpack", &path("b.tar"), "-o", &path("u")])), 0);
    let same = std::process::Command::new("diff").arg("-r").args([path("b"), path("u")]).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    // A form is held against what the manifest says of it.
    let whole = std::fs::read(b.join("manifest.json")).unwrap();
    for (key, value) in [("type", "F16"), ("file", "none.gguf"), ("report", "reports/none.json"), ("name", "")] {
        super::claims::reseal(&b, |d| d["forms"][1][key] = value.into());
        assert_eq!(exit(&ptplus(["check", &path("b")])), 6, "{key}");
        std::fs::write(b.join("manifest.json"), &whole).unwrap();
    }
    super::claims::reseal(&b, |d| d["forms"][1]["digest"] = d["forms"][0]["digest"].clone());
    assert_eq!(exit(&ptplus(["check", &path("b")])), 6);
    // Without a word of the manifest there are two adapters, and none is chosen.
    super::claims::reseal(&b, |d| drop(d.as_object_mut().unwrap().remove("forms")));
    assert_eq!(exit(&ptplus(["check", &path("b")])), 6);
    assert!(manifest(&dir.path().join("u"))["forms"].as_array().unwrap().len() == 3);
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-pre-rope");
    let (base, adapter, output) = (text(&m.join("base")), text(&m.join("adapter")), text(&dir.path().join("b")));
    for more in [
        &["--outtype", "f16,F16"][..],
        &["--outtype", "f16,f32", "--to", "safetensors"],
        &["--outtype", "f16,none"],
        &["--outtype", "f16,q8_0", "--auto", "KL=1"],
    ] {
        let out = ptplus([&["pack", &adapter, "--base", &base, "-o", &output], more].concat());
        assert_eq!(exit(&out), 2, "{more:?}: {}", stderr(&out));
    }
    assert_eq!(exit(&ptplus(["validate", &adapter, "--form", "f16"])), 2, "no bundle");
    // A LoRA, too.
    let case = fixtures().join("lora/llama-rslora-patterns");
    let (base, adapter) = (text(&case.join("base")), text(&case.join("adapter")));
    let out = ptplus(["pack", &adapter, "--base", &base, "-o", &output, "--to", "gguf,safetensors"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(exit(&ptplus(["check", &output, "--base", &base])), 0);
    assert_eq!(exit(&ptplus(["verify", &output, "--base", &base, "--against", &adapter, "--form", "safetensors"])), 0);
}
