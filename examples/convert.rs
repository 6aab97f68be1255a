//! Converts an adapter to GGUF for its base, and proves it against PyTorch's answer before the file appears.
//!
//! ```text
//! cargo run --example convert -- ADAPTER BASE PROBE OUT.gguf
//! ```

use std::path::Path;

use ptplus::{BaseModel, Convert, Device, Error, Format, Probe, Proof, convert, verify};

/// Writes `output` only if it computes what the probe says.
pub fn run(adapter: &Path, base: &Path, probe_path: &Path, output: &Path) -> Result<(), Error> {
    let base = BaseModel::open(base)?;
    let probe = Probe::open(probe_path)?;
    let device = Device::cpu();
    let mut job = Convert::new(adapter, output, Format::Gguf);
    job.base = Some(&base);
    let options = verify::Options { device: &device, tolerance: None, progress: &|_, _| {} };
    job.prove = Some(Proof { probe: &probe, path: probe_path, options });
    let done = convert(&job)?;
    for tensor in &done.tensors {
        println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
    }
    let report = done.verification.expect("a proof was asked for");
    println!("max |dlogit| {:.2e} over {} positions", report.metrics.max_abs, report.metrics.n_positions);
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [adapter, base, probe, output] = &arguments[..] else {
        eprintln!("usage: convert ADAPTER BASE PROBE OUT.gguf");
        std::process::exit(2);
    };
    run(adapter.as_ref(), base.as_ref(), probe.as_ref(), output.as_ref())
}
