//! The page of a command that failed because numbers differ: when a report is wanted most.

use std::error::Error as _;
use std::path::Path;

use super::compared::Compared;
use super::identity::{Subjects, identity};
use super::page::{Page, Section};
use super::sections::{conventions, environment, shown};
use super::{name, tokens};
use crate::base::BaseModel;
use crate::error::{Code, Error};
use crate::validate::Validated;
use crate::verify::FailedReport;
use crate::verify::probe::Probe;

/// What a report on a failure is about.
pub struct Failure<'a> {
    /// What failed: `Conversion`.
    pub what: &'a str,
    /// What was read.
    pub source: &'a Path,
    /// Why there is no output.
    pub error: &'a Error,
    /// The adapter in `source`, where it can be read.
    pub adapter: Option<&'a Validated>,
    /// The base, if there was one.
    pub base: Option<&'a BaseModel>,
    /// PyTorch's answer, if there was one.
    pub probe: Option<&'a Probe>,
    /// What was asked where something was run: `[B][T]`.
    pub input_ids: &'a [Vec<u32>],
    /// Where it was computed.
    pub device: &'a str,
}

/// The page of a failure; with the figures, where the error comes from a comparison ([`FailedReport`]).
pub fn failure(f: &Failure<'_>) -> String {
    let e = f.error;
    let field = e.field_name().map_or(String::new(), |field| format!("{field}: "));
    let mut lead = vec![format!("Failed: {field}{} [{}]", e.message(), e.code().slug())];
    lead.push(format!("Exit code {}; the output was not written.", e.kind().exit_code()));
    let mut notes = f.adapter.map_or_else(Vec::new, |a| a.notes.clone());
    let mut sections = vec![details(e)];
    let report = e.source().and_then(|cause| cause.downcast_ref::<FailedReport>()).map(|failed| &failed.0);
    let compared = report.map(Compared::from);
    if let Some(compared) = &compared {
        let reference = match f.probe {
            Some(_) if e.code() != Code::ErrorBound => "PyTorch's answer",
            _ => "its source",
        };
        let n = compared.metrics.n_positions;
        lead.push(format!("The figures are of what would have been written, beside {reference}: {n} positions."));
        let tokens = f.base.map(|base| tokens(base, &mut notes)).unwrap_or_default();
        sections.extend(compared.sections(f.input_ids, &tokens));
    }
    sections.extend(f.adapter.map(|a| conventions(a, None)));
    let adapters: Vec<_> = f.adapter.map(|a| ("source", a)).into_iter().collect();
    sections.push(identity(
        &Subjects { adapters: &adapters, base: f.base, probe: f.probe, source_sha256: None },
        &mut notes,
    ));
    sections.push(environment(f.base.map(|_| f.device), &notes));
    Page {
        title: format!("{} of {}", f.what, name(f.source)),
        pass: Some(false),
        within: Vec::new(),
        lead,
        figures: compared.iter().flat_map(Compared::figures).collect(),
        sections: shown(sections),
    }
    .html()
}

fn details(e: &Error) -> Section {
    match e.detail_lines() {
        [] => Section::default(),
        lines => Section { title: "Details", lines: lines.to_vec(), ..Section::default() },
    }
}
