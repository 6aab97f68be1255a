use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use serde::Serialize;

use super::base_check;
use super::progress::Unit;
use super::ui::{Status, Ui};
use crate::bundle::digest::{PathDigests, of_path_reporting};
use crate::error::{Result, escape};

#[derive(clap::Args)]
#[command(
    after_help = "canonical  what the adapter computes, whatever file it lies in\n           (the same for safetensors and GGUF, another for another type)\nvalues     the same with all values widened to F32:\n           equal where only the type changed\nsha256     the bytes of all tensors in the file's order; with --tensors also of each\n\nThe sha256 lines are those of llama-gguf-hash: `ptplus hash --tensors A.gguf > A.manifest`, then `llama-gguf-hash --check A.manifest A.gguf`.\n\nExamples:\n  ptplus hash adapter/ adapter.gguf\n  ptplus hash --tensors adapter.gguf > adapter.manifest"
)]
pub struct Arguments {
    /// Adapter, bundle, or any GGUF or safetensors file
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// A line for each tensor too
    #[arg(long)]
    tensors: bool,
    /// Base model of the adapters: for a LoRA in GGUF whose file does not say in which order its rows are
    #[arg(long)]
    base: Option<PathBuf>,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let digests = a
        .paths
        .iter()
        .map(|p| of_path_reporting(p, base.as_ref(), &|done, total| ui.progress(done, total, Unit::Bytes)))
        .collect::<Result<Vec<_>>>()?;
    ui.result(Status::Ok, Document { digests: &digests }, Lines { of: &digests, tensors: a.tensors })?;
    digests.iter().filter_map(|d| d.note.as_ref()).for_each(|n| ui.note(n));
    if let [first, rest @ ..] = &digests[..]
        && let Some(first) = &first.adapter
    {
        for (path, other) in a.paths[1..].iter().zip(rest) {
            let Some(other) = &other.adapter else { continue };
            let verdict = match (first.canonical == other.canonical, first.values == other.values) {
                (true, _) => "the same adapter as the first",
                (false, true) => "the same values as the first, stored as another type",
                (false, false) => "another adapter than the first",
            };
            ui.note(&format!("{}: {verdict}", path.display()));
        }
    }
    Ok(0)
}

#[derive(Serialize)]
struct Document<'a> {
    digests: &'a [PathDigests],
}

/// llama-gguf-hash prints `%-8s  %s  %s` and reads any white space.
struct Lines<'a> {
    of: &'a [PathDigests],
    tensors: bool,
}

impl Display for Lines<'_> {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        for d in self.of {
            let name = escape(&d.path.to_string_lossy());
            if let Some(a) = &d.adapter {
                writeln!(out, "canonical  {}  {name}", a.canonical)?;
                writeln!(out, "values    {}  {name}", a.values)?;
            }
            for t in d.tensors.iter().filter(|_| self.tensors) {
                writeln!(out, "{:<8}  {}  {name}:{}", "sha256", t.sha256, escape(&t.name))?;
            }
            writeln!(out, "{:<8}  {}  {name}", "sha256", d.sha256)?;
        }
        Ok(())
    }
}
