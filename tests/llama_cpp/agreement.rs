//! Every fixture and the real adapter: PyTorch, candle and llama.cpp.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::common::{MODELS, base_gguf, exit, fixtures, json, model, ptplus, smollm2, stderr};

/// Figures that the project promises for F32 without flash attention.
const FIXTURES_MAX_ABS: f64 = 5e-4;
const SMOLLM2_MAX_ABS: f64 = 5e-3;

fn verify(adapter: &Path, base: &Path, probe: &Path, more: &[&str]) -> (i32, Value) {
    let paths = [OsStr::new("verify"), adapter.as_os_str(), "--base".as_ref(), base.as_os_str(), "--probe".as_ref()];
    let rest = [probe.as_os_str(), "--engine".as_ref(), "llama.cpp".as_ref()];
    json(paths.into_iter().chain(rest).chain(more.iter().map(OsStr::new)))
}

fn convert(adapter: &Path, base: &Path, output: &Path) {
    let args = [OsStr::new("convert"), adapter.as_os_str(), "--base".as_ref(), base.as_os_str(), "-o".as_ref()];
    let out = ptplus(args.into_iter().chain([output.as_os_str()]));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

fn assert_agrees(what: &str, (code, report): (i32, Value), limit: f64) {
    assert_eq!(code, 0, "{what}: {report}");
    assert_eq!(report["pass"], true, "{what}: {report}");
    for engine in ["candle", "llama.cpp", "llama.cpp_beside_candle"] {
        let m = &report["engines"]["metrics"][engine];
        assert!(m["max_abs"].as_f64().unwrap() <= limit, "{what}, {engine}: {m}");
        assert!(m["mean_kl"].as_f64().unwrap() <= 1e-7, "{what}, {engine}: {m}");
        assert_eq!(m["top1_agreement"], 1.0, "{what}, {engine}: {m}");
        assert!(m["n_positions"].as_u64().unwrap() > 0, "{what}, {engine}: {m}");
    }
    assert_eq!(report["engines"]["metrics"]["llama.cpp"], report["metrics"], "{what}: the verdict is llama.cpp's");
    assert!(report["found_effect"].as_f64().unwrap() > 10.0 * limit.min(1e-3), "{what}: {report}");
}

#[test]
fn every_fixture_agrees_with_pytorch_and_candle() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let dir = model(name);
        let gguf = temp.path().join(format!("{name}.gguf"));
        convert(&dir.join("adapter"), &base_gguf(name), &gguf);
        for adapter in [dir.join("adapter"), gguf] {
            let outcome = verify(&adapter, &base_gguf(name), &dir.join("probe.safetensors"), &[]);
            assert_agrees(name, outcome, FIXTURES_MAX_ABS);
        }
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_real_adapter_agrees_with_pytorch_and_candle_on_the_real_base() {
    let base = smollm2();
    let dir = fixtures().join("smollm2-pirate");
    let outcome = verify(&dir.join("adapter"), &base, &dir.join("probe.safetensors"), &[]);
    assert_agrees("SmolLM2", outcome, SMOLLM2_MAX_ABS);
}

#[test]
fn a_window_that_llama_cpp_ignores_limits_the_positions_and_is_said() {
    let dir = model("mistral-swa");
    let (_, report) = verify(&dir.join("adapter"), &base_gguf("mistral-swa"), &dir.join("probe.safetensors"), &[]);
    let n = report["metrics"]["n_positions"].as_u64().unwrap();
    let n_rows = 2;
    assert!(n > 0 && n <= 8 * n_rows, "{report}");
    assert!(report["engines"]["notes"][0].as_str().unwrap().contains("sliding window of 8"), "{report}");
}

#[test]
fn another_adapter_s_numbers_fail() {
    let temp = tempfile::tempdir().unwrap();
    let mut raw = crate::common::RawAdapter::fixture("qwen3");
    raw.config["feature_map"] = "elu".into();
    raw.write(temp.path());
    let dir = model("qwen3");
    let (code, report) = verify(temp.path(), &base_gguf("qwen3"), &dir.join("probe.safetensors"), &[]);
    assert_eq!(code, 5, "{report}");
    assert_eq!(report["pass"], false);
}

#[test]
fn against_another_form_of_the_adapter_the_reference_is_candle_s() {
    let temp = tempfile::tempdir().unwrap();
    let dir = model("llama-gqa");
    let gguf = temp.path().join("a.gguf");
    convert(&dir.join("adapter"), &base_gguf("llama-gqa"), &gguf);
    let args = [OsStr::new("verify"), gguf.as_os_str(), "--base".as_ref()];
    let (base, adapter) = (base_gguf("llama-gqa"), dir.join("adapter"));
    let rest = [base.as_os_str(), "--against".as_ref(), adapter.as_os_str(), "--engine".as_ref(), "llama.cpp".as_ref()];
    assert_agrees("llama-gqa", json(args.into_iter().chain(rest)), FIXTURES_MAX_ABS);
}
