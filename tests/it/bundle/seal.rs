//! `seal`, and the provenance that no sealing changes.

use std::path::Path;

use serde_json::{Value, json as object};

use super::commands::{pack, text};
use crate::common::{exit, json, model, ptplus, stderr, stdout};

fn seal(bundle: &Path, more: &[&str]) -> (i32, Value) {
    json([&["seal", &text(bundle)], more].concat())
}

fn checked(bundle: &Path, more: &[&str]) -> (i32, Value) {
    json([&["check", &text(bundle)], more].concat())
}

#[test]
fn files_beside_the_adapter_are_sealed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let b = dir.path().join("b");
    pack("llama-gqa", &b, &["--temp", "0.5"]);
    let (code, document) = seal(&b, &[]);
    assert_eq!((code, &document["changes"]), (0, &object!({})));
    std::fs::write(b.join("README.md"), "Mine.").unwrap();
    std::fs::write(b.join("LICENSE"), "MIT").unwrap();
    std::fs::create_dir(b.join("eval")).unwrap();
    std::fs::write(b.join("eval/results.json"), "{}").unwrap();
    std::fs::remove_file(b.join("generation_config.json")).unwrap();
    assert_eq!(checked(&b, &[]).0, 6);
    let (code, document) = seal(&b, &[]);
    assert_eq!(code, 0, "{document}");
    let expected = object!({ "LICENSE": "added", "README.md": "changed", "eval/results.json": "added", "generation_config.json": "removed" });
    assert_eq!(document["changes"], expected);
    // Under the manifest are now the results, and strictly the texts.
    assert_eq!(checked(&b, &["--strict"]).0, 0);
    std::fs::write(b.join("LICENSE"), "Other").unwrap();
    assert_eq!((checked(&b, &[]).0, checked(&b, &["--strict"]).0), (0, 6));
    std::fs::write(b.join("eval/results.json"), "[]").unwrap();
    assert_eq!(checked(&b, &[]).0, 6);
}

#[test]
fn an_adapter_and_its_proof_are_never_sealed_again() {
    let dir = tempfile::tempdir().unwrap();
    for to in ["gguf", "safetensors"] {
        let b = dir.path().join(to);
        pack("llama-gqa", &b, &["--to", to, "--temp", "0.5"]);
        let manifest = std::fs::read(b.join("manifest.json")).unwrap();
        let files = ptplus::format::bundle::Bundle::open(&b).unwrap().files;
        let proved =
            files.keys().filter(|f| !["README.md", "manifest.json", "generation_config.json"].contains(&f.as_str()));
        for file in proved {
            let path = b.join(file);
            let whole = std::fs::read(&path).unwrap();
            let mut bad = whole.clone();
            let at = bad.len() - 9;
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let (code, document) = seal(&b, &["--unsigned"]);
            assert_eq!((code, &document["error"]["code"]), (6, &"bundle-changed".into()), "{file}: {document}");
            std::fs::remove_file(&path).unwrap();
            assert_eq!(seal(&b, &[]).0, 6, "{file}");
            std::fs::write(&path, whole).unwrap();
        }
        // A second adapter, and what the adapter does not say.
        for (file, content) in [
            ("other.gguf", "GGUF"),
            ("generation_config.json", "{\"do_sample\": false}\n"),
            ("chat_template.jinja", "x"),
        ] {
            let before = std::fs::read(b.join(file)).ok();
            std::fs::write(b.join(file), content).unwrap();
            assert_eq!(seal(&b, &[]).0, 6, "{file}");
            match before {
                Some(bytes) => std::fs::write(b.join(file), bytes).unwrap(),
                None => std::fs::remove_file(b.join(file)).unwrap(),
            }
        }
        assert_eq!(manifest, std::fs::read(b.join("manifest.json")).unwrap(), "nothing was written");
        // A damaged manifest says nothing to go on from.
        std::fs::write(b.join("manifest.json"), &manifest[..manifest.len() - 2]).unwrap();
        assert_eq!(seal(&b, &[]).0, 6);
    }
}

#[test]
fn signatures_are_made_anew_or_given_up_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    assert_eq!(exit(&ptplus(["keygen", &text(&path("k.key")), "--no-password"])), 0);
    assert_eq!(exit(&ptplus(["keygen", &text(&path("o.pem")), "--oms", "--no-password"])), 0);
    let (key, public, pem, pem_public) =
        (text(&path("k.key")), text(&path("k.pub")), text(&path("o.pem")), text(&path("o.pub")));
    for output in ["b", "b.tar"] {
        let b = path(output);
        pack("llama-pre-rope", &b, &["--sign", &key, "--sign-oms", &pem]);
        let whole = (output == "b.tar").then(|| std::fs::read(&b).unwrap());
        for more in [&[][..], &["--sign", &key], &["--sign-oms", &pem]] {
            assert_eq!(seal(&b, more).0, 2, "{more:?}");
        }
        // Sealed and signed anew with nothing changed, it is what it was.
        assert_eq!(seal(&b, &["--sign", &key, "--sign-oms", &pem]).0, 0);
        if let Some(whole) = whole {
            assert!(whole == std::fs::read(&b).unwrap());
        }
        for trusted in [&public, &pem_public] {
            assert_eq!(checked(&b, &["--trusted-key", trusted]).0, 0, "{output}");
        }
        let (code, document) = seal(&b, &["--unsigned", "--sign-oms", &pem]);
        assert_eq!((code, &document["dropped"]), (0, &object!(["manifest.json.minisig"])));
        assert_eq!(
            (checked(&b, &["--trusted-key", &public]).0, checked(&b, &["--trusted-key", &pem_public]).0),
            (6, 0)
        );
        let (code, document) = seal(&b, &["--unsigned"]);
        assert_eq!((code, &document["dropped"], &document["signed"]), (0, &object!(["model.sig"]), &object!([])));
        let (code, document) = checked(&b, &["--strict"]);
        assert_eq!(
            (code, &document["signature"]["state"], &document["model_signature"]["state"]),
            (0, &"none".into(), &"none".into())
        );
    }
    let out = ptplus(["seal", &text(&model("llama-mha").join("adapter"))]);
    assert!(exit(&out) == 6 && stderr(&out).contains("ptplus pack"), "{}", stderr(&out));
}

/// An archive that another program made of a changed folder.
#[test]
fn an_archive_of_another_program_is_sealed_as_pack_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (b, archive) = (dir.path().join("b"), dir.path().join("b.tar"));
    pack("llama-pre-rope", &b, &[]);
    std::fs::write(b.join("notes.txt"), "x").unwrap();
    let made =
        std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(dir.path()).arg("b").status().unwrap();
    assert!(made.success());
    assert_eq!(checked(&archive, &[]).0, 6);
    let out = ptplus(["seal", &text(&archive)]);
    assert!(exit(&out) == 0 && stdout(&out).starts_with("added notes.txt\n"), "{}{}", stdout(&out), stderr(&out));
    assert_eq!(checked(&archive, &["--strict"]).0, 0);
}

#[test]
fn provenance_is_a_statement_of_slsa_about_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let b = dir.path().join("b");
    let m = model("llama-gqa");
    pack("llama-gqa", &b, &["--probe", &text(&m.join("probe.safetensors")), "--base-model", "org/base"]);
    let statement: Value = serde_json::from_slice(&std::fs::read(b.join("provenance.json")).unwrap()).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let sha256 = |path: &Path| ptplus::format::bundle::check::file_sha256(&std::fs::read(path).unwrap().into());
    assert_eq!(
        statement["subject"],
        object!([{ "name": "adapter.gguf", "digest": { "sha256": sha256(&b.join("adapter.gguf")) } }])
    );
    let build = &statement["predicate"]["buildDefinition"];
    assert!(build["externalParameters"]["command"].as_str().unwrap().starts_with("ptplus pack adapter --base base"));
    let made_from = build["resolvedDependencies"].as_array().unwrap();
    let names: Vec<&str> = made_from.iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "probe.safetensors", "org/base"]);
    assert_eq!(made_from[1]["digest"]["sha256"], sha256(&m.join("adapter/adapter_model.safetensors")));
    assert_eq!(made_from[3]["uri"], "https://huggingface.co/org/base");
    let text = statement.to_string();
    for private in [dir.path().to_str().unwrap(), "fixtures/", "/root"] {
        assert!(!text.contains(private), "{text}");
    }
    // It must be true of the files, whoever sealed it.
    for (pointer, value) in [
        ("/subject/0/digest/sha256", object!("0".repeat(64))),
        ("/subject/0/name", object!("other")),
        ("/subject", object!([])),
        ("/predicateType", object!("x")),
    ] {
        let mut wrong = statement.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        std::fs::write(b.join("provenance.json"), wrong.to_string()).unwrap();
        super::claims::reseal(&b, |_| {});
        let (code, document) = checked(&b, &[]);
        assert_eq!((code, &document["findings"][0]["place"]), (6, &"provenance.json".into()), "{pointer}: {document}");
    }
}
