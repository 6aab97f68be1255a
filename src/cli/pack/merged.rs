//! A base with adapters merged into it, as a bundle of a model.

use std::path::PathBuf;

use super::{Arguments, To, recorded, show};
use crate::bundle::merged::{PackMerged, pack_merged};
use crate::bundle::seal::Signers;
use crate::cli::progress::Unit;
use crate::cli::ui::Ui;
use crate::cli::usage;
use crate::error::Result;
use crate::format::bundle::container::is_called_tar;
use crate::format::bundle::model_signing;
use crate::format::bundle::signature::Signer;
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::pipeline::{ConvertBase, Proof, TypeRules};
use crate::runner::DeviceChoice;
use crate::transform::cast::Overflow;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, Prompts};

/// A merged model is held against its parts without a probe, and nothing says that these are right.
const NOT_PROVED_MERGED: &str =
    "no --probe: that the base with the adapters computes what PyTorch did was not checked (docs/VERIFY.md)";

/// A base with adapters merged into it, as a bundle of a model.
pub(super) fn pack_model(
    a: &Arguments,
    all_types: &[TypeRules],
    merge: &[(PathBuf, f64)],
    date: Option<String>,
    ui: &Ui,
) -> Result<u8> {
    let of_adapters = [
        ("--to", a.to.contains(&To::Safetensors)),
        ("--auto", a.types.auto_kl()?.is_some()),
        ("how to read a checkpoint", !a.reading.options()?.is_empty()),
        #[cfg(feature = "report")]
        ("--report", a.report.is_some()),
    ];
    if let Some((flag, _)) = of_adapters.iter().find(|(_, is_given)| *is_given) {
        return Err(usage(flag, "expected no such flag beside --merge: what is packed is a model, in GGUF"));
    }
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let max_error = a.types.bounds()?;
    let about = a.about.read(&merge[0].0)?;
    let signer = a.sign.as_deref().map(|key| Signer::open(key, a.password.for_key()?)).transpose()?;
    let model_signer = a.sign_oms.as_deref().map(model_signing::Signer::open).transpose()?;
    let device = a.device.parse::<DeviceChoice>()?.open()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let command = recorded(a, merge, tolerance.as_ref(), all_types, (&max_error, None), &Options::default()).line();
    let options = verify::Options { device: &device, tolerance, progress: &steps };
    let prove =
        probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof { probe, path, options: options.clone() });
    let done = pack_merged(PackMerged {
        convert: ConvertBase {
            base: &a.adapter,
            output: &a.output,
            merge,
            base_mismatch: a.base_check.mismatch(),
            prove,
            about: Some(&about),
            tokenizer: a.tokenizer.choice(),
            types: &all_types[0],
            max_error: &max_error,
            overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
            overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
            dry_run: false,
            progress: &|done, total| ui.progress(done, total, Unit::Bytes),
        },
        more_types: &all_types[1..],
        is_tar: is_called_tar(&a.output),
        options,
        prompts: Prompts::DEFAULT,
        signers: Signers { manifest: signer.as_ref(), model: model_signer.as_ref() },
        command: &command,
        date,
    })?;
    show(a, &done, ui);
    ui.note("the whole base is in this bundle: its licence holds for it, and wants its text and notices beside the card (LICENSE, NOTICE)");
    if a.probe.is_none() {
        ui.note(NOT_PROVED_MERGED);
    }
    Ok(0)
}
