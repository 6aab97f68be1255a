//! Virtual tokens to PEFT's folder and to GGUF.

use serde_json::{Map, Value as Json};

use super::recorded::{gguf_metadata, own_metadata, without_gguf_keys, without_own_keys};
use super::types::{Chooser, Format, TypeRules};
use super::{OutputTensor, Plan};
use crate::adapter::prefix::gguf_keys::{VERSION, key};
use crate::adapter::prefix::{PROMPT_EMBEDDINGS, Prefix, VirtualTokens, to_prompt_embeddings};
use crate::adapter::{Part, Slot};
use crate::base::RowOrder;
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Value};
use crate::format::safetensors;
use crate::transform::row_order;
use crate::validate::Validated;

/// Plans a file for a base of this GGUF architecture: keys in the order in which it keeps the components of a head.
///
/// # Errors
///
/// [`Code::BaseArchitecture`]; [`Code::GgufWrite`] for what the format cannot hold; those of the rules.
pub(super) fn plan_gguf(source: &Validated, prefix: &Prefix, architecture: &str, rules: &TypeRules) -> Result<Plan> {
    let order = RowOrder::of_gguf_architecture(architecture)
        .ok_or_else(|| crate::import::unlisted_architecture(architecture))?;
    let mut types = Chooser::new(source, rules, Format::Gguf)?;
    let (mut tensors, mut specs) = (Vec::new(), Vec::new());
    for (slot, t) in prefix.tensors() {
        let in_file = match (slot.part, order) {
            (Part::PrefixKeys, RowOrder::Norm) if !t.shape()[2].is_multiple_of(2) => {
                let message = format!("expected an even head_dim, as row order {order} needs");
                return Err(Error::new(Code::GgufWrite, message).field(slot.canonical_name()));
            }
            (Part::PrefixKeys, RowOrder::Norm) => row_order::components_to_norm(t.clone(), 2),
            _ => t.clone(),
        };
        let name = slot.gguf_name();
        let choice = types.choose(slot, &name, &in_file)?;
        let output = OutputTensor::new(slot.canonical_name(), in_file, t.clone(), choice);
        specs.push(output.spec(name));
        tensors.push(output);
    }
    types.finish()?;
    let metadata =
        gguf_metadata(source, architecture, &tensors, own_keys(prefix, order)?, without_gguf_keys(&prefix.config))?;
    Ok(Plan { file: gguf::plan(&metadata, &specs)?, tensors })
}

/// The kind's own keys.
fn own_keys(prefix: &Prefix, order: RowOrder) -> Result<Vec<(String, Value)>> {
    let mut sizes = vec![("token_count", prefix.n_tokens())];
    match &prefix.tokens {
        VirtualTokens::KeysValues(layers) => {
            let shape = layers.values().next().map_or(&[0, 0, 0][..], |l| l.keys.shape());
            sizes.extend([("block_count", layers.len()), ("head_count_kv", shape[0]), ("key_length", shape[2])]);
        }
        VirtualTokens::Embeddings(t) => sizes.push(("embedding_length", t.shape()[1])),
    }
    let mut own = vec![(key("version"), Value::U32(VERSION)), (key("method"), prefix.method.name().into())];
    for (field, n) in sizes {
        let too_large =
            || Error::new(Code::GgufWrite, format!("expected at most {}, found {n}", u32::MAX)).field(key(field));
        own.push((key(field), Value::U32(u32::try_from(n).map_err(|_| too_large())?)));
    }
    if let VirtualTokens::KeysValues(_) = prefix.tokens {
        own.push((key("key_order"), order.name().into()));
    }
    Ok(own)
}

/// Plans `adapter_model.safetensors` with the one tensor that PEFT reads.
///
/// # Errors
///
/// Those of the rules; [`Code::Usage`] for block types.
pub(super) fn plan_peft(source: &Validated, prefix: &Prefix, rules: &TypeRules) -> Result<Plan> {
    let mut types = Chooser::new(source, rules, Format::Safetensors)?;
    let (slot, tensor) = match &prefix.tokens {
        VirtualTokens::KeysValues(layers) => (Slot::attention(0, Part::PrefixKeys), to_prompt_embeddings(layers)?),
        VirtualTokens::Embeddings(t) => (Slot::virtual_tokens(), t.clone()),
    };
    let choice = types.choose(slot, PROMPT_EMBEDDINGS, &tensor)?;
    types.finish()?;
    let tensors = vec![OutputTensor::new(PROMPT_EMBEDDINGS.to_owned(), tensor.clone(), tensor, choice)];
    let metadata = own_metadata(source, &tensors);
    Ok(Plan { file: safetensors::plan(&metadata, &[tensors[0].spec(PROMPT_EMBEDDINGS.to_owned())])?, tensors })
}

/// `adapter_config.json` of a plan by [`plan_peft`].
pub(super) fn config(prefix: &Prefix) -> Map<String, Json> {
    without_own_keys(prefix.config.clone())
}
