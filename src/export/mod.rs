//! [`Validated`] adapters and base models to files: the mirror of [`crate::import`].
//!
//! A plan is made first (every name, type, shape and offset), then written by [`write_tensors`]. `--dry-run` stops
//! between the two.

pub mod base;
pub mod canonical;
mod file_type;
pub mod gguf;
mod lora;
mod mix;
mod prefix;
mod recorded;
pub(crate) use recorded::main_type;
pub mod types;
mod write;

use std::collections::BTreeMap;

use crate::digest::TensorDigest;
use crate::format::{FilePlan, TensorSpec};
use crate::tensor::{DType, LazyTensor};
use crate::transform::loss::Loss;
use crate::validate::Validated;
use types::Choice;

pub use write::write_tensors;

/// One output tensor: where its values come from, in the output's axes, and the type that they get.
#[derive(Debug, Clone)]
pub struct OutputTensor {
    /// Its name in canonical axes, by which errors call it.
    pub label: String,
    /// The values, in the output's axis order.
    pub source: LazyTensor,
    /// The same values in canonical axes (a base's: those of its file), in which errors name elements.
    pub canonical: LazyTensor,
    /// What every value is multiplied with, in F32; 1 for all but factors that an output has no other place for.
    pub factor: f64,
    /// The type to write.
    pub dtype: DType,
    /// The type that was asked for, where the rows are no whole blocks of it.
    pub unfit: Option<DType>,
    /// What is added to the values, in F32, before they get their type.
    pub additions: Vec<MatrixAddition>,
}

impl OutputTensor {
    /// The values as they are, in the type that was chosen.
    fn new(label: String, source: LazyTensor, canonical: LazyTensor, choice: Choice) -> Self {
        let Choice { dtype, unfit } = choice;
        OutputTensor { label, source, canonical, factor: 1.0, dtype, unfit, additions: Vec::new() }
    }

    /// What a file's header says of it, under this name.
    fn spec(&self, name: String) -> TensorSpec {
        TensorSpec { name, dtype: self.dtype, shape: self.source.shape().to_vec() }
    }
}

/// `scale * B A`, merged into a matrix while it is written.
#[derive(Debug, Clone)]
pub struct MatrixAddition {
    /// Where the matrix begins in the output: its first row there.
    pub first_row: usize,
    /// A `[r, columns]`
    pub a: LazyTensor,
    /// B `[rows, r]`, in the order of the output's rows.
    pub b: LazyTensor,
    /// The factor on B A.
    pub scale: f64,
    /// DoRA: the lengths of the sum's rows, `[rows]`, in the order of the output's.
    pub magnitude: Option<LazyTensor>,
}

/// A file that can be written.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Header and offsets; one planned tensor for each of `tensors`.
    pub file: FilePlan,
    /// Sources.
    pub tensors: Vec<OutputTensor>,
}

/// What writing the tensors found out.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// Digest of every consumed source tensor.
    pub sources: Vec<TensorDigest>,
    /// Elements saturated per output tensor name, under [`Overflow::Saturate`](crate::transform::cast::Overflow::Saturate).
    pub saturated: BTreeMap<String, usize>,
    /// What each output tensor's type cost, in the order of [`Plan::tensors`].
    pub losses: Vec<Loss>,
}

/// What is known about the values of a plan before they are read for writing.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// The plan is of this adapter, whose values are finite. Its consumed tensors are hashed while they are written.
    Validated(&'a Validated),
    /// Nothing is known: NaN and infinity are looked for, and refused.
    Unchecked,
}
