//! The bundle as a tar archive: ustar, files at the root, sorted, fixed mode, no time, so that equal bundles have equal bytes.
//!
//! ```text
//!   for each file:  header, 512 bytes | content | zeros up to a multiple of 512
//!   end:            1024 zeros
//! ```
//!
//! The crate `tar` knows where a header's fields lie. Reading is ours, because here every byte counts: an archive is
//! either exactly what [`plan`] says, or it is refused.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::MANIFEST_FILE;
use super::path::check_path;
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::limits::{BUNDLE_ARCHIVED, BUNDLE_FILES};
use crate::tensor::Bytes;

const BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
const END: usize = 2 * BLOCK;
/// Mode of every file: readable by all, writable by the owner.
const MODE: u32 = 0o644;
/// Largest file: eleven octal digits.
const MAX_FILE_BYTES: u64 = (1 << 33) - 1;

/// How strictly an archive is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Byte for byte what [`plan`] says.
    Exact,
    /// What other programs write of the same files: any mode, owner, time and order, folders, a leading `./` or one folder
    /// around them all, and what macOS keeps beside files.
    Unpack,
}

/// A file's place in the archive.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its header.
    pub header: Vec<u8>,
    /// Where the header starts; the content follows it.
    pub header_offset: u64,
}

/// Where each of `files` (path and size, sorted by path) goes, and the archive's length. Bytes in between are zero.
///
/// # Errors
///
/// [`Code::BundlePath`] for a path that ustar cannot hold; [`Code::ConfigUnsupported`] for 8 GiB or more.
pub fn plan(files: &[(&str, u64)]) -> Result<(Vec<Placed>, u64)> {
    let mut offset = 0;
    let mut placed = Vec::with_capacity(files.len());
    for (path, size) in files {
        if *size > MAX_FILE_BYTES {
            let message =
                format!("expected less than 8 GiB, which is what tar can say, found {size} bytes: pack a folder");
            return Err(Error::new(Code::ConfigUnsupported, message).field(*path));
        }
        let header = header(path, *size)
            .ok_or_else(|| Error::new(Code::BundlePath, "the path is too long for a tar archive").field(*path))?;
        placed.push(Placed { header, header_offset: offset });
        offset += BLOCK as u64 + size.next_multiple_of(BLOCK as u64);
    }
    Ok((placed, offset + END as u64))
}

/// `None` for a path that does not fit.
fn header(path: &str, size: u64) -> Option<Vec<u8>> {
    let mut h = Header::new_ustar();
    h.set_path(path).ok()?;
    h.set_size(size);
    h.set_mode(MODE);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    h.set_entry_type(EntryType::Regular);
    h.set_cksum();
    Some(h.as_bytes().to_vec())
}

/// Whether these can be the first bytes of a tar archive.
pub fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

/// The files of an archive, and everything that is wrong with it. What is found before a fault is kept, so that a
/// report can name more than the first.
pub fn read(name: &str, bytes: &Bytes, strictness: Strictness) -> (BTreeMap<String, Bytes>, Vec<Finding>) {
    let mut reader = Reader {
        name,
        bytes,
        strictness,
        files: BTreeMap::new(),
        n_entries: 0,
        findings: Vec::new(),
        last: String::new(),
    };
    let mut offset = 0;
    while let Some(next) = reader.entry(offset) {
        offset = next;
    }
    let mut files = reader.files;
    if strictness == Strictness::Unpack
        && let Some(folder) = folder_of_all(&files)
    {
        files = files.into_iter().map(|(path, bytes)| (path[folder.len()..].to_owned(), bytes)).collect();
    }
    (files, reader.findings)
}

/// `bundle/`, where that is the folder of all files: `tar -cf bundle.tar bundle` writes them so.
fn folder_of_all(files: &BTreeMap<String, Bytes>) -> Option<String> {
    let folder = files.keys().next()?.split_inclusive('/').next()?.to_owned();
    let is_bundle = files.contains_key(&format!("{folder}{MANIFEST_FILE}"));
    (is_bundle && files.keys().all(|path| path.starts_with(&folder))).then_some(folder)
}

/// Whether an entry is what macOS writes beside each file for its attributes.
fn is_apple_double(path: &str, content: &[u8]) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.starts_with("._") && content.starts_with(&[0, 5, 0x16, 7])
}

struct Reader<'a> {
    name: &'a str,
    bytes: &'a Bytes,
    strictness: Strictness,
    files: BTreeMap<String, Bytes>,
    /// Of files, folders and what is refused.
    n_entries: usize,
    findings: Vec<Finding>,
    last: String,
}

impl Reader<'_> {
    fn fault(&mut self, place: &str, expected: &str, found: impl ToString) {
        self.findings.push(Finding::new(Code::BundleTar, place, expected, found));
    }

    /// Reads the entry at `offset`; the next one's offset, or `None` at the end.
    fn entry(&mut self, offset: usize) -> Option<usize> {
        let Some(block) = self.bytes.get(offset..offset + BLOCK) else {
            let found = format!("{} bytes at offset {offset}", self.bytes.len() - offset);
            self.fault(self.name, "a header or the end of the archive", found);
            return None;
        };
        if block.iter().all(|b| *b == 0) {
            self.end(offset);
            return None;
        }
        let header = Header::from_byte_slice(block);
        let path_bytes = header.path_bytes();
        let raw = String::from_utf8_lossy(&path_bytes).into_owned();
        let place = if raw.is_empty() { self.name.to_owned() } else { raw.clone() };
        self.n_entries += 1;
        let n_files = match self.strictness {
            Strictness::Exact => self.n_entries,
            Strictness::Unpack => self.files.len() + 1,
        };
        if n_files > BUNDLE_FILES || self.n_entries > BUNDLE_ARCHIVED {
            self.fault(self.name, &format!("at most {BUNDLE_FILES} files"), "more");
            return None;
        }
        let size = header.entry_size().ok().and_then(|n| usize::try_from(n).ok());
        let start = offset + BLOCK;
        let end = size.and_then(|n| start.checked_add(n)).filter(|end| *end <= self.bytes.len());
        let (Some(size), Some(end)) = (size, end) else {
            self.fault(&place, "a size within the archive", format!("another in the header at offset {offset}"));
            if !has_valid_checksum(header, block) {
                // Then the name may be as wrong as the size.
                self.fault(self.name, "headers with their checksums", format!("another at offset {offset}"));
            }
            return None;
        };
        let next = start + size.next_multiple_of(BLOCK);
        let Some(padding) = self.bytes.get(end..next) else {
            self.fault(&place, "content padded to 512 bytes", "the end of the archive");
            return None;
        };
        if padding.iter().any(|b| *b != 0) {
            self.fault(&place, "zeros after the content", "other bytes");
        }
        let path = match self.strictness {
            Strictness::Exact => raw.as_str(),
            Strictness::Unpack => raw.strip_prefix("./").unwrap_or(&raw),
        };
        if std::str::from_utf8(&path_bytes).is_err() {
            // Read with substitutes, it would be unpacked under a name that the archive does not hold.
            self.findings.push(Finding::new(Code::BundlePath, place, "a name in UTF-8", "another"));
            return Some(next);
        }
        match header.entry_type() {
            // Python's and GNU's tar write times so. A name, a link or a size that is said there would count.
            EntryType::XHeader | EntryType::XGlobalHeader
                if self.strictness == Strictness::Unpack
                    && has_valid_checksum(header, block)
                    && says_times_alone(&self.bytes[start..end]) => {}
            EntryType::Regular
                if self.strictness == Strictness::Unpack
                    && has_valid_checksum(header, block)
                    && is_apple_double(path, &self.bytes[start..end]) => {}
            EntryType::Regular => self.file(path, header, block, offset, start..end),
            EntryType::Directory if self.strictness == Strictness::Unpack => self.folder(path, header, offset),
            other => {
                let found = format!("{} at offset {offset}", kind_name(other));
                self.findings.push(Finding::new(Code::BundleLink, place, "a plain file", found));
            }
        }
        Some(next)
    }

    fn file(&mut self, path: &str, header: &Header, block: &[u8], offset: usize, range: std::ops::Range<usize>) {
        if let Err(e) = check_path(path) {
            self.findings.push(Finding::new(e.code(), path, "a path inside the bundle", e.message()));
            return;
        }
        match self.strictness {
            Strictness::Exact => {
                if self::header(path, range.len() as u64).as_deref() != Some(block) {
                    self.fault(path, "the header that `ptplus pack` writes", format!("another at offset {offset}"));
                }
                if !self.files.is_empty() && *path <= *self.last {
                    self.fault(path, "paths in order, each once", format!("it after {:?}", self.last));
                }
            }
            Strictness::Unpack => {
                if !has_valid_checksum(header, block) {
                    self.fault(path, "a header with its checksum", format!("another at offset {offset}"));
                }
                if self.files.contains_key(path) {
                    self.fault(path, "each path once", "it twice");
                }
            }
        }
        path.clone_into(&mut self.last);
        let content = self.bytes.slice(range).unwrap_or_else(|| Vec::new().into());
        self.files.insert(path.to_owned(), content);
    }

    /// A folder of somebody else's archive: of no use, but it must not point outside either.
    fn folder(&mut self, path: &str, header: &Header, offset: usize) {
        let path = path.trim_end_matches('/');
        if !has_valid_checksum(header, header.as_bytes()) {
            self.fault(path, "a header with its checksum", format!("another at offset {offset}"));
        }
        if !matches!(path, "" | ".")
            && let Err(e) = check_path(path)
        {
            self.findings.push(Finding::new(e.code(), path, "a path inside the bundle", e.message()));
        }
    }

    fn end(&mut self, offset: usize) {
        let rest = &self.bytes[offset..];
        let is_zero = rest.iter().all(|b| *b == 0);
        let fits = match self.strictness {
            Strictness::Exact => rest.len() == END,
            Strictness::Unpack => rest.len() >= END,
        };
        if !is_zero || !fits {
            let found = format!("{} bytes{}", rest.len(), if is_zero { "" } else { ", not all zero" });
            self.fault(self.name, "1024 zeros at the end", found);
        }
    }
}

/// Whether the records of a pax header (`LENGTH KEY=VALUE` lines) are about times, owners, remarks, and attributes that a
/// file system keeps beside a file.
fn says_times_alone(mut records: &[u8]) -> bool {
    const HARMLESS: [&str; 8] = ["mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"];
    const ATTRIBUTES: [&str; 3] = ["LIBARCHIVE.xattr.", "SCHILY.xattr.", "LIBARCHIVE.creationtime="];
    while !records.is_empty() {
        let Some(space) = records.iter().take(8).position(|b| *b == b' ') else { return false };
        let len = std::str::from_utf8(&records[..space]).ok().and_then(|n| n.parse::<usize>().ok());
        let Some(record) = len.and_then(|len| records.get(space + 1..len)) else { return false };
        let is_harmless =
            HARMLESS.iter().any(|key| record.strip_prefix(key.as_bytes()).is_some_and(|r| r.starts_with(b"=")))
                || ATTRIBUTES.iter().any(|start| record.starts_with(start.as_bytes()));
        if !is_harmless || record.last() != Some(&b'\n') {
            return false;
        }
        records = &records[space + 1 + record.len()..];
    }
    true
}

fn has_valid_checksum(header: &Header, block: &[u8]) -> bool {
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

fn kind_name(kind: EntryType) -> String {
    match kind {
        EntryType::Symlink => "a symbolic link".into(),
        EntryType::Link => "a hard link".into(),
        EntryType::Directory => "a folder".into(),
        other => format!("an entry of type {:?}", char::from(other.as_byte())),
    }
}
