//! The tar archive of a bundle, read as `check` reads it and as `unpack` does.

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::bundle::tar::{Strictness, plan, read as read_tar};
use ptplus::format::limits::BUNDLE_FILES;
use tar::{EntryType, Header};

use crate::case::{Case, accepted, large, refused};
use crate::damage::entry;

const BLOCK: usize = 512;
const END: usize = 2 * BLOCK;

/// As a bundle: exactly what we write.
pub fn read(bytes: Vec<u8>) -> Result<()> {
    read_as(bytes, Strictness::Exact)
}

/// As something to unpack: also what other programs write.
pub fn read_foreign(bytes: Vec<u8>) -> Result<()> {
    read_as(bytes, Strictness::Unpack)
}

fn read_as(bytes: Vec<u8>, strictness: Strictness) -> Result<()> {
    let (files, findings) = read_tar("case.tar", &bytes.clone().into(), strictness);
    match findings.first() {
        Some(finding) => Err(finding.to_error().file(Path::new("case.tar"))),
        None => {
            entry::check_archive(&bytes, &files, strictness);
            Ok(())
        }
    }
}

/// An archive of ours.
fn ours(files: &[(&str, &[u8])]) -> Vec<u8> {
    let files: BTreeMap<&str, &[u8]> = files.iter().copied().collect();
    let sizes: Vec<(&str, u64)> = files.iter().map(|(path, bytes)| (*path, bytes.len() as u64)).collect();
    let (placed, len) = plan(&sizes).expect("cases fit");
    let mut out = vec![0; len as usize];
    for (p, content) in placed.iter().zip(files.values()) {
        let at = p.header_offset as usize;
        out[at..at + BLOCK].copy_from_slice(&p.header);
        out[at + BLOCK..][..content.len()].copy_from_slice(content);
    }
    out
}

/// One entry, its header changed and then given a right checksum.
fn entry_of(path: &[u8], content: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut h = Header::new_ustar();
    // `set_path` refuses what is tried here.
    h.as_old_mut().name[..path.len()].copy_from_slice(path);
    h.set_entry_type(EntryType::Regular);
    h.set_size(content.len() as u64);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    change(&mut h);
    h.set_cksum();
    let mut out = h.as_bytes().to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn ended(entries: Vec<Vec<u8>>) -> Vec<u8> {
    let mut out = entries.concat();
    out.resize(out.len() + END, 0);
    out
}

fn one(path: &str, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    ended(vec![entry_of(path.as_bytes(), b"x", change)])
}

fn of_kind_entry(kind: EntryType) -> Vec<u8> {
    entry_of(b"a", b"", |h| h.set_entry_type(kind))
}

fn of_kind(kind: EntryType) -> Vec<u8> {
    one("a", |h| h.set_entry_type(kind))
}

fn changed(at: usize, byte: u8) -> Vec<u8> {
    let mut file = ours(&[("a", b"x"), ("b", b"y")]);
    assert_ne!(file[at], byte);
    file[at] = byte;
    file
}

fn cut(n: usize) -> Vec<u8> {
    let file = ours(&[("a", b"x")]);
    file[..file.len() - n].to_vec()
}

fn size_field(text: &[u8; 12]) -> Vec<u8> {
    one("a", |h| h.as_old_mut().size = *text)
}

/// A file after an extended header of these records.
fn with_records(records: &[&str]) -> Vec<u8> {
    let line = |record: &&str| {
        // The length counts its own digits.
        let len = (record.len() + 2..).find(|n| n.to_string().len() + record.len() + 2 == *n).expect("a length");
        format!("{len} {record}\n")
    };
    let records: String = records.iter().map(line).collect();
    let header = entry_of(b"PaxHeaders/a", records.as_bytes(), |h| h.set_entry_type(EntryType::XHeader));
    ended(vec![header, entry_of(b"a", b"x", |_| {})])
}

/// Archives that are right, each in another way.
pub fn right_files() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(90));
    vec![
        ours(&[]),
        ours(&[("a", b"")]),
        ours(&[("a", b"x")]),
        ours(&[("a", b"x"), ("b", b"y")]),
        ours(&[("a", &[7; 511])]),
        ours(&[("a", &[7; 512])]),
        ours(&[("a", &[7; 513])]),
        ours(&[("a/b", b"x"), ("a/c", b"")]),
        ours(&[("ä", "ö".as_bytes())]),
        ours(&[(&long, b"x")]),
        ours(&[("README.md", b"# card"), ("manifest.json", b"{}"), ("reports/a.json", b"[]")]),
    ]
}

/// What both readers refuse alike, and what both read.
fn common() -> Vec<Case> {
    use Code::*;
    let mut cases: Vec<Case> =
        right_files().into_iter().enumerate().map(|(i, f)| accepted(format!("right file {i}"), f)).collect();
    let kinds = [
        ("symbolic link", EntryType::Symlink),
        ("hard link", EntryType::Link),
        ("character device", EntryType::Char),
        ("block device", EntryType::Block),
        ("pipe", EntryType::Fifo),
        ("contiguous file", EntryType::Continuous),
        ("GNU long name", EntryType::GNULongName),
        ("GNU long link", EntryType::GNULongLink),
        ("GNU sparse file", EntryType::GNUSparse),
        ("extended header", EntryType::XHeader),
        ("global header", EntryType::XGlobalHeader),
        ("unknown kind", EntryType::new(b'Z')),
    ];
    cases.extend(kinds.map(|(name, kind)| refused(name, of_kind(kind), BundleLink)));
    for (name, path) in [
        ("empty path", ""),
        ("parent folder", "../a"),
        ("parent folder inside", "a/../b"),
        ("parent folder after this folder", "./../a"),
        ("parent folder alone", ".."),
        ("absolute", "/etc/passwd"),
        ("with a drive", "C:/a"),
        ("backslash", "a\\b"),
        ("parent folder, backslashes", "..\\a"),
        ("this folder twice", "././a"),
        ("empty part", "a//b"),
        ("line break", "a\nb"),
        ("escape sequence", "\u{1b}[31m"),
        ("slash at the end", "a/"),
    ] {
        cases.push(refused(name, one(path, |_| {}), BundlePath));
    }
    cases.extend([
        refused("no byte", "", BundleTar),
        refused("a byte", "\0", BundleTar),
        refused("half a header", vec![b'a'; 256], BundleTar),
        refused("one block of zeros", vec![0; BLOCK], BundleTar),
        refused("another kind of file", b"PK\x03\x04".repeat(512), BundleTar),
        refused("no end", cut(END), BundleTar),
        refused("half the end", cut(BLOCK), BundleTar),
        refused("a byte of the end cut", cut(1), BundleTar),
        refused("padding cut", cut(END + 1), BundleTar),
        refused("content cut", cut(END + BLOCK), BundleTar),
        refused("a byte after the end", [cut(0), vec![1]].concat(), BundleTar),
        refused("an archive after the end", [cut(0), cut(0)].concat(), BundleTar),
        refused("a byte in the padding", changed(BLOCK + 1, 1), BundleTar),
        refused("a byte between the blocks of the end", changed(4 * BLOCK + 600, 1), BundleTar),
        refused("wrong checksum", changed(148, b'7'), BundleTar),
        refused("name changed under the checksum", changed(0, b'c'), BundleTar),
        refused("size of an archive without it", size_field(b"00000004000\0"), BundleTar),
        refused("size one byte beyond the padding", size_field(b"00000003001\0"), BundleTar),
        refused("largest octal size", size_field(b"77777777777\0"), BundleTar),
        refused("size not octal", size_field(b"00000000008\0"), BundleTar),
        refused("size negative", size_field(b"-0000000001\0"), BundleTar),
        refused("size in base 256", size_field(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), BundleTar),
        refused("size negative in base 256", size_field(&[0xff; 12]), BundleTar),
        refused("size empty", size_field(&[0; 12]), BundleTar),
        refused("a path twice", ended(vec![entry_of(b"a", b"x", |_| {}), entry_of(b"a", b"y", |_| {})]), BundleTar),
        refused("path not UTF-8", ended(vec![entry_of(b"a\xff", b"x", |_| {})]), BundlePath),
        refused("a name in an extended header", with_records(&["mtime=1", "path=b"]), BundleLink),
        refused("a link in an extended header", with_records(&["linkpath=b"]), BundleLink),
        refused("a size in an extended header", with_records(&["size=0"]), BundleLink),
        refused("a record that begins like another", with_records(&["mtimes=1"]), BundleLink),
        refused("a record without a value", with_records(&["mtime"]), BundleLink),
        large(
            "most links",
            || ended((0..BUNDLE_FILES).map(|_| of_kind_entry(EntryType::Symlink)).collect()),
            Some(BundleLink),
        ),
        large("most files", || many(BUNDLE_FILES), None),
        large("a file too many", || many(BUNDLE_FILES + 1), Some(BundleTar)),
    ]);
    cases
}

fn many(n: usize) -> Vec<u8> {
    let names: Vec<String> = (0..n).map(|i| format!("{i:05}")).collect();
    ours(&names.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>())
}

/// What others write of the same files: refused in a bundle, unpacked otherwise.
fn foreign(want: fn(&'static str, Vec<u8>) -> Case) -> Vec<Case> {
    let with = |change: fn(&mut Header)| one("a", change);
    vec![
        want("mode 0600", with(|h| h.set_mode(0o600))),
        want("mode with setuid", with(|h| h.set_mode(0o4755))),
        want("an owner", with(|h| h.set_uid(1000))),
        want("an owner's name", with(|h| h.set_username("me").expect("ustar"))),
        want("a group", with(|h| h.set_gid(1000))),
        want("a time", with(|h| h.set_mtime(1_700_000_000))),
        want("a leading ./", one("./a", |_| {})),
        want("files in another order", ended(vec![entry_of(b"b", b"", |_| {}), entry_of(b"a", b"", |_| {})])),
        want(
            "a folder",
            ended(vec![
                entry_of(b"d/", b"", |h| h.set_entry_type(EntryType::Directory)),
                entry_of(b"d/a", b"", |_| {}),
            ]),
        ),
        want("the folder itself", ended(vec![entry_of(b"./", b"", |h| h.set_entry_type(EntryType::Directory))])),
        want("GNU magic", with(|h| h.as_ustar_mut().expect("ustar").magic = *b"ustar ")),
        want(
            "no magic, as in version 7",
            with(|h| {
                let h = h.as_ustar_mut().expect("ustar");
                h.magic = [0; 6];
                h.version = [0; 2];
            }),
        ),
        want("20 blocks", {
            let mut f = cut(0);
            f.resize(20 * BLOCK, 0);
            f
        }),
        want("text after the path's end", with(|h| h.as_old_mut().name[50] = b'!')),
        want("kind 0, as in version 7", with(|h| h.as_old_mut().linkflag = [0])),
        want("times in an extended header", with_records(&["mtime=1700000000.123456", "uid=1000", "comment=a = b"])),
        want("an extended header of nothing", with_records(&[])),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = common();
    cases.push(large("zeros without end", || vec![0; 64 << 20], Some(Code::BundleTar)));
    cases.extend(foreign(|name, file| {
        let code = match name {
            "a leading ./" => Code::BundlePath,
            "a folder" | "the folder itself" => Code::BundleLink,
            "times in an extended header" | "an extended header of nothing" => Code::BundleLink,
            _ => Code::BundleTar,
        };
        refused(name, file, code)
    }));
    cases
}

pub fn foreign_cases() -> Vec<Case> {
    let mut cases = common();
    cases.push(large("zeros without end", || vec![0; 64 << 20], None));
    cases.extend(foreign(accepted));
    let folder = |path: &str| one(path, |h| h.set_entry_type(EntryType::Directory));
    cases.extend([
        refused("folder outside", folder("../d/"), Code::BundlePath),
        refused("folder absolute", folder("/d/"), Code::BundlePath),
        refused(
            "folder with a wrong checksum",
            {
                let mut file = folder("d/");
                file[148] = b'7';
                file
            },
            Code::BundleTar,
        ),
    ]);
    cases
}
