//! Take Prefix-Tuning+ adapters anywhere, and prove that they still work.
//!
//! The flow, which [`pipeline`] spells out: files are opened ([`mod@format`]), imported ([`mod@import`]) into an
//! [`adapter::Adapter`], checked against a [`base::BaseModel`] ([`validate`]), brought into another representation
//! ([`transform`]), written ([`export`]) and proved ([`verify`], on the [`runner`]).

pub mod adapter;
#[cfg(feature = "runner")]
pub mod auto;
pub mod base;
#[cfg(feature = "cli")]
pub mod cli;
pub mod digest;
pub mod error;
pub mod export;
pub mod finding;
pub mod format;
pub mod import;
pub mod inspect;
mod lossy;
#[cfg(feature = "runner")]
pub mod pipeline;
pub mod quant;
#[cfg(feature = "runner")]
pub mod runner;
#[cfg(feature = "runner")]
pub mod search;
pub mod tensor;
pub mod transform;
pub mod validate;
#[cfg(feature = "runner")]
pub mod verify;
