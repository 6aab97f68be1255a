//! What is valid is accepted: files that the reference writers wrote (`fixtures/*/make.py` says with what).

use std::path::{Path, PathBuf};

use ptplus::error::{Code, ErrorKind};
use ptplus::format::{gguf, pickle, safetensors};

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let mut all: Vec<PathBuf> = std::fs::read_dir(&dir).expect("fixtures").map(|e| e.expect("a file").path()).collect();
    all.retain(|p| p.to_string_lossy().ends_with(ending));
    all.sort();
    assert!(!all.is_empty(), "{folder}");
    all
}

/// gguf-py: every type of value, alignment 64, version 2, scalars, zero-size tensors, a vocabulary, parts of a model.
#[test]
fn files_of_gguf_py_are_accepted_but_for_the_big_endian_one() {
    for path in files("formats", ".gguf") {
        let found = gguf::open(&path);
        if path.ends_with("big_endian.gguf") {
            let e = found.unwrap_err();
            assert_eq!((e.code(), e.kind()), (Code::GgufByteOrder, ErrorKind::Unsupported));
        } else {
            found.unwrap();
        }
    }
}

/// The safetensors package of Python and PyTorch's `torch.save`, 2.4 and 2.15, archives and legacy files.
#[test]
fn files_of_python_are_accepted() {
    for folder in ["formats", "pickle/torch-2.4.1", "pickle/torch-2.15.0"] {
        files(folder, ".safetensors").iter().for_each(|p| drop(safetensors::open(p).unwrap()));
    }
    for folder in ["pickle/torch-2.4.1", "pickle/torch-2.15.0"] {
        for path in files(folder, ".pt") {
            let checkpoint = pickle::open(&path).unwrap();
            assert!(checkpoint.tensors().all(|(_, t)| t.lazy().is_ok()), "{}", path.display());
        }
    }
}
