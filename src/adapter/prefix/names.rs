//! Names of virtual tokens' tensors.

use super::super::{Part, Site, Slot};
use super::PROMPT_EMBEDDINGS;

/// `layers.0.prefix_keys` in messages, though PEFT's file has all of them in one tensor.
pub(in super::super) fn canonical_name(slot: Slot) -> String {
    match slot.site {
        Site::Input => PROMPT_EMBEDDINGS.to_owned(),
        _ => format!("layers.{}.{}", slot.in_block(), slot.part),
    }
}

/// The slot whose [`canonical_name`] this is.
pub(in super::super) fn parse_canonical_name(name: &str) -> Option<Slot> {
    if name == PROMPT_EMBEDDINGS {
        return Some(Slot::virtual_tokens());
    }
    let (number, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let part = [Part::PrefixKeys, Part::PrefixValues].into_iter().find(|p| p.name() == part)?;
    let slot = Slot::attention(number.parse().ok()?, part);
    (canonical_name(slot) == name).then_some(slot)
}

/// The tensor's name in GGUF: `blk.0.attn_prefix_key.weight`, `virtual_token_embd.weight`.
pub fn gguf_name(slot: Slot) -> String {
    let word = match slot.part {
        Part::PrefixKeys => "key",
        Part::PrefixValues => "value",
        _ => return "virtual_token_embd.weight".to_owned(),
    };
    format!("blk.{}.attn_prefix_{word}.weight", slot.in_block())
}

/// The slot whose [`gguf_name`] this is.
pub fn parse_gguf_name(name: &str) -> Option<Slot> {
    let slot = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        None => Slot::virtual_tokens(),
        Some((number, word)) => {
            let part = match word {
                "attn_prefix_key.weight" => Part::PrefixKeys,
                "attn_prefix_value.weight" => Part::PrefixValues,
                _ => return None,
            };
            Slot::attention(number.parse().ok()?, part)
        }
    };
    (gguf_name(slot) == name).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let layers = [0, 7, 123].map(|i| [Part::PrefixKeys, Part::PrefixValues].map(|p| Slot::attention(i, p)));
        for slot in layers.into_iter().flatten().chain([Slot::virtual_tokens()]) {
            assert_eq!(parse_canonical_name(&canonical_name(slot)), Some(slot));
            assert_eq!(parse_gguf_name(&gguf_name(slot)), Some(slot));
        }
        for name in ["blk.00.attn_prefix_key.weight", "blk.0.attn_prefix_memory.weight", "layers.1.memory", "blk.x", ""]
        {
            assert_eq!((parse_canonical_name(name), parse_gguf_name(name)), (None, None), "{name}");
        }
    }
}
