//! SHA-256 of files, ours beside OpenSSL's in the same run: `cargo bench --bench hash`.
//!
//! A file of PTPLUS_BENCH_MB (1024) in the page cache is hashed by `openssl dgst -sha256` and by what `pack` and `check` use,
//! in turns; then as many files as there are threads, at once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ptplus::format::bundle::check::file_sha256;
use ptplus::format::mmap::map_file;
use rayon::prelude::*;

const RUNS: usize = 7;

fn main() {
    let mb: usize = std::env::var("PTPLUS_BENCH_MB").ok().and_then(|v| v.parse().ok()).unwrap_or(1024);
    let root = std::env::var_os("PTPLUS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(root).expect("a temporary folder");
    let n_threads = rayon::current_num_threads();
    let files: Vec<PathBuf> = (0..n_threads).map(|i| dir.path().join(i.to_string())).collect();
    let content: Vec<u8> =
        (0..mb << 18).flat_map(|i: usize| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    files.iter().for_each(|f| std::fs::write(f, &content).expect("written"));
    drop(content);

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let before = cpu_ticks();
    for _ in 0..RUNS {
        let start = Instant::now();
        let openssl = openssl(&files[0]);
        theirs.push(start.elapsed());
        let start = Instant::now();
        let own = hash(&files[0]);
        ours.push(start.elapsed());
        if let Some(digest) = openssl {
            assert_eq!(own, digest);
        }
    }
    let after = cpu_ticks();
    let rate = |t: Duration, n: usize| ((n * mb) << 20) as f64 / 1e9 / t.as_secs_f64();
    // The machine is shared; the fastest run is the one that was disturbed least.
    let best = |times: &[Duration]| times.iter().min().copied().unwrap_or_default();
    let (own, openssl) = (best(&ours), best(&theirs));
    println!("one file of {mb} MiB, one thread, best of {RUNS}:");
    println!("  openssl dgst -sha256   {:.2} GB/s", rate(openssl, 1));
    println!(
        "  ptplus                 {:.2} GB/s   ratio {:.2} (wanted >= 0.90)",
        rate(own, 1),
        rate(own, 1) / rate(openssl, 1)
    );
    if let (Some(before), Some(after)) = (before, after) {
        // On a shared machine the time on the processor says more than the time on the wall.
        let (own, children) = (after.0 - before.0, after.1 - before.1);
        println!(
            "  time on the processor, {RUNS} runs: openssl {:.2} s, ptplus {:.2} s   ratio {:.2}",
            children as f64 / 100.0,
            own as f64 / 100.0,
            children as f64 / own.max(1) as f64
        );
    }
    let all: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            files.par_iter().for_each(|f| drop(hash(f)));
            start.elapsed()
        })
        .collect();
    println!("{n_threads} files at once, {n_threads} threads: {:.2} GB/s", rate(best(&all), n_threads));
}

/// Time on the processor of this process and of its ended children, user and system, in hundredths of a second.
fn cpu_ticks() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The fields follow the name, which is in parentheses; user time is field 14.
    let fields: Vec<u64> =
        stat.rsplit_once(") ")?.1.split(' ').skip(11).take(4).filter_map(|f| f.parse().ok()).collect();
    let [user, system, children_user, children_system] = fields[..] else { return None };
    Some((user + system, children_user + children_system))
}

fn hash(file: &Path) -> String {
    file_sha256(&map_file(file).expect("mapped"))
}

/// `None` where there is no OpenSSL.
fn openssl(file: &Path) -> Option<String> {
    let out = Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(file).output().ok()?;
    String::from_utf8(out.stdout).ok()?.get(..64).map(str::to_owned)
}
