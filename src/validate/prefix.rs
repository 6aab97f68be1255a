//! Virtual tokens against themselves and their base.

use super::check_type;
use crate::adapter::prefix::{Prefix, VirtualTokens};
use crate::base::{BaseConfig, BaseModel};
use crate::error::Code;
use crate::finding::Findings;

/// Most virtual tokens: each takes a position of the context, and PEFT's examples have 8 to 100.
const MAX_TOKENS: usize = 1 << 16;

pub(super) fn against_itself(prefix: &Prefix, findings: &mut Findings) {
    let mut first: Option<(String, Vec<usize>)> = None;
    let expected_axes = match prefix.tokens {
        VirtualTokens::KeysValues(_) => 3,
        VirtualTokens::Embeddings(_) => 2,
    };
    for (slot, t) in prefix.tensors() {
        let name = slot.canonical_name();
        check_type(&name, t, findings);
        if t.shape().len() != expected_axes || t.shape().contains(&0) {
            let expected = format!("{expected_axes} dimensions above 0");
            findings.add(Code::AdapterShape, &name, expected, format!("{:?}", t.shape()));
        }
        match &first {
            None => first = Some((name, t.shape().to_vec())),
            Some((other, shape)) if t.shape() != shape => {
                let (expected, found) = (format!("{shape:?}, as {other} has"), format!("{:?}", t.shape()));
                findings.add(Code::AdapterShape, name, expected, found);
            }
            Some(_) => {}
        }
    }
    if prefix.n_tokens() > MAX_TOKENS {
        let expected = format!("at most {MAX_TOKENS} virtual tokens");
        findings.add(Code::AdapterShape, "num_virtual_tokens", expected, prefix.n_tokens());
    }
}

pub(super) fn against_base(prefix: &Prefix, base: &BaseModel, findings: &mut Findings) {
    let c = &base.config;
    let mut differ = |place: &str, expected: usize, found: usize, why: &str| {
        if expected != found {
            let expected = format!("{expected}, as the base has");
            findings.add(Code::AdapterMismatch, place, expected, format!("{found}{why}"));
        }
    };
    match &prefix.tokens {
        VirtualTokens::KeysValues(layers) => {
            let Some([n_heads, _, head_dim]) = layers.values().next().map(|l| l.keys.shape()) else { return };
            differ("num_layers", c.n_layers, layers.len(), "");
            differ("num_attention_heads", c.n_kv_heads, *n_heads, counted_before_0_12(c, *n_heads));
            differ("head_dim", c.head_dim, *head_dim, reckoned_before_0_18(c, *head_dim));
            if c.value_head_dim != c.head_dim {
                let expected = "a base whose values are as long as its keys, as PEFT takes them to be";
                findings.add(Code::ConfigUnsupported, "head_dim", expected, "another");
            }
        }
        VirtualTokens::Embeddings(t) => {
            let found = t.shape().get(1).copied().unwrap_or(0);
            differ("token_dim", c.hidden_size, found, "");
        }
    }
}

/// PEFT before 0.12 took query heads for those of keys, and no model with fewer of these ran with what it made
/// (huggingface/peft#1901).
fn counted_before_0_12(c: &BaseConfig, n_heads: usize) -> &'static str {
    match n_heads == c.n_heads {
        true => ", the number of query heads, which PEFT before 0.12 took for that of keys",
        false => "",
    }
}

/// PEFT before 0.18 divided the hidden size by the heads where a configuration has a `head_dim` (huggingface/peft#2881).
fn reckoned_before_0_18(c: &BaseConfig, head_dim: usize) -> &'static str {
    match c.n_heads > 0 && head_dim == c.hidden_size / c.n_heads {
        true => " = hidden_size / num_attention_heads, which PEFT before 0.18 took for it",
        false => "",
    }
}
