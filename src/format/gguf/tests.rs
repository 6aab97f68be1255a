//! Reader and writer against each other, and against every small damage. Crafted files: `tests/hostile`.

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
    plan(metadata, tensors).unwrap().file_counting_up()
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

#[test]
fn dimensions_are_reversed() {
    let g = read(file(&Metadata::new(), &[spec("a", DType::I8, &[2, 3])])).unwrap();
    assert_eq!((&*g.tensors[0].shape, &*g.tensors[0].bytes), (&[2, 3][..], &[1, 2, 3, 4, 5, 6][..]));
    let text = file(&Metadata::new(), &[spec("a", DType::I8, &[2, 3])]);
    let ne = text.windows(16).any(|w| w == [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(ne, "the file lists the innermost first");
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    assert_eq!(open(Path::new("/nonexistent/x.gguf")).unwrap_err().code(), Code::NotFound);
}

/// Miri takes a second for each file: there a sample has to do.
const STEP: usize = if cfg!(miri) { 37 } else { 1 };

#[test]
fn every_truncation_is_refused() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    let unpadded = bytes.len() - 25; // the last tensor has 7 of 32 bytes
    for len in (0..bytes.len()).step_by(STEP) {
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
    for i in (0..bytes.len()).step_by(STEP) {
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
    assert!(
        accepted > 500 / STEP / 2 && refused > 500 / STEP / 2,
        "{accepted} accepted, {refused} refused: the sample is too weak"
    );
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
