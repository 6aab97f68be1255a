//! The model families: one file each, with a row of data and what is odd about it.

use super::config::{BaseConfig, Family};
use super::fields::Fields;
use super::hf::rope;
use super::keys::Keys;
use super::rope::Rope;
use super::row_order::RowOrder;
use crate::error::Result;
use crate::format::gguf::Value;

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod layers;
mod llama;
mod mistral;
mod mixtral;
mod mixture;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

mod smollm3;

/// GGUF architectures beyond those of the families whose row order is known: an adapter can be converted for them. One by one: the
/// RoPE type alone does not decide it (cohere and glm4 are NORM natively, so nothing is reordered).
const OTHER_ARCHITECTURES: &[(&str, RowOrder)] = &[("gemma", RowOrder::Neox)];

/// What other families need that is not computed here, by `model_type` and GGUF architecture.
const MISSING: &[(&[&str], &str)] = &[
    (&["gpt_oss", "gpt-oss"], "attention sinks, and experts in MXFP4 with biases and a clamped activation"),
    (
        &["llama4", "llama4_text"],
        "attention within chunks, queries scaled by position, and a router before the experts",
    ),
    (
        &["qwen3_5", "qwen3_5_text", "qwen35", "qwen3_5_moe", "qwen35moe", "qwen3_next", "qwen3next"],
        "layers of linear attention (gated delta net) and gated attention",
    ),
    (&["gemma"], "a row for it: its norms and embeddings are those of gemma2"),
    (&["gemma3n", "gemma3n_text"], "several residual streams and embeddings per layer"),
    (&["gemma4", "gemma4_text"], "embeddings per layer and heads of several lengths"),
    (&["olmo3"], "windows and RoPE by layer beside the norms of olmo2"),
    (&["cohere", "cohere2", "command-r"], "attention and feed-forward network side by side, with layer norms"),
    (&["deepseek_v2", "deepseek_v3", "deepseek2"], "latent attention"),
    (&["glm4", "glm4_moe", "glm4moe"], "rotation of neighbouring components in Hugging Face's order"),
    (&["mamba", "mamba2", "falcon_mamba"], "state space layers"),
];

/// What is missing for this `model_type` or GGUF architecture, as a hint, where that is known.
pub(super) fn missing(name: &str) -> Option<String> {
    let (_, what) = MISSING.iter().find(|(names, _)| names.contains(&name))?;
    Some(format!("missing for {name}: {what}"))
}

impl Family {
    /// Every family.
    pub const ALL: &'static [Family] = &[
        Family(&llama::ROW),
        Family(&mistral::ROW),
        Family(&mixtral::ROW),
        Family(&phi3::ROW),
        Family(&qwen2::ROW),
        Family(&qwen2_moe::ROW),
        Family(&qwen3::ROW),
        Family(&qwen3_moe::ROW),
        Family(&gemma2::ROW),
        Family(&gemma3::ROW),
        Family(&olmo2::ROW),
        Family(&granite::ROW),
        Family(&smollm3::ROW),
    ];

    /// The family with this `model_type`.
    pub fn from_model_type(name: &str) -> Option<Family> {
        Family::ALL.iter().copied().find(|f| f.0.model_types.contains(&name))
    }

    /// The family with this `general.architecture`; a Mistral in GGUF is a Llama with a window.
    pub fn from_gguf_architecture(name: &str) -> Option<Family> {
        Family::ALL.iter().copied().find(|f| f.gguf_architecture() == name)
    }
}

impl RowOrder {
    /// The order that GGUF files of this architecture keep q in; `None` for an architecture that is not listed,
    /// which callers refuse.
    pub fn of_gguf_architecture(architecture: &str) -> Option<RowOrder> {
        let other = || OTHER_ARCHITECTURES.iter().find(|(a, _)| *a == architecture).map(|(_, order)| *order);
        Family::from_gguf_architecture(architecture).map(Family::row_order).or_else(other)
    }

    /// The listed architectures, each once, for messages.
    pub fn known_architectures() -> impl Iterator<Item = &'static str> {
        let mut known: Vec<&str> = Vec::new();
        let all = Family::ALL.iter().map(|f| f.gguf_architecture()).chain(OTHER_ARCHITECTURES.iter().map(|(a, _)| *a));
        for architecture in all {
            if !known.contains(&architecture) {
                known.push(architecture);
            }
        }
        known.into_iter()
    }
}

/// For families whose `config.json` says nothing beyond what is alike in all of them.
fn no_more_fields(_: &Fields, _: &mut BaseConfig) -> Result<()> {
    Ok(())
}

/// For families that rotate all layers alike.
fn one_rope(fields: &Fields, default_theta: f64, rotary_dim: usize) -> Result<Vec<Rope>> {
    Ok(vec![rope::parse(fields, default_theta, rotary_dim)?])
}

/// For families whose GGUF files have no keys of their own.
fn no_more_keys(_: &Keys, _: &mut BaseConfig) -> Result<()> {
    Ok(())
}

/// As [`no_more_keys`], in writing.
fn nothing_to_write(_: &BaseConfig, _: &mut dyn FnMut(&str, Value)) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_by_its_names_and_shares_an_architecture_only_with_its_likes() {
        for &f in Family::ALL {
            assert_eq!(RowOrder::of_gguf_architecture(f.gguf_architecture()), Some(f.row_order()), "{f}");
            for name in f.0.model_types {
                assert_eq!(Family::from_model_type(name), Some(f));
            }
            let by_architecture = Family::from_gguf_architecture(f.gguf_architecture());
            assert_eq!(by_architecture.map(Family::gguf_architecture), Some(f.gguf_architecture()));
            // Pairs are turned across the halves of a head; what is normed by components would have to follow.
            assert!(f.row_order() == RowOrder::Neox || f.0.query_key_norm.is_none(), "{f}");
        }
    }
}
