//! LoRA as PEFT saves it, and as llama.cpp reads it.

mod config;
mod gguf;
mod names;
mod peft;

pub(super) use gguf::import as import_gguf;
pub(super) use peft::{is_lora, read};

use std::collections::BTreeMap;

use crate::adapter::lora::{MAX_RANK, Module, Scale};
use crate::adapter::{Part, Slot};
use crate::base::Weight;
use crate::error::Code;
use crate::finding::Findings;
use crate::tensor::LazyTensor;

/// What was found of each addition, in the axes of the weight, with the file's name for it.
type Pieces = BTreeMap<Weight, BTreeMap<Part, (String, LazyTensor)>>;

/// Puts a tensor in its place; two for one place are a finding.
fn insert(pieces: &mut Pieces, slot: (Weight, Part), name: &str, tensor: LazyTensor, findings: &mut Findings) {
    let (weight, part) = slot;
    match pieces.entry(weight).or_default().entry(part) {
        std::collections::btree_map::Entry::Vacant(place) => drop(place.insert((name.to_owned(), tensor))),
        std::collections::btree_map::Entry::Occupied(other) => {
            let found = format!("{} and this", other.get().0);
            findings.add(Code::AdapterDuplicate, name, "one tensor for this place", found);
        }
    }
}

/// Halves joined to modules whose shapes agree with each other; what does not is a finding. `scale` gives the factor of a module
/// of this rank, `expected_rank` what the configuration says of it, `name` what the file would call a tensor.
fn modules(
    pieces: Pieces,
    expected_rank: impl Fn(Weight) -> Option<usize>,
    scale: impl Fn(Weight, usize) -> Scale,
    name: impl Fn(Slot) -> String,
    findings: &mut Findings,
) -> BTreeMap<Weight, Module> {
    let mut out = BTreeMap::new();
    for (weight, mut parts) in pieces {
        let mut take = |part: Part| parts.remove(&part);
        let (a, b) = (take(Part::A), take(Part::B));
        let (magnitude, bias) = (take(Part::Magnitude), take(Part::Bias));
        for (half, is_there) in [(Part::A, a.is_some()), (Part::B, b.is_some())] {
            if !is_there {
                let name = name(slot(weight, half));
                findings.add(Code::AdapterMissing, name, "both halves of an addition", "no such tensor");
            }
        }
        let (Some((a_name, a)), Some((b_name, b))) = (a, b) else { continue };
        let mut is_whole = true;
        let mut wrong = |name: &str, expected: String, found: String| {
            findings.add(Code::AdapterShape, name, expected, found);
            is_whole = false;
        };
        let (a_shape, b_shape) = (a.shape().to_vec(), b.shape().to_vec());
        match (&a_shape[..], &b_shape[..]) {
            (&[rank, columns], &[rows, b_rank]) => {
                if rank != b_rank {
                    wrong(&b_name, format!("rank {rank}, as {a_name} has"), format!("rank {b_rank}"));
                }
                if [rank, columns, rows].contains(&0) {
                    wrong(&a_name, "dimensions above 0".into(), format!("{a_shape:?} and {b_shape:?}"));
                }
                if rank > MAX_RANK {
                    wrong(&a_name, format!("a rank of at most {MAX_RANK}"), rank.to_string());
                }
                if let Some(stated) = expected_rank(weight).filter(|r| *r != rank) {
                    wrong(&a_name, format!("rank {stated}, as the configuration says"), format!("rank {rank}"));
                }
            }
            _ => wrong(&a_name, "two matrices".into(), format!("{a_shape:?} and {b_shape:?}")),
        }
        let rows = b_shape.first().copied().unwrap_or(0);
        let mut vector = |part: Option<(String, LazyTensor)>| {
            let (name, tensor) = part?;
            // Broadcast on saving: [rows], [1, rows] and [rows, 1] are the same numbers.
            if tensor.n_elements() != rows || tensor.shape().iter().filter(|d| **d != 1).count() > 1 {
                wrong(&name, format!("[{rows}], as {b_name} has rows"), format!("{:?}", tensor.shape()));
                return None;
            }
            let mut tensor = tensor;
            while tensor.shape().len() > 1 {
                let axis = tensor.shape().iter().position(|d| *d == 1).expect("all but one are 1");
                tensor = tensor.squeeze(axis);
            }
            Some(tensor)
        };
        let (magnitude, bias) = (vector(magnitude), vector(bias));
        if is_whole {
            let rank = a_shape[0];
            out.insert(weight, Module { a, b, scale: scale(weight, rank), magnitude, bias });
        }
    }
    out
}

/// The slot of a part of `weight`'s addition.
fn slot(weight: Weight, part: Part) -> Slot {
    Slot::of_weight(weight, part)
}
