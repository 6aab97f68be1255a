//! `ptplus run` as a user meets it.
#![cfg(feature = "generate")]

use std::process::{Command, Stdio};

use crate::common::{exit, fixtures, json, model, ptplus, smollm2, stderr, stdout};

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
    let base = crate::common::base_gguf("llama-gqa");
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

/// A base that is small enough for every test, and answers nonsense.
fn tiny() -> String {
    fixtures().join("tokenizers/smollm").to_str().unwrap().to_owned()
}

#[test]
fn the_end_of_a_prompt_files_last_line_is_no_part_of_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    for (text, expected) in [
        ("hello", "hello"),
        ("hello\n", "hello"),
        ("hello\r\n", "hello"),
        ("hello\r", "hello\r"),
        ("a\r\nb\r\n", "a\r\nb"),
        ("hello\n\n", "hello\n"),
        ("hello\r\n\r\n", "hello\r\n"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, document) =
            json(["run", "--base", &tiny(), "--no-conversation", "-n", "1", "-f", file.to_str().unwrap()]);
        assert_eq!((code, document["answers"][0]["prompt"].as_str()), (0, Some(expected)), "{text:?} {document}");
    }
}

/// Rayon and candle are told alike, and not again where the environment says it.
#[test]
fn as_many_threads_compute_as_somebody_says() {
    let threads = |environment: Option<&str>, flag: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        command.args(["run", "--json", "--base", &tiny(), "--no-conversation", "-n", "1", "-p", "a"]).args(flag);
        command.env_remove("RAYON_NUM_THREADS").envs(environment.map(|n| ("RAYON_NUM_THREADS", n)));
        let out = command.output().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        document["threads"].as_u64().unwrap() as usize
    };
    assert_eq!(threads(None, &["--threads", "3"]), 3);
    assert_eq!(threads(Some("5"), &[]), 5);
    assert_eq!(threads(Some("5"), &["-t", "3"]), 3);
    assert_eq!(threads(None, &[]), std::thread::available_parallelism().unwrap().get());
}

#[test]
fn nothing_is_computed_once_nobody_reads_on() {
    let run = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        command.args(["run", "--base", &tiny(), "--no-conversation", "--temp", "0", "-n", "40"]);
        // Two prompts: the second is not begun.
        command.args(["-p", "hello", "-p", "hello"]).stdout(stdout).output().unwrap()
    };
    let answers = |out: &std::process::Output| {
        let lines: Vec<String> = stderr(out).lines().filter(|l| l.contains("answer")).map(str::to_owned).collect();
        (exit(out), lines.len(), lines.first().cloned().unwrap_or_default())
    };
    let (code, n, first) = answers(&run(Stdio::piped()));
    assert!((code, n) == (0, 2) && first.contains("answer 40 tokens"), "{code} {n} {first}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // The heading of the first prompt is lost, and a token makes text in a few steps at most.
    let (code, n, first) = answers(&run(writer.into()));
    let n_tokens: usize = first.split("answer ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).unwrap();
    assert!((code, n) == (0, 1) && n_tokens < 8, "{code} {n} {first}");
}

/// Virtual tokens take places of the context beside prompt and answer.
#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn virtual_tokens_leave_room_for_prompt_and_answer_on_the_real_base() {
    let temp = tempfile::tempdir().unwrap();
    let values = (0..20 * 576).map(|i| (i as f32).sin() * 0.05).collect();
    let tensors = [("prompt_embeddings".to_owned(), crate::common::Tensor { shape: vec![20, 576], values })];
    let config = serde_json::json!({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 20, "token_dim": 576});
    crate::common::RawAdapter { config, tensors: tensors.into_iter().collect() }.write(temp.path());
    let (base, adapter) = (smollm2(), temp.path().to_str().unwrap());
    let args = ["run", "--base", base.to_str().unwrap(), "--adapter", adapter, "--temp", "0", "-p", "Hello"];
    let (code, document) = json(args.iter().chain(&["-n", "2"]));
    assert_eq!(code, 0, "{document}");
    let n_prompt = document["answers"][0]["prompt_tokens"].as_u64().unwrap();
    // Exactly enough, and one too few.
    for (n_context, expected) in [(20 + n_prompt + 1, 0), (20 + n_prompt, 2)] {
        let out = ptplus(args.iter().chain(&["-n", "1", "-c", &n_context.to_string()]));
        assert_eq!(exit(&out), expected, "{n_context}: {}", stderr(&out));
    }
}
