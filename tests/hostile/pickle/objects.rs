//! What training codes put beside their tensors, as CPython pickles it in two protocols. `fixtures/pickle/objects.py` wrote the
//! files.

use std::path::PathBuf;

use ptplus::format::pickle::{self, Checkpoint};

use crate::pickle::assembler::{contents, elements};

fn fixtures(prefix: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/pickle/objects");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    files.sort();
    files
}

fn open(file: &std::path::Path) -> Checkpoint {
    pickle::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

#[test]
fn tensors_are_read_whatever_lies_beside_them() {
    let files = fixtures("beside-");
    assert_eq!(files.len(), 2 * 16, "16 files in two protocols");
    for file in files {
        let checkpoint = open(&file);
        let expected = [("model.layers.0.memory".to_owned(), "F32", vec![2, 3], elements())];
        assert_eq!(contents(&checkpoint), expected, "{}", file.display());
        assert!(checkpoint.objects().listed.iter().all(|o| o.tensors.is_empty()), "{}", file.display());
    }
}

#[test]
fn tensors_inside_of_objects_are_listed() {
    for file in fixtures("a-module") {
        let checkpoint = open(&file);
        assert_eq!(checkpoint.tensors().count(), 0);
        let [object] = &checkpoint.objects().listed[..] else { panic!("{:?}", checkpoint.objects()) };
        let prefix = if file.to_str().unwrap().contains("inside") { "model." } else { "" };
        assert_eq!(object.tensors, [format!("{prefix}parameters.prefix_memory")]);
        assert_eq!(
            object.class.rsplit('.').next(),
            Some(if object.class.contains("copyreg") { "_reconstructor" } else { "Module" })
        );
    }
    for file in fixtures("arrays") {
        let checkpoint = open(&file);
        let [object] = &checkpoint.objects().listed[..] else { panic!("{:?}", checkpoint.objects()) };
        assert!(object.is_numbers && object.name == "model.layers.0.memory", "{object:?}");
    }
    for file in fixtures("nothing-else") {
        assert_eq!(open(&file).objects().n, 1);
    }
}
