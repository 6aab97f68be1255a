//! Bundles of a model: a base with LoRAs merged into it.

use std::path::{Path, PathBuf};

use ptplus::format::bundle::Bundle;
use ptplus::format::bundle::check::check;
use rayon::prelude::*;
use serde_json::{Value, json as object};

use super::claims::reseal;
use super::commands::text;
use crate::common::{exit, fixtures, json, ptplus, stderr, stdout};

fn case(name: &str) -> PathBuf {
    fixtures().join("lora").join(name)
}

/// `pack BASE --merge ADAPTER`.
fn pack(name: &str, output: &Path, more: &[&str]) -> (i32, Value) {
    let (base, adapter) = (text(&case(name).join("base")), text(&case(name).join("adapter")));
    json([&["pack", &base, "--merge", &adapter, "-o", &text(output)], more].concat())
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn a_merged_model_is_proved_packed_and_accepted_wherever_a_base_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    for name in ["llama-dora", "llama-rslora-patterns"] {
        let (base, adapter) = (text(&case(name).join("base")), text(&case(name).join("adapter")));
        let probe = text(&case(name).join("probe.safetensors"));
        for end in ["", ".tar"] {
            let bundle = path(&format!("{name}{end}"));
            let more = ["--probe", &probe, "--license", "mit", "--base-model", "org/base", "--language", "en"];
            let (code, document) = pack(name, Path::new(&bundle), &more);
            assert_eq!((code, &document["missing_for_a_hub"]), (0, &object!([])), "{document}");
            for args in [
                vec!["check", &bundle],
                vec!["verify", &bundle, "--probe", &probe],
                vec!["verify", &bundle, "--probe", &probe, "--base", &base],
                vec!["inspect", &bundle],
                vec!["hash", &bundle],
                vec!["convert", &bundle, "-o", &path("again.gguf"), "--force"],
            ] {
                let out = ptplus(&args);
                assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
            }
            // It is a base, and no adapter.
            for (args, code) in [
                (vec!["check", &bundle, "--base", &base], 2),
                (vec!["validate", &bundle, "--base", &base], 7),
                (vec!["convert", &bundle, "-o", &path("x"), "--base", &base], 2),
            ] {
                let out = ptplus(&args);
                assert_eq!(exit(&out), code, "{args:?}: {}{}", stdout(&out), stderr(&out));
            }
        }
        // What `convert --merge` writes, but for what is said about it.
        let merged = path("merged.gguf");
        let out = ptplus(["convert", &base, "--merge", &adapter, "-o", &merged, "--force"]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let digest = |path: &str| json(["hash", path]).1["digests"][0]["sha256"].clone();
        assert_eq!(digest(&merged), digest(&path(name)));
        // The archive is the folder, and unpacks to it.
        let unpacked = path(&format!("{name}-unpacked"));
        assert_eq!(exit(&ptplus(["unpack", &path(&format!("{name}.tar")), "-o", &unpacked])), 0);
        let same = std::process::Command::new("diff").arg("-r").args([&path(name), &unpacked]).output().unwrap();
        assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    }
    let folder = dir.path().join("llama-dora");
    let m = manifest(&folder);
    assert_eq!((m["model"]["type"].as_str(), m["about"]["base_model"].as_str()), (Some("merged"), Some("org/base")));
    assert_eq!((m["merged"][0]["name"].as_str(), m["merged"][0]["type"].as_str()), (Some("adapter"), Some("lora")));
    let materials = std::fs::read_to_string(folder.join("provenance.json")).unwrap();
    for name in ["adapter_model.safetensors", "adapter_config.json", "probe.safetensors", "ptplus-base/3 "] {
        assert!(materials.contains(name), "{name}: {materials}");
    }
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for line in [
        "license: \"mit\"",
        "base_model: \"org/base\"",
        "base_model_relation: finetune",
        "library_name: gguf",
        "# llama-dora with adapter",
    ] {
        assert!(card.lines().any(|l| l == line), "{line}: {card}");
    }
    assert!(card.contains("ptplus run --base . -p PROMPT") && card.contains("llama-server -m model.gguf"), "{card}");
}

#[test]
fn several_types_of_a_merged_model_are_each_held_against_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("b");
    for name in ["llama-dora", "llama-rslora-patterns", "llama-head-embed", "qwen3-all-linear"] {
        let probe = text(&case(name).join("probe.safetensors"));
        let (code, document) = pack(name, &output, &["--outtype", "f16,bf16,q8_0", "--probe", &probe, "--force"]);
        assert_eq!(code, 0, "{name}: {document}");
        let names: Vec<&str> =
            document["forms"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["f16", "bf16", "q8_0"]);
        assert_eq!(exit(&ptplus(["check", &text(&output)])), 0);
        for form in document["forms"].as_array().unwrap() {
            let file = text(&output.join(form["file"].as_str().unwrap()));
            assert_eq!(exit(&ptplus(["verify", &file, "--probe", &probe])), 0, "{name}: {form}");
        }
        // Without a probe, beside the base with the adapter.
        let (code, document) = pack(name, &output, &["--outtype", "f16,q8_0", "--force"]);
        assert_eq!((code, document["reference"].as_str()), (0, Some("its base with the adapters beside it")));
    }
}

#[test]
fn a_scale_counts_in_the_model_in_what_proves_it_and_in_what_the_manifest_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let name = "llama-rslora-patterns";
    let (base, adapter) = (text(&case(name).join("base")), text(&case(name).join("adapter")));
    let half = format!("{adapter}:0.5");
    let (code, document) = json(["pack", &base, "--merge", &half, "-o", &path("b")]);
    assert_eq!(code, 0, "{document}");
    assert_eq!(manifest(Path::new(&path("b")))["merged"][0]["scale"], object!(0.5));
    let digest = |path: &str| json(["hash", path]).1["digests"][0]["sha256"].clone();
    for (merged, scaled, is_same) in [(path("half.gguf"), &half, true), (path("whole.gguf"), &adapter, false)] {
        let out = ptplus(["convert", &base, "--merge", scaled, "-o", &merged]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(digest(&merged) == digest(&path("b")), is_same, "{merged}");
    }
    assert_eq!(exit(&ptplus(["check", &path("b")])), 0);
}

#[test]
fn what_is_merged_wrong_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("b");
    let name = "llama-rslora-patterns";
    let (base, adapter) = (text(&case(name).join("base")), text(&case(name).join("adapter")));
    let probe = text(&case(name).join("probe.safetensors"));
    for types in ["keep", "f16", "bf16", "q8_0", "f16,q8_0"] {
        let half = format!("{adapter}:0.9");
        let out =
            ptplus(["pack", &base, "--merge", &half, "--probe", &probe, "--outtype", types, "-o", &text(&output)]);
        assert!(exit(&out) == 5 && stderr(&out).contains("nothing was written"), "{types}: {}", stderr(&out));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{types}");
    }
    for (more, code) in [
        (vec!["--to", "safetensors"], 2),
        (vec!["--base", &base], 2),
        (vec!["--feature-map", "elu"], 2),
        (vec!["--outtype", "f16,f16"], 2),
    ] {
        let out = ptplus([vec!["pack", &base, "--merge", &adapter, "-o", &text(&output)], more.clone()].concat());
        assert_eq!(exit(&out), code, "{more:?}: {}", stderr(&out));
    }
    // What no adapter's file says, and blocks that nobody allows to be made anew, by the names that they would have had.
    let dora = text(&case("llama-dora").join("adapter"));
    let dora_base = text(&case("llama-dora").join("base"));
    let out = ptplus(["pack", &dora, "--base", &dora_base, "-o", &text(&output)]);
    let expected = format!("error: {}: ", output.join("adapter.gguf").display());
    assert!(exit(&out) == 7 && stderr(&out).starts_with(&expected), "{}", stderr(&out));
    let elsewhere = tempfile::tempdir().unwrap();
    let blocks = text(&elsewhere.path().join("blocks.gguf"));
    assert_eq!(exit(&ptplus(["convert", &base, "-o", &blocks, "--outtype", "q8_0"])), 0);
    let args = ["pack", &blocks, "--merge", &adapter, "--outtype", "f16,q8_0", "-o", &text(&output)];
    let out = ptplus(args);
    assert!(exit(&out) == 2 && stderr(&out).contains("--allow-requantize"), "{}", stderr(&out));
    assert!(stderr(&out).starts_with(&format!("error: {}: ", output.display())), "{}", stderr(&out));
    // A Prefix-Tuning+ adapter is no addition to weights.
    let plus = fixtures().join("models/llama-mha");
    let out =
        ptplus(["pack", &text(&plus.join("base")), "--merge", &text(&plus.join("adapter")), "-o", &text(&output)]);
    assert!(exit(&out) == 7 && stderr(&out).contains("cannot be merged"), "{}", stderr(&out));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_merged_bundle_is_signed_sealed_and_held_to_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    for args in [
        vec!["keygen", &path("k.key"), "--no-password"],
        vec!["keygen", &path("k.pem"), "--public", &path("pem.pub"), "--oms", "--no-password"],
    ] {
        assert_eq!(exit(&ptplus(args)), 0);
    }
    let folder = dir.path().join("b");
    let more = ["--outtype", "f16,q8_0", "--sign", &path("k.key"), "--no-password", "--sign-oms", &path("k.pem")];
    for output in [&folder, &dir.path().join("same")] {
        let (code, document) = pack("llama-rslora-patterns", output, &more);
        assert_eq!(code, 0, "{document}");
    }
    let same = std::process::Command::new("diff").arg("-r").args([&path("b"), &path("same")]).output().unwrap();
    assert!(same.status.success(), "the same inputs give the same bytes: {}", String::from_utf8_lossy(&same.stdout));
    for key in ["k.pub", "pem.pub"] {
        assert_eq!(exit(&ptplus(["check", &path("b"), "--trusted-key", &path(key)])), 0, "{key}");
    }
    // Some bits of every file.
    let whole = Bundle::open(&folder).unwrap();
    let missed: Vec<String> = (whole.files.par_iter())
        .filter(|(file, _)| *file != "README.md")
        .flat_map_iter(|(file, bytes)| {
            let step = (bytes.len() * 8 / 40).max(1) + 1;
            let whole = &whole;
            (0..bytes.len() * 8).step_by(step).filter_map(move |bit| {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                let mut flipped = whole.clone();
                flipped.files.insert(file.clone(), bad.into());
                let found = check(&flipped, None).findings;
                (!found.iter().any(|f| f.place.starts_with(file.as_str()))).then(|| format!("bit {bit} of {file}"))
            })
        })
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
    // A card is its owner's; another file wants a seal, and the model takes none.
    std::fs::write(folder.join("README.md"), "mine\n").unwrap();
    assert_eq!(exit(&ptplus(["check", &path("b")])), 0);
    std::fs::write(folder.join("evaluation.json"), "{}\n").unwrap();
    assert_eq!(exit(&ptplus(["check", &path("b")])), 6);
    assert_eq!(exit(&ptplus(["seal", &path("b"), "--unsigned"])), 0);
    assert_eq!(exit(&ptplus(["check", &path("b")])), 0);
    let sealed = std::fs::read(folder.join("manifest.json")).unwrap();
    for (field, value) in [
        ("/model/architecture", object!("qwen2")),
        ("/model/num_parameters", object!(1)),
        ("/model/dtype", object!("F32")),
        ("/base/architecture", object!("qwen2")),
        ("/base/fingerprint", object!("x")),
        ("/merged", object!([])),
        ("/merged/0/scale", object!("1")),
        ("/tensors/0/sha256", object!("0")),
        ("/forms/1/type", object!("F16")),
        ("/forms/1/file", object!("none.gguf")),
    ] {
        reseal(&folder, |d| *d.pointer_mut(field).unwrap() = value);
        assert_eq!(exit(&ptplus(["check", &path("b")])), 6, "{field}");
        std::fs::write(folder.join("manifest.json"), &sealed).unwrap();
    }
    let file = folder.join("model.gguf");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    for args in [
        vec!["check".to_owned(), path("b")],
        vec!["seal".into(), path("b"), "--unsigned".into()],
        vec!["run".into(), "--base".into(), path("b"), "-p".into(), "x".into()],
        vec!["verify".into(), path("b"), "--probe".into(), text(&case("llama-dora").join("probe.safetensors"))],
        vec!["exec".into(), "--base".into(), path("b"), "--print-env".into()],
    ] {
        let out = ptplus(&args);
        assert!(
            exit(&out) == 6 && stderr(&out).contains("model.gguf") || stdout(&out).contains("model.gguf"),
            "{args:?}"
        );
    }
    // An adapter's bundle is no base.
    let adapter = dir.path().join("adapter");
    super::commands::pack("llama-mha", &adapter, &[]);
    for args in
        [vec!["run", "--base", &path("adapter"), "-p", "x"], vec!["exec", "--base", &path("adapter"), "--print-env"]]
    {
        let out = ptplus(&args);
        assert!([2, 7].contains(&exit(&out)) && stderr(&out).contains("adapter"), "{args:?}: {}", stderr(&out));
    }
}
