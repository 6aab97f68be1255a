//! What an adapter costs in llama.cpp: `cargo bench --features llama-cpp-dynamic --bench llama_cpp`.
//!
//! SmolLM2 in F16 with the pirate adapter against stock, two threads: a prompt of 512 tokens, then 64 tokens one by one. The two
//! take turns, so that what else the machine does falls on both; shown are medians of stock / adapted over the pairs, by
//! wall time and by processor time of all threads. With `PTPLUS_COUNT=prompt|decode` and `PTPLUS_LANE=stock|adapted` one of
//! them runs once, for `valgrind --tool=callgrind`.
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use ptplus::llama_cpp::{Adapter, CacheType, Context, ContextOptions, FlashAttention, Model, Token, decode_to_f16};

const N_ROUNDS: usize = 12;
const N_PROMPT: usize = 512;
const N_DECODE: usize = 64;

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let stored = fixtures.join("fetched/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !stored.is_file() {
        println!("SKIPPED: the real base is not there; fixtures/fetch-smollm2.sh fetches it");
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (base, adapter) = (temp.path().join("f16.gguf"), temp.path().join("adapter.gguf"));
    decode_to_f16(&stored, &base).expect("llama.cpp decodes");
    let convert = ["convert".into(), fixtures.join("smollm2-pirate/adapter").into_os_string()];
    let more = ["--base".into(), stored.into_os_string(), "-q".into(), "-o".into(), adapter.clone().into_os_string()];
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_ptplus")).args(convert).args(more).status();
    assert!(status.is_ok_and(|s| s.success()), "the adapter is converted");

    let model = Rc::new(Model::load(&base).expect("a model"));
    let adapter = Rc::new(Adapter::load(&adapter, &model).expect("an adapter"));
    let count = std::env::var("PTPLUS_COUNT").ok();
    if count.is_none() {
        println!("SmolLM2-135M F16, 2 threads, medians over {N_ROUNDS} pairs of stock / adapted (quartiles)");
    }
    for (name, flash_attention) in [("off", FlashAttention::Off), ("on", FlashAttention::On)] {
        let options = ContextOptions {
            n_positions: N_PROMPT + N_DECODE,
            n_batch: N_PROMPT,
            n_ubatch: N_PROMPT,
            n_sequences: 1,
            n_threads: 2,
            flash_attention,
            cache_type: CacheType::F16,
        };
        let mut stock = Context::new(&model, &[], &options).expect("a context");
        let mut adapted = Context::new(&model, std::slice::from_ref(&adapter), &options).expect("a context");
        if let Some(what) = &count {
            let lane = std::env::var("PTPLUS_LANE");
            let context = if lane.as_deref() == Ok("stock") { &mut stock } else { &mut adapted };
            run(context, if what == "decode" { 1 } else { N_PROMPT }, N_DECODE * usize::from(what == "decode"));
            return;
        }
        let mut ratios = [const { Vec::new() }; 4];
        let mut wall_ms = [const { Vec::new() }; 4];
        for round in 0..=N_ROUNDS {
            let mut pair = [[0.0; 4]; 2];
            for i in [round % 2, 1 - round % 2] {
                pair[i] = run(if i == 0 { &mut stock } else { &mut adapted }, N_PROMPT, N_DECODE);
            }
            // The first round warms up.
            for k in (0..4).filter(|_| round > 0) {
                ratios[k].push(pair[0][k] / pair[1][k]);
                if k < 2 {
                    wall_ms[2 * k].push(1e3 * pair[0][k]);
                    wall_ms[2 * k + 1].push(1e3 * pair[1][k]);
                }
            }
        }
        let [wall_prompt, wall_decode, used_prompt, used_decode] = ratios.map(quartiles);
        let [a, b, c, d] = wall_ms.map(|t| quartiles(t)[1]);
        for (what, wall, used, stock, adapted) in
            [("prompt of 512", wall_prompt, used_prompt, a, b), ("64 decoded tokens", wall_decode, used_decode, c, d)]
        {
            println!(
                "flash attention {name}, {what}: wall {:.3} ({:.3} - {:.3}), processor {:.3} ({:.3} - {:.3}); {stock:.0} and {adapted:.0} ms",
                wall[1], wall[0], wall[2], used[1], used[0], used[2]
            );
        }
    }
}

/// Seconds for a prompt and for the tokens after it: wall, wall, processor, processor.
fn run(context: &mut Context, n_prompt: usize, n_decode: usize) -> [f64; 4] {
    context.clear();
    let token = |position: usize, logits| Token { id: (position * 97 % 40_000) as u32, position, sequence: 0, logits };
    let prompt: Vec<Token> = (0..n_prompt).map(|i| token(i, i + 1 == n_prompt)).collect();
    let (start, used) = (Instant::now(), processor_seconds());
    context.decode(&prompt).expect("a prompt");
    let (wall_prompt, used_prompt) = (start.elapsed().as_secs_f64(), processor_seconds() - used);
    let (start, used) = (Instant::now(), processor_seconds());
    for i in n_prompt..n_prompt + n_decode {
        context.decode(&[token(i, true)]).expect("a token");
    }
    [wall_prompt, start.elapsed().as_secs_f64(), used_prompt, processor_seconds() - used]
}

/// Of all threads of this process; the kernel counts in hundredths.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("the kernel's statistics");
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    [11, 12].map(|i| fields[i].parse::<f64>().expect("ticks")).iter().sum::<f64>() / 100.0
}

fn quartiles(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|q| times[q * (times.len() - 1) / 4])
}
