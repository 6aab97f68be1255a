//! Speed of the quantizers and decoders, in bytes of F32 per second: one thread, all threads and, with the feature
//! `llama-cpp`, ggml's in the same run. Then how much two threads gain over one, for each type.
//!
//! `cargo bench --no-default-features --features llama-cpp --bench quantize [-- FILTER]`

use std::hint::black_box;
use std::time::Instant;

use ptplus::quant;
use ptplus::tensor::DType;

#[path = "../tests/quant_inputs/mod.rs"]
#[allow(dead_code)]
mod quant_inputs;

const N_PER_ROW: usize = 1024;
const N_ROWS: usize = 1024;

fn types() -> impl Iterator<Item = DType> {
    [DType::F16, DType::BF16].into_iter().chain(quant::BLOCK_FORMATS.iter().copied())
}

/// Megabytes of F32 per second of each of `jobs`, which take turns so that all see the machine in the same state: the fastest
/// of their runs, and the median of the ratios to the last one.
fn in_turn(what: &str, n_elements: usize, jobs: &mut [(&str, &mut dyn FnMut())]) {
    const RUNS: usize = 25;
    let mut rounds = Vec::new();
    for _ in 0..RUNS {
        rounds.push(jobs.iter_mut().map(|(_, job)| seconds(job)).collect::<Vec<f64>>());
    }
    print!("{what}:");
    for (i, (name, _)) in jobs.iter().enumerate() {
        let fastest = rounds.iter().map(|times| times[i]).fold(f64::INFINITY, f64::min);
        print!(" {name} {:.0} MB/s", n_elements as f64 * 4.0 / 1e6 / fastest);
        if i + 1 < jobs.len() {
            let mut ratios: Vec<f64> = rounds.iter().map(|times| times[times.len() - 1] / times[i]).collect();
            ratios.sort_by(f64::total_cmp);
            print!(" (ratio {:.2}),", ratios[RUNS / 2]);
        }
    }
    println!();
}

fn seconds(job: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    job();
    start.elapsed().as_secs_f64()
}

fn quantize(dtype: DType, x: &[f32]) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    let len = x.len() / dtype.block_len() * dtype.block_bytes();
    let [mut one, mut all, mut of_ggml] = [(); 3].map(|()| vec![0; len]);
    let mut one = || pool.install(|| quant::quantize_rows(dtype, black_box(x), N_PER_ROW, &mut one));
    let mut all = || quant::quantize_rows(dtype, black_box(x), N_PER_ROW, &mut all);
    let mut of_ggml = || ggml::quantize(dtype, black_box(x), &mut of_ggml);
    let jobs: &mut [(&str, &mut dyn FnMut())] =
        &mut [("all threads", &mut all), ("one thread", &mut one), ("ggml", &mut of_ggml)];
    let n = if cfg!(feature = "llama-cpp") { 3 } else { 2 };
    in_turn(&format!("quantize/{dtype}"), x.len(), &mut jobs[..n]);
}

fn decode(dtype: DType, x: &[f32]) {
    let mut bytes = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
    quant::quantize_rows(dtype, x, N_PER_ROW, &mut bytes);
    let [mut own, mut of_ggml] = [(); 2].map(|()| vec![0f32; x.len()]);
    let mut own = || quant::decode(dtype, black_box(&bytes), &mut own);
    let mut of_ggml = || ggml::decode(dtype, black_box(&bytes), &mut of_ggml);
    let jobs: &mut [(&str, &mut dyn FnMut())] = &mut [("one thread", &mut own), ("ggml", &mut of_ggml)];
    let n = if cfg!(feature = "llama-cpp") { 2 } else { 1 };
    in_turn(&format!("decode/{dtype}"), x.len(), &mut jobs[..n]);
}

/// One thread and two in turn, so that both see the machine in the same state. The fastest runs count: whatever else the
/// machine does takes one of two cores away, and halves only the second figure.
fn scaling(dtype: DType) {
    const RUNS: usize = 25;
    let x = quant_inputs::make("normal", 4 * N_ROWS * N_PER_ROW);
    let pools = [1, 2].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool of threads"));
    let mut bytes = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (pool, times) in pools.iter().zip(&mut times) {
            times.push(seconds(&mut || {
                pool.install(|| quant::quantize_rows(dtype, black_box(&x), N_PER_ROW, &mut bytes))
            }));
        }
    }
    let [one, two] = times.map(|times| times.into_iter().fold(f64::INFINITY, f64::min));
    let rate = |seconds: f64| x.len() as f64 * 4.0 / 1e6 / seconds;
    println!(
        "scaling/{dtype}: one thread {:.0} MB/s, two {:.0} MB/s, ratio {:.2} (wanted >= 1.80)",
        rate(one),
        rate(two),
        one / two
    );
}

#[cfg(not(feature = "llama-cpp"))]
mod ggml {
    use ptplus::tensor::DType;

    pub fn quantize(_: DType, _: &[f32], _: &mut [u8]) {}

    pub fn decode(_: DType, _: &[u8], _: &mut [f32]) {}
}

#[cfg(feature = "llama-cpp")]
mod ggml {
    use llama_cpp_sys_2 as ggml;
    use ptplus::tensor::DType;

    use super::{N_PER_ROW, N_ROWS};

    pub fn quantize(dtype: DType, x: &[f32], bytes: &mut [u8]) {
        let id = dtype.ggml_id().expect("a type of ggml");
        let (dst, n_rows, n_per_row) = (bytes.as_mut_ptr().cast(), N_ROWS as i64, N_PER_ROW as i64);
        assert_eq!(x.len(), N_ROWS * N_PER_ROW);
        // SAFETY: `x` has all rows, and `bytes` the size of their blocks.
        unsafe { ggml::ggml_quantize_chunk(id, x.as_ptr(), dst, 0, n_rows, n_per_row, std::ptr::null()) };
    }

    pub fn decode(dtype: DType, bytes: &[u8], x: &mut [f32]) {
        let id = dtype.ggml_id().expect("a type of ggml");
        // SAFETY: the traits are static; `bytes` and `x` have the same number of blocks.
        unsafe {
            let to_float = (*ggml::ggml_get_type_traits(id)).to_float.expect("a decoder");
            to_float(bytes.as_ptr().cast(), x.as_mut_ptr(), x.len() as i64);
        }
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let is_wanted = |what: &str, dtype: &DType| format!("{what}/{dtype}").contains(&filter);
    let x = quant_inputs::make("normal", N_ROWS * N_PER_ROW);
    for dtype in types().filter(|t| is_wanted("quantize", t)) {
        quantize(dtype, &x);
    }
    for dtype in types().filter(|t| is_wanted("decode", t)) {
        decode(dtype, &x);
    }
    for dtype in types().filter(|t| is_wanted("scaling", t)) {
        scaling(dtype);
    }
}
