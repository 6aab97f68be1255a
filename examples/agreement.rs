//! PyTorch, candle and llama.cpp on the same prompts: `cargo run --features llama-cpp --example agreement`.
//!
//! One row for each fixture, and for SmolLM2 where `fixtures/fetch-smollm2.sh` has been run. F32 weights and cache, no
//! flash attention. Fails where a figure is beyond its limit.

use std::path::Path;
use std::process::ExitCode;

use ptplus::base::BaseModel;
use ptplus::error::Result;
use ptplus::pipeline::read_adapter;
use ptplus::runner::DeviceChoice;
use ptplus::verify::engines::{EngineMetrics, verify_in_llama_cpp};
use ptplus::verify::probe::Probe;
use ptplus::verify::stats::Metrics;
use ptplus::verify::tolerance::Tolerance;
use ptplus::verify::{Options, Reference};

const SMOLLM2: &str = "fetched/SmolLM2-135M-Instruct.Q4_1.gguf";

fn main() -> ExitCode {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut rows = Vec::new();
    for name in ["llama-mha", "llama-gqa", "qwen2", "qwen3", "mistral-swa", "qwen3-pre-rope", "llama-pre-rope"] {
        let folder = fixtures.join("models").join(name);
        rows.push((name, folder.clone(), folder.join("base"), 5e-4));
    }
    if fixtures.join(SMOLLM2).is_file() {
        rows.push(("SmolLM2-135M", fixtures.join("smollm2-pirate"), fixtures.join(SMOLLM2), 5e-3));
    } else {
        eprintln!("SKIPPED: SmolLM2 is not there; fixtures/fetch-smollm2.sh fetches it");
    }
    println!("max |dlogit|, mean KL (nats), top-1 agreement of the adapted model\n");
    println!("| model | positions | PyTorch, candle | PyTorch, llama.cpp | candle, llama.cpp | limit |");
    println!("|---|---|---|---|---|---|");
    let mut pass = true;
    for (name, folder, base, limit) in rows {
        match measure(&folder, &base) {
            Ok((m, notes)) => {
                let figures = [m.candle, m.llama_cpp, m.beside];
                pass &= figures.iter().all(|m| m.max_abs <= limit && m.top1_agreement == 1.0);
                let [a, b, c] = figures.map(shown);
                println!("| {name} | {} | {a} | {b} | {c} | {limit:.0e} |", m.llama_cpp.n_positions);
                notes.iter().for_each(|n| eprintln!("{name}: {n}"));
            }
            Err(e) => {
                eprintln!("{name}: {e}");
                pass = false;
            }
        }
    }
    if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(folder: &Path, base: &Path) -> Result<(EngineMetrics, Vec<String>)> {
    let base = BaseModel::open(base)?;
    let adapter = read_adapter(&folder.join("adapter"), Some(&base))?;
    let probe = Probe::open(&folder.join("probe.safetensors"))?;
    let device = "cpu".parse::<DeviceChoice>()?.open()?;
    let options = Options { device: &device, tolerance: Some(Tolerance::none()), progress: &|_, _| () };
    let (_, engines) = verify_in_llama_cpp(&adapter, &base, Reference::Probe(&probe), &options)?;
    Ok((engines.metrics, engines.notes))
}

fn shown(m: Metrics) -> String {
    format!("{:.1e}, {:.1e}, {:.0} %", m.max_abs, m.mean_kl, 100.0 * m.top1_agreement)
}
