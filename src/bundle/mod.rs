//! Bundles: an adapter with what proves that it is whole. Their files as such are in [`crate::format::bundle`].
//!
//! ```text
//!   adapter -> pack -> adapter.gguf, README.md, reports/*.json -> manifest.json (sizes, SHA-256) -> signature
//! ```
//!
//! `docs/BUNDLE.md` has every rule and the reason for it.

#[cfg(feature = "runner")]
mod card;
pub mod claims;
#[cfg(feature = "runner")]
pub mod diff;
pub mod digest;
#[cfg(feature = "runner")]
mod naming;
#[cfg(feature = "runner")]
pub mod pack;
#[cfg(feature = "runner")]
mod reports;
#[cfg(feature = "runner")]
mod yaml;
