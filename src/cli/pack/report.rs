//! The report on what was packed, or on why it was not.

use super::Arguments;
use crate::base::BaseModel;
use crate::bundle::pack::Packed;
use crate::cli::report as report_file;
use crate::cli::ui::Ui;
use crate::error::Result;
use crate::import::Options;
use crate::runner::Device;
use crate::verify::probe::Probe;
use crate::verify::{self, Prompts};
use crate::{pipeline, report};

/// What a bundle's adapter was run on.
pub(super) struct Run<'a> {
    pub(super) base: &'a BaseModel,
    pub(super) probe: Option<&'a Probe>,
    pub(super) prompts: &'a Prompts,
    pub(super) device: &'a Device,
}

/// Writes the report, if one is asked for, on what was packed or on why it was not.
pub(super) fn write_report(
    file: Option<report_file::Pending>,
    a: &Arguments,
    reading: &Options,
    outcome: &Result<Packed>,
    run: &Run<'_>,
    ui: &Ui,
) -> Result<()> {
    // A source whose conventions the probe had to settle is not read again just for the page.
    let source = || pipeline::read_adapter_with(&a.adapter, reading, Some(run.base)).ok();
    let done = match outcome {
        Ok(done) => done,
        Err(e) => {
            let page = || {
                Ok(report::failure(&report::Failure {
                    what: "Packing",
                    source: &a.adapter,
                    error: e,
                    adapter: source().as_ref(),
                    base: Some(run.base),
                    probe: run.probe,
                    input_ids: &run.prompts.ids(run.base.config.vocab_size)?,
                    device: run.device.name(),
                }))
            };
            report_file::write_failure(file, e, page, ui);
            return Ok(());
        }
    };
    let Some(file) = file else { return Ok(()) };
    let packed = pipeline::read_adapter(&a.output, Some(run.base))?;
    let losses = source().map(|source| verify::tensors::losses(&packed, &source)).transpose()?.unwrap_or_default();
    let page = report::verification(&report::Verification {
        adapter: &packed,
        base: run.base,
        reference: done.reference.to_owned(),
        against: None,
        probe: run.probe,
        input_ids: &run.prompts.ids(run.base.config.vocab_size)?,
        report: &done.verification,
        losses: &losses,
        conventions: None,
        device: run.device.name(),
    });
    file.write(&page, ui)
}
