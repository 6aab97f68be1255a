//! Starting a llama.cpp program with adapters in it: what goes into its environment, and the files behind that.
//!
//! ```text
//!   adapters --(validated against the model)--> GGUF files, as they are or in the store ---.
//!   the graft ---------------------------------> a file in the store -----------------------+--> Environment
//!   scales ------------------------------------> a control file, where one is asked for ---'
//! ```

pub mod control;
mod environment;
mod flags;
pub mod lora;
mod model;
mod state;
mod store;

pub use environment::{Environment, MAX_ADAPTERS};
pub use flags::{Said, said};
pub use model::{check_takes_model, model_in, names_model};
pub use state::{SlotState, slot_state};
pub use store::Store;

use std::path::{Path, PathBuf};

use crate::about::About;
use crate::adapter::{Kind, Lora};
use crate::base::BaseModel;
use crate::base::fingerprint::{Depth, Identity};
use crate::doctor::{Diagnosis, Loading, Verdict};
use crate::error::{Code, Error, Result};
use crate::format::elf;
use crate::format::gguf;
use crate::format::mmap::map_file;
use crate::import::{Options, gguf_kind};
use crate::pipeline::{Convert, Format, Proof, convert, read_adapter_with};
use crate::runner::Device;
use crate::validate::BaseMismatch;
use crate::verify::{self, probe::Probe};

/// The graft's file name; loaders show it in their messages.
pub const LIBRARY_NAME: &str = "libptplus_graft.so";

/// An adapter as the graft or llama.cpp reads it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ready {
    /// What was given.
    pub source: PathBuf,
    /// The GGUF file, its path absolute.
    pub file: PathBuf,
    /// Factor on what it adds.
    pub scale: f32,
    /// Whether llama.cpp adds it itself, as its programs' arguments say.
    pub is_lora: bool,
    /// What it says to whoever runs it.
    pub about: About,
    /// Whether the base is the one that it was made for, where it says which.
    pub base_identity: Option<Identity>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// How adapters are read and checked.
pub struct Reading<'a> {
    /// What the caller states about checkpoints.
    pub stated: Options,
    /// What PyTorch computed, and where it was read from: settles what nobody states, and proves the rest.
    pub probe: Option<(&'a Probe, &'a Path)>,
    /// Whether a base that the adapter was not made for is refused.
    pub base_mismatch: BaseMismatch,
}

/// Validates the adapter at `source` against `base`, and makes it a GGUF file in `store` unless it is one.
///
/// # Errors
///
/// Those of reading, validating and converting an adapter; those of [`Store::put`].
pub fn ready(source: &Path, scale: f32, base: &BaseModel, reading: &Reading<'_>, store: &Store) -> Result<Ready> {
    if reading.probe.is_none() && source.is_file() && gguf::is_gguf(&map_file(source)?) {
        let adapter = read_adapter_with(source, &reading.stated, Some(base))?;
        // Written anew, additions outside of the blocks are held against what llama.cpp can do, and keys are multiplied as the base's.
        let lora = adapter.adapter().as_lora();
        let is_as_it_is = |l: &Lora| l.has_keys_of(&base.config) && l.tensors().all(|(slot, _)| slot.layer.is_some());
        if lora.is_none_or(is_as_it_is) {
            let base_identity = adapter.confirm_base(base, Depth::Weights, reading.base_mismatch)?;
            let (file, is_lora) = (absolute(source)?, lora.is_some());
            let about = About::of(adapter.adapter())?;
            let (source, notes) = (source.to_owned(), adapter.notes);
            return Ok(Ready { source, file, scale, is_lora, about, base_identity, notes });
        }
    }
    let (device, progress) = (Device::cpu(), |_: usize, _: usize| {});
    let scratch = store.scratch()?;
    let staged = scratch.path().join("adapter.gguf");
    let mut job = Convert::new(source, &staged, Format::Gguf);
    job.reading = &reading.stated;
    job.base = Some(base);
    job.base_mismatch = reading.base_mismatch;
    job.prove = reading.probe.map(|(probe, path)| Proof {
        probe,
        path,
        options: verify::Options { device: &device, tolerance: None, progress: &progress },
    });
    let converted = convert(&job)?;
    let file = store.put("adapters", &format!("{}.gguf", stem(source)?), &map_file(&staged)?)?;
    let (base_identity, notes) = (converted.base_identity, converted.notes);
    let metadata = gguf::open(&file)?.metadata;
    let kind = gguf_kind(&metadata).map_err(|e| e.file(&file))?;
    let about = About::of_metadata(&metadata).map_err(|e| e.file(&file))?;
    Ok(Ready { source: source.to_owned(), file, scale, is_lora: kind == Some(Kind::Lora), about, base_identity, notes })
}

/// What people call an adapter: its file's or folder's name without the ending.
fn stem(source: &Path) -> Result<String> {
    let path = absolute(source)?;
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let name = name.map_or("adapter".into(), |n| n.to_string_lossy().into_owned());
    // What a file of ours may be called, whatever its source was.
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '/').take(64).collect();
    Ok(if name.is_empty() { "adapter".into() } else { name })
}

/// The path from the root, so that it holds whatever folder the program changes to.
///
/// # Errors
///
/// [`Code::NotFound`], [`Code::Io`].
pub fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io(path, "cannot open", e))
}

/// Refuses a program that would start without the graft, silently.
///
/// # Errors
///
/// [`Code::ProgramUnfit`] with the reason; those of reading the program.
pub fn check_program(program: &Path, found: &Diagnosis, library: &[u8]) -> Result<()> {
    let unfit = |message: String| Error::new(Code::ProgramUnfit, message).file(program);
    if !matches!(found.verdict, Verdict::Graftable | Verdict::Undecided) {
        let message = format!("expected a program that can take adapters: {}", found.reason);
        return Err(unfit(message).hints(found.advice.map(str::to_owned)));
    }
    let Some(Loading { machine, interpreter }) = &found.loading else {
        return Err(unfit("expected a program, found a folder".into()));
    };
    let own = elf::read(library, &[])?;
    if *machine != own.machine {
        let message = format!("expected a program for {}, found one for {}", own.machine.name(), machine.name());
        return Err(unfit(message));
    }
    // Both kinds of C library load the other's libraries badly or not at all.
    let is_for_musl = own.needed.iter().any(|n| n.starts_with("libc.musl") || n == "libc.so");
    match interpreter {
        None => return Err(unfit("expected a program, found a library".into())),
        Some(interpreter) if interpreter.contains("ld-musl") != is_for_musl => {
            let name = |musl: bool| if musl { "musl" } else { "glibc" };
            let message = format!(
                "expected a program on {}, which this ptplus and its library were built with, found one on {}",
                name(is_for_musl),
                name(!is_for_musl)
            );
            return Err(unfit(message));
        }
        Some(_) => {}
    }
    let file = found.interpreters.last().map_or(program, PathBuf::as_path);
    if gains_rights(file)? {
        let message = "expected a program without more rights than its user, found set-user-ID, set-group-ID or capabilities: the loader ignores LD_PRELOAD for it";
        return Err(unfit(message.into()));
    }
    Ok(())
}

/// Whether the system gives whoever starts the file more rights: then the loader takes no libraries from the environment.
fn gains_rights(file: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(file).map_err(|e| Error::io(file, "cannot open", e))?;
    let is_set_id = meta.mode() & 0o6000 != 0;
    let mut room = [0_u8; 64];
    let has_capabilities = rustix::fs::getxattr(file, "security.capability", &mut room[..]).is_ok_and(|n| n > 0);
    Ok(is_set_id || has_capabilities)
}
