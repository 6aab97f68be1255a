//! Virtual tokens, which llama-server takes as the saved state of a slot: the file, the argument that names its folder, and what
//! whoever asks the server has to send.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Store;
use super::flags::{is_given, knows};
use crate::base::BaseModel;
use crate::base::fingerprint::{Depth, Identity};
use crate::error::{Code, Error, Result};
use crate::format::llama_state::Cache;
use crate::pipeline::read_adapter;
use crate::runner::{Device, TOKEN, sequence_state, state_notes};
use crate::tensor::DType;
use crate::validate::BaseMismatch;

/// The folder in which llama-server looks for states of slots.
const FLAG: &str = "--slot-save-path";
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
/// adapter, of [`sequence_state`] and of [`Store::put`].
pub fn slot_state(
    adapter: &Path,
    base: &BaseModel,
    base_mismatch: BaseMismatch,
    (program, given): (Option<&Path>, &[OsString]),
    store: &Store,
) -> Result<SlotState> {
    if let Some(program) = program.filter(|p| !knows(p, FLAG).unwrap_or(false)) {
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
    let read = read_adapter(adapter, Some(base))?;
    let base_identity = read.confirm_base(base, Depth::Weights, base_mismatch)?;
    let Some(prefix) = read.adapter().as_prefix() else {
        return Err(Error::new(Code::AdapterKind, "expected virtual tokens, found another adapter").file(adapter));
    };
    let cache = cache_of(given)?;
    let bytes = sequence_state(prefix, base, &cache, &Device::cpu())?;
    let file = store.put("states", "virtual-tokens.bin", &bytes)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let n = prefix.n_tokens();
    let mut notes = read.notes.clone();
    notes.extend(state_notes(base, n));
    notes.push(format!(
        "once the server is up, for each slot: POST /slots/N?action=restore {{\"filename\": \"{name}\"}}; prompts begin with {n} times token \
         {TOKEN}, and an answer that had them says cache_n of at least {n} (docs/howto/virtual-tokens.md)"
    ));
    Ok(SlotState { arguments: vec![FLAG.into(), folder.into()], file, base_identity, notes })
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
