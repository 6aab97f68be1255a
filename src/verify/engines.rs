//! The same verification with llama.cpp as the engine under test, and candle beside it.

use serde::Serialize;

use super::probe::Probe;
use super::sinks::{AgainstProbe, Collect, SideBySide};
use super::stats::{Comparison, Metrics};
use super::{
    BaseFigures, Options, Prompts, Reference, Report, lane, report, stream_options, tolerance, want_layers_of_probe,
};
use crate::adapter::Prefix;
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::llama_cpp::evaluate;
use crate::runner::{self, Lane, Sink};
use crate::validate::Validated;

/// How each engine did.
#[derive(Debug, Clone, Serialize)]
pub struct Engines {
    /// The figures.
    pub metrics: EngineMetrics,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Logits of the adapter, engine by engine.
#[derive(Debug, Clone, Serialize)]
pub struct EngineMetrics {
    /// candle against the reference.
    pub candle: Metrics,
    /// llama.cpp against the reference: what the verdict is about.
    #[serde(rename = "llama.cpp")]
    pub llama_cpp: Metrics,
    /// llama.cpp against candle.
    #[serde(rename = "llama.cpp_beside_candle")]
    pub beside: Metrics,
}

/// Runs the adapter inside llama.cpp and compares it with `reference`, which candle computes where it is no probe.
///
/// # Errors
///
/// As [`verify`](super::verify()); [`Code::EngineUnavailable`] for a base that llama.cpp cannot read;
/// [`Code::LlamaCpp`], [`Code::LlamaCppAdapter`].
pub fn verify_in_llama_cpp(
    adapter: &Validated,
    base: &BaseModel,
    reference: Reference<'_>,
    options: &Options<'_>,
) -> Result<(Report, Engines)> {
    crate::llama_cpp::check_architecture(base.gguf_architecture())?;
    match reference {
        Reference::Probe(probe) => against_probe(adapter, base, probe, options),
        Reference::Adapter { adapter: other, base: other_base, prompts } => {
            against_adapter(adapter, base, other, other_base.unwrap_or(base), prompts, options)
        }
        Reference::Device { .. } => {
            let message = "expected the engine candle beside another device, found llama.cpp";
            Err(Error::new(Code::Usage, message).field("--against-device"))
        }
    }
}

fn against_probe(
    adapter: &Validated,
    base: &BaseModel,
    probe: &Probe,
    options: &Options<'_>,
) -> Result<(Report, Engines)> {
    probe.check_fits(base)?;
    let (positions, notes) = comparable(base, adapter, probe.positions.iter().copied())?;
    let candle = on_candle(adapter, base, &probe.input_ids, &positions, options)?;
    let mut compared = Comparison::default();
    for batch in 0..probe.input_ids.len() {
        for &position in &positions {
            let p = probe.positions.binary_search(&position).expect("positions are the probe's, ascending");
            let (_, logits) = candle.row(batch, position).expect("candle ran all of them");
            compared.add(batch, position, &probe.logits(batch, p), logits);
        }
    }
    let mut sink = AgainstProbe::new(probe, options.progress);
    let mut tee = Beside { inner: &mut sink, candle: &candle, beside: Comparison::default() };
    evaluate::run(base, adapter, &probe.input_ids, &positions, &mut tee)?;
    let beside = tee.beside;
    let reference_effect = sink.reference_effect.unwrap_or(sink.found_effect);
    let tolerance = tolerance(options, &[adapter])?;
    let of_base = BaseFigures { size: sink.base_size, half_precision: probe.half_precision() };
    let mut report =
        report(sink.adapter, sink.base, of_base, sink.layers, reference_effect, sink.found_effect, tolerance)?;
    want_layers_of_probe(&mut report, adapter, probe);
    let engines = engines(&compared, &report, &beside, notes)?;
    Ok((report, engines))
}

fn against_adapter(
    adapter: &Validated,
    base: &BaseModel,
    other: &Validated,
    other_base: &BaseModel,
    prompts: &Prompts,
    options: &Options<'_>,
) -> Result<(Report, Engines)> {
    if other_base.config.vocab_size != base.config.vocab_size {
        let (expected, found) = (base.config.vocab_size, other_base.config.vocab_size);
        let message = format!("expected a vocabulary of {expected}, as --base has, found {found}");
        return Err(Error::new(Code::AdapterMismatch, message).field("--against-base"));
    }
    let ids = prompts.ids(base.config.vocab_size)?;
    let (positions, notes) = comparable(base, adapter, 0..ids.first().map_or(0, Vec::len))?;
    let reference = on_candle(other, other_base, &ids, &positions, options)?;
    let candle = on_candle(adapter, base, &ids, &positions, options)?;
    let mut compared = Comparison::default();
    for batch in 0..ids.len() {
        for &position in &positions {
            let rows = reference.row(batch, position).zip(candle.row(batch, position));
            let ((_, expected), (_, found)) = rows.expect("candle ran all of them");
            compared.add(batch, position, expected, found);
        }
    }
    let mut sink = SideBySide::with_reference(reference, options.progress);
    let mut tee = Beside { inner: &mut sink, candle: &candle, beside: Comparison::default() };
    evaluate::run(base, adapter, &ids, &positions, &mut tee)?;
    let beside = tee.beside;
    let tolerance = tolerance(options, &[adapter, other])?;
    let of_base = BaseFigures { size: sink.base_size, half_precision: None };
    let report =
        report(sink.adapter, sink.base, of_base, sink.layers, sink.reference_effect, sink.found_effect, tolerance)?;
    let engines = engines(&compared, &report, &beside, notes)?;
    Ok((report, engines))
}

fn engines(candle: &Comparison, report: &Report, beside: &Comparison, notes: Vec<String>) -> Result<Engines> {
    let nothing = || Error::new(Code::NothingCompared, "expected positions to compare, found none");
    let metrics = EngineMetrics {
        candle: candle.metrics().ok_or_else(nothing)?,
        llama_cpp: report.metrics,
        beside: beside.metrics().ok_or_else(nothing)?,
    };
    Ok(Engines { metrics, notes })
}

/// The positions at which llama.cpp computes what PyTorch does, and a note where those are not all.
fn comparable(
    base: &BaseModel,
    adapter: &Validated,
    positions: impl Iterator<Item = usize>,
) -> Result<(Vec<usize>, Vec<String>)> {
    // Virtual tokens take places in the window.
    let n_virtual = adapter.adapter().as_prefix().map_or(0, Prefix::n_tokens);
    let window = base.config.windows().min().filter(|_| !base.config.family.llama_cpp().applies_windows);
    let all: Vec<usize> = positions.collect();
    let kept: Vec<usize> = all.iter().copied().filter(|p| window.is_none_or(|w| p + n_virtual < w)).collect();
    if kept.is_empty() {
        return Err(Error::new(Code::NothingCompared, "expected positions within the base's window, found none"));
    }
    let notes = match window {
        Some(w) if kept.len() < all.len() => vec![format!(
            "llama.cpp ignores the base's sliding window of {w}: {} of {} positions compared, those within it",
            kept.len(),
            all.len()
        )],
        _ => Vec::new(),
    };
    Ok((kept, notes))
}

/// The plain base and the adapter on candle.
fn on_candle<'a>(
    adapter: &Validated,
    base: &BaseModel,
    input_ids: &[Vec<u32>],
    positions: &[usize],
    options: &Options<'a>,
) -> Result<Collect<'a>> {
    let mut rows = Collect::new(options.progress);
    let lanes = [Lane::default(), lane(adapter)];
    runner::stream(base, input_ids, &lanes, &stream_options(options, Some(positions)), &mut rows)?;
    Ok(rows)
}

/// Passes on what llama.cpp computes, and compares it with candle's.
struct Beside<'a, 'b> {
    inner: &'a mut dyn Sink,
    candle: &'a Collect<'b>,
    beside: Comparison,
}

impl Sink for Beside<'_, '_> {
    fn logits(&mut self, batch: usize, position: usize, lanes: &[&[f32]]) -> Result<()> {
        let (_, candle) = self.candle.row(batch, position).expect("candle ran all of them");
        self.beside.add(batch, position, candle, lanes[1]);
        self.inner.logits(batch, position, lanes)
    }

    fn progress(&mut self, done: usize, total: usize) -> Result<()> {
        self.inner.progress(done, total)
    }
}
