//! Probes: one safetensors file whose tensors must fit each other.

use ptplus::error::{Code, Result};
use ptplus::format::limits::PROBE_TOKENS;
use ptplus::verify::probe::Probe;

use crate::case::{self, Case, accepted, large, refused};
use crate::safetensors;

pub fn read(file: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("probe.safetensors");
    std::fs::write(&path, file).expect("a file");
    let probe = Probe::open(&path)?;
    for (b, ids) in probe.input_ids.iter().enumerate() {
        assert!(ids.iter().all(|&id| (id as usize) < probe.vocab_size));
        for p in 0..probe.positions.len() {
            assert_eq!(probe.logits(b, p).len(), probe.vocab_size);
        }
    }
    Ok(())
}

/// Name, type, shape, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn f32s(name: &str, shape: &[usize], value: f32) -> Tensor {
    let n: usize = shape.iter().product();
    (name.into(), "F32", shape.to_vec(), value.to_le_bytes().repeat(n))
}

fn i64s(name: &str, shape: &[usize], values: &[i64]) -> Tensor {
    (name.into(), "I64", shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Two rows of three tokens, a vocabulary of 4, logits everywhere.
fn right() -> Vec<Tensor> {
    vec![
        i64s("input_ids", &[2, 3], &[0, 1, 2, 3, 0, 1]),
        f32s("logits", &[2, 3, 4], 0.5),
        f32s("base_logits", &[2, 3, 4], 0.25),
        f32s("q.0", &[2, 1, 3, 2], 1.0),
        f32s("term.0", &[2, 1, 3, 2], 1.0),
    ]
}

fn file(tensors: Vec<Tensor>) -> Vec<u8> {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{}]}}",
            data.len()
        ));
    }
    let mut out = safetensors::file(&format!("{{{}}}", entries.join(",")), 0);
    out.extend(data);
    out
}

/// The right probe with a tensor in place of that of its name.
fn with(tensor: Tensor) -> Vec<u8> {
    let mut all = right();
    all.retain(|(name, ..)| *name != tensor.0);
    all.push(tensor);
    file(all)
}

/// A row for each token, and a vocabulary of 1.
fn tokens(n: usize) -> Vec<u8> {
    file(vec![i64s("input_ids", &[n, 1], &vec![0; n]), f32s("logits", &[n, 1, 1], 0.5)])
}

fn without(name: &str) -> Vec<u8> {
    file(right().into_iter().filter(|(n, ..)| n != name).collect())
}

pub fn cases() -> Vec<Case> {
    use Code::*;
    let ids = |values: [i64; 6]| with(i64s("input_ids", &[2, 3], &values));
    let positions = |p: &[i64], n: usize| {
        let mut all = right();
        all.retain(|(name, ..)| !name.ends_with("logits"));
        all.extend([i64s("positions", &[p.len()], p), f32s("logits", &[2, n, 4], 0.5)]);
        file(all)
    };
    let mut cases = vec![
        accepted("a right probe", file(right())),
        accepted("no base logits", without("base_logits")),
        accepted("unknown tensors", with(f32s("note", &[1], f32::NAN))),
        accepted("a mask of ones", with(i64s("attention_mask", &[2, 3], &[1; 6]))),
        accepted("a mask as BOOL", with(("attention_mask".into(), "BOOL", vec![2, 3], vec![1; 6]))),
        accepted("position ids from 0", with(i64s("position_ids", &[1, 3], &[0, 1, 2]))),
        refused("a padded row", with(i64s("attention_mask", &[2, 3], &[1, 1, 1, 0, 1, 1])), ProbeInvalid),
        refused("a mask of another batch", with(i64s("attention_mask", &[3, 3], &[1; 9])), ProbeInvalid),
        refused("a mask of one element", with(i64s("attention_mask", &[1], &[1])), ProbeInvalid),
        refused("a mask as F32", with(f32s("attention_mask", &[2, 3], 1.0)), ProbeInvalid),
        refused("position ids from 5", with(i64s("position_ids", &[3], &[5, 6, 7])), ProbeInvalid),
        refused(
            "position ids of the second row",
            with(i64s("position_ids", &[2, 3], &[0, 1, 2, 1, 2, 3])),
            ProbeInvalid,
        ),
        large("most tokens", || tokens(PROBE_TOKENS), None),
        large("a token too many", || tokens(PROBE_TOKENS + 1), Some(ProbeInvalid)),
        accepted("two positions", positions(&[0, 2], 2)),
        accepted("one position", positions(&[1], 1)),
        refused("no byte", b"", SafetensorsHeader),
        refused("a GGUF", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", SafetensorsHeader),
        refused("no input_ids", without("input_ids"), ProbeInvalid),
        refused("no logits", without("logits"), ProbeInvalid),
        refused("no tensors", file(vec![]), ProbeInvalid),
        refused("input_ids as F32", with(f32s("input_ids", &[2, 3], 0.0)), ProbeInvalid),
        refused("input_ids as I32", with(("input_ids".into(), "I32", vec![2, 3], vec![0; 24])), ProbeInvalid),
        refused("input_ids of one axis", with(i64s("input_ids", &[6], &[0; 6])), ProbeInvalid),
        refused("input_ids of three axes", with(i64s("input_ids", &[2, 3, 1], &[0; 6])), ProbeInvalid),
        refused("no rows", with(i64s("input_ids", &[0, 3], &[])), ProbeInvalid),
        refused("no tokens", with(i64s("input_ids", &[2, 0], &[])), ProbeInvalid),
        refused("no rows of 2^40 tokens", with(i64s("input_ids", &[0, 1 << 40], &[])), ProbeInvalid),
        refused("an id at the vocabulary's size", ids([0, 0, 0, 0, 0, 4]), ProbeInvalid),
        refused("an id of -1", ids([-1, 0, 0, 0, 0, 0]), ProbeInvalid),
        refused("an id of 2^32", ids([1 << 32, 0, 0, 0, 0, 0]), ProbeInvalid),
        refused("an id of -2^63", ids([i64::MIN, 0, 0, 0, 0, 0]), ProbeInvalid),
        refused("an id of 2^63-1", ids([i64::MAX, 0, 0, 0, 0, 0]), ProbeInvalid),
        refused("logits as F16", with(("logits".into(), "F16", vec![2, 3, 4], vec![0; 48])), ProbeInvalid),
        refused("logits of two axes", with(f32s("logits", &[6, 4], 0.0)), ProbeInvalid),
        refused("logits of another batch", with(f32s("logits", &[1, 3, 4], 0.0)), ProbeInvalid),
        refused("logits of other positions", with(f32s("logits", &[2, 2, 4], 0.0)), ProbeInvalid),
        refused("logits without a vocabulary", with(f32s("logits", &[2, 3, 0], 0.0)), ProbeInvalid),
        refused("base logits of another vocabulary", with(f32s("base_logits", &[2, 3, 5], 0.0)), ProbeInvalid),
        refused("base logits as F64", with(("base_logits".into(), "F64", vec![2, 3, 4], vec![0; 192])), ProbeInvalid),
        refused("no positions", positions(&[], 0), ProbeInvalid),
        refused("a position twice", positions(&[1, 1], 2), ProbeInvalid),
        refused("positions in disorder", positions(&[2, 0], 2), ProbeInvalid),
        refused("a position of -1", positions(&[-1, 0], 2), ProbeInvalid),
        refused("a position beyond the row", positions(&[0, 3], 2), ProbeInvalid),
        refused("a position of 2^63-1", positions(&[0, i64::MAX], 2), ProbeInvalid),
        refused("positions of two axes", with(i64s("positions", &[1, 3], &[0, 1, 2])), ProbeInvalid),
        refused("positions as F32", with(f32s("positions", &[3], 0.0)), ProbeInvalid),
        refused("a query of three axes", with(f32s("q.0", &[2, 3, 2], 0.0)), ProbeInvalid),
        refused("a query of another batch", with(f32s("q.0", &[1, 1, 3, 2], 0.0)), ProbeInvalid),
        refused("a query of other tokens", with(f32s("q.0", &[2, 1, 2, 2], 0.0)), ProbeInvalid),
        refused("a query of no heads", with(f32s("q.0", &[2, 0, 3, 2], 0.0)), ProbeInvalid),
        refused("a query of length 0", with(f32s("q.0", &[2, 1, 3, 0], 0.0)), ProbeInvalid),
        refused("a term of no heads", with(f32s("term.0", &[2, 0, 3, 2], 0.0)), ProbeInvalid),
        refused("a term as F16", with(("term.0".into(), "F16", vec![2, 1, 3, 2], vec![0; 24])), ProbeInvalid),
    ];
    for name in ["q.", "q.x", "q.-1", "q.00", "q.+1", "q. 1", "q.1.2", "term.18446744073709551616", "q.\u{661}"] {
        cases.push(refused(format!("a tensor named {name}"), with(f32s(name, &[2, 1, 3, 2], 0.0)), ProbeInvalid));
    }
    for name in ["logits", "base_logits", "q.0", "term.0"] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let shape: &[usize] = if name.contains('.') { &[2, 1, 3, 2] } else { &[2, 3, 4] };
            cases.push(refused(format!("{name} of {bad}"), with(f32s(name, shape, bad)), ProbeInvalid));
        }
    }
    cases.push(case::large(
        "a million positions in disorder",
        || {
            let n = 1 << 20;
            let falling: Vec<i64> = (0..n).rev().collect();
            file(vec![
                i64s("input_ids", &[1, n as usize], &vec![0; n as usize]),
                i64s("positions", &[n as usize], &falling),
                f32s("logits", &[1, n as usize, 1], 0.0),
            ])
        },
        Some(Code::ProbeInvalid),
    ));
    cases.push(case::large(
        "queries of 60,000 layers",
        || {
            let queries = (0..60_000).map(|i| f32s(&format!("q.{i}"), &[1, 1, 1, 1], 0.0));
            file(
                vec![i64s("input_ids", &[1, 1], &[0]), f32s("logits", &[1, 1, 1], 0.0)]
                    .into_iter()
                    .chain(queries)
                    .collect(),
            )
        },
        None,
    ));
    cases
}
