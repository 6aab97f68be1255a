//! Quantized and decoded bytes equal what ggml made of the same inputs (`fixtures/quant/README.md`).

use std::collections::BTreeMap;

use ptplus::quant;
use ptplus::tensor::DType;
use sha2::{Digest, Sha256};

use crate::quant_inputs::{KINDS, N, make};

type Quantize = fn(DType, &[f32], &mut [u8]);

/// (kind, type) to the digests of quantized and of decoded bytes.
fn goldens() -> BTreeMap<(&'static str, &'static str), (&'static str, &'static str)> {
    let text = include_str!("../../fixtures/quant/goldens.tsv");
    text.lines()
        .map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [kind, dtype, quantized, decoded] => ((kind, dtype), (quantized, decoded)),
            _ => panic!("four columns, found {line:?}"),
        })
        .collect()
}

fn types() -> impl Iterator<Item = DType> {
    quant::BLOCK_FORMATS.iter().copied().chain([DType::F16, DType::BF16])
}

fn quantized(dtype: DType, x: &[f32], quantize: Quantize) -> Vec<u8> {
    let mut bytes = vec![0xAA; x.len() / dtype.block_len() * dtype.block_bytes()];
    quantize(dtype, x, &mut bytes);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Rows of SmolLM2-135M's own tensors.
fn smollm2() -> Vec<f32> {
    let bytes = include_bytes!("../../fixtures/quant/smollm2.f32");
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}

#[test]
fn every_type_and_every_kind_of_row_has_the_bytes_of_ggml() {
    let goldens = goldens();
    let mut failures = Vec::new();
    let mut n_compared = 0;
    let inputs = KINDS.iter().map(|kind| (*kind, make(kind, N))).chain([("smollm2", smollm2())]);
    for (kind, x) in inputs {
        for dtype in types() {
            let (golden, golden_decoded) = goldens[&(kind, dtype.name())];
            for (name, quantize) in
                [("vectorised", quant::quantize_row as Quantize), ("scalar", quant::quantize_row_scalar)]
            {
                let bytes = quantized(dtype, &x, quantize);
                let mut decoded = vec![0f32; x.len()];
                quant::decode(dtype, &bytes, &mut decoded);
                // What a NaN looks like depends on the processor; that it is one does not.
                let decoded = decoded.iter().map(|x| if x.is_nan() { f32::NAN } else { *x });
                let decoded: Vec<u8> = decoded.flat_map(f32::to_le_bytes).collect();
                n_compared += 1;
                if sha256(&bytes) != golden {
                    failures.push(format!("{kind} {dtype} {name}: quantized"));
                } else if sha256(&decoded) != golden_decoded {
                    failures.push(format!("{kind} {dtype} {name}: decoded"));
                }
            }
        }
    }
    assert_eq!(n_compared, goldens.len() * 2, "every golden is compared");
    assert!(failures.is_empty(), "differs from ggml:\n{}", failures.join("\n"));
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let x = make("normal", 3 * 7 * 256 * 64);
    for dtype in types() {
        let expected = quantized(dtype, &x, quant::quantize_row);
        for n_threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            for n_per_row in [256, 7 * 256, x.len()] {
                let mut bytes = vec![0xAA; expected.len()];
                pool.install(|| quant::quantize_rows(dtype, &x, n_per_row, &mut bytes));
                assert!(bytes == expected, "{dtype}, {n_threads} threads, rows of {n_per_row}");
            }
        }
    }
}

#[test]
fn rows_of_every_length_in_blocks_are_quantized_to_the_end() {
    for dtype in types() {
        for n_blocks in 0..9 {
            let x = make("uniform", n_blocks * dtype.block_len());
            let whole = quantized(dtype, &x, quant::quantize_row);
            let blocks = x.chunks(dtype.block_len()).map(|x| quantized(dtype, x, quant::quantize_row));
            assert_eq!(whole, blocks.collect::<Vec<_>>().concat(), "{dtype}, {n_blocks} blocks");
        }
    }
}

#[test]
fn an_element_that_does_not_fit_is_found() {
    for dtype in types() {
        let x = make("normal", 8 * 256);
        assert_eq!(quant::first_unfit(dtype, &x), None, "{dtype}");
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::MAX] {
            let mut x = x.clone();
            (x[1500], x[1700]) = (bad, bad);
            assert_eq!(quant::first_unfit(dtype, &x), Some(1500), "{dtype} {bad}");
        }
    }
    // One step up from the largest that rounds down.
    for (dtype, largest) in
        [(DType::F16, 65519.996), (DType::BF16, f32::from_bits(0x7F7F_7FFF)), (DType::F32, f32::MAX)]
    {
        assert_eq!(quant::first_unfit(dtype, &[largest, -largest, -largest.next_up()]), Some(2), "{dtype}");
    }
}

#[test]
fn what_fits_and_has_finite_scales_is_never_far_from_what_it_was() {
    for dtype in types() {
        let (mut n_refused, mut n_checked) = (0, 0);
        for kind in KINDS {
            let input = make(kind, N);
            for magnitude in [1e-3, 1.0, 1e3, 1e6, 1e9, 1e12, 1e15] {
                for x in input.as_chunks::<256>().0 {
                    let x = x.map(|x| x * magnitude);
                    let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                    let bytes = quantized(dtype, &x, quant::quantize_row);
                    if quant::first_unfit(dtype, &x).is_some() || quant::validate_blocks(dtype, &bytes).is_some() {
                        n_refused += 1;
                        continue;
                    }
                    let mut decoded = [0f32; 256];
                    quant::decode(dtype, &bytes, &mut decoded);
                    let error = x.iter().zip(&decoded).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
                    // The coarsest type has steps of a third of the range; scales below the smallest F16 become 0.
                    assert!(error <= 0.5 * largest + 1e-4, "{dtype} {kind} * {magnitude}: {error} of {largest}");
                    n_checked += 1;
                }
            }
        }
        assert!(n_refused > 1000 && n_checked > 3000, "{dtype}: {n_refused} refused, {n_checked} checked");
    }
}

#[test]
#[should_panic(expected = "no whole blocks")]
fn a_partial_block_is_refused() {
    quant::quantize_row(DType::Q8_0, &[0.0; 33], &mut [0; 34]);
}

#[test]
#[should_panic(expected = "has no decoder")]
fn a_type_without_decoder_is_refused() {
    assert!(!quant::can_decode(DType::IQ4_NL));
    quant::decode(DType::IQ4_NL, &[0; 18], &mut [0.0; 32]);
}
