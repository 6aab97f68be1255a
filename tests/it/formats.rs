//! Files of the reference writers (`fixtures/formats/make.py`) read by us. For the way back see `tests/independent`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ptplus::error::Code;
use ptplus::format::gguf::{self, Value, ValueType};
use ptplus::format::{StoredTensor, safetensors};
use ptplus::tensor::DType;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/formats").join(name)
}

fn f32s(t: &StoredTensor) -> Vec<f32> {
    assert_eq!(t.dtype, DType::F32);
    t.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn counting(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

#[test]
fn every_value_of_gguf_py_is_read() {
    for (name, version) in [("every_value.gguf", 3), ("version2.gguf", 2)] {
        let g = gguf::open(&fixture(name)).unwrap();
        assert_eq!(g.version, version);
        let m = &g.metadata;
        assert_eq!(m.str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(m.str("general.name").unwrap(), Some("имя ü \u{1f600}"));
        let values = [
            ("v.u8", Value::U8(255)),
            ("v.i8", Value::I8(-128)),
            ("v.u16", Value::U16(65535)),
            ("v.i16", Value::I16(-32768)),
            ("v.u32", Value::U32(u32::MAX)),
            ("v.i32", Value::I32(i32::MIN)),
            ("v.u64", Value::U64(u64::MAX)),
            ("v.i64", Value::I64(i64::MIN)),
            ("v.f32", Value::F32(0.5)),
            ("v.f64", Value::F64(0.1)),
            ("v.yes", Value::Bool(true)),
            ("v.no", Value::Bool(false)),
            ("v.str", Value::String("line\nbreak".into())),
        ];
        for (key, value) in values {
            assert_eq!(m.get(key), Some(&value), "{key}");
        }
        let array = |key| m.array(key).unwrap().unwrap();
        assert_eq!(m.u32_array("a.int").unwrap().unwrap(), [3, 1, 2]);
        assert_eq!(array("a.float").iter().collect::<Vec<_>>(), [Value::F32(0.5), Value::F32(-1.5)]);
        assert_eq!(array("a.bool").element_type(), ValueType::Bool);
        assert_eq!(m.bool_array("a.bool").unwrap().unwrap(), [true, false, true]);
        assert_eq!(m.str_array("a.str").unwrap().unwrap().collect::<Vec<_>>(), ["", "ü", "abc"]);

        let table: Vec<_> = g.tensors.iter().map(|t| (&*t.name, t.dtype, &*t.shape)).collect();
        assert_eq!(
            table,
            [
                ("f32", DType::F32, &[2, 3, 4][..]),
                ("f16", DType::F16, &[5]),
                ("bf16", DType::BF16, &[2, 64]),
                ("q8_0", DType::Q8_0, &[2, 64]),
                ("q4_0", DType::Q4_0, &[2, 64]),
                ("q5_1", DType::Q5_1, &[2, 64]),
                ("i32", DType::I32, &[3]),
            ]
        );
        assert_eq!(f32s(&g.tensors[0]), counting(24));
        assert_eq!(&*g.tensors[6].bytes, [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        // Q8_0 of 96..127 (the last block): scale 1 as F16, to its last bit, and the values.
        let last = &g.tensors[3].bytes[3 * 34..];
        assert_eq!(&last[..2], [0x00, 0x3c]);
        assert_eq!(last[2..], (96..128).collect::<Vec<u8>>()[..]);
    }
}

#[test]
fn other_files_of_gguf_py_are_read_or_refused_by_name() {
    let e = gguf::open(&fixture("big_endian.gguf")).unwrap_err();
    assert_eq!(e.code(), Code::GgufByteOrder);

    let g = gguf::open(&fixture("alignment64.gguf")).unwrap();
    assert_eq!(g.alignment, 64);
    assert_eq!(f32s(&g.tensors[1]), counting(4));

    let g = gguf::open(&fixture("vocabulary.gguf")).unwrap();
    assert!(g.tensors.is_empty());
    assert_eq!(g.metadata.str_array("tokenizer.ggml.tokens").unwrap().unwrap().nth(299), Some("token 299"));

    let g = gguf::open(&fixture("scalar_and_empty.gguf")).unwrap();
    let shapes: Vec<_> = g.tensors.iter().map(|t| &*t.shape).collect();
    assert_eq!(shapes, [&[][..], &[0, 4], &[2]]);
    assert_eq!(f32s(&g.tensors[0]), [3.5]);
    assert_eq!(f32s(&g.tensors[2]), counting(2));
}

#[test]
fn a_split_of_gguf_py_is_one_model() {
    let g = gguf::open(&fixture("split-00002-of-00003.gguf")).unwrap();
    assert_eq!(g.files.len(), 3);
    assert_eq!(g.metadata.str("general.architecture").unwrap(), Some("llama"));
    for (i, t) in g.tensors.iter().enumerate() {
        assert_eq!((&*t.name, f32s(t)), (&*format!("t{i}"), counting(i + 1)));
    }
    assert_eq!(g.tensors.len(), 5);
}

#[test]
fn safetensors_of_python_are_read() {
    let s = safetensors::open(&fixture("single.safetensors")).unwrap();
    assert_eq!(
        s.metadata.into_iter().collect::<Vec<_>>(),
        [("format", "np"), ("note", "ü\n")].map(|(k, v)| (k.into(), v.into()))
    );
    let by_name: BTreeMap<_, _> = s.tensors.iter().map(|t| (&*t.name, t)).collect();
    assert_eq!(by_name.len(), 9);
    let (scalar, empty) = (by_name["scalar"], by_name["empty"]);
    assert_eq!((f32s(scalar), &*scalar.shape), (vec![3.5], &[][..]));
    assert_eq!((&*empty.shape, empty.bytes.len()), (&[0, 4][..], 0));
    assert_eq!(f32s(by_name["f32"]), counting(4));
    assert_eq!(f32s(by_name["имя"]), counting(1));
    assert_eq!((by_name["f64"].dtype, &*by_name["f64"].shape), (DType::F64, &[2, 3][..]));
    assert_eq!(&*by_name["bool"].bytes, [1, 0]);

    let s = safetensors::open_index(&fixture("sharded.safetensors.index.json")).unwrap();
    let table: Vec<_> = s.tensors.iter().map(|t| (&*t.name, f32s(t))).collect();
    assert_eq!(table, [("a", counting(4)), ("b", counting(3)), ("c", counting(1))]);
}

/// As `.ci/run` and everybody who downloads the fixtures checks them.
#[test]
fn every_fixture_is_listed_with_its_digest() {
    use sha2::Digest;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let list = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let listed: std::collections::BTreeMap<&str, &str> =
        list.lines().map(|line| line.split_once("  ").unwrap()).map(|(digest, name)| (name, digest)).collect();
    let mut found = std::collections::BTreeMap::new();
    let mut open = vec![folder.clone()];
    while let Some(here) = open.pop() {
        for entry in std::fs::read_dir(here).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
            // What is fetched is too large to be kept; scripts say how the others were made.
            let is_other = ["fetched", "SHA256SUMS"].contains(&&*name) || name.contains("__pycache__");
            if path.is_dir() && !is_other {
                open.push(path);
            } else if !is_other && !name.ends_with(".py") && !name.ends_with(".sh") {
                let digest = sha2::Sha256::digest(std::fs::read(&path).unwrap());
                found.insert(name, digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
            }
        }
    }
    let found: std::collections::BTreeMap<&str, &str> = found.iter().map(|(n, d)| (&**n, &**d)).collect();
    assert_eq!(listed, found);
}
