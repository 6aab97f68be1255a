//! A bundle's files, in one folder or one tar archive, and whether they are whole: paths, sizes, digests, the signature.
//! What the adapter among them is, [`mod@crate::bundle`] knows.
//!
//! ```text
//!   bundle -> container (paths to bytes) -> check (every rule, every hash, signature) -> import, unpack
//! ```
//!
//! `docs/BUNDLE.md` has every rule and the reason for it.

pub mod check;
pub mod container;
pub mod manifest;
pub(crate) mod path;
pub mod place;
pub mod signature;
pub mod tar;

pub use container::Bundle;

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
