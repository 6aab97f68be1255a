//! The globals that a checkpoint may name. Nothing is ever imported or executed: those on the list stand for one
//! constructor each that the machine knows.
//!
//! The list is what `torch.save` needs for tensors in plain containers, and no more. What training codes put beside them
//! (NumPy scalars and arrays, `argparse.Namespace`, paths, dates, whole modules, sparse tensors and tensor subclasses)
//! could be rebuilt only by guessing what its code would have done: such names stay names, and what is made of them is an
//! object that nobody looks into. Names that no value needs, and with which pickles run programs, are refused.

use crate::tensor::DType;

/// A global on the allow-list that is a constructor or a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`: what `Module.state_dict()` returns.
    OrderedDict,
    /// `collections.defaultdict`: a dictionary, whatever its absent entries would be.
    DefaultDict,
    /// `builtins.set`: how protocols 2 and 3 spell a set.
    Set,
    /// `builtins.frozenset`, likewise.
    FrozenSet,
    /// `_codecs.encode`: how protocol 2 spells bytes, as text of their Latin-1 characters.
    Encode,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch.device`, kept as text.
    Device,
    /// `torch._utils._rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a tensor that is trained.
    RebuildParameter,
    /// `torch._utils._rebuild_parameter_with_state`: one on which attributes were set.
    RebuildParameterWithState,
    /// `torch._utils._rebuild_tensor_v3`: a view of bytes as a type that has no storage class of its own.
    RebuildTypedTensor,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor on which attributes were set; `torch.nn.Buffer` is one.
    RebuildFromType,
    /// `torch.Tensor`, the class.
    Tensor,
    /// `torch.nn.Parameter`, the class.
    Parameter,
    /// `torch.FloatStorage` and its kin: the element type of a storage. `torch.storage.UntypedStorage` counts bytes.
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
    /// A class or function of somebody's, never imported or called.
    Foreign,
    /// What runs programs, or no name of Python's: in no honest checkpoint.
    Refused,
}

/// Looks up `module.name`.
pub(super) fn resolve(module: &str, name: &str) -> Meaning {
    Meaning::Global(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("collections", "defaultdict") => Global::DefaultDict,
        ("_codecs", "encode") => Global::Encode,
        ("builtins" | "__builtin__", "set") => Global::Set,
        ("builtins" | "__builtin__", "frozenset") => Global::FrozenSet,
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Device,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch._utils", "_rebuild_parameter_with_state") => Global::RebuildParameterWithState,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTypedTensor,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
        ("torch", "Tensor") => Global::Tensor,
        ("torch.nn.parameter", "Parameter") => Global::Parameter,
        ("torch.storage", "UntypedStorage") => Global::Storage(DType::U8),
        ("torch", _) if name.ends_with("Storage") => return storage(name),
        ("torch", _) if DTYPES.contains(&name) => return Meaning::Constant,
        _ if runs_programs(module, name) || !is_name(module) || !is_name(name) => return Meaning::Refused,
        _ => return Meaning::Foreign,
    })
}

/// Modules of which no value in a checkpoint is: the system, other programs, other files, the interpreter itself.
const PROGRAMS: &[&str] = &[
    "_frozen_importlib",
    "_pickle",
    "_posixsubprocess",
    "_socket",
    "asyncio",
    "bdb",
    "builtins",
    "__builtin__",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "dill",
    "distutils",
    "ensurepip",
    "ftplib",
    "glob",
    "http",
    "imp",
    "importlib",
    "io",
    "_io",
    "linecache",
    "marshal",
    "multiprocessing",
    "nt",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "platform",
    "popen2",
    "posix",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shelve",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "subprocess",
    "sys",
    "telnetlib",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "urllib",
    "urllib2",
    "venv",
    "webbrowser",
    "zipimport",
];

/// What is in those modules and is a value after all, or says how one is made.
const VALUES: &[(&str, &[&str])] = &[
    (
        "builtins",
        &[
            "Ellipsis",
            "NotImplemented",
            "bool",
            "bytearray",
            "bytes",
            "complex",
            "dict",
            "float",
            "getattr",
            "int",
            "iter",
            "list",
            "long",
            "object",
            "range",
            "reversed",
            "slice",
            "str",
            "tuple",
            "type",
            "unicode",
            "xrange",
        ],
    ),
    ("io", &["BytesIO", "StringIO"]),
    ("os", &["stat_result", "terminal_size", "uname_result"]),
    ("http", &["HTTPStatus", "HTTPMethod"]),
    ("signal", &["Signals"]),
];

/// Single functions that load code or files.
const LOADERS: &[(&str, &str)] = &[
    ("torch", "load"),
    ("torch", "compile"),
    ("torch.serialization", "load"),
    ("torch.jit", "load"),
    ("torch.package", "PackageImporter"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("pandas", "read_pickle"),
    ("joblib", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
];

fn runs_programs(module: &str, name: &str) -> bool {
    let root = module.split('.').next().unwrap_or(module);
    if module == "torch.hub" || module.starts_with("torch.utils.cpp_extension") || LOADERS.contains(&(module, name)) {
        return true;
    }
    if !PROGRAMS.contains(&root) {
        return false;
    }
    let python_3 = if module == "__builtin__" { "builtins" } else { module };
    let is_exception = python_3 == "builtins" && ["Error", "Exception", "Warning"].iter().any(|e| name.ends_with(e));
    let is_value = VALUES.iter().any(|(m, names)| *m == python_3 && names.contains(&name));
    !is_exception && !is_value
}

/// Parts joined by dots, as Python prints a qualified name: `Outer.Inner`, `f.<locals>.g`.
fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let inner = part.strip_prefix('<').and_then(|p| p.strip_suffix('>')).unwrap_or(part);
        !inner.is_empty() && inner.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    text.split('.').all(is_part)
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
        "ComplexDoubleStorage" => DType::C128,
        "ComplexFloatStorage" => DType::C64,
        "QInt8Storage" | "QInt32Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
            return Meaning::UnreadStorage;
        }
        _ => return Meaning::Refused,
    }))
}

/// The element type that a constant `torch.float32` means; `None` for types that this crate does not know.
pub(super) fn dtype_of(constant: &str) -> Option<DType> {
    Some(match constant.strip_prefix("torch.")? {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "uint8" => DType::U8,
        "bool" => DType::BOOL,
        "complex64" => DType::C64,
        "complex128" => DType::C128,
        "float8_e4m3fn" => DType::F8_E4M3,
        "float8_e5m2" => DType::F8_E5M2,
        "float8_e4m3fnuz" => DType::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => DType::F8_E5M2FNUZ,
        "float8_e8m0fnu" => DType::F8_E8M0,
        _ => return None,
    })
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
            Global::DefaultDict => "collections.defaultdict",
            Global::Encode => "_codecs.encode",
            Global::Set => "builtins.set",
            Global::FrozenSet => "builtins.frozenset",
            Global::Size => "torch.Size",
            Global::Device => "torch.device",
            Global::RebuildTensor => "torch._utils._rebuild_tensor_v2",
            Global::RebuildParameter => "torch._utils._rebuild_parameter",
            Global::RebuildParameterWithState => "torch._utils._rebuild_parameter_with_state",
            Global::RebuildTypedTensor => "torch._utils._rebuild_tensor_v3",
            Global::RebuildFromType => "torch._tensor._rebuild_from_type_v2",
            Global::Tensor => "torch.Tensor",
            Global::Parameter => "torch.nn.parameter.Parameter",
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
            ("ComplexFloatStorage", DType::C64),
            ("ComplexDoubleStorage", DType::C128),
        ] {
            assert_eq!(storage(name), Some(dtype), "{name}");
        }
        assert!(matches!(resolve("torch", "bfloat16"), Meaning::Constant));
        assert!(matches!(resolve("torch", "QInt8Storage"), Meaning::UnreadStorage));
        assert_eq!(dtype_of("torch.float8_e4m3fn"), Some(DType::F8_E4M3));
        assert_eq!(dtype_of("float8_e4m3fn"), None);
        assert_eq!(dtype_of("torch.complex32"), None);
        let is_refused = |(module, name): &(&str, &str)| matches!(resolve(module, name), Meaning::Refused);
        let refused = [
            ("torch", "Storage"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("os", "system"),
            ("os.path", "join"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("__builtin__", "execfile"),
            ("importlib.util", "find_spec"),
            ("multiprocessing.util", "spawnv_passfds"),
            ("", ""),
            ("collections", "OrderedDict "),
            ("os\u{202e}", "metsys"),
            ("a..b", "c"),
            ("a", "<>"),
        ];
        assert_eq!(refused.iter().find(|r| !is_refused(r)), None);
        for (module, name) in [
            ("torch", "float"),
            ("torch.cuda", "FloatStorage"),
            ("numpy", "float32"),
            ("builtins", "list"),
            ("builtins", "ValueError"),
            ("os", "stat_result"),
            ("collections", "Counter"),
            ("Collections", "OrderedDict"),
            ("__main__", "main.<locals>.Config"),
            ("größe", "Maß"),
        ] {
            assert!(matches!(resolve(module, name), Meaning::Foreign), "{module}.{name}");
        }
    }
}
