//! `model.sig`: what `pack --sign-oms` signs, `check` and the program of OpenSSF's model signing verify, and the other way round.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::commands::{pack, text};
use crate::common::{exit, json, ptplus, stderr};

fn keys(dir: &Path) {
    for name in ["a", "b"] {
        let out = ptplus(["keygen", &text(&dir.join(format!("{name}.pem"))), "--oms", "--no-password"]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    }
}

/// Exit code, state of the signature and findings as `code place`.
fn checked(bundle: &Path, more: &[&str]) -> (i32, String, Vec<String>) {
    let (code, document) = json([&["check", &text(bundle)], more].concat());
    let findings = document["findings"].as_array().into_iter().flatten();
    let line = |f: &Value| format!("{} {}", f["code"].as_str().unwrap(), f["place"].as_str().unwrap());
    let state = document["model_signature"]["state"].as_str().unwrap_or_default().to_owned();
    (code, state, findings.map(line).collect())
}

#[test]
fn a_signature_of_all_files_cannot_be_dropped_swapped_or_borrowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    keys(dir.path());
    let (a, a_pub, b_pub) = (text(&path("a.pem")), text(&path("a.pub")), text(&path("b.pub")));
    assert_eq!(exit(&ptplus(["keygen", &text(&path("k.key")), "--no-password"])), 0);
    for output in ["s", "s.tar", "again"] {
        pack("llama-pre-rope", &path(output), &["--sign-oms", &a, "--sign", &text(&path("k.key"))]);
        assert_eq!(checked(&path(output), &[]), (0, "valid".into(), vec![]));
        assert_eq!(checked(&path(output), &["--trusted-key", &a_pub]), (0, "trusted".into(), vec![]));
        let other = checked(&path(output), &["--trusted-key", &b_pub]);
        assert_eq!(other, (6, "invalid".into(), vec!["signature-invalid model.sig".into()]));
        assert_eq!(checked(&path(output), &["--trusted-key", &text(&path("k.pub"))]).0, 0);
    }
    let s = path("s");
    let own = std::fs::read(s.join("model.sig")).unwrap();
    assert_eq!(own, std::fs::read(path("again/model.sig")).unwrap(), "no random part");
    // Texts for people are not signed.
    std::fs::write(s.join("README.md"), "Mine.").unwrap();
    std::fs::write(s.join("LICENSE"), "MIT").unwrap();
    assert_eq!(checked(&s, &["--trusted-key", &a_pub]).0, 0);
    // Another bundle's, by the same key; in another form; none at all.
    pack("qwen2", &path("q"), &["--sign-oms", &a]);
    std::fs::copy(path("q/model.sig"), s.join("model.sig")).unwrap();
    assert_eq!(checked(&s, &["--trusted-key", &a_pub]).0, 6);
    let document: Value = serde_json::from_slice(&own).unwrap();
    std::fs::write(s.join("model.sig"), serde_json::to_string_pretty(&document).unwrap()).unwrap();
    assert_eq!(checked(&s, &[]), (6, "invalid".into(), vec!["signature-invalid model.sig".into()]));
    std::fs::remove_file(s.join("model.sig")).unwrap();
    for more in [&[][..], &["--trusted-key", &a_pub]] {
        assert_eq!(checked(&s, more).2, ["signature-missing model.sig"]);
    }
    pack("llama-pre-rope", &path("unsigned"), &[]);
    assert_eq!(checked(&path("unsigned"), &["--trusted-key", &a_pub]).2, ["signature-missing model.sig"]);
    // A secret key is no public one, nor is text.
    assert_eq!(exit(&ptplus(["check", &text(&s), "--trusted-key", &a])), 3);
    let m = crate::common::model("qwen2");
    let args = [
        "pack",
        &text(&m.join("adapter")),
        "--base",
        &text(&m.join("base")),
        "-o",
        &text(&path("x")),
        "--sign-oms",
        &a_pub,
    ];
    assert_eq!(exit(&ptplus(args)), 3);
    assert!(!path("x").exists());
}

/// PyPI's `model-signing`, named by PTPLUS_MODEL_SIGNING or on the path, and OpenSSL.
#[test]
#[ignore = "needs the program model_signing of PyPI's package model-signing"]
fn the_program_of_model_signing_and_we_verify_each_other() {
    let program = std::env::var("PTPLUS_MODEL_SIGNING").unwrap_or("model_signing".into());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let theirs = |args: &[&str]| {
        let out =
            Command::new(&program).args(args).current_dir(dir.path()).output().expect("the program of model signing");
        (
            out.status.success(),
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        )
    };
    keys(dir.path());
    let openssl = |args: &[&str]| {
        assert!(Command::new("openssl").args(args).current_dir(dir.path()).output().unwrap().status.success())
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-out", "o.pem"]);
    openssl(&["ec", "-in", "o.pem", "-pubout", "-out", "o.pub"]);
    for key in ["a", "o"] {
        let bundle = path(key);
        let public = format!("{key}.pub");
        let verify =
            || theirs(&["verify", "key", key, "--signature", &format!("{key}/model.sig"), "--public_key", &public]);
        pack("llama-pre-rope", &bundle, &["--sign-oms", &text(&path(&format!("{key}.pem")))]);
        assert!(verify().0, "{}", verify().1);
        // Edited as its owner may: still whole, for both.
        std::fs::write(bundle.join("README.md"), "Mine.").unwrap();
        std::fs::write(bundle.join("LICENSE"), "MIT").unwrap();
        assert!(verify().0, "{}", verify().1);
        assert_eq!(checked(&bundle, &["--trusted-key", &text(&path(&public))]).0, 0);
        // One bit anywhere else, and a file that nobody signed: noticed by both.
        for file in ["adapter.gguf", "manifest.json", "reports/verification.json"] {
            let whole = std::fs::read(bundle.join(file)).unwrap();
            let mut bad = whole.clone();
            let at = bad.len() / 2;
            bad[at] ^= 1;
            std::fs::write(bundle.join(file), bad).unwrap();
            assert!(!verify().0, "{file}");
            assert_eq!(checked(&bundle, &["--trusted-key", &text(&path(&public))]).0, 6, "{file}");
            std::fs::write(bundle.join(file), whole).unwrap();
        }
        std::fs::write(bundle.join("extra"), "").unwrap();
        assert!(!verify().0);
        assert_eq!(checked(&bundle, &[]).0, 6);
    }
    // Signed by their program, with and without the card.
    let public = text(&path("o.pub"));
    pack("llama-pre-rope", &path("theirs"), &[]);
    for (more, after) in [(&["--ignore-paths", "theirs/README.md"][..], 0), (&[], 6)] {
        let _ = std::fs::remove_file(path("theirs/model.sig"));
        let sign = ["sign", "key", "theirs", "--private_key", "o.pem", "--signature", "theirs/model.sig"];
        let (signed, said) = theirs(&[&sign[..], more].concat());
        assert!(signed, "{said}");
        assert_eq!(checked(&path("theirs"), &["--trusted-key", &public]), (0, "trusted".into(), vec![]));
        assert_eq!(checked(&path("theirs"), &[]).1, "unchecked");
        let card = std::fs::read(path("theirs/README.md")).unwrap();
        std::fs::write(path("theirs/README.md"), [card, b"Mine.".to_vec()].concat()).unwrap();
        assert_eq!(checked(&path("theirs"), &["--trusted-key", &public]).0, after);
    }
}
