//! The bytes of one pickle: every length that they declare is compared with what is left.

use super::{over, structure, utf8};
use crate::error::{Code, Error, Result};
use crate::format::pickle::limits::*;

/// A pickle's bytes and how many of them were taken.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// Whether the file goes on where `bytes` ends.
    cut: bool,
    /// Where the present frame ends; 0 before the first.
    frame_end: usize,
}

impl<'a> Input<'a> {
    /// What starts at `bytes[0]`, as far as a pickle may go.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let len = bytes.len().min(MAX_PICKLE_BYTES);
        Input { bytes: &bytes[..len], pos: 0, cut: bytes.len() > len, frame_end: 0 }
    }

    /// How many bytes were taken.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let bytes = self.pos.checked_add(len).and_then(|end| self.bytes.get(self.pos..end));
        let bytes = bytes.ok_or_else(|| self.truncated(len))?;
        if self.in_frame() && self.pos + len > self.frame_end {
            return Err(structure("an operation reaches across the end of its frame"));
        }
        self.pos += len;
        Ok(bytes)
    }

    pub(super) fn truncated(&self, want: usize) -> Error {
        if self.cut {
            return Error::new(Code::PickleLimit, format!("a pickle of more than {MAX_PICKLE_BYTES} bytes"));
        }
        let left = self.bytes.len() - self.pos;
        Error::new(Code::PickleTruncated, format!("expected {want} more bytes, found {left}"))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// An unsigned little-endian number of `width` bytes. One that no memory holds is longer than what is left.
    pub(super) fn length(&mut self, width: usize) -> Result<usize> {
        let mut le = [0; 8];
        le[..width].copy_from_slice(self.take(width)?);
        Ok(usize::try_from(u64::from_le_bytes(le)).unwrap_or(usize::MAX))
    }

    pub(super) fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let len = self.length(width)?;
        self.take(len)
    }

    /// Text up to the end of the line.
    pub(super) fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.pos..];
        let window = &rest[..rest.len().min(MAX_GLOBAL_BYTES + 1)];
        let Some(len) = window.iter().position(|&b| b == b'\n') else {
            return Err(if window.len() > MAX_GLOBAL_BYTES {
                over("bytes in the name of a global", MAX_GLOBAL_BYTES)
            } else {
                self.truncated(window.len() + 1)
            });
        };
        self.take(len + 1)?;
        utf8(&window[..len])
    }

    /// Starts a frame of `len` bytes. Frames are advice on how much to read ahead, but Python trusts them: it stumbles
    /// over an operation that reaches across the end of one, and over what is left of one at `STOP`.
    pub(super) fn start_frame(&mut self, len: usize) -> Result<()> {
        if len > self.bytes.len() - self.pos {
            return Err(self.truncated(len));
        }
        if self.in_frame() {
            return Err(structure("a frame starts inside another"));
        }
        self.frame_end = self.pos + len;
        Ok(())
    }

    /// Whether the present frame goes on.
    pub(super) fn in_frame(&self) -> bool {
        self.pos < self.frame_end
    }
}
