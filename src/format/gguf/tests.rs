//! Reader and writer against each other, against crafted files, and against every small damage.

use proptest::prelude::*;

use super::*;
use crate::error::Code;
use crate::format::{TensorSpec, limits};
use crate::tensor::DType;

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

/// One value of every type, three tensors of which two end unaligned.
fn sample() -> (Metadata, Vec<TensorSpec>) {
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("u8", Value::U8(200));
    m.insert("i8", Value::I8(-100));
    m.insert("u16", Value::U16(60_000));
    m.insert("i16", Value::I16(-30_000));
    m.insert("u32", 4_000_000_000u32);
    m.insert("i32", Value::I32(-2_000_000_000));
    m.insert("u64", Value::U64(u64::MAX));
    m.insert("i64", Value::I64(i64::MIN));
    m.insert("f32", 0.1f32);
    m.insert("f64", Value::F64(0.1));
    m.insert("yes", true);
    m.insert("ключ", "значение\nb");
    m.insert("empty", "");
    m.insert("a.u32", Array::from_u32(&[1, 2, 3]));
    m.insert("a.str", Array::from_strs(&["a", "", "ü"]));
    m.insert("a.none", Array::from_u32(&[]));
    let tensors = vec![
        spec("one", DType::F32, &[2, 3, 5]),
        spec("two", DType::Q8_0, &[3, 32]),
        spec("scalar", DType::F64, &[]),
        spec("nothing", DType::F16, &[0, 4]),
        spec("three", DType::I8, &[7]),
    ];
    (m, tensors)
}

/// The planned file, tensor bytes counting up.
fn file(metadata: &Metadata, tensors: &[TensorSpec]) -> Vec<u8> {
    let plan = plan(metadata, tensors).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for t in &plan.tensors {
        let range = t.file_offset as usize..(t.file_offset + t.len_bytes) as usize;
        bytes[range].iter_mut().enumerate().for_each(|(i, b)| *b = (i + 1) as u8);
    }
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Gguf> {
    parse(Path::new("t.gguf"), &bytes.into())
}

fn specs(g: &Gguf) -> Vec<TensorSpec> {
    g.tensors.iter().map(|t| spec(&t.name, t.dtype, &t.shape)).collect()
}

#[test]
fn what_is_written_is_read_back() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    let g = read(bytes.clone()).unwrap();
    assert_eq!(g.metadata, m);
    assert_eq!((g.version, g.alignment, g.len_bytes), (3, 32, bytes.len() as u64));
    assert_eq!(specs(&g), t);
    for t in &g.tensors {
        assert_eq!(t.file_offset % 32, 0);
        let want: Vec<u8> = (0..t.bytes.len()).map(|i| (i + 1) as u8).collect();
        assert_eq!(*t.bytes, want[..]);
    }
    assert_eq!(file(&g.metadata, &specs(&g)), bytes, "writing what was read gives the same bytes");
}

#[test]
fn alignment_of_the_metadata_is_kept() {
    for alignment in [1u32, 8, 64, 4096] {
        let (mut m, t) = sample();
        m.insert("general.alignment", alignment);
        let g = read(file(&m, &t)).unwrap();
        assert_eq!(g.alignment, alignment);
        assert!(g.tensors.iter().all(|t| t.file_offset % u64::from(alignment) == 0));
    }
}

#[test]
fn a_string_value_can_be_written_over_in_place() {
    let (mut m, t) = sample();
    m.insert("hash", "0".repeat(64));
    let plan = plan(&m, &t).unwrap();
    let mut bytes = file(&m, &t);
    let at = plan.value_offset("hash").unwrap() as usize;
    let digest = "f".repeat(64);
    bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    assert_eq!(read(bytes).unwrap().metadata.str("hash").unwrap(), Some(&*digest));
    assert_eq!(plan.value_offset("u32"), None);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let (m, _) = sample();
    let with = |key: &str, value: Value| {
        let mut m = m.clone();
        m.insert(key, value);
        plan(&m, &[]).unwrap_err().code()
    };
    assert_eq!(with("s", "a\0b".into()), Code::GgufWrite);
    assert_eq!(with("s", Array::from_strs(&["a\0"]).into()), Code::GgufWrite);
    assert_eq!(with("", 1u32.into()), Code::NameInvalid);
    assert_eq!(with("general.alignment", 0u32.into()), Code::GgufAlignment);
    assert_eq!(with("general.alignment", Value::U64(32)), Code::GgufAlignment);
    let tensor = |t: &[TensorSpec]| plan(&m, t).unwrap_err().code();
    let long = "n".repeat(limits::GGUF_TENSOR_NAME_BYTES + 1);
    assert_eq!(tensor(&[spec(&long, DType::F32, &[1])]), Code::GgufWrite);
    assert!(plan(&m, &[spec(&long[1..], DType::F32, &[1])]).is_ok());
    assert_eq!(tensor(&[spec("../a", DType::F32, &[1])]), Code::NameInvalid);
    assert_eq!(tensor(&[spec("a", DType::F32, &[1; 5])]), Code::GgufWrite);
    assert_eq!(tensor(&[spec("a", DType::BOOL, &[1])]), Code::GgufWrite);
    assert_eq!(tensor(&[spec("a", DType::Q8_0, &[33])]), Code::ShapeBlock);
    assert_eq!(tensor(&[spec("a", DType::F32, &[usize::MAX, 2])]), Code::GgufDims);
    assert_eq!(tensor(&[spec("a", DType::F32, &[1]), spec("a", DType::F32, &[1])]), Code::NameDuplicate);
    let half = 1usize << 60;
    let halves: Vec<_> = (0..8).map(|i| spec(&i.to_string(), DType::I8, &[half])).collect();
    assert_eq!(tensor(&halves), Code::GgufWrite, "beyond the longest file");
}

// Crafted files

/// A file put together by hand. Counts follow the entries unless a case changes them.
#[derive(Clone)]
struct Raw {
    start: Vec<u8>,
    n_tensors: u64,
    n_keys: u64,
    keys: Vec<u8>,
    infos: Vec<u8>,
    alignment: usize,
    data: Vec<u8>,
}

impl Raw {
    /// One key, no tensor.
    fn new() -> Self {
        let (keys, infos, data) = (Vec::new(), Vec::new(), Vec::new());
        let raw = Raw { start: b"GGUF\x03\0\0\0".into(), n_tensors: 0, n_keys: 0, keys, infos, alignment: 32, data };
        raw.key(b"k", 4, &[1, 0, 0, 0])
    }

    /// One key and two tensors of 4 and 8 bytes at 0 and 32.
    fn two() -> Self {
        Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, 32).data(64)
    }

    fn start(mut self, start: &[u8]) -> Self {
        self.start = start.into();
        self
    }

    fn key(mut self, key: &[u8], value_type: u32, value: &[u8]) -> Self {
        self.keys.extend((key.len() as u64).to_le_bytes());
        self.keys.extend(key);
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.n_keys += 1;
        self
    }

    /// `ne` is innermost first, as in the file.
    fn info(mut self, name: &[u8], ne: &[u64], type_id: u32, offset: u64) -> Self {
        self.infos.extend((name.len() as u64).to_le_bytes());
        self.infos.extend(name);
        self.infos.extend((ne.len() as u32).to_le_bytes());
        ne.iter().for_each(|n| self.infos.extend(n.to_le_bytes()));
        self.infos.extend(type_id.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.n_tensors += 1;
        self
    }

    fn data(mut self, len: usize) -> Self {
        self.data = vec![7; len];
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut out = self.start.clone();
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.infos);
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&self.data);
        }
        out
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn array(element_type: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element_type.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

/// With `general.alignment`, one tensor of a byte.
fn aligned(value_type: u32, value: &[u8], alignment: usize) -> Raw {
    let raw = Raw::new().key(b"general.alignment", value_type, value).info(b"a", &[1], 24, 0);
    Raw { alignment, ..raw }.data(1)
}

#[test]
fn right_files_are_accepted() {
    let aligned_u32 = |a: u32| aligned(4, &a.to_le_bytes(), a as usize);
    let cases: Vec<(&str, Raw)> = vec![
        ("two tensors", Raw::two()),
        ("version 2", Raw::two().start(b"GGUF\x02\0\0\0")),
        ("no tensors", Raw::new()),
        ("no tensors, padded", Raw::new().data(0)),
        ("nothing at all", Raw { n_keys: 0, keys: vec![], ..Raw::new() }),
        ("unpadded last tensor", Raw::two().data(32 + 8)),
        ("partly padded last tensor", Raw::two().data(32 + 9)),
        ("zero dimension", Raw::new().info(b"z", &[4, 0], 0, 0).info(b"a", &[1], 0, 0).data(32)),
        ("scalar", Raw::new().info(b"s", &[], 0, 0).data(32)),
        ("four dimensions", Raw::new().info(b"a", &[1, 2, 1, 2], 0, 0).data(32)),
        ("quantized", Raw::new().info(b"a", &[32, 2], 8, 0).data(96)),
        ("unicode key and name", Raw::new().key("é".as_bytes(), 7, &[1]).info("é".as_bytes(), &[1], 0, 0).data(32)),
        ("bool 0 and 1", Raw::new().key(b"f", 7, &[0]).key(b"t", 7, &[1]).key(b"a", 9, &array(7, 2, &[0, 1]))),
        ("empty string", Raw::new().key(b"s", 8, &string(b""))),
        ("empty arrays", Raw::new().key(b"s", 9, &array(8, 0, &[])).key(b"u", 9, &array(4, 0, &[]))),
        ("key of 255 bytes", Raw::new().key(&[b'k'; 255], 0, &[0])),
        ("name of 63 bytes", Raw::new().info(&[b'n'; 63], &[1], 24, 0).data(1)),
        ("alignment 1", aligned_u32(1)),
        ("alignment 64", aligned_u32(64)),
        ("largest alignment", aligned_u32(limits::GGUF_ALIGNMENT)),
    ];
    for (name, raw) in cases {
        let bytes = raw.build();
        let n = raw.n_tensors as usize;
        match read(bytes) {
            Ok(g) => assert_eq!(g.tensors.len(), n, "{name}"),
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let g = read(Raw::new().info(b"a", &[3, 2], 0, 0).data(32).build()).unwrap();
    assert_eq!(g.tensors[0].shape, [2, 3], "dimensions are reversed");
    assert_eq!(&*g.tensors[0].bytes, &[7; 24]);
    let mut padded = Raw::new().build();
    padded.resize(padded.len().next_multiple_of(32), 0);
    assert!(read(padded).is_ok(), "no tensors, header padded");
}

#[test]
fn wrong_files_are_refused_by_name() {
    use Code::*;
    let counts = |n_tensors, n_keys| Raw { n_tensors, n_keys, ..Raw::new() };
    let value = |t: u32, v: &[u8]| Raw::new().key(b"v", t, v);
    let info = |ne: &[u64], t: u32| Raw::new().info(b"a", ne, t, 0).data(64);
    let named = |n: &[u8]| Raw::new().info(n, &[1], 24, 0).data(1);
    let max = u64::MAX;
    let i64_max = i64::MAX as u64;
    let cases: Vec<(&str, Raw, Code)> = vec![
        ("other magic", Raw::two().start(b"GGML\x03\0\0\0"), GgufMagic),
        ("lower case magic", Raw::two().start(b"gguf\x03\0\0\0"), GgufMagic),
        ("magic reversed", Raw::two().start(b"FUGG\0\0\0\x03"), GgufByteOrder),
        ("byte-swapped", Raw::two().start(b"GGUF\0\0\0\x03"), GgufByteOrder),
        ("byte-swapped version 2", Raw::two().start(b"GGUF\0\0\0\x02"), GgufByteOrder),
        ("version 0", Raw::two().start(b"GGUF\0\0\0\0"), GgufVersion),
        ("version 1", Raw::two().start(b"GGUF\x01\0\0\0"), GgufVersion),
        ("version 4", Raw::two().start(b"GGUF\x04\0\0\0"), GgufVersion),
        ("too many tensors", counts(limits::TENSORS + 1, 1), GgufLimit),
        ("more tensors than bytes", counts(limits::TENSORS, 1), GgufTruncated),
        ("tensors 2^64-1", counts(max, 1), GgufLimit),
        ("too many keys", counts(0, limits::GGUF_KEYS + 1), GgufLimit),
        ("more keys than bytes", counts(0, limits::GGUF_KEYS), GgufTruncated),
        ("one key more", counts(0, 2), GgufTruncated),
        ("one key fewer", Raw { n_keys: 0, ..Raw::two() }, GgufDims),
        ("empty key", Raw::new().key(b"", 0, &[0]), NameInvalid),
        ("key with NUL", Raw::new().key(b"a\0", 0, &[0]), GgufString),
        ("key not UTF-8", Raw::new().key(b"a\xff", 0, &[0]), GgufString),
        ("key with newline", Raw::new().key(b"a\n", 0, &[0]), NameInvalid),
        ("key of 256 bytes", Raw::new().key(&[b'k'; 256], 0, &[0]), GgufLimit),
        ("key twice", Raw::new().key(b"k", 4, &[0; 4]), NameDuplicate),
        ("value type 13", value(13, &[0; 8]), GgufValueType),
        ("value type 2^32-1", value(u32::MAX, &[0; 8]), GgufValueType),
        ("bool 2", value(7, &[2]), GgufBool),
        ("bool 2 in an array", value(9, &array(7, 3, &[0, 1, 2])), GgufBool),
        ("string not UTF-8", value(8, &string(b"\xc3")), GgufString),
        ("string with NUL", value(8, &string(b"a\0b")), GgufString),
        ("string longer than the file", value(8, &999u64.to_le_bytes()), GgufTruncated),
        ("string of 2^64-1 bytes", value(8, &max.to_le_bytes()), GgufTruncated),
        ("array of arrays", value(9, &array(9, 1, &array(0, 1, &[0]))), GgufValueType),
        ("array of type 13", value(9, &array(13, 1, &[0; 8])), GgufValueType),
        ("array longer than the file", value(9, &array(4, 3, &[0; 8])), GgufTruncated),
        ("array of 2^64-1", value(9, &array(4, max, &[0; 8])), GgufTruncated),
        ("array of 2^62 u32", value(9, &array(4, 1 << 62, &[0; 8])), GgufTruncated),
        ("strings longer than the file", value(9, &array(8, 2, &string(b"a"))), GgufTruncated),
        ("string in an array not UTF-8", value(9, &array(8, 1, &string(b"\xff"))), GgufString),
        ("alignment 0", aligned(4, &[0; 4], 32), GgufAlignment),
        ("alignment 3", aligned(4, &[3, 0, 0, 0], 32), GgufAlignment),
        ("alignment as i32", aligned(5, &[32, 0, 0, 0], 32), GgufAlignment),
        ("alignment as u64", aligned(10, &[32, 0, 0, 0, 0, 0, 0, 0], 32), GgufAlignment),
        ("alignment as string", aligned(8, &string(b"32"), 32), GgufAlignment),
        ("alignment twice the limit", aligned(4, &(limits::GGUF_ALIGNMENT * 2).to_le_bytes(), 32), GgufAlignment),
        ("alignment 1 GiB", aligned(4, &(1u32 << 30).to_le_bytes(), 32), GgufAlignment),
        ("empty tensor name", named(b""), NameInvalid),
        ("tensor name of 64 bytes", named(&[b'n'; 64]), GgufLimit),
        ("tensor name with NUL", named(b"a\0"), GgufString),
        ("tensor name not UTF-8", named(b"\x80"), GgufString),
        ("tensor name with ..", named(b"a/../b"), NameInvalid),
        ("absolute tensor name", named(b"/etc/passwd"), NameInvalid),
        ("tensor twice", Raw::new().info(b"a", &[1], 0, 0).info(b"a", &[1], 0, 32).data(64), NameDuplicate),
        ("five dimensions", info(&[1; 5], 0), GgufDims),
        (
            "2^31 dimensions",
            Raw {
                infos: [&string(b"a")[..], &(1u32 << 31).to_le_bytes(), &[0; 64]].concat(),
                n_tensors: 1,
                ..Raw::new()
            },
            GgufDims,
        ),
        ("negative dimension", info(&[max], 0), GgufDims),
        ("dimension -2^63", info(&[1 << 63, 0], 0), GgufDims),
        ("product overflows", info(&[1 << 32, 1 << 32], 0), GgufDims),
        ("product wraps to little", info(&[1 << 33, 1 << 33, 1 << 33], 0), GgufDims),
        ("bytes overflow i64", info(&[i64_max / 2], 0), GgufDims),
        ("product overflows beside 0", info(&[i64_max, i64_max, 0], 0), GgufDims),
        ("0 beside an overflow", info(&[0, i64_max, i64_max], 0), GgufDims),
        ("row not in blocks", info(&[33], 8), ShapeBlock),
        ("row of 32 in blocks of 256", info(&[32], 12), ShapeBlock),
        ("type 4, removed", info(&[32], 4), GgufTensorType),
        ("type 5, removed", info(&[32], 5), GgufTensorType),
        ("type 31, removed", info(&[32], 31), GgufTensorType),
        ("type 38, removed", info(&[32], 38), GgufTensorType),
        ("type 1000", info(&[32], 1000), GgufTensorType),
        ("type -1", info(&[32], u32::MAX), GgufTensorType),
        ("first offset not 0", Raw::new().info(b"a", &[1], 0, 32).data(64), GgufOffset),
        ("overlap", Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, 0).data(64), GgufOffset),
        ("hole", Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, 64).data(128), GgufOffset),
        ("misorder", Raw::new().info(b"a", &[1], 0, 32).info(b"b", &[2], 0, 0).data(64), GgufOffset),
        ("unaligned offset", Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, 4).data(64), GgufOffset),
        ("offset 2^64-1", Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, max).data(64), GgufOffset),
        ("data one byte short", Raw::two().data(32 + 7), GgufTruncated),
        ("data absent", Raw::two().data(0), GgufTruncated),
        ("tensor larger than the file", info(&[1 << 40], 0), GgufTruncated),
        ("one byte after the padded end", Raw::two().data(65), GgufTrailing),
        ("another block after the end", Raw::two().data(96), GgufTrailing),
        ("tensors listed with count 0", Raw { n_tensors: 0, ..Raw::two() }, GgufTrailing),
    ];
    let mut failures = Vec::new();
    for (name, raw, code) in cases {
        match read(raw.build()) {
            Ok(_) => failures.push(format!("{name}: accepted")),
            Err(e) if e.code() != code => failures.push(format!("{name}: expected {code:?}, found {e}")),
            Err(e) if e.path().is_none() => failures.push(format!("{name}: no file in {e}")),
            Err(e) if e.offset().is_none() && e.field_name().is_none() => {
                failures.push(format!("{name}: no place in {e}"))
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn an_empty_file_is_no_gguf() {
    assert_eq!(read(vec![]).unwrap_err().code(), Code::GgufMagic);
    assert_eq!(read(b"GGU".to_vec()).unwrap_err().code(), Code::GgufMagic);
    assert_eq!(read(b"GGUF".to_vec()).unwrap_err().code(), Code::GgufTruncated);
    assert_eq!(open(Path::new("/nonexistent/x.gguf")).unwrap_err().code(), Code::NotFound);
}

#[test]
fn every_truncation_is_refused() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    let unpadded = bytes.len() - 25; // the last tensor has 7 of 32 bytes
    for len in 0..bytes.len() {
        let result = read(bytes[..len].to_vec());
        assert_eq!(result.is_ok(), len >= unpadded, "{len} of {} bytes", bytes.len());
    }
}

/// Whatever is accepted hangs together: sizes, places, and it can be written again and read back the same.
fn assert_consistent(g: &Gguf) {
    let mut end = 0;
    for t in &g.tensors {
        assert_eq!(t.bytes.len(), crate::tensor::shape::len_bytes(&t.shape, t.dtype).unwrap());
        assert!(t.file_offset >= end && t.file_offset % u64::from(g.alignment) == 0);
        end = t.file_offset + t.bytes.len() as u64;
    }
    assert!(end <= g.len_bytes);
    for (_, v) in g.metadata.iter() {
        if let Value::Array(a) = v {
            assert_eq!(a.iter().count(), a.len());
        }
    }
    let again = read(file(&g.metadata, &specs(g))).unwrap();
    assert_eq!(specs(&again), specs(g));
    // Compared as text, since a NaN is not equal to itself.
    assert_eq!(
        format!("{:?}", again.metadata.iter().collect::<Vec<_>>()),
        format!("{:?}", g.metadata.iter().collect::<Vec<_>>())
    );
}

#[test]
fn every_flipped_byte_is_refused_or_read_consistently() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut b = bytes.clone();
            b[i] ^= flip;
            match read(b) {
                Ok(g) => {
                    accepted += 1;
                    assert_consistent(&g);
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 500 && refused > 500, "{accepted} accepted, {refused} refused: the sample is too weak");
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = "[^\\x00]{0,12}";
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        text.prop_map(Value::String),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(|v| Array::from_u32(&v).into()),
        prop::collection::vec(text, 0..9).prop_map(|v| Array::from_strs(&v).into()),
    ]
}

fn any_tensor() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let types: Vec<_> = DType::ALL.iter().copied().filter(|d| d.ggml_id().is_some()).collect();
    (prop::sample::select(types), prop::collection::vec(0usize..5, 0..=4)).prop_map(|(dtype, mut shape)| {
        match shape.last_mut() {
            Some(innermost) => *innermost *= dtype.block_len(),
            None if dtype.is_quantized() => shape.push(dtype.block_len()),
            None => {}
        }
        (dtype, shape)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_metadata_and_tensors_survive(
        keys in prop::collection::btree_map("[a-z0-9._]{1,20}", any_value(), 0..12),
        tensors in prop::collection::btree_map("[a-z0-9_]{1,63}", any_tensor(), 0..8),
        alignment in prop::option::of(0u32..10),
    ) {
        let mut m = Metadata::new();
        keys.into_iter().for_each(|(k, v)| m.insert(format!("k.{k}"), v));
        if let Some(a) = alignment {
            m.insert("general.alignment", 1u32 << a);
        }
        let tensors: Vec<_> = tensors.iter().map(|(n, (d, s))| spec(n, *d, s)).collect();
        let bytes = file(&m, &tensors);
        let g = read(bytes.clone()).unwrap();
        prop_assert_eq!(specs(&g), tensors);
        assert_consistent(&g);
        prop_assert_eq!(file(&g.metadata, &specs(&g)), bytes);
    }
}
