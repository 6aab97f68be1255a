//! Every fixture, base from safetensors and from GGUF, adapter from safetensors and from our GGUF, against PyTorch.

use crate::common::{MODELS, base, convert, exit, json, model, smollm2, stderr};

/// Runs `verify` and holds the figures against the limits that the project promises, which are tighter than the
/// tolerance for exact storage.
fn assert_agrees(adapter: &std::path::Path, base: &std::path::Path, probe: &std::path::Path, max_abs: f64, kl: f64) {
    let (code, report) = json(["verify".as_ref(), adapter, "--base".as_ref(), base, "--probe".as_ref(), probe]);
    let what = format!("{} on {}: {report}", adapter.display(), base.display());
    assert_eq!(code, 0, "{what}");
    assert_eq!(report["status"], "ok", "{what}");
    assert_eq!(report["pass"], true, "{what}");
    let m = &report["metrics"];
    assert!(m["max_abs"].as_f64().unwrap() <= max_abs, "{what}");
    assert!(m["max_kl"].as_f64().unwrap() <= kl, "{what}");
    assert!(m["mean_kl"].as_f64().unwrap() <= kl, "{what}");
    assert_eq!(m["top1_agreement"], 1.0, "{what}");
    assert!(m["n_positions"].as_u64().unwrap() > 0, "{what}");
}

#[test]
fn every_fixture_agrees_with_pytorch_from_every_form() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        let dir = model(name);
        let gguf = temp.path().join(format!("{name}.gguf"));
        let out = convert(&dir.join("adapter"), &gguf, &["--base", &base(name)]);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
        for base in ["base", "base.gguf"] {
            for adapter in [dir.join("adapter"), gguf.clone()] {
                assert_agrees(
                    &adapter,
                    &crate::common::base_as(base, name),
                    &dir.join("probe.safetensors"),
                    2e-4,
                    1e-9,
                );
            }
        }
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_real_adapter_agrees_with_pytorch_on_the_real_base() {
    let base = smollm2();
    let temp = tempfile::tempdir().unwrap();
    let dir = crate::common::fixtures().join("smollm2-pirate");
    let gguf = temp.path().join("pirate.gguf");
    let out = convert(&dir.join("adapter"), &gguf, &["--base", base.to_str().unwrap()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    for adapter in [dir.join("adapter"), gguf] {
        assert_agrees(&adapter, &base, &dir.join("probe.safetensors"), 5e-3, 1e-7);
    }
}

#[test]
fn the_probes_queries_and_terms_agree_layer_by_layer() {
    for name in MODELS {
        let dir = model(name);
        let (_, report) = json([
            "verify".as_ref(),
            dir.join("adapter").as_path(),
            "--base".as_ref(),
            dir.join("base").as_path(),
            "--probe".as_ref(),
            dir.join("probe.safetensors").as_path(),
        ]);
        let layers = report["layers"].as_array().unwrap();
        assert!(!layers.is_empty(), "{name}");
        for l in layers {
            let term_size = l["term_size"].as_f64().unwrap();
            assert!(term_size > 0.01, "{name}: {l}");
            assert!(l["q_max_abs"].as_f64().unwrap() <= 1e-4, "{name}: {l}");
            assert!(l["term_max_abs"].as_f64().unwrap() <= 1e-4 * term_size.max(1.0), "{name}: {l}");
        }
        assert!(report["base_metrics"]["max_abs"].as_f64().unwrap() <= 2e-4, "{name}");
    }
}
