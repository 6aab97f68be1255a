//! Reports for people: what was proved, as one self-contained HTML page. Figures come from the library's reports, nothing
//! is computed here but what a plot needs.

mod alternatives;
mod axis;
mod bounds;
mod compared;
mod difference;
mod failure;
mod identity;
mod page;
mod plot;
mod sections;
mod tokens;

use std::path::Path;

use crate::base::BaseModel;
use crate::error::Result;
use crate::format::output::{OutputFile, Overwrite};
use crate::pipeline::Converted;
use crate::search::Settlement;
use crate::transform::loss::Bound;
use crate::validate::Validated;
use crate::verify;
use crate::verify::probe::Probe;
use crate::verify::tensors::{TensorLoss, TensorReport};
pub use alternatives::{Alternative, alternatives};
use axis::number;
use bounds::Held;
use compared::Compared;
pub use difference::{Side, difference};
pub use failure::{Failure, failure};
use identity::{Subjects, identity};
use page::{Page, Section, Table};
use sections::{MAX_ROWS, capped, conventions, environment, shown, size_against_error, tensors};
pub use tokens::Tokens;

/// A report file: refused at once where it cannot be written, there once [`ReportFile::write`] was called.
pub struct ReportFile(OutputFile);

impl ReportFile {
    /// # Errors
    ///
    /// Those of [`OutputFile::create`].
    pub fn create(path: &Path, overwrite: Overwrite, inputs: &[&Path]) -> Result<Self> {
        OutputFile::create(path, overwrite, inputs).map(ReportFile)
    }

    /// Writes the page.
    ///
    /// # Errors
    ///
    /// Those of [`OutputFile::commit`].
    pub fn write(self, html: &str) -> Result<()> {
        self.0.write_all_at(0, html.as_bytes())?;
        self.0.commit()
    }
}

/// What a report on a verification is about.
pub struct Verification<'a> {
    /// The adapter under test.
    pub adapter: &'a Validated,
    /// Its base.
    pub base: &'a BaseModel,
    /// What it was compared with, for people: `PyTorch's answer (probe.safetensors)`.
    pub reference: String,
    /// The adapter it was compared with, if there was one.
    pub against: Option<&'a Validated>,
    /// PyTorch's answer, if it was compared with that.
    pub probe: Option<&'a Probe>,
    /// What was asked: `[B][T]`.
    pub input_ids: &'a [Vec<u32>],
    /// The outcome.
    pub report: &'a verify::Report,
    /// What each tensor lost against the other adapter, where there is one.
    pub losses: &'a [TensorLoss],
    /// How the probe settled what nothing states, if it had to.
    pub conventions: Option<&'a Settlement>,
    /// Where it was computed.
    pub device: &'a str,
}

/// The page of a verification.
pub fn verification(v: &Verification<'_>) -> String {
    let r = v.report;
    let mut lead = vec![format!(
        "{} on {}, compared with {}: {} positions, limits of {}.",
        name(&v.adapter.origin.path),
        name(&v.base.path),
        v.reference,
        r.metrics.n_positions,
        r.tolerance
    )];
    lead.extend(r.failures.iter().map(|f| format!("Failed: {} [{}]", f.message, f.code)));
    let mut notes = v.adapter.notes.clone();
    let compared = Compared::from(r);
    let mut sections = compared.sections(v.input_ids, &tokens(v.base, &mut notes));
    let losses: Vec<_> =
        v.losses.iter().map(|l| (l.name.clone(), l.dtype.name().to_owned(), l.len_bytes, l.loss)).collect();
    sections.push(tensors(
        &losses,
        "No other form of the adapter was compared, so what its types cost is not known here; --against ADAPTER tells.",
    ));
    sections.push(conventions(v.adapter, v.conventions));
    let adapters: Vec<_> = [("adapter", v.adapter)].into_iter().chain(v.against.map(|a| ("reference", a))).collect();
    let subjects = Subjects { adapters: &adapters, base: Some(v.base), probe: v.probe, source_sha256: None };
    sections.push(identity(&subjects, &mut notes));
    sections.push(environment(Some(v.device), &notes));
    Page {
        title: format!("Verification of {}", name(&v.adapter.origin.path)),
        pass: Some(r.pass),
        within: Vec::new(),
        lead,
        figures: compared.figures(),
        sections: shown(sections),
    }
    .html()
}

/// The page of a comparison without a base, tensor by tensor.
pub fn comparison(adapter: &Validated, reference: &Validated, report: &TensorReport) -> String {
    let mut lead = vec![format!(
        "{} compared with {}, tensor by tensor; no model was run: this shows that two files hold the same adapter, not that it is right.",
        name(&adapter.origin.path),
        name(&reference.origin.path)
    )];
    lead.extend(report.config.iter().map(|f| format!("Failed: {}", f.line())));
    let mut notes = adapter.notes.clone();
    let adapters = [("adapter", adapter), ("reference", reference)];
    let subjects = Subjects { adapters: &adapters, base: None, probe: None, source_sha256: None };
    let rows = report.tensors.iter().take(MAX_ROWS).map(|t| {
        vec![t.name.clone(), t.failure.clone().unwrap_or_else(|| "equal".into()), t.max_abs.map_or("-".into(), number)]
    });
    let table = Table {
        caption: capped("Every tensor of either adapter", report.tensors.len()),
        header: vec!["tensor", "outcome", "max |d|"],
        n_text: 2,
        rows: rows.collect(),
    };
    Page {
        title: format!("Comparison of {}", name(&adapter.origin.path)),
        pass: Some(report.pass),
        within: Vec::new(),
        lead,
        figures: Vec::new(),
        sections: shown(vec![
            Section { title: "Tensors", table: Some(table), ..Section::default() },
            conventions(adapter, None),
            identity(&subjects, &mut notes),
            environment(None, &notes),
        ]),
    }
    .html()
}

/// What a report on a conversion is about.
pub struct Conversion<'a> {
    /// What was read.
    pub source: &'a Path,
    /// What was written.
    pub output: &'a Validated,
    /// The base, if there was one.
    pub base: Option<&'a BaseModel>,
    /// What was done.
    pub converted: &'a Converted,
    /// PyTorch's answer, if it was held against that.
    pub probe: Option<&'a Probe>,
    /// What was asked where something was run: `[B][T]`.
    pub input_ids: &'a [Vec<u32>],
    /// The bounds that it was held to.
    pub max_error: &'a [Bound],
    /// Other types, if they were measured.
    pub alternatives: &'a [Alternative],
    /// Where it was computed.
    pub device: &'a str,
}

/// The page of a conversion.
pub fn conversion(c: &Conversion<'_>) -> String {
    let done = c.converted;
    let proof = done.verification.as_ref();
    let mut notes = done.notes.clone();
    let mut lead = vec![format!(
        "{} converted to {}: {}, {} tensors, {} bytes, row order {}.",
        name(c.source),
        name(&done.output),
        done.format,
        done.tensors.len(),
        done.len_bytes,
        done.row_order
    )];
    let held = bounds::held(done, c.max_error);
    lead.push(match (proof, &done.output_error) {
        (Some(r), _) => format!(
            "Read back and held against PyTorch's answer: {} positions, limits of {}.",
            r.metrics.n_positions, r.tolerance
        ),
        (None, Some(e)) => format!(
            "Run beside its source on {} positions{}.",
            e.metrics.n_positions,
            if held.is_empty() { "; no limit was set, so nothing is judged" } else { "" }
        ),
        (None, None) => "Nothing was run: that the output computes what it should is not proved here.".into(),
    });
    lead.extend(held.iter().map(|h| format!("Within its bound: {}.", h.line())));
    let beside_source = done.output_error.as_ref().map(|e| {
        let mut compared = Compared::from(e);
        compared.limits.mean_kl = bounds::tightest_kl(done, c.max_error);
        compared
    });
    let compared = proof.map(Compared::from).or(beside_source);
    let mut sections = Vec::new();
    if let Some(compared) = &compared {
        let tokens = c.base.map_or_else(Tokens::default, |base| tokens(base, &mut notes));
        sections = compared.sections(c.input_ids, &tokens);
    }
    let losses: Vec<_> = done
        .tensors
        .iter()
        .filter_map(|t| Some((t.name.clone(), format!("{} -> {}", t.source_dtype, t.dtype), t.len_bytes, t.loss?)))
        .collect();
    sections.push(tensors(&losses, "A dry run writes nothing, so nothing is lost."));
    let how = if done.auto.is_some() { "--auto" } else { "this output" };
    sections.push(size_against_error(c.alternatives, Alternative { name: how.into(), ..Alternative::of(done) }));
    sections.push(conventions(c.output, done.conventions.as_ref()));
    let subjects = Subjects {
        adapters: &[("output", c.output)],
        base: c.base,
        probe: c.probe,
        source_sha256: done.source_sha256.as_deref(),
    };
    sections.push(identity(&subjects, &mut notes));
    sections.push(environment(c.base.map(|_| c.device), &notes));
    Page {
        title: format!("Conversion of {}", name(c.source)),
        pass: proof.map(|r| r.pass).or((!held.is_empty()).then_some(true)),
        within: held.iter().map(Held::bound).collect(),
        lead,
        figures: compared.iter().flat_map(Compared::figures).collect(),
        sections: shown(sections),
    }
    .html()
}

/// The base's vocabulary; where it cannot be read, a note says so and tokens have no text.
fn tokens(base: &BaseModel, notes: &mut Vec<String>) -> Tokens {
    Tokens::of(base).unwrap_or_else(|e| {
        notes.push(format!("the tokens' text could not be read: {e}"));
        Tokens::default()
    })
}

/// The last part of a path: where something lies on this machine is nobody's business.
fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned())
}

fn base_text(base: &BaseModel) -> String {
    let c = &base.config;
    let stated = base.name.as_ref().map_or(String::new(), |n| format!("{n}, "));
    format!(
        "{} ({stated}{}, {} layers, {} heads, {} kv heads, head_dim {}, vocabulary {})",
        name(&base.path),
        c.family,
        c.n_layers,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        c.vocab_size
    )
}
