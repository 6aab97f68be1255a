//! What a conversion did: every tensor with its types and what they cost, the notes, the proofs.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;

use crate::auto::Decision;
use crate::base::BaseModel;
use crate::base::fingerprint::Identity;
use crate::error::Result;
use crate::export::{Plan, Written};
use crate::search::Settlement;
use crate::tensor::{DType, LazyTensor};
use crate::transform::loss::{Bound, Loss};
use crate::verify::stats::{Metrics, Row};
use crate::verify::{self, LayerReport};

/// What a conversion did, or with `dry_run` would do.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// The output.
    #[serde(serialize_with = "crate::lossy::path")]
    pub output: PathBuf,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Bytes of the weights file.
    pub len_bytes: u64,
    /// Every tensor written.
    pub tensors: Vec<ConvertedTensor>,
    /// Row order of the output.
    pub row_order: String,
    /// Canonical digest of the source; absent in a dry run.
    pub source_sha256: Option<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Whether the base is the one that the adapter was made for, where it says which.
    pub base_identity: Option<Identity>,
    /// How the probe settled what nothing states, if there was anything.
    pub conventions: Option<Settlement>,
    /// How the types were found, if they were left to `auto_kl`.
    pub auto: Option<Decision>,
    /// How far the quantized output's terms and logits are from the source's; with a base, and never in a dry run.
    pub output_error: Option<OutputError>,
    /// The proof, if asked for.
    pub verification: Option<verify::Report>,
}

/// The output run beside the source on the base.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct OutputError {
    /// Logits of the output against logits of the source.
    pub metrics: Metrics,
    /// `max |logits - base_logits|` of the source.
    pub effect: f64,
    /// The same of the output.
    pub found_effect: f64,
    /// Each adapted layer's term.
    pub layers: Vec<LayerReport>,
    /// Every position.
    pub positions: Vec<Row>,
}

/// One tensor of the output.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ConvertedTensor {
    /// Name in the output.
    pub name: String,
    /// Type in the source.
    pub source_dtype: String,
    /// Type in the output.
    pub dtype: String,
    /// The type asked for, where the rows are no whole blocks of it.
    pub unfit: Option<String>,
    /// Shape in the output, outermost first.
    pub shape: Vec<usize>,
    /// Offset of its bytes in the file.
    pub file_offset: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// Bytes of the same elements in the source.
    pub source_len_bytes: u64,
    /// What the type cost; absent in a dry run.
    pub loss: Option<Loss>,
}

/// What `--arch` alone leaves open.
pub(crate) const NOTHING_CHECKED: &str = "no --base: nothing was checked against the model that the adapter was made for, neither sizes nor layers nor numbers; --arch gives the row order alone";

/// What whoever runs a base with a sliding window on llama.cpp should know; `None` where llama.cpp applies it.
pub(crate) fn window_note(base: &BaseModel) -> Option<String> {
    let is_ignored = base.config.windows().next().is_some() && !base.config.family.llama_cpp().applies_windows;
    is_ignored.then(|| {
        format!(
            "the base has a sliding window, which llama.cpp ignores for architecture {}: beyond the window llama.cpp computes something else than PyTorch",
            base.gguf_architecture()
        )
    })
}

impl Converted {
    /// What is known before anything is written.
    pub(super) fn planned(
        output: &Path,
        format: &'static str,
        dry_run: bool,
        plan: &Plan,
        row_order: &str,
        notes: Vec<String>,
    ) -> Self {
        let tensors = plan
            .tensors
            .iter()
            .zip(&plan.file.tensors)
            .map(|(t, p)| ConvertedTensor {
                name: p.name.clone(),
                source_dtype: t.source.stored_dtype().name().into(),
                dtype: t.dtype.name().into(),
                unfit: t.unfit.map(|d| d.name().into()),
                shape: p.shape.clone(),
                file_offset: p.file_offset,
                len_bytes: p.len_bytes,
                source_len_bytes: stored_len(&t.source),
                loss: None,
            })
            .collect();
        Converted {
            output: output.to_owned(),
            format,
            dry_run,
            len_bytes: plan.file.len_bytes,
            tensors,
            row_order: row_order.into(),
            source_sha256: None,
            notes,
            base_identity: None,
            conventions: None,
            auto: None,
            output_error: None,
            verification: None,
        }
    }

    /// Puts what the types cost into the report, and refuses a tensor that is beyond a bound.
    pub(super) fn add_losses(&mut self, written: &Written, bounds: &[Bound]) -> Result<()> {
        for (tensor, loss) in self.tensors.iter_mut().zip(&written.losses) {
            tensor.loss = Some(*loss);
            for bound in bounds {
                bound.check(loss).map_err(|e| e.file(&self.output).field(&tensor.name))?;
            }
        }
        Ok(())
    }

    pub(super) fn add_saturated(&mut self, written: &Written) {
        for (name, n) in &written.saturated {
            self.notes.push(format!("{name}: {n} elements were beyond the output type and became its largest value"));
        }
    }
}

/// Bytes of a tensor's elements in the type that the source has them in.
fn stored_len(t: &LazyTensor) -> u64 {
    let dtype = t.stored_dtype();
    (t.n_elements() / dtype.block_len() * dtype.block_bytes()) as u64
}

/// One line for each type that was asked for and did not fit, in the order of the tensors.
pub(super) fn unfit_notes(plan: &Plan) -> Vec<String> {
    let mut groups: IndexMap<(DType, DType, usize), Vec<&str>> = IndexMap::new();
    for (t, planned) in plan.tensors.iter().zip(&plan.file.tensors) {
        if let (Some(asked), Some(&row_len)) = (t.unfit, t.source.shape().last()) {
            groups.entry((asked, t.dtype, row_len)).or_default().push(&planned.name);
        }
    }
    let line = |((asked, dtype, row_len), names): (&(DType, DType, usize), &Vec<&str>)| {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        format!(
            "{}{more}: rows of {row_len} are no whole blocks of {asked} ({} elements); written as {dtype}",
            names[0],
            asked.block_len()
        )
    };
    groups.iter().map(line).collect()
}
