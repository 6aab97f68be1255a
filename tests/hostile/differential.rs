//! The real ggml on damaged GGUF files: what we accept it accepts too, with the same table of keys and tensors. The same
//! for the safetensors crate is part of `fuzz/entry.rs`.
//!
//! ```sh
//! PTPLUS_DIFFERENTIAL=100000 cargo test --no-default-features --features llama-cpp-dynamic --test hostile differential -- --nocapture
//! ```

use std::ffi::{CStr, CString};
use std::path::Path;

use llama_cpp_sys_2 as ggml;
use ptplus::format::gguf::{self, Gguf};

use crate::damage::Mutator;
use crate::seeds;

/// Name, ggml type, `ne` padded with 1 to four, place in the file, bytes.
type Row = (String, u32, [i64; 4], u64, u64);

/// Number of keys and every tensor, as ggml reads them; `None` where it refuses the file.
fn table_of_ggml(path: &Path) -> Option<(i64, Vec<String>, Vec<Row>)> {
    let path = CString::new(path.to_str()?).ok()?;
    let mut tensors: *mut ggml::ggml_context = std::ptr::null_mut();
    // SAFETY: the path ends in NUL; `tensors` receives a context of tensors without data, freed below.
    let file = unsafe {
        ggml::gguf_init_from_file(path.as_ptr(), ggml::gguf_init_params { no_alloc: true, ctx: &mut tensors })
    };
    if file.is_null() {
        return None;
    }
    // SAFETY: both contexts are valid until they are freed; indices are below the counts; names end in NUL.
    unsafe {
        let text = |p: *const std::ffi::c_char| CStr::from_ptr(p).to_string_lossy().into_owned();
        let keys = (0..ggml::gguf_get_n_kv(file)).map(|i| text(ggml::gguf_get_key(file, i))).collect();
        let data = ggml::gguf_get_data_offset(file) as u64;
        let row = |i| {
            let name = ggml::gguf_get_tensor_name(file, i);
            let t = ggml::ggml_get_tensor(tensors, name);
            let place = data + ggml::gguf_get_tensor_offset(file, i) as u64;
            (text(name), (*t).type_, (*t).ne, place, ggml::ggml_nbytes(t) as u64)
        };
        let rows = (0..ggml::gguf_get_n_tensors(file)).map(row).collect();
        let n_keys = ggml::gguf_get_n_kv(file);
        ggml::gguf_free(file);
        ggml::ggml_free(tensors);
        Some((n_keys, keys, rows))
    }
}

fn our_table(g: &Gguf) -> (i64, Vec<String>, Vec<Row>) {
    let rows = g.tensors.iter().map(|t| {
        let mut ne = [1; 4];
        t.shape.iter().rev().zip(&mut ne).for_each(|(d, ne)| *ne = *d as i64);
        (t.name.clone(), t.dtype.ggml_id().expect("a type of ggml"), ne, t.file_offset, t.bytes.len() as u64)
    });
    (g.metadata.len() as i64, g.metadata.iter().map(|(k, _)| k.to_owned()).collect(), rows.collect())
}

#[test]
fn what_is_accepted_ggml_accepts_with_the_same_table() {
    let n_files: u64 = std::env::var("PTPLUS_DIFFERENTIAL").map_or(3000, |n| n.parse().expect("a number"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let corpus = seeds::of("gguf");
    let mut mutator = Mutator::new(7);
    let (mut n_accepted, mut differences) = (0, Vec::new());
    for i in 0..n_files + corpus.len() as u64 {
        let file = match corpus.get(i as usize) {
            Some(seed) => seed.clone(),
            None => mutator.damaged(&corpus),
        };
        let Ok(ours) = gguf::parse(&path, &file.clone().into()) else { continue };
        n_accepted += 1;
        std::fs::write(&path, &file).unwrap();
        match table_of_ggml(&path) {
            Some(theirs) if theirs == our_table(&ours) => {}
            theirs => differences.push(format!("file {i}: {:?} against {theirs:?}", our_table(&ours))),
        }
    }
    println!("{n_files} files, {n_accepted} accepted, {} differences", differences.len());
    assert!(n_accepted as u64 > n_files / 50, "the files are too broken to show anything");
    assert!(differences.is_empty(), "{} differences, first: {}", differences.len(), differences[0]);
}
