//! Our GGUF files, read by a reader that shares no code with ours.

use std::path::Path;

use ptplus::format::gguf::{self, Array, Metadata, Value};
use ptplus::format::{FilePlan, OutputFile, Overwrite, TensorSpec};
use ptplus::tensor::DType;

/// Writes a planned file; the bytes of tensor i are all i + 1.
fn write(plan: &FilePlan, path: &Path) {
    let out = OutputFile::create(path, Overwrite::Never, &[]).unwrap();
    out.set_len(plan.len_bytes).unwrap();
    out.write_all_at(0, &plan.header).unwrap();
    for (i, t) in plan.tensors.iter().enumerate() {
        out.write_all_at(t.file_offset, &vec![i as u8 + 1; t.len_bytes as usize]).unwrap();
    }
    out.commit().unwrap();
}

#[test]
fn our_gguf_is_read_by_gguf_rs() {
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("general.alignment", 64u32);
    m.insert("n.u32", 7u32);
    m.insert("n.i64", Value::I64(-7));
    m.insert("n.f32", 0.5f32);
    m.insert("n.bool", true);
    m.insert("a.u32", Array::from_u32(&[1, 2, 3]));
    m.insert("a.str", Array::from_strs(&["x", "ü"]));
    // The types whose sizes gguf-rs knows.
    let types = [DType::F32, DType::F16, DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q2_K, DType::Q4_K, DType::Q6_K];
    let specs: Vec<_> = types
        .iter()
        .map(|&dtype| TensorSpec { name: format!("t.{dtype}"), dtype, shape: vec![3, 2, dtype.block_len()] })
        .collect();
    let plan = gguf::plan(&m, &specs).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours.gguf");
    write(&plan, &path);

    let model = gguf_rs::get_gguf_container(path.to_str().unwrap()).unwrap().decode().unwrap();
    assert_eq!((model.num_kv(), model.num_tensor(), model.alignment()), (8, 8, 64));
    assert_eq!(model.metadata()["n.i64"], -7);
    assert_eq!(model.metadata()["n.bool"], true);
    assert_eq!(model.metadata()["a.u32"][2], 3);
    assert_eq!(model.metadata()["a.str"][1], "ü");
    for (theirs, ours) in model.tensors().iter().zip(&plan.tensors) {
        assert_eq!(theirs.name, ours.name);
        assert_eq!(theirs.kind, ours.dtype.ggml_id().unwrap());
        assert_eq!(theirs.shape, ours.shape.iter().rev().map(|d| *d as u64).collect::<Vec<_>>());
        assert_eq!(model.data_offset() + theirs.offset, ours.file_offset);
        assert_eq!(theirs.size, ours.len_bytes, "{}", ours.name);
    }
    let again = gguf::open(&path).unwrap();
    assert_eq!(again.metadata, m);
    for (i, t) in again.tensors.iter().enumerate() {
        assert!(t.bytes.iter().all(|b| *b == i as u8 + 1), "{}", t.name);
    }
}
