//! Speed of the runner on SmolLM2-135M: a prompt of 512 tokens, then single tokens, without and with the adapter.
//!
//! `cargo bench --bench runner [-- model.gguf]` prints tokens per second. To compare with PyTorch eager,
//! F32: 551 tokens/s for the prompt and 24 while decoding, on two cores.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ptplus::base::BaseModel;
use ptplus::runner::{Device, Logits, Model};

#[path = "../tests/it/runner/common.rs"]
mod canonical;
#[path = "../tests/common/mod.rs"]
mod common;

const PROMPT_TOKENS: usize = 512;
const DECODED_TOKENS: usize = 32;
const RUNS: usize = 3;

fn main() {
    let given = std::env::args().nth(1).filter(|a| !a.starts_with("--")).map(PathBuf::from);
    let path = given.unwrap_or_else(common::smollm2);
    let start = Instant::now();
    let base = BaseModel::open(&path).expect("the base opens");
    let opened = start.elapsed();
    let mut model = Model::load(&base, &Device::cpu()).expect("the base loads");
    println!("opened in {:.1} ms, loaded in {:.1} ms", 1e3 * opened.as_secs_f64(), 1e3 * start.elapsed().as_secs_f64());
    measure("base", &model);
    let adapter = canonical::adapter(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2-pirate/adapter"));
    if adapter.config.geometry.n_layers == base.config.n_layers {
        model.set_adapters(&[((&adapter).into(), 1.0)]).expect("the adapter fits");
        measure("adapter", &model);
    }
}

fn measure(what: &str, model: &Model) {
    let ids: Vec<u32> = (0..PROMPT_TOKENS as u32).map(|i| (i * 7919 + 13) % 40_000).collect();
    let (mut last, mut all, mut decode) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        all = all.min(seconds(|| {
            model.forward(&mut model.new_cache(PROMPT_TOKENS), std::slice::from_ref(&ids), Logits::All)
        }));
        let mut cache = model.new_cache(PROMPT_TOKENS + DECODED_TOKENS);
        last = last.min(seconds(|| model.forward(&mut cache, std::slice::from_ref(&ids), Logits::Last)));
        let steps = seconds(|| {
            for i in 0..DECODED_TOKENS as u32 {
                model.forward(&mut cache, &[vec![i + 1]], Logits::Last)?;
            }
            Ok::<_, ptplus::error::Error>(())
        });
        decode = decode.min(steps);
    }
    println!(
        "{what}: prompt of {PROMPT_TOKENS} {:.0} tokens/s ({:.0} with the logits of all positions), decode {:.1} tokens/s",
        PROMPT_TOKENS as f64 / last,
        PROMPT_TOKENS as f64 / all,
        DECODED_TOKENS as f64 / decode
    );
}

fn seconds<T, E: std::fmt::Debug>(f: impl FnOnce() -> Result<T, E>) -> f64 {
    let start = Instant::now();
    f().expect("the forward pass works");
    start.elapsed().as_secs_f64()
}
