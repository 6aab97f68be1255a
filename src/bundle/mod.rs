//! Bundles: an adapter with what proves that it is whole. Their files as such are in [`crate::format::bundle`].
//!
//! ```text
//!   adapter -> pack -> adapter.gguf, README.md, reports/*.json -> manifest.json (sizes, SHA-256) -> signatures
//! ```
//!
//! `docs/BUNDLE.md` has every rule and the reason for it.

#[cfg(feature = "runner")]
mod card;
pub mod claims;
#[cfg(feature = "runner")]
mod date;
#[cfg(feature = "runner")]
pub mod diff;
pub mod digest;
#[cfg(feature = "runner")]
mod form;
#[cfg(feature = "runner")]
pub mod merged;
#[cfg(feature = "runner")]
mod model_card;
#[cfg(feature = "runner")]
mod naming;
#[cfg(feature = "runner")]
pub mod pack;
#[cfg_attr(not(feature = "runner"), allow(dead_code))] // only `pack` writes
mod provenance;
#[cfg(feature = "runner")]
mod reports;
pub mod seal;
#[cfg(feature = "runner")]
mod sections;
#[cfg(feature = "runner")]
mod staging;
mod stated;
#[cfg(feature = "runner")]
mod written;
#[cfg(feature = "runner")]
mod yaml;

#[cfg(feature = "runner")]
pub use form::{PackedForm, Part};
