//! What `quantize` and `convert --outtype` promise: ggml's bytes in the architecture's row order, nothing silently
//! different from what was asked, and figures that say what it cost.

#[allow(dead_code)]
use std::path::{Path, PathBuf};

use crate::common::{MODELS, RawAdapter, Tensor, exit, json, model, ptplus, stderr, stdout};
use crate::quant_inputs::Rng;
use ptplus::format::gguf::{self, Gguf};
use ptplus::quant;
use ptplus::tensor::DType;
use serde_json::Value;

const NARROW: [DType; 5] = [DType::Q8_0, DType::Q5_0, DType::Q5_1, DType::Q4_0, DType::Q4_1];
const WIDE: [DType; 5] = [DType::Q6_K, DType::Q5_K, DType::Q4_K, DType::Q3_K, DType::Q2_K];

/// The table of fallbacks in docs/FORMAT.md, for rows that 32 divides and 256 does not.
fn fallback(dtype: DType) -> DType {
    match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    }
}

struct Case {
    temp: tempfile::TempDir,
    adapter: PathBuf,
}

impl Case {
    fn new(adapter: &RawAdapter) -> Case {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("adapter");
        adapter.write(&folder);
        Case { adapter: folder, temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// `quantize ADAPTER -o NAME TYPE EXTRA --json`
    fn quantize(&self, name: &str, dtype: &str, extra: &[&str]) -> (i32, Value) {
        quantize(&self.adapter, &self.path(name), dtype, extra)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn quantize(from: &Path, to: &Path, dtype: &str, extra: &[&str]) -> (i32, Value) {
    let mut args = vec!["quantize".as_ref(), from.as_os_str(), "-o".as_ref(), to.as_os_str(), dtype.as_ref()];
    args.extend(extra.iter().map(std::ffi::OsStr::new));
    json(args)
}

/// The qwen3 fixture with 256 features instead of 96, so that the K types fit: a random but working feature map.
fn with_256_features() -> RawAdapter {
    let mut a = RawAdapter::fixture("qwen3");
    let mut rng = Rng(7);
    for t in a.tensors.values_mut() {
        // [H', F, ..] or [H', F]: the features that exist, over and over, each time a little different.
        let (heads, features) = (t.shape[0], t.shape[1]);
        let inner: usize = t.shape[2..].iter().product();
        let mut values = Vec::new();
        for h in 0..heads {
            for f in 0..256 {
                let row = &t.values[(h * features + f % features) * inner..][..inner];
                values.extend(row.iter().map(|v| v * (1.0 + 0.5 * rng.uniform())));
            }
        }
        t.shape[1] = 256;
        t.values = values;
    }
    a.config["num_features"] = 256.into();
    a
}

fn architecture(name: &str) -> &'static str {
    match name {
        n if n.starts_with("llama") || n.starts_with("mistral") => "llama",
        n if n.starts_with("qwen3") => "qwen3",
        _ => "qwen2",
    }
}

/// Hugging Face order to NORM, as docs/FORMAT.md states it: row `2j+t` is row `t*D/2 + j`.
fn norm_order(d: usize) -> Vec<usize> {
    (0..d).map(|r| (r % 2) * d / 2 + r / 2).collect()
}

/// What the GGUF must hold for a canonical tensor: axes and row order changed, by plain loops of the tests' own.
fn expected_values(a: &RawAdapter, canonical: &str, architecture: &str) -> Tensor {
    let t = a.tensors[canonical].clone();
    let d = a.config["head_dim"].as_u64().unwrap() as usize;
    let has_map = a.tensors.keys().any(|k| k.ends_with("feature.weight"));
    let norm = architecture == "llama";
    if canonical.ends_with(".memory") {
        let t = if norm && !has_map { t.permuted(1, &norm_order(d)) } else { t };
        return t.transposed();
    }
    match canonical {
        c if norm && c.ends_with("feature.weight") => t.permuted(2, &norm_order(d)),
        c if norm && !has_map && c.ends_with("normalizer") => t.permuted(1, &norm_order(d)),
        _ => t,
    }
}

fn gguf_name(canonical: &str) -> String {
    let (layer, part) = canonical.strip_prefix("layers.").unwrap().split_once('.').unwrap();
    let part = match part {
        "memory" => "memory.weight",
        "normalizer" => "normalizer.weight",
        other => other,
    };
    format!("blk.{layer}.attn_prefix_{part}")
}

/// Whether every M and W of the file has the bytes that ggml's quantizer (the scalar one, which the goldens prove)
/// makes of the reordered values, and everything else is F32.
fn check_bytes(file: &Gguf, a: &RawAdapter, architecture: &str, dtype: DType) {
    assert_eq!(file.tensors.len(), a.tensors.len());
    for name in a.tensors.keys() {
        let stored = file.tensors.iter().find(|t| t.name == gguf_name(name)).unwrap_or_else(|| panic!("{name}"));
        let values = expected_values(a, name, architecture);
        assert_eq!(stored.shape, values.shape, "{name}");
        if !(name.ends_with(".memory") || name.ends_with("feature.weight")) {
            assert!(stored.dtype == DType::F32 && *stored.bytes == values.bytes()[..], "{name}");
            continue;
        }
        let row = *values.shape.last().unwrap();
        let dtype = if row.is_multiple_of(dtype.block_len()) { dtype } else { fallback(dtype) };
        assert_eq!(stored.dtype, dtype, "{name}: rows of {row}");
        let mut expected = vec![0; values.values.len() / dtype.block_len() * dtype.block_bytes()];
        quant::quantize_row_scalar(dtype, &values.values, &mut expected);
        assert!(*stored.bytes == expected[..], "{name}: {dtype}");
    }
}

#[test]
fn every_type_has_ggmls_bytes_in_the_architectures_row_order() {
    for name in MODELS {
        let raw = RawAdapter::fixture(name);
        let case = Case::new(&raw);
        let plain = [DType::F32, DType::F16, DType::BF16];
        for dtype in plain.into_iter().chain(NARROW).chain(WIDE) {
            let out = format!("{dtype}.gguf");
            let (code, report) = case.quantize(&out, dtype.name(), &["--arch", architecture(name)]);
            assert_eq!(code, 0, "{name} {dtype}: {report}");
            let file = gguf::open(&case.path(&out)).unwrap();
            check_bytes(&file, &raw, architecture(name), dtype);
            let quantized = fallback(dtype).is_quantized();
            assert_eq!(file.metadata.u32("general.quantization_version").unwrap(), quantized.then_some(2));
        }
    }
}

#[test]
fn k_types_are_written_where_256_divides_the_rows() {
    let raw = with_256_features();
    let case = Case::new(&raw);
    for (dtype, file_type) in WIDE.into_iter().zip([18, 17, 15, 12, 10]) {
        let out = format!("{dtype}.gguf");
        // M [.., 256] takes it, W [.., 64] falls back.
        let (code, report) = case.quantize(&out, &dtype.ggml_id().unwrap().to_string(), &["--arch", "qwen3"]);
        assert_eq!(code, 0, "{report}");
        let file = gguf::open(&case.path(&out)).unwrap();
        check_bytes(&file, &raw, "qwen3", dtype);
        assert_eq!(file.metadata.u32("general.file_type").unwrap(), Some(file_type), "M's type");
    }
}

#[test]
fn what_does_not_fit_falls_back_and_says_so_or_is_refused_or_kept() {
    let case = Case::new(&RawAdapter::fixture("llama-gqa"));
    let (code, report) = case.quantize("a.gguf", "q4_K", &["--arch", "llama"]);
    assert_eq!(code, 0);
    let notes = report["notes"].as_array().unwrap();
    assert!(
        notes.iter().any(|n| n
            .as_str()
            .unwrap()
            .contains("rows of 64 are no whole blocks of Q4_K (256 elements); written as Q5_0")),
        "{notes:?}"
    );
    for t in report["tensors"].as_array().unwrap() {
        assert_eq!((&t["dtype"], &t["unfit"]), (&"Q5_0".into(), &"Q4_K".into()), "{t}");
    }
    let (code, report) = case.quantize("b.gguf", "Q4_K", &["--arch", "llama", "--on-unfit", "error"]);
    assert_eq!((code, &report["error"]["code"]), (7, &"type-unfit".into()), "{report}");
    assert_eq!(case.names(), ["a.gguf", "adapter"]);
    let (code, report) = case.quantize("c.gguf", "Q4_K", &["--arch", "llama", "--on-unfit", "keep"]);
    assert_eq!(code, 0);
    assert!(
        report["tensors"].as_array().unwrap().iter().all(|t| t["dtype"] == "F32" && t["unfit"] == "Q4_K"),
        "{report}"
    );
}

#[test]
fn rows_that_no_block_divides_become_f16() {
    let mut raw = RawAdapter::fixture("qwen3");
    raw.change("feature.weight", |t| t.permuted(1, &(0..40).collect::<Vec<_>>()));
    raw.change("feature.bias", |t| t.permuted(1, &(0..40).collect::<Vec<_>>()));
    raw.change("memory", |t| t.permuted(1, &(0..40).collect::<Vec<_>>()));
    raw.config["num_features"] = 40.into();
    let case = Case::new(&raw);
    for dtype in ["q8_0", "q4_k"] {
        let (code, report) = case.quantize(&format!("{dtype}.gguf"), dtype, &["--arch", "qwen3"]);
        assert_eq!(code, 0, "{report}");
        for t in report["tensors"].as_array().unwrap() {
            let expected = match t["name"].as_str().unwrap() {
                n if n.ends_with("memory.weight") => "F16",
                n if n.ends_with("bias") => "F32",
                _ if dtype == "q8_0" => "Q8_0",
                _ => "Q5_0",
            };
            assert_eq!(t["dtype"], expected, "{t}");
        }
    }
}

#[test]
fn the_first_matching_override_decides_and_one_that_decides_nothing_is_refused() {
    let case = Case::new(&RawAdapter::fixture("qwen3"));
    let overrides = ["--arch", "qwen3", "--tensor-type", r"blk\.0\..*memory=f16", "--tensor-type", "memory=Q8_0"];
    let (code, report) = case.quantize("a.gguf", "q4_0", &overrides);
    assert_eq!(code, 0, "{report}");
    for t in report["tensors"].as_array().unwrap() {
        let expected = match t["name"].as_str().unwrap() {
            "blk.0.attn_prefix_memory.weight" => "F16",
            n if n.ends_with("memory.weight") => "Q8_0",
            n if n.ends_with("feature.weight") => "Q4_0",
            _ => "F32",
        };
        assert_eq!(t["dtype"], expected, "{t}");
    }
    for useless in [["memroy=q8_0"].as_slice(), &["bias=q8_0"], &["memory=f16", r"blk\.0\..*memory=q8_0"]] {
        let mut extra = vec!["--arch", "qwen3"];
        useless.iter().for_each(|o| extra.extend(["--tensor-type", o]));
        let (code, report) = case.quantize("b.gguf", "q4_0", &extra);
        assert_eq!((code, &report["error"]["code"]), (2, &"usage".into()), "{useless:?}: {report}");
    }
    assert_eq!(case.names(), ["a.gguf", "adapter"]);
}

#[test]
fn blocks_are_kept_byte_for_byte_and_quantized_again_only_on_request() {
    let raw = RawAdapter::fixture("llama-mha");
    let case = Case::new(&raw);
    assert_eq!(case.quantize("q8.gguf", "q8_0", &["--arch", "llama"]).0, 0);
    let (q8, kept) = (case.path("q8.gguf"), case.path("kept.gguf"));
    assert_eq!(exit(&ptplus(["convert".as_ref(), q8.as_os_str(), "-o".as_ref(), kept.as_os_str()])), 0);
    let (before, after) = (gguf::open(&q8).unwrap(), gguf::open(&kept).unwrap());
    for (x, y) in before.tensors.iter().zip(&after.tensors) {
        assert_eq!((&x.name, x.dtype, &x.shape), (&y.name, y.dtype, &y.shape));
        assert!(*x.bytes == *y.bytes, "{}", x.name);
    }
    let (code, report) = quantize(&q8, &case.path("q4.gguf"), "q4_0", &[]);
    assert_eq!((code, &report["error"]["code"]), (2, &"requantize".into()), "{report}");
    let (code, report) = quantize(&q8, &case.path("q4.gguf"), "q4_0", &["--allow-requantize"]);
    assert_eq!(code, 0, "{report}");
    // The second loss counts from the first one's values, and equals quantizing those.
    let q4 = gguf::open(&case.path("q4.gguf")).unwrap();
    for (x, y) in before.tensors.iter().zip(&q4.tensors).filter(|(x, _)| x.dtype == DType::Q8_0) {
        let mut values = vec![0f32; x.shape.iter().product()];
        quant::decode(DType::Q8_0, &x.bytes, &mut values);
        let mut expected = vec![0; y.bytes.len()];
        quant::quantize_row_scalar(DType::Q4_0, &values, &mut expected);
        assert!(*y.bytes == expected[..], "{}", x.name);
    }
    // Making floats of blocks loses nothing and needs no permission.
    let (code, report) = quantize(&q8, &case.path("f16.gguf"), "f32", &[]);
    assert_eq!(code, 0, "{report}");
}

#[test]
fn quantized_gguf_comes_back_as_the_values_of_its_blocks() {
    for (name, raw) in [("llama-mha", RawAdapter::fixture("llama-mha")), ("qwen3", with_256_features())] {
        let case = Case::new(&raw);
        for dtype in NARROW.into_iter().chain(WIDE) {
            let (gguf_path, back) = (case.path(&format!("{dtype}.gguf")), case.path(&format!("{dtype}")));
            let arch = architecture(name);
            assert_eq!(quantize(&case.adapter, &gguf_path, dtype.name(), &["--arch", arch]).0, 0);
            let out = ptplus(["convert".as_ref(), gguf_path.as_os_str(), "-o".as_ref(), back.as_os_str()]);
            assert_eq!(exit(&out), 0, "{}", stderr(&out));
            let got = RawAdapter::read(&back);
            let file = gguf::open(&gguf_path).unwrap();
            for canonical in raw.tensors.keys() {
                let stored = file.tensors.iter().find(|t| t.name == gguf_name(canonical)).unwrap();
                let mut values = vec![0f32; stored.shape.iter().product()];
                quant::decode(stored.dtype, &stored.bytes, &mut values);
                assert_eq!(expected_values(&got, canonical, arch).values, values, "{name} {dtype} {canonical}");
            }
        }
        let (q8, half) = (case.path("Q8_0.gguf"), case.path("half"));
        let args = [
            "convert".as_ref(),
            q8.as_os_str(),
            "-o".as_ref(),
            half.as_os_str(),
            "--outtype".as_ref(),
            "BF16".as_ref(),
        ];
        assert_eq!(exit(&ptplus(args)), 0);
        let bytes = std::fs::read(half.join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("layers.0.memory").unwrap().dtype(), safetensors::Dtype::BF16);
    }
}

#[test]
fn values_that_no_block_can_hold_are_named_by_their_canonical_index() {
    // Row order and transposition lie between the file and the output: the index must be the file's.
    for (name, dtype, value) in [
        ("llama-gqa", "q8_0", 1e9),
        ("llama-gqa", "f16", 70_000.0),
        ("llama-gqa", "q4_1", 3e7),
        ("qwen2", "q5_1", -1e30),
        ("qwen3", "q4_0", f32::MAX),
    ] {
        let mut raw = RawAdapter::fixture(name);
        let t = raw.tensors.get_mut("layers.0.memory").unwrap();
        let (f, v) = (t.shape[1], t.shape[2]);
        t.values[f * v + 5 * v + 3] = value; // [1, 5, 3]
        let case = Case::new(&raw);
        let (code, report) = case.quantize("a.gguf", dtype, &["--arch", architecture(name)]);
        assert_eq!((code, &report["error"]["code"]), (3, &"cast-overflow".into()), "{name} {dtype}: {report}");
        assert_eq!(report["error"]["field"], "layers.0.memory");
        assert!(report["error"]["message"].as_str().unwrap().contains("at [1, 5, 3]"), "{report}");
        assert_eq!(case.names(), ["adapter"], "nothing is left");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut raw = RawAdapter::fixture("qwen2");
        raw.tensors.get_mut("layers.1.memory").unwrap().values[7] = bad;
        let case = Case::new(&raw);
        let (code, report) = case.quantize("a.gguf", "q8_0", &["--arch", "qwen2"]);
        assert_eq!((code, &report["error"]["code"]), (3, &"non-finite".into()), "{report}");
        assert_eq!(case.names(), ["adapter"]);
    }
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let case = Case::new(&with_256_features());
    for dtype in ["q3_k", "q5_0"] {
        let mut outputs = Vec::new();
        for threads in ["1", "2", "7"] {
            let name = format!("{dtype}-{threads}.gguf");
            let (code, report) = case.quantize(&name, dtype, &["--arch", "qwen3", "--threads", threads]);
            assert_eq!(code, 0, "{report}");
            let losses: Vec<Value> = report["tensors"].as_array().unwrap().iter().map(|t| t["loss"].clone()).collect();
            outputs.push((std::fs::read(case.path(&name)).unwrap(), losses));
        }
        assert!(outputs.windows(2).all(|w| w[0] == w[1]), "{dtype}");
    }
}

#[test]
fn the_report_says_what_each_tensor_lost() {
    let raw = RawAdapter::fixture("qwen2");
    let case = Case::new(&raw);
    let (code, report) = case.quantize("a.gguf", "q4_0", &["--arch", "qwen2"]);
    assert_eq!(code, 0);
    let file = gguf::open(&case.path("a.gguf")).unwrap();
    for canonical in raw.tensors.keys() {
        let name = gguf_name(canonical);
        let t = report["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name.as_str()).unwrap();
        let stored = file.tensors.iter().find(|t| t.name == name).unwrap();
        let x = expected_values(&raw, canonical, "qwen2").values;
        let mut y = vec![0f32; x.len()];
        quant::decode(stored.dtype, &stored.bytes, &mut y);
        let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(&y).map(|(a, b)| f((*a).into(), (*b).into())).sum::<f64>();
        let (dd, xx, yy, xy) =
            (sum(&|a, b| (b - a) * (b - a)), sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| a * b));
        for (figure, expected) in [
            ("rmse", (dd / x.len() as f64).sqrt()),
            ("relative", (dd / xx).sqrt()),
            ("cosine", xy / (xx * yy).sqrt()),
            ("max_abs", x.iter().zip(&y).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max)),
        ] {
            let found = t["loss"][figure].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected.max(1e-9), "{name} {figure}: {found} {expected}");
        }
        assert!(t["loss"]["relative"].as_f64().unwrap() > 0.01, "Q4_0 does lose something");
        assert_eq!(t["source_len_bytes"].as_u64().unwrap(), x.len() as u64 * 4);
        assert_eq!(t["len_bytes"].as_u64().unwrap(), stored.bytes.len() as u64);
    }
}

#[test]
fn a_bound_on_the_error_is_a_gate() {
    let case = Case::new(&RawAdapter::fixture("llama-mha"));
    for (bounds, expected) in [
        (["relative=0.01", "cosine=0.999"], 0),
        (["relative=0.01", "cosine=0.99999999"], 5),
        (["rmse=1e-9", "max_abs=1"], 5),
        (["rmse=1", "max_abs=1e-9"], 5),
    ] {
        let extra = ["--arch", "llama", "--force", "--max-error", bounds[0], "--max-error", bounds[1]];
        let (code, report) = case.quantize("a.gguf", "q8_0", &extra);
        assert_eq!(code, expected, "{bounds:?}: {report}");
        if expected == 5 {
            assert_eq!(report["error"]["code"], "error-bound");
            assert_eq!(case.names(), ["adapter"], "{bounds:?}: nothing is left");
        } else {
            std::fs::remove_file(case.path("a.gguf")).unwrap();
        }
    }
    let (code, _) = case.quantize("a.gguf", "q8_0", &["--arch", "llama", "--max-error", "kl=1"]);
    assert_eq!(code, 2, "a bound on the logits needs a base");
}

#[test]
fn with_a_base_terms_and_logits_are_compared_with_the_sources() {
    let dir = model("llama-gqa");
    let base = dir.join("base");
    let case = Case::new(&RawAdapter::fixture("llama-gqa"));
    let with_base = |dtype: &str, more: &[&str]| {
        let mut extra = vec!["--base", base.to_str().unwrap(), "--force"];
        extra.extend(more);
        case.quantize("a.gguf", dtype, &extra)
    };
    let (_, fine) = with_base("q8_0", &[]);
    let (_, coarse) = with_base("q4_0", &[]);
    let kl = |r: &Value| r["output_error"]["metrics"]["mean_kl"].as_f64().unwrap();
    assert!(0.0 < kl(&fine) && kl(&fine) * 10.0 < kl(&coarse), "{} {}", kl(&fine), kl(&coarse));
    for r in [&fine, &coarse] {
        let layers = r["output_error"]["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        assert!(layers.iter().all(|l| l["term_max_abs"].as_f64().unwrap() > 0.0), "{layers:?}");
    }
    std::fs::remove_file(case.path("a.gguf")).unwrap();
    let between = format!("kl={}", kl(&fine) * 3.0);
    assert_eq!(with_base("q4_0", &["--max-error", &between]).0, 5);
    assert_eq!(case.names(), ["adapter"], "nothing is left");
    assert_eq!(with_base("q8_0", &["--max-error", &between]).0, 0);
}

#[test]
fn a_dry_run_plans_what_is_written() {
    let case = Case::new(&RawAdapter::fixture("qwen3"));
    let extra = ["--arch", "qwen3", "--tensor-type", r"blk\.0=f16"];
    let (code, planned) = case.quantize("a.gguf", "q6_k", &[&extra[..], &["--dry-run"]].concat());
    assert_eq!((code, case.names()), (0, vec!["adapter".to_owned()]));
    let (_, written) = case.quantize("a.gguf", "q6_k", &extra);
    for field in ["notes", "len_bytes", "row_order"] {
        assert_eq!(planned[field], written[field], "{field}");
    }
    let without_loss = |r: &Value| {
        let mut tensors = r["tensors"].clone();
        tensors.as_array_mut().unwrap().iter_mut().for_each(|t| t["loss"] = Value::Null);
        tensors
    };
    assert_eq!(planned["tensors"], without_loss(&written));
    assert_eq!(std::fs::metadata(case.path("a.gguf")).unwrap().len(), planned["len_bytes"].as_u64().unwrap());
}

#[test]
fn block_types_have_no_place_in_safetensors() {
    let case = Case::new(&RawAdapter::fixture("qwen2"));
    let (adapter, out) = (case.adapter.clone(), case.path("out"));
    for extra in [["--outtype", "q8_0"], ["--tensor-type", "memory=q4_0"]] {
        let args = ["convert".as_ref(), adapter.as_os_str(), "-o".as_ref(), out.as_os_str()];
        let (code, report) = json(args.into_iter().chain(extra.iter().map(std::ffi::OsStr::new)));
        assert_eq!((code, &report["error"]["code"]), (2, &"usage".into()), "{report}");
        assert!(
            report["error"]["message"].as_str().unwrap().contains("safetensors, which has no block formats"),
            "{report}"
        );
    }
    assert_eq!(case.quantize("out", "q8_0", &["--arch", "qwen2"]).0, 2, "quantize writes GGUF");
    assert_eq!(case.names(), ["adapter"]);
}

#[test]
fn the_types_are_listed_and_nothing_else_is_taken() {
    let (code, report) = json(["quantize", "--list-types"]);
    assert_eq!(code, 0);
    let names: Vec<_> = report["types"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"]
    );
    let listed = ptplus(["convert", "--list-types"]);
    assert!(exit(&listed) == 0 && stdout(&listed).contains("Q6_K"), "{}", stderr(&listed));
    let case = Case::new(&RawAdapter::fixture("qwen2"));
    for dtype in ["q9_0", "iq4_nl", "i8", "q8_k", "4"] {
        assert_eq!(case.quantize("a.gguf", dtype, &["--arch", "qwen2"]).0, 2, "{dtype}");
    }
    assert_eq!(case.names(), ["adapter"]);
}

#[test]
fn auto_keeps_the_whole_within_the_bound_and_saves_what_the_bound_allows() {
    let dir = model("llama-gqa");
    let (base, adapter) = (dir.join("base"), dir.join("adapter"));
    let case = Case::new(&RawAdapter::fixture("llama-gqa"));
    let mut sizes = Vec::new();
    for bound in [0.0, 1e-5, 1e-3, 1e9] {
        let out = case.path(&format!("{bound}.gguf"));
        let auto = format!("KL={bound}");
        let args = [
            "quantize",
            adapter.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
            "--auto",
            &auto,
            "--base",
            base.to_str().unwrap(),
        ];
        let (code, report) = json(args);
        assert_eq!(code, 0, "{report}");
        let decided = &report["auto"];
        assert!(decided["kl"].as_f64().unwrap() <= bound, "{decided}");
        // `verify` asks the same and must find the same: the bound holds for the file, not for a model of it.
        let args = [
            "verify",
            out.to_str().unwrap(),
            "--base",
            base.to_str().unwrap(),
            "--against",
            adapter.to_str().unwrap(),
            "--tolerance",
            "max_abs=1e9",
        ];
        let kl = json(args).1["metrics"]["mean_kl"].as_f64().unwrap();
        assert!((kl - decided["kl"].as_f64().unwrap()).abs() <= 1e-6 * kl + 1e-9, "{kl} {decided}");
        for t in report["tensors"].as_array().unwrap() {
            let d = decided["tensors"].as_array().unwrap().iter().find(|d| d["name"] == t["name"]).unwrap();
            assert_eq!(d["dtype"], t["dtype"]);
        }
        sizes.push(report["len_bytes"].as_u64().unwrap());
    }
    assert!(sizes.windows(2).all(|w| w[0] > w[1]), "a looser bound gives a smaller file: {sizes:?}");
    let out = case.path("x.gguf");
    let args =
        ["quantize", adapter.to_str().unwrap(), "-o", out.to_str().unwrap(), "--auto", "KL=1e-3", "--arch", "llama"];
    assert_eq!(json(args).0, 2, "without a base there are no logits");
}

#[test]
fn blocks_that_cannot_be_decoded_or_are_poisoned_are_refused() {
    let case = Case::new(&RawAdapter::fixture("qwen2"));
    assert_eq!(case.quantize("a.gguf", "q4_0", &["--arch", "qwen2"]).0, 0);
    let whole = std::fs::read(case.path("a.gguf")).unwrap();
    let file = gguf::open(&case.path("a.gguf")).unwrap();
    let t = file.tensors.iter().find(|t| t.name == "blk.1.attn_prefix_memory.weight").unwrap();
    // In the header: name, number of dimensions, dimensions, type.
    let name_end = whole.windows(t.name.len()).position(|w| w == t.name.as_bytes()).unwrap() + t.name.len();
    let type_at = name_end + 4 + 8 * t.shape.len();
    assert_eq!(whole[type_at..type_at + 4], DType::Q4_0.ggml_id().unwrap().to_le_bytes());
    // IQ4_NL blocks are as large as those of Q4_0, so that the file stays consistent.
    let mut unknown = whole.clone();
    unknown[type_at..type_at + 4].copy_from_slice(&DType::IQ4_NL.ggml_id().unwrap().to_le_bytes());
    let mut poisoned = whole.clone();
    poisoned[t.file_offset as usize + 1] = 0x7C; // the first scale becomes infinite or NaN
    for (bytes, exit_code, code) in [(unknown, 7, "config-unsupported"), (poisoned, 3, "non-finite")] {
        let input = case.path("bad.gguf");
        std::fs::write(&input, bytes).unwrap();
        let (found, report) = quantize(&input, &case.path("out.gguf"), "keep", &[]);
        assert_eq!((found, report["error"]["code"].as_str()), (exit_code, Some(code)), "{report}");
        assert!(report["error"]["field"].as_str().unwrap().starts_with(&t.name), "{report}");
    }
    assert_eq!(case.names(), ["a.gguf", "adapter", "bad.gguf"]);
}

/// Row order, tap and activation, each wrong, in the type under test; the reason for relative limits (docs/VERIFY.md).
#[test]
fn a_quantized_adapter_passes_and_a_quantized_mistake_does_not() {
    check_quantized(4);
}

#[test]
#[ignore = "seconds"]
fn more_quantized_mistakes_do_not_pass() {
    check_quantized(1);
}

/// Every right adapter in every type, and every `step`th of the wrong ones.
fn check_quantized(step: usize) {
    type Mutation = (&'static str, fn(&mut RawAdapter));
    let mutations: [Mutation; 4] = [
        ("nothing", |_| {}),
        ("row order", |a| {
            let d = a.config["head_dim"].as_u64().unwrap() as usize;
            if a.tensors.keys().any(|k| k.ends_with("feature.weight")) {
                a.change("feature.weight", |t| t.permuted(2, &norm_order(d)));
            } else {
                a.change("memory", |t| t.permuted(1, &norm_order(d)));
                a.change("normalizer", |t| t.permuted(1, &norm_order(d)));
            }
        }),
        ("tap", |a| {
            let wrong = if a.config["query_tap"] == "post_rope" { "pre_rope" } else { "post_rope" };
            a.config["query_tap"] = wrong.into();
        }),
        ("activation", |a| {
            let wrong = if a.config["feature_map"] == "elu" { "relu" } else { "elu" };
            a.config["feature_map"] = wrong.into();
        }),
    ];
    let (mut unexpected, mut turn) = (Vec::new(), 0);
    for name in MODELS {
        let dir = model(name);
        for (what, mutate) in &mutations {
            let mut raw = RawAdapter::fixture(name);
            mutate(&mut raw);
            let case = Case::new(&raw);
            for dtype in NARROW {
                turn += 1;
                if *what != "nothing" && turn % step != 0 {
                    continue;
                }
                let out = format!("{dtype}.gguf");
                assert_eq!(case.quantize(&out, dtype.name(), &["--arch", architecture(name)]).0, 0);
                let (code, report) = json([
                    "verify".as_ref(),
                    case.path(&out).as_path(),
                    "--base".as_ref(),
                    dir.join("base").as_path(),
                    "--probe".as_ref(),
                    dir.join("probe.safetensors").as_path(),
                ]);
                assert_eq!(report["tolerance"], dtype.name().to_lowercase(), "{report}");
                if code != if *what == "nothing" { 0 } else { 5 } {
                    unexpected.push(format!(
                        "{name} {dtype} {what}: exit {code}, {} {}",
                        report["metrics"], report["limits"]
                    ));
                }
            }
        }
    }
    assert!(unexpected.is_empty(), "passed or failed otherwise:\n{}", unexpected.join("\n"));
}
