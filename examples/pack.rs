//! Packs an adapter into a bundle that was verified against PyTorch's answer, then checks it as a receiver would.
//!
//! ```text
//! cargo run --example pack -- ADAPTER BASE PROBE BUNDLE
//! ```

use std::path::Path;

use ptplus::verify::{self, Prompts};
use ptplus::{BaseModel, Convert, Device, Error, Format, Pack, Probe, Proof, pack, read_adapter};

/// Makes a folder that holds the adapter, its manifest, reports and a model card.
pub fn run(adapter: &Path, base: &Path, probe_path: &Path, bundle: &Path) -> Result<(), Error> {
    let base = BaseModel::open(base)?;
    let probe = Probe::open(probe_path)?;
    let device = Device::cpu();
    let options = verify::Options { device: &device, tolerance: None, progress: &|_, _| {} };
    let mut job = Convert::new(adapter, bundle, Format::Gguf);
    job.base = Some(&base);
    job.prove = Some(Proof { probe: &probe, path: probe_path, options: options.clone() });
    let prompts = Prompts::Tokens(probe.input_ids.clone());
    let packed = pack(Pack::new(job, options, prompts, "examples/pack"))?;
    for (file, len_bytes) in &packed.files {
        println!("{file}: {len_bytes} bytes");
    }
    // A bundle is accepted wherever an adapter is, and checked first: every file, size and hash.
    let adapter = read_adapter(bundle, Some(&base))?;
    println!("{} adapted layers, verified against {}", adapter.adapter().layer_numbers().count(), packed.reference);
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [adapter, base, probe, bundle] = &arguments[..] else {
        eprintln!("usage: pack ADAPTER BASE PROBE BUNDLE");
        std::process::exit(2);
    };
    run(adapter.as_ref(), base.as_ref(), probe.as_ref(), bundle.as_ref())
}
