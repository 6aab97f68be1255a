//! Keys and tensor names of a Prefix-Tuning+ adapter in GGUF: one table for reading and writing.

use super::{PARTS, PartSpec, find_field};
use crate::adapter::gguf_names::{BASE_FINGERPRINT, SOURCE_CONFIG};
use crate::adapter::{Kind, Slot};
use crate::error::Error;
use crate::finding::Finding;

/// The layout's version, in `adapter.prefix_tuning_plus.version`.
pub const VERSION: u32 = 1;

/// `adapter.prefix_tuning_plus.{field}`
pub fn key(field: &str) -> String {
    format!("adapter.{}.{field}", Kind::Plus)
}

/// `blk.{layer}.attn_prefix_memory.weight` and its siblings.
pub fn tensor_name(slot: Slot) -> String {
    format!("blk.{}.{}", slot.in_block(), PartSpec::of(slot.part).gguf)
}

/// The slot whose [`tensor_name`] this is.
pub fn parse_tensor_name(name: &str) -> Option<Slot> {
    let (number, suffix) = name.strip_prefix("blk.")?.split_once('.')?;
    let spec = PARTS.iter().find(|spec| spec.gguf == suffix)?;
    let slot = Slot::attention(number.parse().ok()?, spec.part);
    (tensor_name(slot) == name).then_some(slot)
}

/// What `adapter_config.json` and the canonical layout call something, by the name that it has in a GGUF file.
fn name_in_gguf(canonical: &str) -> Option<String> {
    const RECORDED: [&str; 6] = [
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "base_model_type",
        "ptplus_widened_from",
    ];
    if let Some(field) = find_field(canonical) {
        return Some(key(field.gguf));
    }
    if canonical == "layers_to_transform" {
        return Some(key("layers"));
    }
    if canonical == "ptplus_base_fingerprint" {
        return Some(BASE_FINGERPRINT.to_owned());
    }
    if RECORDED.contains(&canonical) {
        return Some(format!("{SOURCE_CONFIG}: {canonical}"));
    }
    if let Some(slot) = Slot::parse_canonical_name(canonical) {
        return Some(slot.gguf_name());
    }
    let layer = canonical.strip_prefix("layers.")?;
    layer.bytes().all(|b| b.is_ascii_digit()).then(|| format!("blk.{layer}"))
}

/// An error about a GGUF adapter, naming what stands in that file.
pub(crate) fn in_gguf_terms(e: Error) -> Error {
    match e.field_name().and_then(name_in_gguf) {
        Some(name) => Error::new(e.code(), e.message()).field(name),
        None => e,
    }
}

/// Names the place of a finding as [`in_gguf_terms`] does.
pub(crate) fn place_in_gguf(finding: &mut Finding) {
    if let Some(name) = name_in_gguf(&finding.place) {
        finding.place = name;
    }
}
