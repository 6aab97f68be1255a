//! Reader and writer against each other, against the crate, against crafted headers, and against every small damage.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::format::{TensorSpec, limits};
use crate::tensor::DType;

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

fn sample() -> (BTreeMap<String, String>, Vec<TensorSpec>) {
    let metadata = [("format", "pt"), ("zeta", "ü\n\"quoted\"")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let tensors = vec![
        spec("b.weight", DType::F32, &[2, 3]),
        spec("a \"quoted\" ü", DType::BF16, &[5]),
        spec("scalar", DType::I64, &[]),
        spec("nothing", DType::F16, &[0, 4]),
        spec("flags", DType::BOOL, &[3]),
    ];
    (metadata, tensors)
}

/// The planned file, tensor bytes counting up.
fn file(metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> Vec<u8> {
    let plan = plan(metadata, tensors).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for t in &plan.tensors {
        let range = t.file_offset as usize..(t.file_offset + t.len_bytes) as usize;
        bytes[range].iter_mut().enumerate().for_each(|(i, b)| *b = (i + 1) as u8);
    }
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Safetensors> {
    parse(Path::new("t.safetensors"), &bytes.into())
}

fn specs(s: &Safetensors) -> Vec<TensorSpec> {
    s.tensors.iter().map(|t| spec(&t.name, t.dtype, &t.shape)).collect()
}

#[test]
fn what_is_written_is_read_back_by_us_and_by_the_crate() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    assert!(is_safetensors(&bytes[..16]));
    let s = read(bytes.clone()).unwrap();
    assert_eq!((&s.metadata, specs(&s)), (&m, t.clone()));
    assert_eq!(s.tensors[0].file_offset % 8, 0);
    assert_eq!(file(&s.metadata, &specs(&s)), bytes);

    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), t.len());
    for t in &s.tensors {
        let view = theirs.tensor(&t.name).unwrap();
        assert_eq!((view.shape(), view.data(), view.dtype().to_string()), (&*t.shape, &*t.bytes, t.dtype.to_string()));
    }
    assert!(read(file(&BTreeMap::new(), &[])).unwrap().tensors.is_empty());
}

#[test]
fn the_writer_refuses_what_has_no_place() {
    let code = |t: &[TensorSpec]| plan(&BTreeMap::new(), t).unwrap_err().code();
    assert_eq!(code(&[spec("a", DType::Q8_0, &[32])]), Code::SafetensorsDtype);
    assert_eq!(code(&[spec("", DType::F32, &[1])]), Code::NameInvalid);
    assert_eq!(code(&[spec(METADATA, DType::F32, &[1])]), Code::NameDuplicate);
    assert_eq!(code(&[spec("a", DType::F32, &[1]), spec("a", DType::F32, &[1])]), Code::NameDuplicate);
    assert_eq!(code(&[spec("a", DType::F32, &[usize::MAX, 2])]), Code::ShapeOverflow);
    let long = BTreeMap::from([("k".to_owned(), "v".repeat(limits::SAFETENSORS_METADATA_BYTES))]);
    assert_eq!(plan(&long, &[]).unwrap_err().code(), Code::SafetensorsHeader);
}

/// Header and data as given, the length in front.
fn raw(header: &str, data_len: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data_len]].concat()
}

#[test]
fn right_headers_are_accepted() {
    let long = "n".repeat(limits::NAME_BYTES);
    let dims = vec!["1"; limits::SAFETENSORS_DIMS].join(",");
    let cases: Vec<(&str, String, usize)> = vec![
        ("no tensor", "{}".into(), 0),
        ("metadata alone", r#"{"__metadata__":{"a":""}}"#.into(), 0),
        ("metadata last", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{}}"#.into(), 1),
        ("listed out of order", r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 2),
        ("fields in any order, blanks", "{ \"a\" : {\n\"data_offsets\":[0, 4],\t\"shape\":[],\"dtype\":\"F32\" } }   ".into(), 4),
        ("zero dimension", r#"{"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]}}"#.into(), 0),
        ("longest name", format!(r#"{{"{long}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), 1),
        ("most dimensions", format!(r#"{{"a":{{"dtype":"U8","shape":[{dims}],"data_offsets":[0,1]}}}}"#), 1),
    ];
    for (name, header, data_len) in cases {
        if let Err(e) = read(raw(&header, data_len)) {
            panic!("{name}: {e}");
        }
    }
    let s = read(raw(
        r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        2,
    ));
    assert_eq!(s.unwrap().tensors.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"], "by offset");
}

#[test]
fn wrong_headers_are_refused_by_name() {
    use Code::*;
    let tensor = |fields: &str| format!("{{\"a\":{{{fields}}}}}");
    let offsets = |o: &str| tensor(&format!(r#""dtype":"U8","shape":[4],"data_offsets":{o}"#));
    let shape = |s: &str| tensor(&format!(r#""dtype":"U8","shape":{s},"data_offsets":[0,4]"#));
    let dtype = |d: &str| tensor(&format!(r#""dtype":{d},"shape":[4],"data_offsets":[0,4]"#));
    let name = |n: &str| format!(r#"{{"{n}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#);
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let meta = |m: &str| format!(r#"{{"__metadata__":{m},"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#);
    let good = name("a");
    let many_dims = vec!["1"; limits::SAFETENSORS_DIMS + 1].join(",");
    let long_meta = format!("{{\"k\":\"{}\"}}", "v".repeat(limits::SAFETENSORS_METADATA_BYTES));
    let many_meta: Vec<_> = (0..=limits::SAFETENSORS_METADATA_KEYS).map(|i| format!("\"{i}\":\"\"")).collect();
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("empty file", vec![], SafetensorsHeader),
        ("seven bytes", vec![0; 7], SafetensorsHeader),
        ("header length 0", vec![0; 8], SafetensorsHeader),
        ("header longer than the file", raw(&good, 4)[..30].to_vec(), SafetensorsHeader),
        ("header length 2^64-1", vec![0xff; 100], SafetensorsHeader),
        (
            "header above the limit",
            [&(limits::HEADER_BYTES as u64 + 1).to_le_bytes()[..], b"{}"].concat(),
            SafetensorsHeader,
        ),
        ("blank before the header", raw(&format!(" {good}"), 4), SafetensorsHeader),
        ("byte order mark", raw(&format!("\u{feff}{good}"), 4), SafetensorsHeader),
        ("a list", raw("[]", 0), SafetensorsHeader),
        ("newline after the header", raw(&format!("{good}\n"), 4), SafetensorsHeader),
        ("NUL after the header", raw(&format!("{good}\0"), 4), SafetensorsHeader),
        ("two documents", raw(&format!("{good}{{}}"), 4), SafetensorsHeader),
        ("cut short", raw(&good[..good.len() - 1], 4), SafetensorsHeader),
        ("not UTF-8", [&9u64.to_le_bytes()[..], b"{\"a\xff\":{}}"].concat(), SafetensorsHeader),
        ("deep", raw(&format!("{{\"a\":{}", "[".repeat(200)), 0), SafetensorsHeader),
        ("tensor as list", raw(r#"{"a":["U8",[4],[0,4]]}"#, 4), SafetensorsHeader),
        ("tensor as number", raw(r#"{"a":1}"#, 4), SafetensorsHeader),
        ("unknown field", raw(&tensor(r#""dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1"#), 4), SafetensorsHeader),
        (
            "field twice",
            raw(&tensor(r#""dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]"#), 4),
            SafetensorsHeader,
        ),
        ("no dtype", raw(&tensor(r#""shape":[4],"data_offsets":[0,4]"#), 4), SafetensorsHeader),
        ("no shape", raw(&tensor(r#""dtype":"U8","data_offsets":[0,4]"#), 4), SafetensorsHeader),
        ("no offsets", raw(&tensor(r#""dtype":"U8","shape":[4]"#), 4), SafetensorsHeader),
        ("unknown dtype", raw(&dtype(r#""F31""#), 4), SafetensorsHeader),
        ("lower-case dtype", raw(&dtype(r#""u8""#), 4), SafetensorsHeader),
        ("dtype as number", raw(&dtype("8"), 4), SafetensorsHeader),
        ("dtype as object", raw(&dtype(r#"{"U8":null}"#), 4), SafetensorsHeader),
        ("dtype of the crate that we lack", raw(&dtype(r#""F8_E8M0""#), 4), SafetensorsDtype),
        ("negative dimension", raw(&shape("[-4]"), 4), SafetensorsHeader),
        ("fractional dimension", raw(&shape("[4.0]"), 4), SafetensorsHeader),
        ("dimension as string", raw(&shape(r#"["4"]"#), 4), SafetensorsHeader),
        ("dimension null", raw(&shape("[4,null]"), 4), SafetensorsHeader),
        ("dimension 1e400", raw(&shape("[1e400]"), 4), SafetensorsHeader),
        ("dimension 2^64", raw(&shape("[18446744073709551616]"), 4), SafetensorsHeader),
        ("product overflows", raw(&shape("[4294967296,4294967296,4]"), 4), SafetensorsHeader),
        ("product wraps to 0", raw(&shape("[9223372036854775808,2,0]"), 0), SafetensorsHeader),
        ("too many dimensions", raw(&shape(&format!("[{many_dims}]")), 4), SafetensorsHeader),
        ("shape not as long as the data", raw(&shape("[5]"), 4), SafetensorsHeader),
        ("one offset", raw(&offsets("[0]"), 4), SafetensorsHeader),
        ("three offsets", raw(&offsets("[0,4,4]"), 4), SafetensorsHeader),
        ("offsets reversed", raw(&offsets("[4,0]"), 4), SafetensorsHeader),
        ("negative offset", raw(&offsets("[-1,3]"), 4), SafetensorsHeader),
        ("offsets as strings", raw(&offsets(r#"["0","4"]"#), 4), SafetensorsHeader),
        ("offsets beyond the file", raw(&offsets("[0,4]"), 3), SafetensorsHeader),
        ("offsets 2^64-1", raw(&offsets("[18446744073709551611,18446744073709551615]"), 4), SafetensorsHeader),
        ("first offset not 0", raw(&offsets("[1,5]"), 5), SafetensorsHeader),
        ("hole", raw(&two("[0,2]", "[3,5]"), 5), SafetensorsHeader),
        ("overlap", raw(&two("[0,2]", "[1,3]"), 3), SafetensorsHeader),
        ("same bytes twice", raw(&two("[0,2]", "[0,2]"), 2), SafetensorsHeader),
        ("trailing byte", raw(&good, 5), SafetensorsHeader),
        ("data without tensors", raw("{}", 1), SafetensorsHeader),
        ("tensor twice", raw(&format!("{},{}", &good[..good.len() - 1], &good[1..]), 4), NameDuplicate),
        (
            "tensor twice, escaped",
            raw(&format!("{},{}", &good[..good.len() - 1], &name("\\u0061")[1..]), 4),
            NameDuplicate,
        ),
        ("metadata twice", raw(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), NameDuplicate),
        ("metadata key twice", raw(&meta(r#"{"k":"1","k":"2"}"#), 4), JsonDuplicateKey),
        ("metadata null", raw(&meta("null"), 4), SafetensorsHeader),
        ("metadata a list", raw(&meta("[]"), 4), SafetensorsHeader),
        ("metadata a string", raw(&meta(r#""x""#), 4), SafetensorsHeader),
        ("metadata value a number", raw(&meta(r#"{"k":1}"#), 4), SafetensorsHeader),
        ("metadata value null", raw(&meta(r#"{"k":null}"#), 4), SafetensorsHeader),
        ("metadata value an object", raw(&meta(r#"{"k":{}}"#), 4), SafetensorsHeader),
        ("metadata key with newline", raw(&meta(r#"{"k\n":""}"#), 4), NameInvalid),
        ("metadata too long", raw(&meta(&long_meta), 4), SafetensorsHeader),
        ("metadata of too many keys", raw(&meta(&format!("{{{}}}", many_meta.join(","))), 4), SafetensorsHeader),
        ("empty name", raw(&name(""), 4), NameInvalid),
        ("name with NUL", raw(&name("a\\u0000"), 4), NameInvalid),
        ("name with newline", raw(&name("a\\n"), 4), NameInvalid),
        ("name with ..", raw(&name("../a"), 4), NameInvalid),
        ("absolute name", raw(&name("/a"), 4), NameInvalid),
        ("name too long", raw(&name(&"n".repeat(limits::NAME_BYTES + 1)), 4), NameInvalid),
    ];
    let mut failures = Vec::new();
    for (name, bytes, code) in cases {
        match read(bytes) {
            Ok(_) => failures.push(format!("{name}: accepted")),
            Err(e) if e.code() != code => failures.push(format!("{name}: expected {code:?}, found {e}")),
            Err(e) if e.path().is_none() => failures.push(format!("{name}: no file in {e}")),
            Err(e) if e.offset().is_none() && e.field_name().is_none() => {
                failures.push(format!("{name}: no place in {e}"));
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn tensors_and_dimensions_together_have_a_limit() {
    let header = |n: usize, dims: usize| {
        let shape = vec!["0"; dims].join(",");
        let tensor = |i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[0,0]}}");
        raw(&format!("{{{}}}", (0..n).map(tensor).collect::<Vec<_>>().join(",")), 0)
    };
    let most = limits::SAFETENSORS_TENSORS;
    let most_dims = limits::SAFETENSORS_ALL_DIMS / limits::SAFETENSORS_DIMS;
    assert_eq!(read(header(most, 1)).unwrap().tensors.len(), most);
    assert_eq!(read(header(most_dims, limits::SAFETENSORS_DIMS)).unwrap().tensors.len(), most_dims);
    for bad in [header(most + 1, 1), header(most_dims + 1, limits::SAFETENSORS_DIMS)] {
        assert_eq!(read(bad).unwrap_err().code(), Code::SafetensorsHeader);
    }
}

#[test]
fn every_truncation_is_refused() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    assert!(read(bytes.clone()).is_ok());
    for len in 0..bytes.len() {
        assert!(read(bytes[..len].to_vec()).is_err(), "{len} of {} bytes", bytes.len());
    }
}

/// What is accepted is a partition of the data, means the same to the crate, and can be written and read again.
fn assert_consistent(s: &Safetensors, bytes: &[u8]) {
    let theirs = ::safetensors::SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(theirs.len(), s.tensors.len());
    let mut end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    for t in &s.tensors {
        assert_eq!(t.file_offset, end);
        end += t.bytes.len() as u64;
        assert_eq!(theirs.tensor(&t.name).unwrap().data(), &*t.bytes);
        assert_eq!(t.bytes.len(), crate::tensor::shape::len_bytes(&t.shape, t.dtype).unwrap());
    }
    assert_eq!(end, bytes.len() as u64);
    let again = read(file(&s.metadata, &specs(s))).unwrap();
    assert_eq!((&again.metadata, specs(&again)), (&s.metadata, specs(s)));
}

#[test]
fn every_flipped_byte_is_refused_or_read_consistently() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..bytes.len() {
        for flip in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut b = bytes.clone();
            b[i] ^= flip;
            match read(b.clone()) {
                Ok(s) => {
                    accepted += 1;
                    assert_consistent(&s, &b);
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 300 && refused > 300, "{accepted} accepted, {refused} refused: the sample is too weak");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tensors_and_metadata_survive(
        metadata in prop::collection::btree_map("[a-z]{1,9}", "\\PC{0,20}", 0..5),
        tensors in prop::collection::btree_map("[a-zé\"\\\\]{2,20}", (0usize..12, prop::collection::vec(0usize..5, 0..5)), 0..8),
    ) {
        let types: Vec<_> = DType::ALL.iter().copied().filter(|d| d.safetensors_name().is_some()).collect();
        let tensors: Vec<_> = tensors.iter().filter(|(n, _)| crate::format::names::check_name(n).is_ok())
            .map(|(n, (d, s))| spec(n, types[d % types.len()], s)).collect();
        let bytes = file(&metadata, &tensors);
        let s = read(bytes.clone()).unwrap();
        prop_assert_eq!(&s.metadata, &metadata);
        // Tensors without bytes share their offset with a neighbour, so the order among them is lost.
        let sorted = |mut v: Vec<TensorSpec>| { v.sort_by(|a, b| a.name.cmp(&b.name)); v };
        prop_assert_eq!(sorted(specs(&s)), sorted(tensors));
        assert_consistent(&s, &bytes);
    }
}

// Sharded models

/// Two shards with a tensor each, and the index.
fn shards(dir: &Path, index: &str) -> PathBuf {
    for (file_name, tensor) in [("m-1.safetensors", "a"), ("m-2.safetensors", "b")] {
        let metadata = [("format", "pt"), ("shard", file_name)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        std::fs::write(dir.join(file_name), file(&metadata, &[spec(tensor, DType::U8, &[3])])).unwrap();
    }
    let path = dir.join("m.safetensors.index.json");
    std::fs::write(&path, index).unwrap();
    path
}

const INDEX: &str = r#"{"metadata":{"total_size":6},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}}"#;

#[test]
fn an_index_opens_all_shards() {
    let dir = tempfile::tempdir().unwrap();
    let path = shards(dir.path(), INDEX);
    let s = open_index(&path).unwrap();
    assert_eq!(s.tensors.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(&*s.tensors[1].file, dir.path().join("m-2.safetensors"));
    assert_eq!(s.metadata.into_iter().collect::<Vec<_>>(), [("format".into(), "pt".into())]);
    assert_eq!((s.path, s.files.len()), (path, 2));
}

#[test]
fn an_index_that_does_not_fit_is_refused() {
    use Code::*;
    let map = |entries: &str| format!("{{\"weight_map\":{{{entries}}}}}");
    let cases: Vec<(&str, String, Code)> = vec![
        ("not JSON", "{".into(), JsonSyntax),
        ("no map", "{}".into(), SafetensorsIndex),
        ("a list", "[]".into(), SafetensorsIndex),
        ("map a list", r#"{"weight_map":[]}"#.into(), SafetensorsIndex),
        ("empty map", map(""), SafetensorsIndex),
        ("file a number", map(r#""a":1"#), SafetensorsIndex),
        ("tensor twice", map(r#""a":"m-1.safetensors","a":"m-2.safetensors""#), JsonDuplicateKey),
        ("shard absent", map(r#""a":"m-3.safetensors""#), SafetensorsIndex),
        ("tensor in the other shard", map(r#""a":"m-2.safetensors","b":"m-1.safetensors""#), SafetensorsIndex),
        (
            "tensor not in its shard",
            map(r#""a":"m-1.safetensors","b":"m-2.safetensors","c":"m-2.safetensors""#),
            SafetensorsIndex,
        ),
        ("tensor not listed", map(r#""x":"both.safetensors""#), SafetensorsIndex),
        ("parent folder", map(r#""a":"../m-1.safetensors""#), NameInvalid),
        ("subfolder", map(r#""a":"sub/m-1.safetensors""#), SafetensorsIndex),
        ("backslash", map(r#""a":"sub\\m-1.safetensors""#), SafetensorsIndex),
        ("absolute", map(r#""a":"/etc/passwd""#), NameInvalid),
        ("the folder itself", map(r#""a":".""#), SafetensorsIndex),
        ("empty file name", map(r#""a":"""#), NameInvalid),
        ("link out of the folder", map(r#""a":"out.safetensors""#), SafetensorsIndex),
        ("shard that is a folder", map(r#""a":"folder""#), NotAFile),
        ("bad tensor name", map(r#""a/../b":"m-1.safetensors""#), NameInvalid),
    ];
    for (name, index, code) in cases {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("model");
        std::fs::create_dir(&dir).unwrap();
        let path = shards(&dir, &index);
        let one = [spec("x", DType::U8, &[3]), spec("y", DType::U8, &[3])];
        std::fs::write(dir.join("both.safetensors"), file(&BTreeMap::new(), &one)).unwrap();
        std::fs::write(outer.path().join("secret"), file(&BTreeMap::new(), &[spec("a", DType::U8, &[3])])).unwrap();
        symlink("../secret", dir.join("out.safetensors")).unwrap();
        std::fs::create_dir(dir.join("folder")).unwrap();
        match open_index(&path) {
            Ok(_) => panic!("{name}: accepted"),
            Err(e) => {
                assert_eq!(e.code(), code, "{name}: {e}");
                assert!(e.path().is_some(), "{name}: {e}");
            }
        }
    }
}

#[test]
fn links_inside_the_folder_and_into_the_hub_cache_are_followed() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    let index = shards(&snapshot, INDEX);
    std::fs::rename(snapshot.join("m-1.safetensors"), blobs.join("aa")).unwrap();
    symlink("../../blobs/aa", snapshot.join("m-1.safetensors")).unwrap();
    std::fs::rename(snapshot.join("m-2.safetensors"), snapshot.join("other")).unwrap();
    symlink("other", snapshot.join("m-2.safetensors")).unwrap();
    assert_eq!(open_index(&index).unwrap().tensors.len(), 2);
}
