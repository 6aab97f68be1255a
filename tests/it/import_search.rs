//! A probe settles what a checkpoint does not state, and for every convention the wrong choice fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, model, ptplus, stderr, stdout};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

const CONVENTIONS: [&str; 5] = ["feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing"];

fn convert(source: &Path, out: &Path, name: &str, probe: &Path, more: &[&str]) -> std::process::Output {
    let mut args: Vec<std::ffi::OsString> = vec!["convert".into(), source.into(), "--to=safetensors".into()];
    args.extend(["-o".into(), out.into(), "--outtype=f32".into(), "--base".into(), model(name).join("base").into()]);
    args.extend(["--probe".into(), probe.into()]);
    args.extend(more.iter().map(Into::into));
    ptplus(args)
}

fn probe_of(name: &str) -> PathBuf {
    model(name).join("probe.safetensors")
}

/// The fixture without its conventions, its tensors as `change` has them.
fn open_adapter(temp: &Path, name: &str, change: impl Fn(&str, Tensor) -> (String, Tensor)) -> PathBuf {
    let source = RawAdapter::fixture(name);
    let mut config = source.config;
    for key in CONVENTIONS.iter().chain(&["num_attention_heads", "num_key_value_heads", "num_layers", "head_dim"]) {
        config.as_object_mut().unwrap().remove(*key);
    }
    let tensors = source.tensors.into_iter().map(|(n, t)| change(&n, t)).collect();
    let folder = temp.join("open");
    let _ = std::fs::remove_dir_all(&folder);
    RawAdapter { config, tensors }.write(&folder);
    folder
}

/// A copy of a probe, its tensors changed or left out.
fn changed_probe(
    from: &Path,
    to: &Path,
    change: impl Fn(&str, Dtype, &[usize], &[u8]) -> Option<(Vec<usize>, Vec<u8>)>,
) {
    let bytes = std::fs::read(from).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = parsed
        .tensors()
        .into_iter()
        .filter_map(|(n, t)| change(&n, t.dtype(), t.shape(), t.data()).map(|(s, d)| (n, (t.dtype(), s, d))))
        .collect();
    let views = kept.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(to, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn assert_found(out: &Path, name: &str, limit: f32) {
    let (found, reference) = (RawAdapter::read(out), RawAdapter::fixture(name));
    for key in CONVENTIONS {
        assert_eq!(found.config[key], reference.config[key], "{name}: {key}");
    }
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), reference.tensors.keys().collect::<Vec<_>>());
    for (n, t) in &found.tensors {
        let r = &reference.tensors[n];
        assert_eq!(t.shape, r.shape, "{name}: {n}");
        let size = r.values.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(t.values.iter().zip(&r.values).all(|(a, b)| (a - b).abs() <= limit * size), "{name}: {n}");
    }
}

#[test]
fn the_probe_alone_resolves_a_checkpoint_that_says_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let source = model("llama-mha").join("foreign/linear-transposed");
    let without_terms = temp.path().join("probe.safetensors");
    changed_probe(&probe_of("llama-mha"), &without_terms, |n, _, s, b| {
        (!n.starts_with("term.")).then(|| (s.to_vec(), b.to_vec()))
    });
    for (what, probe) in [("term", probe_of("llama-mha")), ("logits", without_terms)] {
        let out = temp.path().join(what);
        let done = convert(&source, &out, "llama-mha", &probe, &[]);
        assert_eq!(exit(&done), 0, "{what}: {}", stderr(&done));
        assert!(stdout(&done).contains("transpose_memory true"), "{}", stdout(&done));
        assert_found(&out, "llama-mha", 1.0 / 256.0);
        let record = &RawAdapter::read(&out).config["ptplus_conventions"];
        assert_eq!(record["evidence"], what);
        assert_eq!(record["feature_map"], "probe");
        assert_eq!(record["probe_sha256"].as_str().unwrap().len(), 64);
        assert!(record["margin"].as_f64().unwrap() > 2.0, "{record}");
    }
}

#[test]
fn a_bundle_takes_one_search() {
    use ptplus::bundle::pack::{Pack, pack};
    use ptplus::pipeline::{self, Convert, Format, Proof};
    let (temp, m) = (tempfile::tempdir().unwrap(), model("llama-mha"));
    let folder = open_adapter(temp.path(), "llama-mha", |n, t| (n.to_owned(), t));
    let (base, probe) = (m.join("base"), m.join("probe.safetensors"));
    let base = ptplus::base::BaseModel::open(&base).unwrap();
    let (read, device) = (ptplus::verify::probe::Probe::open(&probe).unwrap(), ptplus::runner::Device::cpu());
    // What the search and the proof report, counted.
    let n_steps = |make: &dyn Fn(Convert<'_>, ptplus::verify::Options<'_>), output: &str| {
        let n = std::cell::Cell::new(0);
        let count = |_, _| n.set(n.get() + 1);
        let options = ptplus::verify::Options { device: &device, tolerance: None, progress: &count };
        let output = temp.path().join(output);
        let mut job = Convert::new(&folder, &output, Format::Gguf);
        job.base = Some(&base);
        job.prove = Some(Proof { probe: &read, path: &probe, options: options.clone() });
        make(job, options);
        n.get()
    };
    let converted = n_steps(&|job, _| drop(pipeline::convert(&job).unwrap()), "a.gguf");
    let prompts = ptplus::verify::Prompts::DEFAULT;
    let pack = |convert: Convert<'_>, options: ptplus::verify::Options<'_>| {
        let prompts = prompts.clone();
        pack(Pack::new(convert, options, prompts, "")).unwrap();
    };
    assert!(converted > 0);
    assert_eq!(n_steps(&pack, "bundle"), converted);
}

#[test]
fn every_fixture_without_its_conventions_is_found_again() {
    let temp = tempfile::tempdir().unwrap();
    for name in crate::common::MODELS {
        let folder = open_adapter(temp.path(), name, |n, t| (n.to_owned(), t));
        let out = temp.path().join(name);
        let done = convert(&folder, &out, name, &probe_of(name), &[]);
        assert_eq!(exit(&done), 0, "{name}: {}", stderr(&done));
        assert_found(&out, name, 0.0);
    }
}

#[test]
fn orientation_flattening_and_head_order_are_found() {
    let temp = tempfile::tempdir().unwrap();
    type Change = fn(&str, Tensor) -> (String, Tensor);
    fn linear(n: &str) -> String {
        n.replace("memory", "memory_proj.weight")
    }
    fn flat(mut t: Tensor) -> Tensor {
        t.shape = vec![t.shape[0] * t.shape[1], t.shape[2]];
        t
    }
    /// `[a, b, c] -> [b, a, c]`
    fn outer_swapped(t: &Tensor) -> Tensor {
        let [a, b, c] = t.shape[..] else { panic!() };
        let values = (0..b)
            .flat_map(|j| (0..a).flat_map(move |i| (0..c).map(move |k| (i * b + j) * c + k)))
            .map(|i| t.values[i])
            .collect();
        Tensor { shape: vec![b, a, c], values }
    }
    let cases: [(&str, &str, Change); 6] = [
        ("transposed heads", "llama-mha", |n, t| (linear(n), t.transposed())),
        ("(H F) V", "llama-mha", |n, t| (linear(n), flat(t))),
        ("(H V) F", "llama-mha", |n, t| (linear(n), flat(t.transposed()))),
        ("(F H) V", "llama-mha", |n, t| (linear(n), flat(outer_swapped(&t)))),
        ("(V H) F", "llama-mha", |n, t| (linear(n), flat(outer_swapped(&t.transposed())))),
        ("heads of a group apart", "llama-gqa", |n, t| (n.into(), t.permuted(0, &[0, 2, 1, 3]))),
    ];
    for (what, name, change) in cases {
        let folder = open_adapter(temp.path(), name, change);
        let out = temp.path().join(what.replace(' ', "-"));
        let done = convert(&folder, &out, name, &probe_of(name), &[]);
        assert_eq!(exit(&done), 0, "{what}: {}", stderr(&done));
        assert_found(&out, name, 0.0);
    }
}

#[test]
fn for_each_convention_the_wrong_choice_fails() {
    let temp = tempfile::tempdir().unwrap();
    let right =
        ["--feature-map=elu", "--query-tap=post_rope", "--query-scale=1", "--memory-scale=1", "--transpose-memory"];
    let source = model("llama-mha").join("foreign/linear-transposed");
    for (i, wrong) in [
        (0, "--feature-map=gelu"),
        (0, "--feature-map=elu_plus_one"),
        (1, "--query-tap=pre_rope"),
        (2, "--query-scale=0.17677669529663687"),
        (3, "--memory-scale=0.17677669529663687"),
        (4, "--transpose-memory=false"),
    ] {
        let out = temp.path().join("out");
        // The rest stated, and the rest open: neither may find a way around.
        let mut stated = right;
        stated[i] = wrong;
        for flags in [&stated[..], &[wrong]] {
            let done = convert(&source, &out, "llama-mha", &probe_of("llama-mha"), flags);
            assert_eq!(exit(&done), 5, "{flags:?}: {}{}", stdout(&done), stderr(&done));
            assert!(!out.exists());
        }
    }
    // Sharing: the two memories of qwen2 serve neighbouring heads; alternating ones are another function.
    let folder = open_adapter(temp.path(), "qwen2", |n, t| (n.to_owned(), t.permuted(0, &[1, 0])));
    let out = temp.path().join("out");
    let done = convert(&folder, &out, "qwen2", &probe_of("qwen2"), &[]);
    assert_eq!(exit(&done), 5, "{}", stderr(&done));
}

#[test]
fn none_is_exit_5_with_the_best_five() {
    let temp = tempfile::tempdir().unwrap();
    // The name says that rows are features, and they are not.
    let folder = open_adapter(temp.path(), "mistral-swa", |n, t| {
        (n.to_owned(), if n.ends_with("memory") { t.transposed() } else { t })
    });
    let out = temp.path().join("out");
    let done = convert(&folder, &out, "mistral-swa", &probe_of("mistral-swa"), &[]);
    assert_eq!(exit(&done), 5, "{}", stderr(&done));
    let text = stderr(&done);
    assert!(text.contains("[convention-none]"), "{text}");
    assert_eq!(text.lines().filter(|l| l.contains("of the limit: feature_map")).count(), 5, "{text}");
    assert!(!out.exists());
}

#[test]
fn what_the_probe_cannot_separate_is_exit_7_and_named() {
    let temp = tempfile::tempdir().unwrap();
    // At position 0 RoPE turns nothing, so the taps are the same function there.
    let probe = temp.path().join("probe.safetensors");
    changed_probe(&probe_of("llama-mha"), &probe, |name, dtype, shape, bytes| {
        let size = if dtype == Dtype::I64 { 8 } else { 4 };
        let axis = if name.starts_with("q.") || name.starts_with("term.") { 2 } else { 1 };
        let inner: usize = shape[axis + 1..].iter().product::<usize>() * size;
        let kept = bytes.chunks(shape[axis] * inner).flat_map(|c| c[..inner].to_vec()).collect();
        let mut shape = shape.to_vec();
        shape[axis] = 1;
        Some((shape, kept))
    });
    let out = temp.path().join("out");
    let source = model("llama-mha").join("foreign/linear-transposed");
    let done = convert(&source, &out, "llama-mha", &probe, &[]);
    assert_eq!(exit(&done), 7, "{}", stderr(&done));
    let text = stderr(&done);
    assert!(text.contains("[convention-ambiguous]") && text.contains("--query-tap"), "{text}");
    assert!(!text.contains("--feature-map"), "{text}");
    let done = convert(&source, &out, "llama-mha", &probe, &["--query-tap=post_rope"]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
}

#[test]
fn verify_searches_as_well() {
    let source = model("llama-mha").join("foreign/linear-transposed");
    let (code, report) = crate::common::json([
        "verify".as_ref(),
        source.as_path(),
        "--base".as_ref(),
        crate::common::base_gguf("llama-mha").as_path(),
        "--probe".as_ref(),
        probe_of("llama-mha").as_path(),
    ]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["conventions"]["found"]["feature_map"], "elu");
    assert_eq!(report["conventions"]["found"]["memory_sharing"], json!("per_head"));
    assert_eq!(report["conventions"]["evidence"], "term");
}

/// Which layers a stack is of is no convention that the search tries: with a probe it stays as open as without.
#[test]
fn a_stack_of_layers_that_nothing_numbers_stays_open() {
    let temp = tempfile::tempdir().unwrap();
    let source = RawAdapter::fixture("llama-gqa"); // layers 0 and 2 of 3
    let values = source.tensors.values().flat_map(|t| t.values.clone()).collect();
    let first = source.tensors.values().next().unwrap();
    let stacked = Tensor { shape: [&[2], &first.shape[..]].concat(), values };
    let folder = temp.path().join("open");
    let mut config = source.config.clone();
    for key in ["layers_to_transform", "query_tap"] {
        config.as_object_mut().unwrap().remove(key);
    }
    RawAdapter { config, tensors: [("prefix_memory".to_owned(), stacked)].into() }.write(&folder);
    let out = temp.path().join("out");
    let done = convert(&folder, &out, "llama-gqa", &probe_of("llama-gqa"), &[]);
    assert_eq!(exit(&done), 7, "{}", stderr(&done));
    assert!(stderr(&done).contains("--layers"), "{}", stderr(&done));
    let done = convert(&folder, &out, "llama-gqa", &probe_of("llama-gqa"), &["--layers=0,2"]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
}
