//! Activations in 8 bits: near what F32 gives, by the same rounding for one position and for many.

use ptplus::base::BaseModel;
use ptplus::format::{TensorSpec, gguf};
use ptplus::quant;
use ptplus::runner::{Device, Lane, Logits, Model, StreamOptions, stream};
use ptplus::tensor::DType;

use super::common::{Collect, max_difference};
use super::storage::write;
use crate::common::{base_gguf, model, ptplus, stderr};

/// The base of a fixture with its matrices in `dtype`, where rows are whole blocks.
fn quantized(name: &str, dtype: DType, folder: &std::path::Path) -> BaseModel {
    let source = gguf::open(&base_gguf(name)).unwrap();
    let mut n_quantized = 0;
    let tensors: Vec<_> = (source.tensors.iter())
        .map(|t| {
            let mut spec = TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
            let row_len = *t.shape.last().unwrap();
            if t.shape.len() < 2 || !row_len.is_multiple_of(dtype.block_len()) {
                return (spec, t.bytes.to_vec());
            }
            spec.dtype = dtype;
            n_quantized += 1;
            assert_eq!(t.dtype, DType::F32);
            let values: Vec<f32> = t.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let mut blocks = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
            match dtype {
                DType::F16 | DType::BF16 => quant::quantize_row(dtype, &values, &mut blocks),
                _ => quant::quantize_rows(dtype, &values, row_len, &mut blocks),
            }
            (spec, blocks)
        })
        .collect();
    assert!(n_quantized > 7, "{dtype}: {n_quantized} matrices");
    let file = folder.join(format!("{dtype}.gguf"));
    write(&source.metadata, &tensors, &file);
    BaseModel::open(&file).unwrap()
}

fn logits(base: &BaseModel, ids: &[u32], device: Device) -> Vec<f32> {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device };
    stream(base, &[ids.to_vec()], &[Lane::default()], &options, &mut sink).unwrap();
    sink.logits.remove(0)
}

#[test]
fn eight_bits_are_near_f32_in_every_way_of_multiplying() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..21).map(|i| (i * 37 + 5) % 160).collect();
    // Largest difference as a share of the largest logit: activations lose up to 0.4 %, each time that they are rounded.
    for (dtype, least, most) in [
        (DType::Q8_0, 1e-5, 0.08),
        (DType::Q5_0, 1e-5, 0.08),
        (DType::Q4_1, 1e-5, 0.08),
        (DType::F16, 0.0, 1e-5),
        (DType::BF16, 0.0, 1e-5),
    ] {
        let base = quantized("llama-gqa", dtype, folder.path());
        let exact = logits(&base, &ids, Device::cpu());
        let size = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
        let check = |what: &str, found: &[f32]| {
            let share = max_difference(&exact, found) / f64::from(size);
            println!("{dtype} {what}: {share:.1e}");
            assert!((least..=most).contains(&share), "{dtype} {what}: {share:.1e}");
        };
        check("all at once", &logits(&base, &ids, Device::cpu_int8()));
        let model = Model::load(&base, &Device::cpu_int8()).unwrap();
        let mut cache = model.new_cache(ids.len());
        let one_by_one: Vec<f32> =
            ids.iter().flat_map(|id| model.forward(&mut cache, &[vec![*id]], Logits::All).unwrap()).collect();
        check("one by one", &one_by_one);
    }
}

#[test]
fn verify_says_that_eight_bits_are_no_proof() {
    let folder = tempfile::tempdir().unwrap();
    quantized("llama-gqa", DType::Q8_0, folder.path());
    let m = model("llama-gqa");
    let verify = |device: &str| {
        let (base, against) = (folder.path().join("Q8_0.gguf"), m.join("adapter"));
        let args = ["verify", "--device", device, "--against"].map(Into::into).into_iter();
        ptplus(args.chain([against.clone(), "--base".into(), base, m.join("adapter")]))
    };
    const NOTE: &str = "cpu-int8 rounds activations to 8 bits";
    assert!(stderr(&verify("cpu-int8")).contains(NOTE));
    assert!(!stderr(&verify("cpu")).contains(NOTE));
}
