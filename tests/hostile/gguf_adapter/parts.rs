//! What else may be said about an adapter, and which parts it has.

use ptplus::error::Code;

use super::{MEMORY, Value, file, layers, right, text, u32, with};
use crate::case::{Case, accepted, refused};

/// Keys that nothing is computed from.
pub fn about_the_file() -> Vec<Case> {
    use Code::*;
    let digest = |v: &str| with("ptplus.source_sha256", Some(text(v)));
    let count = |v: Value| with("general.base_model.count", Some(v));
    let mut cases = vec![
        accepted("a name", with("general.name", Some(text("имя")))),
        accepted("a type of file that does not fit", with("general.file_type", Some(u32(7)))),
        refused("a type of file as text", with("general.file_type", Some(text("x"))), GgufKey),
        accepted("a digest of the source", digest(&"0a".repeat(32))),
        refused("a digest that is none", digest("zz"), ConfigField),
        refused("a digest in upper case", digest(&"0A".repeat(32)), ConfigField),
        refused("a digest of 66 digits", digest(&"0a".repeat(33)), ConfigField),
        refused("a digest of 1 MB", digest(&"z".repeat(1 << 20)), ConfigField),
        accepted("two base models", count(u32(2))),
        refused("base models as text", count(text("1")), GgufKey),
        refused("2^32-1 base models", count(u32(u32::MAX)), ConfigField),
        refused("a base model beyond their count", count(u32(1)).str("general.base_model.1.name", "x"), ConfigField),
        accepted("a base model without a count", with("general.base_model.0.name", Some(text("x")))),
        accepted("keys of a whole that is no part", with("split.no", Some(u32(0))).u32("split.tensors.count", 1)),
        refused("the number of another part", with("split.no", Some(u32(5))), GgufSplit),
        refused("tensors of other parts", with("split.tensors.count", Some(u32(9))), GgufSplit),
    ];
    for key in [
        "general.name",
        "general.base_model.0.name",
        "general.base_model.0.repo_url",
        "ptplus.command",
        "ptplus.tool_version",
    ] {
        cases.push(refused(format!("{key} as number"), with(key, Some(u32(5))), GgufKey));
    }
    cases
}

/// Parts that an adapter has in all of its layers or in none, and a normaliser that divides by 0.
pub fn cases() -> Vec<Case> {
    use Code::*;
    const NAMES: [&str; 2] = ["blk.0.attn_prefix_normalizer.weight", "blk.1.attn_prefix_normalizer.weight"];
    let both = |parts: &[(&str, &[u64])]| {
        let mut keys = right();
        keys.retain(|(k, _)| *k != "layers");
        keys.push(("layers", layers(&[0, 1])));
        let memories: [(&str, &[u64]); 2] = [(MEMORY, &[4, 4, 2]), ("blk.1.attn_prefix_memory.weight", &[4, 4, 2])];
        file(&keys, &[&memories, parts].concat())
    };
    let normalised = |values: [f32; 8]| file(&right(), &[(MEMORY, &[4, 4, 2])]).f32s(NAMES[0], &[4, 2], &values);
    vec![
        accepted("normalisers in both layers", both(&[(NAMES[0], &[4, 2]), (NAMES[1], &[4, 2])])),
        refused("a normaliser in the first layer alone", both(&[(NAMES[0], &[4, 2])]), AdapterMissing),
        refused("a normaliser in the last layer alone", both(&[(NAMES[1], &[4, 2])]), AdapterMissing),
        refused(
            "a feature map in one layer alone",
            both(&[("blk.1.attn_prefix_feature.weight", &[4, 4, 2])]),
            AdapterMissing,
        ),
        refused(
            "a bias in one layer alone",
            both(&[
                ("blk.0.attn_prefix_feature.weight", &[4, 4, 2]),
                ("blk.1.attn_prefix_feature.weight", &[4, 4, 2]),
                ("blk.0.attn_prefix_feature.bias", &[4, 2]),
            ]),
            AdapterMissing,
        ),
        accepted("a normaliser with zeros", normalised([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])),
        refused("a normaliser of zeros", normalised([0.0; 8]), DenominatorZero),
        refused(
            "a normaliser with a head of zeros",
            normalised([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.0, 0.0]),
            DenominatorZero,
        ),
    ]
}
