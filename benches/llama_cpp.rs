//! What an adapter costs in llama.cpp: `cargo bench --features llama-cpp --bench llama_cpp`.
//!
//! SmolLM2 in F16 with the pirate adapter against stock, two threads: a prompt of 512 tokens, then 64 tokens one by one.
//! The two take turns, so that what else the machine does falls on both; medians, and stock as a share of adapted.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use ptplus::llama_cpp::{Adapter, CacheType, Context, ContextOptions, FlashAttention, Model, Token, decode_to_f16};

const N_ROUNDS: usize = 9;
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
    println!("SmolLM2-135M F16, 2 threads, {N_ROUNDS} rounds, ms (median, quartiles); share = stock / adapted");
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
        let (mut prompts, mut tokens) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..=N_ROUNDS {
            for i in [round % 2, 1 - round % 2] {
                let (prompt, token) = measure(if i == 0 { &mut stock } else { &mut adapted });
                // The first round warms up.
                if round > 0 {
                    prompts[i].push(prompt);
                    tokens[i].push(token);
                }
            }
        }
        for (what, times) in [("prompt of 512", prompts), ("decoded token", tokens)] {
            let [stock, adapted] = times.map(quartiles);
            println!(
                "flash attention {name}, {what}: stock {:.2} ({:.2} - {:.2}), adapted {:.2} ({:.2} - {:.2}), share {:.3}",
                stock[1],
                stock[0],
                stock[2],
                adapted[1],
                adapted[0],
                adapted[2],
                stock[1] / adapted[1]
            );
        }
    }
}

/// Milliseconds for the prompt, and for one token after it.
fn measure(context: &mut Context) -> (f64, f64) {
    context.clear();
    let token = |position: usize, logits| Token { id: (position * 97 % 40_000) as u32, position, sequence: 0, logits };
    let prompt: Vec<Token> = (0..N_PROMPT).map(|i| token(i, i + 1 == N_PROMPT)).collect();
    let start = Instant::now();
    context.decode(&prompt).expect("a prompt");
    let prompt_ms = start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    for i in N_PROMPT..N_PROMPT + N_DECODE {
        context.decode(&[token(i, true)]).expect("a token");
    }
    (prompt_ms, start.elapsed().as_secs_f64() * 1e3 / N_DECODE as f64)
}

fn quartiles(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|q| times[q * (times.len() - 1) / 4])
}
