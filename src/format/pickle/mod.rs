//! PyTorch checkpoints (`torch.save`): zip archives and the files from before PyTorch 1.6. Reading only.
//!
//! A checkpoint is a pickle, and pickles are programs. This reader executes nothing: the machine knows the opcodes
//! that build plain containers, and an allow-list has the few names that a state dict needs. What other names make stays
//! an [`Object`] that is not built; names that run programs are an error. What a file declares is limited in [`limits`].
//!
//! Bytes of tensors stay in the memory map. Opening a checkpoint reads its directory and its pickle; a storage is
//! read, and compared with its checksum, when [`TensorRef::lazy`] is called for a tensor in it. A 4 GB checkpoint
//! with a 60 MB adapter in it so costs 60 MB of reading.

mod archive;
mod check;
mod globals;
mod legacy;
pub mod limits;
mod machine;
mod objects;
mod opcode;
mod tensor;
mod value;

use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use objects::{Object, Objects};
pub(crate) use tensor::Storage;
pub use tensor::TensorRef;
pub use value::{Item, Key, Tensors, dotted};

use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::format::index::Shard;
use crate::format::mmap::map_file;
use crate::format::names::{check_name, check_printable};
use crate::format::recognize;
use crate::tensor::Bytes;
use limits::{MAX_SHARED_BYTES, MAX_SHARING, MAX_TENSORS};
use machine::Pickle;
use value::{Tree, Value};

/// How the file holds pickle and storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// A zip archive, with checksums.
    Zip,
    /// Pickles and storages one after another, without checksums.
    Legacy,
}

/// An open PyTorch checkpoint: a tree of plain values and tensors.
pub struct Checkpoint {
    path: Arc<Path>,
    container: Container,
    tree: Tree,
    objects: Objects,
}

impl Checkpoint {
    /// The file.
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// How the file holds pickle and storages.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The object that was saved; usually a dictionary.
    pub fn root(&self) -> Item<'_> {
        Item::new(&self.tree, self.tree.root)
    }

    /// Every tensor as other formats have it: contiguous. One that lies otherwise is copied; the bytes of copies together
    /// are at most those of the file.
    ///
    /// # Errors
    ///
    /// [`Code::PickleLimit`], those of the views.
    pub fn stored(&self) -> Result<Vec<StoredTensor>> {
        let mut left = std::fs::metadata(&self.path).map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX));
        let stored = |(keys, t): (Vec<Key>, &TensorRef)| t.stored(dotted(&keys), &mut left);
        self.tensors().map(stored).collect::<Result<_>>().map_err(|e| e.file(&self.path))
    }

    /// What is beside the plain values and tensors: objects of classes that are not read.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Every tensor with the keys that lead to it, in the file's order.
    pub fn tensors(&self) -> Tensors<'_> {
        self.root().tensors()
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {:?}, {} tensors)", self.path.display(), self.container, self.tree.tensors.len())
    }
}

/// Whether a file that starts with these bytes (16 are enough) is to be read as a PyTorch checkpoint: a zip archive,
/// or a pickle of protocol 2 or later. Older protocols are refused by name.
pub fn is_checkpoint(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
        || start.starts_with(b"PK\x05\x06")
        || is_pickle(start)
        || start.starts_with(&legacy::MAGIC_IN_TEXT[..16])
}

fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..])
}

/// Opens the checkpoint `path`.
///
/// # Errors
///
/// [`Code::NotFound`] and [`Code::Io`]; the `Pickle` codes, [`Code::NameInvalid`] and
/// [`Code::NameDuplicate`] for what the file says, with tensor and offset where they are known.
pub fn open(path: &Path) -> Result<Checkpoint> {
    read(path, map_file(path)?)
}

/// Opens the shards that the index `path` names, which `*.bin.index.json` of transformers is; each must hold the tensors
/// that the index lists in it, and no other.
///
/// # Errors
///
/// Those of [`open`]; [`Code::SafetensorsIndex`].
pub fn open_shards(path: &Path, shards: &[Shard]) -> Result<Vec<Checkpoint>> {
    let open_shard = |shard: &Shard| {
        let checkpoint = shard.opened(path, open(&shard.file))?;
        let names: Vec<String> = checkpoint.tensors().map(|(keys, _)| dotted(&keys)).collect();
        shard.holds(names.iter().map(String::as_str))?;
        Ok(checkpoint)
    };
    shards.iter().map(open_shard).collect()
}

/// Reads a checkpoint from the bytes of the file `path`.
///
/// # Errors
///
/// As [`open`].
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let path: Arc<Path> = path.into();
    let read = if is_pickle(&file) {
        read_legacy(&path, &file)
    } else if file.starts_with(legacy::MAGIC_IN_TEXT) {
        let message = "the file is pickled with protocol 0 or 1: save it with PyTorch's default, 2";
        Err(Error::new(Code::PickleUnsupported, message).at(0))
    } else {
        read_zip(&path, &file)
    };
    read.map_err(|e| recognize::named(&path, &file, e).file(&path))
}

fn read_zip(path: &Arc<Path>, file: &Bytes) -> Result<Checkpoint> {
    let archive = archive::read(file)?;
    if archive.entries.contains_key("constants.pkl") {
        return Err(Error::new(Code::PickleUnsupported, "the file is a TorchScript program, not a checkpoint"));
    }
    let data_start = archive.get("data.pkl")?.data.start as u64;
    check_version(&archive, file)?;
    let data = archive.read(file, "data.pkl", limits::MAX_PICKLE_BYTES)?;
    let (pickle, root) = machine::run(data, data_start, Container::Zip).map_err(|e| e.field("data.pkl"))?;
    if pickle.len_bytes != data.len() {
        let message = format!("{} bytes follow the pickle", data.len() - pickle.len_bytes);
        let at = data_start + pickle.len_bytes as u64;
        return Err(Error::new(Code::PickleStructure, message).field("data.pkl").at(at));
    }
    let storages = pickle.storages.iter().map(|declared| {
        let entry = archive.get(&format!("data/{}", declared.key)).map_err(|_| {
            let message = format!("the storage {:?} is missing", declared.key);
            Error::new(Code::PickleStorage, message).at(declared.declared_at)
        })?;
        storage(path, file, declared, entry.data.clone(), entry.crc32)
    });
    let storages = storages.collect::<Result<Vec<_>>>()?;
    let (tree, objects) = assemble(pickle, root, &storages)?;
    Ok(Checkpoint { path: path.clone(), container: Container::Zip, tree, objects })
}

/// PyTorch's own reader takes versions 1 to 10 (kMinSupportedFileFormatVersion and kMax... in caffe2/serialize), and
/// a file without `byteorder` (before PyTorch 2.1) as of the machine it is read on, which is little endian.
fn check_version(archive: &archive::Archive, file: &[u8]) -> Result<()> {
    let word = |name: &str| -> Result<Option<&str>> {
        if !archive.entries.contains_key(name) {
            return Ok(None);
        }
        let bytes = archive.read(file, name, limits::MAX_WORD_BYTES)?;
        let bad = |_| Error::new(Code::PickleArchive, "expected a word").field(name);
        std::str::from_utf8(bytes).map(|text| Some(text.trim_end())).map_err(bad)
    };
    let version = match word("version")? {
        Some(version) => Some(version),
        None => word(".data/version")?,
    };
    match version.map(str::parse::<u32>) {
        Some(Ok(1..=10)) => {}
        _ => {
            let message = format!("expected version 1 to 10, found {}", version.unwrap_or("none"));
            return Err(Error::new(Code::PickleUnsupported, message).field("version"));
        }
    }
    match word("byteorder")? {
        None | Some("little") => Ok(()),
        Some("big") => Err(Error::new(Code::PickleUnsupported, "the file is big endian").field("byteorder")),
        Some(other) => {
            Err(Error::new(Code::PickleArchive, format!("expected little or big, found {other:?}")).field("byteorder"))
        }
    }
}

fn read_legacy(path: &Arc<Path>, file: &Bytes) -> Result<Checkpoint> {
    let (pickle, root, ranges) = legacy::read(file)?;
    let storages = pickle.storages.iter().zip(ranges).map(|(s, range)| storage(path, file, s, range, None));
    let storages = storages.collect::<Result<Vec<_>>>()?;
    let (tree, objects) = assemble(pickle, root, &storages)?;
    Ok(Checkpoint { path: path.clone(), container: Container::Legacy, tree, objects })
}

/// The storage that lies in `range`, whose length must be that of the declared elements.
fn storage(
    path: &Arc<Path>,
    file: &Bytes,
    declared: &machine::DeclaredStorage,
    range: std::ops::Range<usize>,
    crc32: Option<u32>,
) -> Result<Arc<Storage>> {
    let machine::DeclaredStorage { key, dtype, n_elements, declared_at } = declared;
    let expected = n_elements.checked_mul(dtype.block_bytes() as u64);
    let bytes = file.slice(range.clone()).filter(|b| expected == Some(b.len() as u64)).ok_or_else(|| {
        let message =
            format!("expected {n_elements} elements of {dtype} in storage {key:?}, found {} bytes", range.len());
        Error::new(Code::PickleStorage, message).at(*declared_at)
    })?;
    Ok(Arc::new(Storage {
        key: key.clone(),
        bytes,
        file: path.clone(),
        file_offset: range.start as u64,
        crc32,
        intact: OnceLock::new(),
    }))
}

/// Joins pickle and storages, and checks what needs both: that every tensor lies inside its storage.
fn assemble(pickle: Pickle, root: Value, storages: &[Arc<Storage>]) -> Result<(Tree, Objects)> {
    check::tree(&pickle, root)?;
    let objects = objects::of(&pickle, root)?;
    let declared_at: Vec<u64> = pickle.tensors.iter().map(|t| t.declared_at).collect();
    let tensors = pickle.tensors.into_iter().map(|t| TensorRef {
        storage: storages[t.storage as usize].clone(),
        dtype: t.dtype,
        shape: t.shape,
        strides: t.strides,
        // What does not fit into memory is outside every storage.
        storage_offset: usize::try_from(t.storage_offset).unwrap_or(usize::MAX),
    });
    let tree = Tree { arena: pickle.arena, root, tensors: tensors.collect() };

    let stored: usize = storages.iter().map(|s| s.bytes.len()).sum(); // parts of one file
    let most = stored.saturating_mul(MAX_SHARING).saturating_add(MAX_SHARED_BYTES);
    let mut left = most;
    let mut walk = Item::new(&tree, root).tensors();
    let mut n_found = 0;
    while let Some(n) = walk.advance() {
        n_found += 1;
        if n_found > MAX_TENSORS {
            let message = format!("tensors are referred to more than {} times", MAX_TENSORS);
            return Err(Error::new(Code::PickleLimit, message));
        }
        let n = n as usize;
        let name = dotted(walk.path());
        check_keys(walk.path(), &name).map_err(|e| e.at(declared_at[n]))?;
        let view = tree.tensors[n].view().map_err(|e| {
            let message = e.message().to_owned();
            Error::new(Code::PickleTensor, message).field(&name).at(declared_at[n])
        })?;
        left = left.checked_sub(view.len_bytes()).ok_or_else(|| {
            let message = format!(
                "expected tensors of at most {most} bytes together, sharing {stored} bytes of storages, found more"
            );
            Error::new(Code::PickleLimit, message).field(&name).at(declared_at[n])
        })?;
    }
    Ok((tree, objects))
}

/// Key at the top of Lightning's checkpoints. What is below belongs to the trainer; its keys are settings and paths of
/// files (the best checkpoints so far), not names of weights.
const CALLBACKS: Key<'static> = Key::Name("callbacks");

/// Whether the keys that lead to a tensor are names, each by itself and together. A tensor that was saved by itself has
/// none.
fn check_keys(path: &[Key<'_>], name: &str) -> Result<()> {
    if path.len() > 1 && path[0] == CALLBACKS {
        return check_printable(name);
    }
    for key in path {
        if let Key::Name(key) = key {
            check_name(key)?;
        }
    }
    if path.is_empty() { Ok(()) } else { check_name(name) }
}
