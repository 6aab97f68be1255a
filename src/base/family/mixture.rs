//! Mixtures of experts, as several families state them.

use serde_json::Value as Json;

use crate::base::config::{BaseConfig, Experts, FeedForward};
use crate::base::fields::{Fields, describe};
use crate::base::keys::Keys;
use crate::error::{Code, Error, Result};
use crate::format::gguf::Value;

/// The keys of GGUF that say it.
pub(super) const KEYS: &[&str] =
    &["expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"];

/// Four times the most that llama.cpp takes.
const EXPERTS: usize = 4_096;
/// Of all layers together: eight times the largest published model. Every one is three weights of the table.
const ALL_EXPERTS: usize = 1 << 17;
/// As the dense network's.
const INTERMEDIATE: usize = 1 << 20;

/// Of how many experts `config.json` speaks, under the first of these names that it has.
pub(super) fn count(fields: &Fields, names: &[&'static str], absent: usize) -> Result<(&'static str, usize)> {
    let mut found: Option<(&'static str, usize)> = None;
    for &name in names {
        let Some(n) = fields.count(name)?.value() else { continue };
        match found {
            Some((other, m)) if m != n => {
                return Err(fields.invalid(name, format!("expected {m}, as {other} says, found {n}")));
            }
            Some(_) => {}
            None => found = Some((name, n)),
        }
    }
    Ok(found.unwrap_or((names[0], absent)))
}

/// Takes a mixture over, which these layers have.
pub(super) fn put(
    fields: &Fields,
    config: &mut BaseConfig,
    name: &'static str,
    experts: Experts,
    has_experts: impl Fn(usize) -> bool,
) -> Result<()> {
    let layers = config.layers.iter_mut().enumerate().filter(|(i, _)| has_experts(*i));
    layers.for_each(|(_, layer)| layer.feed_forward = FeedForward::Experts);
    let names = [name, "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"];
    check(config, &experts, names).map_err(|(name, message)| fields.invalid(name, message))?;
    config.experts = config.layers.iter().any(|l| l.feed_forward == FeedForward::Experts).then_some(experts);
    Ok(())
}

/// Which layers of the Qwens have experts: every so many-th, but for those that are named.
pub(super) fn sparse_layers(fields: &Fields, n_experts: usize) -> Result<impl Fn(usize) -> bool> {
    let step = fields.count_or("decoder_sparse_step", 1)?;
    if step == 0 {
        return Err(fields.invalid("decoder_sparse_step", "expected at least 1, found 0"));
    }
    let name = "mlp_only_layers";
    let entry = |v: &Json| {
        let index = v.as_u64().and_then(|n| usize::try_from(n).ok());
        index.ok_or_else(|| fields.invalid(name, format!("expected numbers of layers, found {}", describe(v))))
    };
    let dense: Vec<usize> = fields.list(name)?.value().unwrap_or_default().iter().map(entry).collect::<Result<_>>()?;
    Ok(move |i: usize| n_experts > 0 && (i + 1).is_multiple_of(step) && !dense.contains(&i))
}

/// What is wrong with the sizes: the name of one, and why.
fn check(c: &BaseConfig, e: &Experts, names: [&'static str; 4]) -> Result<(), (&'static str, String)> {
    let n_layers = c.layers.iter().filter(|l| l.feed_forward == FeedForward::Experts).count();
    if n_layers == 0 {
        return Ok(());
    }
    let most = EXPERTS.min(ALL_EXPERTS / n_layers);
    for (name, found, limit) in [
        (names[0], e.n_experts, most),
        (names[1], e.n_per_token, e.n_experts),
        (names[2], e.intermediate_size, INTERMEDIATE),
        (names[3], e.shared_intermediate_size.unwrap_or(1), INTERMEDIATE),
    ] {
        if found == 0 || found > limit {
            return Err((name, format!("expected a number from 1 to {limit}, found {found}")));
        }
    }
    Ok(())
}

/// What a GGUF file says of experts, which all layers have then. `like` has what its architecture takes for granted, and the
/// lengths where the keys of them are absent, given how many experts a position gets.
pub(super) fn read_gguf(keys: &Keys, config: &mut BaseConfig, like: impl Fn(usize) -> Experts) -> Result<()> {
    let count = |name: &str| keys.count_of_every_layer(name, config.n_layers);
    let stated = |name: &str| -> Result<Option<usize>> { Ok(count(name)?.filter(|n| *n > 0)) };
    let n_per_token = count(KEYS[1])?.unwrap_or(0);
    let like = like(n_per_token.max(1));
    let experts = Experts {
        n_experts: keys.count(KEYS[0])?.unwrap_or(0),
        n_per_token,
        intermediate_size: stated(KEYS[2])?.unwrap_or(like.intermediate_size),
        shared_intermediate_size: match like.shared_intermediate_size {
            Some(absent) => Some(stated(KEYS[3])?.unwrap_or(absent)),
            None => None,
        },
        ..like
    };
    config.layers.iter_mut().for_each(|layer| layer.feed_forward = FeedForward::Experts);
    check(config, &experts, [KEYS[0], KEYS[1], KEYS[2], KEYS[3]])
        .map_err(|(name, message)| keys.invalid(name, message))?;
    config.experts = Some(experts);
    Ok(())
}

/// A model without experts states nothing of any. llama.cpp ends the program for one that does.
pub(super) fn expect_none(keys: &Keys) -> Result<()> {
    match keys.count(KEYS[1])?.filter(|&n| n > 0) {
        Some(n) => Err(keys.unsupported(KEYS[1], format!("expected 0, found {n}"))),
        None => Ok(()),
    }
}

/// Writes the keys of a mixture that llama.cpp computes: every layer has it, and weights are divided by their sum or not, as
/// it takes for granted for the architecture.
///
/// # Errors
///
/// [`Code::ConfigUnsupported`] for another.
pub(super) fn write_gguf(config: &BaseConfig, renormalises: bool, put: &mut dyn FnMut(&str, Value)) -> Result<()> {
    let architecture = config.family.gguf_architecture();
    let refuse = |field: &str, message: String| Err(Error::new(Code::ConfigUnsupported, message).field(field));
    let is_everywhere = config.layers.iter().all(|l| l.feed_forward == FeedForward::Experts);
    let Some(experts) = config.experts.filter(|_| is_everywhere) else {
        let message =
            format!("expected experts in every layer, as llama.cpp has them for {architecture}, found layers without");
        return refuse("mlp_only_layers", message);
    };
    if experts.renormalise != renormalises {
        let message = format!(
            "expected {renormalises}, which llama.cpp takes for granted for {architecture}, found {}",
            experts.renormalise
        );
        return refuse("norm_topk_prob", message);
    }
    let mut put = |key: &str, n: usize| put(key, Value::U32(u32::try_from(n).expect("sizes are limited")));
    put(KEYS[0], experts.n_experts);
    put(KEYS[1], experts.n_per_token);
    put(KEYS[2], experts.intermediate_size);
    if let Some(n) = experts.shared_intermediate_size {
        put(KEYS[3], n);
    }
    Ok(())
}
