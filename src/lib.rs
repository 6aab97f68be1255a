//! Take Prefix-Tuning+ adapters anywhere, and prove that they still work.
//!
//! The flow, which [`pipeline`] spells out: files are opened ([`mod@format`]), imported ([`mod@import`]) into an
//! [`adapter::Adapter`], checked against a [`base::BaseModel`] ([`validate`]), brought into another representation
//! ([`transform`]), written ([`export`]) and proved ([`mod@verify`], on the [`runner`]).
//!
//! ```
//! # #[cfg(feature = "runner")]
//! # fn main() -> Result<(), ptplus::Error> {
//! use ptplus::{BaseModel, Device, Probe, Reference, read_adapter, verify};
//!
//! let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-pre-rope");
//! let base = BaseModel::open(&model.join("base"))?;
//! let adapter = read_adapter(&model.join("adapter"), Some(&base))?; // every tensor read and checked
//! let probe = Probe::open(&model.join("probe.safetensors"))?; // what PyTorch computed
//! let options = verify::Options { device: &Device::cpu(), tolerance: None, progress: &|_, _| {} };
//! let report = verify(&adapter, &base, Reference::Probe(&probe), &options)?;
//! assert!(report.pass && report.found_effect > 0.0);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "runner"))]
//! # fn main() {}
//! ```
//!
//! The names at the root are what reading, converting, quantizing, verifying and packing take.
//!
//! Without features the crate reads, checks and writes files. `runner` adds the models, [`mod@verify`] and [`pipeline`]; `report`
//! the HTML pages; `generate` text; `cli` the command line.
//!
//! Types of other crates in this API: `serde_json`'s `Value` and `Map`, for what a file states and ptplus carries along without
//! interpreting it; the crate is [re-exported](serde_json). No tensor, device or error type of another crate is in it.

#![warn(clippy::missing_errors_doc)]

#[cfg(target_endian = "big")]
compile_error!("ptplus takes numbers from files as they lie in memory, so it needs a little-endian target");

pub mod about;
pub mod adapter;
#[cfg(feature = "runner")]
pub mod auto;
pub mod base;
#[cfg(test)]
#[path = "../tests/common/base_gguf.rs"]
mod base_gguf;
pub mod bundle;
#[cfg(feature = "cli")]
pub mod cli;
pub mod combine;
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

// What most programs need, by one name each; the modules have the rest.
pub use adapter::Adapter;
pub use base::BaseModel;
#[cfg(feature = "runner")]
pub use bundle::pack::{Pack, pack};
pub use error::Error;
pub use format::bundle::{Bundle, check::check};
#[cfg(feature = "runner")]
pub use pipeline::{Convert, Format, OutType, Proof, TypeRules, convert, read_adapter};
/// Element types and block formats, a crate of its own.
#[doc(inline)]
pub use ptplus_quant as quant;
#[cfg(feature = "runner")]
pub use runner::Device;
pub use serde_json;
pub use validate::Validated;
#[cfg(feature = "runner")]
pub use verify::{Reference, probe::Probe, verify};
