//! `convert --to llama-state`: flags, and what people see.

use std::path::Path;

use clap::ValueEnum;
use serde_json::json;

use super::base_check;
use super::job::Job;
use super::progress::Unit;
use super::ui::Ui;
use super::usage;
use crate::error::{Result, escape};
use crate::export::types::parse_dtype;
use crate::format::llama_state::{Cache, Version};
use crate::format::output::Overwrite;
use crate::pipeline::{MakeState, Proof, make_state};
use crate::runner::DeviceChoice;
use crate::verify;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;

/// How the context that loads a state keeps keys and values.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "State of a sequence in llama.cpp (--to llama-state)")]
pub struct StateArguments {
    /// Whether the context computes attention with the fused kernel, as llama.cpp does by default; without it values are transposed
    #[arg(long, value_enum, ignore_case = true, value_name = "on|off")]
    flash_attn: Option<OnOff>,
    /// Type of the context's keys: f32, f16 (the default), bf16, q8_0, q5_1, q5_0, q4_1 or q4_0
    #[arg(long, value_name = "TYPE")]
    cache_type_k: Option<String>,
    /// Type of the context's values, likewise
    #[arg(long, value_name = "TYPE")]
    cache_type_v: Option<String>,
    /// Sequences of a context that keeps each in cells of its own (a server's -np N without --kv-unified)
    #[arg(long, value_name = "N")]
    n_seq: Option<u32>,
    /// Version of the file: 4, or 3 for a llama.cpp of before mid-2026
    #[arg(long, value_name = "3|4")]
    state_version: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

impl StateArguments {
    /// The first flag that was given.
    pub fn given(&self) -> Option<&'static str> {
        [
            ("--flash-attn", self.flash_attn.is_some()),
            ("--cache-type-k", self.cache_type_k.is_some()),
            ("--cache-type-v", self.cache_type_v.is_some()),
            ("--n-seq", self.n_seq.is_some()),
            ("--state-version", self.state_version.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, is_given)| is_given.then_some(flag))
    }

    fn cache(&self) -> Result<Cache> {
        let default = Cache::default();
        let dtype = |flag: &'static str, text: &Option<String>, default| match text {
            None => Ok(default),
            Some(text) => parse_dtype(text).map_err(|e| e.field(flag)),
        };
        let version = match &self.state_version {
            None => default.version,
            Some(text) => Version::parse(text).ok_or_else(|| {
                let known = Version::NAMES.join(" or ");
                usage(
                    "--state-version",
                    format!("expected {known}, which are the versions that are written, found {text:?}"),
                )
            })?,
        };
        Ok(Cache {
            version,
            flash_attention: self.flash_attn != Some(OnOff::Off),
            k_type: dtype("--cache-type-k", &self.cache_type_k, default.k_type)?,
            v_type: dtype("--cache-type-v", &self.cache_type_v, default.v_type)?,
            n_streams: self.n_seq.unwrap_or(default.n_streams),
        })
    }
}

pub fn run(a: &Job, state: &StateArguments, outtype: &str, output: &Path, ui: &Ui) -> Result<u8> {
    let (Some(adapter), Some(base)) = (a.adapter.as_deref(), a.base.as_deref()) else {
        return Err(usage("--base", "expected the base model: a state is that of a model's sequence"));
    };
    let reading = a.reading.options()?;
    let no_place = [
        ("--outtype", !outtype.eq_ignore_ascii_case("keep")),
        ("--arch", a.arch.is_some()),
        ("--allow-overflow", a.allow_overflow),
        ("--auto", a.types.auto_kl()?.is_some()),
        ("--max-error", !a.types.bounds()?.is_empty()),
        ("how to read a checkpoint", !reading.is_empty()),
        #[cfg(feature = "report")]
        ("--report", a.report.is_some()),
    ];
    if let Some((flag, _)) = no_place.into_iter().find(|(_, is_given)| *is_given) {
        let message = "expected no such flag: a state's types are those of the context that loads it (--cache-type-k, --cache-type-v)";
        return Err(usage(flag, message));
    }
    let cache = state.cache()?;
    cache.check()?;
    let base = base_check::open(base, ui)?;
    let device = a.device.parse::<DeviceChoice>()?.open()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let done = make_state(&MakeState {
        adapter,
        reading: &reading,
        base: &base,
        output,
        cache,
        prove: probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof {
            probe,
            path,
            options: verify::Options { device: &device, tolerance, progress: &steps },
        }),
        device: &device,
        overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
        base_mismatch: a.base_check.mismatch(),
        dry_run: a.dry_run,
    })?;
    let mut text = String::new();
    if let Some(v) = &done.verification {
        text += &format!("verified against the probe: {}\n", base_check::proof_text(v));
    }
    text += &format!(
        "{} {} -> {}: state of a sequence for llama.cpp, version {}, {} virtual tokens, {} bytes\n\
         for contexts with flash attention {}, keys in {}, values in {}{}; in prompts the virtual tokens are {} times token {}\n",
        if done.dry_run { "would convert" } else { "converted" },
        escape(&adapter.to_string_lossy()),
        escape(&output.to_string_lossy()),
        done.version,
        done.n_tokens,
        done.len_bytes,
        if done.flash_attention { "on" } else { "off" },
        done.cache_type_k,
        done.cache_type_v,
        if done.n_streams == 1 { String::new() } else { format!(", {} sequences apart", done.n_streams) },
        done.n_tokens,
        done.token,
    );
    ui.made(json!(done), text);
    done.notes.iter().for_each(|n| ui.note(n));
    base_check::note(ui, done.base_identity.as_ref());
    if done.verification.is_none() && !done.dry_run {
        ui.note(base_check::NOT_PROVED);
    }
    Ok(0)
}
