//! The GGUF container.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::gguf::{self, Value};
use ptplus::format::limits;
use ptplus::tensor::{DType, shape};

use crate::case::{self, Case, accepted, refused};
use crate::gguf_file::{Raw, array, string};

pub fn read(file: Vec<u8>) -> Result<()> {
    consistent(&gguf::parse(Path::new("case.gguf"), &file.into())?);
    Ok(())
}

/// What every accepted file is: tensors in order, whole, aligned and inside; arrays as long as they say.
pub fn consistent(g: &gguf::Gguf) {
    let mut end = 0;
    for t in &g.tensors {
        assert_eq!(t.bytes.len(), shape::len_bytes(&t.shape, t.dtype).unwrap(), "{}", t.name);
        assert!(t.file_offset >= end && t.file_offset.is_multiple_of(g.alignment.into()), "{}", t.name);
        end = t.file_offset + t.bytes.len() as u64;
    }
    assert!(end <= g.len_bytes);
    for (key, v) in g.metadata.iter() {
        if let Value::Array(a) = v {
            assert_eq!(a.iter().count(), a.len(), "{key}");
        }
    }
}

pub fn cases() -> Vec<Case> {
    [start(), counts(), keys(), values(), alignments(), tensor_names(), dimensions(), types(), places()]
        .into_iter()
        .flatten()
        .collect()
}

fn start() -> Vec<Case> {
    use Code::*;
    let two = |start: &[u8]| Raw::two().start(start);
    vec![
        accepted("version 3", Raw::two()),
        accepted("version 2", two(b"GGUF\x02\0\0\0")),
        refused("no byte", b"", GgufMagic),
        refused("three bytes of the magic", b"GGU", GgufMagic),
        refused("the magic alone", b"GGUF", GgufTruncated),
        refused("magic and version alone", b"GGUF\x03\0\0\0", GgufTruncated),
        refused("other magic", two(b"GGML\x03\0\0\0"), GgufMagic),
        refused("lower-case magic", two(b"gguf\x03\0\0\0"), GgufMagic),
        refused("a byte before the magic", two(b"\0GGUF\x03\0\0"), GgufMagic),
        refused("magic reversed", two(b"FUGG\0\0\0\x03"), GgufByteOrder),
        refused("byte-swapped version 3", two(b"GGUF\0\0\0\x03"), GgufByteOrder),
        refused("byte-swapped version 2", two(b"GGUF\0\0\0\x02"), GgufByteOrder),
        refused("byte-swapped version 1", two(b"GGUF\0\0\0\x01"), GgufByteOrder),
        refused("version 0", two(b"GGUF\0\0\0\0"), GgufVersion),
        refused("version 1", two(b"GGUF\x01\0\0\0"), GgufVersion),
        refused("version 4", two(b"GGUF\x04\0\0\0"), GgufVersion),
        refused("version 2^32-1", two(b"GGUF\xff\xff\xff\xff"), GgufVersion),
    ]
}

fn counts() -> Vec<Case> {
    use Code::*;
    let counts = |n_tensors, n_keys| Raw { n_tensors, n_keys, ..Raw::new() };
    vec![
        accepted("nothing at all", Raw::empty()),
        accepted("no tensors", Raw::new()),
        accepted("no tensors, padded", {
            let mut file = Raw::new().build();
            file.resize(file.len().next_multiple_of(32), 0);
            file
        }),
        refused("too many tensors", counts(limits::TENSORS + 1, 1), GgufLimit),
        refused("more tensors than bytes", counts(limits::TENSORS, 1), GgufTruncated),
        refused("2^31 tensors", counts(1 << 31, 1), GgufLimit),
        refused("2^63 tensors", counts(1 << 63, 1), GgufLimit),
        refused("2^64-1 tensors", counts(u64::MAX, 1), GgufLimit),
        refused("too many keys", counts(0, limits::GGUF_KEYS + 1), GgufLimit),
        refused("more keys than bytes", counts(0, limits::GGUF_KEYS), GgufTruncated),
        refused("2^63 keys", counts(0, 1 << 63), GgufLimit),
        refused("2^64-1 keys", counts(0, u64::MAX), GgufLimit),
        refused("2^64-1 of both", counts(u64::MAX, u64::MAX), GgufLimit),
        refused("one key more", counts(0, 2), GgufTruncated),
        refused("one tensor more", Raw { n_tensors: 3, ..Raw::two() }, NameInvalid),
        refused("one key fewer", Raw { n_keys: 0, ..Raw::two() }, GgufDims),
        refused("one tensor fewer", Raw { n_tensors: 1, ..Raw::two() }, GgufTrailing),
        refused("tensors listed with count 0", Raw { n_tensors: 0, ..Raw::two() }, GgufTrailing),
    ]
}

fn keys() -> Vec<Case> {
    use Code::*;
    let key = |k: &[u8]| Raw::new().key(k, 0, &[0]);
    let cut = |len: u64| Raw { keys: [&len.to_le_bytes()[..], b"k", &[0; 13]].concat(), n_keys: 1, ..Raw::empty() };
    vec![
        accepted("unicode key", key("ключ.é.\u{1f600}".as_bytes())),
        accepted("key with blanks and dots", key(b" a . b..c ")),
        accepted("key of 255 bytes", key(&[b'k'; 255])),
        accepted(
            "unknown keys of other tools",
            Raw::new().str("x.y.z", "é\n\t\u{1b}").key(b"quantize.imatrix", 12, &[0; 8]),
        ),
        refused("key of 256 bytes", key(&[b'k'; 256]), GgufLimit),
        refused("key of 65,535 bytes", key(&[b'k'; 65_535]), GgufLimit),
        refused("empty key", key(b""), NameInvalid),
        refused("key with NUL", key(b"a\0b"), GgufString),
        refused("key that is not UTF-8", key(b"a\xff"), GgufString),
        refused("key with an overlong UTF-8 form", key(b"a\xc0\xaf"), GgufString),
        refused("key with half a surrogate", key(b"a\xed\xa0\x80"), GgufString),
        refused("key with a line break", key(b"a\nb"), NameInvalid),
        refused("key with a terminal escape", key(b"\x1b[31mred"), NameInvalid),
        refused("key with DEL", key(b"a\x7f"), NameInvalid),
        refused("key with a C1 control", key("a\u{9b}31m".as_bytes()), NameInvalid),
        refused("key that is a traversal", key(b"../../etc/passwd"), NameInvalid),
        refused("key that is absolute", key(b"/etc/passwd"), NameInvalid),
        refused("key twice", Raw::new().key(b"k", 4, &[0; 4]), NameDuplicate),
        refused("key twice, types apart", Raw::new().key(b"k", 7, &[0]), NameDuplicate),
        refused("key longer than the file", cut(1000), GgufTruncated),
        refused("key of 2^63 bytes", cut(1 << 63), GgufTruncated),
        refused("key of 2^64-1 bytes", cut(u64::MAX), GgufTruncated),
        refused("key of 2^64-8 bytes", cut(u64::MAX - 7), GgufTruncated),
    ]
}

fn values() -> Vec<Case> {
    use Code::*;
    let value = |t: u32, v: &[u8]| Raw::new().key(b"v", t, v);
    let max = u64::MAX;
    let mut cases = vec![
        accepted("every type of number", {
            let sizes = [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (10, 8), (11, 8), (12, 8)];
            sizes.iter().fold(Raw::new(), |raw, &(t, size)| raw.key(format!("n{t}").as_bytes(), t, &vec![255; size]))
        }),
        accepted("bool 0 and 1", Raw::new().key(b"f", 7, &[0]).key(b"t", 7, &[1]).key(b"a", 9, &array(7, 2, &[0, 1]))),
        accepted("empty string", value(8, &string(b""))),
        accepted("string of a megabyte", value(8, &string(&vec![b'x'; 1 << 20]))),
        accepted("string with control characters", value(8, &string(b"\x1b[31m\r\n\x07"))),
        accepted("empty arrays", Raw::new().key(b"s", 9, &array(8, 0, &[])).key(b"u", 9, &array(4, 0, &[]))),
        accepted("array of empty strings", value(9, &array(8, 3, &[0; 24]))),
        accepted("array of 100,000 u32", value(9, &array(4, 100_000, &vec![1; 400_000]))),
        accepted("NaN and infinity as metadata", Raw::new().f32("nan", f32::NAN).f32("inf", f32::INFINITY)),
        refused("string that is not UTF-8", value(8, &string(b"\xc3")), GgufString),
        refused("string with NUL", value(8, &string(b"a\0b")), GgufString),
        refused("string that ends in NUL", value(8, &string(b"a\0")), GgufString),
        refused("string longer than the file", value(8, &999u64.to_le_bytes()), GgufTruncated),
        refused("string of 2^63 bytes", value(8, &(1u64 << 63).to_le_bytes()), GgufTruncated),
        refused("string of 2^64-1 bytes", value(8, &max.to_le_bytes()), GgufTruncated),
        refused("array of arrays", value(9, &array(9, 1, &array(0, 1, &[0]))), GgufValueType),
        refused(
            "arrays nested 10,000 deep",
            value(9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(10_000)),
            GgufValueType,
        ),
        refused("empty array of arrays", value(9, &array(9, 0, &[])), GgufValueType),
        refused("array of type 13", value(9, &array(13, 1, &[0; 8])), GgufValueType),
        refused("array of type 2^32-1", value(9, &array(u32::MAX, 1, &[0; 8])), GgufValueType),
        refused("array one longer than the file", value(9, &array(4, 3, &[0; 8])), GgufTruncated),
        refused("array of 2^61 u64, 2^64 bytes", value(9, &array(10, 1 << 61, &[0; 8])), GgufTruncated),
        refused("array of 2^62 u32", value(9, &array(4, 1 << 62, &[0; 8])), GgufTruncated),
        refused("array of 2^63 u16", value(9, &array(2, 1 << 63, &[0; 8])), GgufTruncated),
        refused("array of 2^64-1 u8", value(9, &array(0, max, &[0; 8])), GgufTruncated),
        refused("array of 2^64-1 strings", value(9, &array(8, max, &[0; 8])), GgufTruncated),
        refused("array of 2^61 strings", value(9, &array(8, 1 << 61, &[0; 8])), GgufTruncated),
        refused("strings longer than the file", value(9, &array(8, 2, &string(b"a"))), GgufTruncated),
        refused("string of 2^64-1 bytes in an array", value(9, &array(8, 1, &max.to_le_bytes())), GgufTruncated),
        refused("string in an array that is not UTF-8", value(9, &array(8, 1, &string(b"\xff"))), GgufString),
        refused("string in an array with NUL", value(9, &array(8, 1, &string(b"a\0"))), GgufString),
        refused("a value that is cut off", value(10, &[0; 7]), GgufTruncated),
        refused(
            "a type that is cut off",
            Raw { keys: string(b"0123456789"), n_keys: 1, ..Raw::empty() },
            GgufTruncated,
        ),
    ];
    for t in [13, 14, 100, 1 << 31, u32::MAX] {
        cases.push(refused(format!("value type {t}"), value(t, &[0; 8]), GgufValueType));
    }
    for b in [2, 127, 128, 255] {
        cases.push(refused(format!("bool {b}"), value(7, &[b]), GgufBool));
        cases.push(refused(format!("bool {b} in an array"), value(9, &array(7, 3, &[0, 1, b])), GgufBool));
    }
    cases
}

/// With `general.alignment`, one tensor of a byte.
fn aligned(value_type: u32, value: &[u8], alignment: usize) -> Raw {
    let raw = Raw::new().key(b"general.alignment", value_type, value).info(b"a", &[1], 24, 0);
    Raw { alignment, ..raw }.data(1)
}

fn alignments() -> Vec<Case> {
    use Code::*;
    let u32 = |a: u32| aligned(4, &a.to_le_bytes(), 32);
    let mut cases = Vec::new();
    for a in [1u32, 2, 8, 16, 32, 64, 128, 4096, limits::GGUF_ALIGNMENT] {
        cases.push(accepted(format!("alignment {a}"), aligned(4, &a.to_le_bytes(), a as usize)));
    }
    for a in
        [0, 3, 24, 31, 33, 48, 1000, limits::GGUF_ALIGNMENT + 1, limits::GGUF_ALIGNMENT * 2, 1 << 30, 1 << 31, u32::MAX]
    {
        cases.push(refused(format!("alignment {a}"), u32(a), GgufAlignment));
    }
    cases.extend([
        refused("alignment 0 without tensors", Raw::new().u32("general.alignment", 0), GgufAlignment),
        refused("alignment as i32", aligned(5, &[32, 0, 0, 0], 32), GgufAlignment),
        refused("alignment as u64", aligned(10, &[32, 0, 0, 0, 0, 0, 0, 0], 32), GgufAlignment),
        refused("alignment as u8", aligned(0, &[32], 32), GgufAlignment),
        refused("alignment as f32", aligned(6, &32f32.to_le_bytes(), 32), GgufAlignment),
        refused("alignment as string", aligned(8, &string(b"32"), 32), GgufAlignment),
        refused("alignment as array", aligned(9, &array(4, 1, &[32, 0, 0, 0]), 32), GgufAlignment),
        refused("alignment twice", Raw::new().u32("general.alignment", 32).u32("general.alignment", 32), NameDuplicate),
        refused(
            "padded to 32 where 64 is stated",
            Raw::new().u32("general.alignment", 64).f32s("a", &[1], &[0.0]).f32s("b", &[1], &[0.0]),
            GgufOffset,
        ),
        refused(
            "no padding before the data",
            {
                let raw = Raw::new().info(b"a", &[1], 24, 0).data(1);
                Raw { alignment: 1, ..raw }
            },
            GgufTruncated,
        ),
    ]);
    cases
}

fn tensor_names() -> Vec<Case> {
    use Code::*;
    let named = |n: &[u8]| Raw::new().info(n, &[1], 24, 0).data(1);
    vec![
        accepted("unicode tensor name", named("тензор".as_bytes())),
        accepted("tensor name of 63 bytes", named(&[b'n'; 63])),
        accepted("tensor name with a slash", named(b"a/b.weight")),
        refused("tensor name of 64 bytes", named(&[b'n'; 64]), GgufLimit),
        refused("tensor name of 256 bytes", named(&[b'n'; 256]), GgufLimit),
        refused("empty tensor name", named(b""), NameInvalid),
        refused("tensor name with NUL", named(b"a\0"), GgufString),
        refused("tensor name that is not UTF-8", named(b"\x80"), GgufString),
        refused("tensor name with ..", named(b"a/../b"), NameInvalid),
        refused("tensor name with .. and backslashes", named(b"a\\..\\b"), NameInvalid),
        refused("absolute tensor name", named(b"/etc/passwd"), NameInvalid),
        refused("tensor name with a drive", named(b"C:\\a"), NameInvalid),
        refused("tensor name with a tab", named(b"a\tb"), NameInvalid),
        refused("tensor twice", Raw::new().info(b"a", &[1], 0, 0).info(b"a", &[1], 0, 32).data(64), NameDuplicate),
        refused(
            "tensor twice at one place",
            Raw::new().info(b"a", &[1], 0, 0).info(b"a", &[1], 0, 0).data(32),
            NameDuplicate,
        ),
        refused(
            "tensor name of 2^64-1 bytes",
            Raw { infos: [&[255; 8][..], &[0; 24]].concat(), n_tensors: 1, ..Raw::new() },
            GgufTruncated,
        ),
    ]
}

fn dimensions() -> Vec<Case> {
    use Code::*;
    let info = |ne: &[u64], t: u32| Raw::new().info(b"a", ne, t, 0).data(64);
    let n_dims =
        |n: u32| Raw { infos: [&string(b"a")[..], &n.to_le_bytes(), &[0; 64]].concat(), n_tensors: 1, ..Raw::new() };
    let (max, i64_max) = (u64::MAX, i64::MAX as u64);
    let mut cases = vec![
        accepted("scalar", Raw::new().info(b"s", &[], 0, 0).data(32)),
        accepted("four dimensions", Raw::new().info(b"a", &[1, 2, 1, 2], 0, 0).data(32)),
        accepted("zero dimension", Raw::new().info(b"z", &[4, 0], 0, 0).info(b"a", &[1], 0, 0).data(32)),
        accepted("nothing but a zero-size tensor", Raw::new().info(b"z", &[0], 0, 0)),
        accepted(
            "zero of a huge dimension",
            Raw::new().info(b"z", &[0, 1 << 40], 0, 0).info(b"a", &[1], 0, 0).data(32),
        ),
        refused("negative dimension", info(&[max], 0), GgufDims),
        refused("dimension -2^63", info(&[1 << 63, 0], 0), GgufDims),
        refused("2^32 squared", info(&[1 << 32, 1 << 32], 0), GgufDims),
        refused("product wraps to little", info(&[1 << 33, 1 << 33, 1 << 33], 0), GgufDims),
        refused("product wraps to 0", info(&[1 << 16, 1 << 16, 1 << 16, 1 << 16], 0), GgufDims),
        refused("bytes overflow i64", info(&[i64_max / 2], 0), GgufDims),
        refused("elements fit, bytes do not", info(&[1 << 61], 0), GgufDims),
        refused("product overflows before a 0", info(&[i64_max, i64_max, 0], 0), GgufDims),
        refused("product overflows after a 0", info(&[0, i64_max, i64_max], 0), GgufDims),
        refused("product overflows in blocks", info(&[1 << 32, 1 << 31], 8), GgufDims),
        refused("blocks of 0 rows that overflow", info(&[256, 1 << 62, 0], 14), GgufDims),
        refused("row of 33 in blocks of 32", info(&[33], 8), ShapeBlock),
        refused("row of 31 in blocks of 32", info(&[31], 8), ShapeBlock),
        refused("row of 16, 2 rows, in blocks of 32", info(&[16, 2], 8), ShapeBlock),
        refused("row of 32 in blocks of 256", info(&[32], 12), ShapeBlock),
        refused("scalar in blocks", info(&[], 8), ShapeBlock),
    ];
    for n in [5, 8, 64, 1 << 31, u32::MAX] {
        cases.push(refused(format!("{n} dimensions"), n_dims(n), GgufDims));
    }
    cases
}

fn types() -> Vec<Case> {
    let mut cases = Vec::new();
    for t in DType::ALL.iter().filter(|t| t.ggml_id().is_some()) {
        let one = Raw::new().info(b"a", &[t.block_len() as u64], t.ggml_id().unwrap(), 0);
        cases.push(accepted(format!("a block of {t}"), one.clone().data(t.block_bytes())));
        cases.push(refused(format!("a block of {t} less a byte"), one.data(t.block_bytes() - 1), Code::GgufTruncated));
    }
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 44, 100, 1000, 1 << 31, u32::MAX] {
        let file = Raw::new().info(b"a", &[256], id, 0).data(512);
        cases.push(refused(format!("type {id}"), file, Code::GgufTensorType));
    }
    cases
}

fn places() -> Vec<Case> {
    use Code::*;
    let at = |offset: u64| Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, offset).data(64);
    let one = |ne: u64| Raw::new().info(b"a", &[ne], 0, 0).data(64);
    vec![
        accepted("unpadded last tensor", Raw::two().data(32 + 8)),
        accepted("partly padded last tensor", Raw::two().data(32 + 9)),
        accepted("padded last tensor", Raw::two().data(64)),
        accepted("bytes other than 0 as padding", Raw::two().data(64)),
        refused("first offset not 0", Raw::new().info(b"a", &[1], 0, 32).data(64), GgufOffset),
        refused("overlap of all", at(0), GgufOffset),
        refused("overlap of one byte", Raw::new().info(b"a", &[9], 0, 0).info(b"b", &[2], 0, 32).data(96), GgufOffset),
        refused("hole of a block", at(64), GgufOffset),
        refused("misorder", Raw::new().info(b"a", &[1], 0, 32).info(b"b", &[2], 0, 0).data(64), GgufOffset),
        refused("unaligned offset", at(4), GgufOffset),
        refused("offset 31", at(31), GgufOffset),
        refused("offset 33", at(33), GgufOffset),
        refused("offset 2^63", at(1 << 63), GgufOffset),
        refused("offset 2^64-32", at(u64::MAX - 31), GgufOffset),
        refused("offset 2^64-1", at(u64::MAX), GgufOffset),
        refused("data one byte short", Raw::two().data(32 + 7), GgufTruncated),
        refused("data absent", Raw::two().data(0), GgufTruncated),
        refused("tensor of 2^40 elements", one(1 << 40), GgufTruncated),
        refused("tensor of 2^60 elements", one(1 << 60), GgufTruncated),
        refused(
            "sizes that sum past 2^64",
            Raw::new().info(b"a", &[1 << 60], 0, 0).info(b"b", &[1 << 60], 0, 1 << 62).data(64),
            GgufTruncated,
        ),
        refused("one byte after the padded end", Raw::two().data(65), GgufTrailing),
        refused("another block after the end", Raw::two().data(96), GgufTrailing),
        refused("another file after the end", [Raw::two().build(), Raw::two().build()].concat(), GgufTrailing),
        refused("bytes after no tensors", Raw::new().data(64), GgufTrailing),
    ]
}

/// Files whose size is the attack.
pub fn large() -> Vec<Case> {
    fn strings(n: usize, text: &[u8]) -> Vec<u8> {
        array(8, n as u64, &string(text).repeat(n))
    }
    let all_limits: Vec<Case> = vec![
        case::large(
            "most keys",
            || (0..limits::GGUF_KEYS - 1).fold(Raw::new(), |raw, i| raw.u32(&i.to_string(), 1)).build(),
            None,
        ),
        case::large(
            "one key too many",
            || (0..limits::GGUF_KEYS).fold(Raw::new(), |raw, i| raw.u32(&i.to_string(), 1)).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "most tensors",
            || (0..limits::TENSORS).fold(Raw::new(), |raw, i| raw.info(i.to_string().as_bytes(), &[0], 0, 0)).build(),
            None,
        ),
        case::large(
            "one tensor too many",
            || (0..=limits::TENSORS).fold(Raw::new(), |raw, i| raw.info(i.to_string().as_bytes(), &[0], 0, 0)).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "a vocabulary of 300,000",
            || Raw::new().key(b"t", 9, &strings(300_000, "▁token".as_bytes())).build(),
            None,
        ),
        case::large(
            "strings of 95 MB in an array",
            || Raw::new().key(b"t", 9, &strings(95, &vec![b'x'; 1_000_000])).build(),
            None,
        ),
        case::large("11 million empty strings", || Raw::new().key(b"t", 9, &strings(11_000_000, b"")).build(), None),
        case::large(
            "an array beyond the header's limit",
            || Raw::new().key(b"t", 9, &array(0, 100_000_000, &vec![0; 100_000_000])).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "the longest string",
            || Raw::new().key(b"s", 8, &string(&vec![b'x'; limits::GGUF_STRING_BYTES as usize])).build(),
            None,
        ),
        case::large(
            "a string too long",
            || Raw::new().key(b"s", 8, &string(&vec![b'x'; limits::GGUF_STRING_BYTES as usize + 1])).build(),
            Some(Code::GgufLimit),
        ),
        case::large(
            "the longest string, not UTF-8",
            || Raw::new().key(b"s", 8, &string(&vec![0xff; limits::GGUF_STRING_BYTES as usize])).build(),
            Some(Code::GgufString),
        ),
    ];
    all_limits
}
