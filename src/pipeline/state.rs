//! Virtual tokens as the state of a sequence, which stock llama.cpp loads.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Proof, read_adapter_with};
use crate::adapter::{Adapter, Prefix};
use crate::base::BaseModel;
use crate::base::fingerprint::{Depth, Identity};
use crate::error::{Code, Error, Result};
use crate::format::bundle::place;
use crate::format::llama_state::Cache;
use crate::format::output::{OutputFile, Overwrite};
use crate::import::Options;
use crate::runner::{Device, TOKEN, sequence_state, state_notes};
use crate::validate::BaseMismatch;
use crate::verify::{Reference, Report, verify};

/// A state to write.
pub struct MakeState<'a> {
    /// The virtual tokens.
    pub adapter: &'a Path,
    /// Of a bundle with several forms, which one.
    pub reading: &'a Options,
    /// The base that will run them; embeddings go through it.
    pub base: &'a BaseModel,
    /// Where to write.
    pub output: &'a Path,
    /// How the context keeps keys and values.
    pub cache: Cache,
    /// What the adapter is held against before anything is written.
    pub prove: Option<Proof<'a>>,
    /// Where embeddings are run.
    pub device: &'a Device,
    /// Whether an existing file is replaced.
    pub overwrite: Overwrite,
    /// Whether a base that the adapter was not made for is refused.
    pub base_mismatch: BaseMismatch,
    /// Write nothing.
    pub dry_run: bool,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MadeState {
    /// The file.
    #[serde(serialize_with = "crate::lossy::path")]
    pub output: PathBuf,
    /// P.
    pub n_tokens: usize,
    /// The id that each of them has in the file.
    pub token: u32,
    /// Bytes.
    pub len_bytes: u64,
    /// The version in the file's header.
    pub version: u32,
    /// Whether the context must compute attention by the fused kernel, or must not.
    pub flash_attention: bool,
    /// Type of the context's keys.
    pub cache_type_k: &'static str,
    /// Type of the context's values.
    pub cache_type_v: &'static str,
    /// Streams of the context.
    pub n_streams: u32,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// What the adapter computes beside the probe, on candle.
    pub verification: Option<Report>,
    /// Whether the base is the adapter's.
    pub base_identity: Option<Identity>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Makes the file.
///
/// # Errors
///
/// Those of reading and validating an adapter; [`Code::ConfigUnsupported`] for an adapter of another kind;
/// [`Code::BaseDiffers`]; [`Code::NumbersDiffer`]; those of writing.
pub fn make_state(job: &MakeState<'_>) -> Result<MadeState> {
    job.cache.check()?;
    place::refuse_inside_bundle(job.output)?;
    let adapter = read_adapter_with(job.adapter, job.reading, Some(job.base))?;
    let prefix = virtual_tokens(adapter.adapter()).map_err(|e| e.file(job.adapter))?;
    let mut notes = adapter.notes.clone();
    notes.extend(state_notes(job.base, prefix.n_tokens()));
    let base_identity = adapter.confirm_base(job.base, Depth::Weights, job.base_mismatch)?;
    let verification = match &job.prove {
        Some(proof) => {
            let report = verify(&adapter, job.base, Reference::Probe(proof.probe), &proof.options)?;
            Some(report.passed("nothing was written", job.adapter)?)
        }
        None => None,
    };
    let inputs: Vec<&Path> =
        adapter.origin.files.iter().map(PathBuf::as_path).chain([job.base.path.as_path()]).collect();
    let out = match job.dry_run {
        true => None,
        false => Some(OutputFile::create(job.output, job.overwrite, &inputs)?),
    };
    let bytes = sequence_state(prefix, job.base, &job.cache, job.device)?;
    if let Some(out) = out {
        out.set_len(bytes.len() as u64)?;
        out.write_all_at(0, &bytes)?;
        out.commit()?;
    }
    Ok(MadeState {
        output: job.output.to_owned(),
        n_tokens: prefix.n_tokens(),
        token: TOKEN,
        len_bytes: bytes.len() as u64,
        version: job.cache.version.number(),
        flash_attention: job.cache.flash_attention,
        cache_type_k: job.cache.k_type.name(),
        cache_type_v: job.cache.v_type.name(),
        n_streams: job.cache.n_streams,
        dry_run: job.dry_run,
        verification,
        base_identity,
        notes,
    })
}

fn virtual_tokens(adapter: &Adapter) -> Result<&Prefix> {
    adapter.as_prefix().ok_or_else(|| {
        let message = format!(
            "expected virtual tokens, since nothing else is part of a sequence's state, found an adapter of kind {}",
            adapter.kind()
        );
        Error::new(Code::ConfigUnsupported, message)
    })
}
