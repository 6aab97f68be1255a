//! What `--force` may replace, and names and places under which an output would break something, or be taken for something
//! else.

use std::path::{Path, PathBuf};

use crate::common::{exit, model, ptplus, stderr, stdout};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Everything below a folder with its bytes, links and empty folders included.
fn content(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut out = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => out.push((entry.path(), std::fs::read(entry.path()).ok())),
            }
        }
        out.push((folder, None));
    }
    out.sort();
    out
}

struct Place {
    dir: tempfile::TempDir,
    adapter: String,
    base: String,
    hf: String,
}

impl Place {
    fn new() -> Place {
        let m = model("llama-pre-rope");
        Place {
            dir: tempfile::tempdir().unwrap(),
            adapter: text(&m.join("adapter")),
            base: text(&crate::common::base_gguf("llama-pre-rope")),
            hf: text(&m.join("base")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        text(&self.path(name))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) {
        let out = ptplus(args);
        assert_eq!(exit(&out), 0, "{args:?}: {}{}", stdout(&out), stderr(&out));
    }

    fn pack(&self, name: &str) {
        self.ok(&["pack", &self.adapter, "--base", &self.base, "-o", &self.at(name), "-q"]);
    }

    /// Runs what must be refused without a trace, and returns what it said.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let before = content(self.dir.path());
        let out = ptplus(args);
        assert_eq!(exit(&out), 2, "{args:?}: {}{}", stdout(&out), stderr(&out));
        assert!(content(self.dir.path()) == before, "{args:?} changed something");
        stderr(&out)
    }
}

/// A folder that a command wrote, one thing in it that nobody but its owner wrote, and the command again.
#[test]
fn force_replaces_what_ptplus_wrote_and_touches_no_folder_that_holds_anything_else() {
    let p = Place::new();
    p.ok(&["pack", &p.adapter, "--base", &p.base, "-o", &p.at("packed.tar"), "-q"]);
    std::fs::create_dir(p.path("many")).unwrap();
    let of_peft = |kind: &str| {
        let folder = text(&crate::common::fixtures().join(kind).join("adapter"));
        ["convert", &folder, "--to", "safetensors"].map(str::to_owned).to_vec()
    };
    let commands: [(&str, Vec<String>); 7] = [
        ("lora", of_peft("lora/llama-plain")),
        ("virtual-tokens", of_peft("prefix/llama-prefix")),
        ("pack", ["pack", &p.adapter, "--base", &p.base].map(str::to_owned).to_vec()),
        ("unpack", vec!["unpack".into(), p.at("packed.tar")]),
        (
            "pack-safetensors",
            ["pack", &p.adapter, "--base", &p.base, "--to", "safetensors"].map(str::to_owned).to_vec(),
        ),
        ("convert", vec!["convert".into(), p.adapter.clone(), "--to".into(), "safetensors".into()]),
        ("many/adapter", ["convert", "--jobs", "1", &p.adapter, "--to", "safetensors"].map(str::to_owned).to_vec()),
    ];
    for (folder, command) in commands {
        let output = if folder.starts_with("many/") { p.at("many") } else { p.at(folder) };
        let args = |more: &[&str]| {
            let mut all = command.clone();
            all.extend(["-o".to_owned(), output.clone()]);
            all.extend(more.iter().map(|s| (*s).to_owned()));
            all
        };
        let run = |more: &[&str]| p.refused(&args(more).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(exit(&ptplus(args(&[]))), 0, "{folder}");
        run(&[]);
        assert_eq!(exit(&ptplus(args(&["--force"]))), 0, "{folder}");
        for stranger in
            [".git/HEAD", "notes.txt", "adapter_model.bin", ".hidden", "reports/mine.json", "empty/", "link"]
        {
            let path = p.path(folder).join(stranger);
            let first = p.path(folder).join(stranger.split('/').next().unwrap());
            let is_new = !first.exists();
            match stranger {
                "empty/" => std::fs::create_dir(&path).unwrap(),
                "link" => std::os::unix::fs::symlink("/etc/hostname", &path).unwrap(),
                _ => {
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(&path, "mine").unwrap();
                }
            }
            let said = run(&["--force"]);
            let name = if is_new { stranger.split('/').next().unwrap() } else { stranger };
            assert!(said.contains(name), "{folder}: {stranger} is not named: {said}");
            let gone = if is_new { first } else { path };
            std::fs::remove_file(&gone).or_else(|_| std::fs::remove_dir_all(&gone)).unwrap();
        }
        assert_eq!(exit(&ptplus(args(&["--force"]))), 0, "{folder}");
    }
}

/// What PEFT trained has the same names and the same configuration.
#[test]
fn force_does_not_replace_what_peft_wrote() {
    let p = Place::new();
    for (i, trained) in ["lora/llama-plain", "prefix/llama-prefix", "prefix/llama-prompt"].into_iter().enumerate() {
        let (trained, folder) = (crate::common::fixtures().join(trained).join("adapter"), p.path(&i.to_string()));
        std::fs::create_dir(&folder).unwrap();
        for file in std::fs::read_dir(&trained).unwrap().map(|entry| entry.unwrap()) {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        let before = content(&folder);
        let said = p.refused(&["convert", &text(&trained), "--to", "safetensors", "-o", &text(&folder), "--force"]);
        assert!(said.contains("adapter_model.safetensors"), "{said}");
        assert_eq!(content(&folder), before);
    }
}

#[test]
fn a_listed_file_that_was_changed_since_is_its_owners() {
    let p = Place::new();
    p.pack("b");
    std::fs::write(p.path("b/README.md"), "my own words").unwrap();
    let said = p.refused(&["pack", &p.adapter, "--base", &p.base, "-o", &p.at("b"), "--force"]);
    assert!(said.contains("README.md"), "{said}");
}

#[test]
fn no_word_in_a_manifest_makes_a_folder_one_that_may_go() {
    let p = Place::new();
    p.ok(&["pack", &p.adapter, "--base", &p.base, "-o", &p.at("packed.tar"), "-q"]);
    p.pack("whole");
    let damaged = std::fs::read_to_string(p.path("whole/manifest.json")).unwrap().replacen("adapter", "Adapter", 1);
    for (i, manifest) in [
        r#"{"self_sha256": "0", "name": "my extension"}"#,
        r#"{"about": "ptplus-bundle/1"}"#,
        r#"{"schema": "ptplus-bundle/1", "hash": "sha256", "tool": {"name": "ptplus"}, "files": []}"#,
        &damaged,
        "self_sha256",
        "{}",
    ]
    .into_iter()
    .enumerate()
    {
        let folder = p.path(&format!("f{i}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("manifest.json"), manifest).unwrap();
        std::fs::write(folder.join("thesis.tex"), "mine").unwrap();
        p.refused(&["pack", &p.adapter, "--base", &p.base, "-o", &text(&folder), "--force"]);
        p.refused(&["unpack", &p.at("packed.tar"), "-o", &text(&folder), "--force"]);
        // Nor the manifest alone.
        std::fs::remove_file(folder.join("thesis.tex")).unwrap();
        p.refused(&["pack", &p.adapter, "--base", &p.base, "-o", &text(&folder), "--force"]);
    }
}

#[test]
fn another_kind_of_adapter_is_not_ours_to_replace() {
    let p = Place::new();
    let folder = p.path("lora");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), "weights of weeks").unwrap();
    for config in [Some(r#"{"peft_type": "LORA"}"#), Some("{}"), Some("not JSON"), None] {
        match config {
            Some(text) => std::fs::write(folder.join("adapter_config.json"), text).unwrap(),
            None => std::fs::remove_file(folder.join("adapter_config.json")).unwrap(),
        }
        p.refused(&["convert", &p.adapter, "--to", "safetensors", "-o", &text(&folder), "--force"]);
    }
}

#[test]
fn a_bundle_in_the_current_folder_is_replaced_file_by_file_and_as_carefully() {
    let p = Place::new();
    p.pack("b");
    let pack = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ptplus"));
        command.args(["pack", &p.adapter, "--base", &p.base, "-o", ".", "--force"]).args(more);
        command.current_dir(p.path("b")).output().unwrap()
    };
    let out = pack(&["--to", "safetensors"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    p.ok(&["check", &p.at("b")]);
    assert!(!p.path("b/adapter.gguf").exists());
    std::fs::write(p.path("b/notes"), "mine").unwrap();
    let before = content(p.dir.path());
    assert_eq!(exit(&pack(&[])), 2);
    assert!(content(p.dir.path()) == before);
}

#[test]
fn no_command_writes_into_a_bundle() {
    let p = Place::new();
    p.pack("b");
    std::os::unix::fs::symlink(p.path("b/reports"), p.path("link")).unwrap();
    p.ok(&["pack", &p.adapter, "--base", &p.base, "-o", &p.at("packed.tar"), "-q"]);
    for place in ["b", "b/reports", "link"] {
        let file = |name: &str| text(&p.path(place).join(name));
        for name in ["adapter.gguf", "new.gguf"] {
            let gguf = file(name);
            for force in [&[][..], &["--force"], &["--dry-run"]] {
                for command in [
                    &["convert", &p.adapter, "--base", &p.base, "-o", &gguf][..],
                    &["convert", &p.adapter, "--arch", "llama", "--outfile", &gguf],
                    &["convert", &p.hf, "-o", &gguf],
                    &["quantize", &p.adapter, "-o", &gguf, "q8_0", "--base", &p.base],
                    &["quantize", &p.hf, "-o", &gguf, "q8_0"],
                ] {
                    let said = p.refused(&[command, force].concat());
                    let before =
                        if place == "b" && name == "adapter.gguf" && force.is_empty() { "exists" } else { "bundle" };
                    assert!(said.contains(before) || said.contains("bundle"), "{said}");
                }
            }
        }
        p.refused(&["convert", &p.adapter, "--to", "safetensors", "-o", &file("folder")]);
        p.refused(&["convert", "--jobs", "1", &p.adapter, "--arch", "llama", "--to", "gguf", "-o", &file("folder")]);
        p.refused(&[
            "convert",
            "--jobs",
            "1",
            &p.adapter,
            "--arch",
            "llama",
            "--to",
            "gguf",
            "-o",
            &text(&p.path(place)),
        ]);
        p.refused(&["pack", &p.adapter, "--base", &p.base, "-o", &file("inner")]);
        p.refused(&["pack", &p.adapter, "--base", &p.base, "-o", &file("inner.tar")]);
        p.refused(&["unpack", &p.at("packed.tar"), "-o", &file("inner")]);
        p.refused(&["keygen", &file("k.key"), "--no-password"]);
        p.refused(&["keygen", &p.at("k.key"), "--public", &file("k.pub"), "--no-password"]);
        p.refused(&["man", &file("man")]);
        p.refused(&["man", &text(&p.path(place))]);
        p.refused(&["demo", &file("demo")]);
        let page = file("page.html");
        p.refused(&["verify", &p.adapter, "--base", &p.base, "--against", &p.adapter, "--report", &page]);
    }
    p.ok(&["check", &p.at("b")]);
}

#[test]
fn no_output_has_a_name_that_says_something_else() {
    let p = Place::new();
    for name in ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"] {
        let output = p.at(name);
        for command in [
            &["convert", &p.adapter, "--base", &p.base, "-o", &output][..],
            &["convert", &p.adapter, "--base", &p.base, "-o", &output, "--dry-run"],
            &["convert", &p.hf, "-o", &output],
            &["quantize", &p.adapter, "-o", &output, "q8_0", "--base", &p.base],
            &["quantize", &p.hf, "-o", &output, "q8_0"],
        ] {
            let said = p.refused(command);
            assert!(said.contains("[output-place]"), "{said}");
        }
    }
    for name in
        ["model-00001-of-00002.safetensors", "adapter_model.safetensors", "config.json", "x.bin", "x.PT", "b.tar"]
    {
        p.refused(&["convert", &p.adapter, "--base", &p.base, "--to", "gguf", "-o", &p.at(name)]);
        p.refused(&["convert", &p.hf, "--to", "gguf", "-o", &p.at(name)]);
    }
    // The only part of one may be a whole file.
    p.ok(&["convert", &p.adapter, "--base", &p.base, "-o", &p.at("x-00001-of-00001.gguf")]);
    p.ok(&["inspect", &p.at("x-00001-of-00001.gguf")]);
}

#[test]
fn in_a_batch_a_name_that_says_something_else_fails_alone() {
    let p = Place::new();
    let adapters = p.path("adapters");
    std::fs::create_dir(&adapters).unwrap();
    for name in ["good", "bad-00001-of-00002"] {
        let to = adapters.join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            std::fs::copy(Path::new(&p.adapter).join(file), to.join(file)).unwrap();
        }
    }
    let out =
        ptplus(["convert", "--jobs", "2", &text(&adapters), "--base", &p.base, "--to", "gguf", "-o", &p.at("out")]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
    assert!(stderr(&out).contains("[output-place]"), "{}", stderr(&out));
    let names: Vec<_> = std::fs::read_dir(p.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["good.gguf"]);
}

#[test]
fn a_folder_stays_what_it_was_read_as() {
    let p = Place::new();
    let trainer = p.path("trainer");
    std::fs::create_dir(&trainer).unwrap();
    std::fs::copy(Path::new(&p.adapter).join("adapter_config.json"), trainer.join("adapter_config.json")).unwrap();
    let weights = trainer.join("step-100.safetensors");
    std::fs::copy(Path::new(&p.adapter).join("adapter_model.safetensors"), &weights).unwrap();
    let inside = text(&trainer.join("adapter.gguf"));
    p.refused(&["convert", &text(&trainer), "--base", &p.base, "-o", &inside]);
    // Who names the file does not read the folder.
    p.ok(&["convert", &text(&weights), "--base", &p.base, "-o", &inside]);
    // And one with names of its own goes on saying which file is meant.
    std::fs::remove_file(&inside).unwrap();
    std::fs::rename(&weights, trainer.join("adapter_model.safetensors")).unwrap();
    p.ok(&["convert", &text(&trainer), "--base", &p.base, "-o", &inside]);
    p.ok(&["validate", &text(&trainer), "--base", &p.base]);
}
