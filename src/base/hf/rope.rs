//! RoPE in `config.json`.

use super::positions;
use crate::base::config::{Row, check_rotary_dim};
use crate::base::fields::{Fields, Stated, describe};
use crate::base::rope::{Rope, RopeScaling, Yarn};
use crate::error::Result;

/// What only a scaled RoPE has.
const OF_SCALING: [&str; 11] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
];

/// transformers 4 has `rope_theta` beside `rope_scaling`, transformers 5 both in `rope_parameters`. A file may have all of
/// them; 4 knows nothing of the latter and 5 prefers the former, so they must say the same.
/// `default` is the base of the frequencies where nothing states one.
pub(in crate::base) fn parse(fields: &Fields, default: f64, rotary_dim: usize) -> Result<Rope> {
    let outer_theta = theta(fields)?;
    let stated = |name| -> Result<Option<Rope>> {
        let parameters = fields.object(name)?.value().filter(|f| !f.is_empty());
        parameters.map(|p| of_parameters(fields, &p, outer_theta, default, rotary_dim)).transpose()
    };
    match (stated("rope_scaling")?, stated("rope_parameters")?) {
        (Some(a), Some(b)) if a != b => {
            Err(fields.invalid("rope_parameters", format!("expected {a}, as rope_scaling says, found {b}")))
        }
        (Some(rope), _) | (None, Some(rope)) => Ok(rope),
        (None, None) => Ok(Rope::plain(outer_theta.unwrap_or(default))),
    }
}

fn theta(fields: &Fields) -> Result<Option<f64>> {
    match fields.get("rope_theta") {
        Stated::Absent => Ok(None),
        _ => fields.positive("rope_theta").map(Some),
    }
}

fn of_parameters(
    fields: &Fields,
    p: &Fields,
    outer_theta: Option<f64>,
    default: f64,
    rotary_dim: usize,
) -> Result<Rope> {
    if let Some(name) = p.nested() {
        return Err(p.unsupported(name, "expected one set of RoPE parameters for all layers, found one per kind"));
    }
    let theta = match (theta(p)?, outer_theta) {
        (Some(a), Some(b)) if a != b => {
            return Err(p.invalid("rope_theta", format!("found {a} here and {b} at the top level")));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => default,
    };
    let (scaling, attention_factor) = match kind(p)? {
        "default" => (RopeScaling::None, 1.0),
        "linear" => (RopeScaling::Linear { factor: p.positive("factor")? }, 1.0),
        "dynamic" => (dynamic(fields, p, rotary_dim)?, 1.0),
        "yarn" => yarn(fields, p, theta)?,
        "longrope" => longrope(fields, p, rotary_dim)?,
        "llama3" => (llama3(fields, p)?, 1.0),
        other => {
            let message = format!("expected default, linear, dynamic, yarn, longrope or llama3, found {other:?}");
            return Err(p.unsupported("rope_type", message));
        }
    };
    Ok(Rope { theta, scaling, attention_factor })
}

/// The kind of scaling. Old files say `type`, and transformers adds `rope_type` when it saves one of those.
fn kind<'a>(p: &Fields<'a>) -> Result<&'a str> {
    // Phi-3's first files call it so, where they have its factors.
    let current = |stated| match stated {
        Stated::Is("su") if p.get("short_factor") != Stated::Absent => Stated::Is("longrope"),
        other => other,
    };
    match (current(p.text("rope_type")?), current(p.text("type")?)) {
        (Stated::Is(new), Stated::Is(old)) if new != old => {
            Err(p.invalid("type", format!("expected {new:?}, as rope_type says, found {old:?}")))
        }
        (Stated::Is(kind), _) | (Stated::Absent, Stated::Is(kind)) => Ok(kind),
        // transformers 4 stops here and 5 leaves RoPE unscaled.
        (Stated::Absent, Stated::Absent) => match OF_SCALING.iter().find(|name| p.get(name) != Stated::Absent) {
            Some(name) => {
                Err(p.invalid("rope_type", format!("expected the kind of scaling that {name} is for, found none")))
            }
            None => Ok("default"),
        },
        _ => Err(p.invalid("rope_type", "expected a string, found null")),
    }
}

fn llama3(fields: &Fields, p: &Fields) -> Result<RopeScaling> {
    let low_freq_factor = p.positive("low_freq_factor")?;
    let high_freq_factor = p.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let message = format!("expected more than low_freq_factor {low_freq_factor}, found {high_freq_factor}");
        return Err(p.invalid("high_freq_factor", message));
    }
    let original_max_positions = original_max_positions(fields, p)?;
    Ok(RopeScaling::Llama3 { factor: p.positive("factor")?, low_freq_factor, high_freq_factor, original_max_positions })
}

/// Context length before scaling.
fn original_max_positions(fields: &Fields, p: &Fields) -> Result<usize> {
    let name = "original_max_position_embeddings";
    match (positions(fields, name)?.value(), positions(p, name)?.value()) {
        (Some(a), Some(b)) if a != b => {
            // Releases of transformers differ in which one they take.
            Err(p.invalid(name, format!("expected {a}, as outside of the RoPE parameters, found {b}")))
        }
        (Some(n), _) | (None, Some(n)) => Ok(n),
        (None, None) => max_positions(fields)?
            .ok_or_else(|| p.invalid(name, "expected a whole number, found neither this nor max_position_embeddings")),
    }
}

fn max_positions(fields: &Fields) -> Result<Option<usize>> {
    Ok(positions(fields, "max_position_embeddings")?.value())
}

/// transformers' own limit on sequences is where this one begins.
fn dynamic(fields: &Fields, p: &Fields, rotary_dim: usize) -> Result<RopeScaling> {
    let factor = factor(p, p.positive("factor")?)?;
    if rotary_dim <= 2 {
        // The exponent of the base divides by the difference.
        return Err(p.invalid(
            "rope_type",
            format!("expected more than 2 rotated components for dynamic scaling, found {rotary_dim}"),
        ));
    }
    let max_positions = max_positions(fields)?.ok_or_else(|| {
        fields.invalid("max_position_embeddings", "expected a whole number for dynamic scaling, found none")
    })?;
    Ok(RopeScaling::Dynamic { factor, max_positions })
}

/// The scaling, and the factor on cosines and sines.
fn yarn(fields: &Fields, p: &Fields, theta: f64) -> Result<(RopeScaling, f64)> {
    // The ramp divides by the logarithm.
    if theta as f32 <= 1.0 {
        return Err(p.invalid("rope_theta", format!("expected more than 1 for yarn, found {theta}")));
    }
    let original_max_positions = original_max_positions(fields, p)?;
    let factor = match p.get("factor") {
        Stated::Null => ratio(fields, p, original_max_positions)?,
        _ => p.positive("factor")?,
    };
    let factor = self::factor(p, factor)?;
    let mscale = |name| -> Result<Option<f64>> { Ok(p.number(name)?.value().filter(|x| *x != 0.0)) };
    let by_factor = match (mscale("mscale")?, mscale("mscale_all_dim")?) {
        (Some(a), Some(b)) => Yarn::attention_factor(factor, a) / Yarn::attention_factor(factor, b),
        _ => Yarn::attention_factor(factor, 1.0),
    };
    // 0 and null stand for the default, as in Python's `or`.
    let beta = |name, default| match p.number(name)?.value().filter(|x| *x != 0.0) {
        Some(_) => p.positive(name),
        None => Ok(default),
    };
    let yarn = Yarn {
        factor,
        original_max_positions,
        beta_fast: beta("beta_fast", Yarn::BETAS.0)?,
        beta_slow: beta("beta_slow", Yarn::BETAS.1)?,
        truncate: p.flag("truncate", true)?,
    };
    Ok((RopeScaling::Yarn(yarn), attention_factor(p, by_factor)?))
}

/// The scaling, and the factor on cosines and sines.
fn longrope(fields: &Fields, p: &Fields, rotary_dim: usize) -> Result<(RopeScaling, f64)> {
    let original_max_positions = original_max_positions(fields, p)?;
    let factor = match p.get("factor") {
        Stated::Is(_) => p.positive("factor")?,
        Stated::Absent | Stated::Null => ratio(fields, p, original_max_positions)?,
    };
    let context = original_max_positions as f64;
    let by_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / context.ln()).sqrt() };
    let (short, long) = (divisors(p, "short_factor", rotary_dim)?, divisors(p, "long_factor", rotary_dim)?);
    let scaling = RopeScaling::LongRope { short, long, original_max_positions };
    Ok((scaling, attention_factor(p, by_factor)?))
}

/// How much longer the context is than before scaling.
fn ratio(fields: &Fields, p: &Fields, original_max_positions: usize) -> Result<f64> {
    match max_positions(fields)? {
        Some(n) => Ok(n as f64 / original_max_positions as f64),
        None => Err(p.invalid("factor", "expected a number, found neither this nor max_position_embeddings")),
    }
}

/// A factor within reason: F32 has seven digits for what it does to the angles.
fn factor(p: &Fields, factor: f64) -> Result<f64> {
    match factor {
        1e-3..=1e6 => Ok(factor),
        _ => Err(p.invalid("factor", format!("expected a number from 0.001 to 1000000, found {factor}"))),
    }
}

fn attention_factor(p: &Fields, default: f64) -> Result<f64> {
    match p.number("attention_factor")?.value() {
        Some(_) => p.positive("attention_factor"),
        None if default > 0.0 && (default as f32).is_normal() => Ok(default),
        None => Err(p.invalid(
            "attention_factor",
            format!("expected a number above 0, found none, and {default} follows from the other parameters"),
        )),
    }
}

/// One divisor for each pair of components.
fn divisors(p: &Fields, name: &str, rotary_dim: usize) -> Result<Vec<f32>> {
    let items = p.list(name)?.value().ok_or_else(|| p.invalid(name, "expected a list of numbers, found none"))?;
    if items.len() != rotary_dim / 2 {
        return Err(p.invalid(name, format!("expected {} numbers, found {}", rotary_dim / 2, items.len())));
    }
    items
        .iter()
        .map(|v| match v.as_f64() {
            Some(x) if x > 0.0 && (x as f32).is_normal() => Ok(x as f32),
            _ => Err(p.invalid(name, format!("expected numbers above 0, found {}", describe(v)))),
        })
        .collect()
}

/// How many components of a head are rotated: as the RoPE parameters say, or the field beside them. Both say the same.
pub(in crate::base) fn rotary_dim(fields: &Fields, row: &Row, head_dim: usize) -> Result<usize> {
    let name = "partial_rotary_factor";
    let mut stated: Option<(Fields, f64)> = None;
    let nested = ["rope_scaling", "rope_parameters"].map(|parameters| fields.object(parameters).map(Stated::value));
    for place in [Ok(Some(fields.clone()))].into_iter().chain(nested) {
        let Some(place) = place? else { continue };
        match (place.number(name)?.value(), &stated) {
            (Some(found), Some((_, factor))) if found != *factor => {
                return Err(place.invalid(name, format!("expected one factor, found {factor} and {found}")));
            }
            (Some(found), None) => stated = Some((place, found)),
            _ => {}
        }
    }
    let Some((place, factor)) = stated.filter(|(_, factor)| *factor != 1.0) else { return Ok(head_dim) };
    if !row.rotates_in_part() {
        return Err(place.unsupported(name, format!("expected rotation of the whole head, found {factor}")));
    }
    let dim = head_dim as f64 * factor;
    let dim = if (0.0..=head_dim as f64).contains(&dim) { dim as usize } else { 0 };
    check_rotary_dim(dim, head_dim).map_err(|message| place.invalid(name, message))
}
