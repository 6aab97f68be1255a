//! Proves that an adapter computes what PyTorch computed, and says where it is farthest off.
//!
//! ```text
//! cargo run --example verify -- ADAPTER BASE PROBE
//! ```

use std::path::Path;

use ptplus::{BaseModel, Device, Error, Probe, Reference, read_adapter, verify};

/// Whether the adapter, on this base, computes what the probe says.
pub fn run(adapter: &Path, base: &Path, probe: &Path) -> Result<bool, Error> {
    let base = BaseModel::open(base)?;
    // Reads every tensor and checks it against the base; only an adapter that fits can be verified.
    let adapter = read_adapter(adapter, Some(&base))?;
    let probe = Probe::open(probe)?;
    let options = verify::Options { device: &Device::cpu(), tolerance: None, progress: &|_, _| {} };
    let report = verify(&adapter, &base, Reference::Probe(&probe), &options)?;
    println!("{}: max |dlogit| {:.2e}", if report.pass { "pass" } else { "fail" }, report.metrics.max_abs);
    if let Some(worst) = report.worst {
        println!("worst: row {}, position {}, token {}", worst.batch, worst.position, worst.token);
    }
    for failure in &report.failures {
        println!("{} [{}]", failure.message, failure.code);
    }
    Ok(report.pass)
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [adapter, base, probe] = &arguments[..] else {
        eprintln!("usage: verify ADAPTER BASE PROBE");
        std::process::exit(2);
    };
    let pass = run(adapter.as_ref(), base.as_ref(), probe.as_ref())?;
    std::process::exit(if pass { 0 } else { 5 });
}
