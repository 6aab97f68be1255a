//! What people have in the place of a model's files: Git LFS pointers, web pages, files of other programs, links that lead
//! nowhere, names on a hub. Each is called what it is, with what helps; nothing asks the network.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{exit, fixtures, json, model, ptplus, stderr, stdout};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n";
const PAGE: &str =
    "<!doctype html>\n<html><head><title>401 Unauthorized</title></head><body>restricted</body></html>\n";

/// What stands there, how it is called, and what the hint says.
const STAND_INS: [(&str, &str, &str); 2] = [
    (POINTER, "found a Git LFS pointer to 4976698672 bytes", "git lfs pull"),
    (PAGE, "found a web page (HTML), \"401", "log in"),
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// `M` for the model's folder, `T` for tokenizers, `D` for a folder of its own.
fn run(dir: &Path, line: &str) -> Output {
    let word = |w: &str| match w.split_once('/') {
        Some(("M", "base.gguf")) => crate::common::base_gguf("llama-gqa").display().to_string(),
        Some(("M", rest)) => model("llama-gqa").join(rest).display().to_string(),
        Some(("T", rest)) => fixtures().join("tokenizers").join(rest).display().to_string(),
        Some(("D", rest)) => dir.join(rest).display().to_string(),
        _ => w.to_owned(),
    };
    ptplus(line.split(' ').map(word))
}

#[test]
fn pointers_and_pages_are_called_what_they_are_wherever_a_file_is_read() {
    const BASE: (&str, &str) = ("models/llama-gqa/base", "validate M/adapter --base D/x");
    const ADAPTER: (&str, &str) = ("models/llama-gqa/adapter", "validate D/x --base M/base");
    const NOTHING: &str = "";
    for ((from, line), file) in [
        (BASE, "model.safetensors"),
        (BASE, "config.json"),
        (ADAPTER, "adapter_model.safetensors"),
        (ADAPTER, "adapter_config.json"),
        (("tokenizers/sentencepiece", "convert D/x -o D/o.gguf"), "tokenizer.model"),
        (("tokenizers/sentencepiece", "run --base D/x -p a --no-conversation"), "tokenizer.model"),
        (("tokenizers/llama3", "convert D/x -o D/o.gguf"), "tokenizer.json"),
        (("tokenizers/llama3", "quantize D/x -o D/o.gguf q8_0"), "tokenizer_config.json"),
        (("tokenizers/llama3", "convert D/x -o D/o.gguf"), "chat_template.jinja"),
        ((NOTHING, "validate D/x/a.gguf"), "a.gguf"),
        ((NOTHING, "validate M/adapter --base D/x/a.gguf"), "a.gguf"),
        ((NOTHING, "convert D/x/a.gguf -o D/o.gguf"), "a.gguf"),
        ((NOTHING, "inspect D/x/adapter_model.bin"), "adapter_model.bin"),
        ((NOTHING, "inspect D/x"), "checkpoint.pt"),
        ((NOTHING, "hash D/x/a.pth"), "a.pth"),
        ((NOTHING, "validate D/x/a"), "a"),
        ((NOTHING, "validate D/x"), "adapter_model.safetensors.index.json"),
        ((NOTHING, "check D/x/a.tar"), "a.tar"),
        ((NOTHING, "unpack D/x/a.tar -o D/o"), "a.tar"),
        ((NOTHING, "convert M/adapter -o D/o.gguf --base M/base --probe D/x/probe.safetensors"), "probe.safetensors"),
        ((NOTHING, "convert M/adapter -o D/o.gguf --base M/base --layout D/x/layout.toml"), "layout.toml"),
        ((NOTHING, "run --base T/llama3 -p a --chat-template-file D/x/chat.jinja"), "chat.jinja"),
    ] {
        for (content, what, help) in STAND_INS {
            let dir = tempfile::tempdir().unwrap();
            let x = dir.path().join("x");
            match from {
                NOTHING => std::fs::create_dir(&x).unwrap(),
                from => copy(&fixtures().join(from), &x),
            }
            std::fs::write(x.join(file), content).unwrap();
            let out = run(dir.path(), line);
            let said = stderr(&out);
            assert_eq!(exit(&out), 7, "{line}, {file}: {said}");
            let first = said.lines().next().unwrap_or_default();
            assert!(first.contains(file) && first.contains(what), "{line}: {said}");
            assert!(said.lines().any(|l| l.starts_with("hint: ") && l.contains(help)), "{line}: {said}");
            assert!(!dir.path().join("o.gguf").exists() && !dir.path().join("o").exists(), "{line}");
        }
    }
}

#[test]
fn a_shard_and_a_file_of_a_bundle_can_be_pointers_too() {
    for (content, what, help) in STAND_INS {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        copy(&model("llama-gqa").join("base"), &base);
        std::fs::rename(base.join("model.safetensors"), base.join("model-00001-of-00001.safetensors")).unwrap();
        let shard = base.join("model-00001-of-00001.safetensors");
        let names =
            crate::common::read_safetensors(&shard).into_keys().map(|n| (n, "model-00001-of-00001.safetensors".into()));
        let index = serde_json::json!({ "weight_map": names.collect::<serde_json::Map<_, _>>() });
        std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let line = "validate M/adapter --base D/base";
        assert_eq!(exit(&run(dir.path(), line)), 0);
        std::fs::write(&shard, content).unwrap();
        let out = run(dir.path(), line);
        assert!(exit(&out) == 7 && stderr(&out).contains(what), "{}", stderr(&out));
        // A shard that the hub's cache has not got yet is no corrupt index.
        std::fs::remove_file(&shard).unwrap();
        assert_eq!(exit(&run(dir.path(), line)), 3);
        std::os::unix::fs::symlink("../../blobs/0123", &shard).unwrap();
        let out = run(dir.path(), line);
        assert!(exit(&out) == 1 && stderr(&out).contains("a link to ../../blobs/0123"), "{}", stderr(&out));

        let pack = "pack M/adapter --base M/base --probe M/probe.safetensors -o D/bundle";
        assert_eq!(exit(&run(dir.path(), pack)), 0);
        std::fs::write(dir.path().join("bundle/adapter.gguf"), content).unwrap();
        for line in ["check D/bundle", "inspect D/bundle"] {
            let out = run(dir.path(), line);
            let said = stdout(&out) + &stderr(&out);
            assert_eq!(exit(&out), 6, "{said}");
            assert!(said.contains(what.trim_start_matches("found ")) && said.contains(help), "{line}: {said}");
        }
    }
}

/// `models--ORG--NAME` with a base or an adapter as its only snapshot.
fn cache(dir: &Path, id: &str, from: &Path) -> (PathBuf, PathBuf) {
    let model = dir.join("hub").join(format!("models--{}", id.replace('/', "--")));
    let snapshot = model.join("snapshots").join("0123456789".repeat(4));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::create_dir_all(model.join("blobs")).unwrap();
    std::fs::write(model.join("refs/main"), "0123456789".repeat(4)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        std::fs::copy(entry.path(), model.join("blobs").join(format!("blob-of-{name}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/blob-of-{name}"), snapshot.join(name)).unwrap();
    }
    (model, snapshot)
}

#[test]
fn the_cache_of_a_hub_leads_to_its_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let (of_model, snapshot) = cache(dir.path(), "org/Base-0.5B", &model("llama-gqa").join("base"));
    let adapter = model("llama-gqa").join("adapter");
    let validate =
        |base: &Path| ptplus(["validate".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()]);
    assert_eq!(exit(&validate(&snapshot)), 0);
    let hub = of_model.parent().unwrap();
    for wrong in [dir.path(), hub, &of_model, &of_model.join("snapshots")] {
        for out in [validate(wrong), ptplus(["inspect".as_ref(), wrong.as_os_str()])] {
            let said = stderr(&out);
            assert!(exit(&out) != 0 && said.contains("hint: "), "{said}");
            assert!(said.contains(&snapshot.display().to_string()) || wrong.ends_with("snapshots"), "{said}");
        }
    }
    // A GGUF file is named after the model, not after the hash of its revision.
    let out = dir.path().join("base.gguf");
    assert_eq!(exit(&ptplus(["convert".as_ref(), snapshot.as_os_str(), "-o".as_ref(), out.as_os_str()])), 0);
    let (_, document) = json(["inspect".as_ref(), out.as_os_str()]);
    assert_eq!(document["metadata"]["general.name"], "Base-0.5B");

    for file in ["model.safetensors", "config.json"] {
        std::fs::remove_file(of_model.join("blobs").join(format!("blob-of-{file}"))).unwrap();
        let said = stderr(&validate(&snapshot));
        for part in [file, ": a link to ../../blobs/blob-of-", "hint: ", "`hf download org/Base-0.5B`"] {
            assert!(said.contains(part), "{file}: {said}");
        }
        assert!(!said.contains("did you mean"), "{said}");
    }
}

#[test]
fn a_link_that_leads_nowhere_is_called_one_and_never_taken_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join(name)).unwrap();
    link("alone");
    for file in ["adapter_config.json", "adapter_model.safetensors", "checkpoint.pt", "tokenizer.json", "config.json"] {
        let folder = file.replace('.', "-");
        let from = match file {
            "tokenizer.json" | "config.json" => fixtures().join("tokenizers/llama3"),
            _ => model("llama-gqa").join("adapter"),
        };
        copy(&from, &dir.path().join(&folder));
        let _ = std::fs::remove_file(dir.path().join(&folder).join(file));
        if file == "checkpoint.pt" {
            for other in ["adapter_config.json", "adapter_model.safetensors"] {
                std::fs::remove_file(dir.path().join(&folder).join(other)).unwrap();
            }
        }
        link(&format!("{folder}/{file}"));
    }
    for line in [
        "inspect D/alone",
        "validate D/alone",
        "validate D/alone/x.gguf",
        "validate M/adapter --base D/alone",
        "validate D/adapter_config-json",
        "validate D/adapter_model-safetensors",
        "validate D/checkpoint-pt",
        "convert D/tokenizer-json -o D/o.gguf",
        "convert D/config-json -o D/o.gguf",
    ] {
        let out = run(dir.path(), line);
        assert!(
            exit(&out) == 1 && stderr(&out).contains("a link to /nowhere/at/all, where nothing is"),
            "{line}: {}",
            stderr(&out)
        );
        assert!(!stderr(&out).contains("did you mean"), "{line}: {}", stderr(&out));
    }
}

#[test]
fn names_on_a_hub_get_the_command_that_fetches_them() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = model("llama-gqa").join("adapter").display().to_string();
    let base = fixtures().join("tokenizers/llama3").display().to_string();
    let (_, snapshot) = cache(dir.path(), "org/cached", &model("llama-gqa").join("base"));
    let with_cache = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ptplus"))
            .args(args)
            .env("HF_HUB_CACHE", dir.path().join("hub"))
            .current_dir(dir.path())
            .output()
            .expect("the tool runs")
    };
    let help = "hint: ptplus takes paths, and never opens the network: `hf download org/M-0.5B --local-dir M-0.5B`";
    for args in [
        &["validate", &adapter, "--base", "org/M-0.5B"][..],
        &["convert", "org/M-0.5B", "-o", "x.gguf"],
        &["quantize", "hf://org/M-0.5B", "-o", "x.gguf", "q8_0"],
        &["inspect", "https://huggingface.co/org/M-0.5B"],
        &["hash", "org/M-0.5B"],
        &["diff", &adapter, "org/M-0.5B"],
        &["check", "org/M-0.5B"],
        &["run", "--base", "org/M-0.5B", "-p", "x"],
        &["run", "--base", &base, "--adapter", "org/M-0.5B:0.5", "-p", "x", "--no-conversation"],
        &["verify", &adapter, "--against", "org/M-0.5B"],
    ] {
        let out = with_cache(args);
        assert!(exit(&out) == 1 && stderr(&out).contains(help), "{args:?}: {}", stderr(&out));
    }
    let out = with_cache(&["validate", &adapter, "--base", "org/cached"]);
    let expected = format!("hint: org/cached is in the Hugging Face cache, at {}", snapshot.display());
    assert!(stderr(&out).contains(&expected), "{}", stderr(&out));
    // What is to be written is no name on a hub.
    let out = with_cache(&["convert", &adapter, "-o", "org/out"]);
    assert!(exit(&out) == 1 && !stderr(&out).contains("hf download"), "{}", stderr(&out));
}

#[test]
fn a_base_that_cannot_be_converted_is_not_called_misplaced() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("yarn");
    copy(&model("llama-gqa").join("base"), &base);
    let config = std::fs::read_to_string(base.join("config.json")).unwrap();
    std::fs::write(base.join("config.json"), config.replace("\"llama\"", "\"no_such_family\"")).unwrap();
    for line in [
        "convert D/yarn -o D/x.gguf",
        "quantize D/yarn -o D/x.gguf q8_0",
        "convert M/base.gguf -o D/no-folder/x.gguf",
        "quantize M/base.gguf -o D/x.gguf q4_K --on-unfit error",
        "convert M/base -o D/yarn/config.json --to gguf",
        "convert M/base --base M/base -o D/x.gguf",
    ] {
        let out = run(dir.path(), line);
        assert!(exit(&out) != 0 && !stderr(&out).contains("takes an adapter"), "{line}: {}", stderr(&out));
    }
    // A folder is read by its one file with weights, which needs no better name.
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    let weights = model("llama-gqa").join("adapter/adapter_model.safetensors");
    std::fs::copy(weights, dir.path().join("mine/memories.safetensors")).unwrap();
    for line in ["validate D/mine --base D/yarn", "validate D/mine", "convert D/mine -o D/x.gguf --base M/base"] {
        let out = run(dir.path(), line);
        assert!(exit(&out) != 0 && !stderr(&out).contains("did you mean"), "{line}: {}", stderr(&out));
    }
    for line in ["validate M/base.gguf", "pack M/base --base M/base -o D/b", "verify M/base --against M/adapter"] {
        let out = run(dir.path(), line);
        assert!(stderr(&out).contains("is a base model; ADAPTER takes an adapter"), "{line}: {}", stderr(&out));
    }
}

#[test]
fn hints_name_nothing_that_begins_with_a_dot() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["holder/new", "holder/.old"] {
        copy(&model("llama-gqa").join("adapter"), &dir.path().join(name));
    }
    let out = run(dir.path(), "validate D/holder --base M/base");
    let expected = format!("did you mean {}?", dir.path().join("holder/new").display());
    assert!(exit(&out) != 0 && stderr(&out).contains(&expected), "{}", stderr(&out));
}
