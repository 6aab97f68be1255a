//! RoPE in `config.json`.

use super::positions;
use crate::base::config::{Rope, RopeScaling};
use crate::base::fields::{Fields, Stated};
use crate::error::Result;

/// What only a scaled RoPE has.
const OF_SCALING: [&str; 9] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
];

/// transformers 4 has `rope_theta` beside `rope_scaling`, transformers 5 both in `rope_parameters`. A file may have all of
/// them; 4 knows nothing of the latter and 5 prefers the former, so they must say the same.
/// `default` is the base of the frequencies where nothing states one.
pub(in crate::base) fn parse(fields: &Fields, default: f64) -> Result<Rope> {
    let outer_theta = theta(fields)?;
    refuse_partial_rotation(fields)?;
    let stated = |name| -> Result<Option<Rope>> {
        let parameters = fields.object(name)?.value().filter(|f| !f.is_empty());
        parameters.map(|p| of_parameters(fields, &p, outer_theta, default)).transpose()
    };
    match (stated("rope_scaling")?, stated("rope_parameters")?) {
        (Some(a), Some(b)) if a != b => {
            Err(fields.invalid("rope_parameters", format!("expected {a}, as rope_scaling says, found {b}")))
        }
        (Some(rope), _) | (None, Some(rope)) => Ok(rope),
        (None, None) => Ok(Rope { theta: outer_theta.unwrap_or(default), scaling: RopeScaling::None }),
    }
}

fn theta(fields: &Fields) -> Result<Option<f64>> {
    match fields.get("rope_theta") {
        Stated::Absent => Ok(None),
        _ => fields.positive("rope_theta").map(Some),
    }
}

fn of_parameters(fields: &Fields, p: &Fields, outer_theta: Option<f64>, default: f64) -> Result<Rope> {
    if let Some(name) = p.nested() {
        return Err(p.unsupported(name, "expected one set of RoPE parameters for all layers, found one per kind"));
    }
    refuse_partial_rotation(p)?;
    let theta = match (theta(p)?, outer_theta) {
        (Some(a), Some(b)) if a != b => {
            return Err(p.invalid("rope_theta", format!("found {a} here and {b} at the top level")));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => default,
    };
    let kind = kind(p)?;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: p.positive("factor")? },
        "llama3" => llama3(fields, p)?,
        other => {
            let message = format!("expected default, linear or llama3, found {other:?}");
            return Err(p.unsupported("rope_type", message));
        }
    };
    Ok(Rope { theta, scaling })
}

/// The kind of scaling. Old files say `type`, and transformers adds `rope_type` when it saves one of those.
fn kind<'a>(p: &Fields<'a>) -> Result<&'a str> {
    match (p.text("rope_type")?, p.text("type")?) {
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
    let name = "original_max_position_embeddings";
    let original_max_positions = match (positions(fields, name)?.value(), positions(p, name)?.value()) {
        (Some(a), Some(b)) if a != b => {
            // Releases of transformers differ in which one they take.
            return Err(p.invalid(name, format!("expected {a}, as outside of the RoPE parameters, found {b}")));
        }
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) => positions(fields, "max_position_embeddings")?.value().ok_or_else(|| {
            p.invalid(name, "expected a whole number, found neither this nor max_position_embeddings")
        })?,
    };
    Ok(RopeScaling::Llama3 { factor: p.positive("factor")?, low_freq_factor, high_freq_factor, original_max_positions })
}

fn refuse_partial_rotation(fields: &Fields) -> Result<()> {
    let name = "partial_rotary_factor";
    match fields.number(name)?.value() {
        None => Ok(()),
        Some(1.0) => Ok(()),
        Some(x) => Err(fields.unsupported(name, format!("expected rotation of the whole head, found {x}"))),
    }
}
