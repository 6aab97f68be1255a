//! What the loader of Linux reads of an ELF program or library: what it is linked with, and which of its calls are bound
//! while it is loaded. 32 and 64 bits, either byte order.
//!
//! Only program headers and the dynamic section are read, which a program cannot be stripped of. Every offset is checked
//! against the file; nothing is allocated from a count in it.

mod tables;

use indexmap::IndexSet;

use crate::error::{Code, Error, Result};
use tables::{Headers, Reader, Symbols, entries, name, relocations};

/// Symbols looked at; the largest programs have some hundred thousand.
const MAX_SYMBOLS: u64 = 1 << 22;
/// Bytes of a name that is asked for: a file's path.
const MAX_NAME: usize = 1 << 12;
/// Bytes of a search path, and search paths of a program: all its folders are usually one text.
const MAX_PATH: usize = 1 << 16;
const MAX_PATHS: usize = 16;
/// Libraries that a program names. Large ones need some hundred.
const MAX_NAMES: usize = 512;

const DT_NEEDED: u64 = 1;
const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_SYMBOLIC: u64 = 16;
const DT_REL: u64 = 17;
const DT_RELSZ: u64 = 18;
const DT_PLTREL: u64 = 20;
const DT_JMPREL: u64 = 23;
const DT_RUNPATH: u64 = 29;
const DT_FLAGS: u64 = 30;
const DF_SYMBOLIC: u64 = 2;
const STV_PROTECTED: u8 = 3;

/// A processor, as far as the loader tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// `e_machine`.
    number: u16,
    /// Whether addresses have 64 bits.
    is_64: bool,
    /// Whether the low byte comes first.
    is_little: bool,
}

/// `e_machine`, its name, and the numbers of the relocations that fill a slot for a call or an address by a symbol's name.
/// From each processor's ELF supplement; RISC-V and LoongArch fill address slots with their plain word relocation.
const MACHINES: [(u16, &str, u32, u32); 8] = [
    (3, "x86", 7, 6),
    (21, "ppc64", 21, 20),
    (22, "s390x", 11, 10),
    (40, "arm", 22, 21),
    (62, "x86-64", 7, 6),
    (183, "aarch64", 1026, 1025),
    (243, "riscv", 5, 2),
    (258, "loongarch", 5, 2),
];

impl Machine {
    /// For people.
    pub fn name(self) -> &'static str {
        self.row().map_or("a processor that ptplus does not know", |row| row.1)
    }

    fn row(self) -> Option<&'static (u16, &'static str, u32, u32)> {
        MACHINES.iter().find(|row| row.0 == self.number)
    }
}

/// How a call or an address gets its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relocation {
    /// A slot for a function that is called.
    JumpSlot,
    /// A slot for an address.
    GlobDat,
}

impl Relocation {
    /// As `objdump -R` prints it, without the processor's name.
    pub fn name(self) -> &'static str {
        match self {
            Relocation::JumpSlot => "JUMP_SLOT",
            Relocation::GlobDat => "GLOB_DAT",
        }
    }
}

/// Whether a symbol is in the file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// Taken from a library when the program starts.
    Imported,
    /// Defined by the file.
    Own,
}

/// One of the symbols that were asked for, as far as the file has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Symbol {
    /// Whether the file defines it, if its dynamic symbols name it at all.
    pub definition: Option<Definition>,
    /// The relocation by which the file's own calls of it are bound, if the loader binds them: to the first definition
    /// among all loaded files, whoever defines it.
    pub relocation: Option<Relocation>,
}

/// A program or library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// For which processor.
    pub machine: Machine,
    /// The loader that a program names; libraries name none.
    pub interpreter: Option<String>,
    /// Whether a loader has anything to do with it: it has a dynamic section.
    pub is_dynamic: bool,
    /// Names of the libraries that it needs, in order.
    pub needed: Vec<String>,
    /// Folders to search for them, colons between: for this file alone.
    pub runpath: Vec<String>,
    /// The older kind, for libraries of its libraries too.
    pub rpath: Vec<String>,
    /// What was asked for, in the same order.
    pub symbols: Vec<Symbol>,
}

/// Whether `bytes` begin as an ELF file does.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads what a loader would, and of the dynamic symbols those in `names`.
///
/// # Errors
///
/// [`Code::Elf`] for offsets beyond the file; [`Code::ElfKind`] for a file that is none, or a processor that is not
/// listed.
pub fn read(bytes: &[u8], names: &[&str]) -> Result<Object> {
    let file = Reader::new(bytes)?;
    let machine = Machine { number: file.u16(18)?, is_64: file.is_64, is_little: file.is_little };
    let Some(&(_, _, jump_slot, glob_dat)) = machine.row() else {
        let message = format!("expected a processor that ptplus knows, found number {}", machine.number);
        return Err(Error::new(Code::ElfKind, message));
    };
    let headers = Headers::read(&file)?;
    let mut object = Object {
        machine,
        interpreter: headers.interpreter.clone(),
        is_dynamic: headers.dynamic.is_some(),
        needed: Vec::new(),
        runpath: Vec::new(),
        rpath: Vec::new(),
        symbols: vec![Symbol::default(); names.len()],
    };
    let Some(section) = &headers.dynamic else { return Ok(object) };
    let entries = entries(&file, section)?;
    let value = |tag: u64| entries.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v);
    let (Some(text_at), Some(text_len)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(object) };
    let text = file.slice(headers.offset_of(text_at)?, text_len)?;
    // Each once: a section may name one text many times.
    let texts = |tag: u64, most: usize, most_bytes: usize| -> Result<Vec<String>> {
        let offsets: IndexSet<u64> = entries.iter().filter(|(t, _)| *t == tag).map(|(_, v)| *v).collect();
        if offsets.len() > most {
            return Err(Error::new(Code::Elf, format!("expected at most {most} names of a kind, found more")));
        }
        offsets.into_iter().map(|at| name(text, at, most_bytes).map(str::to_owned)).collect()
    };
    object.needed = texts(DT_NEEDED, MAX_NAMES, MAX_NAME)?;
    object.runpath = texts(DT_RUNPATH, MAX_PATHS, MAX_PATH)?;
    object.rpath = texts(DT_RPATH, MAX_PATHS, MAX_PATH)?;
    let Some(symbols_at) = value(DT_SYMTAB) else { return Ok(object) };
    let symbols = Symbols { file: &file, offset: headers.offset_of(symbols_at)?, text };
    let n_symbols = if text_at > symbols_at { (text_at - symbols_at) / symbols.entry_len() } else { MAX_SYMBOLS };
    symbols.define(n_symbols.min(MAX_SYMBOLS), names, &mut object.symbols)?;

    // A file that searches itself first is never given another's definition of what it defines.
    let searches_itself = value(DT_SYMBOLIC).is_some() || value(DT_FLAGS).is_some_and(|f| f & DF_SYMBOLIC != 0);
    let plt_has_addends = value(DT_PLTREL) == Some(DT_RELA);
    let tables = [
        (value(DT_JMPREL), value(DT_PLTRELSZ), plt_has_addends),
        (value(DT_RELA), value(DT_RELASZ), true),
        (value(DT_REL), value(DT_RELSZ), false),
    ];
    for (at, len, has_addends) in tables {
        let (Some(at), Some(len)) = (at, len) else { continue };
        let table = file.slice(headers.offset_of(at)?, len)?;
        for (symbol, kind) in relocations(&file, table, has_addends) {
            let relocation = match kind {
                k if k == jump_slot => Relocation::JumpSlot,
                k if k == glob_dat => Relocation::GlobDat,
                _ => continue,
            };
            let Some((i, entry)) = symbols.one_of(symbol, names) else { continue };
            let is_own = entry.definition == Definition::Own;
            if !(is_own && (searches_itself || entry.visibility == STV_PROTECTED)) {
                object.symbols[i].relocation.get_or_insert(relocation);
            }
            object.symbols[i].definition.get_or_insert(entry.definition);
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::tables::{PT_DYNAMIC, PT_LOAD};
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let found = read(&own(), &["malloc", "mallory"]).unwrap();
        assert!(found.needed.iter().any(|n| n.starts_with("libc.so")), "{:?}", found.needed);
        assert!(found.interpreter.is_some_and(|i| i.contains("ld-")) && found.is_dynamic);
        assert_eq!(found.symbols[0].definition, Some(Definition::Imported));
        assert!(found.symbols[0].relocation.is_some());
        assert_eq!(found.symbols[1], Symbol::default());
    }

    /// How a test file is written: for which processor, and its width and byte order.
    #[derive(Clone, Copy)]
    struct Form {
        machine: u16,
        is_64: bool,
        is_little: bool,
    }

    const X86_64: Form = Form { machine: 62, is_64: true, is_little: true };

    impl Form {
        fn number(self, value: u64, len: usize) -> Vec<u8> {
            let little = value.to_le_bytes()[..len].to_vec();
            if self.is_little { little } else { little.into_iter().rev().collect() }
        }

        fn word(self, value: u64) -> Vec<u8> {
            self.number(value, if self.is_64 { 8 } else { 4 })
        }

        /// A library of one loaded part: header, program headers, dynamic section, `n` symbols (the first is "f"), one
        /// relocation, names.
        fn library(self, n: u64, relocation: u64, more: &[(u64, u64)], section: u64, names: &[u8]) -> Vec<u8> {
            let word = if self.is_64 { 8 } else { 4 };
            let (header_len, segment_len, symbol_len) = if self.is_64 { (64, 56, 24) } else { (52, 32, 16) };
            let dynamic = header_len + 2 * segment_len;
            let n_entries = 7 + more.len() as u64;
            let symbols = dynamic + n_entries * 2 * word;
            let relocations = symbols + n * symbol_len;
            let text = relocations + 2 * word;
            let len = text + names.len() as u64;
            let mut out = [b"\x7fELF", &[1 + u8::from(self.is_64), 2 - u8::from(self.is_little)][..]].concat();
            out.resize(16, 0);
            out.extend([self.number(3, 2), self.number(self.machine.into(), 2), self.number(1, 4)].concat());
            out.extend([self.word(0), self.word(header_len), self.word(0), self.number(0, 4)].concat());
            for half in [header_len, segment_len, 2, 0, 0, 0] {
                out.extend(self.number(half, 2));
            }
            for (kind, offset, len) in [(PT_LOAD, 0, len), (PT_DYNAMIC, dynamic, n_entries * 2 * word)] {
                out.extend(self.number(kind.into(), 4));
                if self.is_64 {
                    out.extend(self.number(0, 4));
                }
                for value in [offset, offset, 0, len, len] {
                    out.extend(self.word(value));
                }
                out.resize(out.len() + 8, 0);
            }
            assert_eq!(out.len() as u64, dynamic);
            let entries = [
                (DT_STRTAB, text),
                (DT_STRSZ, names.len() as u64),
                (DT_SYMTAB, symbols),
                (DT_JMPREL, relocations),
                (DT_PLTRELSZ, 2 * word),
                (DT_PLTREL, DT_REL),
            ];
            for (tag, value) in entries.iter().chain(more).chain(&[(0, 0)]) {
                out.extend([self.word(*tag), self.word(*value)].concat());
            }
            for i in 0..n {
                let section = self.number(if i == 0 { section } else { 0 }, 2);
                let entry = match self.is_64 {
                    true => [self.number(0, 4), vec![0, 0], section, vec![0; 16]].concat(),
                    false => [self.number(0, 4), vec![0; 10], section].concat(),
                };
                out.extend(entry);
            }
            let info = if self.is_64 { relocation } else { relocation & 0xFF };
            out.extend([self.word(0), self.word(info)].concat());
            [&out, names].concat()
        }
    }

    #[test]
    fn calls_that_the_loader_binds_are_found_on_every_processor() {
        for (machine, label, jump_slot, glob_dat) in MACHINES {
            for (is_64, is_little) in [(true, true), (true, false), (false, true), (false, false)] {
                let form = Form { machine, is_64, is_little };
                // Only aarch64 has numbers above 255, and only with 64 bits.
                if !is_64 && jump_slot > 255 {
                    continue;
                }
                let relocation = |kind: u32| {
                    let found = read(&form.library(1, kind.into(), &[], 0, b"f\0"), &["g", "f"]).unwrap();
                    assert_eq!(found.symbols[0], Symbol::default());
                    assert_eq!(found.machine.name(), label);
                    assert_eq!(found.symbols[1].definition, Some(Definition::Imported));
                    found.symbols[1].relocation
                };
                assert_eq!(relocation(jump_slot), Some(Relocation::JumpSlot), "{label} {is_64} {is_little}");
                assert_eq!(relocation(glob_dat), Some(Relocation::GlobDat), "{label}");
                assert_eq!(relocation(200), None, "{label}");
            }
        }
        let unknown = Form { machine: 9999, ..X86_64 };
        assert_eq!(read(&unknown.library(1, 7, &[], 0, b"f\0"), &["f"]).unwrap_err().code(), Code::ElfKind);
    }

    #[test]
    fn a_library_that_searches_itself_first_is_not_bound_to_others() {
        let relocation = |more: &[(u64, u64)], section: u64| {
            read(&X86_64.library(1, 7, more, section, b"f\0"), &["f"]).unwrap().symbols[0].relocation
        };
        for symbolic in [[(DT_SYMBOLIC, 0)], [(DT_FLAGS, DF_SYMBOLIC)]] {
            assert_eq!(relocation(&symbolic, 1), None);
            assert!(relocation(&symbolic, 0).is_some(), "what it does not define comes from others");
        }
        assert!(relocation(&[(DT_FLAGS, 8)], 1).is_some(), "its own definition is the last choice");
    }

    #[test]
    fn a_name_is_the_whole_name() {
        let found =
            |names: &[u8], asked: &str| read(&X86_64.library(1, 7, &[], 0, names), &[asked]).unwrap().symbols[0];
        assert!(found(b"ggml_mul_mat\0", "ggml_mul_mat").relocation.is_some());
        for (names, asked) in [(&b"ggml_mul_mat_id\0"[..], "ggml_mul_mat"), (b"ggml\0", "ggml_mul_mat"), (b"f", "f")] {
            assert_eq!(found(names, asked), Symbol::default(), "{asked}");
        }
    }

    #[test]
    fn many_symbols_with_long_names_cost_little() {
        let long = [&vec![b'n'; 1 << 20][..], b"\0"].concat();
        assert_eq!(read(&X86_64.library(1 << 20, 7, &[], 0, &long), &["f"]).unwrap().symbols[0], Symbol::default());
        let needed: Vec<(u64, u64)> = (0..MAX_NAMES as u64 + 1).map(|i| (DT_NEEDED, i)).collect();
        let names = vec![0; MAX_NAMES + 8];
        assert_eq!(read(&X86_64.library(1, 7, &needed, 0, &names), &["f"]).unwrap_err().code(), Code::Elf);
    }

    #[test]
    fn truncated_and_flipped_files_give_errors_or_other_answers_but_no_panic() {
        for form in [
            X86_64,
            Form { machine: 3, is_64: false, is_little: true },
            Form { machine: 22, is_little: false, ..X86_64 },
        ] {
            let small =
                form.library(3, 7, &[(DT_NEEDED, 0), (DT_RUNPATH, 0), (DT_RELA, 64), (DT_RELASZ, 48)], 1, b"f\0");
            assert!(read(&small, &["f"]).is_ok());
            for len in 0..small.len() {
                let _ = read(&small[..len], &["f"]);
            }
            for i in 0..small.len() {
                for mask in [0xFF, 0x80, 1] {
                    let mut spoilt = small.clone();
                    spoilt[i] ^= mask;
                    let _ = read(&spoilt, &["f"]);
                }
                // Two large numbers that add up to more than any.
                let mut spoilt = small.clone();
                let end = (i + 8).min(small.len());
                spoilt[i..end].fill(0xFF);
                let _ = read(&spoilt, &["f"]);
            }
        }
        let bytes = own();
        let start = &bytes[..bytes.len().min(64 << 10)];
        for len in (0..start.len()).step_by(37) {
            let _ = read(&start[..len], &["malloc"]);
        }
        for i in 0..1024 {
            let mut spoilt = start.to_vec();
            spoilt[i] ^= 0xFF;
            let _ = read(&spoilt, &["malloc"]);
        }
        assert_eq!(read(b"\x7fELF\x03\x01", &[]).unwrap_err().code(), Code::ElfKind);
        assert_eq!(read(b"\x7fELF\x02\x01", &[]).unwrap_err().code(), Code::Elf);
        assert_eq!(read(b"MZ", &[]).unwrap_err().code(), Code::ElfKind);
    }
}
