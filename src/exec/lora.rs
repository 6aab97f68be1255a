//! LoRA, which llama.cpp's programs add themselves: the arguments that name the files.

use std::ffi::OsString;
use std::path::Path;

use super::Ready;
use super::flags::knows;
use crate::error::{Code, Error, Result};

/// What a program that takes LoRAs has in it: the name of a flag of llama.cpp's `common/arg.cpp`.
const FLAG: &str = "--lora-scaled";

/// `--lora FILE` for each, or `--lora-scaled FILE:SCALE`.
///
/// # Errors
///
/// [`Code::Usage`] for a file whose name those flags would split.
pub fn arguments(adapters: &[Ready]) -> Result<Vec<OsString>> {
    let mut all = Vec::new();
    for adapter in adapters {
        let name = adapter.file.to_str().ok_or_else(|| refused(&adapter.file, "a name in UTF-8"))?;
        if name.contains([',', '"']) || (adapter.scale != 1.0 && name.contains(':')) {
            return Err(refused(&adapter.file, "a path without , \" and :, at which llama.cpp splits it"));
        }
        match adapter.scale {
            1.0 => all.extend(["--lora".into(), name.into()]),
            scale => all.extend([FLAG.into(), format!("{name}:{scale}").into()]),
        }
    }
    Ok(all)
}

fn refused(file: &Path, expected: &str) -> Error {
    Error::new(Code::Usage, format!("expected {expected}, found another: move the adapter")).file(file)
}

/// Refuses a program that would not read the flags: an interpreter, for instance, passes them to a script that ignores them.
///
/// # Errors
///
/// [`Code::ProgramUnfit`]; those of reading the program.
pub fn check_program(program: &Path) -> Result<()> {
    if knows(program, FLAG)? {
        return Ok(());
    }
    let message = format!("expected a program of llama.cpp, which takes a LoRA by {FLAG}, found another");
    let hint =
        "ptplus convert ADAPTER -o OUT.gguf --base BASE writes the file, for what the program itself loads it with";
    Err(Error::new(Code::ProgramUnfit, message).file(program).hints([hint.to_owned()]))
}
