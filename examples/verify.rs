//! Proves that an adapter computes what PyTorch computed, and says where it is farthest off.
//!
//! ```text
//! cargo run --example verify -- ADAPTER BASE PROBE
//! ```

use std::path::PathBuf;

use ptplus::base::BaseModel;
use ptplus::error::Error;
use ptplus::pipeline::read_adapter;
use ptplus::runner::Device;
use ptplus::verify::probe::Probe;
use ptplus::verify::{Options, Reference, verify};

fn main() -> Result<(), Error> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [adapter, base, probe] = &arguments[..] else {
        eprintln!("usage: verify ADAPTER BASE PROBE");
        std::process::exit(2);
    };
    let base = BaseModel::open(base)?;
    // Reads every tensor and checks it against the base; only an adapter that fits can be verified.
    let adapter = read_adapter(adapter, Some(&base))?;
    let probe = Probe::open(probe)?;
    let options = Options { device: &Device::cpu(), tolerance: None, progress: &|_, _| {} };
    let report = verify(&adapter, &base, Reference::Probe(&probe), &options)?;
    println!("{}: max |dlogit| {:.2e}", if report.pass { "pass" } else { "fail" }, report.metrics.max_abs);
    if let Some(worst) = report.worst {
        println!("worst: row {}, position {}, token {}", worst.batch, worst.position, worst.token);
    }
    for failure in &report.failures {
        println!("{} [{}]", failure.message, failure.code);
    }
    std::process::exit(if report.pass { 0 } else { 5 });
}
