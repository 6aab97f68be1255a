//! The zip archive around a pickle, as `torch.save` writes it: stored entries that tile the file.
//!
//! ```text
//!   local header  name  padding  data  descriptor     for each entry, `data` aligned to 64 bytes
//!   central directory: one header for each entry
//!   zip64 end record and its locator (always written by PyTorch), end record, no comment
//! ```
//!
//! The `zip` crate decodes the directory; what it is lenient about (as unzip programs have to be) is checked here,
//! because readers that disagree about an archive can be shown different tensors: every byte of the file belongs to
//! exactly one of the parts above, local headers and descriptors say what the directory says, nothing is compressed,
//! encrypted, linked or named twice.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, HasZipMetadata, ZipArchive};

use super::limits::*;
use crate::error::{Code, Error, Result};
use crate::format::names::check_name;

/// Where an entry's data lies, and its checksum.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) data: Range<usize>,
    /// `None` where the writer was told to compute none.
    pub(super) crc32: Option<u32>,
}

/// The entries by their names without the folder that all of them are in.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) entries: HashMap<String, Entry>,
}

impl Archive {
    /// The entry `name`.
    ///
    /// # Errors
    ///
    /// [`Code::PickleArchive`].
    pub(super) fn get(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| archive(format!("the entry {name:?} is missing")))
    }

    /// The bytes of the entry `name`, of at most `limit`, compared with its checksum.
    ///
    /// # Errors
    ///
    /// [`Code::PickleArchive`], [`Code::PickleLimit`], [`Code::PickleChecksum`].
    pub(super) fn read<'a>(&self, file: &'a [u8], name: &str, limit: usize) -> Result<&'a [u8]> {
        let entry = self.get(name)?;
        let fail = |code, message| Error::new(code, message).field(name).at(entry.data.start as u64);
        if entry.data.len() > limit {
            return Err(fail(Code::PickleLimit, format!("expected at most {limit} bytes, found {}", entry.data.len())));
        }
        let bytes = &file[entry.data.clone()];
        match entry.crc32 {
            Some(crc32) if crc32fast::hash(bytes) != crc32 => {
                Err(fail(Code::PickleChecksum, format!("expected the checksum {crc32:08x}")))
            }
            _ => Ok(bytes),
        }
    }
}

/// Reads and checks the directory and every local header; touches no data.
///
/// # Errors
///
/// [`Code::PickleArchive`], [`Code::PickleLimit`], [`Code::PickleTruncated`], [`Code::NameInvalid`],
/// [`Code::NameDuplicate`].
pub(super) fn read(file: &[u8]) -> Result<Archive> {
    let end = End::read(file)?;
    // Known(0): nothing may precede the archive.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let zip = ZipArchive::with_config(config, Cursor::new(file)).map_err(|e| archive(e.to_string()).caused_by(e))?;
    if zip.has_duplicate_names() {
        return Err(Error::new(Code::NameDuplicate, "two entries have the same name"));
    }
    let metadata = zip.metadata();
    if metadata.len() as u64 != end.n_entries || zip.central_directory_start() != end.directory.start as u64 {
        return Err(archive("the directory is not where the end record says"));
    }

    let mut entries = Vec::with_capacity(metadata.len());
    for i in 0..metadata.len() {
        let entry = metadata.entry(i).map_err(|e| archive(e.to_string()))?;
        let data = entry.get_metadata();
        let place = |e: Error| e.at(data.central_header_start);
        let central_start = usize::try_from(data.central_header_start).map_err(|_| place(outside()))?;
        let name = std::str::from_utf8(central_name(file, central_start)?);
        let name = name.map_err(|_| place(Error::new(Code::NameInvalid, "an entry's name is not UTF-8")))?;
        if name.as_bytes() != entry.name_raw() {
            return Err(place(archive("an extra field gives the entry another name").field(name)));
        }
        check_name(name).map_err(place)?;
        let central = Central {
            name,
            flags: data.flags.as_u16(),
            crc32: data.crc32,
            len: data.uncompressed_size,
            header_start: usize::try_from(data.header_start).map_err(|_| place(outside()))?,
            central_start,
        };
        if data.compression_method != CompressionMethod::Stored || data.compressed_size != data.uncompressed_size {
            return Err(place(archive("the entry is compressed, which torch.save never does").field(name)));
        }
        if central.flags & !(FLAG_DESCRIPTOR | FLAG_UTF8) != 0 {
            return Err(place(archive(format!("the entry has flags 0x{:04x}", central.flags)).field(name)));
        }
        // The upper half holds a Unix mode, if anything: only a plain file will do.
        let file_type = data.external_attributes >> 28;
        if !matches!(file_type, 0 | 0o10) || name.ends_with('/') {
            return Err(place(archive("the entry is a link, a folder or a device").field(name)));
        }
        entries.push(central);
    }
    check_directory(file, &entries, &end.directory)?;
    check_tiles(file, &mut entries, end.directory.start)
}

/// Bytes of a header in the directory, name and extra fields not counted.
const CENTRAL_LEN: usize = 46;
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;

/// What the directory says about an entry.
struct Central<'a> {
    name: &'a str,
    flags: u16,
    crc32: u32,
    len: u64,
    header_start: usize,
    central_start: usize,
}

/// The end of the archive.
struct End {
    n_entries: u64,
    directory: Range<usize>,
}

impl End {
    /// Reads the end record, which ends the file, and the zip64 records before it, if any.
    fn read(file: &[u8]) -> Result<End> {
        const LEN: usize = 22;
        let at = file.len().checked_sub(LEN).filter(|&at| file[at..].starts_with(b"PK\x05\x06"));
        let at = at.ok_or_else(|| {
            Error::new(Code::PickleTruncated, "the file does not end with the end record of a zip archive")
                .at(file.len() as u64)
        })?;
        let fail = |message: &str| archive(message).at(at as u64);
        let (disk, directory_disk) = (u16_at(file, at + 4)?, u16_at(file, at + 6)?);
        let (here, n_entries) = (u16_at(file, at + 8)?, u16_at(file, at + 10)?);
        let (len, start) = (u32_at(file, at + 12)?, u32_at(file, at + 16)?);
        if u16_at(file, at + 20)? != 0 {
            return Err(fail("the archive has a comment"));
        }
        if disk != 0 || directory_disk != 0 || here != n_entries {
            return Err(fail("the archive is one of several disks"));
        }
        let short = (n_entries == u16::MAX, len == u32::MAX, start == u32::MAX);
        let (end, zip64) = match Zip64::read(file, at)? {
            Some((record_at, wide)) => {
                let agree = (short.0 || wide.n_entries == u64::from(n_entries))
                    && (short.1 || wide.len == u64::from(len))
                    && (short.2 || wide.start == u64::from(start));
                if !agree {
                    return Err(fail("the end record and the zip64 end record disagree"));
                }
                (record_at, wide)
            }
            None if short.0 || short.1 || short.2 => return Err(fail("the zip64 end record is missing")),
            None => (at, Zip64 { n_entries: n_entries.into(), len: len.into(), start: start.into() }),
        };
        if zip64.n_entries > MAX_ARCHIVE_ENTRIES || zip64.len > MAX_DIRECTORY_BYTES {
            let message = format!("{} entries in a directory of {} bytes", zip64.n_entries, zip64.len);
            return Err(Error::new(Code::PickleLimit, message).at(at as u64));
        }
        let start = end.checked_sub(zip64.len as usize).filter(|&s| s as u64 == zip64.start);
        let start = start.ok_or_else(|| fail("the directory does not end where the end record begins"))?;
        Ok(End { n_entries: zip64.n_entries, directory: start..end })
    }
}

/// The zip64 end record.
struct Zip64 {
    n_entries: u64,
    len: u64,
    start: u64,
}

impl Zip64 {
    /// Reads the record whose locator ends at `at`, if there is one; also where it starts.
    fn read(file: &[u8], at: usize) -> Result<Option<(usize, Zip64)>> {
        const LOCATOR_LEN: usize = 20;
        const LEN: usize = 56;
        let Some(locator) = at.checked_sub(LOCATOR_LEN).filter(|&l| file[l..].starts_with(b"PK\x06\x07")) else {
            return Ok(None);
        };
        let fail = |message: &str| archive(message).at(locator as u64);
        let record = locator.checked_sub(LEN).filter(|&r| file[r..].starts_with(b"PK\x06\x06"));
        let record = record.ok_or_else(|| fail("no zip64 end record before its locator"))?;
        if u64_at(file, locator + 8)? != record as u64 {
            return Err(fail("the locator does not point to the zip64 end record before it"));
        }
        let disks = [u32_at(file, locator + 4)?, u32_at(file, record + 16)?, u32_at(file, record + 20)?];
        let (here, n_entries) = (u64_at(file, record + 24)?, u64_at(file, record + 32)?);
        // PyTorch's writer says "1 disk" in the locator, others 0 or 1.
        if disks != [0; 3] || u32_at(file, locator + 16)? > 1 || here != n_entries {
            return Err(fail("the archive is one of several disks"));
        }
        if u64_at(file, record + 4)? != LEN as u64 - 12 {
            return Err(fail("the zip64 end record has not the length of version 1"));
        }
        let (len, start) = (u64_at(file, record + 40)?, u64_at(file, record + 48)?);
        Ok(Some((record, Zip64 { n_entries, len, start })))
    }
}

/// An entry's name as its header in the directory has it.
fn central_name(file: &[u8], central_start: usize) -> Result<&[u8]> {
    let len = usize::from(u16_at(file, central_start.saturating_add(28))?);
    let start = central_start.saturating_add(CENTRAL_LEN);
    start.checked_add(len).and_then(|end| file.get(start..end)).ok_or_else(outside)
}

/// Checks that the directory's headers follow each other without a gap and are all there is.
fn check_directory(file: &[u8], entries: &[Central<'_>], directory: &Range<usize>) -> Result<()> {
    let mut at = directory.start;
    for entry in entries {
        if entry.central_start != at {
            return Err(archive("the directory has a gap").at(at as u64));
        }
        let [extra, comment, disk] = [30, 32, 34].map(|o| u16_at(file, at + o));
        if disk? != 0 {
            return Err(archive("the entry is on another disk").at(at as u64).field(entry.name));
        }
        at += CENTRAL_LEN + entry.name.len() + usize::from(extra?) + usize::from(comment?);
    }
    if at != directory.end {
        return Err(archive("the directory is longer than its entries").at(at as u64));
    }
    Ok(())
}

/// Checks that local headers, data and descriptors follow each other without a gap from the first byte of the file
/// to the directory.
fn check_tiles(file: &[u8], entries: &mut [Central<'_>], directory_start: usize) -> Result<Archive> {
    entries.sort_by_key(|e| e.header_start);
    let mut folder = None;
    let mut by_name = HashMap::with_capacity(entries.len());
    // torch.serialization.set_crc32_options(False) leaves all of them 0. One that is 0 beside others is a checksum.
    let has_checksums = entries.iter().any(|e| e.crc32 != 0);
    let mut at = 0;
    for (i, entry) in entries.iter().enumerate() {
        let start = at;
        let fail = |message: &str| archive(message).field(entry.name).at(start as u64);
        if entry.header_start != at {
            return Err(fail("expected an entry here: there is a gap, or entries overlap"));
        }
        let end = entries.get(i + 1).map_or(directory_start, |next| next.header_start);
        let data = local_data(file, entry).map_err(|e| e.field(entry.name).at(at as u64))?;
        if !ends_at(file, entry, data.end, end)? {
            return Err(fail("the bytes after the entry's data are not its descriptor"));
        }
        at = end;
        let Some((parent, rest)) = entry.name.split_once('/') else {
            return Err(fail("the entry is in no folder"));
        };
        if *folder.get_or_insert(parent) != parent {
            return Err(fail("the entry is not in the folder that the others are in"));
        }
        by_name.insert(rest.to_owned(), Entry { data, crc32: has_checksums.then_some(entry.crc32) });
    }
    if at != directory_start {
        return Err(archive("expected an entry here").at(at as u64));
    }
    Ok(Archive { entries: by_name })
}

/// The range of an entry's data, after its local header said what the directory says.
fn local_data(file: &[u8], entry: &Central<'_>) -> Result<Range<usize>> {
    const LEN: usize = 30;
    let at = entry.header_start;
    if !file.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x03\x04")) {
        return Err(archive("expected a local header"));
    }
    let [flags, method, name_len, extra_len] = [6, 8, 26, 28].map(|o| u16_at(file, at + o));
    let [crc32, packed, len] = [14, 18, 22].map(|o| u32_at(file, at + o));
    let (crc32, packed, len, name_len) = (crc32?, packed?, len?, usize::from(name_len?));
    let extra_start = at + LEN + name_len;
    let start = extra_start + usize::from(extra_len?);
    let end = usize::try_from(entry.len).ok().and_then(|len| start.checked_add(len)).filter(|&e| e <= file.len());
    let end = end.ok_or_else(|| archive("the entry's data reaches outside the file"))?;
    if &file[at + LEN..extra_start] != entry.name.as_bytes() {
        return Err(archive("the local header has another name than the directory"));
    }
    // With a descriptor the header may leave sizes and checksum open, as 0.
    let open = entry.flags & FLAG_DESCRIPTOR != 0;
    let agrees = |value: u32| match value {
        0 if open => true,
        u32::MAX => wide_sizes(&file[extra_start..start]).is_some_and(|sizes| sizes == [entry.len; 2]),
        narrow => u64::from(narrow) == entry.len,
    };
    let same = flags? == entry.flags && method? == 0 && ((open && crc32 == 0) || crc32 == entry.crc32);
    if !same || !agrees(packed) || !agrees(len) {
        return Err(archive("the local header does not say what the directory says"));
    }
    Ok(start..end)
}

/// Length and packed length from the zip64 field among the extra fields of a local header.
fn wide_sizes(mut extra: &[u8]) -> Option<[u64; 2]> {
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0).ok()?, usize::from(u16_at(extra, 2).ok()?));
        if id == 1 {
            return (len >= 16).then(|| Some([u64_at(extra, 4).ok()?, u64_at(extra, 12).ok()?]))?;
        }
        extra = extra.get(4 + len..)?;
    }
    None
}

/// Whether `at..end` is the entry's descriptor, or empty where it has none.
fn ends_at(file: &[u8], entry: &Central<'_>, at: usize, end: usize) -> Result<bool> {
    let Some(descriptor) = file.get(at..end) else { return Ok(false) };
    if entry.flags & FLAG_DESCRIPTOR == 0 {
        return Ok(descriptor.is_empty());
    }
    // The signature is optional in the format, but every writer of descriptors writes it.
    let Some(fields) = descriptor.strip_prefix(b"PK\x07\x08") else { return Ok(false) };
    Ok(match fields.len() {
        12 => [4, 8].iter().all(|&o| u32_at(fields, o).is_ok_and(|n| u64::from(n) == entry.len)),
        20 => [4, 12].iter().all(|&o| u64_at(fields, o).is_ok_and(|n| n == entry.len)),
        _ => return Ok(false),
    } && u32_at(fields, 0)? == entry.crc32)
}

fn archive(message: impl Into<String>) -> Error {
    Error::new(Code::PickleArchive, message)
}

fn outside() -> Error {
    archive("an entry lies outside the file")
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok());
    field.ok_or_else(|| Error::new(Code::PickleTruncated, "the archive ends inside a header").at(at as u64))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    le(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    le(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    le(bytes, at).map(u64::from_le_bytes)
}
