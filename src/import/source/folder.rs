//! Which file of a folder has an adapter's weights.

use std::path::{Path, PathBuf};

use super::{CONFIG_FILE, INDEX_FILE, MODEL_CONFIG_FILE, Source, WEIGHTS_FILE, open_file};
use crate::base::WEIGHTS_FILES;
use crate::error::{Code, Error, Result};
use crate::format::names::is_hidden;
use crate::format::output::resolved;
use crate::format::{links, recognize};

/// Files with the weights of an adapter's folder, in the order in which PEFT prefers them; older versions wrote the last two.
const ADAPTER_FILES: [&str; 4] = [WEIGHTS_FILE, INDEX_FILE, "adapter_model.bin", "adapter_model.bin.index.json"];

/// Files that trainers save beside the weights; never weights themselves. Beginnings of names.
const BESIDE_WEIGHTS: [&str; 8] =
    ["optimizer", "scheduler", "sampler", "rng_state", "training_args", "trainer_state", "scaler", "random_states"];
/// Endings of indexes of sharded weights.
const INDEX_ENDINGS: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];
/// Endings of files with weights.
const WEIGHTS_ENDINGS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"];

/// Whether a folder is an adapter's: by its files' names, or a model's folder, such as `Trainer` and `save_pretrained` leave
/// behind, with parts of an adapter among its weights.
pub(crate) fn is_adapter_folder(dir: &Path) -> bool {
    is_named_adapter(dir) || holds_model_with_parts(dir)
}

fn is_named_adapter(dir: &Path) -> bool {
    links::is_present(&dir.join(CONFIG_FILE)) || ADAPTER_FILES.iter().any(|f| links::is_present(&dir.join(f)))
}

/// Whether a folder is a model's by its `config.json`, with parts of an adapter among its weights.
pub(crate) fn holds_model_with_parts(dir: &Path) -> bool {
    !is_named_adapter(dir)
        && links::is_present(&dir.join(MODEL_CONFIG_FILE))
        && weights_of_folder(dir).is_ok_and(|file| has_parts(&file))
}

/// Whether a file opens and has parts of an adapter in it, by their names.
fn has_parts(file: &Path) -> bool {
    matches!(open_file(file), Ok(Source::Tensors(source)) if crate::import::has_parts(&source.tensors))
}

/// The file with the weights in an adapter's, model's or trainer's folder.
///
/// # Errors
///
/// [`Code::AdapterKind`] where there is none, or where several could be meant.
pub fn weights_of_folder(dir: &Path) -> Result<PathBuf> {
    let first_of = |names: &[&str]| names.iter().map(|f| dir.join(f)).find(|p| p.is_file());
    // The whole file first, as for bases: an index beside it is a leftover of something else.
    if let Some(known) = first_of(&ADAPTER_FILES) {
        return Ok(known);
    }
    let io = |e| Error::io(dir, "cannot list the folder", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let Ok(name) = entry.file_name().into_string()
            && !is_hidden(Path::new(&name))
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    if let Some(model) = first_of(&WEIGHTS_FILES) {
        // The memories may lie beside the model that they were trained with.
        let beside = || {
            names.iter().filter(|n| is_called_weights(n)).map(|n| dir.join(n)).filter(|p| *p != model && has_parts(p))
        };
        return match has_parts(&model) {
            true => Ok(model),
            false => match beside().collect::<Vec<_>>().as_slice() {
                [] => Ok(model),
                [one] => Ok(one.clone()),
                several => Err(which(dir, several)),
            },
        };
    }
    let mut found: Vec<&String> = names.iter().filter(|n| INDEX_ENDINGS.iter().any(|e| n.ends_with(e))).collect();
    if found.is_empty() {
        found = names.iter().filter(|n| is_called_weights(n)).collect();
    }
    match found[..] {
        [one] => Ok(dir.join(one)),
        [] => {
            let is_weights = |name: &str| WEIGHTS_ENDINGS.iter().chain(&INDEX_ENDINGS).any(|e| name.ends_with(e));
            let missing = || {
                let message = format!(
                    "expected a folder with {WEIGHTS_FILE}, its index, a model's weights or one checkpoint, found none"
                );
                Error::new(Code::AdapterKind, message).file(dir).hints(recognize::folder(dir))
            };
            Err(recognize::broken_link(dir, is_weights).unwrap_or_else(missing))
        }
        _ => Err(which(dir, &found.into_iter().map(|n| dir.join(n)).collect::<Vec<_>>())),
    }
}

fn is_called_weights(name: &str) -> bool {
    WEIGHTS_ENDINGS.iter().any(|e| name.ends_with(e)) && !BESIDE_WEIGHTS.iter().any(|b| name.starts_with(b))
}

/// Whether the folder `dir` could not be read any more once it held `output` too: it is read as the only file with weights
/// in it, under whatever name.
pub fn would_be_ambiguous_with(dir: &Path, output: &Path) -> bool {
    let is_inside = output.parent().is_some_and(|parent| resolved(parent) == resolved(dir));
    let is_weights = output.file_name().and_then(|n| n.to_str()).is_some_and(is_called_weights);
    is_inside
        && is_weights
        && weights_of_folder(dir).is_ok_and(|weights| {
            let name = weights.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let is_known = ADAPTER_FILES.iter().chain(&WEIGHTS_FILES).any(|known| *known == name);
            !is_known && is_called_weights(name) && weights != dir.join(output)
        })
}

/// The refusal to choose between files with weights.
fn which(dir: &Path, found: &[PathBuf]) -> Error {
    let name = |i: usize| found.get(i).and_then(|p| p.file_name()).unwrap_or_default();
    let message = format!(
        "expected one file with weights, found {}, among them {:?} and {:?}: name the file",
        found.len(),
        name(0),
        name(1)
    );
    Error::new(Code::AdapterKind, message).file(dir)
}
