//! Reads, checks, hashes and quantizes an adapter with the crate's files alone: no features.
//!
//! ```text
//! cargo run --no-default-features --example files -- ADAPTER BASE OUT.gguf
//! ```

use std::path::Path;

use ptplus::bundle::digest::of_tensors;
use ptplus::format::gguf::{self, Metadata};
use ptplus::format::{OutputFile, Overwrite, TensorSpec};
use ptplus::import::{self, Options};
use ptplus::tensor::DType;
use ptplus::{BaseModel, Error, quant, validate};

/// Writes the adapter's tensors as Q8_0 into a GGUF file of this program's own kind.
pub fn run(adapter: &Path, base: &Path, output: &Path) -> Result<(), Error> {
    let base = BaseModel::open(base)?;
    let imported = import::read(adapter, &Options::default(), Some(&base))?;
    // Every tensor is read once: shapes, NaN, and what the base has in its place.
    let adapter = validate::check(imported, Some(&base)).map_err(validate::Rejected::into_error)?;
    for tensor in of_tensors(&adapter) {
        println!("{} {}", tensor.sha256, tensor.name);
    }
    // Names, types, shapes and offsets first, bytes after that.
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "mine");
    let tensors: Vec<_> = adapter.adapter().tensors().collect();
    let spec = |name: String, shape: &[usize]| TensorSpec { name, dtype: DType::Q8_0, shape: shape.to_vec() };
    let specs: Vec<_> = tensors.iter().map(|(slot, t)| spec(slot.canonical_name(), t.shape())).collect();
    let plan = gguf::plan(&metadata, &specs)?;
    // A file beside `output`, which gets its name when it is whole.
    let file = OutputFile::create(output, Overwrite::Never, &[])?;
    file.set_len(plan.len_bytes)?;
    file.write_all_at(0, &plan.header)?;
    for ((_, tensor), place) in tensors.iter().zip(&plan.tensors) {
        let mut values = vec![0f32; tensor.n_elements()];
        quant::decode(tensor.dtype(), &tensor.to_bytes(), &mut values);
        let mut blocks = vec![0; place.len_bytes as usize];
        let row_len = tensor.shape().last().copied().unwrap_or(1);
        quant::quantize_rows(DType::Q8_0, &values, row_len, &mut blocks);
        file.write_all_at(place.file_offset, &blocks)?;
    }
    file.commit()
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [adapter, base, output] = &arguments[..] else {
        eprintln!("usage: files ADAPTER BASE OUT.gguf");
        std::process::exit(2);
    };
    run(adapter.as_ref(), base.as_ref(), output.as_ref())
}
