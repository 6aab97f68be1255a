//! The flags about element types, shared by `convert` and `quantize`.

use clap::ValueEnum;

use super::hints::closest;
use super::suggested::Suggested;
use super::table;
use super::ui::{Status, Ui};
use super::usage;
use crate::error::Result;
use crate::export::types::{OnUnfit, OutType, Override, TypeRules, writable};
use crate::transform::loss::{Bound, Metric};

#[derive(clap::Args)]
#[command(next_help_heading = "Element types")]
pub struct TypeArguments {
    /// Type of the tensors whose output name matches; the first match wins; repeatable
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// What to do with rows that are no whole blocks of the type
    #[arg(long, value_enum, ignore_case = true, default_value = "fallback")]
    on_unfit: Unfit,
    /// Quantize tensors again that are quantized already, which loses twice
    #[arg(long)]
    allow_requantize: bool,
    /// Refuse an output whose error is larger: rmse, max_abs, relative or cosine of a tensor, kl of the logits; repeatable
    #[arg(long, value_name = "METRIC=VALUE")]
    max_error: Vec<String>,
    /// Choose per tensor the smallest type that keeps the mean KL divergence of the logits within a bound; needs --base
    #[arg(long, value_name = "KL=VALUE", conflicts_with_all = ["tensor_type", "on_unfit", "allow_requantize"])]
    auto: Option<String>,
    /// Threads that compute, for all jobs together; by default one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// List the types that can be written, and do nothing else
    #[arg(long)]
    pub list_types: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Unfit {
    /// Take the type that llama.cpp would take
    Fallback,
    /// Refuse
    Error,
    /// Leave the tensor in the type that it has
    Keep,
}

/// What llama.cpp's converter does for `--outtype auto`, and what the flag of that name does here.
const AUTO: &str = "`keep`, the default, leaves every tensor the type that it has; `--auto KL=VALUE` chooses the smallest types within a bound";

impl TypeArguments {
    /// The rules, with `text` (a type or `keep`) for what no override matches.
    pub fn rules(&self, flag: &str, text: &str) -> Result<TypeRules> {
        Ok(TypeRules {
            default: OutType::parse(text).map_err(|e| {
                let meant = other_name(text).or_else(|| closest(text, writable().map(|d| d.name())));
                let hint = match text.eq_ignore_ascii_case("auto") {
                    true => Some(AUTO.to_owned()),
                    false => meant.map(|m| format!("did you mean {m}?")),
                };
                e.field(flag).hints(hint)
            })?,
            overrides: self.tensor_type.iter().map(|t| Override::parse(t)).collect::<Result<_>>()?,
            on_unfit: match self.on_unfit {
                Unfit::Fallback => OnUnfit::Fallback,
                Unfit::Error => OnUnfit::Error,
                Unfit::Keep => OnUnfit::Keep,
            },
            allow_requantize: self.allow_requantize,
        })
    }

    pub fn bounds(&self) -> Result<Vec<Bound>> {
        self.max_error.iter().map(|t| Bound::parse(t)).collect()
    }

    /// The bound of `--auto`.
    pub fn auto_kl(&self) -> Result<Option<f64>> {
        let Some(text) = &self.auto else { return Ok(None) };
        match Bound::parse(text) {
            Ok(Bound { metric: Metric::Kl, limit }) => Ok(Some(limit)),
            _ => Err(usage("--auto", format!("expected KL=VALUE with a value of at least 0, found {text:?}"))),
        }
    }
}

/// What PyTorch and people call a type.
fn other_name(text: &str) -> Option<&'static str> {
    match &*text.to_lowercase().replace(['-', '_'], "") {
        "float" | "float32" | "fp32" | "single" => Some("F32"),
        "float16" | "fp16" | "half" => Some("F16"),
        "bfloat16" | "bfloat" => Some("BF16"),
        "q8" | "int8" => Some("Q8_0"),
        "q6" => Some("Q6_K"),
        "q5" => Some("Q5_K"),
        "q4" | "int4" => Some("Q4_K"),
        _ => None,
    }
}

/// For `--outtype` and TYPE: the names of types, and `keep`.
pub fn names() -> Suggested {
    Suggested(std::iter::once("keep").chain(writable().map(|d| d.name())).collect())
}

/// `--list-types`
pub fn list(ui: &Ui) -> Result<u8> {
    let types: Vec<_> = writable().collect();
    let document = types
        .iter()
        .map(|d| {
            serde_json::json!({
                "name": d.name(),
                "ggml_id": d.ggml_id(),
                "block_len": d.block_len(),
                "block_bytes": d.block_bytes(),
                "bits_per_element": bits(d.block_bytes(), d.block_len()),
            })
        })
        .collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = types
        .iter()
        .map(|d| {
            vec![
                d.name().to_owned(),
                d.ggml_id().map_or(String::new(), |n| n.to_string()),
                d.block_len().to_string(),
                format!("{}", bits(d.block_bytes(), d.block_len())),
            ]
        })
        .collect();
    let text = table::table(&["type", "ggml number", "elements in a block", "bits per element"], &rows);
    ui.result(Status::Ok, serde_json::json!({ "types": document }), text)?;
    Ok(0)
}

fn bits(block_bytes: usize, block_len: usize) -> f64 {
    (block_bytes * 8) as f64 / block_len as f64
}
