//! The real llama.cpp on base models that `convert` and `quantize` wrote: it loads them, computes what the runner
//! computes, and its own quantizer makes the same types and bytes.
//!
//! `cargo test --features llama-cpp --test base_llama_cpp`

mod common;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Once;

use common::{MODELS, exit, model, ptplus, stderr};
use llama_cpp_sys_2 as llama;
use ptplus::base::BaseModel;
use ptplus::error::Result;
use ptplus::format::gguf;
use ptplus::runner::{self, Device, Lane, Sink, StreamOptions};
use ptplus::tensor::DType;

/// Token ids below the fixtures' vocabulary of 160, as many as the shortest sliding window.
const TOKENS: [u32; 8] = [3, 141, 59, 26, 53, 58, 97, 93];

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().expect("UTF-8")).expect("no NUL")
}

fn init() {
    static INIT: Once = Once::new();
    unsafe extern "C" fn quiet(_: llama::ggml_log_level, _: *const std::os::raw::c_char, _: *mut std::os::raw::c_void) {
    }
    INIT.call_once(|| {
        // SAFETY: called once, before anything else of the library; the callback touches nothing.
        unsafe {
            llama::llama_log_set(Some(quiet), std::ptr::null_mut());
            llama::llama_backend_init();
        }
    });
}

/// Logits `[T, V]` of llama.cpp, F32 cache, no flash attention; `None` where it does not load the file.
fn llama_logits(path: &Path, tokens: &[u32]) -> Option<Vec<f32>> {
    init();
    // SAFETY: parameters are the library's own defaults, changed by field; every pointer is checked before use and
    // freed once; the batch holds as many tokens as it was made for, and logits as many rows as were asked for.
    unsafe {
        let mut mp = llama::llama_model_default_params();
        mp.n_gpu_layers = 0;
        let m = llama::llama_model_load_from_file(c_path(path).as_ptr(), mp);
        if m.is_null() {
            return None;
        }
        let mut cp = llama::llama_context_default_params();
        cp.n_ctx = 64;
        cp.n_threads = 2;
        cp.n_threads_batch = 2;
        cp.type_k = DType::F32.ggml_id().expect("F32") as _;
        cp.type_v = cp.type_k;
        cp.flash_attn_type = llama::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        let ctx = llama::llama_init_from_model(m, cp);
        assert!(!ctx.is_null(), "no context for {}", path.display());
        let mut batch = llama::llama_batch_init(tokens.len() as i32, 0, 1);
        for (i, token) in tokens.iter().enumerate() {
            *batch.token.add(i) = *token as i32;
            *batch.pos.add(i) = i as i32;
            *batch.n_seq_id.add(i) = 1;
            **batch.seq_id.add(i) = 0;
            *batch.logits.add(i) = 1;
        }
        batch.n_tokens = tokens.len() as i32;
        assert_eq!(llama::llama_decode(ctx, batch), 0);
        let n_vocab = llama::llama_vocab_n_tokens(llama::llama_model_get_vocab(m)) as usize;
        let mut out = Vec::with_capacity(tokens.len() * n_vocab);
        for i in 0..tokens.len() {
            let row = llama::llama_get_logits_ith(ctx, i as i32);
            out.extend_from_slice(std::slice::from_raw_parts(row, n_vocab));
        }
        llama::llama_batch_free(batch);
        llama::llama_free(ctx);
        llama::llama_model_free(m);
        Some(out)
    }
}

fn runner_logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    struct Keep(Vec<f32>);
    impl Sink for Keep {
        fn logits(&mut self, _: usize, _: usize, lanes: &[&[f32]]) -> Result<()> {
            self.0.extend_from_slice(lanes[0]);
            Ok(())
        }
    }
    let base = BaseModel::open(path).unwrap();
    let mut sink = Keep(Vec::new());
    let options = StreamOptions { positions: None, device: Device::cpu() };
    runner::stream(&base, &[tokens.to_vec()], &[Lane { adapters: vec![] }], &options, &mut sink).unwrap();
    sink.0
}

fn written(from: &Path, to: &Path, dtype: &str, extra: &[&str]) {
    let mut args =
        vec!["quantize".as_ref(), from.as_os_str(), "-o".as_ref(), to.as_os_str(), dtype.as_ref(), "-f".as_ref()];
    args.extend(extra.iter().map(std::ffi::OsStr::new));
    let out = ptplus(args);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
}

#[test]
fn llama_cpp_loads_every_base_and_computes_what_the_runner_computes() {
    let temp = tempfile::tempdir().unwrap();
    for name in MODELS {
        for dtype in ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"] {
            let path = temp.path().join(format!("{name}-{dtype}.gguf"));
            written(&model(name).join("base"), &path, dtype, &[]);
            let theirs = llama_logits(&path, &TOKENS).unwrap_or_else(|| panic!("{name} {dtype}: not loaded"));
            let ours = runner_logits(&path, &TOKENS);
            assert_eq!(ours.len(), theirs.len(), "{name} {dtype}");
            let size = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
            let d = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            // llama.cpp multiplies F16 and quantized weights with activations of the same precision.
            let limit = match dtype {
                "f32" => 1e-3,
                "f16" => 2e-3 * size,
                _ => 4e-2 * size,
            };
            assert!(d <= limit, "{name} {dtype}: logits up to {size} are {d} apart, {limit} allowed");
        }
    }
}

/// `llama_model_quantize` of the file, as `llama-quantize` calls it.
fn llama_quantize(from: &Path, to: &Path, file_type: u32) -> bool {
    init();
    // SAFETY: the parameters are the library's defaults, changed by field; the paths live through the call.
    unsafe {
        let mut params = llama::llama_model_quantize_default_params();
        params.nthread = 2;
        params.ftype = file_type as _;
        llama::llama_model_quantize(c_path(from).as_ptr(), c_path(to).as_ptr(), &params) == 0
    }
}

/// Names of the command line and numbers of `enum llama_ftype`.
const FILE_TYPES: [(&str, u32); 19] = [
    ("f32", 0),
    ("f16", 1),
    ("bf16", 32),
    ("q8_0", 7),
    ("q5_0", 8),
    ("q5_1", 9),
    ("q4_0", 2),
    ("q4_1", 3),
    ("q6_k", 18),
    ("q5_k", 17),
    ("q5_k_s", 16),
    ("q5_k_m", 17),
    ("q4_k", 15),
    ("q4_k_s", 14),
    ("q3_k", 12),
    ("q3_k_s", 11),
    ("q3_k_m", 12),
    ("q3_k_l", 13),
    ("q2_k", 10),
];

fn compare_with_llama_quantize(from: &Path, dir: &Path, names: &[&str], label: &str) {
    for (name, file_type) in FILE_TYPES.iter().filter(|(n, _)| names.is_empty() || names.contains(n)) {
        let (ours, theirs) = (dir.join("ours.gguf"), dir.join("theirs.gguf"));
        written(from, &ours, name, &[]);
        assert!(llama_quantize(from, &theirs, *file_type), "{label} {name}");
        let (ours, theirs) = (gguf::open(&ours).unwrap(), gguf::open(&theirs).unwrap());
        assert_eq!(ours.metadata.u32("general.file_type").unwrap(), theirs.metadata.u32("general.file_type").unwrap());
        let by_name: BTreeMap<_, _> = theirs.tensors.iter().map(|t| (&t.name, t)).collect();
        assert_eq!(ours.tensors.len(), by_name.len());
        for t in &ours.tensors {
            let other = by_name[&t.name];
            assert_eq!((t.dtype, &t.shape), (other.dtype, &other.shape), "{label} {name} {}", t.name);
            assert!(*t.bytes == *other.bytes, "{label} {name} {}: bytes differ", t.name);
        }
    }
}

/// A GGUF llama with rows of 256, so that the k-quants fit, many layers, so that the mixes differ between them, and as
/// many query heads per key/value head as asked for.
fn wide_model(dir: &Path, n_layers: usize, n_kv_heads: usize, tied: bool) -> PathBuf {
    use ptplus::format::TensorSpec;
    use ptplus::format::gguf::{Metadata, Value};
    let (hidden, inner, heads, vocab) = (256usize, 256usize, 4usize, 64usize);
    let d = hidden / heads;
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("general.type", "model");
    m.insert("general.file_type", Value::U32(0));
    for (key, n) in [
        ("block_count", n_layers),
        ("context_length", 64),
        ("embedding_length", hidden),
        ("feed_forward_length", inner),
        ("attention.head_count", heads),
        ("attention.head_count_kv", n_kv_heads),
        ("vocab_size", vocab),
        ("rope.dimension_count", d),
    ] {
        m.insert(format!("llama.{key}"), Value::U32(n as u32));
    }
    m.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    m.insert("tokenizer.ggml.model", "none");
    let mut shapes =
        vec![("token_embd.weight".to_owned(), vec![vocab, hidden]), ("output_norm.weight".into(), vec![hidden])];
    if !tied {
        shapes.push(("output.weight".into(), vec![vocab, hidden]));
    }
    for i in 0..n_layers {
        for (name, shape) in [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, hidden]),
            ("attn_k", vec![n_kv_heads * d, hidden]),
            ("attn_v", vec![n_kv_heads * d, hidden]),
            ("attn_output", vec![hidden, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![inner, hidden]),
            ("ffn_up", vec![inner, hidden]),
            ("ffn_down", vec![hidden, inner]),
        ] {
            shapes.push((format!("blk.{i}.{name}.weight"), shape));
        }
    }
    let specs: Vec<TensorSpec> =
        shapes.into_iter().map(|(name, shape)| TensorSpec { name, dtype: DType::F32, shape }).collect();
    let plan = gguf::plan(&m, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    let mut state = 1u64;
    for t in &plan.tensors {
        for chunk in bytes[t.file_offset as usize..][..t.len_bytes as usize].chunks_exact_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.2;
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }
    let path = dir.join(format!("wide-{n_layers}-{n_kv_heads}-{tied}.gguf"));
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_name_gives_the_types_and_bytes_of_llama_cpps_quantizer() {
    let temp = tempfile::tempdir().unwrap();
    for (n_layers, n_kv_heads, tied) in [(17, 2, false), (9, 1, true)] {
        let from = wide_model(temp.path(), n_layers, n_kv_heads, tied);
        compare_with_llama_quantize(&from, temp.path(), &[], &format!("{n_layers} layers, {n_kv_heads} kv heads"));
    }
    for name in MODELS {
        compare_with_llama_quantize(
            &common::base_gguf(name),
            temp.path(),
            &["f16", "q8_0", "q4_1", "q2_k", "q5_k_m"],
            name,
        );
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn smollm2_is_quantized_as_llama_cpp_quantizes_it_on_the_real_base() {
    let fetched = common::smollm2();
    let temp = tempfile::tempdir().unwrap();
    let floats = temp.path().join("f32.gguf");
    written(&fetched, &floats, "f32", &[]);
    compare_with_llama_quantize(&floats, temp.path(), &["q8_0", "q4_1", "q4_k_m"], "SmolLM2");
}

/// Token ids as llama.cpp finds them with the file's tokenizer, begin and end tokens as the file says.
fn llama_tokens(path: &Path, texts: &[&str]) -> Vec<Vec<i64>> {
    init();
    // SAFETY: the model is checked before use and freed once; the buffer is as long as the call is told, and longer than
    // any text has bytes.
    unsafe {
        let mut mp = llama::llama_model_default_params();
        mp.vocab_only = true;
        let m = llama::llama_model_load_from_file(c_path(path).as_ptr(), mp);
        assert!(!m.is_null(), "{} is not loaded", path.display());
        let vocab = llama::llama_model_get_vocab(m);
        let tokens = texts.iter().map(|text| {
            let mut buffer = vec![0i32; text.len() + 8];
            let n = llama::llama_tokenize(
                vocab,
                text.as_ptr().cast(),
                text.len() as i32,
                buffer.as_mut_ptr(),
                buffer.len() as i32,
                true,
                true,
            );
            buffer.truncate(usize::try_from(n).expect("the buffer is long enough"));
            buffer.into_iter().map(i64::from).collect()
        });
        let tokens = tokens.collect();
        llama::llama_model_free(m);
        tokens
    }
}

#[test]
fn llama_cpp_splits_text_as_the_folders_tokenizer_does() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["smollm", "llama3", "qwen2", "sentencepiece", "sentencepiece-json"] {
        let folder = common::fixtures().join("tokenizers").join(name);
        let path = temp.path().join(format!("{name}.gguf"));
        written(&folder, &path, "f16", &[]);
        let cases: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(folder.join("ids.json")).unwrap()).unwrap();
        // SentencePiece's space: llama.cpp puts it before every text and behind an added token, transformers (without
        // `legacy`) neither before a text that begins with one nor behind an added token.
        let is_followed = |c: &serde_json::Value| {
            let text = c["text"].as_str().unwrap();
            !(name.starts_with("sentencepiece") && text.contains("<|")
                || name == "sentencepiece-json" && text.starts_with(' '))
        };
        let cases: Vec<_> = cases.into_iter().filter(is_followed).collect();
        let texts: Vec<&str> = cases.iter().map(|c| c["text"].as_str().unwrap()).collect();
        for (case, found) in cases.iter().zip(llama_tokens(&path, &texts)) {
            let expected: Vec<i64> = case["ids"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
            assert_eq!(found, expected, "{name}: {:?}", case["text"]);
        }
    }
}
