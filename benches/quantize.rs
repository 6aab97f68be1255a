//! Speed of the quantizers and decoders, in bytes of F32 per second: one thread, all threads and, with the feature
//! `llama-cpp`, ggml's in the same run. Then how much two threads gain over one, for each type.
//!
//! `cargo bench --no-default-features --features llama-cpp --bench quantize [-- FILTER]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
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

fn quantize(c: &mut Criterion) {
    let x = quant_inputs::make("normal", N_ROWS * N_PER_ROW);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    for dtype in types() {
        let mut bytes = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
        let mut group = c.benchmark_group(format!("quantize/{dtype}"));
        group.throughput(Throughput::BytesDecimal(x.len() as u64 * 4));
        group.bench_function("one thread", |b| {
            b.iter(|| one_thread.install(|| quant::quantize_rows(dtype, black_box(&x), N_PER_ROW, &mut bytes)));
        });
        group.bench_function("all threads", |b| {
            b.iter(|| quant::quantize_rows(dtype, black_box(&x), N_PER_ROW, &mut bytes));
        });
        #[cfg(feature = "llama-cpp")]
        group.bench_function("ggml", |b| b.iter(|| ggml::quantize(dtype, black_box(&x), &mut bytes)));
        group.finish();
    }
}

fn decode(c: &mut Criterion) {
    let x = quant_inputs::make("normal", N_ROWS * N_PER_ROW);
    let mut out = vec![0f32; x.len()];
    for dtype in types() {
        let mut bytes = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
        quant::quantize_rows(dtype, &x, N_PER_ROW, &mut bytes);
        let mut group = c.benchmark_group(format!("decode/{dtype}"));
        group.throughput(Throughput::BytesDecimal(x.len() as u64 * 4));
        group.bench_function("one thread", |b| b.iter(|| quant::decode(dtype, black_box(&bytes), &mut out)));
        #[cfg(feature = "llama-cpp")]
        group.bench_function("ggml", |b| b.iter(|| ggml::decode(dtype, black_box(&bytes), &mut out)));
        group.finish();
    }
}

/// One thread and two in turn, so that both see the machine in the same state. The fastest runs count: whatever else the
/// machine does takes one of two cores away, and halves only the second figure.
fn scaling(_: &mut Criterion) {
    const RUNS: usize = 25;
    let x = quant_inputs::make("normal", 4 * N_ROWS * N_PER_ROW);
    let pools = [1, 2].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool of threads"));
    for dtype in types() {
        let mut bytes = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (pool, times) in pools.iter().zip(&mut times) {
                let start = Instant::now();
                pool.install(|| quant::quantize_rows(dtype, black_box(&x), N_PER_ROW, &mut bytes));
                times.push(start.elapsed());
            }
        }
        let [one, two] = times.map(|mut t| {
            t.sort();
            t[0].as_secs_f64()
        });
        let rate = |seconds: f64| x.len() as f64 * 4.0 / 1e6 / seconds;
        println!(
            "scaling/{dtype}: one thread {:.0} MB/s, two {:.0} MB/s, ratio {:.2} (wanted >= 1.80)",
            rate(one),
            rate(two),
            one / two
        );
    }
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = quantize, decode, scaling
}
criterion_main!(benches);
