//! A bundle on its way through a repository.

use std::path::Path;
use std::process::Command;

use super::commands::{pack, text};
use crate::common::{exit, model, ptplus, stderr, stdout};

/// Runs git in `folder` with a home of its own.
fn git(home: &Path, folder: &Path, args: &[&str], more: &[(&str, &str)]) {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
    let out = command.env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1").envs(more.iter().copied()).output().unwrap();
    assert!(out.status.success(), "git {args:?}: {}", stderr(&out));
}

#[test]
#[ignore = "needs git-lfs"]
fn git_lfs_carries_a_bundle_whose_card_is_edited_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-gqa");
    let (base, probe) = (text(&m.join("base")), text(&m.join("probe.safetensors")));
    std::fs::write(path("template.jinja"), "{{ messages[0].content }}").unwrap();
    let more = ["--outtype", "f16,q8_0", "--to", "gguf,safetensors", "--probe", &probe, "--license", "mit"];
    let template = text(&path("template.jinja"));
    pack("llama-gqa", &path("repo"), &[&more[..], &["--chat-template-file", &template]].concat());
    let (home, repo) = (dir.path().join("home"), path("repo"));
    std::fs::create_dir_all(&home).unwrap();
    std::fs::create_dir_all(repo.join("assets")).unwrap();
    let attributes = "*.gguf filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    std::fs::write(repo.join(".gitattributes"), attributes).unwrap();
    std::fs::write(repo.join("LICENSE"), "MIT\n").unwrap();
    std::fs::write(repo.join("assets/a.svg"), "<svg/>\n").unwrap();
    git(&home, &repo, &["lfs", "install"], &[]);
    for args in [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "Publish"]] {
        git(&home, &repo, args, &[]);
    }
    git(&home, dir.path(), &["clone", "-q", "repo", "clone"], &[]);
    let card = std::fs::read_to_string(path("clone/README.md")).unwrap();
    std::fs::write(path("clone/README.md"), card.replace("license: \"mit\"", "license: apache-2.0")).unwrap();
    let clone = text(&path("clone"));
    for args in [
        vec!["check", &clone, "--base", &base],
        vec!["verify", &clone, "--base", &base, "--probe", &probe],
        vec!["verify", &clone, "--base", &base, "--probe", &probe, "--form", "safetensors"],
        vec!["diff", &clone, &text(&repo)],
    ] {
        let out = ptplus(&args);
        assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
    }
    // Where LFS was not asked for the files themselves.
    git(&home, dir.path(), &["clone", "-q", "repo", "pointers"], &[("GIT_LFS_SKIP_SMUDGE", "1")]);
    let out = ptplus(["check", &text(&path("pointers"))]);
    assert!(exit(&out) == 6 && stdout(&out).contains("Git LFS pointer"), "{}", stdout(&out));
}
