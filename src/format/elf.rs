//! What an ELF program is linked with: libraries, search paths, dynamic symbols. Little endian, 64 bits.
//!
//! Only program headers and the dynamic section are read, which a program cannot be stripped of. Every offset is checked
//! against the file; nothing is allocated from a count in it.

use indexmap::IndexSet;

use crate::error::{Code, Error, Result};

/// Symbols looked at; the largest programs have some hundred thousand.
const MAX_SYMBOLS: usize = 1 << 22;
/// Symbols with the prefix asked for; llama.cpp has some 300.
const MAX_FOUND: usize = 1 << 12;
/// Bytes of a name that is asked for: a file's path.
const MAX_NAME: usize = 1 << 12;
/// Bytes of a search path, and search paths of a program: all its folders are usually one text.
const MAX_PATH: usize = 1 << 20;
const MAX_PATHS: usize = 16;
/// Libraries that a program names. Large ones need some hundred.
const MAX_NAMES: usize = 512;
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
    // Each once: a section may name one text many times.
    let names = |tag: u64, most: usize, most_bytes: usize| -> Result<Vec<String>> {
        let offsets: IndexSet<u64> = entries.iter().filter(|(t, _)| *t == tag).map(|(_, v)| *v).collect();
        if offsets.len() > most {
            return Err(Error::new(Code::Elf, format!("expected at most {most} names of a kind, found more")));
        }
        offsets.into_iter().map(|at| name(text, at, most_bytes).map(str::to_owned)).collect()
    };
    let mut search_path = names(DT_RUNPATH, MAX_PATHS, MAX_PATH)?;
    search_path.extend(names(DT_RPATH, MAX_PATHS, MAX_PATH)?);
    let symbols = match value(DT_SYMTAB) {
        Some(at) => symbols(&file, offset_of(&loads, at)?, at, text_at, text, prefix)?,
        None => Vec::new(),
    };
    Ok(Dynamic { needed: names(DT_NEEDED, MAX_NAMES, MAX_NAME)?, search_path, symbols })
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
        let Some(rest) = text.get(name_at as usize..) else { break };
        if !rest.starts_with(prefix.as_bytes()) {
            continue;
        }
        let Ok(name) = name(text, u64::from(name_at), MAX_NAME) else { break };
        if found.len() == MAX_FOUND {
            return Err(Error::new(Code::Elf, format!("expected at most {MAX_FOUND} symbols {prefix}*, found more")));
        }
        found.push((name.to_owned(), if section == 0 { Definition::Imported } else { Definition::Own }));
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

fn name(text: &[u8], at: u64, most_bytes: usize) -> Result<&str> {
    let rest = usize::try_from(at).ok().and_then(|at| text.get(at..));
    let start = rest.map(|r| &r[..r.len().min(most_bytes)]);
    let found =
        start.and_then(|r| Some(&r[..r.iter().position(|b| *b == 0)?])).and_then(|n| std::str::from_utf8(n).ok());
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

    /// A program of one loaded part: the dynamic section, `n` symbols whose names begin at 0, and the names.
    fn program(n: usize, names: &[u8]) -> Vec<u8> {
        let (dynamic, symbols) = (200_u64, 264_u64);
        let text = symbols + 24 * n as u64;
        let len = text + names.len() as u64;
        let mut out = b"\x7fELF\x02\x01".to_vec();
        out.resize(64, 0);
        out[32..40].copy_from_slice(&64_u64.to_le_bytes());
        out[54..56].copy_from_slice(&56_u16.to_le_bytes());
        out[56..58].copy_from_slice(&2_u16.to_le_bytes());
        for (kind, offset, len) in [(PT_LOAD, 0, len), (PT_DYNAMIC, dynamic, 64)] {
            out.extend(kind.to_le_bytes());
            out.extend([0; 4]);
            [offset, offset, 0, len, len, 0].iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        out.resize(dynamic as usize, 0);
        for (tag, value) in [(DT_STRTAB, text), (DT_STRSZ, names.len() as u64), (DT_SYMTAB, symbols), (0, 0)] {
            out.extend([tag, value].iter().flat_map(|x| x.to_le_bytes()));
        }
        out.resize(text as usize, 0);
        [&out, names].concat()
    }

    #[test]
    fn symbols_cost_what_their_prefix_costs() {
        let found = dynamic(&program(3, b"llama_x\0"), "llama_").unwrap();
        assert_eq!(found.symbols.len(), 3);
        assert_eq!(found.symbol("llama_x"), Some(Definition::Imported));
        // A million names that end a megabyte later, and none is asked for.
        let long = [&vec![b'n'; 1 << 20][..], b"\0"].concat();
        assert!(dynamic(&program(1 << 20, &long), "llama_").unwrap().symbols.is_empty());
        assert_eq!(dynamic(&program(MAX_FOUND + 1, b"llama_\0"), "llama_").unwrap_err().code(), Code::Elf);
        let long = [&b"llama_"[..], &[b'n'; MAX_NAME], b"\0"].concat();
        assert!(dynamic(&program(3, &long), "llama_").unwrap().symbols.is_empty());
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
