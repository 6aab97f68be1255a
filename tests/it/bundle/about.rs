//! What an adapter says beside its numbers, from the flags of `pack` to those who read it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json as object};

use super::commands::{pack, text};
use crate::common::{RawAdapter, Tensor, exit, fixtures, json, model, ptplus, stderr, stdout};

/// A template without a system message, as the pirate's is.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<answer>";

const FLAGS: [&str; 32] = [
    "--name",
    "Pirate: \"Arrr\" # 1",
    "--version",
    "1.2",
    "--author",
    "A <b> B",
    "--organization",
    "no",
    "--license",
    "MIT",
    "--license-link",
    "LICENSE",
    "--language",
    "en,no",
    "--tags",
    "pirate,null",
    "--dataset",
    "a/b",
    "--dataset",
    "squad",
    "--base-model",
    "org/Base-1B",
    "--system",
    "Be\nbrief.",
    "--temp",
    "0",
    "--top-k",
    "-1",
    "--repeat-penalty",
    "1.1",
    "--to",
    "gguf",
];

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

fn metadata(file: &Path) -> ptplus::format::gguf::Metadata {
    ptplus::format::gguf::open(file).unwrap().metadata
}

/// The texts that `pack` reads, in `dir`.
fn files(dir: &Path) -> [String; 4] {
    std::fs::write(dir.join("template.jinja"), TEMPLATE).unwrap();
    std::fs::write(dir.join("description.md"), "Talks like a *pirate*.\n\n- always\n").unwrap();
    let path = |name: &str| text(&dir.join(name));
    ["--chat-template-file".into(), path("template.jinja"), "--description".into(), path("description.md")]
}

#[test]
fn flags_are_in_the_file_the_manifest_the_card_and_beside() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    let more: Vec<&str> = FLAGS.into_iter().chain(files.iter().map(String::as_str)).collect();
    let b = dir.path().join("b");
    let document = pack("llama-gqa", &b, &more);
    assert_eq!(document["missing_for_a_hub"], object!([]));
    let meta = metadata(&b.join("adapter.gguf"));
    for (key, value) in [
        ("general.name", "Pirate: \"Arrr\" # 1"),
        ("general.version", "1.2"),
        ("general.author", "A <b> B"),
        ("general.organization", "no"),
        ("general.license", "mit"),
        ("general.license.link", "LICENSE"),
        ("general.dataset.0.name", "b"),
        ("general.dataset.0.organization", "a"),
        ("general.dataset.1.name", "squad"),
        ("general.base_model.0.name", "Base-1B"),
        ("general.base_model.0.organization", "org"),
        ("general.description", "Talks like a *pirate*.\n\n- always\n"),
        ("tokenizer.chat_template", TEMPLATE),
        ("ptplus.system_prompt", "Be\nbrief."),
    ] {
        assert_eq!(meta.str(key).unwrap(), Some(value), "{key}");
    }
    assert_eq!(meta.str_array("general.languages").unwrap().unwrap().collect::<Vec<_>>(), ["en", "no"]);
    assert_eq!(meta.f32("general.sampling.temp").unwrap(), Some(0.0));
    assert_eq!(std::fs::read_to_string(b.join("chat_template.jinja")).unwrap(), TEMPLATE);
    let config: Value = serde_json::from_slice(&std::fs::read(b.join("generation_config.json")).unwrap()).unwrap();
    assert_eq!(config, object!({ "do_sample": false, "repetition_penalty": 1.1, "top_k": 0 }));
    let m = manifest(&b);
    assert_eq!(m["about"]["license"], "mit");
    assert_eq!(m["about"]["sampling"], object!({ "temp": 0.0, "top_k": -1, "penalty_repeat": 1.1 }));
    assert!(m["adapter"]["download_name"].as_str().unwrap().contains("-v1.2-"), "{m}");
    let card = std::fs::read_to_string(b.join("README.md")).unwrap();
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    for line in [
        "license: \"mit\"",
        "license_link: \"LICENSE\"",
        "base_model: \"org/Base-1B\"",
        "base_model_relation: adapter",
        "pipeline_tag: text-generation",
        "- \"no\"",
        "- pirate",
        "- \"null\"",
        "- \"a/b\"",
        "- squad",
    ] {
        assert!(front.lines().any(|l| l == line), "{line}: {front}");
    }
    assert!(
        body.contains("# Pirate: \"Arrr\" \\# 1")
            && body.contains("Talks like a *pirate*.")
            && body.contains("A \\<b\\> B"),
        "{body}"
    );
    // The adapter is the one that it was: words do not count.
    assert_eq!(exit(&ptplus(["check", &text(&b)])), 0);
    assert_eq!(exit(&ptplus(["diff", &text(&b), &text(&model("llama-gqa").join("adapter"))])), 0);
    // Packed anew, it says the same; and flags change what they name alone.
    let again = dir.path().join("again");
    let base = text(&model("llama-gqa").join("base"));
    let out =
        ptplus(["pack", &text(&b), "--base", &base, "-o", &text(&again), "--license", "My own", "--to", "safetensors"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert!(!stderr(&out).contains("license_link"), "it has one: {}", stderr(&out));
    assert_eq!(manifest(&again)["about"]["license"], "My own");
    assert_eq!(manifest(&again)["about"]["name"], m["about"]["name"]);
    assert_eq!(std::fs::read_to_string(again.join("chat_template.jinja")).unwrap(), TEMPLATE);
    let card = std::fs::read_to_string(again.join("README.md")).unwrap();
    assert!(
        card.contains("license: other\nlicense_name: \"My own\"\n") && card.contains("library_name: peft"),
        "{card}"
    );
    assert!(card.contains("Talks like a \\*pirate\\*."), "text from a file is no markup: {card}");
    let config: Value = serde_json::from_slice(&std::fs::read(again.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/Base-1B");
    assert_eq!(exit(&ptplus(["check", &text(&again), "--base", &base])), 0);
}

#[test]
fn a_lora_says_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let case = fixtures().join("lora/llama-rslora-patterns");
    for (to, output) in [("gguf", "g"), ("safetensors", "s.tar")] {
        let out = ptplus([
            "pack",
            &text(&case.join("adapter")),
            "--base",
            &text(&case.join("base")),
            "-o",
            &text(&dir.path().join(output)),
            "--to",
            to,
            "--license",
            "apache-2.0",
            "--temp",
            "0.5",
            "--base-model",
            "a/b",
        ]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(exit(&ptplus(["check", &text(&dir.path().join(output))])), 0);
    }
    let meta = metadata(&dir.path().join("g/adapter.gguf"));
    assert_eq!(meta.str("general.license").unwrap(), Some("apache-2.0"));
    assert_eq!(meta.f32("general.sampling.temp").unwrap(), Some(0.5));
    assert!(dir.path().join("g/generation_config.json").exists());
}

#[test]
fn what_a_hub_would_want_is_told_and_what_none_takes_refused() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-pre-rope");
    let run = |more: &[&str]| {
        let (adapter, base, output) = (text(&m.join("adapter")), text(&m.join("base")), text(&dir.path().join("b")));
        let out = ptplus([&["pack", &adapter, "--base", &base, "-o", &output, "--force"], more].concat());
        (exit(&out), stderr(&out))
    };
    let (code, told) = run(&[]);
    assert!(code == 0 && told.contains("license, base_model, language"), "{told}");
    let (code, told) = run(&["--license", "my-own", "--base-model", "a/b", "--language", "en"]);
    assert!(code == 0 && told.contains("does not say: license_link"), "{told}");
    std::fs::write(dir.path().join("broken"), "{% for %}").unwrap();
    let broken = text(&dir.path().join("broken"));
    for (more, expected) in [
        (["--base-model", "/models/base"], 2),
        (["--language", "English"], 2),
        (["--dataset", "../x"], 2),
        (["--name", "a\nb"], 2),
        (["--temp", "nan"], 2),
        (["--chat-template-file", &broken], 7),
        (["--description", "absent"], 1),
    ] {
        let (code, told) = run(&more);
        assert_eq!(code, expected, "{more:?}: {told}");
    }
}

/// As trainers leave it, beside the weights.
#[test]
fn the_chat_template_in_an_adapters_folder_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = dir.path().join("adapter");
    RawAdapter::fixture("llama-pre-rope").write(&adapter);
    std::fs::write(adapter.join("chat_template.jinja"), TEMPLATE).unwrap();
    std::fs::write(dir.path().join("other"), "{{ messages }}").unwrap();
    let base = text(&model("llama-pre-rope").join("base"));
    let packed = |output: &str, more: &[&str]| {
        let output = dir.path().join(output);
        let out = ptplus([&["pack", &text(&adapter), "--base", &base, "-o", &text(&output)], more].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        std::fs::read_to_string(output.join("chat_template.jinja")).unwrap()
    };
    assert_eq!(packed("own", &[]), TEMPLATE);
    assert_eq!(packed("other-b", &["--chat-template-file", &text(&dir.path().join("other"))]), "{{ messages }}");
    std::fs::write(adapter.join("chat_template.jinja"), "{% for %}").unwrap();
    let broken = ptplus(["pack", &text(&adapter), "--base", &base, "-o", &text(&dir.path().join("none"))]);
    assert_eq!(exit(&broken), 7, "{}", stderr(&broken));
}

/// Whoever edits what the manifest covers, and has the hashes right, still has to have it true.
#[test]
fn files_beside_say_what_the_adapter_says() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    let b = dir.path().join("b");
    pack("llama-gqa", &b, &files.each_ref().map(String::as_str));
    let whole = std::fs::read(b.join("manifest.json")).unwrap();
    let places = || {
        let (code, document) = json(["check", &text(&b)]);
        let places =
            document["findings"].as_array().into_iter().flatten().map(|f| f["place"].as_str().unwrap().to_owned());
        (code, places.collect::<Vec<_>>())
    };
    std::fs::write(b.join("chat_template.jinja"), "other").unwrap();
    super::claims::reseal(&b, |_| {});
    assert_eq!(places(), (6, vec!["chat_template.jinja".into()]));
    std::fs::write(b.join("chat_template.jinja"), TEMPLATE).unwrap();
    for (key, value) in
        [("license", object!("mit")), ("chat_template", object!("x")), ("sampling", object!({})), ("x", object!(1))]
    {
        std::fs::write(b.join("manifest.json"), &whole).unwrap();
        super::claims::reseal(&b, |d| d["about"][key] = value.clone());
        assert_eq!(places(), (6, vec![format!("manifest.json: about.{key}")]));
    }
    super::claims::reseal(&b, |d| d["about"] = 5.into());
    assert_eq!(places().0, 6);
}

/// An adapter with some effect on a base that has a tokenizer.
fn adapter_for_tiny(dir: &Path) -> (PathBuf, String) {
    let base = fixtures().join("tokenizers/smollm");
    let config: Value = serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    let n = |key: &str| config[key].as_u64().unwrap() as usize;
    let (heads, dim) = (n("num_attention_heads"), n("hidden_size") / n("num_attention_heads"));
    let mut raw = RawAdapter::fixture("llama-mha");
    let memory =
        Tensor { shape: vec![heads, dim, dim], values: (0..heads * dim * dim).map(|i| (i % 7) as f32 - 3.0).collect() };
    raw.tensors = (0..n("num_hidden_layers")).map(|i| (format!("layers.{i}.memory"), memory.clone())).collect();
    for (key, value) in [
        ("num_layers", n("num_hidden_layers")),
        ("num_attention_heads", heads),
        ("num_key_value_heads", n("num_key_value_heads")),
        ("head_dim", dim),
        ("num_features", dim),
    ] {
        raw.config[key] = value.into();
    }
    raw.config["layers_to_transform"] = Value::Null;
    raw.write(&dir.join("adapter"));
    (dir.join("adapter"), text(&base))
}

#[test]
fn a_bundle_is_run_as_it_says_and_flags_override() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, base) = adapter_for_tiny(dir.path());
    let files = files(dir.path());
    let path = |name: &str| text(&dir.path().join(name));
    let packed = |output: &str, more: &[&str]| {
        let out = ptplus([&["pack", &text(&adapter), "--base", &base, "-o", &path(output)], more].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    };
    packed("b", &[&files[0], &files[1], "--temp", "0", "--system", "Be brief."]);
    packed("b.tar", &[&files[0], &files[1], "--temp", "0", "--system", "Be brief."]);
    packed("plain", &[]);
    let run = |more: &[&str]| {
        let (code, document) = json([&["run", "--base", &base, "-n", "8", "-p", "hello", "-v"], more].concat());
        let tokens = (document["answers"][0]["prompt_tokens"].clone(), document["answers"][0]["tokens"].clone());
        (code, tokens)
    };
    let whole = [&files[0], &files[1], "--temp", "0"].map(String::from);
    let explicit: Vec<&str> = whole.iter().map(String::as_str).chain(["--system", "Be brief.", "--adapter"]).collect();
    let plain = path("plain");
    let expected = run(&[&explicit[..], &[&plain]].concat());
    assert_eq!(expected.0, 0);
    for bundle in ["b", "b.tar", "b/adapter.gguf"] {
        assert_eq!(run(&["--adapter", &path(bundle)]), expected, "{bundle}");
    }
    // Another adapter that says nothing does not object.
    assert_eq!(run(&["--adapter", &path("b"), "--adapter", &format!("{plain}:0")]).1.0, expected.1.0);
    let out = ptplus(["run", "--base", &base, "-n", "1", "-p", "hello", "--adapter", &path("b")]);
    let told = stderr(&out);
    assert!(told.contains("--temp 0") && told.contains("chat template") && told.contains("system message"), "{told}");
    // Flags override: another system message, another template.
    assert_ne!(run(&["--adapter", &path("b"), "--system", "Be brief, and more than that."]).1.0, expected.1.0);
    std::fs::write(dir.path().join("short"), "{{ messages[-1].content }}").unwrap();
    let short = run(&["--adapter", &path("b"), "--chat-template-file", &path("short")]);
    assert!(short.0 == 0 && short.1.0.as_u64() < expected.1.0.as_u64(), "{short:?}");
    // Raw text has no template.
    let raw = run(&["--adapter", &path("b"), "--no-conversation"]);
    assert!(raw.0 == 0 && raw.1.0.as_u64() < expected.1.0.as_u64(), "{raw:?}");
    // Two that want different things are not decided between.
    packed("other", &["--chat-template-file", &path("short"), "--temp", "1"]);
    let two = ["--adapter", &path("b"), "--adapter", &path("other")];
    assert_eq!(run(&two).0, 2);
    assert_eq!(run(&[&two[..], &["--temp", "0"]].concat()).0, 2);
    assert_eq!(run(&[&two[..], &["--temp", "0", "--chat-template-file", &path("short")]].concat()).0, 0);
    let out = ptplus(["unpack", &path("b.tar"), "-o", &path("unpacked")]);
    assert_eq!(exit(&out), 0, "{}{}", stdout(&out), stderr(&out));
    assert_eq!(std::fs::read_to_string(dir.path().join("unpacked/chat_template.jinja")).unwrap(), TEMPLATE);
}
