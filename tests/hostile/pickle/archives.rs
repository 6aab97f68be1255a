//! Wrong archives around a right pickle: each breaks one rule of the container.

use ptplus::error::{Code, ErrorKind};
use ptplus::format::pickle;

use crate::pickle::assembler::*;

const DESCRIPTOR: u16 = 1 << 3;

fn right() -> Vec<Entry> {
    entries(&good_pickle())
}

/// The archive with its entry `name` changed.
fn with(name: &str, change: impl FnOnce(&mut Entry)) -> Vec<u8> {
    let mut all = right();
    let name = format!("a/{name}");
    change(all.iter_mut().find(|e| e.local.name == name.as_bytes()).unwrap());
    zip(&all, &End::default())
}

fn both(e: &mut Entry, change: impl Fn(&mut Header)) {
    change(&mut e.local);
    change(&mut e.central);
}

fn renamed(name: &str) -> Vec<u8> {
    with("byteorder", |e| both(e, |h| h.name = name.into()))
}

fn descriptor(e: &Entry) -> Vec<u8> {
    let mut tail = b"PK\x07\x08".to_vec();
    for field in [e.central.crc32, e.central.packed, e.central.len] {
        tail.extend(field.to_le_bytes());
    }
    tail
}

fn wide_descriptor(e: &Entry) -> Vec<u8> {
    let mut tail = b"PK\x07\x08".to_vec();
    tail.extend(e.central.crc32.to_le_bytes());
    for field in [e.central.packed, e.central.len] {
        tail.extend(u64::from(field).to_le_bytes());
    }
    tail
}

/// An entry whose sizes follow its data.
fn described(e: &mut Entry) {
    both(e, |h| h.flags |= DESCRIPTOR);
    (e.local.crc32, e.local.packed, e.local.len) = (0, 0, 0);
    e.tail = descriptor(e);
}

/// The zip64 end record and its locator, for the end of `right()`.
fn zip64(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let plain = zip(&right(), &End::default());
    let end = plain.len() - 22;
    let field = |at: usize| u64::from(u32::from_le_bytes(plain[at..at + 4].try_into().unwrap()));
    let mut records = b"PK\x06\x06".to_vec();
    records.extend(44u64.to_le_bytes());
    records.extend([0x1e, 3, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for value in [4, 4, field(end + 12), field(end + 16)] {
        records.extend(value.to_le_bytes());
    }
    records.extend(b"PK\x06\x07\0\0\0\0");
    records.extend((end as u64).to_le_bytes());
    records.extend(1u32.to_le_bytes());
    change(&mut records);
    records
}

fn ending(end: End) -> Vec<u8> {
    zip(&right(), &end)
}

#[test]
fn right_archives_are_accepted() {
    let wide_local = |e: &mut Entry| {
        (e.local.packed, e.local.len) = (u32::MAX, u32::MAX);
        e.local_extra = vec![9, 9, 1, 0, 7, 1, 0, 16, 0];
        for _ in 0..2 {
            e.local_extra.extend((e.data.len() as u64).to_le_bytes());
        }
    };
    let reversed = right().into_iter().rev().collect::<Vec<_>>();
    let without_byteorder: Vec<_> = right().into_iter().filter(|e| e.local.name != b"a/byteorder").collect();
    for (name, file) in [
        ("as it is", ending(End::default())),
        ("in another order", zip(&reversed, &End::default())),
        ("before PyTorch 2.1", zip(&without_byteorder, &End::default())),
        ("a descriptor", with("data/0", described)),
        (
            "a zip64 descriptor",
            with("data/0", |e| {
                described(e);
                e.tail = wide_descriptor(e);
            }),
        ),
        ("a zip64 local header", with("data/0", wide_local)),
        ("a Unix mode", with("data/0", |e| e.attributes = 0o100644 << 16)),
        ("padding in the local header", with("data/0", |e| e.local_extra = b"FB\x03\0ZZZ".to_vec())),
        ("an entry that nobody asks for", with("byteorder", |e| both(e, |h| h.name = b"a/.format_version".into()))),
        (
            "a longer name of the folder",
            zip(
                &right()
                    .into_iter()
                    .map(|mut e| {
                        both(&mut e, |h| h.name = [b"model v1.5 \xc3\xa4", &h.name[1..]].concat());
                        e
                    })
                    .collect::<Vec<_>>(),
                &End::default(),
            ),
        ),
        ("a zip64 end", ending(End { before: zip64(|_| {}), ..End::default() })),
        (
            "a zip64 end that is needed",
            ending(End {
                before: zip64(|_| {}),
                n_entries: Some(u16::MAX),
                len: Some(u32::MAX),
                start: Some(u32::MAX),
                ..End::default()
            }),
        ),
    ] {
        let checkpoint = read(file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(contents(&checkpoint), [("w".to_owned(), "F32", vec![2, 3], elements())], "{name}");
    }
}

#[test]
fn wrong_entries_are_refused() {
    let bad = Code::PickleArchive;
    let mut prefixed = b"junk".to_vec();
    prefixed.extend(ending(End::default()));
    let mut twice = right();
    twice.push(twice[2].clone());
    let mut hidden = right();
    hidden[1].tail = zip(&right()[2..3], &End::default());
    check_codes(vec![
        ("junk before the archive", prefixed, bad),
        ("an entry twice", zip(&twice, &End::default()), Code::NameDuplicate),
        ("an entry that the directory does not list", zip(&hidden, &End::default()), bad),
        ("a traversal", renamed("a/../../etc/passwd"), Code::NameInvalid),
        ("a traversal with backslashes", renamed("a\\..\\b"), Code::NameInvalid),
        ("an absolute name", renamed("/a/byteorder"), Code::NameInvalid),
        ("an empty name", renamed(""), Code::NameInvalid),
        ("NUL in a name", renamed("a/byte\0order"), Code::NameInvalid),
        ("a line break in a name", renamed("a/byte\norder"), Code::NameInvalid),
        ("a name of 256 bytes", renamed(&format!("a/{}", "b".repeat(254))), Code::NameInvalid),
        (
            "a name that is not UTF-8",
            with("byteorder", |e| both(e, |h| h.name = b"a/\xff\xfe".into())),
            Code::NameInvalid,
        ),
        ("another folder", renamed("b/byteorder"), bad),
        ("no folder", renamed("byteorder"), bad),
        ("a folder as an entry", renamed("a/byteorder/"), bad),
        ("a link", with("data/0", |e| e.attributes = 0o120777 << 16), bad),
        ("a device", with("data/0", |e| e.attributes = 0o020666 << 16), bad),
        ("a directory by mode", with("data/0", |e| e.attributes = 0o040755 << 16), bad),
        ("deflated", with("data/0", |e| both(e, |h| h.method = 8)), bad),
        ("deflated in the directory only", with("data/0", |e| e.central.method = 8), bad),
        ("deflated in the local header only", with("data/0", |e| e.local.method = 8), bad),
        ("encrypted", with("data/0", |e| both(e, |h| h.flags = 1)), bad),
        ("strongly encrypted", with("data/0", |e| both(e, |h| h.flags = 0x41)), bad),
        ("patch data", with("data/0", |e| both(e, |h| h.flags = 0x20)), bad),
        ("a masked local header", with("data/0", |e| both(e, |h| h.flags = 0x2000)), bad),
        ("other flags in the local header", with("data/0", |e| e.local.flags = 0x800), bad),
        ("another name in the local header", with("data/0", |e| e.local.name = b"a/data/1".into()), bad),
        ("a shorter name in the local header", with("data/0", |e| e.local.name = b"a/data".into()), bad),
        ("another checksum in the local header", with("data/0", |e| e.local.crc32 ^= 1), bad),
        ("another length in the local header", with("data/0", |e| e.local.len += 1), bad),
        ("another packed length in the local header", with("data/0", |e| e.local.packed -= 1), bad),
        ("no length, and no descriptor", with("data/0", |e| (e.local.len, e.local.packed) = (0, 0)), bad),
        ("packed length unlike length", with("data/0", |e| both(e, |h| h.packed -= 1)), bad),
        ("longer than it is", with("data/0", |e| both(e, |h| (h.len, h.packed) = (25, 25))), bad),
        ("shorter than it is", with("data/0", |e| both(e, |h| (h.len, h.packed) = (23, 23))), bad),
        ("longer than the file", with("version", |e| both(e, |h| (h.len, h.packed) = (1 << 30, 1 << 30))), bad),
        ("no local header", with("data/0", |e| e.local_signature = *b"PK\x03\x05"), bad),
        ("bytes after the data", with("data/0", |e| e.tail = vec![0]), bad),
        ("a descriptor that is not announced", with("data/0", |e| e.tail = descriptor(e)), bad),
        (
            "a descriptor that is missing",
            with("data/0", |e| {
                described(e);
                e.tail.clear();
            }),
            bad,
        ),
        (
            "a descriptor with another checksum",
            with("data/0", |e| {
                described(e);
                e.tail[4] ^= 1;
            }),
            bad,
        ),
        (
            "a descriptor with another length",
            with("data/0", |e| {
                described(e);
                e.tail[12] ^= 1;
            }),
            bad,
        ),
        (
            "a descriptor without signature",
            with("data/0", |e| {
                described(e);
                e.tail.drain(..4);
            }),
            bad,
        ),
        ("another disk", with("data/0", |e| e.disk = 1), bad),
        ("the local header of another entry", with("data/0", |e| e.offset = Some(0)), bad),
        ("a local header inside the data of another", with("data/0", |e| e.offset = Some(40)), bad),
        ("a local header outside", with("data/0", |e| e.offset = Some(1 << 30)), bad),
        (
            "a zip64 length that disagrees",
            with("data/0", |e| {
                (e.local.packed, e.local.len) = (u32::MAX, u32::MAX);
                e.local_extra = [&[1, 0, 16, 0][..], &25u64.to_le_bytes(), &24u64.to_le_bytes()].concat();
            }),
            bad,
        ),
        (
            "a zip64 length that is missing",
            with("data/0", |e| (e.local.packed, e.local.len) = (u32::MAX, u32::MAX)),
            bad,
        ),
        (
            "another name in an extra field",
            with("byteorder", |e| {
                let crc = crc32fast::hash(&e.central.name);
                e.central_extra = [b"\x75\x70\x0d\0\x01", &crc.to_le_bytes()[..], b"a/data/9"].concat();
            }),
            bad,
        ),
        ("wrong bytes in data.pkl", with("data.pkl", |e| e.data[7] ^= 1), Code::PickleChecksum),
        ("wrong bytes in byteorder", with("byteorder", |e| e.data[0] = b'L'), Code::PickleChecksum),
        ("wrong bytes in version", with("version", |e| e.data[0] = b'4'), Code::PickleChecksum),
        ("wrong bytes in a storage", with("data/0", |e| e.data[0] ^= 1), Code::PickleChecksum),
    ]);
}

#[test]
fn wrong_ends_are_refused() {
    let (bad, cut) = (Code::PickleArchive, Code::PickleTruncated);
    let of = |end: End| ending(end);
    let none = End::default;
    let needed = |before: Vec<u8>| End {
        before,
        n_entries: Some(u16::MAX),
        len: Some(u32::MAX),
        start: Some(u32::MAX),
        ..none()
    };
    check_codes(vec![
        ("an empty archive", zip(&[], &none()), bad),
        ("only an end record's signature", b"PK\x05\x06".to_vec(), cut),
        ("only a local header", b"PK\x03\x04".to_vec(), cut),
        ("a comment", of(End { comment: b"hello".to_vec(), ..none() }), cut),
        ("bytes after the end", of(End { after: vec![0], ..none() }), cut),
        ("an end record in the comment of another", of(End { comment: zip(&[], &none()), ..none() }), bad),
        ("bytes before the end record", of(End { before: vec![0; 8], ..none() }), bad),
        ("disk 1", of(End { disk: 1, ..none() }), bad),
        ("an entry less", of(End { n_entries: Some(3), ..none() }), bad),
        ("an entry more", of(End { n_entries: Some(5), ..none() }), bad),
        ("a directory that starts later", of(End { start: Some(100), ..none() }), bad),
        ("a directory that starts outside", of(End { start: Some(1 << 30), ..none() }), bad),
        ("a shorter directory", of(End { len: Some(100), ..none() }), bad),
        ("a directory longer than the file", of(End { len: Some(1 << 20), ..none() }), bad),
        ("a directory longer than its limit", of(End { len: Some(1 << 30), ..none() }), Code::PickleLimit),
        ("zip64 that is missing", of(needed(Vec::new())), bad),
        ("zip64 without its record", of(needed(zip64(|r| drop(r.drain(..56))))), bad),
        ("zip64 with a longer record", of(needed(zip64(|r| r[4] = 45))), bad),
        ("zip64 with a record of 2^64 - 1", of(needed(zip64(|r| r[4..12].fill(255)))), bad),
        ("zip64 of several disks", of(needed(zip64(|r| r[16] = 1))), bad),
        ("zip64 with its directory on another disk", of(needed(zip64(|r| r[20] = 1))), bad),
        ("zip64 with two counts", of(needed(zip64(|r| r[24] = 3))), bad),
        ("zip64 with too many entries", of(needed(zip64(|r| (r[26], r[34]) = (2, 2)))), Code::PickleLimit),
        ("zip64 with 2^64 - 1 entries", of(needed(zip64(|r| r[24..40].fill(255)))), Code::PickleLimit),
        ("zip64 with 2^64 - 1 bytes", of(needed(zip64(|r| r[40..48].fill(255)))), Code::PickleLimit),
        ("zip64 that starts at 2^64 - 1", of(needed(zip64(|r| r[48..56].fill(255)))), bad),
        ("zip64 that disagrees", of(End { before: zip64(|r| (r[24], r[32]) = (3, 3)), ..none() }), bad),
        ("a locator that points elsewhere", of(needed(zip64(|r| r[64] ^= 1))), bad),
        ("a locator of two disks", of(needed(zip64(|r| r[72] = 2))), bad),
    ]);
}

#[test]
fn what_a_checkpoint_must_have_is_missed() {
    let without = |name: &str| {
        let name = format!("a/{name}");
        zip(&right().into_iter().filter(|e| e.local.name != name.as_bytes()).collect::<Vec<_>>(), &End::default())
    };
    let word = |name: &str, text: &str| {
        let mut all = right();
        let name = format!("a/{name}");
        *all.iter_mut().find(|e| e.local.name == name.as_bytes()).unwrap() = Entry::new(&name, text.as_bytes());
        zip(&all, &End::default())
    };
    let mut script = right();
    script.push(Entry::new("a/constants.pkl", b"\x80\x02)."));
    check_codes(vec![
        ("no pickle", without("data.pkl"), Code::PickleArchive),
        ("no storage", without("data/0"), Code::PickleStorage),
        ("no version", without("version"), Code::PickleUnsupported),
        ("version 0", word("version", "0\n"), Code::PickleUnsupported),
        ("version 11", word("version", "11\n"), Code::PickleUnsupported),
        ("version three", word("version", "three"), Code::PickleUnsupported),
        ("a long version", word("version", &"3".repeat(65)), Code::PickleLimit),
        ("big endian", word("byteorder", "big"), Code::PickleUnsupported),
        ("middle endian", word("byteorder", "middle"), Code::PickleArchive),
        ("TorchScript", zip(&script, &End::default()), Code::PickleUnsupported),
        ("no checkpoint at all", b"GGUF\x03\0\0\0".to_vec(), Code::PickleTruncated),
        ("nothing at all", Vec::new(), Code::PickleTruncated),
    ]);
}

#[test]
fn a_storage_that_nobody_reads_is_not_compared_with_its_checksum() {
    let mut all = entries(&dict_of(|p| p.op(b"}").text("adapter").tensor(0, &[6], &[1]).op(b"s")));
    let mut base = Entry::new("a/data/1", &[0; 8]);
    base.data[0] = 1;
    all.insert(3, base);
    let two = dict_of(|p| {
        let p = p.op(b"}").text("adapter").tensor(0, &[6], &[1]).op(b"s").text("base");
        let p = p.global("torch._utils", "_rebuild_tensor_v2").op(b"(").storage("FloatStorage", "1", 2).int(0);
        p.ints(&[2]).ints(&[1]).op(b"\x89").no_hooks().op(b"tRs")
    });
    all[0] = Entry::new("a/data.pkl", &two);
    let file = zip(&all, &End::default());
    let checkpoint = pickle::read(std::path::Path::new("x.pt"), file.into()).unwrap();
    let get = |name: &str| checkpoint.root().get("w").unwrap().get(name).unwrap().as_tensor().unwrap();
    assert!(get("adapter").lazy().is_ok());
    for _ in 0..2 {
        let e = get("base").lazy().unwrap_err();
        assert_eq!((e.code(), e.kind()), (Code::PickleChecksum, ErrorKind::Corrupt), "{e}");
        assert!(e.path().is_some() && e.offset().is_some());
    }
}

#[test]
fn checkpoints_are_known_by_their_first_bytes() {
    for (start, yes) in [
        (&b"PK\x03\x04rest"[..], true),
        (b"PK\x05\x06", true),
        (b"\x80\x02\x8a\x0a", true),
        (b"\x80\x05", true),
        (b"\x80\x01}", false),
        (b"\x80\x06}", false),
        (b"\x80", false),
        (b"", false),
        (b"PK", false),
        (b"GGUF", false),
        (b"{\"a\":1}", false),
        (b"\x08\0\0\0\0\0\0\0{", false),
    ] {
        assert_eq!(pickle::is_checkpoint(start), yes, "{start:?}");
    }
}
