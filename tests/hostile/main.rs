//! Files made to break a reader: one named case for each rule and for each side of each boundary, built byte by byte.
//!
//! ```sh
//! cargo test --test hostile                                      # debug
//! cargo test --release --test hostile                            # release, overflow checks on
//! cargo test --no-default-features --test hostile                # the readers alone
//! PTPLUS_SHOW=1 cargo test --test hostile cases -- --nocapture   # every case: code, time, memory
//! ```
//!
//! Each case asserts the stable error code, one short line of message that names the file, less than 256 MiB at once and
//! less than 1 GiB allocated in all; or that the file is accepted and hangs together. That none takes 2 s of processor time is
//! for a benchmark to say:
//!
//! ```sh
//! cargo test --release --test hostile -- --ignored --nocapture benchmark
//! ```

mod adapter;
mod archive;
mod base_config;
mod base_gguf;
mod case;
#[cfg(feature = "generate")]
mod chat_template;
mod damage;
#[cfg(feature = "llama-cpp")]
mod differential;
#[cfg(all(feature = "cli", feature = "runner"))]
mod every_command;
mod gguf;
mod gguf_adapter;
mod gguf_file;
#[cfg(feature = "generate")]
mod gguf_vocabulary;
mod import;
mod index;
mod json;
mod layout;
mod lora;
mod manifest;
mod names;
mod pickle;
mod prefix;
#[cfg(feature = "runner")]
mod probe;
mod safetensors;
mod seeds;
mod tokenizer_files;
#[cfg(all(feature = "cli", feature = "runner"))]
mod tool;
mod valid;

use case::{Case, Read};

/// Every table: what it is about, its cases, and the reader that meets them.
fn tables() -> Vec<(&'static str, Vec<Case>, Read)> {
    vec![
        ("gguf", gguf::cases(), gguf::read),
        ("gguf, large", gguf::large(), gguf::read),
        ("gguf adapter", gguf_adapter::cases(), gguf_adapter::read),
        ("gguf base", base_gguf::cases(), base_gguf::read),
        ("safetensors", safetensors::cases(), safetensors::read),
        ("safetensors, large", safetensors::large(), safetensors::read),
        ("safetensors index", index::cases(), index::read),
        ("json", json::cases(), json::read),
        ("adapter_config.json", adapter::cases(), adapter::read),
        ("config.json", base_config::cases(), base_config::read),
        ("layout", layout::cases(), layout::read),
        ("import", import::cases(), import::read),
        ("import with a layout", import::cases_with_layout(), import::read_with_layout),
        ("import with a slow layout", import::cases_with_slow_layout(), import::read_with_slow_layout),
        ("suggested layout", import::cases_of_suggestion(), import::read_for_suggestion),
        ("names", names::cases(), names::read),
        #[cfg(feature = "runner")]
        ("probe", probe::cases(), probe::read),
        ("lora, adapter_config.json", lora::config_cases(), lora::read_config),
        ("lora, tensors", lora::weight_cases(), lora::read_weights),
        ("lora, gguf", lora::gguf_cases(), lora::read_gguf),
        ("prefix, adapter_config.json", prefix::config_cases(), prefix::read_config),
        ("prefix, tensors", prefix::weight_cases(), prefix::read_weights),
        ("prefix, gguf", prefix::gguf_cases(), prefix::read_gguf),
        ("manifest", manifest::cases(), manifest::read),
        #[cfg(feature = "generate")]
        ("gguf vocabulary", gguf_vocabulary::cases(), gguf_vocabulary::read),
        ("tokenizer.json", tokenizer_files::cases(), tokenizer_files::read),
        ("tokenizer_config.json", tokenizer_files::config_cases(), tokenizer_files::read_config),
        ("added_tokens.json", tokenizer_files::added_cases(), tokenizer_files::read_added),
        ("chat_template.json", tokenizer_files::template_cases(), tokenizer_files::read_template),
        ("chat_template.jinja", tokenizer_files::jinja_cases(), tokenizer_files::read_jinja),
        ("config.json of a tokenizer", tokenizer_files::model_cases(), tokenizer_files::read_model),
        #[cfg(feature = "generate")]
        ("chat template", chat_template::cases(), chat_template::read),
        #[cfg(feature = "generate")]
        ("chat template, short context", chat_template::short_cases(), chat_template::read_short),
        ("archive", archive::cases(), archive::read),
        ("archive to unpack", archive::foreign_cases(), archive::read_foreign),
    ]
}

/// Those of all cases that `is_asked` is true of, at least `n`.
fn check_cases(is_asked: fn(&case::Case) -> bool, n: usize) {
    let _turn = case::alone();
    let mut tables = tables();
    tables.iter_mut().for_each(|(_, cases, _)| cases.retain(is_asked));
    let n_found: usize = tables.iter().map(|(_, cases, _)| cases.len()).sum();
    assert!(n_found >= n, "{n_found} cases");
    let failures: Vec<String> =
        tables.into_iter().flat_map(|(name, cases, read)| case::check(name, cases, read)).collect();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn cases_are_refused_by_their_code_or_read() {
    case::in_a_process_of_its_own("measured_cases");
}

#[test]
#[ignore = "what the test above runs"]
fn measured_cases() {
    check_cases(|case| !case.is_large(), 400);
}

#[test]
#[ignore = "half a minute"]
fn large_cases_are_refused_by_their_code_or_read() {
    check_cases(case::Case::is_large, 50);
}

#[test]
#[ignore = "a benchmark: alone, in a release build"]
fn benchmark_no_case_takes_two_seconds_of_processor_time() {
    let _turn = case::alone();
    let slow: Vec<String> =
        tables().into_iter().flat_map(|(name, cases, read)| case::slow(name, cases, read)).collect();
    assert!(slow.is_empty(), "{} cases\n{}", slow.len(), slow.join("\n"));
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let mut names: Vec<String> = tables()
        .iter()
        .flat_map(|(table, cases, _)| cases.iter().map(move |c| format!("{table}: {}", c.name)))
        .collect();
    names.sort();
    let twice: Vec<_> = names.windows(2).filter(|w| w[0] == w[1]).map(|w| &w[0]).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(names.len() >= 400, "{} cases", names.len());
}
