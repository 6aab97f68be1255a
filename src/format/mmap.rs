//! Files as immutable bytes through a memory map; the only `unsafe` of the formats.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::links;
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;
use crate::tensor::lazy::Backing;

use memmap2::UncheckedAdvice;

/// Opens a regular file for reading; never blocks, whatever stands at `path`.
///
/// # Errors
///
/// [`Code::NotFound`], [`Code::Io`]; [`Code::NotAFile`] for folders, pipes, sockets and devices.
pub fn open_regular(path: &Path) -> Result<File> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer that may never come. It has no effect on regular files.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| match std::fs::metadata(path) {
            Ok(m) if !m.is_file() => not_a_file(path, &m),
            _ => links::not_opened(path, "cannot open", e),
        })?;
    let metadata = file.metadata().map_err(|e| Error::io(path, "cannot read its size", e))?;
    if metadata.is_file() { Ok(file) } else { Err(not_a_file(path, &metadata)) }
}

fn not_a_file(path: &Path, metadata: &std::fs::Metadata) -> Error {
    let found = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Error::new(Code::NotAFile, format!("expected a regular file, found {found}")).file(path)
}

/// Maps a regular file; an empty file gives empty bytes. Pages are read when they are touched.
///
/// # Errors
///
/// As [`open_regular`]; [`Code::Io`] where the system refuses the map.
pub fn map_file(path: &Path) -> Result<Bytes> {
    let file = open_regular(path)?;
    let metadata = file.metadata().map_err(|e| Error::io(path, "cannot read its size", e))?;
    if metadata.len() == 0 {
        return Ok(Vec::new().into());
    }
    // SAFETY: the map is private and read-only, and nothing in this crate writes to a file that it reads: outputs are
    // new files renamed into place, and an output that is an input is refused. `Mmap` owns the mapping, which outlives
    // the descriptor. What remains is another process that truncates or rewrites the file while it is mapped: then
    // bytes may change between two reads (no code relies on reading the same value twice for memory safety; the bytes
    // are only ever viewed as `[u8]`), or the system ends this process with SIGBUS. docs/ARCHITECTURE.md says so.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map", e))?;
    Ok(Bytes::new(Arc::new(Mapped { map, pending: Mutex::default() })))
}

/// Bytes whose release is put off: each call interrupts the processors of the other threads, which costs more than reading a
/// small tensor.
const PENDING_BYTES: usize = 4 << 20;

/// A read-only memory map of a file.
struct Mapped {
    map: memmap2::Mmap,
    pending: Mutex<Pending>,
}

/// What is not needed and not released yet.
#[derive(Default)]
struct Pending {
    ranges: Vec<Range<usize>>,
    n_bytes: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Backing for Mapped {
    fn release(&self, range: Range<usize>) {
        let mut pending = self.pending.lock().unwrap_or_else(|e| e.into_inner());
        pending.n_bytes += range.len();
        match pending.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => pending.ranges.push(range),
        }
        if pending.n_bytes < PENDING_BYTES {
            return;
        }
        let Pending { mut ranges, .. } = std::mem::take(&mut *pending);
        drop(pending);
        ranges.sort_by_key(|range| range.start);
        for range in ranges.chunk_by(|a, b| a.end == b.start) {
            let (start, end) = (range[0].start, range[range.len() - 1].end);
            // SAFETY: DontNeed drops the pages from this process. The map is private, read-only and backed by its file, so
            // nothing was written that could be lost, and the next access reads the same bytes from the file again.
            let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
            // Advice is a courtesy: without it the pages stay until the system wants them.
            drop(advised);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_are_mapped_and_everything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(&*map_file(&file).unwrap(), b"abc");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(&*map_file(&file).unwrap(), b"");
        assert_eq!(map_file(dir.path()).unwrap_err().code(), Code::NotAFile);
        assert_eq!(map_file(Path::new("/dev/zero")).unwrap_err().code(), Code::NotAFile);
        assert_eq!(map_file(&dir.path().join("absent")).unwrap_err().code(), Code::NotFound);
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(map_file(&fifo).unwrap_err().code(), Code::NotAFile);
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(map_file(&socket).unwrap_err().code(), Code::NotAFile);
    }
}
