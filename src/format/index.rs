//! Sharded models: `model.safetensors.index.json` and `pytorch_model.bin.index.json` name the shard of every tensor.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{json, limits, links};
use crate::error::{Code, Error, Result};
use crate::format::names::{check_name, shorten};

/// A file that an index names.
#[derive(Debug)]
pub struct Shard {
    /// Where it is: in the folder of the index.
    pub file: PathBuf,
    /// As the index has it.
    name: String,
    /// The tensors that the index lists in it.
    listed: Vec<String>,
}

/// The shards that the index `path` names, by name. None is opened.
///
/// # Errors
///
/// [`Code::SafetensorsIndex`], and those of [`json::read_file`].
pub fn read(path: &Path) -> Result<Vec<Shard>> {
    let index = json::read_file(path, limits::JSON_BYTES)?;
    let shards = shards_of(index).map_err(|e| e.file(path))?;
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if shards.is_empty() {
        return Err(fault("expected at least one tensor, found an empty weight_map".into()).file(path));
    }
    let shard = |(name, listed): (String, Vec<String>)| {
        let file = shard_path(folder, &name).map_err(|e| e.file(path).field(shorten(&name)))?;
        Ok(Shard { file, name, listed })
    };
    shards.into_iter().map(shard).collect()
}

impl Shard {
    /// The error of opening this shard of `index`, where it may not be there.
    pub(super) fn opened<T>(&self, index: &Path, opened: Result<T>) -> Result<T> {
        opened.map_err(|e| match e.code() {
            // That a link leads nowhere, as in a cache that lacks a file, says more.
            Code::NotFound if !self.file.is_symlink() => {
                let message = format!("the index names this shard, but there is none at {}", self.file.display());
                fault(message).file(index).field(&self.name)
            }
            _ => e,
        })
    }

    /// The shard holds the listed tensors and no other.
    pub(super) fn holds<'a>(&self, found: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut missing: HashSet<&str> = self.listed.iter().map(String::as_str).collect();
        for name in found {
            if !missing.remove(name) {
                let message = "the shard holds this tensor, but the index does not list it here";
                return Err(fault(message.into()).field(name).file(&self.file));
            }
        }
        match missing.into_iter().min() {
            Some(name) => {
                let message = "the index lists this tensor in the shard, but it is not there";
                Err(fault(message.into()).field(name).file(&self.file))
            }
            None => Ok(()),
        }
    }
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
