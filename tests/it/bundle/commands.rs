//! `pack`, `check`, `unpack`, `hash`, `diff` and `keygen` as a user meets them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::{RawAdapter, exit, json, model, ptplus, stderr, stdout};

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Packs a fixture's adapter, and wants that to succeed.
pub fn pack(name: &str, output: &Path, more: &[&str]) -> Value {
    let m = model(name);
    let mut args = ["pack", &text(&m.join("adapter")), "--base", &text(&m.join("base")), "-o", &text(output)]
        .map(str::to_owned)
        .to_vec();
    args.extend(more.iter().map(|s| (*s).to_owned()));
    let (code, document) = json(args);
    assert_eq!(code, 0, "{document}");
    document
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn a_bundle_is_accepted_wherever_an_adapter_is() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama-gqa", "qwen3"] {
        let m = model(name);
        let (probe, base) = (text(&m.join("probe.safetensors")), text(&m.join("base")));
        for (output, to) in [("g", "gguf"), ("g.tar", "gguf"), ("s", "safetensors"), ("s.tar", "safetensors")] {
            let bundle = dir.path().join(format!("{name}-{output}"));
            pack(name, &bundle, &["--probe", &probe, "--to", to]);
            let bundle = text(&bundle);
            for args in [
                vec!["check", &bundle, "--base", &base],
                vec!["verify", &bundle, "--base", &base, "--probe", &probe],
                vec!["validate", &bundle, "--base", &base],
                vec!["inspect", &bundle],
                vec!["diff", &bundle, &text(&m.join("adapter"))],
                vec!["convert", &bundle, "-o", &text(&dir.path().join("out.gguf")), "--base", &base, "--force"],
            ] {
                let out = ptplus(&args);
                assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
            }
        }
    }
}

#[test]
fn text_from_an_adapter_is_no_markup_of_its_card() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(m.join("adapter").join(weights), adapter.join(weights)).unwrap();
    let config = std::fs::read(m.join("adapter/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["ptplus_conventions"] = serde_json::json!({ "x`\n## Proved\n<b>\u{1b}[31m": "flag\n## By <i>" });
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let (base, packed) = (text(&m.join("base")), dir.path().join("packed"));
    let out = ptplus(["pack", &text(&adapter), "--base", &base, "-o", &text(&packed)]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let card = std::fs::read_to_string(packed.join("README.md")).unwrap();
    assert!(card.contains("Proved") && card.contains("By "), "{card}");
    assert!(!card.lines().any(|l| l.starts_with("## Proved") || l.starts_with("## By")), "{card}");
    assert!(!card.contains("<b>") && !card.contains("<i>") && !card.contains('\u{1b}'), "{card}");
}

/// As `huggingface_hub` keeps a repository: links into a folder beside, and files of git.
#[test]
fn a_bundle_of_a_hub_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    pack("llama-mha", &packed, &[]);
    let (snapshot, blobs) = (dir.path().join("models--a--b/snapshots/c"), dir.path().join("models--a--b/blobs"));
    std::fs::create_dir_all(snapshot.join("reports")).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    for (i, folder) in ["", "reports"].into_iter().enumerate() {
        for (k, entry) in std::fs::read_dir(packed.join(folder)).unwrap().map(|e| e.unwrap()).enumerate() {
            if entry.path().is_file() {
                let blob = blobs.join(format!("{i}{k}"));
                std::fs::copy(entry.path(), &blob).unwrap();
                std::os::unix::fs::symlink(&blob, snapshot.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    std::fs::create_dir(packed.join(".cache")).unwrap();
    for folder in [&packed, &snapshot] {
        std::fs::write(folder.join(".gitattributes"), "*.gguf filter=lfs").unwrap();
        for command in ["check", "validate"] {
            let out = ptplus([command, &text(folder)]);
            assert_eq!(exit(&out), 0, "{command}: {}{}", stdout(&out), stderr(&out));
        }
    }
    // Links to anywhere else are refused as before.
    std::os::unix::fs::symlink("/etc/hostname", snapshot.join("zzz")).unwrap();
    assert_eq!(exit(&ptplus(["check", &text(&snapshot)])), 6);
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_nothing_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-mha");
    // The same files elsewhere, under the same last names.
    for place in ["here", "there"] {
        std::fs::create_dir(path(place)).unwrap();
        assert!(
            Command::new("cp")
                .arg("-r")
                .args([m.join("adapter"), m.join("base")])
                .arg(path(place))
                .status()
                .unwrap()
                .success()
        );
    }
    for (place, output, threads) in [("here", "a.tar", "1"), ("there", "b.tar", "2")] {
        let out = ptplus(
            ["pack", &text(&path(place).join("adapter")), "--base", &text(&path(place).join("base"))]
                .into_iter()
                .chain(["--outtype", "q8_0", "--threads", threads, "-o", &text(&path(output))]),
        );
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    }
    let bytes = std::fs::read(path("a.tar")).unwrap();
    assert!(bytes == std::fs::read(path("b.tar")).unwrap());
    let folder = text(dir.path());
    for private in [folder.as_str(), "/fixtures/"] {
        assert!(!bytes.windows(private.len()).any(|w| w == private.as_bytes()), "{private} is in the bundle");
    }
    // An unpacked archive is the folder that pack writes, and `tar` reads it.
    pack("llama-mha", &path("folder"), &["--outtype", "q8_0"]);
    let out = ptplus(["unpack", &text(&path("a.tar")), "-o", &text(&path("unpacked"))]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    std::fs::create_dir(path("tar")).unwrap();
    assert!(Command::new("tar").arg("xf").arg(path("a.tar")).arg("-C").arg(path("tar")).status().unwrap().success());
    for other in ["unpacked", "tar"] {
        let same = Command::new("diff").arg("-r").args([path("folder"), path(other)]).output().unwrap();
        assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    }
}

#[test]
fn a_date_appears_only_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-pre-rope");
    let run = |epoch: Option<&str>, output: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        c.arg("pack").arg(m.join("adapter")).arg("--base").arg(m.join("base")).arg("-o").arg(dir.path().join(output));
        match epoch {
            Some(e) => c.env("SOURCE_DATE_EPOCH", e),
            None => c.env_remove("SOURCE_DATE_EPOCH"),
        };
        c.output().unwrap().status.code()
    };
    assert_eq!(run(Some("1700000000"), "dated"), Some(0));
    assert_eq!(manifest(&dir.path().join("dated"))["date"], "2023-11-14");
    assert_eq!(run(None, "undated"), Some(0));
    assert!(manifest(&dir.path().join("undated")).get("date").is_none());
    assert_eq!(run(Some("soon"), "never"), Some(2));
    assert!(!dir.path().join("never").exists());
}

#[test]
fn a_bundle_is_not_made_from_numbers_that_differ() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-gqa");
    let mut wrong = RawAdapter::fixture("llama-gqa");
    wrong.config["feature_map"] = "silu".into();
    wrong.write(&dir.path().join("wrong"));
    let mut none = RawAdapter::fixture("llama-gqa");
    none.change("memory", |t| {
        let mut t = t.clone();
        t.values.fill(0.0);
        t
    });
    none.write(&dir.path().join("none"));
    let (base, probe) = (text(&m.join("base")), text(&m.join("probe.safetensors")));
    for (adapter, probe) in [("wrong", Some(&probe)), ("none", None)] {
        for output in ["out", "out.tar"] {
            let (adapter, output) = (text(&dir.path().join(adapter)), dir.path().join(output));
            let mut args = vec!["pack".to_owned(), adapter, "--base".into(), base.clone(), "-o".into(), text(&output)];
            args.extend(probe.iter().flat_map(|p| ["--probe".to_owned(), (*p).clone()]));
            let out = ptplus(&args);
            assert_eq!(exit(&out), 5, "{args:?}: {}", stderr(&out));
            assert!(!output.exists());
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something was left");
}

#[test]
fn existing_outputs_are_protected_and_old_bundles_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-pre-rope");
    let run = |output: &Path, more: &[&str]| {
        let (adapter, base) = (text(&m.join("adapter")), text(&m.join("base")));
        let out = ptplus([&["pack", &adapter, "--base", &base, "-o", &text(output)], more].concat());
        (exit(&out), stderr(&out))
    };
    assert_eq!(exit(&ptplus(["keygen", &text(&path("k.key")), "--no-password"])), 0);
    let key = text(&path("k.key"));
    for output in [path("b"), path("b.tar")] {
        assert_eq!(run(&output, &["--sign", &key]).0, 0);
        assert_eq!(run(&output, &[]).0, 2, "it exists");
        assert_eq!(run(&output, &["--force"]).0, 0);
        let (code, report) = json(["check", &text(&output)]);
        assert_eq!((code, &report["signature"]["state"]), (0, &Value::from("none")), "{report}");
    }
    // A folder that is no bundle is left alone, forced or not.
    std::fs::create_dir(path("photos")).unwrap();
    std::fs::write(path("photos/cat.jpg"), b"cat").unwrap();
    for more in [&[][..], &["--force"]] {
        let (code, message) = run(&path("photos"), more);
        assert_eq!(code, 2, "{message}");
    }
    assert_eq!(std::fs::read(path("photos/cat.jpg")).unwrap(), b"cat");
    // The input is never the output.
    assert_eq!(run(&m.join("adapter"), &["--force"]).0, 2);
}

#[test]
fn a_bundle_in_a_gguf_that_exists_holds_that_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-mha");
    let base = text(&m.join("base"));
    let out = ptplus(["convert", &text(&m.join("adapter")), "-o", &text(&path("a.gguf")), "--base", &base]);
    assert_eq!(exit(&out), 0);
    let out = ptplus(["pack", &text(&path("a.gguf")), "--base", &base, "-o", &text(&path("b"))]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(std::fs::read(path("a.gguf")).unwrap() == std::fs::read(path("b/adapter.gguf")).unwrap());
    assert!(!path("b/reports/conversion.json").exists());
}

#[test]
fn the_card_says_what_the_hub_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = RawAdapter::fixture("mistral-swa");
    raw.config["base_model_name_or_path"] = "mistralai/Tiny-7B-v0.1".into();
    raw.write(&dir.path().join("adapter"));
    let m = model("mistral-swa");
    let (adapter, bundle) = (text(&dir.path().join("adapter")), dir.path().join("b"));
    let out = ptplus(["pack", &adapter, "--base", &text(&m.join("base")), "-o", &text(&bundle)]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stderr(&out).contains("sliding window"), "{}", stderr(&out));
    let card = std::fs::read_to_string(bundle.join("README.md")).unwrap();
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    for line in ["base_model: \"mistralai/Tiny-7B-v0.1\"", "library_name: ptplus", "tags:", "- gguf"] {
        assert!(front.lines().any(|l| l == line), "{line}: {front}");
    }
    assert!(body.contains("sliding window") && body.contains("ptplus pack adapter --base base"), "{body}");
    assert_eq!(manifest(&bundle)["adapter"]["download_name"], "Tiny-7B-v0-1-prefix-tuning-plus-v1-F32.gguf");
}

#[test]
fn the_same_adapter_is_recognised_whatever_file_it_lies_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    for name in crate::common::MODELS {
        let m = model(name);
        let (adapter, base) = (text(&m.join("adapter")), text(&m.join("base")));
        for (output, dtype) in [("f32.gguf", "keep"), ("f16.gguf", "f16"), ("back", "keep")] {
            let from = if output == "back" { path("f32.gguf") } else { adapter.clone() };
            let output = path(output);
            let out = ptplus(["convert", &from, "-o", &output, "--base", &base, "--outtype", dtype, "--force"]);
            assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        }
        let (_, report) = json(["hash", &adapter, &path("f32.gguf"), &path("back"), &path("f16.gguf")]);
        let canonical: Vec<&Value> = (0..4).map(|i| &report["digests"][i]["adapter"]["canonical"]).collect();
        assert!(
            canonical[0].is_string() && canonical[0] == canonical[1] && canonical[0] == canonical[2],
            "{name}: {report}"
        );
        assert_ne!(canonical[0], canonical[3], "{name}");
        assert_eq!(exit(&ptplus(["diff", &adapter, &path("f32.gguf")])), 0, "{name}");
        let (code, report) = json(["diff", &adapter, &path("f16.gguf")]);
        assert_eq!((code, report["same"].as_bool()), (5, Some(false)), "{name}");
        assert!(report["tensors"][0]["values"]["max_abs"].as_f64().unwrap() > 0.0, "{name}");
    }
    // BF16 to F16 and back loses nothing of values that both hold: other types, and it says so.
    let mut raw = RawAdapter::fixture("llama-mha");
    raw.change("", |t| {
        let mut t = t.clone();
        t.values.iter_mut().for_each(|v| *v = (*v * 8.0).round() / 8.0);
        t
    });
    raw.write(&dir.path().join("coarse"));
    let base = text(&model("llama-mha").join("base"));
    let out = ptplus(["convert", &path("coarse"), "-o", &path("c.gguf"), "--base", &base, "--outtype", "f16"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let (code, report) = json(["diff", &path("coarse"), &path("c.gguf")]);
    assert_eq!((code, &report["only_types"]), (5, &Value::Bool(true)), "{report}");
    let out = ptplus(["hash", &path("coarse"), &path("c.gguf")]);
    assert!(stderr(&out).contains("same values as the first, stored as another type"), "{}", stderr(&out));
}

#[test]
fn hash_lines_are_those_of_llama_gguf_hash() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir.path().join("a.gguf"));
    let m = model("llama-mha");
    assert_eq!(exit(&ptplus(["convert", &text(&m.join("adapter")), "-o", &file, "--base", &text(&m.join("base"))])), 0);
    let out = stdout(&ptplus(["hash", &file, "--tensors"]));
    let opened = ptplus::format::gguf::open(Path::new(&file)).unwrap();
    // `printf("%-8s  %-s  %s\n", "sha256", hex, "FILE:TENSOR")`, and the same of all tensors with FILE alone.
    let bytes = std::fs::read(&file).unwrap();
    let digest = |data: &[u8]| {
        let scratch = dir.path().join("data");
        std::fs::write(&scratch, data).unwrap();
        let said = Command::new("sha256sum").arg(&scratch).output().unwrap();
        String::from_utf8(said.stdout).unwrap()[..64].to_owned()
    };
    let mut all = Vec::new();
    for t in &opened.tensors {
        let data = &bytes[t.file_offset as usize..][..t.bytes.len()];
        all.extend_from_slice(data);
        let line = format!("sha256    {}  {file}:{}", digest(data), t.name);
        assert!(out.lines().any(|l| l == line), "{line}\n{out}");
    }
    let line = format!("sha256    {}  {file}", digest(&all));
    assert!(out.lines().any(|l| l == line), "{line}\n{out}");
    // A base is no adapter, and has tensors all the same.
    let out = ptplus(["hash", &text(&crate::common::base_gguf("llama-gqa")), "--tensors"]);
    assert_eq!(exit(&out), 0);
    assert!(stdout(&out).contains(":token_embd.weight") && !stdout(&out).contains("canonical"));
}

#[test]
fn keys_are_for_their_owner_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let keygen = |more: &[&str]| exit(&ptplus([&["keygen", &text(&path("k.key"))], more].concat()));
    assert_eq!(keygen(&[]), 2, "no terminal, so nobody is asked");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(keygen(&["--no-password"]), 0);
    assert_eq!(std::fs::metadata(path("k.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(path("k.key")).unwrap();
    assert_eq!(keygen(&["--no-password"]), 2);
    assert_eq!(std::fs::read(path("k.key")).unwrap(), before);
    std::fs::remove_file(path("k.key")).unwrap();
    assert_eq!(keygen(&["--no-password"]), 2, "the public key exists");
    assert!(!path("k.key").exists());
    std::fs::write(path("password"), "x\n").unwrap();
    let password = text(&path("password"));
    assert_eq!(keygen(&["--password-file", &password, "--force"]), 0);
    assert_eq!(std::fs::metadata(path("k.key")).unwrap().permissions().mode() & 0o777, 0o600);
    // The key is encrypted now: without its password, and with a wrong one, nothing is signed.
    let m = model("llama-pre-rope");
    let sign = |more: &[&str]| {
        let (adapter, base, output) = (text(&m.join("adapter")), text(&m.join("base")), text(&path("b")));
        let key = text(&path("k.key"));
        exit(&ptplus([&["pack", &adapter, "--base", &base, "-o", &output, "--sign", &key], more].concat()))
    };
    std::fs::write(path("wrong"), "y\n").unwrap();
    assert_eq!(sign(&[]), 2);
    assert_eq!(sign(&["--password-file", &text(&path("wrong"))]), 2);
    assert!(!path("b").exists());
    assert_eq!(sign(&["--password-file", &password]), 0);
}
