//! What an ELF program is linked with: libraries, search paths, dynamic symbols. Little endian, 64 bits.
//!
//! Only program headers and the dynamic section are read, which a program cannot be stripped of. Every offset is checked
//! against the file; nothing is allocated from a count in it.

use crate::error::{Code, Error, Result};

/// Symbols looked at; the largest programs have some hundred thousand.
const MAX_SYMBOLS: usize = 1 << 22;
/// Entries of a dynamic section looked at; real ones have some dozen.
const MAX_DYNAMIC: usize = 1 << 12;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// The dynamic part of a program or library; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Names of the libraries that it needs, in order.
    pub needed: Vec<String>,
    /// Folders to search for them, colons between.
    pub search_path: Vec<String>,
    symbols: Vec<(String, Definition)>,
}

/// Whether a symbol is in the file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// Taken from a library when the program starts.
    Imported,
    /// Defined by the file.
    Own,
}

impl Dynamic {
    /// The symbol, if the file imports or exports it.
    pub fn symbol(&self, name: &str) -> Option<Definition> {
        self.symbols.iter().find(|(n, _)| n == name).map(|(_, d)| *d)
    }
}

/// Whether `bytes` begin as an ELF file does.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads the dynamic part, with the symbols whose name begins with `prefix`.
///
/// # Errors
///
/// [`Code::Elf`] for offsets beyond the file; [`Code::ElfKind`] for 32 bits or big endian.
pub fn dynamic(bytes: &[u8], prefix: &str) -> Result<Dynamic> {
    let file = Reader(bytes);
    if !is_elf(bytes) || bytes.get(4..6) != Some(&[2, 1]) {
        let message = "expected ELF of 64 bits, little endian, found another kind";
        return Err(Error::new(Code::ElfKind, message));
    }
    let (headers_at, header_len, n_headers) = (file.u64(32)?, u64::from(file.u16(54)?), u64::from(file.u16(56)?));
    let mut loads = Vec::new();
    let mut section = None;
    for i in 0..n_headers {
        let at = add(headers_at, i * header_len)?;
        let segment =
            Segment { offset: file.u64(add(at, 8)?)?, address: file.u64(add(at, 16)?)?, len: file.u64(add(at, 32)?)? };
        match file.u32(at)? {
            PT_LOAD => loads.push(segment),
            PT_DYNAMIC => section = Some(segment),
            _ => {}
        }
    }
    let Some(section) = section else { return Ok(Dynamic::default()) };
    let entries = entries(&file, &section)?;
    let value = |tag: u64| entries.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v);
    let (Some(text_at), Some(text_len)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(Dynamic::default()) };
    let text = file.slice(offset_of(&loads, text_at)?, text_len)?;
    let names = |tag: u64| -> Result<Vec<String>> {
        entries.iter().filter(|(t, _)| *t == tag).map(|(_, v)| name(text, *v).map(str::to_owned)).collect()
    };
    let mut search_path = names(DT_RUNPATH)?;
    search_path.extend(names(DT_RPATH)?);
    let symbols = match value(DT_SYMTAB) {
        Some(at) => symbols(&file, offset_of(&loads, at)?, at, text_at, text, prefix)?,
        None => Vec::new(),
    };
    Ok(Dynamic { needed: names(DT_NEEDED)?, search_path, symbols })
}

/// Tags and values up to the end mark.
fn entries(file: &Reader<'_>, section: &Segment) -> Result<Vec<(u64, u64)>> {
    let mut entries = Vec::new();
    for i in 0..(section.len / 16).min(MAX_DYNAMIC as u64) {
        let at = add(section.offset, i * 16)?;
        match (file.u64(at)?, file.u64(add(at, 8)?)?) {
            (0, _) => break,
            entry => entries.push(entry),
        }
    }
    Ok(entries)
}

/// The symbol table says nowhere how long it is. Linkers put the names behind it; where they do not, it ends with the
/// first entry whose name is none.
fn symbols(
    file: &Reader<'_>,
    offset: u64,
    address: u64,
    text_at: u64,
    text: &[u8],
    prefix: &str,
) -> Result<Vec<(String, Definition)>> {
    const ENTRY: u64 = 24;
    let n = if text_at > address { (text_at - address) / ENTRY } else { MAX_SYMBOLS as u64 };
    let mut found = Vec::new();
    for i in 0..n.min(MAX_SYMBOLS as u64) {
        let Ok(at) = add(offset, i * ENTRY) else { break };
        let (Ok(name_at), Ok(section)) = (file.u32(at), file.u16(add(at, 6)?)) else { break };
        let Ok(name) = name(text, u64::from(name_at)) else { break };
        if name.starts_with(prefix) {
            found.push((name.to_owned(), if section == 0 { Definition::Imported } else { Definition::Own }));
        }
    }
    Ok(found)
}

/// A part of the file and where it lies in memory.
struct Segment {
    offset: u64,
    address: u64,
    len: u64,
}

fn offset_of(loads: &[Segment], address: u64) -> Result<u64> {
    let segment = loads.iter().find(|s| address >= s.address && address - s.address < s.len);
    segment.and_then(|s| s.offset.checked_add(address - s.address)).ok_or_else(|| {
        Error::new(Code::Elf, format!("expected address {address:#x} in a loaded part, found it in none"))
    })
}

fn add(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::new(Code::Elf, "expected offsets within the file, found one that overflows"))
}

fn name(text: &[u8], at: u64) -> Result<&str> {
    let rest = usize::try_from(at).ok().and_then(|at| text.get(at..));
    let found = rest.and_then(|r| r.split(|b| *b == 0).next()).and_then(|n| std::str::from_utf8(n).ok());
    found.ok_or_else(|| Error::new(Code::Elf, "expected a name, found none").at(at))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&self, at: u64, len: u64) -> Result<&'a [u8]> {
        let range = usize::try_from(at).ok().zip(usize::try_from(add(at, len)?).ok());
        let found = range.and_then(|(start, end)| self.0.get(start..end));
        found.ok_or_else(|| Error::new(Code::Elf, format!("expected {len} bytes, found the end of the file")).at(at))
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let bytes = self.slice(at, N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    fn u16(&self, at: u64) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: u64) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let found = dynamic(&own(), "mal").unwrap();
        assert!(found.needed.iter().any(|n| n.starts_with("libc.so")), "{:?}", found.needed);
        assert_eq!(found.symbol("malloc"), Some(Definition::Imported));
        assert_eq!(found.symbol("mallory"), None);
    }

    #[test]
    fn truncated_and_flipped_files_give_errors_or_other_answers_but_no_panic() {
        let bytes = own();
        let start = &bytes[..bytes.len().min(64 << 10)];
        for len in (0..start.len()).step_by(37) {
            let _ = dynamic(&start[..len], "malloc");
        }
        for i in 0..1024 {
            let mut spoilt = start.to_vec();
            spoilt[i] ^= 0xFF;
            let _ = dynamic(&spoilt, "malloc");
        }
        assert_eq!(dynamic(b"\x7fELF\x01\x01", "").unwrap_err().code(), Code::ElfKind);
        assert_eq!(dynamic(b"\x7fELF\x02\x01", "").unwrap_err().code(), Code::Elf);
        assert_eq!(dynamic(b"MZ", "").unwrap_err().code(), Code::ElfKind);
    }
}
