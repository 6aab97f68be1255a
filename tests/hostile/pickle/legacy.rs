//! Wrong files of the kind from before PyTorch 1.6.

use ptplus::error::Code;

use crate::pickle::assembler::*;

/// The parts of a right file; tests change one.
struct Parts {
    magic: Vec<u8>,
    protocol: Vec<u8>,
    system: Vec<u8>,
    object: Vec<u8>,
    keys: Vec<u8>,
    storages: Vec<u8>,
}

fn storage_with_header(n: i64) -> Vec<u8> {
    [&n.to_le_bytes()[..], &elements()].concat()
}

fn system(protocol: i32, little_endian: &[u8]) -> Vec<u8> {
    let p = Pickle::new().op(b"}").text("protocol_version").int(protocol).op(b"s");
    p.text("little_endian").op(little_endian).op(b"s").text("type_sizes").op(b"}s").stop()
}

/// The object with the sixth item that persistent ids have in these files.
fn legacy_object(pickle: &[u8]) -> Vec<u8> {
    let at = pickle.windows(2).position(|w| w == b"tQ").unwrap();
    [&pickle[..at], b"N", &pickle[at..]].concat()
}

fn right() -> Parts {
    Parts {
        magic: Pickle::new().op(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop(),
        protocol: Pickle::new().op(b"M\xe9\x03").stop(),
        system: system(1001, b"\x88"),
        object: legacy_object(&good_pickle()),
        keys: Pickle::new().op(b"]").text("0").op(b"a").stop(),
        storages: storage_with_header(6),
    }
}

fn with(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut p = right();
    change(&mut p);
    [p.magic, p.protocol, p.system, p.object, p.keys, p.storages].concat()
}

#[test]
fn a_right_file_is_accepted() {
    assert_eq!(contents(&read(with(|_| {})).unwrap()), [("w".to_owned(), "F32", vec![2, 3], elements())]);
}

#[test]
fn what_is_said_twice_is_compared() {
    let keys = |items: &[&str]| items.iter().fold(Pickle::new().op(b"]"), |p, key| p.text(key).op(b"a")).stop();
    let (wrong, cut, size) = (Code::PickleStructure, Code::PickleTruncated, Code::PickleStorage);
    check_codes(vec![
        ("a plain pickle", good_pickle(), wrong),
        (
            "a plain pickle of code",
            Pickle::new().global("os", "system").text("id").op(b"\x85R").stop(),
            Code::PickleGlobal,
        ),
        ("an id of an archive", with(|p| p.object = good_pickle()), wrong),
        (
            "a storage that is a view",
            with(|p| {
                let at = p.object.windows(3).position(|w| w == b"NtQ").unwrap();
                p.object[at] = b'}';
            }),
            wrong,
        ),
        ("another magic number", with(|p| p.magic[6] ^= 1), wrong),
        ("pickle protocol 0", with(|p| p.magic = b"L119547037146038801333356L\n.".to_vec()), Code::PickleUnsupported),
        ("file protocol 1000", with(|p| p.protocol = Pickle::new().op(b"M\xe8\x03").stop()), wrong),
        ("another protocol in the system", with(|p| p.system = system(1000, b"\x88")), wrong),
        // In an archive it is "unsupported"; here one changed bit says so, and nothing tells it from damage.
        ("big endian", with(|p| p.system = system(1001, b"\x89")), wrong),
        ("no byte order", with(|p| p.system = system(1001, b"N")), wrong),
        ("a system that is no dictionary", with(|p| p.system = Pickle::new().op(b"N").stop()), wrong),
        ("no keys", with(|p| p.keys = keys(&[])), size),
        ("a key too many", with(|p| p.keys = keys(&["0", "1"])), wrong),
        ("a key twice", with(|p| p.keys = keys(&["0", "0"])), wrong),
        ("another key", with(|p| p.keys = keys(&["1"])), wrong),
        ("keys that are numbers", with(|p| p.keys = Pickle::new().op(b"]K\0a").stop()), wrong),
        ("keys that are no list", with(|p| p.keys = Pickle::new().op(b"N").stop()), wrong),
        ("code among the keys", with(|p| p.keys = Pickle::new().global("os", "system").stop()), Code::PickleGlobal),
        ("five elements", with(|p| p.storages = storage_with_header(5)), size),
        ("-1 elements", with(|p| p.storages = storage_with_header(-1)), size),
        ("2^62 elements", with(|p| p.storages = storage_with_header(1 << 62)), size),
        ("a byte after the end", with(|p| p.storages.push(0)), size),
        ("a byte less", with(|p| p.storages.truncate(31)), cut),
        ("no storages", with(|p| p.storages.clear()), cut),
        ("half a header", with(|p| p.storages.truncate(4)), cut),
        (
            "2^62 elements, twice",
            with(|p| {
                p.object = legacy_object(&dict_of(|p| {
                    let p = p.global("torch._utils", "_rebuild_tensor_v2").op(b"((").text("storage");
                    let p = p.global("torch", "FloatStorage").text("0").text("cpu");
                    let p = p.op(b"\x8a\x08\0\0\0\0\0\0\0\x40tQ").int(0);
                    p.ints(&[6]).ints(&[1]).op(b"\x89").no_hooks().op(b"tR")
                }));
                p.storages = storage_with_header(1 << 62);
            }),
            cut,
        ),
    ]);
}
