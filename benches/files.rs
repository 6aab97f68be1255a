//! Whole-process figures of commands on large files, beside `cp` in the same run.
//!
//! `cargo bench --bench files` makes a synthetic 2 GB adapter and a 16 GB (sparse) base in a temporary folder:
//! - `convert` F32 to F32 GGUF, norm row order (every head transposed and reordered), against `cp --reflink=never` and a
//!   sync of the copy, both with the input in the page cache; peak of RssAnon + RssShmem sampled every millisecond;
//! - `inspect` and `validate` on the base: time and peak resident memory;
//! - `verify` on the base: time and peak of RssAnon + RssShmem;
//! - `quantize` of SmolLM2 (if `fixtures/fetch-smollm2.sh` has been run), decoded to F32, to Q8_0 and Q4_K, against `cp` of
//!   the same file and a sync, with one thread and with all.
//!
//! `PTPLUS_BENCH_MB` sets the adapter's size, `PTPLUS_BENCH_DIR` the folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ptplus::format::{TensorSpec, safetensors};
use ptplus::tensor::DType;

const RUNS: usize = 5;

fn main() {
    let mb: usize = std::env::var("PTPLUS_BENCH_MB").ok().and_then(|v| v.parse().ok()).unwrap_or(2048);
    let root = std::env::var_os("PTPLUS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let temp = tempfile::tempdir_in(root).expect("a temporary folder");
    convert(temp.path(), mb);
    headers(temp.path());
    verify(temp.path());
    quantize(temp.path());
}

fn convert(dir: &Path, mb: usize) {
    // 256 heads of 256 x 256 F32: 64 MiB a layer.
    let (heads, d) = (256usize, 256usize);
    let layer_bytes = heads * d * d * 4;
    let layers = (mb << 20).div_ceil(layer_bytes);
    let adapter = dir.join("adapter");
    write_adapter(&adapter, layers, heads, d);
    let weights = adapter.join("adapter_model.safetensors");
    let bytes = std::fs::metadata(&weights).expect("just written").len();
    let out = dir.join("out.gguf");
    let copy = dir.join("copy");
    std::fs::read(&weights).map(drop).ok(); // into the page cache

    let (mut ours, mut cps, mut anon) = (Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        let _ = std::fs::remove_file(&copy);
        let start = Instant::now();
        run(Command::new("cp").arg("--reflink=never").args([&weights, &copy]));
        run(Command::new("sync").arg(&copy));
        cps.push(start.elapsed());
        let _ = std::fs::remove_file(&copy);

        let _ = std::fs::remove_file(&out);
        let start = Instant::now();
        let peak = run(Command::new(env!("CARGO_BIN_EXE_ptplus"))
            .arg("convert")
            .arg(&adapter)
            .arg("-o")
            .arg(&out)
            .args(["--arch", "llama"]));
        ours.push(start.elapsed());
        anon = anon.max(peak.anon_kib);
    }
    let _ = std::fs::remove_file(&out);
    let (ours, cps) = (median(ours), median(cps));
    let rate = |t: Duration| bytes as f64 / 1e6 / t.as_secs_f64();
    println!("convert: {:.2} GB, {layers} tensors of {} MiB", bytes as f64 / 1e9, layer_bytes >> 20);
    println!("  cp --reflink=never + sync   {:7.0} MB/s   {:.2} s", rate(cps), cps.as_secs_f64());
    println!(
        "  ptplus convert              {:7.0} MB/s   {:.2} s   ratio {:.2} (wanted >= 0.70)",
        rate(ours),
        ours.as_secs_f64(),
        rate(ours) / rate(cps)
    );
    println!(
        "  peak RssAnon + RssShmem     {:7.0} MiB (wanted <= {})",
        anon as f64 / 1024.0,
        2 * (layer_bytes >> 20) + 64
    );
}

fn headers(dir: &Path) {
    let base = dir.join("base");
    write_sparse_8b(&base);
    let adapter = dir.join("adapter-8b");
    write_adapter(&adapter, 32, 32, 128);
    for args in [
        vec!["inspect".as_ref(), base.as_os_str()],
        vec!["validate".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()],
    ] {
        let (mut times, mut peak) = (Vec::new(), 0);
        for _ in 0..RUNS {
            let start = Instant::now();
            let p = run(Command::new(env!("CARGO_BIN_EXE_ptplus")).args(&args));
            times.push(start.elapsed());
            peak = peak.max(p.total_kib);
        }
        let what = args[0].to_string_lossy();
        println!(
            "{what} on a 16 GB base: {:.1} ms (wanted <= 50), peak resident memory {:.0} MiB, mapped files included (wanted <= 64)",
            median(times).as_secs_f64() * 1e3,
            peak as f64 / 1024.0
        );
    }
}

/// The base computes something: embeddings, head, norms and the first layer's attention are not zero.
fn verify(dir: &Path) {
    let (base, adapter) = (dir.join("base"), dir.join("adapter-8b"));
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
    command
        .arg("verify")
        .arg(&adapter)
        .arg("--base")
        .arg(&base)
        .arg("--against")
        .arg(&adapter)
        .args(["--rows", "1", "--length", "16"]);
    let peak = run(&mut command);
    println!(
        "verify on an 8B BF16 base, 16 positions, 3 lanes: {:.1} s, peak RssAnon + RssShmem {:.2} GiB",
        start.elapsed().as_secs_f64(),
        peak.anon_kib as f64 / 1024.0 / 1024.0
    );
}

fn quantize(dir: &Path) {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fetched/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !fetched.is_file() {
        println!("quantize: skipped, {} is not there", fetched.display());
        return;
    }
    let (floats, out, copy) = (dir.join("smollm2-f32.gguf"), dir.join("smollm2.gguf"), dir.join("smollm2-copy"));
    run(Command::new(env!("CARGO_BIN_EXE_ptplus"))
        .arg("convert")
        .arg(&fetched)
        .arg("-o")
        .arg(&floats)
        .args(["--outtype", "f32"]));
    let bytes = std::fs::read(&floats).expect("just written").len();
    let mut cps = Vec::new();
    for _ in 0..RUNS {
        let _ = std::fs::remove_file(&copy);
        let start = Instant::now();
        run(Command::new("cp").arg("--reflink=never").args([&floats, &copy]));
        run(Command::new("sync").arg(&copy));
        cps.push(start.elapsed());
    }
    let _ = std::fs::remove_file(&copy);
    let cp = median(cps);
    println!("quantize: SmolLM2 in F32, {:.0} MB", bytes as f64 / 1e6);
    println!("  cp --reflink=never + sync   {:.2} s", cp.as_secs_f64());
    for (dtype, wanted) in [("q8_0", " (wanted <= 1.50)"), ("q4_k", "")] {
        let mut one = Duration::ZERO;
        for threads in ["1", "2"] {
            let (mut times, mut anon) = (Vec::new(), 0);
            for _ in 0..RUNS {
                let _ = std::fs::remove_file(&out);
                let start = Instant::now();
                let peak = run(Command::new(env!("CARGO_BIN_EXE_ptplus"))
                    .arg("quantize")
                    .arg(&floats)
                    .arg("-o")
                    .arg(&out)
                    .args([dtype, "--threads", threads]));
                times.push(start.elapsed());
                anon = anon.max(peak.anon_kib);
            }
            let time = median(times);
            let ratio = time.as_secs_f64() / cp.as_secs_f64();
            let (note, scaling) = match threads {
                "1" => {
                    one = time;
                    ("", String::new())
                }
                _ => (wanted, format!(", {:.2} x one thread", one.as_secs_f64() / time.as_secs_f64())),
            };
            println!(
                "  {dtype}, threads: {threads}            {:.2} s   {ratio:.2} of cp{note}{scaling}, peak RssAnon + RssShmem {:.0} MiB",
                time.as_secs_f64(),
                anon as f64 / 1024.0
            );
        }
    }
}

/// A canonical adapter of pseudo-random values, per head, elu.
fn write_adapter(dir: &Path, layers: usize, heads: usize, d: usize) {
    std::fs::create_dir_all(dir).expect("a folder");
    let specs: Vec<TensorSpec> = (0..layers)
        .map(|i| TensorSpec { name: format!("layers.{i}.memory"), dtype: DType::F32, shape: vec![heads, d, d] })
        .collect();
    let plan = safetensors::plan(&BTreeMap::new(), &specs).expect("a plan");
    let mut file =
        BufWriter::with_capacity(1 << 20, File::create(dir.join("adapter_model.safetensors")).expect("a file"));
    file.write_all(&plan.header).expect("written");
    let mut state = 1u32;
    for _ in 0..layers * heads * d * d {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        file.write_all(&((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()).expect("written");
    }
    file.into_inner().expect("flushed").sync_all().expect("synced");
    let config = format!(
        r#"{{"peft_type":"PREFIX_TUNING_PLUS","feature_map":"elu","query_tap":"post_rope","query_scale":1.0,"memory_scale":1.0,"memory_sharing":"per_head","num_layers":{layers},"num_attention_heads":{heads},"num_key_value_heads":{kv},"head_dim":{d},"num_features":{d},"layers_to_transform":null}}"#,
        kv = heads / 4,
    );
    std::fs::write(dir.join("adapter_config.json"), config).expect("written");
}

/// A llama of 8 billion BF16 parameters whose weights are holes in the file.
fn write_sparse_8b(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a folder");
    let (hidden, ffn, vocab) = (4096, 14336, 128_256);
    let mut specs = Vec::new();
    let mut push =
        |name: String, shape: &[usize]| specs.push(TensorSpec { name, dtype: DType::BF16, shape: shape.to_vec() });
    push("model.embed_tokens.weight".into(), &[vocab, hidden]);
    for i in 0..32 {
        let l = |part: &str| format!("model.layers.{i}.{part}.weight");
        push(l("input_layernorm"), &[hidden]);
        push(l("self_attn.q_proj"), &[hidden, hidden]);
        push(l("self_attn.k_proj"), &[1024, hidden]);
        push(l("self_attn.v_proj"), &[1024, hidden]);
        push(l("self_attn.o_proj"), &[hidden, hidden]);
        push(l("post_attention_layernorm"), &[hidden]);
        push(l("mlp.gate_proj"), &[ffn, hidden]);
        push(l("mlp.up_proj"), &[ffn, hidden]);
        push(l("mlp.down_proj"), &[hidden, ffn]);
    }
    push("model.norm.weight".into(), &[hidden]);
    push("lm_head.weight".into(), &[vocab, hidden]);
    let plan = safetensors::plan(&BTreeMap::new(), &specs).expect("a plan");
    let mut file = File::create(dir.join("model.safetensors")).expect("a file");
    file.write_all(&plan.header).expect("written");
    file.set_len(plan.len_bytes).expect("sparse");
    let used = ["embed_tokens", "lm_head", "norm", "layers.0.self_attn"];
    for t in plan.tensors.iter().filter(|t| used.iter().any(|u| t.name.contains(u))) {
        let n = t.len_bytes as usize / 2;
        let mut state = 1u32;
        let values: Vec<u8> = (0..n)
            .flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Within 1/64: the upper half of such an F32.
                let v = ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) / 32.0;
                let v = if t.shape.len() == 1 { 1.0 } else { v };
                ((v.to_bits() >> 16) as u16).to_le_bytes()
            })
            .collect();
        file.write_all_at(&values, t.file_offset).expect("written");
    }
    let config = r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,"rms_norm_eps":1e-5,"hidden_act":"silu","max_position_embeddings":8192,"rope_theta":500000.0,"tie_word_embeddings":false}"#;
    std::fs::write(dir.join("config.json"), config).expect("written");
}

#[derive(Default)]
struct Peak {
    anon_kib: u64,
    total_kib: u64,
}

/// Runs to the end, sampling memory every millisecond.
fn run(command: &mut Command) -> Peak {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = Peak::default();
    loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            let field = |name: &str| {
                text.lines()
                    .find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches(" kB").parse::<u64>().ok())
                    .unwrap_or(0)
            };
            peak.anon_kib = peak.anon_kib.max(field("RssAnon:") + field("RssShmem:"));
            peak.total_kib = peak.total_kib.max(field("VmHWM:"));
        }
        match child.try_wait().expect("it can be waited for") {
            Some(exit) => {
                assert!(exit.success(), "{command:?} failed: {exit}");
                return peak;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
