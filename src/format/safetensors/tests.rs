//! Reader and writer against each other, against the crate, and against every small damage. Crafted headers: `tests/hostile`.

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
    plan(metadata, tensors).unwrap().file_counting_up()
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

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let header =
        r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let s = read([&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 2]].concat());
    assert_eq!(s.unwrap().tensors.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
}

/// Miri takes a second for each file: there a sample has to do.
const STEP: usize = if cfg!(miri) { 37 } else { 1 };

#[test]
fn every_truncation_is_refused() {
    let (m, t) = sample();
    let bytes = file(&m, &t);
    assert!(read(bytes.clone()).is_ok());
    for len in (0..bytes.len()).step_by(STEP) {
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
    for i in (0..bytes.len()).step_by(STEP) {
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
    assert!(
        accepted > 300 / STEP / 2 && refused > 300 / STEP / 2,
        "{accepted} accepted, {refused} refused: the sample is too weak"
    );
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
