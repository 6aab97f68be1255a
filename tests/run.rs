//! `ptplus run` as a user meets it.
#![cfg(feature = "generate")]

mod common;

use common::{exit, fixtures, json, model, ptplus, smollm2, stderr, stdout};

fn real() -> [String; 4] {
    let base = smollm2();
    let pirate = fixtures().join("smollm2-pirate");
    let text = |p: std::path::PathBuf| p.to_str().unwrap().to_owned();
    ["--base".into(), text(base), "--chat-template-file".into(), text(pirate.join("chat_template.jinja"))]
}

fn pirate() -> String {
    fixtures().join("smollm2-pirate/adapter").to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn adapters_are_switched_between_answers_and_greedy_text_repeats_on_the_real_base() {
    let base = real();
    let adapter = pirate();
    let mut args = vec!["run"];
    args.extend(base.iter().map(String::as_str));
    args.extend([
        "--adapter",
        &adapter,
        "--also-plain",
        "--temp",
        "0",
        "-n",
        "24",
        "-p",
        "What is the capital of Italy?",
    ]);
    args.extend(["-p", "What sound does a dog make?"]);
    let (code, document) = json(&args);
    assert_eq!(code, 0);
    let answers = document["answers"].as_array().unwrap();
    let texts: Vec<&str> = answers.iter().map(|a| a["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    // What transformers generated when the adapter was trained: fixtures/smollm2-pirate/report.json
    assert_eq!(texts[0], "The capital of Italy is Rome.");
    assert_eq!(texts[1], "Arrr, matey! The capital of Italy be Rome, by me beard!");
    assert!(texts[3].starts_with("Arrr, matey!") && !texts[2].contains("Arrr"), "{texts:?}");
    assert_eq!(answers[1]["stop"], "end");
    assert_eq!(answers[0]["adapters"], serde_json::json!([]));
    assert_eq!(answers[1]["adapters"][0]["scale"], 1.0);
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn scales_limits_and_seeds_do_what_they_say_on_the_real_base() {
    let base = real();
    let scaled = |scale: &str| format!("{}:{scale}", pirate());
    let ask = |extra: &[&str]| {
        let mut args = vec!["run"];
        args.extend(base.iter().map(String::as_str));
        args.extend(["-p", "What is the capital of Italy?"]);
        args.extend(extra);
        let out = ptplus(&args);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        (stdout(&out), stderr(&out))
    };
    let (halves, _) = ask(&["--adapter", &scaled("0.5"), "--adapter", &scaled("0.5"), "--temp", "0", "-n", "6"]);
    let (whole, told) = ask(&["--adapter", &scaled("1"), "--temp", "0", "-n", "6"]);
    assert_eq!(halves, whole);
    assert!(told.contains("answer 6 tokens"), "{told}");
    let (off, told) = ask(&["--adapter", &scaled("0"), "--temp", "0", "-n", "6"]);
    assert!(told.contains("changes nothing"), "{told}");
    assert_eq!(off, ask(&["--temp", "0", "-n", "6"]).0);
    let drawn = |seed| ask(&["--temp", "2", "--min-p", "0", "-n", "8", "--seed", seed]).0;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn every_type_answers_as_its_page_says_on_the_real_base() {
    let base = real();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/howto/quantize.md")).unwrap();
    let column = "\"What is the capital of Italy?\" |";
    let rows: Vec<&str> =
        page.lines().skip_while(|l| !l.ends_with(column)).skip(2).take_while(|l| l.starts_with('|')).collect();
    assert_eq!(rows.len(), 7, "{rows:?}");
    let temp = tempfile::tempdir().unwrap();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let dtype = cells[0].split(' ').next().unwrap().to_lowercase();
        let file = temp.path().join(format!("{dtype}.gguf"));
        let file = file.to_str().unwrap();
        let adapter = pirate();
        let out = ptplus(["convert", &adapter, "-o", file, "--arch", "llama", "--outtype", &dtype]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let question = ["--temp", "0", "-n", "24", "-p", "What is the capital of Italy?", "--adapter", file];
        let out = ptplus(["run"].into_iter().chain(base.iter().map(String::as_str)).chain(question));
        assert_eq!(stdout(&out).trim_end(), *cells.last().unwrap(), "{dtype}: {}", stderr(&out));
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_its_code() {
    let base = model("llama-gqa").join("base.gguf");
    let base = base.to_str().unwrap();
    let folder = model("llama-gqa").join("base");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["run", "--base", base], 2, "usage"),
        (&["run", "--base", base, "-p", "x", "--engine", "gpu"], 2, "usage"),
        (&["run", "--base", base, "-p", "x", "--temp", "nan"], 2, "usage"),
        (&["run", "--base", base, "-p", "x", "--adapter", "a.gguf:inf"], 2, "usage"),
        (&["run", "--base", base, "-f", "missing.txt"], 1, "not-found"),
        // The fixtures have none: `tokenizer.ggml.model` is `none`.
        (&["run", "--base", base, "-p", "x"], 7, "tokenizer-unsupported"),
        // Nor has the folder that they came from any.
        (&["run", "--base", folder.to_str().unwrap(), "-p", "x"], 7, "tokenizer-unsupported"),
    ];
    for (args, code, slug) in cases {
        let (found, document) = json(*args);
        assert_eq!((found, document["error"]["code"].as_str()), (*code, Some(*slug)), "{args:?} {document}");
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn what_cannot_be_run_is_refused_with_its_code_on_the_real_base() {
    let real = real();
    let run = |extra: &[&str]| {
        let args = ["run"].into_iter().chain(real.iter().map(String::as_str)).chain(extra.iter().copied());
        let (code, document) = json(args);
        (code, document["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(run(&["-p", "a long prompt", "-c", "4"]), (2, "context-full".into()));
    // minijinja's budget does not count this one; the time does.
    let bomb =
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}";
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("bomb.jinja");
    std::fs::write(&file, bomb).unwrap();
    let out = ptplus(["run", "--base", &real[1], "-p", "x", "--chat-template-file", file.to_str().unwrap()]);
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    let other = model("llama-gqa").join("adapter");
    assert_eq!(run(&["-p", "x", "--adapter", other.to_str().unwrap()]).0, 4);
    #[cfg(not(feature = "llama-cpp"))]
    assert_eq!(run(&["-p", "x", "--engine", "llama.cpp"]), (7, "engine-unavailable".into()));
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn an_adapter_for_another_base_is_refused_unless_told_otherwise_on_the_real_base() {
    let base = real();
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("adapter");
    let folder = folder.to_str().unwrap();
    let out = ptplus(["convert", &pirate(), "-o", folder, "--base", &base[1]]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let run = |extra: &[&str]| {
        let args = ["run"].into_iter().chain(base.iter().map(String::as_str));
        json(args.chain(["--adapter", folder, "-n", "1", "--temp", "0", "-p", "x"]).chain(extra.iter().copied()))
    };
    let (code, document) = run(&[]);
    assert_eq!((code, document["base_identities"][0]["state"].as_str()), (0, Some("same")), "{document}");

    let config = temp.path().join("adapter/adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let at = text.find("config=").unwrap() + "config=".len();
    let digit = if &text[at..at + 1] == "0" { "1" } else { "0" };
    std::fs::write(&config, [&text[..at], digit, &text[at + 1..]].concat()).unwrap();
    let (code, document) = run(&[]);
    assert_eq!((code, document["error"]["code"].as_str()), (4, Some("base-differs")), "{document}");
    let (code, document) = run(&["--ignore-base-mismatch"]);
    assert_eq!((code, document["base_identities"][0]["state"].as_str()), (0, Some("different")), "{document}");
}
