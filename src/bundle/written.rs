//! One form of the adapter as files in the working folder: its source's own bytes, or a conversion of it.

use std::path::Path;

use super::seal;
use crate::error::{Error, Result};
use crate::export::types::OutType;
use crate::format::bundle::form::file_of_form;
use crate::format::bundle::{Bundle, container};
use crate::format::mmap::map_file;
use crate::format::output::{OutputFile, Overwrite};
use crate::import::source::{CONFIG_FILE, WEIGHTS_FILE};
use crate::pipeline::{self, Convert, Converted, Format};
use crate::search::Settlement;
use crate::tensor::Bytes;
use crate::validate::Validated;
use crate::verify::Report;

/// The adapter's files in the working folder, and how they came about.
pub(super) struct Written {
    pub(super) files: Vec<String>,
    pub(super) converted: Option<Converted>,
    pub(super) proof: Option<Report>,
}

pub(super) fn make_adapter(
    convert: Convert<'_>,
    source: &Validated,
    conventions: Option<Settlement>,
    work: &Path,
    gguf_file: &str,
    keeps_file: bool,
) -> Result<Written> {
    let files = match convert.format {
        Format::Gguf => vec![gguf_file.to_owned()],
        Format::Safetensors => vec![WEIGHTS_FILE.to_owned(), CONFIG_FILE.to_owned()],
    };
    let in_place = work.join(gguf_file);
    if let Some(file) = as_it_is(&convert, source).filter(|_| keeps_file) {
        let bytes = gguf_bytes(&convert, file)?;
        let out = OutputFile::create(&in_place, Overwrite::Never, &[])?;
        seal::write_in_steps(&out, 0, &bytes)?;
        out.commit()?;
        let proof = match &convert.prove {
            Some(proof) => Some(pipeline::prove_file(&in_place, convert.base, source, proof)?),
            None => None,
        };
        return Ok(Written { files, converted: None, proof });
    }
    // A folder of its own, since a conversion replaces its output as a whole.
    let inner = work.join("converted");
    let output = match convert.format {
        Format::Gguf => in_place,
        Format::Safetensors => inner.clone(),
    };
    let job = Convert { output: &output, overwrite: Overwrite::Never, ..convert };
    let mut converted = pipeline::convert_read(&job, source.clone(), conventions)?;
    if inner.is_dir() {
        let failed = |e| Error::io(&inner, "cannot move the adapter's files", e);
        for file in &files {
            std::fs::rename(inner.join(file), work.join(file)).map_err(failed)?;
        }
        std::fs::remove_dir(&inner).map_err(failed)?;
    }
    let proof = converted.verification.take();
    Ok(Written { files, converted: Some(converted), proof })
}

/// The GGUF file that needs no conversion: nothing was asked for but what it is.
fn as_it_is<'s>(convert: &Convert<'_>, source: &'s Validated) -> Option<&'s Path> {
    let types = convert.types;
    let keeps = matches!(types.default, OutType::Keep) && types.overrides.is_empty() && convert.auto_kl.is_none();
    match &source.origin.files[..] {
        [file] if keeps && convert.format == Format::Gguf && source.origin.gguf_architecture.is_some() => Some(file),
        _ => None,
    }
}

/// The file's bytes; inside a bundle those of the adapter alone.
fn gguf_bytes(convert: &Convert<'_>, file: &Path) -> Result<Bytes> {
    if container::is_bundle(convert.adapter) {
        let bundle = Bundle::open(convert.adapter)?;
        let name = file_of_form(&bundle, convert.reading.form.as_deref())?;
        if let Some(bytes) = bundle.files.get(&name) {
            return Ok(bytes.clone());
        }
    }
    map_file(file)
}
