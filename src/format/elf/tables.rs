//! The tables of an ELF file that a loader reads, and the numbers in them.

use super::{Definition, MAX_NAME, Symbol, is_elf};
use crate::error::{Code, Error, Result};

/// Relocations looked at; the largest libraries have some hundred thousand.
const MAX_RELOCATIONS: u64 = 1 << 23;
/// Entries of a dynamic section looked at; real ones have some dozen.
const MAX_DYNAMIC: u64 = 1 << 12;
/// Program headers looked at; real programs have a dozen.
const MAX_SEGMENTS: u64 = 1 << 10;

pub(super) const PT_LOAD: u32 = 1;
pub(super) const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// Symbol and kind of each relocation of a table.
pub(super) fn relocations<'a>(
    file: &'a Reader<'_>,
    table: &'a [u8],
    has_addends: bool,
) -> impl Iterator<Item = (u64, u32)> + use<'a> {
    let word = file.word_len();
    let entry_len = word * if has_addends { 3 } else { 2 };
    let info = move |entry: &[u8]| match file.is_64 {
        true => {
            let info = file.number(entry.get(8..16)?);
            Some((info >> 32, (info & 0xFFFF_FFFF) as u32))
        }
        false => {
            let info = file.number(entry.get(4..8)?);
            Some((info >> 8, (info & 0xFF) as u32))
        }
    };
    table.chunks_exact(entry_len as usize).take(MAX_RELOCATIONS as usize).filter_map(info)
}

/// Program headers, as far as they matter here.
pub(super) struct Headers {
    loads: Vec<Segment>,
    pub(super) dynamic: Option<Segment>,
    pub(super) interpreter: Option<String>,
}

/// A part of the file and where it lies in memory.
pub(super) struct Segment {
    offset: u64,
    address: u64,
    len: u64,
}

impl Headers {
    pub(super) fn read(file: &Reader<'_>) -> Result<Headers> {
        let (at, len, n) = match file.is_64 {
            true => (file.word(32)?, file.u16(54)?, file.u16(56)?),
            false => (file.word(28)?, file.u16(42)?, file.u16(44)?),
        };
        let mut out = Headers { loads: Vec::new(), dynamic: None, interpreter: None };
        for i in 0..u64::from(n).min(MAX_SEGMENTS) {
            let at = add(at, i * u64::from(len))?;
            let kind = file.u32(at)?;
            let field = |wide: u64, narrow: u64| file.word(add(at, if file.is_64 { wide } else { narrow })?);
            let segment = Segment { offset: field(8, 4)?, address: field(16, 8)?, len: field(32, 16)? };
            match kind {
                PT_LOAD => out.loads.push(segment),
                PT_DYNAMIC => out.dynamic = Some(segment),
                PT_INTERP => {
                    let text = file.slice(segment.offset, segment.len)?;
                    out.interpreter = Some(name(text, 0, MAX_NAME)?.to_owned());
                }
                _ => {}
            }
        }
        Ok(out)
    }

    pub(super) fn offset_of(&self, address: u64) -> Result<u64> {
        let segment = self.loads.iter().find(|s| address >= s.address && address - s.address < s.len);
        segment.and_then(|s| s.offset.checked_add(address - s.address)).ok_or_else(|| {
            Error::new(Code::Elf, format!("expected address {address:#x} in a loaded part, found it in none"))
        })
    }
}

/// Tags and values up to the end mark.
pub(super) fn entries(file: &Reader<'_>, section: &Segment) -> Result<Vec<(u64, u64)>> {
    let word = file.word_len();
    let mut entries = Vec::new();
    for i in 0..(section.len / (2 * word)).min(MAX_DYNAMIC) {
        let at = add(section.offset, i * 2 * word)?;
        match (file.word(at)?, file.word(add(at, word)?)?) {
            (0, _) => break,
            entry => entries.push(entry),
        }
    }
    Ok(entries)
}

/// The dynamic symbols.
pub(super) struct Symbols<'a> {
    pub(super) file: &'a Reader<'a>,
    pub(super) offset: u64,
    pub(super) text: &'a [u8],
}

pub(super) struct SymbolEntry {
    name_at: u64,
    pub(super) visibility: u8,
    pub(super) definition: Definition,
}

impl Symbols<'_> {
    pub(super) fn entry_len(&self) -> u64 {
        if self.file.is_64 { 24 } else { 16 }
    }

    fn entry(&self, index: u64) -> Result<SymbolEntry> {
        let overflow = || Error::new(Code::Elf, "expected a symbol within the file, found one beyond it");
        let at = add(self.offset, index.checked_mul(self.entry_len()).ok_or_else(overflow)?)?;
        let (other, section) = if self.file.is_64 { (5, 6) } else { (13, 14) };
        let definition = if self.file.u16(add(at, section)?)? == 0 { Definition::Imported } else { Definition::Own };
        let visibility = self.file.array::<1>(add(at, other)?)?[0] & 3;
        Ok(SymbolEntry { name_at: u64::from(self.file.u32(at)?), visibility, definition })
    }

    /// Which of `names` the symbol's is.
    pub(super) fn one_of(&self, index: u64, names: &[&str]) -> Option<(usize, SymbolEntry)> {
        let entry = self.entry(index).ok()?;
        self.position(&entry, names).map(|i| (i, entry))
    }

    fn position(&self, entry: &SymbolEntry, names: &[&str]) -> Option<usize> {
        let rest = self.text.get(usize::try_from(entry.name_at).ok()?..)?;
        names.iter().position(|n| rest.starts_with(n.as_bytes()) && rest.get(n.len()) == Some(&0))
    }

    /// Notes which of `names` are defined or imported. The symbol table says nowhere how long it is: linkers put the names
    /// behind it, and where they do not, it ends with the file.
    pub(super) fn define(&self, n: u64, names: &[&str], found: &mut [Symbol]) -> Result<()> {
        for i in 0..n {
            let Ok(entry) = self.entry(i) else { break };
            if usize::try_from(entry.name_at).map_or(true, |at| at >= self.text.len()) {
                break;
            }
            if let Some(k) = self.position(&entry, names) {
                found[k].definition = Some(entry.definition);
            }
        }
        Ok(())
    }
}

fn add(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::new(Code::Elf, "expected offsets within the file, found one that overflows"))
}

pub(super) fn name(text: &[u8], at: u64, most_bytes: usize) -> Result<&str> {
    let rest = usize::try_from(at).ok().and_then(|at| text.get(at..));
    let start = rest.map(|r| &r[..r.len().min(most_bytes)]);
    let found =
        start.and_then(|r| Some(&r[..r.iter().position(|b| *b == 0)?])).and_then(|n| std::str::from_utf8(n).ok());
    found.ok_or_else(|| Error::new(Code::Elf, "expected a name, found none").at(at))
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) is_64: bool,
    pub(super) is_little: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let (is_64, is_little) = match bytes.get(4..6) {
            Some([class @ 1..=2, order @ 1..=2]) if is_elf(bytes) => (*class == 2, *order == 1),
            _ => return Err(Error::new(Code::ElfKind, "expected an ELF program or library, found another file")),
        };
        Ok(Reader { bytes, is_64, is_little })
    }

    fn word_len(&self) -> u64 {
        if self.is_64 { 8 } else { 4 }
    }

    pub(super) fn slice(&self, at: u64, len: u64) -> Result<&'a [u8]> {
        let range = usize::try_from(at).ok().zip(usize::try_from(add(at, len)?).ok());
        let found = range.and_then(|(start, end)| self.bytes.get(start..end));
        found.ok_or_else(|| Error::new(Code::Elf, format!("expected {len} bytes, found the end of the file")).at(at))
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(at, N as u64)?);
        Ok(out)
    }

    /// A number of at most eight bytes.
    fn number(&self, bytes: &[u8]) -> u64 {
        let shift = |n: u64, b: &u8| (n << 8) | u64::from(*b);
        if self.is_little { bytes.iter().rev().fold(0, shift) } else { bytes.iter().fold(0, shift) }
    }

    pub(super) fn u16(&self, at: u64) -> Result<u16> {
        Ok(self.number(&self.array::<2>(at)?) as u16)
    }

    fn u32(&self, at: u64) -> Result<u32> {
        Ok(self.number(&self.array::<4>(at)?) as u32)
    }

    /// An address or length: as long as the file's words.
    fn word(&self, at: u64) -> Result<u64> {
        Ok(self.number(self.slice(at, self.word_len())?))
    }
}
