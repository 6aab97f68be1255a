//! Take Prefix-Tuning+ adapters anywhere, and prove that they still work.
//!
//! The flow, which [`pipeline`] spells out: files are opened ([`mod@format`]), imported ([`mod@import`]) into an
//! [`adapter::Adapter`], checked against a [`base::BaseModel`] ([`validate`]), brought into another representation
//! ([`transform`]), written ([`export`]) and proved ([`verify`], on the [`runner`]).
//!
//! ```
//! # #[cfg(feature = "runner")]
//! # fn main() -> ptplus::error::Result<()> {
//! use ptplus::runner::Device;
//! use ptplus::verify::{Options, Reference, probe::Probe, verify};
//! use ptplus::{base::BaseModel, pipeline::read_adapter};
//!
//! let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-pre-rope");
//! let base = BaseModel::open(&model.join("base"))?;
//! let adapter = read_adapter(&model.join("adapter"), Some(&base))?; // every tensor read and checked
//! let probe = Probe::open(&model.join("probe.safetensors"))?; // what PyTorch computed
//! let options = Options { device: &Device::cpu(), tolerance: None, progress: &|_, _| {} };
//! let report = verify(&adapter, &base, Reference::Probe(&probe), &options)?;
//! assert!(report.pass && report.found_effect > 0.0);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "runner"))]
//! # fn main() {}
//! ```
//!
//! Without features the crate reads, checks and writes files. `runner` adds the models, [`verify`] and [`pipeline`]; `report`
//! the HTML pages; `generate` text; `cli` the command line.
//!
//! Types of other crates in this API: `serde_json`'s `Value` and `Map`, for what a file states and ptplus carries along without
//! interpreting it; the crate is [re-exported](serde_json). No tensor, device or error type of another crate is in it.

#![warn(clippy::missing_errors_doc)]

#[cfg(target_endian = "big")]
compile_error!("ptplus takes numbers from files as they lie in memory, so it needs a little-endian target");

pub use serde_json;

pub mod adapter;
#[cfg(feature = "runner")]
pub mod auto;
pub mod base;
pub mod bundle;
#[cfg(feature = "cli")]
pub mod cli;
pub mod digest;
pub mod doctor;
pub mod error;
#[cfg(feature = "runner")]
pub mod exec;
pub mod export;
pub mod finding;
pub mod format;
#[cfg(feature = "generate")]
pub mod generate;
pub mod graft;
pub mod import;
pub mod inspect;
#[cfg(feature = "llama-cpp")]
pub mod llama_cpp;
mod lossy;
mod named;
#[cfg(feature = "runner")]
pub mod pipeline;
pub mod quant;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "runner")]
pub mod runner;
#[cfg(feature = "runner")]
pub mod search;
pub mod tensor;
pub mod transform;
pub mod validate;
#[cfg(feature = "runner")]
pub mod verify;
pub mod version;
pub mod vocab;
