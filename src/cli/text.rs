//! Files of text that a command reads.

use std::io::Read as _;
use std::path::Path;

use crate::error::{Code, Error, Result};
use crate::format::limits::TEMPLATE_BYTES;
use crate::format::mmap::open_regular;
use crate::format::recognize::refuse_stand_in;

/// A text file of at most so many bytes.
pub fn read_text(path: &Path, what: &str, max_bytes: usize) -> Result<String> {
    let mut text = Vec::new();
    let mut file = open_regular(path)?.take(max_bytes as u64 + 1);
    file.read_to_end(&mut text).map_err(|e| Error::io(path, &format!("cannot read {what}"), e))?;
    if text.len() > max_bytes {
        let message = format!("expected at most {max_bytes} bytes, found more");
        return Err(Error::new(Code::Usage, message).file(path));
    }
    String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to() as u64;
        Error::new(Code::Usage, "expected UTF-8, found an invalid byte").file(path).at(at)
    })
}

/// A chat template.
pub fn read_template(path: &Path) -> Result<String> {
    let text = read_text(path, "the chat template", TEMPLATE_BYTES)?;
    refuse_stand_in(text.as_bytes()).map_err(|e| e.file(path))?;
    Ok(text)
}
