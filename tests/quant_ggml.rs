//! Quantizers, decoders, checks and the table of types against ggml itself.
//!
//! `PTPLUS_WRITE_GOLDENS=1 cargo test --features llama-cpp --test quant_ggml` writes what ggml makes of the inputs to
//! `fixtures/quant/goldens.tsv`.

use std::ffi::CStr;
use std::fmt::Write;

use llama_cpp_sys_2 as ggml;
use ptplus::quant;
use ptplus::tensor::DType;
use sha2::{Digest, Sha256};

mod quant_inputs;
use quant_inputs::{KINDS, N, Rng, make};

fn id(dtype: DType) -> ggml::ggml_type {
    dtype.ggml_id().expect("a type of ggml")
}

fn types() -> impl Iterator<Item = DType> {
    quant::BLOCK_FORMATS.iter().copied().chain([DType::F16, DType::BF16])
}

fn quantize_with_ggml(dtype: DType, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0x55; x.len() / dtype.block_len() * dtype.block_bytes()];
    let n_per_row = 256;
    let n_rows = (x.len() / n_per_row) as i64;
    assert_eq!(x.len() % n_per_row, 0);
    // SAFETY: `x` has all rows, and `bytes` the size of their blocks.
    let n = unsafe {
        let dst = bytes.as_mut_ptr().cast();
        ggml::ggml_quantize_chunk(id(dtype), x.as_ptr(), dst, 0, n_rows, n_per_row as i64, std::ptr::null())
    };
    assert_eq!(n, bytes.len());
    bytes
}

fn decode_with_ggml(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut x = vec![0f32; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    // SAFETY: the traits are static; `bytes` and `x` have the same number of blocks.
    unsafe {
        let to_float = (*ggml::ggml_get_type_traits(id(dtype))).to_float.expect("a decoder");
        to_float(bytes.as_ptr().cast(), x.as_mut_ptr(), x.len() as i64);
    }
    x
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn smollm2() -> Vec<f32> {
    let bytes = include_bytes!("../fixtures/quant/smollm2.f32");
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}

#[test]
fn the_table_of_types_is_ggml_s() {
    for number in 0..ggml::GGML_TYPE_COUNT {
        // SAFETY: the number is below the count of types.
        let (len, bytes, name) = unsafe {
            let name = CStr::from_ptr(ggml::ggml_type_name(number));
            (ggml::ggml_blck_size(number), ggml::ggml_type_size(number), name.to_str().unwrap())
        };
        match DType::from_ggml_id(number) {
            Some(dtype) => {
                assert_eq!((dtype.block_len() as i64, dtype.block_bytes()), (len, bytes), "{dtype}");
                assert_eq!(dtype.name(), name.to_uppercase());
            }
            None => assert_eq!(bytes, 0, "{number} {name} is missing"),
        }
    }
    assert!(DType::ALL.iter().filter_map(|d| d.ggml_id()).all(|number| number < ggml::GGML_TYPE_COUNT));
}

#[test]
fn every_type_and_every_kind_of_row_is_quantized_and_decoded_as_ggml_does() {
    let mut goldens = String::new();
    let mut failures = Vec::new();
    let inputs = KINDS.iter().map(|kind| (*kind, make(kind, N))).chain([("smollm2", smollm2())]);
    for (kind, x) in inputs {
        for dtype in types() {
            let expected = quantize_with_ggml(dtype, &x);
            for (name, quantize) in [
                ("vectorised", quant::quantize_row as fn(DType, &[f32], &mut [u8])),
                ("scalar", quant::quantize_row_scalar),
            ] {
                let mut bytes = vec![0xAA; expected.len()];
                quantize(dtype, &x, &mut bytes);
                if bytes != expected {
                    failures.push(format!("{kind} {dtype} {name}: quantized"));
                }
            }
            let expected_decoded = decode_with_ggml(dtype, &expected);
            let mut decoded = vec![0f32; x.len()];
            quant::decode(dtype, &expected, &mut decoded);
            if decoded.iter().zip(&expected_decoded).any(|(a, b)| a.to_bits() != b.to_bits()) {
                failures.push(format!("{kind} {dtype}: decoded"));
            }
            // What a NaN looks like depends on the processor; that it is one does not.
            let decoded = expected_decoded.iter().map(|x| if x.is_nan() { f32::NAN } else { *x });
            let decoded: Vec<u8> = decoded.flat_map(f32::to_le_bytes).collect();
            writeln!(goldens, "{kind}\t{dtype}\t{}\t{}", sha256(&expected), sha256(&decoded)).unwrap();
        }
    }
    assert!(failures.is_empty(), "differs from ggml:\n{}", failures.join("\n"));
    if std::env::var_os("PTPLUS_WRITE_GOLDENS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quant/goldens.tsv"), &goldens).unwrap();
    } else {
        assert_eq!(goldens, include_str!("../fixtures/quant/goldens.tsv"), "the goldens are ggml's");
    }
}

#[test]
fn every_f16_and_bf16_and_random_blocks_with_any_scale_are_decoded_as_ggml_does() {
    let rng = &mut Rng(1);
    for dtype in types() {
        let bytes: Vec<u8> = if dtype.is_quantized() {
            (0..4000 * dtype.block_bytes()).map(|_| rng.next() as u8).collect()
        } else {
            (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
        };
        let expected = decode_with_ggml(dtype, &bytes);
        let mut decoded = vec![0f32; expected.len()];
        quant::decode(dtype, &bytes, &mut decoded);
        for (i, (a, b)) in decoded.iter().zip(&expected).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{dtype} element {i}: {a} and {b}");
        }
    }
}

#[test]
fn any_bits_at_all_become_the_f16_and_bf16_that_ggml_makes_of_them() {
    let rng = &mut Rng(2);
    let x: Vec<f32> = (0..1 << 20).map(|_| f32::from_bits(rng.next() as u32)).collect();
    assert!(x.iter().any(|x| x.is_nan()));
    for dtype in [DType::F16, DType::BF16] {
        let expected = quantize_with_ggml(dtype, &x);
        let mut bytes = vec![0; expected.len()];
        quant::quantize_row(dtype, &x, &mut bytes);
        assert!(bytes == expected, "{dtype}");
    }
}

#[test]
fn blocks_are_refused_exactly_where_ggml_refuses_them() {
    let rng = &mut Rng(3);
    // Q8_1 is an intermediate type that ggml does not validate at all.
    for dtype in DType::ALL.iter().copied().filter(|d| d.ggml_id().is_some() && *d != DType::Q8_1) {
        let size = dtype.block_bytes();
        let mut n_bad = 0;
        for _ in 0..3000 {
            // Bytes that often make an exponent of ones.
            let block: Vec<u8> = (0..size).map(|_| [rng.next() as u8, 0xFF, 0x7C][(rng.next() % 3) as usize]).collect();
            // SAFETY: `block` is one block of the type.
            let good = unsafe { ggml::ggml_validate_row_data(id(dtype), block.as_ptr().cast(), size) };
            assert_eq!(quant::validate_blocks(dtype, &block), (!good).then_some(0), "{dtype} {block:?}");
            n_bad += u32::from(!good);
        }
        let has_scales = !matches!(dtype, DType::NVFP4 | DType::I8 | DType::I16 | DType::I32 | DType::I64);
        assert_eq!(n_bad > 0, has_scales, "{dtype}");
    }
}

/// A whole model, where there is one: `PTPLUS_BASE_GGUF=path`.
#[test]
fn the_tensors_of_a_base_model_are_quantized_and_decoded_as_ggml_does() {
    let Ok(path) = std::env::var("PTPLUS_BASE_GGUF") else { return };
    let path = std::ffi::CString::new(path).unwrap();
    let mut context = std::ptr::null_mut();
    // SAFETY: the path ends in NUL; ggml owns what it returns, and the test keeps it until its end.
    let gguf = unsafe {
        ggml::gguf_init_from_file(path.as_ptr(), ggml::gguf_init_params { no_alloc: false, ctx: &mut context })
    };
    assert!(!gguf.is_null());
    let mut n_compared = 0;
    // SAFETY: as above.
    for i in 0..unsafe { ggml::gguf_get_n_tensors(gguf) } {
        // SAFETY: `i` is below the number of tensors, and each has its data loaded.
        let (name, number, stored) = unsafe {
            let name = ggml::gguf_get_tensor_name(gguf, i);
            let tensor = ggml::ggml_get_tensor(context, name);
            let stored = std::slice::from_raw_parts((*tensor).data as *const u8, ggml::ggml_nbytes(tensor));
            (CStr::from_ptr(name).to_str().unwrap(), (*tensor).type_, stored)
        };
        let dtype = DType::from_ggml_id(number).unwrap();
        assert_eq!(quant::validate_blocks(dtype, stored), None, "{name}");
        let mut x = vec![0f32; stored.len() / dtype.block_bytes() * dtype.block_len()];
        quant::decode(dtype, stored, &mut x);
        if dtype != DType::F32 {
            assert!(x == decode_with_ggml(dtype, stored), "{name}");
        }
        if !x.len().is_multiple_of(256) {
            continue; // norms
        }
        for to in types() {
            let mut bytes = vec![0; x.len() / to.block_len() * to.block_bytes()];
            quant::quantize_rows(to, &x, 256, &mut bytes);
            assert!(bytes == quantize_with_ggml(to, &x), "{name} to {to}");
            n_compared += x.len();
        }
    }
    assert!(n_compared > 0, "no tensor was compared");
}
