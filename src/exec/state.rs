//! Virtual tokens, which llama-server takes as the saved state of a slot: the file, the argument that names its folder, and what
//! whoever asks the server has to send.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::flags::{is_given, knows};
use super::{Reading, Store};
use crate::about::About;
use crate::base::BaseModel;
use crate::base::fingerprint::{Depth, Identity};
use crate::doctor::Diagnosis;
use crate::error::{Code, Error, Result};
use crate::format::llama_state::{Cache, Version};
use crate::format::mmap::map_file;
use crate::pipeline::read_adapter_with;
use crate::runner::{Device, TOKEN, heeded_window, sequence_state, state_notes};
use crate::tensor::DType;
use crate::verify::{self, Reference, verify};

/// The folder in which llama-server looks for states of slots.
const FLAG: &str = "--slot-save-path";
/// Layers with a window keep all positions. Without it the server takes what such a slot has for too little, and reads a prompt from its
/// first token on: as real tokens, where the virtual ones are to be.
const FULL: &str = "--swa-full";
const FLASH_ATTENTION: [&str; 2] = ["-fa", "--flash-attn"];
const K_TYPE: [&str; 2] = ["-ctk", "--cache-type-k"];
const V_TYPE: [&str; 2] = ["-ctv", "--cache-type-v"];
const PARALLEL: [&str; 2] = ["-np", "--parallel"];
const UNIFIED: [&str; 2] = ["-kvu", "--kv-unified"];

/// What a server with virtual tokens is started with.
#[derive(Debug)]
#[non_exhaustive]
pub struct SlotState {
    /// The file.
    pub file: PathBuf,
    /// Arguments to add.
    pub arguments: Vec<OsString>,
    /// What the adapter says to whoever runs it.
    pub about: About,
    /// Whether the base is the one that the virtual tokens were made for.
    pub base_identity: Option<Identity>,
    /// What whoever starts the server has to know.
    pub notes: Vec<String>,
}

/// Makes the state of the virtual tokens at `adapter` for the caches that `given` arguments have llama-server make.
///
/// # Errors
///
/// [`Code::ProgramUnfit`] for a program that restores no slots; [`Code::Usage`] for caches that cannot be; those of reading the
/// adapter, of [`verify`](verify()) where there is a probe, of [`sequence_state`] and of [`Store::put`].
pub fn slot_state(
    adapter: &Path,
    base: &BaseModel,
    reading: &Reading<'_>,
    (program, given): (Option<(&Path, &Diagnosis)>, &[OsString]),
    store: &Store,
) -> Result<SlotState> {
    if let Some((program, _)) = program.filter(|(p, _)| !knows(p, FLAG).unwrap_or(false)) {
        let message =
            format!("expected llama-server, which restores the state of a slot ({FLAG}), found another program");
        let hint = "ptplus convert ADAPTER --base BASE -o STATE.bin --to llama-state writes the state, for programs that load it themselves";
        return Err(Error::new(Code::ProgramUnfit, message).file(program).hints([hint.to_owned()]));
    }
    if is_given(given, &[FLAG]) {
        let message = "expected no folder of states, since the virtual tokens lie in one of ptplus; or make the state by \
                       `ptplus convert --to llama-state` and put it into yours";
        return Err(Error::new(Code::Usage, message).field(FLAG));
    }
    let read = read_adapter_with(adapter, &reading.stated, Some(base))?;
    let base_identity = read.confirm_base(base, Depth::Weights, reading.base_mismatch)?;
    let Some(prefix) = read.adapter().as_prefix() else {
        return Err(Error::new(Code::AdapterKind, "expected virtual tokens, found another adapter").file(adapter));
    };
    let mut cache = cache_of(given)?;
    let version = program.map_or(Ok(None), |(path, diagnosis)| version_of(path, diagnosis))?;
    cache.version = version.unwrap_or(cache.version);
    if let Some((probe, _)) = reading.probe {
        let options = verify::Options { device: &Device::cpu(), tolerance: None, progress: &|_, _| {} };
        verify(&read, base, Reference::Probe(probe), &options)?.passed("nothing was started", adapter)?;
    }
    let bytes = sequence_state(prefix, base, &cache, &Device::cpu())?;
    let file = store.put("states", "virtual-tokens.bin", &bytes)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let n = prefix.n_tokens();
    let mut notes = read.notes.clone();
    notes.extend(state_notes(base, n));
    if cache.version == Version::V3 {
        let note = "its llama.cpp is of before version 4 of states: this one is of version 3, which one that is older still refuses (unknown (magic, version))";
        notes.push(note.to_owned());
    }
    notes.push(format!(
        "once the server is up, for each slot: POST /slots/N?action=restore {{\"filename\": \"{name}\"}}; prompts begin with {n} times token \
         {TOKEN}, and an answer that had them says cache_n of at least {n} (docs/howto/virtual-tokens.md)"
    ));
    let mut arguments = vec![FLAG.into(), folder.into()];
    if heeded_window(base).is_some() && !is_given(given, &[FULL]) {
        arguments.push(FULL.into());
        notes.push(format!(
            "{FULL}: without it llama-server would read the virtual tokens of this base, which has windows, as real ones; caches of layers \
             with a window are as long as the others"
        ));
    }
    Ok(SlotState { arguments, about: About::of(read.adapter())?, file, base_identity, notes })
}

/// The version of states that the program's llama.cpp reads, by what it can complain of; `None` where no llama.cpp is in sight.
fn version_of(program: &Path, diagnosis: &Diagnosis) -> Result<Option<Version>> {
    const OF_4: &[u8] = b"incompatible key rotation";
    const OF_OLDER: &[u8] = b"incompatible V transposition";
    let mut found = None;
    let objects = diagnosis.object.iter().chain(&diagnosis.others).map(|caller| caller.path.as_path());
    for path in objects.chain([program]) {
        let file = map_file(path)?;
        if memmem::find(&file, OF_4).is_some() {
            return Ok(Some(Version::V4));
        }
        found = found.or(memmem::find(&file, OF_OLDER).map(|_| Version::V3));
    }
    Ok(found)
}

/// The caches that llama-server makes with these arguments.
fn cache_of(given: &[OsString]) -> Result<Cache> {
    let mut cache = Cache::default();
    if let Some(text) = value(given, &FLASH_ATTENTION) {
        // `auto` is on where the device has the kernel.
        cache.flash_attention = !matches!(text, "off" | "0" | "false" | "disabled");
    }
    for (flags, dtype) in [(K_TYPE, &mut cache.k_type), (V_TYPE, &mut cache.v_type)] {
        if let Some(text) = value(given, &flags) {
            *dtype = DType::parse(text).ok_or_else(|| {
                Error::new(Code::Usage, format!("expected a type of ggml's, found {text:?}")).field(flags[1])
            })?;
        }
    }
    if let Some(text) = value(given, &PARALLEL) {
        let n: i32 = text
            .parse()
            .map_err(|_| Error::new(Code::Usage, format!("expected a number, found {text:?}")).field(PARALLEL[1]))?;
        // Without a number, the sequences share their cells.
        if n > 0 && !is_given(given, &UNIFIED) {
            cache.n_streams = n as u32;
        }
    }
    cache.check()?;
    Ok(cache)
}

/// The value of the last of `flags` among the arguments.
fn value<'a>(given: &'a [OsString], flags: &[&str]) -> Option<&'a str> {
    let at = given.iter().rposition(|word| flags.iter().any(|flag| word.as_bytes() == flag.as_bytes()))?;
    given.get(at + 1)?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_those_of_the_arguments() {
        let of = |line: &str| cache_of(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        let default = Cache::default();
        for (line, expected) in [
            ("", default),
            ("-m x.gguf -fa auto", default),
            ("-fa off", Cache { flash_attention: false, ..default }),
            ("--flash-attn off -fa on", default),
            ("-ctk q8_0 --cache-type-v bf16", Cache { k_type: DType::Q8_0, v_type: DType::BF16, ..default }),
            ("-np 3", Cache { n_streams: 3, ..default }),
            ("-np 3 -kvu", default),
            ("-np -1", default),
        ] {
            assert_eq!(of(line).unwrap(), expected, "{line}");
        }
        for line in ["-ctk x", "-np x", "-fa off -ctv q8_0", "-ctk iq4_nl"] {
            assert_eq!(of(line).unwrap_err().code(), Code::Usage, "{line}");
        }
    }
}
