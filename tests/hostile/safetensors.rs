//! The safetensors container.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::{limits, safetensors};
use ptplus::tensor::{DType, shape};

use crate::case::{self, Case, accepted, refused};

pub fn read(file: Vec<u8>) -> Result<()> {
    let s = safetensors::parse(Path::new("case.safetensors"), &file.clone().into())?;
    consistent(&s, &file);
    Ok(())
}

/// What every accepted file is: a partition of the data, and the same to the safetensors crate.
pub fn consistent(s: &safetensors::Safetensors, file: &[u8]) {
    let theirs = ::safetensors::SafeTensors::deserialize(file).unwrap();
    assert_eq!(theirs.len(), s.tensors.len());
    let mut end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap());
    for t in &s.tensors {
        assert_eq!(t.file_offset, end, "{}", t.name);
        end += t.bytes.len() as u64;
        let view = theirs.tensor(&t.name).unwrap();
        assert_eq!((view.shape(), view.data()), (&*t.shape, &*t.bytes), "{}", t.name);
        assert_eq!(t.bytes.len(), shape::len_bytes(&t.shape, t.dtype).unwrap(), "{}", t.name);
    }
    assert_eq!(end, file.len() as u64);
}

/// Header and data as given, the length in front.
pub fn file(header: &str, data_len: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data_len]].concat()
}

/// One tensor "a" with these fields.
fn tensor(fields: &str) -> String {
    format!("{{\"a\":{{{fields}}}}}")
}

fn named(name: &str) -> String {
    format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#)
}

/// Two tensors of two bytes at these offsets.
fn two(a: &str, b: &str) -> String {
    format!(
        r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{b}}}}}"#
    )
}

fn with_metadata(metadata: &str) -> String {
    format!(r#"{{"__metadata__":{metadata},"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#)
}

pub fn cases() -> Vec<Case> {
    [headers(), fields(), types(), shapes(), offsets(), metadata(), names()].into_iter().flatten().collect()
}

fn headers() -> Vec<Case> {
    use Code::*;
    let good = named("a");
    let length = |n: u64| [&n.to_le_bytes()[..], good.as_bytes(), &[7; 4]].concat();
    vec![
        accepted("a tensor", file(&good, 4)),
        accepted("no tensor", file("{}", 0)),
        accepted("spaces after the header", file(&format!("{good}     "), 4)),
        accepted(
            "blanks inside the header",
            file("{ \"a\" : {\n\"data_offsets\":[0, 4],\t\"shape\":[],\r\"dtype\":\"F32\" } }", 4),
        ),
        refused("empty file", b"", SafetensorsHeader),
        refused("seven bytes", [0; 7], SafetensorsHeader),
        refused("header length 0", [0; 8], SafetensorsHeader),
        refused("header length 1", file("{", 0), SafetensorsHeader),
        refused("header longer than the file", &file(&good, 4)[..30], SafetensorsHeader),
        refused("header length one too large", length(good.len() as u64 + 1), SafetensorsHeader),
        refused("header length one too small", length(good.len() as u64 - 1), SafetensorsHeader),
        refused("header length 2^63", length(1 << 63), SafetensorsHeader),
        refused("header length 2^64-8", length(u64::MAX - 7), SafetensorsHeader),
        refused("header length 2^64-1", length(u64::MAX), SafetensorsHeader),
        refused("header length one above the limit", length(limits::HEADER_BYTES as u64 + 1), SafetensorsHeader),
        refused("header length at the limit, file shorter", length(limits::HEADER_BYTES as u64), SafetensorsHeader),
        refused(
            "header length in big endian",
            [&(good.len() as u64).to_be_bytes()[..], good.as_bytes(), &[7; 4]].concat(),
            SafetensorsHeader,
        ),
        refused("blank before the header", file(&format!(" {good}"), 4), SafetensorsHeader),
        refused("byte order mark before the header", file(&format!("\u{feff}{good}"), 4), SafetensorsHeader),
        refused("a list as header", file("[]", 0), SafetensorsHeader),
        refused("null as header", file("null", 0), SafetensorsHeader),
        refused("line break after the header", file(&format!("{good}\n"), 4), SafetensorsHeader),
        refused("NUL after the header", file(&format!("{good}\0"), 4), SafetensorsHeader),
        refused("two documents", file(&format!("{good}{{}}"), 4), SafetensorsHeader),
        refused("cut short", file(&good[..good.len() - 1], 4), SafetensorsHeader),
        refused("a comma at the end", file(&format!("{},}}", &good[..good.len() - 1]), 4), SafetensorsHeader),
        refused("a comment", file(&format!("{{/**/{}", &good[1..]), 4), SafetensorsHeader),
        refused("not UTF-8", [&9u64.to_le_bytes()[..], b"{\"a\xff\":{}}"].concat(), SafetensorsHeader),
        refused("nested 200 deep", file(&format!("{{\"a\":{}", "[".repeat(200)), 0), SafetensorsHeader),
        refused("nested 100,000 deep", file(&format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), 0), SafetensorsHeader),
        refused("trailing byte", file(&good, 5), SafetensorsHeader),
        refused("data without tensors", file("{}", 1), SafetensorsHeader),
        refused("another file after the end", [file(&good, 4), file(&good, 4)].concat(), SafetensorsHeader),
    ]
}

fn fields() -> Vec<Case> {
    use Code::SafetensorsHeader as H;
    let of = |fields: &str| file(&tensor(fields), 4);
    vec![
        accepted("fields in another order", of(r#""data_offsets":[0,4],"dtype":"U8","shape":[4]"#)),
        refused("tensor as list", file(r#"{"a":["U8",[4],[0,4]]}"#, 4), H),
        refused("tensor as number", file(r#"{"a":1}"#, 4), H),
        refused("tensor as string", file(r#"{"a":"U8"}"#, 4), H),
        refused("tensor null", file(r#"{"a":null}"#, 4), H),
        refused("tensor without fields", of(""), H),
        refused("unknown field", of(r#""dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1"#), H),
        refused("unknown field first", of(r#""x":{},"dtype":"U8","shape":[4],"data_offsets":[0,4]"#), H),
        refused("field twice", of(r#""dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]"#), H),
        refused("offsets twice", of(r#""dtype":"U8","shape":[4],"data_offsets":[0,4],"data_offsets":[0,4]"#), H),
        refused("field twice, escaped", of(r#""dtype":"U8","\u0064type":"U8","shape":[4],"data_offsets":[0,4]"#), H),
        refused("no dtype", of(r#""shape":[4],"data_offsets":[0,4]"#), H),
        refused("no shape", of(r#""dtype":"U8","data_offsets":[0,4]"#), H),
        refused("no offsets", of(r#""dtype":"U8","shape":[4]"#), H),
    ]
}

fn types() -> Vec<Case> {
    use Code::*;
    let dtype = |d: &str| file(&tensor(&format!(r#""dtype":{d},"shape":[4],"data_offsets":[0,4]"#)), 4);
    let mut cases = vec![
        refused("unknown dtype", dtype(r#""F31""#), SafetensorsHeader),
        refused("lower-case dtype", dtype(r#""u8""#), SafetensorsHeader),
        refused("dtype with a blank", dtype(r#""U8 ""#), SafetensorsHeader),
        refused("empty dtype", dtype(r#""""#), SafetensorsHeader),
        refused("dtype as number", dtype("8"), SafetensorsHeader),
        refused("dtype as object", dtype(r#"{"U8":null}"#), SafetensorsHeader),
        refused("dtype null", dtype("null"), SafetensorsHeader),
        refused("dtype of GGUF", dtype(r#""Q8_0""#), SafetensorsHeader),
        refused(
            "a dtype of the format that is not read",
            file(&tensor(r#""dtype":"F4","shape":[2],"data_offsets":[0,1]"#), 1),
            SafetensorsDtype,
        ),
    ];
    for t in DType::ALL.iter().filter_map(|t| Some((t.safetensors_name()?, t.block_bytes()))) {
        let of = |n: usize| tensor(&format!(r#""dtype":"{}","shape":[2],"data_offsets":[0,{n}]"#, t.0));
        cases.push(accepted(format!("two elements of {}", t.0), file(&of(2 * t.1), 2 * t.1)));
        cases.push(refused(
            format!("two elements of {} less a byte", t.0),
            file(&of(2 * t.1 - 1), 2 * t.1 - 1),
            SafetensorsHeader,
        ));
    }
    cases
}

fn shapes() -> Vec<Case> {
    use Code::SafetensorsHeader as H;
    let shape = |s: &str| file(&tensor(&format!(r#""dtype":"U8","shape":{s},"data_offsets":[0,4]"#)), 4);
    let empty = |s: &str| file(&tensor(&format!(r#""dtype":"F32","shape":{s},"data_offsets":[0,0]"#)), 0);
    let ones = |n: usize| format!("[4{}]", ",1".repeat(n - 1));
    vec![
        accepted("scalar", file(&tensor(r#""dtype":"F32","shape":[],"data_offsets":[0,4]"#), 4)),
        accepted("zero dimension", empty("[0,9]")),
        accepted("zero of a huge dimension", empty("[0,1099511627776]")),
        accepted("most dimensions", shape(&ones(limits::SAFETENSORS_DIMS))),
        refused("a dimension too many", shape(&ones(limits::SAFETENSORS_DIMS + 1)), H),
        refused("100,000 dimensions", shape(&ones(100_000)), H),
        refused("negative dimension", shape("[-4]"), H),
        refused("negative zero", shape("[-0]"), H),
        refused("fractional dimension", shape("[4.0]"), H),
        refused("dimension in exponent form", shape("[4e0]"), H),
        refused("dimension with a leading zero", shape("[04]"), H),
        refused("dimension as string", shape(r#"["4"]"#), H),
        refused("dimension true", shape("[true,4]"), H),
        refused("dimension null", shape("[4,null]"), H),
        refused("dimension as list", shape("[[4]]"), H),
        refused("dimension 1e400", shape("[1e400]"), H),
        refused("dimension NaN", shape("[NaN]"), H),
        refused("dimension 2^63", shape("[9223372036854775808]"), H),
        refused("dimension 2^64", shape("[18446744073709551616]"), H),
        refused("dimension of 400 digits", shape(&format!("[{}]", "9".repeat(400))), H),
        refused("shape as number", shape("4"), H),
        refused("shape as object", shape("{}"), H),
        refused("shape null", shape("null"), H),
        refused("product overflows", shape("[4294967296,4294967296,4]"), H),
        refused("product wraps to 4", shape("[4611686018427387905,4]"), H),
        refused("product wraps to 0", empty("[9223372036854775808,2]"), H),
        refused("bytes wrap to 0", empty("[4611686018427387904]"), H),
        refused("shape longer than the data", shape("[5]"), H),
        refused("shape shorter than the data", shape("[3]"), H),
    ]
}

fn offsets() -> Vec<Case> {
    use Code::SafetensorsHeader as H;
    let offsets = |o: &str| file(&tensor(&format!(r#""dtype":"U8","shape":[4],"data_offsets":{o}"#)), 4);
    vec![
        accepted("two tensors", file(&two("[0,2]", "[2,4]"), 4)),
        accepted("listed out of order", file(&two("[2,4]", "[0,2]"), 4)),
        accepted(
            "a zero-size tensor between two",
            file(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"z":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
                4,
            ),
        ),
        refused(
            "a zero-size tensor inside another",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"z":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}"#,
                4,
            ),
            H,
        ),
        refused(
            "a zero-size tensor after the end",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"z":{"dtype":"F32","shape":[0],"data_offsets":[9,9]}}"#,
                4,
            ),
            H,
        ),
        refused("one offset", offsets("[0]"), H),
        refused("three offsets", offsets("[0,4,4]"), H),
        refused("no offset", offsets("[]"), H),
        refused("offsets as object", offsets(r#"{"0":0,"1":4}"#), H),
        refused("offsets reversed", offsets("[4,0]"), H),
        refused("negative offset", offsets("[-1,3]"), H),
        refused("offsets as strings", offsets(r#"["0","4"]"#), H),
        refused("fractional offsets", offsets("[0.0,4.0]"), H),
        refused("offset 1e400", offsets("[0,1e400]"), H),
        refused("offset 2^64", offsets("[0,18446744073709551616]"), H),
        refused("offsets that wrap", offsets("[18446744073709551614,2]"), H),
        refused("offsets at 2^64-1", offsets("[18446744073709551611,18446744073709551615]"), H),
        refused("offsets beyond the file", file(&named("a"), 3), H),
        refused("no data", file(&named("a"), 0), H),
        refused("first offset not 0", file(&tensor(r#""dtype":"U8","shape":[4],"data_offsets":[1,5]"#), 5), H),
        refused("hole", file(&two("[0,2]", "[3,5]"), 5), H),
        refused("overlap of a byte", file(&two("[0,2]", "[1,3]"), 3), H),
        refused("same bytes twice", file(&two("[0,2]", "[0,2]"), 2), H),
        refused(
            "one inside another",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                4,
            ),
            H,
        ),
    ]
}

fn metadata() -> Vec<Case> {
    use Code::*;
    let of = |m: &str| file(&with_metadata(m), 4);
    let pairs = |n: usize| format!("{{{}}}", (0..n).map(|i| format!("\"{i}\":\"\"")).collect::<Vec<_>>().join(","));
    let long = |n: usize| format!("{{\"k\":\"{}\"}}", "v".repeat(n));
    vec![
        accepted("metadata", of(r#"{"format":"pt"}"#)),
        accepted("metadata alone", file(r#"{"__metadata__":{"a":""}}"#, 0)),
        accepted(
            "metadata last",
            file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{}}"#, 1),
        ),
        accepted("unicode metadata", of(r#"{"имя":"значение \ud83d\ude00 \u001b[31m\n"}"#)),
        accepted("a megabyte of metadata", of(&long(1 << 20))),
        accepted("most metadata", of(&long(limits::SAFETENSORS_METADATA_BYTES - 2))),
        accepted("most keys of metadata", of(&pairs(limits::SAFETENSORS_METADATA_KEYS))),
        refused("metadata a byte too long", of(&long(limits::SAFETENSORS_METADATA_BYTES)), SafetensorsHeader),
        refused("metadata of a key too many", of(&pairs(limits::SAFETENSORS_METADATA_KEYS + 1)), SafetensorsHeader),
        refused("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), NameDuplicate),
        refused("metadata key twice", of(r#"{"k":"1","k":"2"}"#), JsonDuplicateKey),
        refused("metadata key twice, escaped", of(r#"{"k":"1","\u006b":"1"}"#), JsonDuplicateKey),
        refused("metadata null", of("null"), SafetensorsHeader),
        refused("metadata a list", of("[]"), SafetensorsHeader),
        refused("metadata a string", of(r#""x""#), SafetensorsHeader),
        refused("metadata a tensor", of(r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#), SafetensorsHeader),
        refused("metadata value a number", of(r#"{"k":1}"#), SafetensorsHeader),
        refused("metadata value true", of(r#"{"k":true}"#), SafetensorsHeader),
        refused("metadata value null", of(r#"{"k":null}"#), SafetensorsHeader),
        refused("metadata value a list", of(r#"{"k":["v"]}"#), SafetensorsHeader),
        refused("metadata value an object", of(r#"{"k":{}}"#), SafetensorsHeader),
        refused("metadata value half a surrogate", of(r#"{"k":"\ud800"}"#), SafetensorsHeader),
        refused("metadata key with a line break", of(r#"{"k\n":""}"#), NameInvalid),
        refused("empty metadata key", of(r#"{"":""}"#), NameInvalid),
    ]
}

fn names() -> Vec<Case> {
    use Code::*;
    let of = |n: &str| file(&named(n), 4);
    vec![
        accepted("unicode name", of("тензор")),
        accepted("name with quotes", of(r#"a \"b\""#)),
        accepted("longest name", of(&"n".repeat(limits::NAME_BYTES))),
        refused("name a byte too long", of(&"n".repeat(limits::NAME_BYTES + 1)), NameInvalid),
        refused("name of a megabyte", of(&"n".repeat(1 << 20)), NameInvalid),
        refused("empty name", of(""), NameInvalid),
        refused("name with NUL", of("a\\u0000"), NameInvalid),
        refused("name with a raw line break", of("a\nb"), SafetensorsHeader),
        refused("name with an escaped line break", of("a\\nb"), NameInvalid),
        refused("name with a terminal escape", of("\\u001b[2Ja"), NameInvalid),
        refused("name with ..", of("../a"), NameInvalid),
        refused("name with .. inside", of("a/../b"), NameInvalid),
        refused("absolute name", of("/a"), NameInvalid),
        refused("name with a drive", of("C:\\\\a"), NameInvalid),
        refused("name that is half a surrogate", of("\\ud800"), SafetensorsHeader),
        refused(
            "tensor twice",
            file(&format!("{},{}", &named("a")[..named("a").len() - 1], &named("a")[1..]), 4),
            NameDuplicate,
        ),
        refused(
            "tensor twice, escaped",
            file(&format!("{},{}", &named("a")[..named("a").len() - 1], &named("\\u0061")[1..]), 4),
            NameDuplicate,
        ),
    ]
}

/// Files whose size is the attack.
pub fn large() -> Vec<Case> {
    fn many(n: usize, dims: usize) -> Vec<u8> {
        let shape = vec!["0"; dims].join(",");
        let tensor = |i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[0,0]}}");
        file(&format!("{{{}}}", (0..n).map(tensor).collect::<Vec<_>>().join(",")), 0)
    }
    const TENSORS: usize = limits::SAFETENSORS_TENSORS;
    const DIMS: usize = limits::SAFETENSORS_DIMS;
    const WIDE: usize = limits::SAFETENSORS_ALL_DIMS / DIMS;
    let header = Some(Code::SafetensorsHeader);
    vec![
        case::large("most tensors", || many(TENSORS, 1), None),
        case::large("one tensor too many", || many(TENSORS + 1, 1), header),
        case::large("most dimensions of all tensors", || many(WIDE, DIMS), None),
        case::large("one wide tensor too many", || many(WIDE + 1, DIMS), header),
        case::large(
            "a string too long",
            || file(&named(&"n".repeat(limits::JSON_STRING_BYTES + 1)), 4),
            Some(Code::JsonTooLarge),
        ),
        case::large("50 MB of spaces", || file(&format!("{}{}", named("a"), " ".repeat(50_000_000)), 4), None),
        case::large(
            "a header of 50 MB of brackets",
            || file(&format!("{{\"a\":{}", "[".repeat(50_000_000)), 0),
            header,
        ),
        case::large(
            "a header of 50 MB of escapes",
            || file(&format!("{{{}", "\"\\u0000\":".repeat(5_000_000)), 0),
            Some(Code::NameInvalid),
        ),
        case::large(
            "long names and no more",
            || {
                let one = |i: usize| format!("\"{i:0>255}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
                file(&format!("{{{}}}", (0..TENSORS).map(one).collect::<Vec<_>>().join(",")), 0)
            },
            None,
        ),
    ]
}
