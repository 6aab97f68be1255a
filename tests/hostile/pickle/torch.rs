//! What PyTorch wrote is read as PyTorch reads it: files of two versions, both containers, four protocols.
//! `fixtures/pickle/make.py` wrote the files, and beside each its tensors as safetensors.

use std::path::{Path, PathBuf};

use ptplus::format::pickle::{self, Checkpoint, Container, dotted};

/// Name, type, shape and row-major bytes.
type Tensor = (String, String, Vec<usize>, Vec<u8>);

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pickle");
    let mut files = Vec::new();
    for folder in ["torch-2.4.1", "torch-2.15.0"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            files.push(entry.unwrap().path());
        }
    }
    files.retain(|p| p.extension().is_some_and(|e| e == "pt"));
    files.sort();
    files
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pickle").join(name)
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    let read = |(path, t): (Vec<pickle::Key<'_>>, &pickle::TensorRef)| {
        let lazy = t.lazy().unwrap();
        (dotted(&path), t.dtype().name().to_owned(), t.shape.clone(), lazy.to_bytes())
    };
    checkpoint.tensors().map(read).collect()
}

/// The tensors in the order in which PyTorch came to them.
fn expected(file: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(format!("{}.expected.safetensors", file.display())).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let order = &header.metadata().as_ref().unwrap()["order"];
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names: Vec<String> = serde_json::from_str(order).unwrap();
    let read = |name: String| {
        let t = parsed.tensor(&name).unwrap();
        let (dtype, shape, data) = (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec());
        (name, dtype, shape, data)
    };
    names.into_iter().map(read).collect()
}

#[test]
fn tensors_are_those_that_pytorch_saved() {
    let files = fixtures();
    assert_eq!(files.len(), 31, "13 files of each of two versions, five more of the newer");
    for file in files {
        let checkpoint = pickle::open(&file).unwrap();
        let legacy = file.file_name().unwrap().to_str().unwrap().contains("legacy");
        let container = if legacy { Container::Legacy } else { Container::Zip };
        assert_eq!(checkpoint.container(), container, "{}", file.display());
        let (found, expected) = (tensors(&checkpoint), expected(&file));
        assert!(!expected.is_empty());
        assert_eq!(found.len(), expected.len(), "{}", file.display());
        for (f, e) in found.iter().zip(&expected) {
            assert!(f == e, "{}: found {:?} {} {:?}, expected {:?}", file.display(), f.0, f.1, f.2, e.0);
        }
    }
}

#[test]
fn plain_values_are_those_that_pytorch_saved() {
    for version in ["torch-2.4.1", "torch-2.15.0"] {
        let checkpoint = pickle::open(&fixture(version).join("training.pt")).unwrap();
        let root = checkpoint.root();
        let get = |key: &str| root.get(key).unwrap_or_else(|| panic!("{key}"));
        assert_eq!(get("epoch").as_i64(), Some(3));
        assert_eq!(get("loss").as_f64(), Some(0.125));
        assert!(get("best").is_none());
        assert_eq!((get("seed").kind(), get("seed").as_i64()), ("int", None), "2**63 + 5 does not fit");
        let args = get("args");
        assert_eq!(args.get("lr").and_then(|v| v.as_f64()), Some(1e-3));
        assert_eq!(args.get("name").and_then(|v| v.as_str()), Some("πrät"));
        assert_eq!(args.get("layers").unwrap().items().filter_map(|v| v.as_i64()).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(args.get("fused").and_then(|v| v.as_bool()), Some(false));
        assert_eq!(args.get("negative").and_then(|v| v.as_i64()), Some(-5));
        assert_eq!(get("dtype").as_str(), Some("torch.bfloat16"));
        assert_eq!(get("device").as_str(), Some("cuda:1"));
        assert_eq!(get("shape").kind(), "tuple");
        assert_eq!(get("tags").items().map(|v| v.as_str().unwrap()).collect::<Vec<_>>(), ["one"]);
        assert_eq!(get("raw").as_bytes(), Some(&[0, 255][..]));
        assert_eq!(get("model_state_dict").kind(), "dict");
        let names: Vec<_> = get("model_state_dict").tensors().map(|(path, _)| dotted(&path)).collect();
        assert_eq!(names, ["a.memory", "a.seen", "b.weight", "b.bias"]);
        let groups = get("optimizer").get("param_groups").unwrap();
        assert_eq!(groups.items().next().unwrap().get("lr").and_then(|v| v.as_f64()), Some(1e-3));
    }
}

#[test]
fn views_of_one_storage_share_it() {
    let checkpoint = pickle::open(&fixture("torch-2.4.1/views.pt")).unwrap();
    let get = |key: &str| checkpoint.root().get(key).unwrap().as_tensor().unwrap();
    for name in ["sliced", "transposed", "stepped", "columns", "zero-at-the-end"] {
        assert_eq!(get(name).storage_key(), get("whole").storage_key(), "{name}");
    }
    assert_ne!(get("scalar").storage_key(), get("whole").storage_key());
    assert_eq!(get("sliced").file_offset(), get("whole").file_offset() + 7 * 4);
    assert_eq!(get("transposed").strides, [1, 5, 20]);
    assert_eq!(get("expanded").strides, [1, 0]);
}
