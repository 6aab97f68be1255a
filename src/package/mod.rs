//! Bundles: an adapter with what proves that it is whole, in one folder or one tar archive.
//!
//! ```text
//!   adapter -> pack -> adapter.gguf, README.md, reports/*.json -> manifest.json (sizes, SHA-256) -> signature
//!   bundle  -> container (paths to bytes) -> check (every rule, every hash, signature) -> import, unpack
//! ```
//!
//! `docs/BUNDLE.md` has every rule and the reason for it.

#[cfg(feature = "runner")]
mod card;
pub mod check;
pub mod claims;
pub mod container;
#[cfg(feature = "runner")]
pub mod diff;
pub mod digest;
pub mod manifest;
#[cfg(feature = "runner")]
mod naming;
#[cfg(feature = "runner")]
pub mod pack;
mod path;
pub mod place;
#[cfg(feature = "runner")]
mod reports;
pub mod signature;
pub mod tar;

pub use container::Container;

/// The adapter inside a bundle, as GGUF.
pub const ADAPTER_FILE: &str = "adapter.gguf";
/// The model card.
pub const CARD_FILE: &str = "README.md";
/// What lists and describes every other file.
pub const MANIFEST_FILE: &str = "manifest.json";
/// What a verification found when the bundle was made.
pub const VERIFICATION_REPORT: &str = "reports/verification.json";
/// The signature of the manifest, in minisign's format.
pub const SIGNATURE_FILE: &str = "manifest.json.minisig";
