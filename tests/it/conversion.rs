//! What `convert` promises: the same tensors back, the same bytes twice, nothing overwritten, nothing half-written.

use std::path::Path;

use crate::common::{MODELS, RawAdapter, base, convert, exit, json, model, ptplus, read_safetensors, stderr, stdout};

/// The tensors' data: everything after the header, in the file's order, which both writers sort alike by offset.
fn tensor_bytes(file: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        parsed.tensors().into_iter().map(|(n, t)| (n, t.shape().to_vec(), t.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn there_and_back_gives_the_same_tensors_and_configuration() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let adapter = model(name).join("adapter");
        let (gguf, back) = (temp.path().join(format!("{name}.gguf")), temp.path().join(format!("{name}-back")));
        let out = convert(&adapter, &gguf, &["--base", &base(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        // No base on the way back: the file says everything.
        let out = convert(&gguf, &back, &[]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        assert_eq!(
            tensor_bytes(&adapter.join("adapter_model.safetensors")),
            tensor_bytes(&back.join("adapter_model.safetensors")),
            "{name}"
        );
        let (before, mut after) = (RawAdapter::read(&adapter).config, RawAdapter::read(&back).config);
        for key in ["base_model_type", "ptplus_base_fingerprint"] {
            assert!(after.as_object_mut().unwrap().remove(key).is_some(), "{name}: {key} is recorded");
        }
        assert_eq!(before, after, "{name}");
    }
}

#[test]
fn unknown_keys_and_odd_scales_survive() {
    let temp = tempfile::tempdir().unwrap();
    let mut a = RawAdapter::fixture("llama-gqa");
    a.config["query_scale"] = serde_json::json!(0.123_456_789_012_345);
    a.config["memory_scale"] = serde_json::json!(0.1);
    a.config["layers_to_transform"] = serde_json::json!([2, 0]);
    a.config["trainer"] = serde_json::json!({"lr": 1e-3, "tags": ["ü", null]});
    a.config["revision"] = "main".into();
    let (folder, gguf, back) = (temp.path().join("a"), temp.path().join("a.gguf"), temp.path().join("b"));
    a.write(&folder);
    assert_eq!(exit(&convert(&folder, &gguf, &["--arch", "llama"])), 0);
    assert_eq!(exit(&convert(&gguf, &back, &[])), 0);
    assert_eq!(RawAdapter::read(&back).config, a.config);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("1.gguf"), temp.path().join("2.gguf"));
    for path in [&one, &two] {
        assert_eq!(exit(&convert(&model("qwen3").join("adapter"), path, &["--base", &base("qwen3")])), 0);
    }
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    let (one, two) = (temp.path().join("1"), temp.path().join("2"));
    for path in [&one, &two] {
        assert_eq!(exit(&convert(&temp.path().join("1.gguf"), path, &[])), 0);
    }
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(std::fs::read(one.join(file)).unwrap() == std::fs::read(two.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_says_exactly_what_would_be_written() {
    let temp = tempfile::tempdir().unwrap();
    let gguf = temp.path().join("a.gguf");
    let args = |dry: bool| {
        let mut v = vec![
            "convert".into(),
            model("qwen3").join("adapter").into_os_string(),
            "-o".into(),
            gguf.clone().into_os_string(),
            "--base".into(),
            base("qwen3").into(),
            "--outtype".into(),
            "f16".into(),
        ];
        v.extend(dry.then(|| "--dry-run".into()));
        v
    };
    let (code, planned) = json(args(true));
    assert_eq!(code, 0);
    assert!(!gguf.exists());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    let (code, done) = json(args(false));
    assert_eq!(code, 0);
    // Only what the values show is not known beforehand.
    let without_loss = |report: &serde_json::Value| {
        let mut tensors = report["tensors"].clone();
        tensors.as_array_mut().unwrap().iter_mut().for_each(|t| drop(t.as_object_mut().unwrap().remove("loss")));
        tensors
    };
    assert_eq!(without_loss(&planned), without_loss(&done));
    assert_eq!(planned["len_bytes"].as_u64().unwrap(), std::fs::metadata(&gguf).unwrap().len());
}

#[test]
fn narrower_types_stay_within_their_rounding() {
    let temp = tempfile::tempdir().unwrap();
    for (outtype, ulp) in [("f16", 1.0 / 2048.0), ("bf16", 1.0 / 256.0)] {
        let (gguf, back) = (temp.path().join(format!("{outtype}.gguf")), temp.path().join(outtype));
        let original = RawAdapter::fixture("mistral-swa");
        assert_eq!(
            exit(&convert(
                &model("mistral-swa").join("adapter"),
                &gguf,
                &["--base", &base("mistral-swa"), "--outtype", outtype]
            )),
            0
        );
        assert_eq!(exit(&convert(&gguf, &back, &["--outtype", "f32"])), 0);
        let rounded = read_safetensors(&back.join("adapter_model.safetensors"));
        for (name, t) in &original.tensors {
            for (x, y) in t.values.iter().zip(&rounded[name].values) {
                assert!((x - y).abs() <= x.abs() * ulp + 1e-7, "{name}: {x} {y}");
            }
            let exact = t.values == rounded[name].values;
            assert_eq!(exact, name.ends_with("normalizer"), "{name}: the normaliser stays F32, the memory is rounded");
        }
    }
}

#[test]
fn a_value_beyond_f16_is_refused_by_name_unless_allowed() {
    let temp = tempfile::tempdir().unwrap();
    let mut a = RawAdapter::fixture("llama-mha");
    a.tensors.get_mut("layers.1.memory").unwrap().values[7] = 1e6;
    let folder = temp.path().join("a");
    a.write(&folder);
    let gguf = temp.path().join("a.gguf");
    let out = convert(&folder, &gguf, &["--arch", "llama", "--outtype", "f16"]);
    assert_eq!(exit(&out), 3);
    assert!(stderr(&out).contains("layers.1.memory") && stderr(&out).contains("[cast-overflow]"), "{}", stderr(&out));
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "nothing is left behind");
    let out = convert(&folder, &gguf, &["--arch", "llama", "--outtype", "f16", "--allow-overflow"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stderr(&out).contains("1 elements"), "{}", stderr(&out));
}

#[test]
fn outputs_are_never_overwritten_by_accident() {
    let temp = tempfile::tempdir().unwrap();
    let adapter = model("llama-mha").join("adapter");
    let gguf = temp.path().join("a.gguf");
    std::fs::write(&gguf, "precious").unwrap();
    let out = convert(&adapter, &gguf, &["--arch", "llama"]);
    assert_eq!(exit(&out), 2);
    assert!(stderr(&out).contains("[output-exists]"), "{}", stderr(&out));
    assert_eq!(std::fs::read(&gguf).unwrap(), b"precious");
    assert_eq!(exit(&convert(&adapter, &gguf, &["--arch", "llama", "--force"])), 0);
    let before = std::fs::read(&gguf).unwrap();
    // In place, under its own name and through a link.
    let link = temp.path().join("link.gguf");
    std::os::unix::fs::symlink(&gguf, &link).unwrap();
    for to in [&gguf, &link] {
        let out = convert(&gguf, to, &["--outtype", "f16", "--force"]);
        assert_eq!(exit(&out), 2, "{}", stderr(&out));
        assert!(stderr(&out).contains("[output-is-input]"), "{}", stderr(&out));
    }
    assert!(std::fs::read(&gguf).unwrap() == before);
    // An empty folder is welcome, a filled one is not.
    let (empty, filled) = (temp.path().join("empty"), temp.path().join("filled"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&filled).unwrap();
    std::fs::write(filled.join("notes.txt"), "mine").unwrap();
    assert_eq!(exit(&convert(&gguf, &empty, &[])), 0);
    assert_eq!(exit(&convert(&gguf, &filled, &[])), 2);
    let out = convert(&gguf, &filled, &["--force"]);
    assert_eq!(exit(&out), 2);
    assert!(stderr(&out).contains("notes.txt"), "{}", stderr(&out));
    assert_eq!(std::fs::read_dir(&filled).unwrap().count(), 1);
    assert_eq!(std::fs::read(filled.join("notes.txt")).unwrap(), b"mine");
}

#[test]
fn gguf_output_needs_to_know_the_row_order() {
    let temp = tempfile::tempdir().unwrap();
    let adapter = model("llama-mha").join("adapter");
    let gguf = temp.path().join("a.gguf");
    let out = convert(&adapter, &gguf, &[]);
    assert_eq!((exit(&out), gguf.exists()), (7, false));
    assert!(stderr(&out).contains("[row-order-unknown]"), "{}", stderr(&out));
    let out = convert(&adapter, &gguf, &["--arch", "cohere"]);
    assert_eq!((exit(&out), gguf.exists()), (7, false));
    assert!(stderr(&out).contains("[base-architecture]"), "{}", stderr(&out));
    // Known row orders of bases that are refused: so are their names.
    for (name, hint) in
        [("gemma", ""), ("gemma3_text", "gemma3_text is called gemma3"), ("mistral", "mistral is called llama in GGUF")]
    {
        let out = convert(&adapter, &gguf, &["--arch", name]);
        assert_eq!((exit(&out), gguf.exists()), (7, false), "{name}");
        let told = stderr(&out);
        assert!(told.contains("[base-architecture]") && told.contains(hint), "{told}");
    }
    let out = convert(&adapter, &gguf, &["--base", &base("llama-mha"), "--arch", "qwen2"]);
    assert_eq!((exit(&out), gguf.exists()), (2, false));
}

#[test]
fn an_architecture_alone_checks_nothing_and_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let adapter = model("llama-mha").join("adapter");
    let gguf = temp.path().join("a.gguf");
    for (flags, is_told) in [
        (&["--arch", "llama"][..], true),
        (&["--arch", "llama", "--dry-run"], true),
        (&["--arch", "llama", "--outtype", "q8_0"], true),
        (&["--base", &base("llama-mha")], false),
        (&["--base", &base("llama-mha"), "--arch", "llama"], false),
    ] {
        let out = convert(&adapter, &gguf, &[flags, &["-f"]].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(stderr(&out).contains("nothing was checked"), is_told, "{flags:?} {}", stderr(&out));
    }
}

#[test]
fn a_failed_proof_leaves_no_output() {
    let temp = tempfile::tempdir().unwrap();
    let mut a = RawAdapter::fixture("llama-mha");
    a.config["feature_map"] = "relu".into();
    let folder = temp.path().join("a");
    a.write(&folder);
    let probe = model("llama-mha").join("probe.safetensors");
    let probe = probe.to_str().unwrap();
    for to in ["out.gguf", "out"] {
        let out = convert(&folder, &temp.path().join(to), &["--base", &base("llama-mha"), "--probe", probe]);
        assert_eq!(exit(&out), 5, "{}", stderr(&out));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "{to}");
    }
    let out = convert(
        &model("llama-mha").join("adapter"),
        &temp.path().join("out.gguf"),
        &["--base", &base("llama-mha"), "--probe", probe],
    );
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(stdout(&out).contains("verified against the probe"), "{}", stdout(&out));
}

#[test]
fn no_file_that_is_read_is_ever_the_output() {
    let temp = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    for part in ["adapter", "base"] {
        std::fs::create_dir(temp.path().join(part)).unwrap();
        for entry in std::fs::read_dir(m.join(part)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), temp.path().join(part).join(entry.file_name())).unwrap();
        }
    }
    std::fs::copy(m.join("probe.safetensors"), temp.path().join("probe.safetensors")).unwrap();
    let base = temp.path().join("base");
    let probe = temp.path().join("probe.safetensors");
    for target in [
        "probe.safetensors",
        "base/config.json",
        "base/model.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ] {
        let target = temp.path().join(target);
        let before = std::fs::read(&target).unwrap();
        let out = convert(
            &temp.path().join("adapter"),
            &target,
            &["--to", "gguf", "--force", "--base", base.to_str().unwrap(), "--probe", probe.to_str().unwrap()],
        );
        assert_eq!(exit(&out), 2, "{}: {}", target.display(), stderr(&out));
        assert!(std::fs::read(&target).unwrap() == before, "{}", target.display());
    }
}

#[test]
fn a_path_that_is_no_utf_8_is_no_reason_to_panic() {
    use std::os::unix::ffi::OsStrExt;
    let temp = tempfile::tempdir().unwrap();
    let name = |b: &[u8]| temp.path().join(std::ffi::OsStr::from_bytes(b));
    for json in [false, true] {
        let (gguf, folder) = (name(b"a\xff.gguf"), name(b"a\xff"));
        for (from, to) in [(model("llama-mha").join("adapter"), &gguf), (gguf.clone(), &folder)] {
            let mut args: Vec<std::ffi::OsString> =
                vec!["convert".into(), from.into(), "-o".into(), to.into(), "--force".into()];
            if to == &gguf {
                args.extend(["--arch".into(), "llama".into()]);
            }
            args.extend(json.then(|| "--json".into()));
            let out = ptplus(args);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
        }
        for command in ["inspect", "validate"] {
            let mut args: Vec<std::ffi::OsString> = vec![command.into(), folder.clone().into()];
            args.extend(json.then(|| "--json".into()));
            let out = ptplus(args);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
        }
    }
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure_but_a_closed_pipe_is_not() {
    let adapter = model("llama-mha").join("adapter");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ptplus"));
    command.arg("inspect").arg(&adapter).stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let out = command.output().unwrap();
    assert_eq!(exit(&out), 1, "{}", stderr(&out));
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ptplus"))
        .arg("inspect")
        .arg(&adapter)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn values_that_were_rounded_once_are_judged_by_that_type_ever_after() {
    let temp = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    let (gguf, back) = (temp.path().join("a.gguf"), temp.path().join("back"));
    assert_eq!(exit(&convert(&m.join("adapter"), &gguf, &["--base", &base("llama-mha"), "--outtype", "bf16"])), 0);
    assert_eq!(exit(&convert(&gguf, &back, &[])), 0);
    assert_eq!(RawAdapter::read(&back).config["ptplus_widened_from"], "BF16");
    let again = temp.path().join("again.gguf");
    assert_eq!(exit(&convert(&back, &again, &["--base", &base("llama-mha")])), 0);
    for adapter in [&gguf, &back, &again] {
        let (code, report) = json([
            "verify".as_ref(),
            adapter.as_path(),
            "--base".as_ref(),
            m.join("base").as_path(),
            "--probe".as_ref(),
            m.join("probe.safetensors").as_path(),
        ]);
        assert_eq!((code, &report["tolerance"]), (0, &"bf16".into()), "{}: {report}", adapter.display());
    }
}

#[test]
fn llama_cpps_automatic_type_is_told_what_there_is_here() {
    let adapter = model("llama-gqa").join("adapter");
    for auto in ["auto", "AUTO"] {
        let out = convert(&adapter, &std::env::temp_dir().join("never.gguf"), &["--arch", "llama", "--outtype", auto]);
        assert_eq!(exit(&out), 2, "{}", stderr(&out));
        assert!(stderr(&out).contains("--auto KL=VALUE") && stderr(&out).contains("`keep`"), "{}", stderr(&out));
    }
}
