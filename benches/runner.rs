//! Speed of the runner on SmolLM2-135M: a prompt of 512 tokens, then single tokens behind it, beside llama.cpp's `llama-bench`.
//!
//! `cargo bench --bench runner -- [MODEL.gguf]` prints tokens per second and processor time of the runner, in F32 and with
//! activations in 8 bits. With `PTPLUS_LLAMA_BENCH` set to a `llama-bench`, that runs the same file in turn, and `PTPLUS_F16` where
//! it names the same model in F16; then come the medians of the ratios of `PTPLUS_PAIRS` pairs (4 unless set). Threads:
//! `RAYON_NUM_THREADS`, or all cores.
//!
//! Every measurement is a process of its own and counts the best of a few runs; processor time is that of the whole process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ptplus::base::BaseModel;
use ptplus::runner::{DeviceChoice, Logits, Model};

#[path = "../tests/it/runner/common.rs"]
mod canonical;
#[path = "../tests/common/mod.rs"]
mod common;

const PROMPT_TOKENS: usize = 512;
const DECODED_TOKENS: usize = 32;
const RUNS: usize = 4;
/// In this variable: device, adapter or none, phase, and the file.
const PART: &str = "PTPLUS_RUNNER_BENCH_PART";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Prompt,
    Decode,
}

/// Best speed of some runs, and processor time of all of them with what came before.
#[derive(Debug, Clone, Copy)]
struct Measured {
    tokens_per_second: f64,
    processor_seconds: f64,
}

fn main() {
    if let Ok(part) = std::env::var(PART) {
        return run_part(&part);
    }
    let given = std::env::args().nth(1).filter(|a| !a.starts_with("--")).map(PathBuf::from);
    let file = given.unwrap_or_else(common::smollm2);
    let llama_bench = std::env::var_os("PTPLUS_LLAMA_BENCH");
    let f16 = std::env::var_os("PTPLUS_F16");
    let n_pairs = std::env::var("PTPLUS_PAIRS").map_or(4, |n| n.parse().expect("a number of pairs"));
    let mut all: BTreeMap<(Phase, &str), Vec<Measured>> = BTreeMap::new();
    for pair in 0..n_pairs {
        for phase in [Phase::Decode, Phase::Prompt] {
            let mut add = |what: &'static str, m: Measured| {
                println!("{pair} {phase:?} {what}: {:.1} tokens/s, {:.2} s", m.tokens_per_second, m.processor_seconds);
                all.entry((phase, what)).or_default().push(m);
            };
            add("int8", own(&file, "cpu-int8", "plain", phase));
            if let Some(bench) = &llama_bench {
                add("llama.cpp", llama(bench.as_ref(), &file, phase));
            }
            if let (Some(bench), Some(f16)) = (&llama_bench, &f16) {
                add("llama.cpp F16", llama(bench.as_ref(), f16.as_ref(), phase));
            }
            add("int8, adapter", own(&file, "cpu-int8", "adapter", phase));
            add("F32", own(&file, "cpu", "plain", phase));
        }
    }
    for ((phase, what), measured) in &all {
        let ratios = |f: &dyn Fn(&Measured, &Measured) -> f64| {
            median(measured.iter().zip(&all[&(*phase, "int8")]).map(|(other, own)| f(own, other)).collect())
        };
        println!(
            "{phase:?} {what}: median {:.1} tokens/s, {:.2} s of processor time; int8 has {:.2} times its speed and takes {:.2} times its time",
            median(measured.iter().map(|m| m.tokens_per_second).collect()),
            median(measured.iter().map(|m| m.processor_seconds).collect()),
            ratios(&|own, other| own.tokens_per_second / other.tokens_per_second),
            ratios(&|own, other| own.processor_seconds / other.processor_seconds),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// This program again, for one measurement.
fn own(file: &Path, device: &str, adapter: &str, phase: Phase) -> Measured {
    let part = format!("{device} {adapter} {phase:?} {}", file.to_str().expect("a path in UTF-8"));
    let out = run(Command::new(std::env::current_exe().expect("this program")).env(PART, part));
    (out.0.trim().parse().map(|tokens_per_second| Measured { tokens_per_second, processor_seconds: out.1 }))
        .expect("tokens per second")
}

fn llama(bench: &Path, file: &Path, phase: Phase) -> Measured {
    let (n_prompt, n_decoded, depth) = match phase {
        Phase::Prompt => (PROMPT_TOKENS, 0, 0),
        Phase::Decode => (0, DECODED_TOKENS, PROMPT_TOKENS),
    };
    let threads = rayon::current_num_threads();
    let flags =
        format!("-p {n_prompt} -n {n_decoded} -d {depth} -t {threads} -r {RUNS} -fa 1 -ngl 0 --no-warmup -o json");
    let (text, processor_seconds) = run(Command::new(bench).arg("-m").arg(file).args(flags.split(' ')));
    let document: serde_json::Value = serde_json::from_str(&text).expect("what llama-bench prints is JSON");
    let speeds = document[0]["samples_ts"].as_array().expect("speeds");
    let tokens_per_second = speeds.iter().filter_map(serde_json::Value::as_f64).fold(0.0, f64::max);
    Measured { tokens_per_second, processor_seconds }
}

/// What `command` prints, and its processor time.
fn run(command: &mut Command) -> (String, f64) {
    let before = childrens_processor_seconds();
    let out = command.output().expect("the program starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    (String::from_utf8(out.stdout).expect("text"), childrens_processor_seconds() - before)
}

/// Of all that ended; Linux counts in hundredths of a second.
fn childrens_processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields = stat.rsplit(')').next().expect("fields after the name").split_whitespace();
    fields.skip(13).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

fn run_part(part: &str) {
    let [device, adapter, phase, file] = part.splitn(4, ' ').collect::<Vec<_>>().try_into().expect("four parts");
    let base = BaseModel::open(file.as_ref()).expect("the base opens");
    let device = device.parse::<DeviceChoice>().and_then(DeviceChoice::open).expect("a device");
    let mut model = Model::load(&base, &device).expect("the base loads");
    let of_adapter = canonical::adapter(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2-pirate/adapter"));
    if adapter == "adapter" {
        model.set_adapters(&[((&of_adapter).into(), 1.0)]).expect("the adapter fits");
    }
    let ids: Vec<u32> = (0..PROMPT_TOKENS as u32).map(|i| (i * 7919 + 13) % 40_000).collect();
    let mut best = 0f64;
    for _ in 0..RUNS {
        let mut cache = model.new_cache(PROMPT_TOKENS + DECODED_TOKENS);
        let start = Instant::now();
        model.forward(&mut cache, std::slice::from_ref(&ids), Logits::Last).expect("the prompt is computed");
        let speed = match phase {
            "Prompt" => PROMPT_TOKENS as f64 / start.elapsed().as_secs_f64(),
            _ => {
                let start = Instant::now();
                for i in 0..DECODED_TOKENS as u32 {
                    model.forward(&mut cache, &[vec![i + 1]], Logits::Last).expect("a token is computed");
                }
                DECODED_TOKENS as f64 / start.elapsed().as_secs_f64()
            }
        };
        best = best.max(speed);
    }
    println!("{best}");
}
