//! What of a bundle is its owner's: card, licence, images, and a repository around them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json as object};

use super::commands::{pack, text};
use crate::common::{exit, json, model, ptplus, stderr, stdout};

/// Exit code and findings as `code place`.
fn checked(bundle: &Path, more: &[&str]) -> (i32, Vec<String>) {
    let (code, document) = json([&["check", &text(bundle)], more].concat());
    let findings = document["findings"].as_array().into_iter().flatten();
    let line = |f: &Value| format!("{} {}", f["code"].as_str().unwrap(), f["place"].as_str().unwrap());
    (code, findings.map(line).collect())
}

#[test]
fn a_card_may_be_edited_and_licences_added() {
    let dir = tempfile::tempdir().unwrap();
    let b = dir.path().join("b");
    let base = text(&model("llama-pre-rope").join("base"));
    pack("llama-pre-rope", &b, &[]);
    assert_eq!(checked(&b, &["--strict"]), (0, vec![]));
    std::fs::write(b.join("README.md"), "---\nlicense: mit\n---\nMine.\n").unwrap();
    std::fs::create_dir_all(b.join("assets")).unwrap();
    for file in ["LICENSE", "LICENSE-MIT", "NOTICE.txt", ".gitattributes", "assets/plot.png"] {
        std::fs::write(b.join(file), "text").unwrap();
    }
    std::fs::create_dir(b.join(".git")).unwrap();
    for args in [
        vec!["check", &text(&b), "--base", &base],
        vec!["validate", &text(&b), "--base", &base],
        vec!["inspect", &text(&b)],
        vec!["convert", &text(&b), "-o", &text(&dir.path().join("a.gguf")), "--base", &base],
        vec!["unpack", &text(&b), "-o", &text(&dir.path().join("unpacked"))],
    ] {
        let out = ptplus(&args);
        assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
    }
    assert_eq!(std::fs::read(dir.path().join("unpacked/LICENSE")).unwrap(), b"text");
    let expected = [
        "bundle-extra .gitattributes",
        "bundle-extra LICENSE",
        "bundle-extra LICENSE-MIT",
        "bundle-extra NOTICE.txt",
        "bundle-changed README.md",
        "bundle-extra assets/plot.png",
        "bundle-extra .git",
    ];
    assert_eq!(checked(&b, &["--strict"]), (6, expected.map(str::to_owned).to_vec()));
    // What programs read is under the manifest, whatever folder it hides in.
    for (file, finding) in
        [("LICENSE.gguf", "LICENSE.gguf"), ("assets/a.bin", "assets/a.bin"), ("docs/README.md", "docs/README.md")]
    {
        std::fs::create_dir_all(b.join(file).parent().unwrap()).unwrap();
        std::fs::write(b.join(file), "x").unwrap();
        assert_eq!(checked(&b, &[]), (6, vec![format!("bundle-extra {finding}")]));
        std::fs::remove_file(b.join(file)).unwrap();
    }
    std::fs::remove_dir(b.join("docs")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", b.join("NOTICE")).unwrap();
    assert_eq!(checked(&b, &[]), (6, vec!["bundle-link NOTICE".into()]));
    std::fs::remove_file(b.join("NOTICE")).unwrap();
    // Without a card at all.
    std::fs::remove_file(b.join("README.md")).unwrap();
    assert_eq!(checked(&b, &[]), (0, vec![]));
    assert!(checked(&b, &["--strict"]).1.contains(&"bundle-missing README.md".to_owned()));
    // What was edited is not replaced.
    std::fs::write(b.join("README.md"), "Mine.").unwrap();
    std::fs::remove_dir(b.join(".git")).unwrap();
    let m = model("llama-pre-rope");
    let out = ptplus(["pack", &text(&m.join("adapter")), "--base", &base, "-o", &text(&b), "--force"]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
    assert_eq!(std::fs::read(b.join("README.md")).unwrap(), b"Mine.");
}

#[test]
fn an_archive_holds_texts_for_people_too() {
    use ptplus::format::bundle::tar::plan;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    pack("llama-pre-rope", &path("b"), &[]);
    let mut files: std::collections::BTreeMap<String, Vec<u8>> =
        (ptplus::format::bundle::Bundle::open(&path("b")).unwrap().files.iter())
            .map(|(name, bytes)| (name.clone(), bytes.to_vec()))
            .collect();
    files.insert("README.md".into(), b"Mine.".to_vec());
    files.insert("LICENSE".into(), b"MIT".to_vec());
    files.insert(".gitattributes".into(), b"*.gguf filter=lfs\n".to_vec());
    let sizes: Vec<(&str, u64)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.len() as u64)).collect();
    let (placed, len) = plan(&sizes).unwrap();
    let mut archive = vec![0; len as usize];
    for (p, bytes) in placed.iter().zip(files.values()) {
        let at = p.header_offset as usize;
        archive[at..at + p.header.len()].copy_from_slice(&p.header);
        archive[at + p.header.len()..][..bytes.len()].copy_from_slice(bytes);
    }
    std::fs::write(path("b.tar"), archive).unwrap();
    assert_eq!(checked(&path("b.tar"), &[]), (0, vec![]));
    assert_eq!(
        checked(&path("b.tar"), &["--strict"]),
        (
            6,
            ["bundle-extra .gitattributes", "bundle-extra LICENSE", "bundle-changed README.md"]
                .map(str::to_owned)
                .to_vec()
        )
    );
}

/// As bundles were before: the card is under the manifest, and stays so.
#[test]
fn a_card_that_the_manifest_lists_is_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let b = dir.path().join("b");
    pack("llama-pre-rope", &b, &[]);
    let manifest = b.join("manifest.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let d = document.as_object_mut().unwrap();
    let texts = d.remove("texts").unwrap();
    let files = d["files"].as_array_mut().unwrap();
    files.insert(0, texts[0].clone());
    // As other programs may write it, without ptplus' mark.
    d.remove("self_sha256");
    d.insert("tool".into(), object!({ "name": "another" }));
    std::fs::write(&manifest, document.to_string()).unwrap();
    for more in [&[][..], &["--strict"]] {
        assert_eq!(checked(&b, more), (0, vec![]));
    }
    std::fs::write(b.join("README.md"), "Mine.").unwrap();
    assert_eq!(checked(&b, &[]), (6, vec!["bundle-changed README.md".into()]));
}

/// A repository as a hub keeps it: committed, weights in LFS where git-lfs is there, cloned elsewhere.
#[test]
fn a_clone_of_a_bundle_is_one_after_its_card_was_edited() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    pack("llama-gqa", &path("b"), &[]);
    let has = |program: &str| Command::new(program).arg("version").output().is_ok_and(|out| out.status.success());
    let git = |place: &Path, args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(place).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
        command.env("GIT_CONFIG_GLOBAL", path("gitconfig")).env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", dir.path());
        let out = command.output().expect("git runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let lfs = has("git-lfs");
    std::fs::write(path("gitconfig"), "").unwrap();
    if lfs {
        git(dir.path(), &["lfs", "install", "--skip-repo"]);
    }
    std::fs::write(path("b/.gitattributes"), "*.gguf filter=lfs diff=lfs merge=lfs -text\n").unwrap();
    git(dir.path(), &["init", "-q", "b"]);
    git(&path("b"), &["add", "-A"]);
    git(&path("b"), &["commit", "-q", "-m", "A bundle"]);
    git(dir.path(), &["clone", "-q", "b", "clone"]);
    let clone = path("clone");
    let card = std::fs::read_to_string(clone.join("README.md")).unwrap();
    std::fs::write(clone.join("README.md"), card.replacen("---\n", "---\nlicense: mit\n", 1)).unwrap();
    std::fs::write(clone.join("LICENSE"), "MIT").unwrap();
    let base = text(&model("llama-gqa").join("base"));
    for args in [vec!["check", &text(&clone), "--base", &base], vec!["validate", &text(&clone), "--base", &base]] {
        let out = ptplus(&args);
        assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
    }
    if lfs {
        // A clone without the weights says so.
        git(
            dir.path(),
            &[
                "-c",
                "filter.lfs.smudge=cat",
                "-c",
                "filter.lfs.process=",
                "-c",
                "filter.lfs.required=false",
                "clone",
                "-q",
                "b",
                "pointers",
            ],
        );
        let out = ptplus(["check", &text(&path("pointers"))]);
        assert_eq!(exit(&out), 6);
        assert!(stdout(&out).contains("Git LFS"), "{}", stdout(&out));
    }
}
