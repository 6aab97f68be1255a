//! minisign verifies our signatures, and we verify its.

use std::path::Path;
use std::process::Command;

use crate::common::{exit, model, ptplus, stderr, stdout};

fn pack(folder: &Path, more: &[&str]) {
    let m = model("llama-pre-rope");
    let mut args: Vec<String> =
        ["pack", m.join("adapter").to_str().unwrap(), "--base", m.join("base").to_str().unwrap()]
            .map(str::to_owned)
            .into();
    args.extend(["-o".into(), folder.to_str().unwrap().to_owned()]);
    args.extend(more.iter().map(|s| (*s).to_owned()));
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

#[test]
#[ignore = "needs minisign"]
fn the_original_program_and_we_verify_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(text("password"), "correct horse\n").unwrap();

    // Ours, with an encrypted and with a plain key.
    for (i, protection) in [["--password-file", &text("password")].to_vec(), vec!["--no-password"]].iter().enumerate() {
        let (key, bundle) = (text(&format!("ours{i}.key")), text(&format!("ours{i}")));
        let out = ptplus([vec!["keygen", &key], protection.clone()].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        pack(Path::new(&bundle), &[vec!["--sign", &key], protection.clone()].concat());
        let out = Command::new("minisign")
            .args(["-V", "-p", &text(&format!("ours{i}.pub")), "-m", &format!("{bundle}/manifest.json")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        assert!(said.contains("Trusted comment: ptplus bundle"), "{said}");
        assert!(!said.contains("timestamp"), "{said}");
    }

    // Theirs: keys and signature.
    pack(Path::new(&text("theirs")), &[]);
    let manifest = text("theirs/manifest.json");
    let run = |args: &[&str]| {
        let out = Command::new("minisign").args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    run(&["-G", "-W", "-p", &text("their.pub"), "-s", &text("their.key")]);
    run(&["-S", "-W", "-s", &text("their.key"), "-m", &manifest]);
    let check = |key: &str| ptplus(["check", &text("theirs"), "--trusted-key", key]);
    let out = check(&text("their.pub"));
    assert_eq!(exit(&out), 0, "{}{}", stdout(&out), stderr(&out));
    assert_eq!(exit(&check(&text("ours1.pub"))), 6);
    let line = std::fs::read_to_string(text("their.pub")).unwrap().lines().nth(1).unwrap().to_owned();
    assert_eq!(exit(&check(&line)), 0, "the key itself, as minisign -P takes it");
    // Their secret key signs here, and minisign verifies that.
    pack(Path::new(&text("mixed")), &["--sign", &text("their.key")]);
    run(&["-V", "-p", &text("their.pub"), "-m", &text("mixed/manifest.json")]);
    // The old form, over the manifest and not over its digest, is refused.
    std::fs::remove_file(text("theirs/manifest.json.minisig")).unwrap();
    let out =
        Command::new("minisign").args(["-S", "-l", "-W", "-s", &text("their.key"), "-m", &manifest]).output().unwrap();
    if out.status.success() {
        assert_eq!(exit(&check(&text("their.pub"))), 6);
    }
}

#[test]
fn packing_and_signing_twice_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let out = ptplus(["keygen", &text("our.key"), "--no-password"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let signed = |name: &str| {
        pack(Path::new(&text(name)), &["--sign", &text("our.key")]);
        std::fs::read(text(name)).unwrap()
    };
    let (first, second) = (signed("first.tar"), signed("second.tar"));
    assert_eq!(first, second);
    assert_eq!(exit(&ptplus(["check", &text("first.tar"), "--trusted-key", &text("our.pub")])), 0);
}
