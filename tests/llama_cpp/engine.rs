//! llama.cpp as an engine of text generation.

use ptplus::base::BaseModel;
use ptplus::error::Code;
use ptplus::generate::Engine;
use ptplus::llama_cpp::engine::LlamaCpp;
use ptplus::pipeline::read_adapter;

use crate::common::{base_as, base_gguf, model};
use crate::contexts::ids;

fn open(name: &str, n_positions: usize) -> LlamaCpp {
    let base = BaseModel::open(&base_gguf(name)).unwrap();
    let adapter = read_adapter(&model(name).join("adapter"), Some(&base)).unwrap();
    LlamaCpp::open(&base, &[&adapter], n_positions, 2).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn a_sequence_may_come_in_any_parts_and_adapters_are_switched() {
    let mut engine = open("qwen2", 1200);
    let ids = ids(8, 1100, engine.vocab_size());
    let whole = engine.append(&ids).unwrap();
    assert_eq!(whole.len(), engine.vocab_size());
    engine.clear().unwrap();
    engine.append(&ids[..700]).unwrap();
    engine.append(&ids[700..1099]).unwrap();
    let parts = engine.append(&ids[1099..]).unwrap();
    // The cache is F16: other parts, other rounding.
    assert!(distance(&whole, &parts) < 0.05, "{}", distance(&whole, &parts));

    engine.switch_adapters(&[(0, 1.0)]).unwrap();
    let on = engine.append(&ids[..50]).unwrap();
    engine.switch_adapters(&[]).unwrap();
    let off = engine.append(&ids[..50]).unwrap();
    engine.switch_adapters(&[(0, 0.5), (0, 0.5)]).unwrap();
    assert_eq!(engine.append(&ids[..50]).unwrap(), on);
    assert!(distance(&on, &off) > 0.5, "{}", distance(&on, &off));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut engine = open("qwen2", 16);
    let ids = ids(9, 17, engine.vocab_size());
    assert_eq!(engine.append(&ids).unwrap_err().code(), Code::Usage);
    assert_eq!(engine.append(&[]).unwrap_err().code(), Code::Usage);
    assert_eq!(engine.append(&[u32::MAX]).unwrap_err().code(), Code::Usage);
    assert_eq!(engine.switch_adapters(&[(1, 1.0)]).unwrap_err().code(), Code::Usage);
    assert!(engine.switch_adapters(&[(0, f32::NAN)]).is_err());
}

#[test]
fn a_hugging_face_folder_computes_what_its_gguf_file_does() {
    let logits = |base: &str| {
        let base = BaseModel::open(&base_as(base, "qwen2")).unwrap();
        LlamaCpp::open(&base, &[], 16, 1).unwrap().append(&[1, 2, 3]).unwrap()
    };
    assert_eq!(logits("base"), logits("base.gguf"));
}
