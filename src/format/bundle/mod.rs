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
pub mod form;
pub mod manifest;
pub mod model_signing;
pub(crate) mod path;
pub mod place;
pub mod signature;
pub mod tar;

pub use container::Bundle;

/// The adapter inside a bundle, as GGUF.
pub const ADAPTER_FILE: &str = "adapter.gguf";
/// The model inside a bundle of one: a base that adapters were merged into.
pub const MODEL_FILE: &str = "model.gguf";
/// The chat template that the adapter says, for programs that want a file.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// How to sample, as the adapter says it and transformers reads it.
pub const GENERATION_FILE: &str = "generation_config.json";
/// The model card.
pub const CARD_FILE: &str = "README.md";
/// What lists and describes every other file.
pub const MANIFEST_FILE: &str = "manifest.json";
/// How the adapter came about: SLSA provenance.
pub const PROVENANCE_FILE: &str = "provenance.json";
/// What a verification found when the bundle was made.
pub const VERIFICATION_REPORT: &str = "reports/verification.json";
/// The signature of the manifest, in minisign's format.
pub const SIGNATURE_FILE: &str = "manifest.json.minisig";

/// The signature of all files, as OpenSSF's model signing has it.
pub const MODEL_SIGNATURE_FILE: &str = "model.sig";
/// What no manifest lists: itself, and what signs it.
pub const OWN_FILES: [&str; 3] = [MANIFEST_FILE, SIGNATURE_FILE, MODEL_SIGNATURE_FILE];

/// Whether a file is text or an image for people: the owner's to edit, whenever they like, and under no promise of the
/// manifest. Nothing here reads it.
pub fn is_for_people(path: &str) -> bool {
    match path.split_once('/') {
        Some(("assets", rest)) => IMAGES.contains(&rest.rsplit_once('.').unwrap_or_default().1),
        Some(_) => false,
        None => {
            path == CARD_FILE
                || path == ".gitattributes"
                || ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| {
                    path.strip_prefix(start).is_some_and(|rest| matches!(rest, "" | ".md" | ".txt") || is_variant(rest))
                })
        }
    }
}

/// Endings of images that a card shows.
const IMAGES: [&str; 6] = ["gif", "jpeg", "jpg", "png", "svg", "webp"];

/// `-MIT`, `-APACHE.txt`: of a licence's name what says which it is.
fn is_variant(rest: &str) -> bool {
    let name = rest.strip_suffix(".md").or(rest.strip_suffix(".txt")).unwrap_or(rest);
    name.strip_prefix(['-', '_'])
        .is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_read_is_theirs_and_what_programs_read_is_not() {
        for path in [
            "README.md",
            "LICENSE",
            "LICENCE",
            "LICENSE.md",
            "LICENSE.txt",
            "LICENSE-MIT",
            "LICENSE_GEMMA.txt",
            "NOTICE",
            "NOTICE.txt",
            ".gitattributes",
            "assets/a.png",
            "assets/plots/b.svg",
        ] {
            assert!(is_for_people(path), "{path}");
        }
        for path in [
            "readme.md",
            "docs/README.md",
            "LICENSED",
            "LICENSE.gguf",
            "LICENSE.json",
            "a/LICENSE",
            "assets",
            "assets/a.gguf",
            "assets/png",
            "x/assets/a.png",
            ".gitignore",
            "adapter.gguf",
            "manifest.json",
            "chat_template.jinja",
        ] {
            assert!(!is_for_people(path), "{path}");
        }
    }
}
