//! Sharded models: `model.safetensors.index.json` names the shard of every tensor.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Safetensors, is_safetensors, parse};
use crate::error::{Code, Error, Result};
use crate::format::mmap::map_file;
use crate::format::names::{check_name, shorten};
use crate::format::{json, limits, links, pickle};

/// Opens all shards of a model, given its `*.safetensors.index.json`. Each shard is opened once; index and shards must
/// list exactly the same tensors.
///
/// # Errors
///
/// [`Code::SafetensorsIndex`], [`Code::UnknownFormat`] where a shard is a PyTorch checkpoint, and those of
/// [`open`](super::open) and [`json::read_file`].
pub fn open_index(path: &Path) -> Result<Safetensors> {
    let index = json::read_file(path, limits::JSON_BYTES)?;
    let shards = shards_of(index).map_err(|e| e.file(path))?;
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut whole: Option<Safetensors> = None;
    for (shard, listed) in shards {
        let file = shard_path(folder, &shard).map_err(|e| e.file(path).field(shorten(&shard)))?;
        let part = open_shard(&file).map_err(|e| match e.code() {
            Code::NotFound => fault(format!("the index names this shard, but there is none at {}", file.display()))
                .file(path)
                .field(shard),
            _ => e,
        })?;
        compare(&part, listed).map_err(|e| e.file(&file))?;
        match &mut whole {
            None => whole = Some(Safetensors { path: path.to_owned(), ..part }),
            Some(whole) => append(whole, part),
        }
    }
    whole.ok_or_else(|| fault("expected at least one tensor, found an empty weight_map".into()).file(path))
}

fn open_shard(file: &Path) -> Result<Safetensors> {
    let bytes = map_file(file)?;
    if pickle::is_checkpoint(&bytes) && !is_safetensors(&bytes) {
        let message = "expected an index of safetensors, found that this shard is a PyTorch checkpoint: save the model as safetensors, or as one checkpoint";
        return Err(Error::new(Code::UnknownFormat, message).file(file));
    }
    parse(file, &bytes)
}

fn fault(message: String) -> Error {
    Error::new(Code::SafetensorsIndex, message)
}

/// The shards by name, each with its tensors. Takes the index apart, which is large.
fn shards_of(mut index: Value) -> Result<BTreeMap<String, Vec<String>>> {
    check_metadata(index.get("metadata"))?;
    let Some(Value::Object(map)) = index.get_mut("weight_map").map(Value::take) else {
        return Err(fault("expected an object of file names".into()).field("weight_map"));
    };
    let n_tensors = map.len();
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in map {
        check_name(&tensor)?;
        let Value::String(shard) = shard else {
            return Err(fault("expected a file name".into()).field(tensor));
        };
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.len() > limits::SHARDS || n_tensors as u64 > limits::TENSORS {
        let message = format!("{} shards with {n_tensors} tensors are above the limits", shards.len());
        return Err(fault(message).field("weight_map"));
    }
    Ok(shards)
}

/// `total_size` is what somebody once added up, as an integer or not, tied weights counted or not: nothing is computed
/// from it, and its type is all that can be wrong.
fn check_metadata(metadata: Option<&Value>) -> Result<()> {
    match metadata {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(m)) => match m.get("total_size") {
            None => Ok(()),
            Some(size) if size.as_f64().is_some_and(|n| n >= 0.0) => Ok(()),
            Some(other) => {
                let message = format!("expected a number of bytes, found {}", shorten(&other.to_string()));
                Err(fault(message).field("metadata.total_size"))
            }
        },
        Some(_) => Err(fault("expected an object".into()).field("metadata")),
    }
}

/// The shard's path: a plain file name in the index's folder, which also a link may not leave.
fn shard_path(folder: &Path, shard: &str) -> Result<PathBuf> {
    check_name(shard)?;
    if shard.contains(['/', '\\']) || shard == "." {
        return Err(fault("expected a plain file name, found a path".into()));
    }
    let path = folder.join(shard);
    if let Some(target) = links::target_outside(folder, &path) {
        return Err(fault(format!("expected a file of this folder, found a link to {}", target.display())));
    }
    Ok(path)
}

/// The shard holds the listed tensors and no other.
fn compare(part: &Safetensors, listed: Vec<String>) -> Result<()> {
    let mut missing: HashSet<&str> = listed.iter().map(String::as_str).collect();
    for t in &part.tensors {
        if !missing.remove(&*t.name) {
            return Err(fault("the shard holds this tensor, but the index does not list it here".into()).field(&t.name));
        }
    }
    match missing.into_iter().min() {
        Some(name) => Err(fault("the index lists this tensor in the shard, but it is not there".into()).field(name)),
        None => Ok(()),
    }
}

fn append(whole: &mut Safetensors, part: Safetensors) {
    whole.metadata.retain(|k, v| part.metadata.get(k) == Some(v));
    whole.tensors.extend(part.tensors);
    whole.files.extend(part.files);
    whole.len_bytes = whole.len_bytes.saturating_add(part.len_bytes);
}
