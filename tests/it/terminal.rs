//! What helps people at the terminal: versions, completions, manual pages, hints.

use std::process::Command;

use crate::common::{exit, json, model, ptplus, stderr, stdout};

#[test]
fn the_version_says_what_was_built_and_what_it_writes() {
    let short = stdout(&ptplus(["-V"]));
    assert_eq!(short.trim(), format!("ptplus {}", env!("CARGO_PKG_VERSION")));
    let long = stdout(&ptplus(["--version"]));
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines[0], short.trim());
    for (line, start) in lines[1..].iter().zip(["commit ", "features cli ", "GGUF 3", "ggml quantization 2"]) {
        assert!(line.starts_with(start), "{long}");
    }
    // What the version claims is what a file says.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.gguf");
    let adapter = model("llama-mha").join("adapter");
    let args = [
        "quantize".as_ref(),
        adapter.as_os_str(),
        "q8_0".as_ref(),
        "--arch".as_ref(),
        "llama".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ];
    assert_eq!(exit(&ptplus(args)), 0);
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(bytes[4..8], 3u32.to_le_bytes());
    let (_, inspected) = json(["inspect".as_ref(), out.as_os_str()]);
    assert_eq!(inspected["metadata"]["general.quantization_version"], 2);
}

#[test]
fn completions_are_scripts_that_bash_accepts() {
    completions_are_accepted(&["bash"]);
    assert_eq!(exit(&ptplus(["completions", "tcsh"])), 2);
}

#[test]
#[ignore = "needs zsh and fish"]
fn completions_are_scripts_that_the_other_shells_accept() {
    completions_are_accepted(&["zsh", "fish"]);
}

fn completions_are_accepted(shells: &[&str]) {
    for shell in shells {
        let out = ptplus(["completions", *shell]);
        assert_eq!(exit(&out), 0, "{shell}");
        let script = stdout(&out);
        assert!(script.contains("verify") && script.contains("--report") | script.contains("report"), "{shell}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        std::fs::write(&file, &script).unwrap();
        let checked = Command::new(shell).arg("-n").arg(&file).output().unwrap_or_else(|e| panic!("{shell}: {e}"));
        assert!(checked.status.success(), "{shell}: {}", stderr(&checked));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share/man/man1");
    let (code, document) = json(["man".as_ref(), folder.as_os_str()]);
    assert_eq!(code, 0);
    let pages = document["pages"].as_array().unwrap();
    for name in ["ptplus", "ptplus-convert", "ptplus-verify", "ptplus-man"] {
        let page = format!("{name}.1");
        assert!(pages.iter().any(|p| *p == page), "{page}");
        let text = std::fs::read_to_string(folder.join(&page)).unwrap();
        assert!(text.contains(".TH") && text.contains(".SH EXAMPLES"), "{page}");
    }
    assert_eq!(exit(&ptplus(["man".as_ref(), folder.as_os_str()])), 2, "existing pages stay");
    assert_eq!(exit(&ptplus(["man".as_ref(), folder.as_os_str(), "--force".as_ref()])), 0);
}

#[test]
fn a_name_that_is_nearly_right_is_suggested() {
    let m = model("llama-mha");
    let wrong = m.join("adaptr");
    let out = ptplus(["inspect".as_ref(), wrong.as_os_str()]);
    assert_eq!(exit(&out), 1);
    let hint = format!("did you mean {}?", m.join("adapter").display());
    assert!(stderr(&out).contains(&format!("hint: {hint}")), "{}", stderr(&out));
    let (_, document) = json(["inspect".as_ref(), wrong.as_os_str()]);
    assert_eq!(document["error"]["hints"][0], hint);

    let adapter = m.join("adapter").display().to_string();
    for (args, hint) in [
        (["convert", &adapter, "-o", "x", "--feature-map", "elu+1"], "did you mean elu?"),
        (["quantize", &adapter, "-o", "x.gguf", "q5_O", "--dry-run"], "did you mean Q5_0?"),
        (["convert", &adapter, "-o", "x.gguf", "--outtype", "bf-16"], "did you mean BF16?"),
    ] {
        let out = ptplus(args);
        assert_eq!(exit(&out), 2);
        assert!(stderr(&out).contains(hint), "{args:?}: {}", stderr(&out));
    }
}

#[test]
fn a_wrong_base_leads_to_the_right_one() {
    let adapter = model("llama-mha").join("adapter");
    let base = model("qwen2").join("base");
    for command in ["validate", "verify"] {
        let mut args = vec![command.as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()];
        if command == "verify" {
            args.extend(["--against".as_ref(), adapter.as_os_str()]);
        }
        let out = ptplus(args);
        assert_eq!(exit(&out), 4, "{}", stderr(&out));
        assert!(
            stderr(&out).contains(
                "this base has num_layers 2, num_attention_heads 4, num_key_value_heads 2; \
                 the adapter num_layers 3, num_attention_heads 3, num_key_value_heads 3: is it for "
            ),
            "{}",
            stderr(&out)
        );
    }
}

#[test]
fn two_devices_are_compared_by_one_command() {
    let m = model("llama-pre-rope");
    let (adapter, base) = (m.join("adapter"), m.join("base"));
    let verify = |more: &[&str]| {
        let mut args = vec!["verify".to_owned(), adapter.display().to_string()];
        args.extend(["--base".to_owned(), base.display().to_string()]);
        args.extend(more.iter().map(|s| (*s).to_owned()));
        json(args)
    };
    // A device compared with itself always agrees.
    let (code, document) = verify(&["--against-device", "cpu", "--rows", "1", "--length", "9"]);
    assert_eq!((code, document["error"]["code"].as_str()), (7, Some("nothing-compared")), "{document}");
    #[cfg(feature = "cuda")]
    {
        let (code, document) = verify(&["--against-device", "cpu", "--device", "cuda", "--rows", "1", "--length", "9"]);
        assert_eq!((code, document["metrics"]["n_positions"].as_u64()), (0, Some(9)), "{document}");
    }
    assert_eq!(verify(&["--against-device", "tpu"]).0, 2);
    #[cfg(not(feature = "cuda"))]
    assert_eq!(verify(&["--against-device", "cpu", "--device", "cuda"]).0, 7);
}

#[test]
fn swapped_arguments_and_folders_around_them_are_told() {
    let m = model("llama-gqa");
    let at = |name: &str| m.join(name).display().to_string();
    let (adapter, base, probe) = (at("adapter"), at("base"), at("probe.safetensors"));
    let parent = m.display().to_string();
    for (args, hint) in [
        (
            vec!["validate", &base, "--base", &adapter],
            format!("{base} is a base model and {adapter} an adapter: swapped?"),
        ),
        (vec!["validate", &adapter, "--base", &parent], format!("did you mean {base}?")),
        (vec!["inspect", &at("nothing")], String::new()),
        (
            vec!["verify", &adapter, "--base", &base, "--probe", &base],
            format!("{base} is a base model; --probe takes a probe, PyTorch's answer"),
        ),
        (vec!["validate", &probe], format!("{probe} is a probe, PyTorch's answer; ADAPTER takes an adapter")),
        (
            vec!["convert", &base, "--base", &adapter, "-o", "x.gguf"],
            format!("{base} is a base model and {adapter} an adapter: swapped?"),
        ),
    ] {
        let out = ptplus(&args);
        assert_ne!(exit(&out), 0, "{args:?}");
        let shown: Vec<String> =
            stderr(&out).lines().filter_map(|l| Some(l.strip_prefix("hint: ")?.to_owned())).collect();
        let expected: Vec<String> = [hint].into_iter().filter(|h| !h.is_empty()).collect();
        assert_eq!(shown, expected, "{args:?}: {}", stderr(&out));
        let (_, document) = json(&args);
        assert_eq!(document["error"]["hints"], serde_json::json!(expected), "{args:?}");
    }
}

/// `-o typo.ggfu` once wrote a folder of that name.
#[test]
fn an_output_that_nearly_ends_in_gguf_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = model("llama-mha").join("adapter");
    for (name, code) in [
        ("a.ggfu", 2),
        ("a.guf", 2),
        ("a.GGUF", 2),
        ("a.tar", 2),
        ("a.pt", 2),
        ("a-v1.5", 0),
        ("a.f16", 0),
        ("plain", 0),
    ] {
        let out = dir.path().join(name);
        let done = ptplus(["convert".as_ref(), adapter.as_os_str(), "-o".as_ref(), out.as_os_str()]);
        assert_eq!((exit(&done), out.exists()), (code, code == 0), "{name}: {}", stderr(&done));
    }
    let out = dir.path().join("b.ggfu");
    let args = [
        "convert".as_ref(),
        adapter.as_os_str(),
        "--to".as_ref(),
        "safetensors".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ];
    assert_eq!(exit(&ptplus(args)), 0, "--to says what is meant");
}

#[test]
fn habits_of_other_tools_lead_to_the_right_flag() {
    let m = model("llama-mha");
    let at = |name: &str| m.join(name).display().to_string();
    let (adapter, base, config) = (at("adapter"), at("base"), at("base/config.json"));
    let weights = at("adapter/adapter_model.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf").display().to_string();
    for (args, code, text) in [
        // llama-quantize takes its output so.
        (vec!["quantize", &adapter, "q8_0", &out, "-o", &out], 2, format!("expected -o {out} for the output")),
        (vec!["quantize", "q8_0", &adapter, "-o", &out], 2, "swapped?".to_owned()),
        (vec!["pack", &adapter, "--base", &adapter, "-o", "b.tar.gz"], 2, "expected a name that ends in .tar".into()),
        (vec!["pack", &adapter, "--base", &adapter, "-o", "b.zip"], 2, "expected a name that ends in .tar".into()),
        (vec!["inspect", "~/nothing"], 1, "the shell did not expand ~".into()),
        (vec!["convert", &adapter, "-o", &out, "--outtype", "float16"], 2, "did you mean F16?".into()),
        (vec!["quantize", &adapter, "q8", "-o", &out], 2, "did you mean Q8_0?".into()),
        (vec!["check", &adapter], 6, format!("{adapter} is an adapter, not a bundle: `ptplus validate` checks it")),
        (vec!["unpack", &adapter, "-o", &out], 6, format!("{adapter} is an adapter, not a bundle")),
        (vec!["diff", &adapter, &base], 7, format!("{base} is a base model; B takes an adapter")),
        (vec!["convert", &adapter, "-o", "-", "--to", "safetensors"], 2, "not written to stdout".into()),
        (vec!["convert", &adapter, "-o", "-", "--to", "gguf", "--base", &base], 2, "not written to stdout".into()),
        (vec!["inspect", &config], 7, format!("did you mean {base}?")),
        (
            vec!["verify", &adapter, "--base", &base, "--probe", &weights],
            3,
            format!("{weights} is an adapter; --probe takes a probe"),
        ),
    ] {
        let done = ptplus(&args);
        assert_eq!(exit(&done), code, "{args:?}: {}", stderr(&done));
        assert!(stderr(&done).contains(&text), "{args:?}: {}", stderr(&done));
    }
}

#[test]
fn a_command_line_that_cannot_be_read_is_a_document_of_its_command() {
    let (code, document) = json(["verify", "--no-such-flag"]);
    assert_eq!((code, &document["command"], &document["error"]["code"]), (2, &"verify".into(), &"usage".into()));
    let (code, document) = json(["no-such-command"]);
    assert_eq!((code, &document["command"]), (2, &"ptplus".into()));
}

/// The names of conventions and types are offered by completions, and shown in the help.
#[test]
fn names_of_a_list_are_completed() {
    let script = stdout(&ptplus(["completions", "bash"]));
    for names in ["post_rope pre_rope", "per_head per_kv_head shared", "identity elu elu_plus_one", "Q8_0 Q5_0"] {
        assert!(script.contains(names), "{names}");
    }
}

#[test]
fn manual_pages_have_the_sections_that_people_look_for() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(exit(&ptplus(["man".as_ref(), dir.path().as_os_str()])), 0);
    let text = std::fs::read_to_string(dir.path().join("ptplus-convert.1")).unwrap();
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "NOTES", "EXAMPLES", "\"EXIT STATUS\""] {
        let plain = section.trim_matches('"');
        assert!(
            text.contains(&format!(".SH {section}")) || text.contains(&format!(".SH {plain}")),
            "{section}\n{text}"
        );
    }
    assert!(!text.contains("EXTRA"));
    assert!(text.contains("ptplus convert model/ \\-o model.gguf"), "{text}");
}

#[test]
fn a_comparison_of_tensors_says_what_it_found_in_words() {
    let (a, b) = (model("llama-mha").join("adapter"), model("llama-gqa").join("adapter"));
    let out = ptplus(["verify".as_ref(), a.as_os_str(), "--against".as_ref(), b.as_os_str()]);
    assert_eq!(exit(&out), 5);
    let text = stdout(&out);
    assert!(
        text.contains("num_attention_heads: expected 8, found 3") || text.contains("num_attention_heads: expected"),
        "{text}"
    );
    assert!(!text.contains("Geometry") && text.contains("FAIL") && text.contains("hold different adapters"), "{text}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_no_temporary_file() {
    let adapter = model("llama-mha").join("adapter").display().to_string();
    let out = ptplus(["convert", &adapter, "--arch", "llama", "-o", "/proc/x.gguf"]);
    assert_eq!(exit(&out), 1);
    let text = stderr(&out);
    assert!(
        text.starts_with("error: /proc: cannot write into this folder: ") && !text.contains("ptplus-tmp"),
        "{text}"
    );
}
