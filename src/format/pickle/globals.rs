//! The globals that a checkpoint may name. Nothing is ever imported or executed: each stands for one constructor
//! that the machine knows, and whatever is not in this table is an error that names it.
//!
//! The list is what `torch.save` needs for tensors in plain containers, and no more. Left out on purpose, although
//! harmless ones exist: NumPy scalars and arrays, `argparse.Namespace`, whole modules, sparse and quantized tensors,
//! tensor subclasses. Each could be rebuilt only by guessing what its code would have done.

use crate::tensor::DType;

/// A global on the allow-list that is a constructor or a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`: what `Module.state_dict()` returns.
    OrderedDict,
    /// `builtins.set` and `frozenset`: how protocols 2 and 3 spell a set.
    Set,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch.device`, kept as text.
    Device,
    /// `torch._utils._rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a tensor that is trained.
    RebuildParameter,
    /// `torch.FloatStorage` and its kin: the element type of a storage.
    Storage(DType),
}

/// What a global's name stands for.
pub(super) enum Meaning {
    /// A constructor or class.
    Global(Global),
    /// `torch.float32` and its kin: a constant, kept as text.
    Constant,
    /// A storage whose elements are of no type that this crate reads.
    UnreadStorage,
    /// Not on the list.
    Unknown,
}

/// Looks up `module.name`.
pub(super) fn resolve(module: &str, name: &str) -> Meaning {
    Meaning::Global(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("builtins" | "__builtin__", "set" | "frozenset") => Global::Set,
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Device,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", _) if name.ends_with("Storage") => return storage(name),
        ("torch", _) if DTYPES.contains(&name) => return Meaning::Constant,
        _ => return Meaning::Unknown,
    })
}

fn storage(name: &str) -> Meaning {
    Meaning::Global(Global::Storage(match name {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::BOOL,
        "ComplexDoubleStorage"
        | "ComplexFloatStorage"
        | "QInt8Storage"
        | "QInt32Storage"
        | "QUInt8Storage"
        | "QUInt4x2Storage"
        | "QUInt2x4Storage" => return Meaning::UnreadStorage,
        _ => return Meaning::Unknown,
    }))
}

/// Names of `torch.dtype` constants (torch/storage.py and torch/testing of 2.9).
const DTYPES: &[&str] = &[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
];

impl Global {
    /// The name in Python, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Global::OrderedDict => "collections.OrderedDict",
            Global::Set => "builtins.set",
            Global::Size => "torch.Size",
            Global::Device => "torch.device",
            Global::RebuildTensor => "torch._utils._rebuild_tensor_v2",
            Global::RebuildParameter => "torch._utils._rebuild_parameter",
            Global::Storage(_) => "a storage class",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_what_pytorch_means_by_them() {
        let storage = |name| match resolve("torch", name) {
            Meaning::Global(Global::Storage(dtype)) => Some(dtype),
            _ => None,
        };
        for (name, dtype) in [
            ("DoubleStorage", DType::F64),
            ("FloatStorage", DType::F32),
            ("HalfStorage", DType::F16),
            ("BFloat16Storage", DType::BF16),
            ("LongStorage", DType::I64),
            ("IntStorage", DType::I32),
            ("ShortStorage", DType::I16),
            ("CharStorage", DType::I8),
            ("ByteStorage", DType::U8),
            ("BoolStorage", DType::BOOL),
        ] {
            assert_eq!(storage(name), Some(dtype), "{name}");
        }
        assert!(matches!(resolve("torch", "bfloat16"), Meaning::Constant));
        assert!(matches!(resolve("torch", "ComplexFloatStorage"), Meaning::UnreadStorage));
        for (module, name) in [
            ("torch", "Storage"),
            ("torch", "load"),
            ("torch", "float"),
            ("torch.cuda", "FloatStorage"),
            ("numpy", "float32"),
            ("builtins", "list"),
            ("collections", "Counter"),
            ("Collections", "OrderedDict"),
            ("collections", "OrderedDict "),
        ] {
            assert!(matches!(resolve(module, name), Meaning::Unknown), "{module}.{name}");
        }
    }
}
